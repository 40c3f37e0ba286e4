#include "session_ledger.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string>
#include <unordered_set>

namespace kvcommons {
namespace {

constexpr std::string_view kPrefix = "session.";

std::string held_name(SessionId id) {
  std::array<char, 16> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), id, 16);
  return std::string(kPrefix) + std::string(digits.data(), end.ptr);
}

SessionId session_of(std::string_view name) {
  SessionId id = 0;
  name.remove_prefix(kPrefix.size());
  const auto end = std::from_chars(name.data(), name.data() + name.size(), id, 16);
  return end.ec == std::errc{} && end.ptr == name.data() + name.size() ? id : 0;
}

}  // namespace

bool SessionLedger::opened(SessionId id, std::uint64_t connection, pid_t pid, ProcessProof proof) {
  return add({id, connection, pid, std::move(proof.pidfd), true});
}

bool SessionLedger::add(Entry entry) {
  const std::uint64_t serial = next_serial_++;
  if (!watch_(entry.pidfd.get(), serial)) return false;
  if (entry.connection == 0) ++former_;
  serials_[entry.id] = serial;
  put(entry);
  entries_.emplace(serial, std::move(entry));
  return true;
}

void SessionLedger::put(const Entry& entry) {
  if (!holder_->connected()) return;
  const std::int32_t pid = entry.pid;
  holder_->put(held_name(entry.id), std::as_bytes(std::span(&pid, 1)), entry.pidfd.get());
}

SessionLedger::Entries::iterator SessionLedger::find(SessionId id) {
  const auto serial = serials_.find(id);
  return serial == serials_.end() ? entries_.end() : entries_.find(serial->second);
}

void SessionLedger::connection_ended(SessionId id) {
  const auto entry = find(id);
  if (entry == entries_.end() || entry->second.connection == 0) return;
  entry->second.connection = 0;
  ++former_;
  store_->close_session(id);
  if (entry->second.drained) resolve(entry);
}

std::uint64_t SessionLedger::process_ended(std::uint64_t serial) {
  const auto entry = entries_.find(serial);
  if (entry == entries_.end()) return 0;
  const std::uint64_t connection = entry->second.connection;
  if (connection != 0) connection_ended(entry->second.id);
  // Ending the connection of a drained session has resolved it already.
  if (const auto left = entries_.find(serial); left != entries_.end()) resolve(left);
  return connection;
}

void SessionLedger::resolve(Entries::iterator entry) {
  const SessionId id = entry->second.id;
  store_->resolve_session(id);
  holder_->remove(held_name(id));
  --former_;
  serials_.erase(id);
  entries_.erase(entry);  // closes the pidfd, which ends the watch
}

SessionLedger::Claim SessionLedger::drained(SessionId id, pid_t pid, std::uint64_t* connection) {
  const auto entry = find(id);
  if (entry == entries_.end()) {
    // Resolved before, or of a former life whose proof was lost: an id that nobody can guess is proof enough.
    store_->resolve_session(id);
    return Claim::Accepted;
  }
  if (entry->second.pid != pid) return Claim::Foreign;
  *connection = entry->second.connection;
  if (*connection != 0) return Claim::StillConnected;
  resolve(entry);
  return Claim::Accepted;
}

void SessionLedger::set_own_drained(SessionId id, bool drained) {
  if (const auto entry = find(id); entry != entries_.end()) entry->second.drained = drained;
}

void SessionLedger::adopt(std::vector<HeldFd> held) {
  const std::vector<SessionId> unresolved = store_->unresolved_sessions();
  std::unordered_set<SessionId> waiting(unresolved.begin(), unresolved.end());
  for (HeldFd& proof : held) {
    const SessionId id = session_of(proof.name);
    if (waiting.erase(id) == 0 || !is_pidfd(proof.fd.get())) {
      holder_->remove(proof.name);
      continue;
    }
    std::int32_t pid = 0;
    if (proof.meta.size() == sizeof pid) std::memcpy(&pid, proof.meta.data(), sizeof pid);
    if (!add({id, 0, pid, std::move(proof.fd), false})) waiting.insert(id);
  }
  without_proof_ = waiting.size();
}

void SessionLedger::put_all_again() {
  for (const auto& [serial, entry] : entries_) put(entry);
}

}  // namespace kvcommons
