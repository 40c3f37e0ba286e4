// What a transfer needs of the node: leases to load from, reservations to store to, and the arena that both lie in.
// Client is the one in production; tests script another, to fail at each step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "store.h"

namespace kvcommons {

class Client;

class LeasePort {
 public:
  virtual ~LeasePort() = default;

  // The arena that slots granted during one attach lie in. Slots are used only if `attach` is the same before and after
  // the call that granted them: else they may belong to another arena.
  struct Attachment {
    std::shared_ptr<std::byte> arena;
    std::uint64_t arena_bytes = 0;
    std::uint64_t attach = 0;  // 0: never attached
  };
  virtual bool ensure_connected() = 0;
  [[nodiscard]] virtual Attachment attachment() const = 0;
  // Payload of a slot of this process' own shard, as the node was told; 0 if it has none.
  [[nodiscard]] virtual std::uint64_t slot_bytes() const = 0;

  virtual Status begin(LeaseId lease, std::vector<SlotRef>* out) = 0;
  virtual Status release(LeaseId lease) = 0;
  virtual Status reserve(std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                         std::vector<Reservation>* out, std::uint32_t hints) = 0;
  virtual Status commit(std::span<const CommitItem> items, std::uint32_t* accepted) = 0;
  virtual Status abort(std::span<const SlotRef> slots) = 0;

  // Around everything that touches granted slots, from before the call that grants them.
  // Called now and then by a thread with nothing else to do.
  virtual void upkeep() {}

  virtual void copy_started() = 0;
  virtual void copy_finished() = 0;
};

std::shared_ptr<LeasePort> client_port(std::shared_ptr<Client> client);

}  // namespace kvcommons
