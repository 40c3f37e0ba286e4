// The settings of peers as the daemon gives them: a dictionary, so that there is one list of names and no second.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "core/node_tiers.h"

namespace kvcommons::bindings {

// An empty dictionary: no peers.
inline std::optional<PeersConfig> peers_config(const nanobind::dict& given, const Key& secret) {
  if (given.size() == 0) return std::nullopt;
  PeersConfig config;
  peers::TlsConfig tls;
  config.tier.secret = config.server.secret = secret;
  for (const auto& [name_object, value] : given) {
    const auto name = nanobind::cast<std::string>(name_object);
    const auto number = [&v = value] { return nanobind::cast<std::uint32_t>(v); };
    const auto text = [&v = value] { return nanobind::cast<std::string>(v); };
    if (name == "host") {
      config.server.host = text();
    } else if (name == "port") {
      config.server.port = nanobind::cast<std::uint16_t>(value);
    } else if (name == "tls_ca_file") {
      tls.ca_file = text();
    } else if (name == "tls_cert_file") {
      tls.cert_file = text();
    } else if (name == "tls_key_file") {
      tls.key_file = text();
    } else if (name == "connections_max") {
      config.server.connections_max = number();
    } else if (name == "sockets_per_peer") {
      config.tier.sockets_per_peer = number();
    } else if (name == "peers_max") {
      config.tier.peers_max = number();
    } else if (name == "connect_ms_max") {
      config.tier.connect_ms_max = number();
    } else if (name == "fetch_ms_max") {
      config.tier.fetch_ms_max = number();
    } else if (name == "locate_ms_max") {
      config.tier.locate_ms_max = number();
    } else if (name == "breaker_ms_max") {
      config.tier.breaker_ms_max = number();
    } else if (name == "replicas_max") {
      config.tier.replicas_max = number();
    } else if (name == "queue_bytes_max") {
      config.tier.queue_bytes_max = nanobind::cast<std::uint64_t>(value);
    } else if (name == "bandwidth_gate") {
      config.tier.gate = nanobind::cast<bool>(value);
    } else if (name == "zero_copy") {
      config.server.zero_copy = nanobind::cast<bool>(value);
    } else {
      throw std::invalid_argument("peers." + name + ": there is no such setting");
    }
  }
  if (!tls.ca_file.empty()) config.tier.tls = config.server.tls = tls;
  return config;
}

}  // namespace kvcommons::bindings
