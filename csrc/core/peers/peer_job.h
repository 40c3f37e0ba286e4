// What one connection to a peer does: a request and its answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "peers/peer_stream.h"
#include "tier.h"

namespace kvcommons::peers {

class PeerJob {
 public:
  virtual ~PeerJob() = default;
  PeerJob() = default;
  PeerJob(const PeerJob&) = delete;  // answers somebody once
  PeerJob& operator=(const PeerJob&) = delete;

  // On a connection that has greeted. False: the connection is good for nothing more; what was answered stays so.
  virtual bool run(Stream& stream, Deadline deadline) = 0;
  // Nothing of it was answered yet: it may be run again on another connection.
  [[nodiscard]] virtual bool untouched() const noexcept = 0;
  // What was not answered never will be.
  virtual void end(TierStatus status) = 0;

  std::uint64_t bytes = 0;  // that are expected
  std::uint32_t ms_max = 1'500;
};
using JobPtr = std::unique_ptr<PeerJob>;

struct PeerAddress {
  std::uint32_t slot = 0, epoch = 0;  // in the index
  std::string name;
  std::string host;  // an IP address
  std::uint16_t port = 0;
};

}  // namespace kvcommons::peers
