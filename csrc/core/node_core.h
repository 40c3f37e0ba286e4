// The node without Python: the arena (made, or adopted from the holder), the store over it, and the socket server.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "arena_move.h"
#include "holder.h"
#include "node_tiers.h"
#include "server.h"
#include "store.h"

namespace kvcommons {

struct NodeConfig {
  std::string socket_path;
  mode_t socket_mode = 0;           // 0: 0600, or 0660 where other users are allowed
  std::vector<uid_t> allowed_uids;  // empty: this process' user and root
  std::vector<gid_t> allowed_gids;  // and whoever is in one of these groups
  std::string holder_socket;        // empty: the arena ends with this process
  std::string node_id;
  Key namespace_secret;
  bool multi_tenant = false;
  bool populate = true;
  bool huge_pages = false;
  StoreConfig store;
  NodeTiersConfig tiers;  // without one: memory alone
};

class NodeCore {
 public:
  explicit NodeCore(NodeConfig config);  // throws std::invalid_argument: field, value, remedy
  ~NodeCore();
  NodeCore(const NodeCore&) = delete;  // owns the arena and the threads

  // Throws std::invalid_argument or std::system_error with the remedy; nothing is left behind then.
  void start();
  void stop();
  [[nodiscard]] bool running() const noexcept { return server_ != nullptr; }

  [[nodiscard]] bool adopted() const noexcept { return adopted_; }
  [[nodiscard]] const std::array<std::uint8_t, 16>& arena_id() const noexcept { return arena_id_; }
  [[nodiscard]] int event_fd() const noexcept { return event_fd_.get(); }
  [[nodiscard]] Store& store();                                       // throws std::logic_error unless running
  [[nodiscard]] NodeTiers* tiers() noexcept { return tiers_.get(); }  // null: memory alone
  [[nodiscard]] const Server& server() const;
  // From memory and from every tier; returns how many chunks memory had.
  std::uint64_t clear(const Key* fingerprint);
  // Of some chunks, or in some places only; *tier_shards gets one number for each tier.
  std::uint64_t clear(const Selection& selection, Places places, std::vector<std::uint64_t>* tier_shards);
  // Where each of these is.
  std::vector<Places> places(const Key& fingerprint, std::span<const Key> keys);
  std::vector<Event> drain_events(std::size_t max, bool* gap);
  // What the operator of the node should know and no error says: a cold start and why, huge pages that were not there.
  [[nodiscard]] const std::vector<std::string>& notes() const noexcept { return notes_; }
  // What is as it should be and worth a line: each disk's engine, what was found on it.
  [[nodiscard]] const std::vector<std::string>& remarks() const noexcept { return remarks_; }

 private:
  struct ArenaMeta {
    std::array<std::uint8_t, 16> arena_id;
    std::uint64_t arena_bytes;
  };
  std::vector<HeldFd> attach_holder();
  bool adopt(std::vector<HeldFd>* held);
  bool resettle(std::vector<HeldFd>* held, const HeldFd& arena, const HeldFd& records, std::uint64_t old_bytes);
  void tell_move(const MovedArena& moved, std::uint64_t old_bytes);
  void make_arena();
  void make_files(bool populate);
  void put_arena(HolderLink* holder) const;
  void put(HolderLink* holder, std::string_view records, std::string_view arena) const;
  void open_store();
  void open_tiers();
  void signal_events() const;
  void start_server(std::unique_ptr<UnixListener> listener, std::vector<HeldFd> held);

  NodeConfig config_;
  UniqueFd event_fd_;
  HolderLink holder_;
  UniqueFd arena_fd_, records_fd_;
  std::array<std::uint8_t, 16> arena_id_{};
  bool adopted_ = false;
  std::vector<std::string> notes_, remarks_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<NodeTiers> tiers_;  // ends before the store
  std::unique_ptr<Server> server_;    // ends before both
};

}  // namespace kvcommons
