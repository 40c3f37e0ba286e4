// The tiers of a node: opened from its configuration, the manager over them, and what the daemon is told of them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "peers/peer_server.h"
#include "peers/peer_tier.h"
#include "peers/store_source.h"
#include "store.h"
#include "tiers/codec_tier.h"
#include "tiers/disk_tier.h"
#include "tiers/manager.h"
#include "tiers/recode.h"
#include "tiers/remote_tier.h"

namespace kvcommons {

// Both sides: what this node asks of its peers, and what it answers.
struct PeersConfig {
  peers::PeerTierConfig tier;
  peers::PeerServerConfig server;
};

struct NodeTiersConfig {
  std::optional<DiskConfig> disk;
  std::optional<PeersConfig> peers;
  kvcodec::CodecSpec disk_codec;             // of what is written to the disk; what is there is read in any form
  bool allow_lossy = false;                  // a disk_codec with loss needs it
  std::vector<tiers::RemoteConfig> remotes;  // behind disk and peers, in this order
  [[nodiscard]] bool any() const noexcept { return disk || peers || !remotes.empty(); }
  std::uint64_t write_queue_max = TierManagerConfig{}.write_queue_max;
};

class NodeTiers {
 public:
  // Opens every tier. Throws std::invalid_argument or std::system_error with the remedy. on_events: called when
  // drain_events() may have something new, from any thread.
  NodeTiers(const NodeTiersConfig& config, Store* store, int arena_fd, std::uint64_t arena_bytes,
            std::function<void()> on_events, std::vector<std::string>* notes);
  ~NodeTiers();
  NodeTiers(const NodeTiers&) = delete;  // owns the arena's mapping and a thread

  [[nodiscard]] TierManager& manager() noexcept { return *manager_; }
  [[nodiscard]] peers::PeerTier* peer_tier() noexcept { return peer_tier_; }              // null: without peers
  [[nodiscard]] peers::PeerServer* peer_server() noexcept { return peer_server_.get(); }  // as well
  [[nodiscard]] KvLayouts& layouts() noexcept { return layouts_; }
  // What may answer where engines do not ask for exact KV; None: nothing but exact KV.
  [[nodiscard]] kvcodec::CodecSpec lossy() const noexcept;
  [[nodiscard]] tiers::Recoder* recoder() noexcept { return recoder_.get(); }  // null: no tier with codecs
  [[nodiscard]] const std::vector<std::shared_ptr<tiers::CodecTier>>& codecs() const noexcept { return codecs_; }
  // What drivers of stores take their jobs from; each outlives its tier.
  [[nodiscard]] const std::vector<std::shared_ptr<tiers::RemotePort>>& ports() const noexcept { return ports_; }
  // Appends events of kind Moved, up to `max` in all; sets `tier` of those and of every Committed and Freed before
  // them: where the chunk is by now. True: there may be more.
  bool complete_events(std::vector<Event>* events, std::size_t max, bool* gap);
  // What is on tiers and not in memory. Pages as Tier::inventory does.
  struct Item {
    InventoryItem item;
    std::string tier;
  };
  std::vector<Item> inventory(std::uint64_t* cursor, std::size_t max);

 private:
  void serve_peers(const PeersConfig& config, std::vector<std::string>* notes);
  [[nodiscard]] std::string place_of(const Key& fingerprint, const Key& key);

  Store* store_;
  std::shared_ptr<std::byte> arena_;
  KvLayouts layouts_;
  std::vector<std::shared_ptr<tiers::CodecTier>> codecs_;  // those of the manager's tiers that are one
  std::unique_ptr<tiers::Recoder> recoder_;                // null where none is
  std::vector<std::shared_ptr<tiers::RemotePort>> ports_;
  peers::PeerTier* peer_tier_ = nullptr;  // the manager's
  std::unique_ptr<TierManager> manager_;  // ends before the mapping
  std::unique_ptr<peers::StoreSource> peer_source_;
  std::unique_ptr<peers::PeerServer> peer_server_;  // ends first
};

}  // namespace kvcommons
