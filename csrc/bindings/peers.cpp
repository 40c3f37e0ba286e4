// A node's peers for Python: who there is, who is asked about what, and what came from whom.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/node_object.h"

namespace nb = nanobind;

namespace kvcommons::bindings {
namespace {

// The peer tier, without the GIL; nothing happens on a node without peers.
template <typename Use>
void with_peers(Node& node, Use use) {
  node.with([&](auto& core) {
    if (core.tiers() != nullptr && core.tiers()->peer_tier() != nullptr) use(*core.tiers());
  });
}

using MemberTuple = std::tuple<std::uint32_t, std::uint32_t, std::string, std::string, std::uint16_t>;

// [(slot, epoch, name, host, port)]
void set_peers(Node& node, const std::vector<MemberTuple>& members) {
  std::vector<peers::PeerAddress> all;
  for (const auto& [slot, epoch, name, host, port] : members) all.push_back({slot, epoch, name, host, port});
  with_peers(node, [&](auto& tiers) { tiers.peer_tier()->set_peers(std::move(all)); });
}

// [(id, fingerprint, keys)]
nb::list peer_questions(Node& node, std::size_t questions_max) {
  std::vector<peers::Question> questions;
  with_peers(node, [&](auto& tiers) { questions = tiers.peer_tier()->questions(questions_max); });
  nb::list out;
  for (const auto& one : questions) {
    const nb::bytes keys(reinterpret_cast<const char*>(one.keys.data()), one.keys.size() * sizeof(Key));
    out.append(nb::make_tuple(one.id, bytes_of(one.fingerprint), keys));
  }
  return out;
}

// [(slot, epoch, chunks)]: which members may have how many of its leading chunks.
void peer_answer(Node& node, std::uint64_t question,
                 const std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>>& candidates) {
  std::vector<peers::Candidate> all;
  for (const auto& [slot, epoch, chunks] : candidates) all.push_back({slot, epoch, chunks});
  with_peers(node, [&](auto& tiers) { tiers.peer_tier()->answer(question, std::move(all)); });
}

// None: the index tells nothing of this node's chunks.
void set_peer_epoch(Node& node, const std::optional<std::uint32_t>& epoch) {
  const std::uint32_t said = epoch.value_or(peers::wire::kAnyEpoch);
  if (said > peers::wire::kAnyEpoch) throw std::invalid_argument("epoch: give one of the index, or None");
  with_peers(node, [&](auto& tiers) { tiers.peer_server()->set_epoch(said); });
}

std::uint16_t peer_port(Node& node) {
  std::uint16_t port = 0;
  with_peers(node, [&](auto& tiers) { port = tiers.peer_server()->port(); });
  return port;
}

// [(name, host, port, usable, why, counters)]
nb::list known_peers(Node& node) {
  std::vector<peers::PeerStatus> all;
  with_peers(node, [&](auto& tiers) { all = tiers.peer_tier()->peers(); });
  nb::list out;
  for (const auto& [address, link] : all) {
    nb::dict counters;
    counters["fetched"] = link.fetched;
    counters["fetched_bytes"] = link.fetched_bytes;
    counters["failures"] = link.failures;
    counters["connects"] = link.connects;
    counters["bytes_per_second"] = static_cast<std::uint64_t>(link.bytes_per_second);
    out.append(nb::make_tuple(address.name, address.host, address.port, !link.open, link.why, counters));
  }
  return out;
}

}  // namespace

void bind_node_peers(nb::class_<Node>& node) {
  using namespace nb::literals;
  node.def("set_peers", &set_peers, "members"_a)
      .def("set_peer_epoch", &set_peer_epoch, "epoch"_a.none())
      .def("peer_questions", &peer_questions, "questions_max"_a)
      .def("peer_answer", &peer_answer, "question"_a, "candidates"_a)
      .def("peer_port", &peer_port)
      .def("peers", &known_peers);
}

}  // namespace kvcommons::bindings
