// The settings of a disk tier as the daemon gives them: a dictionary, so that there is one list of names and no second.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/kv_codec.h"
#include "core/tiers/disk_tier.h"

namespace kvcommons::bindings {

inline DiskEngine disk_engine(const std::string& name) {
  if (name == "auto") return DiskEngine::Auto;
  if (name == "io_uring") return DiskEngine::IoUring;
  if (name == "threads") return DiskEngine::Threads;
  throw std::invalid_argument("disk engine '" + name + "': give one of auto, io_uring, threads");
}

// An empty dictionary: no disk.
inline std::optional<DiskConfig> disk_config(const nanobind::dict& given) {
  if (given.size() == 0) return std::nullopt;
  DiskConfig config;
  std::uint64_t capacity_bytes = 0;
  std::vector<std::string> paths;
  for (const auto& [name_object, value] : given) {
    const auto name = nanobind::cast<std::string>(name_object);
    const auto number = [&v = value] { return nanobind::cast<std::uint64_t>(v); };
    if (name == "paths") {
      paths = nanobind::cast<std::vector<std::string>>(value);
    } else if (name == "capacity_bytes") {
      capacity_bytes = number();
    } else if (name == "segment_bytes") {
      config.segment_bytes = number();
    } else if (name == "engine") {
      config.engine = disk_engine(nanobind::cast<std::string>(value));
    } else if (name == "buffered") {
      config.buffered = nanobind::cast<bool>(value);
    } else if (name == "wear_bytes_per_day") {
      config.wear_bytes_per_day = number();
    } else if (name == "read_bytes_per_second_max") {
      config.read_bytes_per_second_max = number();
    } else if (name == "write_bytes_per_second_max") {
      config.write_bytes_per_second_max = number();
    } else if (name == "codec" || name == "lossy") {
      // disk_codec()
    } else {
      throw std::invalid_argument("disk." + name + ": there is no such setting");
    }
  }
  for (std::string& path : paths) config.devices.push_back({std::move(path), capacity_bytes});
  return config;
}

// "none", or a codec as kvcommons_core.codecs.parse_codec has checked it.
inline kvcodec::CodecSpec codec_argument(const std::string& text) {
  if (text == "none") return {};
  const std::size_t colon = text.find(':');
  const kvcodec::CodecInfo* info = kvcodec::codec_named(std::string_view(text).substr(0, colon));
  if (info == nullptr) throw std::invalid_argument("codec '" + text + "': there is no such codec");
  kvcodec::CodecSpec codec{info->id, info->id == kvcodec::CodecId::Int4 ? kvcodec::kGroupDefault : 0};
  constexpr std::string_view kGroup = ":group=";
  if (colon != std::string::npos) {
    const std::string_view rest = std::string_view(text).substr(colon);
    if (!rest.starts_with(kGroup)) throw std::invalid_argument("codec '" + text + "': write name:group=32");
    codec.group = static_cast<std::uint32_t>(std::stoul(std::string(rest.substr(kGroup.size()))));
  }
  return codec;
}
inline kvcodec::CodecSpec disk_codec(const nanobind::dict& given) {
  return given.contains("codec") ? codec_argument(nanobind::cast<std::string>(given["codec"])) : kvcodec::CodecSpec{};
}
inline bool disk_allows_lossy(const nanobind::dict& given) {
  return given.contains("lossy") && nanobind::cast<std::string>(given["lossy"]) == "allow";
}

}  // namespace kvcommons::bindings
