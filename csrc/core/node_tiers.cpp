#include "node_tiers.h"

#include <algorithm>
#include <stdexcept>

#include "arena_mapping.h"
#include "zstd_library.h"

namespace kvcommons {
namespace {

constexpr int kTierShift = 56;  // of an inventory's cursor: which tier, above the tier's own
constexpr std::string_view kMemory = "memory";

peers::PeerTierConfig peer_config(const PeersConfig& config, std::function<void()> on_events) {
  peers::PeerTierConfig tier = config.tier;
  tier.on_questions = std::move(on_events);
  return tier;
}

void check_codec(const NodeTiersConfig& config) {
  const kvcodec::CodecInfo* info = kvcodec::codec_info(config.disk_codec.id);
  if (info == nullptr) return;
  const char* missing = zstd_missing();  // also what no codec with loss takes goes through it
  if (missing != nullptr) throw std::invalid_argument("disk.codec " + std::string(info->name) + ": " + missing);
  if (!info->lossy || config.allow_lossy) return;
  throw std::invalid_argument("disk.codec " + std::string(info->name) +
                              " gives back other numbers than the engine computed: set lossy to allow, or the codec to "
                              "lossless");
}

}  // namespace

NodeTiers::NodeTiers(const NodeTiersConfig& config, Store* store, int arena_fd, std::uint64_t arena_bytes,
                     std::function<void()> on_events, std::vector<std::string>* notes)
    : store_(store) {
  std::string why;
  arena_ = map_arena(arena_fd, arena_bytes, &why);
  if (!arena_) throw std::runtime_error("the arena could not be mapped for its tiers: " + why);
  std::vector<std::shared_ptr<Tier>> all;
  if (config.disk) {
    check_codec(config);
    tiers::CodecTierConfig codec;
    codec.codec = config.disk_codec;
    codecs_.push_back(std::make_shared<tiers::CodecTier>(make_disk_tier(*config.disk, notes), &layouts_, codec));
    all.push_back(codecs_.back());
  }
  if (config.peers) {
    auto peer = std::make_shared<peers::PeerTier>(peer_config(*config.peers, on_events));
    peer_tier_ = peer.get();
    all.push_back(std::move(peer));
  }
  for (const tiers::RemoteConfig& remote : config.remotes) {
    auto tier = std::make_shared<tiers::RemoteTier>(remote);
    ports_.push_back(tier->port());
    all.push_back(std::move(tier));
  }
  TierManagerConfig manager;
  manager.arena_bytes = arena_bytes;
  manager.arena = arena_.get();
  manager.write_queue_max = config.write_queue_max;
  manager.on_events = std::move(on_events);
  manager_ = std::make_unique<TierManager>(manager, store, std::move(all));
  manager_->start();
  if (!codecs_.empty()) recoder_ = std::make_unique<tiers::Recoder>(store, manager_.get(), &layouts_, codecs_);
  if (config.peers) serve_peers(*config.peers, notes);
}

void NodeTiers::serve_peers(const PeersConfig& config, std::vector<std::string>* notes) {
  peers::StoreSourceConfig source;
  source.arena = arena_.get();
  source.bring = [this](const SessionSpec& spec, std::span<const Key> keys, std::uint32_t here) {
    return manager_->wanted_by_peer(spec, keys, here).chunks;
  };
  peer_source_ = std::make_unique<peers::StoreSource>(std::move(source), store_);
  peer_server_ = std::make_unique<peers::PeerServer>(config.server, peer_source_.get());
  notes->push_back("peers are answered at " + config.server.host + " port " + std::to_string(peer_server_->port()) +
                   (config.server.tls ? ", by TLS" : ", without TLS"));
}

// The manager lets the tiers go when it stops, so that they answer what they have: nobody else keeps them then.
NodeTiers::~NodeTiers() {
  recoder_.reset();
  peer_server_.reset();
  peer_source_.reset();
  codecs_.clear();
  manager_.reset();
}

kvcodec::CodecSpec NodeTiers::lossy() const noexcept {
  for (const auto& tier : codecs_) {
    const kvcodec::CodecInfo* info = kvcodec::codec_info(tier->codec().id);
    if (info != nullptr && info->lossy) return tier->codec();
  }
  return {};
}

std::string NodeTiers::place_of(const Key& fingerprint, const Key& key) {
  if (store_->lookup_any(fingerprint, std::span(&key, 1)) == 1) return std::string(kMemory);
  const int tier = manager_->where(fingerprint, key);
  return tier < 0 ? std::string() : std::string(manager_->tiers()[static_cast<std::size_t>(tier)]->name());
}

bool NodeTiers::complete_events(std::vector<Event>* events, std::size_t max, bool* gap) {
  const std::size_t own = events->size();
  for (const auto& tier : manager_->tiers()) {
    if (tier->others()) continue;
    bool lost = false;
    for (TierEvent& told : tier->drain_events(max - std::min(max, events->size()), &lost)) {
      manager_->know(told.meta.id);
      Event event;
      event.kind = Event::Kind::Moved;
      event.key = told.meta.id.key;
      event.fingerprint = told.meta.id.fingerprint;
      event.text_keys = std::move(told.meta.text_keys);
      events->push_back(std::move(event));
    }
    *gap = *gap || lost;
  }
  for (std::size_t i = 0; i < events->size(); ++i) {
    Event& event = (*events)[i];
    const bool placed = event.kind == Event::Kind::Committed || event.kind == Event::Kind::Freed || i >= own;
    if (placed) event.tier = place_of(event.fingerprint, event.key);
  }
  const bool more = events->size() >= max;
  // Its commit said so, or will.
  std::erase_if(*events, [](const Event& e) { return e.kind == Event::Kind::Moved && e.tier == kMemory; });
  return more;
}

std::vector<NodeTiers::Item> NodeTiers::inventory(std::uint64_t* cursor, std::size_t max) {
  std::vector<Item> out;
  const auto tiers = manager_->tiers();
  std::uint64_t tier = *cursor >> kTierShift, within = *cursor & ((std::uint64_t{1} << kTierShift) - 1);
  *cursor = 0;
  while (tier < tiers.size() && tiers[tier]->others()) ++tier;
  if (tier >= tiers.size()) return out;
  for (ShardMeta& meta : tiers[tier]->inventory(&within, max)) {
    manager_->know(meta.id);
    if (place_of(meta.id.fingerprint, meta.id.key) != tiers[tier]->name()) continue;  // nearer, too
    out.push_back({{meta.id.key, meta.id.fingerprint, std::move(meta.text_keys)}, std::string(tiers[tier]->name())});
  }
  if (within == 0) ++tier;
  while (tier < tiers.size() && tiers[tier]->others()) ++tier;
  if (tier < tiers.size()) *cursor = (tier << kTierShift) | within;
  return out;
}

}  // namespace kvcommons
