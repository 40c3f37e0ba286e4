// The engine's side of protocol 1. One object per process and role; thread-safe (calls are serialised on the socket).
// It does not survive a fork: in the child every call is Disconnected, and the arena is not mapped there.
// No call blocks longer than call_ms_max; calls that grant nothing twice are sent again once if the node was restarted.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv_layouts.h"
#include "store.h"
#include "wire.h"

namespace kvcommons {

struct ClientConfig {
  std::string socket_path;
  wire::Role role = wire::Role::Scheduler;
  Key fingerprint;
  std::uint32_t chunk_tokens = 0;
  std::vector<ShardSpec> shards;
  std::uint32_t own_shard = 0xffffffff;
  std::optional<KvForm> layout;          // of the slots: told to a node that asks for it
  bool exact = false;                    // nothing that a codec changed, whatever the node is set to
  std::uint32_t readers_per_shard = 1;   // schedulers: ranks that each load the same shard (MLA)
  std::uint32_t call_ms_max = 250;       // a call that takes longer drops the connection: the request is recomputed
  std::uint32_t reconnect_ms_min = 100;  // back-off between attempts, doubled up to
  std::uint32_t reconnect_ms_max = 2'000;
  std::uint32_t arena_kept_ms = 120'000;  // upkeep(): a node that has gone is waited for as long as its holder waits
};

class Client {
 public:
  explicit Client(ClientConfig config);
  ~Client();
  Client(const Client&) = delete;  // owns the socket and the arena's mapping

  // Attaches now if it is due by the back-off; true if attached afterwards. A refusal that waiting cannot mend
  // (BadVersion, BadFingerprint, Denied) is kept in last_error() and retried at reconnect_ms_max only.
  bool ensure_connected();
  [[nodiscard]] bool connected() const noexcept;
  [[nodiscard]] std::string last_error() const;
  [[nodiscard]] std::uint32_t hello_flags() const noexcept;
  [[nodiscard]] Key namespace_secret() const noexcept;
  [[nodiscard]] Key fingerprint()
      const noexcept;  // the session's: keys derive from it; the node's setting may change it
  [[nodiscard]] std::string node_id() const;
  [[nodiscard]] std::uint64_t attach_count() const noexcept;  // grows with each attach; leases of older ones are void

  // The arena as mapped here; nullptr before the first attach, and in schedulers, which copy nothing. The mapping of a
  // former arena stays until every ArenaRef on it is dropped, so that a copy that runs while the node dies reads valid
  // memory.
  using ArenaRef = std::shared_ptr<std::byte>;
  [[nodiscard]] ArenaRef arena() const;
  [[nodiscard]] std::uint64_t arena_bytes() const noexcept;
  [[nodiscard]] std::uint64_t slot_bytes() const noexcept;  // payload of a slot of the own shard; 0 without one

  struct Hit {
    LeaseId lease = 0;
    std::uint32_t hit_chunks = 0, pending_chunks = 0;
  };
  Status lookup(std::span<const Key> keys, std::uint64_t tenant, bool lease, Hit* out);
  Status begin(LeaseId lease, std::vector<SlotRef>* out);
  Status reserve(std::uint64_t tenant, const Key& parent, std::span<const Key> keys, std::vector<Reservation>* out,
                 std::uint32_t hints = 0);
  Status commit(std::span<const CommitItem> items, std::uint32_t* accepted);
  Status abort(std::span<const SlotRef> slots);
  Status release(LeaseId lease);
  Status touch(std::span<const Key> keys);
  Status feedback(std::string_view json);
  Status stat(std::string* json);

  // Copies in flight are counted, because a former session may be named as drained only when none of its copies runs:
  // what it held is then granted to others. Call copy_started() BEFORE the begin() or reserve() that grants the slots,
  // and copy_finished() when no thread and no device touches them any more, whatever became of the call. The last
  // copy_finished() after a lost connection tells the node (it may block for call_ms_max).
  void copy_started();
  void copy_finished();

  // For an idle process, whose next call may be long in coming: finds out that the node has gone, attaches to the one
  // that takes its place, and unmaps the arena of one that stays away for arena_kept_ms while nothing copies. Never
  // waits for another thread's call.
  void upkeep();

  // Says goodbye (a session without copies in flight frees what it held at once) and does not attach again.
  void close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvcommons
