// Which process stands behind each session, until it is known that nothing of it touches the arena any more.
//
// A session is opened with proof of its process (a pidfd) and put into the holder under its name. Its connection's end
// only closes it in the store; it is resolved, and forgotten here, when its process is proven dead or says of itself
// that its copies have ended. After a daemon's restart the holder's proofs stand for the sessions of the former life.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "holder.h"
#include "process.h"
#include "store.h"

namespace kvcommons {

class SessionLedger {
 public:
  // watch(pidfd, serial) makes the caller hear of the pidfd's end by process_ended(serial).
  using Watch = std::function<bool(int pidfd, std::uint64_t serial)>;
  SessionLedger(Store* store, HolderLink* holder, Watch watch)
      : store_(store), holder_(holder), watch_(std::move(watch)) {}
  SessionLedger(const SessionLedger&) = delete;  // one pidfd, one owner

  // false: its process cannot be watched, so the session must not be.
  bool opened(SessionId id, std::uint64_t connection, pid_t pid, ProcessProof proof);
  void connection_ended(SessionId id);
  // The connection to close, if it was still open; 0 if not.
  std::uint64_t process_ended(std::uint64_t serial);

  enum class Claim : std::uint8_t { Accepted, Foreign /* another process' session */, StillConnected };
  // A process says that the copies of `id` have ended. StillConnected: close *connection, then claim again.
  Claim drained(SessionId id, pid_t pid, std::uint64_t* connection);
  // The session itself says so before it goes away; each grant (begin, reserve) takes it back.
  void set_own_drained(SessionId id, bool drained);

  // Proofs of a former life: kept where the store still holds something for them, removed from the holder elsewhere.
  void adopt(std::vector<HeldFd> held);
  void put_all_again();

  static bool is_proof(std::string_view held_name) { return held_name.starts_with("session."); }
  [[nodiscard]] std::size_t waiting_for_proof() const noexcept { return former_; }
  [[nodiscard]] std::size_t without_proof() const noexcept { return without_proof_; }

 private:
  struct Entry {
    SessionId id = 0;
    std::uint64_t connection = 0;  // 0: ended
    pid_t pid = 0;
    UniqueFd pidfd;
    bool drained = false;  // nothing was granted to it since it was opened, or since it said so
  };
  using Entries = std::unordered_map<std::uint64_t, Entry>;
  bool add(Entry entry);
  void put(const Entry& entry);
  void resolve(Entries::iterator entry);
  Entries::iterator find(SessionId id);

  Store* store_;
  HolderLink* holder_;
  Watch watch_;
  Entries entries_;  // by serial
  std::unordered_map<SessionId, std::uint64_t> serials_;
  std::uint64_t next_serial_ = 1;
  std::size_t former_ = 0;         // entries without a connection
  std::size_t without_proof_ = 0;  // sessions of a former life that only their own process can resolve
};

}  // namespace kvcommons
