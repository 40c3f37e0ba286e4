#include "store.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "memory.h"
#include "store_impl.h"

namespace kvcommons {

using internal::NotifyAtEnd;

std::atomic<std::uint64_t>* internal::Counters::of(SlotState state) noexcept {
  switch (state) {
    case SlotState::Filling:
      return &filling;
    case SlotState::Sealed:
      return &sealed;
    case SlotState::Draining:
      return &draining;
    case SlotState::Quarantined:
      return &quarantined;
    case SlotState::Free:
      break;  // counted by the slabs
  }
  return nullptr;
}

namespace {

constexpr std::string_view kAuto = "auto";
constexpr std::uint64_t kHistoryMin = 4'096, kHistoryMax = 1 << 20;  // 16 bytes each
constexpr std::uint64_t kChunkBytes = 256 << 10;                     // small ones: more of them are not remembered

eviction::Kind first_policy(const StoreConfig& config) {
  if (config.tenant_percent_max == 0 || config.tenant_percent_max > 100) {
    throw std::invalid_argument("tenant_percent_max is " + std::to_string(config.tenant_percent_max) +
                                ": give 1..100, 100 for no limit");
  }
  if (config.eviction == kAuto) {
    return eviction::Kind::Cost;
  }
  const auto kind = eviction::kind_of(config.eviction);
  if (!kind) {
    throw std::invalid_argument("eviction is \"" + config.eviction + "\": use lru, s3fifo, cost or auto");
  }
  return *kind;
}

std::uint64_t history_of(const StoreConfig& config) {
  return std::clamp(config.arena_bytes / kChunkBytes, kHistoryMin, kHistoryMax);
}

}  // namespace

Store::Impl::Impl(const StoreConfig& config, int arena_fd, int records_fd)
    : config_(config),
      records_(internal::Geometry::of(config), records_fd),
      slabs_(records_),
      policy_(first_policy(config), history_of(config)),
      tenants_(config.arena_bytes, config.tenant_percent_max),
      index_(&records_, &policy_, &now_s_, tenants_.counts()),
      fingerprints_(records_),
      leases_(config.leases_max),
      events_(config.events_max) {
  if (!config_.now_ms) {
    config_.now_ms = [] {
      const auto now = std::chrono::steady_clock::now().time_since_epoch();
      return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
    };
  }
  struct stat st{};
  if (fstat(arena_fd, &st) != 0) {
    throw std::system_error(errno, std::generic_category(), "arena: fstat");
  }
  if (static_cast<std::uint64_t>(st.st_size) < config.arena_bytes) {
    throw std::invalid_argument("arena_fd bytes = " + std::to_string(st.st_size) + ": make the file " +
                                std::to_string(config.arena_bytes) + " bytes long (arena_bytes)");
  }
  arena_ = map_shared(arena_fd, 0, config.arena_bytes, PROT_READ);
  if (arena_ == nullptr) {
    throw std::system_error(errno, std::generic_category(), "arena: mmap");
  }
  now_s_ = config_.now_ms() / 1'000;
  adopt();
  const bool follow = config_.eviction == "auto";
  if (follow || config_.shadow_chunks_max != 0) {
    eviction::ShadowConfig shadows;
    shadows.capacity_pages = config_.arena_bytes / kSlotAlignBytes;
    shadows.first = policy_.kind();
    if (config_.shadow_chunks_max != 0) {
      shadows.chunks_max = config_.shadow_chunks_max;
    }
    watch_ = std::make_unique<eviction::Watch>(shadows, follow, &policy_);
  }
}

Store::Impl::~Impl() { munmap(const_cast<std::byte*>(arena_), config_.arena_bytes); }

Store::Store(const StoreConfig& config, int arena_fd, int records_fd)
    : impl_(std::make_unique<Impl>(config, arena_fd, records_fd)) {}
Store::~Store() = default;

std::uint64_t Store::records_bytes(const StoreConfig& config) { return internal::Geometry::of(config).total_bytes; }
bool Store::adopted() const noexcept { return impl_->adopted(); }

Status Store::open_session(const SessionSpec& spec, SessionId* out) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->open_session(spec, false, out);
}
void Store::close_session(SessionId session) {
  const NotifyAtEnd notify(impl_->events());
  impl_->close_session(session);
}
void Store::resolve_session(SessionId session) {
  const NotifyAtEnd notify(impl_->events());
  impl_->resolve_session(session);
}
void Store::note_process(SessionId session, std::uint32_t pid) { impl_->note_process(session, pid); }
std::vector<SessionId> Store::unresolved_sessions() const { return impl_->unresolved_sessions(); }

LookupResult Store::lookup(SessionId session, std::span<const Key> keys, bool lease) {
  return impl_->lookup(session, keys, lease);
}
Status Store::begin(SessionId session, LeaseId lease, std::vector<SlotRef>* out) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->begin(session, lease, out);
}
Status Store::release(SessionId session, LeaseId lease) { return impl_->release(session, lease); }
Status Store::reserve(SessionId session, std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                      std::vector<Reservation>* out, const eviction::Hints& hints) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->reserve(session, tenant, parent, keys, out, hints);
}
Status Store::commit(SessionId session, std::span<const CommitItem> items, std::uint32_t* accepted) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->commit(session, items, accepted);
}
Status Store::abort(SessionId session, std::span<const SlotRef> slots) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->abort(session, slots);
}
void Store::touch(SessionId session, std::span<const Key> keys, const eviction::Hints& hints) {
  impl_->touch(session, keys, hints);
}
void Store::settle_shadows() { impl_->settle_shadows(); }
void Store::feedback(SessionId session, std::string json) {
  const NotifyAtEnd notify(impl_->events());
  impl_->feedback(session, std::move(json));
}

std::uint32_t Store::lookup_any(const Key& fingerprint, std::span<const Key> keys) const {
  return impl_->lookup_any(fingerprint, keys);
}
std::uint32_t Store::pin(std::span<const Key> keys, bool pinned) { return impl_->pin(keys, pinned); }
std::uint64_t Store::clear(const Key* fingerprint) {
  const NotifyAtEnd notify(impl_->events());
  return impl_->clear(fingerprint);
}

std::uint64_t Store::clear(const Selection& selection, std::vector<Key>* removed) {
  return impl_->clear(selection, removed);
}
std::vector<std::uint8_t> Store::present(const Key& fingerprint, std::span<const Key> keys) const {
  return impl_->present(fingerprint, keys);
}
std::uint32_t Store::let_go(const Key& fingerprint, std::span<const Key> keys) {
  return impl_->let_go(fingerprint, keys);
}
void Store::set_sealed_hook(std::function<void(std::span<const SealedShard>)> on_sealed) {
  impl_->set_sealed_hook(std::move(on_sealed));
}
bool Store::session_spec(SessionId session, SessionSpec* out) const { return impl_->session_spec(session, out); }
std::vector<std::uint8_t> Store::sealed_shards(SessionId session, std::span<const Key> keys) const {
  return impl_->sealed_shards(session, keys);
}
bool Store::borrow(const Key& fingerprint, const Key& key, const Rect& rect, Borrowed* out) {
  return impl_->borrow(fingerprint, key, rect, out);
}
std::vector<SealedShard> Store::sealed(std::uint64_t* cursor, std::size_t max) const {
  return impl_->sealed(cursor, max);
}
void Store::give_back(const Borrowed& borrowed) { impl_->give_back(borrowed); }
Status Store::open_internal(const SessionSpec& spec, SessionId* out) { return impl_->open_session(spec, true, out); }
void Store::close_internal(SessionId session) { impl_->resolve_session(session); }
void Store::resolve_former_internal() {
  const NotifyAtEnd notify(impl_->events());
  impl_->resolve_former_internal();
}

void Store::expire_leases() { impl_->expire_leases(); }
std::vector<Event> Store::drain_events(std::size_t max, bool* gap) { return impl_->events().drain(max, gap); }
void Store::set_event_callback(std::function<void()> on_events) { impl_->events().set_callback(std::move(on_events)); }
std::vector<InventoryItem> Store::inventory(std::uint64_t* cursor, std::size_t max) const {
  return impl_->inventory(cursor, max);
}
std::vector<FingerprintInfo> Store::fingerprints() const { return impl_->fingerprints(); }
StoreStats Store::stats() const { return impl_->stats(); }

}  // namespace kvcommons
