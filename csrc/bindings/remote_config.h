// The settings of a remote tier as the daemon gives them: a dictionary, so that there is one list of names and no
// second.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/tiers/remote_tier.h"

namespace kvcommons::bindings {

inline tiers::RemoteConfig remote_config(const nanobind::dict& given) {
  tiers::RemoteConfig config;
  for (const auto& [name_object, value] : given) {
    const auto name = nanobind::cast<std::string>(name_object);
    const auto number = [&v = value] { return nanobind::cast<std::uint64_t>(v); };
    const auto small = [&v = value] { return nanobind::cast<std::uint32_t>(v); };
    if (name == "name") {
      config.name = nanobind::cast<std::string>(value);
    } else if (name == "prefix") {
      config.prefix = nanobind::cast<std::string>(value);
    } else if (name == "capacity_bytes") {
      config.capacity_bytes = number();
    } else if (name == "ttl_ms") {
      config.ttl_ms = number();
    } else if (name == "time_out_ms") {
      config.time_out_ms = small();
    } else if (name == "connections") {
      config.lanes = small();
    } else if (name == "queue_bytes_max") {
      config.queue_bytes_max = number();
    } else if (name == "known_shards_max") {
      config.known_shards_max = number();
    } else if (name == "ask_keys_max") {
      config.ask_keys_max = number();
    } else if (name == "ask_wait_ms") {
      config.ask_wait_ms = small();
    } else if (name == "present_ms") {
      config.present_ms = small();
    } else if (name == "absent_ms") {
      config.absent_ms = small();
    } else if (name == "retry_ms_min") {
      config.retry_ms_min = small();
    } else if (name == "retry_ms_max") {
      config.retry_ms_max = small();
    } else {
      throw std::invalid_argument("remote." + name + ": there is no such setting");
    }
  }
  return config;
}

inline std::vector<tiers::RemoteConfig> remote_configs(const nanobind::list& given) {
  std::vector<tiers::RemoteConfig> configs;
  for (const auto& one : given) configs.push_back(remote_config(nanobind::cast<nanobind::dict>(one)));
  return configs;
}

}  // namespace kvcommons::bindings
