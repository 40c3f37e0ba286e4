#include "leases.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

namespace kvcommons::internal {

std::uint64_t random_id() {
  thread_local std::array<std::uint64_t, 32> pool{};  // 256 bytes: what getrandom gives without being interrupted
  thread_local std::size_t left = 0;
  for (;;) {
    if (left == 0) {
      if (getrandom(pool.data(), sizeof pool, 0) != static_cast<ssize_t>(sizeof pool)) {
        throw std::system_error(errno, std::generic_category(), "getrandom");
      }
      left = pool.size();
    }
    if (const std::uint64_t id = std::exchange(pool[--left], 0); id != 0) {
      return id;
    }
  }
}

void Leases::count(const Lease& lease, bool add) {
  const bool pending =
      std::any_of(lease.parts.begin(), lease.parts.end(), [](const LeasePart& p) { return p.begins_left != 0; });
  const bool copying =
      std::any_of(lease.parts.begin(), lease.parts.end(), [](const LeasePart& p) { return !p.copying.empty(); });
  counts_.pending += add ? std::uint64_t{pending} : ~std::uint64_t{pending} + 1;
  counts_.copying += add ? std::uint64_t{copying} : ~std::uint64_t{copying} + 1;
}

LeaseId Leases::add(const LeasePtr& lease) {
  const std::lock_guard lock(mutex_);
  if (table_.size() >= leases_max_) {
    return 0;
  }
  do {
    lease->id = random_id();
  } while (table_.contains(lease->id));
  lease->place = by_age_.insert(by_age_.end(), lease->id);
  table_.emplace(lease->id, lease);
  count(*lease, true);
  return lease->id;
}

Leases::Claim Leases::claim(LeaseId id, SessionId session, std::uint32_t fingerprint, std::uint16_t rect,
                            LeasePtr* lease, std::size_t* part) {
  const std::lock_guard lock(mutex_);
  const auto it = table_.find(id);
  if (it == table_.end()) {
    return Claim::Gone;
  }
  Lease& l = *it->second;
  if (l.fingerprint != fingerprint) {
    return Claim::Denied;
  }
  for (std::size_t i = 0; i < l.parts.size(); ++i) {
    LeasePart& p = l.parts[i];
    if (p.rect != rect) {
      continue;
    }
    if (std::find(p.copying.begin(), p.copying.end(), session) != p.copying.end()) {
      return Claim::Busy;
    }
    if (p.begins_left == 0) {
      return Claim::Gone;
    }
    count(l, false);
    --p.begins_left;
    p.copying.push_back(session);
    count(l, true);
    *lease = it->second;
    *part = i;
    return Claim::Ok;
  }
  return Claim::Denied;
}

std::optional<Leases::Copying> Leases::copying(LeaseId id, SessionId session) {
  const std::lock_guard lock(mutex_);
  const auto it = table_.find(id);
  if (it == table_.end()) {
    return std::nullopt;
  }
  const auto& parts = it->second->parts;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (std::find(parts[i].copying.begin(), parts[i].copying.end(), session) != parts[i].copying.end()) {
      return Copying{it->second, i};
    }
  }
  return std::nullopt;
}

std::vector<Leases::Copying> Leases::copying_all(SessionId session) {
  const std::lock_guard lock(mutex_);
  std::vector<Copying> out;
  for (const auto& [id, lease] : table_) {
    for (std::size_t i = 0; i < lease->parts.size(); ++i) {
      const auto& c = lease->parts[i].copying;
      if (std::find(c.begin(), c.end(), session) != c.end()) {
        out.push_back({lease, i});
      }
    }
  }
  return out;
}

LeasePtr Leases::end_if_done(Table::iterator it) {
  const LeasePtr lease = it->second;
  for (const LeasePart& p : lease->parts) {
    if (p.begins_left != 0 || !p.copying.empty()) {
      return nullptr;
    }
  }
  by_age_.erase(lease->place);
  table_.erase(it);
  return lease;
}

bool Leases::revoke_pending(Lease& lease) {
  bool any = false;
  count(lease, false);
  for (LeasePart& p : lease.parts) {
    any = any || p.begins_left != 0;
    p.begins_left = 0;
  }
  count(lease, true);
  counts_.revoked += any ? 1 : 0;
  return any;
}

LeasePtr Leases::finished(const Copying& copying, SessionId session, bool revoke_rest) {
  const std::lock_guard lock(mutex_);
  const auto it = table_.find(copying.lease->id);
  if (it == table_.end()) {
    return nullptr;
  }
  LeasePart& p = it->second->parts[copying.part];
  count(*it->second, false);
  std::erase(p.copying, session);
  if (revoke_rest) {
    p.begins_left = 0;
  }
  count(*it->second, true);
  return end_if_done(it);
}

LeasePtr Leases::revoke(LeaseId id, SessionId session, std::uint32_t fingerprint, std::optional<std::uint16_t> own_rect,
                        bool* found) {
  const std::lock_guard lock(mutex_);
  const auto it = table_.find(id);
  *found = it != table_.end();
  if (!*found) {
    return nullptr;
  }
  Lease& l = *it->second;
  if (l.session == session) {
    revoke_pending(l);
  } else if (own_rect && l.fingerprint == fingerprint) {
    count(l, false);
    for (LeasePart& p : l.parts) {
      p.begins_left -= p.rect == *own_rect && p.begins_left != 0 ? 1 : 0;
    }
    count(l, true);
  }
  return end_if_done(it);
}

std::vector<LeasePtr> Leases::revoke_of(SessionId session) {
  const std::lock_guard lock(mutex_);
  std::vector<LeasePtr> ended;
  for (auto it = table_.begin(); it != table_.end();) {
    const auto next = std::next(it);
    if (it->second->session == session) {
      revoke_pending(*it->second);
      if (auto lease = end_if_done(it)) {
        ended.push_back(std::move(lease));
      }
    }
    it = next;
  }
  return ended;
}

std::vector<LeasePtr> Leases::expire(std::uint64_t created_before_ms) {
  const std::lock_guard lock(mutex_);
  std::vector<LeasePtr> ended;
  for (auto place = by_age_.begin(); place != by_age_.end();) {
    const auto it = table_.find(*place++);
    if (it->second->created_ms > created_before_ms) {
      break;
    }
    if (revoke_pending(*it->second)) {
      if (auto lease = end_if_done(it)) {
        ended.push_back(std::move(lease));
      }
    }
  }
  return ended;
}

Leases::Counts Leases::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

}  // namespace kvcommons::internal
