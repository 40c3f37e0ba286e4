// TLS 1.3 around a connection, by the machine's own libssl.so.3, opened when a node is told to use it. Both sides show
// a certificate that the pool's authority has signed.
#pragma once

#include <memory>
#include <string>

#include "peers/peer_stream.h"

namespace kvcommons::peers {

struct TlsConfig {
  std::string ca_file, cert_file, key_file;  // PEM
};

// nullptr: here. Otherwise why not, for a person.
[[nodiscard]] const char* tls_missing() noexcept;

class TlsContext {
 public:
  // Throws std::invalid_argument: the setting, the file and what is wrong with it.
  explicit TlsContext(const TlsConfig& config);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;  // owns what libssl gave

  // Takes the connection, with the files as they are now (certificates are renewed), or as they were at first where
  // they can't be used. Null where the handshake failed or the other side has no certificate of this pool.
  [[nodiscard]] std::unique_ptr<Stream> wrap(UniqueFd fd, bool server, Deadline deadline, std::string* why) const;

 private:
  TlsConfig config_;
  void* context_;  // of the files at first
};

}  // namespace kvcommons::peers
