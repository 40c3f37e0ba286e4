// The core as Python holds it.
#pragma once

#include <nanobind/nanobind.h>

#include <mutex>
#include <shared_mutex>
#include <utility>

#include "core/node_core.h"

namespace kvcommons::bindings {

inline nanobind::bytes bytes_of(const Key& key) {
  return nanobind::bytes(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

// The core and a lock that lets stop() wait for calls of other threads that are inside it.
class Node {
 public:
  explicit Node(NodeConfig config) : core_(std::move(config)) {}
  Node(const Node&) = delete;  // owns the core

  void start() {
    nanobind::gil_scoped_release release;
    const std::unique_lock lock(mutex_);
    core_.start();
  }
  void stop() {
    nanobind::gil_scoped_release release;
    const std::unique_lock lock(mutex_);
    core_.stop();
  }
  // use(core) without the GIL.
  template <typename Use>
  auto with(Use use) {
    nanobind::gil_scoped_release release;
    const std::shared_lock lock(mutex_);
    return use(core_);
  }

 private:
  std::shared_mutex mutex_;
  NodeCore core_;
};

// What names some of the chunks: where they are, clearing, moving.
void bind_node_select(nanobind::class_<Node>& node);
// Its peers.
void bind_node_peers(nanobind::class_<Node>& node);

}  // namespace kvcommons::bindings
