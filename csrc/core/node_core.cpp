#include "node_core.h"

#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "codec.h"
#include "memory.h"
#include "session_ledger.h"

namespace kvcommons {
namespace {

constexpr int kHolderAttachMsMax = 2'000;  // a killed daemon's connection may take a moment to end
constexpr std::string_view kArena = "arena", kRecords = "records";
// Of a move to another size that is under way.
constexpr std::string_view kNextArena = "arena.next", kNextRecords = "records.next";

std::optional<HeldFd> take(std::vector<HeldFd>* held, std::string_view name) {
  const auto found = std::find_if(held->begin(), held->end(), [&](const HeldFd& entry) { return entry.name == name; });
  if (found == held->end()) return std::nullopt;
  HeldFd entry = std::move(*found);
  held->erase(found);
  return entry;
}

std::uint64_t whole_pages(std::uint64_t bytes) {
  return (bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
}

std::string mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

void check_config(const NodeConfig& config) {
  if (config.store.arena_bytes < kSlabBytesMin || config.store.arena_bytes % kSlotAlignBytes != 0) {
    throw std::invalid_argument("arena_bytes " + std::to_string(config.store.arena_bytes) +
                                " is too small or no multiple of 4096: set at least " + std::to_string(kSlabBytesMin));
  }
  if (config.node_id.empty() || config.node_id.size() > wire::kNodeIdBytesMax || !wire::valid_utf8(config.node_id)) {
    throw std::invalid_argument("node_id '" + config.node_id + "' must be 1 to 255 bytes of UTF-8");
  }
  if (config.holder_socket == config.socket_path) {
    throw std::invalid_argument("holder_socket and socket_path are both '" + config.socket_path + "'");
  }
}

}  // namespace

NodeCore::NodeCore(NodeConfig config) : config_(std::move(config)), holder_(config_.holder_socket) {
  check_config(config_);
  if (config_.allowed_uids.empty()) config_.allowed_uids = {::geteuid(), 0};
  const auto other = [](uid_t uid) { return uid != ::geteuid() && uid != 0; };
  if (config_.socket_mode == 0) {
    const auto& uids = config_.allowed_uids;
    const bool others = std::any_of(uids.begin(), uids.end(), other) || !config_.allowed_gids.empty();
    config_.socket_mode = others ? 0660 : 0600;
  }
  event_fd_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_fd_) throw_errno("eventfd");
}

NodeCore::~NodeCore() { stop(); }

void NodeCore::start() {
  if (server_) throw std::logic_error("the node is running already");
  raise_descriptor_limit();
  notes_.clear();
  remarks_.clear();
  try {
    // Before any memory is taken; clients are refused until the server listens.
    auto listener = std::make_unique<UnixListener>(config_.socket_path, SOCK_STREAM, config_.socket_mode);
    std::vector<HeldFd> held = attach_holder();
    if (adopt(&held)) {
      open_store();
      if (!store_->adopted()) {
        // Engines may still copy into the old arena, and the records that said where are gone: it is given up whole.
        store_.reset();
        notes_.push_back("the records of the arena could not be used: starting with an empty one");
        make_arena();
        open_store();
      }
    } else {
      make_arena();
      open_store();
    }
    adopted_ = store_->adopted();
    open_tiers();
    start_server(std::move(listener), std::move(held));
  } catch (...) {
    stop();
    throw;
  }
}

void NodeCore::stop() {
  server_.reset();
  tiers_.reset();
  store_.reset();
  holder_.close();
  arena_fd_.reset();
  records_fd_.reset();
  adopted_ = false;
}

std::vector<HeldFd> NodeCore::attach_holder() {
  std::vector<HeldFd> held;
  if (!holder_.configured()) return held;
  switch (holder_.attach(&held, kHolderAttachMsMax)) {
    case HolderLink::Attach::Attached:
      break;
    case HolderLink::Attach::Absent:
      notes_.push_back("no holder answers at '" + holder_.path() +
                       "': until one does, the arena ends with this process");
      break;
    case HolderLink::Attach::InUse:
      throw std::system_error(
          EADDRINUSE, std::generic_category(),
          "holder '" + holder_.path() + "' serves another live node: stop that node, or set another holder_socket");
    case HolderLink::Attach::Denied:
      throw std::system_error(EACCES, std::generic_category(),
                              "holder '" + holder_.path() + "' belongs to another user: run the node as that user");
  }
  return held;
}

bool NodeCore::adopt(std::vector<HeldFd>* held) {
  // Out of `held` whatever becomes of them: an arena that is not adopted must not stay while a new one is made.
  std::optional<HeldFd> arena = take(held, kArena);
  std::optional<HeldFd> records = take(held, kRecords);
  if (!arena || !records) return false;
  ArenaMeta meta{};
  const bool told = arena->meta.size() == sizeof meta;
  if (told) std::memcpy(&meta, arena->meta.data(), sizeof meta);
  const auto found = recorded_arena(records->fd.get(), config_.store);
  if (!told || !found || meta.arena_bytes != found->arena_bytes || file_bytes(arena->fd.get()) < found->arena_bytes) {
    notes_.push_back("the held arena can't be read (" + std::to_string(meta.arena_bytes) +
                     " bytes): starting with an empty one");
    return false;
  }
  if (!found->as_configured) return resettle(held, *arena, *records, found->arena_bytes);
  // Of a move that was done but for this.
  if (take(held, kNextArena)) holder_.remove(kNextArena);
  if (take(held, kNextRecords)) holder_.remove(kNextRecords);
  arena_fd_ = std::move(arena->fd);
  records_fd_ = std::move(records->fd);
  arena_id_ = meta.arena_id;
  return true;
}

// The held arena is of another size or cut in another way: what fits is moved into one as it is configured now.
bool NodeCore::resettle(std::vector<HeldFd>* held, const HeldFd& arena, const HeldFd& records,
                        std::uint64_t old_bytes) {
  const std::uint64_t bytes = config_.store.arena_bytes;
  if (config_.huge_pages) {
    // Those of the pool are counted out: there are none for a second arena beside the first.
    notes_.push_back("the held arena has " + mib(old_bytes) + " and " + mib(bytes) +
                     " are configured, in reserved huge pages: starting with an empty one");
    return false;
  }
  MemoryRoom room = memory_room();
  // Of what is there, most is given back while it is moved.
  if (room.available_bytes <= room.limit_bytes) room.available_bytes += allocated_bytes(arena.fd.get());
  check_capacity(bytes, room);
  std::optional<HeldFd> next_arena = take(held, kNextArena), next_records = take(held, kNextRecords);
  ArenaMeta meta{};
  const bool goes_on = next_arena && next_records && next_arena->meta.size() == sizeof meta &&
                       file_bytes(next_arena->fd.get()) == bytes &&
                       file_bytes(next_records->fd.get()) == whole_pages(Store::records_bytes(config_.store));
  if (goes_on) {
    std::memcpy(&meta, next_arena->meta.data(), sizeof meta);
    arena_id_ = meta.arena_id;
    arena_fd_ = std::move(next_arena->fd);
    records_fd_ = std::move(next_records->fd);
  } else {
    make_files(false);
    put(&holder_, kNextRecords, kNextArena);
  }
  const auto moved = move_arena({arena.fd.get(), records.fd.get(), arena_fd_.get(), records_fd_.get()}, config_.store);
  if (!moved) return false;
  put_arena(&holder_);
  holder_.remove(kNextArena);
  holder_.remove(kNextRecords);
  if (config_.populate) populate_memfd(arena_fd_.get(), bytes);
  tell_move(*moved, old_bytes);
  return true;
}

void NodeCore::tell_move(const MovedArena& moved, std::uint64_t old_bytes) {
  const std::string what = "the arena has " + mib(config_.store.arena_bytes) + " instead of " + mib(old_bytes) + ": " +
                           std::to_string(moved.chunks_moved) + " of " + std::to_string(moved.chunks) +
                           " chunks were moved";
  if (moved.chunks_moved == moved.chunks) {
    remarks_.push_back(what);
  } else {
    notes_.push_back(what + "; for the others there was no room");
  }
}

void NodeCore::make_arena() {
  arena_fd_.reset();
  records_fd_.reset();
  // First, so that the old arena's memory is given back before the new one's is taken.
  for (const std::string_view name : {kArena, kRecords, kNextArena, kNextRecords}) holder_.remove(name);
  check_capacity(config_.store.arena_bytes, memory_room());
  make_files(config_.populate);
  put_arena(&holder_);
}

void NodeCore::make_files(bool populate) {
  const std::uint64_t records_bytes = whole_pages(Store::records_bytes(config_.store));
  if (::getrandom(arena_id_.data(), arena_id_.size(), 0) != static_cast<ssize_t>(arena_id_.size())) {
    throw_errno("getrandom");
  }
  records_fd_ = make_memfd("kvcommons-records", records_bytes, {false, false}, &notes_);  // sparse
  arena_fd_ = make_memfd("kvcommons-arena", config_.store.arena_bytes, {config_.huge_pages, populate}, &notes_);
}

void NodeCore::put_arena(HolderLink* holder) const { put(holder, kRecords, kArena); }

void NodeCore::put(HolderLink* holder, std::string_view records, std::string_view arena) const {
  if (!holder->connected()) return;
  const ArenaMeta meta{arena_id_, config_.store.arena_bytes};
  // The records first: an arena without them is never adopted.
  holder->put(records, {}, records_fd_.get());
  holder->put(arena, std::as_bytes(std::span(&meta, 1)), arena_fd_.get());
}

void NodeCore::open_store() {
  store_ = std::make_unique<Store>(config_.store, arena_fd_.get(), records_fd_.get());
  store_->set_event_callback([this] { signal_events(); });
}

void NodeCore::open_tiers() {
  if (!config_.tiers.any()) return;
  tiers_ = std::make_unique<NodeTiers>(
      config_.tiers, store_.get(), arena_fd_.get(), config_.store.arena_bytes, [this] { signal_events(); }, &remarks_);
}

void NodeCore::signal_events() const {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_fd_.get(), &one, sizeof one);
}

void NodeCore::start_server(std::unique_ptr<UnixListener> listener, std::vector<HeldFd> held) {
  std::erase_if(held, [](const HeldFd& entry) { return !SessionLedger::is_proof(entry.name); });
  ServerConfig server;
  server.allowed_uids = config_.allowed_uids;
  server.allowed_gids = config_.allowed_gids;
  server.node_id = config_.node_id;
  server.namespace_secret = config_.namespace_secret;
  server.multi_tenant = config_.multi_tenant;
  server.arena_fd = arena_fd_.get();
  server.arena_bytes = config_.store.arena_bytes;
  server.arena_id = arena_id_;
  server.connections_max = config_.store.sessions_max + 64;
  if (tiers_) {
    server.tiers = &tiers_->manager();
    server.layouts = &tiers_->layouts();
    server.lossy = tiers_->lossy();
  }
  server.on_holder_attached = [this](HolderLink* holder) { put_arena(holder); };
  server_ = std::make_unique<Server>(std::move(server), std::move(listener), store_.get(), &holder_, std::move(held));
  server_->start();
}

Store& NodeCore::store() {
  if (!store_) throw std::logic_error("the node is not running: call start() first");
  return *store_;
}

const Server& NodeCore::server() const {
  if (!server_) throw std::logic_error("the node is not running: call start() first");
  return *server_;
}

std::uint64_t NodeCore::clear(const Key* fingerprint) {
  std::uint64_t tier_shards = 0;
  return tiers_ ? tiers_->manager().clear(fingerprint, &tier_shards) : store().clear(fingerprint);
}

std::uint64_t NodeCore::clear(const Selection& selection, Places places, std::vector<std::uint64_t>* tier_shards) {
  if (tiers_) {
    tier_shards->assign(tiers_->manager().tiers().size(), 0);
    return tiers_->manager().clear(selection, places, *tier_shards);
  }
  return (places & kInMemory) != 0 ? store().clear(selection, nullptr) : 0;
}

std::vector<Places> NodeCore::places(const Key& fingerprint, std::span<const Key> keys) {
  if (tiers_) return tiers_->manager().places(fingerprint, keys);
  const auto here = store().present(fingerprint, keys);
  return {here.begin(), here.end()};  // kInMemory is 1
}

std::vector<Event> NodeCore::drain_events(std::size_t max, bool* gap) {
  std::uint64_t unused = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_fd_.get(), &unused, sizeof unused);
  std::vector<Event> events = store().drain_events(max, gap);
  bool more = events.size() == max;  // there may be, and the store does not call again
  if (tiers_ && tiers_->complete_events(&events, 2 * max, gap)) more = true;
  if (more) signal_events();
  return events;
}

}  // namespace kvcommons
