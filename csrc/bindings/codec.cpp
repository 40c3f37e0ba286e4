// Codecs of KV for Python: buffers in, buffers out, the GIL released while they work.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "bindings/buffers.h"
#include "bindings/kv_names.h"
#include "core/kv_codec.h"
#include "core/zstd_library.h"

namespace nb = nanobind;

namespace {

namespace kc = kvcommons::kvcodec;
using kvcommons::bindings::Buffer;
using kvcommons::bindings::element_named;
using kvcommons::bindings::kElementNames;
using kvcommons::bindings::key_argument;
using kvcommons::bindings::kOrderNames;
using kvcommons::bindings::order_named;
using kvcommons::kernels::QuantIsa;

constexpr std::pair<const char*, QuantIsa> kIsaNames[] = {
    {"scalar", QuantIsa::Scalar}, {"avx2", QuantIsa::Avx2}, {"avx512", QuantIsa::Avx512}, {"neon", QuantIsa::Neon}};

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

kc::CodecSpec spec_argument(const std::string& codec, std::uint32_t group) {
  const kc::CodecInfo* info = kc::codec_named(codec);
  if (info == nullptr) {
    std::string names;
    for (const kc::CodecInfo& known : kc::kCodecs) names += (names.empty() ? "" : ", ") + std::string(known.name);
    refuse("codec is \"" + codec + "\": choose of " + names);
  }
  return {.id = info->id, .group = group};
}

kc::KvShape shape_argument(const nb::tuple& tuple) {
  if (nb::len(tuple) != 8) {
    refuse("shape has " + std::to_string(nb::len(tuple)) +
           " items: pass (element, order, layers, blocks, block_tokens, heads, k_size, v_size)");
  }
  const auto number = [&](std::size_t i, const char* name) {
    std::int64_t value = 0;
    if (!nb::try_cast(tuple[i], value) || value < 0 || value > 0x7FFFFFFF) {
      refuse(std::string(name) + " is " + nb::repr(tuple[i]).c_str() + ": pass a count below 2**31");
    }
    return static_cast<std::uint32_t>(value);
  };
  const auto word = [&](std::size_t i) {  // what is no text is named by none of the known words
    return nb::isinstance<nb::str>(tuple[i]) ? nb::cast<std::string>(tuple[i])
                                             : std::string(nb::repr(tuple[i]).c_str());
  };
  return {.element = element_named(word(0)),
          .order = order_named(word(1)),
          .layers = number(2, "layers"),
          .blocks = number(3, "blocks"),
          .block_tokens = number(4, "block_tokens"),
          .heads = number(5, "heads"),
          .k_size = number(6, "k_size"),
          .v_size = number(7, "v_size")};
}

QuantIsa isa_argument(const std::string& name) {
  if (name == "auto") return kvcommons::kernels::quant_best();
  for (const auto& [known, isa] : kIsaNames) {
    if (name != known) continue;
    if (kvcommons::kernels::quant_has(isa)) return isa;
    refuse("isa is \"" + name + "\", which this processor has not: choose \"auto\"");
  }
  refuse("isa is \"" + name + "\": choose of auto, scalar, avx2, avx512, neon");
}

void check(const kc::CodecResult& result) {
  if (result.status == kc::CodecStatus::Ok) return;
  if (result.status == kc::CodecStatus::NoLibrary) throw nb::import_error(result.why.c_str());
  refuse(result.why);
}

// A writable buffer of exactly these bytes; Python keeps it from moving while `view` lives.
class OutBuffer {
 public:
  OutBuffer(const char* argument, nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) == 0) return;
    PyErr_Clear();
    refuse(std::string(argument) + " is a " + nb::inst_name(object).c_str() +
           " that gives no writable C-contiguous buffer: pass a bytearray, a memoryview of one or an array");
  }
  ~OutBuffer() { PyBuffer_Release(&view_); }
  OutBuffer(const OutBuffer&) = delete;  // a copy would release the view twice
  OutBuffer& operator=(const OutBuffer&) = delete;
  [[nodiscard]] std::span<std::byte> bytes() const noexcept {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

std::span<const std::byte> bytes_of(const Buffer& buffer) {
  return {static_cast<const std::byte*>(buffer.data()), buffer.bytes()};
}

std::uint64_t codec_bytes_max(const std::string& codec, const nb::tuple& shape, std::uint32_t group) {
  const kc::CodecSpec spec = spec_argument(codec, group);
  const kc::KvShape known = shape_argument(shape);
  if (const std::string why = kc::why_not(spec, known); !why.empty()) refuse(why);
  return kc::encoded_bytes_max(spec, known);
}

std::uint64_t codec_encode(const std::string& codec, const nb::tuple& shape, const nb::object& raw,
                           const nb::object& out, std::uint32_t group, const std::string& isa) {
  const kc::CodecSpec spec = spec_argument(codec, group);
  const kc::KvShape known = shape_argument(shape);
  const QuantIsa by = isa_argument(isa);
  const Buffer from("raw", raw);
  const OutBuffer to("out", out);
  kc::CodecResult result;
  {
    const nb::gil_scoped_release released;
    result = kc::encode(spec, known, bytes_of(from), to.bytes(), by);
  }
  check(result);
  return result.bytes;
}

void codec_decode(const nb::object& payload, const nb::tuple& shape, const nb::object& raw, const std::string& isa) {
  const kc::KvShape known = shape_argument(shape);
  const QuantIsa by = isa_argument(isa);
  const Buffer from("payload", payload);
  const OutBuffer to("raw", raw);
  kc::CodecResult result;
  {
    const nb::gil_scoped_release released;
    result = kc::decode(bytes_of(from), known, to.bytes(), by);
  }
  check(result);
}

nb::dict codec_header(const nb::object& payload) {
  const Buffer from("payload", payload);
  kc::PayloadHeader header;
  check(kc::parse_header(bytes_of(from), &header));
  const kc::KvShape& s = header.shape;
  nb::dict out;
  out["codec"] = std::string(kc::codec_info(header.spec.id)->name);
  out["codec_id"] = static_cast<std::uint16_t>(header.spec.id);
  out["group"] = header.spec.group;
  out["shape"] = nb::make_tuple(kElementNames[static_cast<std::size_t>(s.element) - 1],
                                kOrderNames[static_cast<std::size_t>(s.order)], s.layers, s.blocks, s.block_tokens,
                                s.heads, s.k_size, s.v_size);
  out["raw_bytes"] = header.raw_bytes;
  out["body_bytes"] = header.body_bytes;
  out["raw_checksum"] = header.raw_checksum;
  return out;
}

nb::dict codecs() {
  nb::dict out;
  for (const kc::CodecInfo& info : kc::kCodecs) {
    const bool here = info.id != kc::CodecId::Lossless || kvcommons::zstd_missing() == nullptr;
    out[nb::str(info.name.data(), info.name.size())] =
        nb::make_tuple(static_cast<std::uint16_t>(info.id), info.lossy, here);
  }
  return out;
}

nb::list codec_isas() {
  nb::list out;
  for (const auto& [name, isa] : kIsaNames) {
    if (kvcommons::kernels::quant_has(isa)) out.append(name);
  }
  return out;
}

nb::bytes codec_fingerprint(const nb::bytes& fingerprint, const std::string& codec, std::uint32_t group) {
  const kvcommons::Key key =
      kc::lossy_fingerprint(key_argument("fingerprint", fingerprint), spec_argument(codec, group));
  return nb::bytes(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

}  // namespace

void bind_codec(nb::module_& module);
void bind_codec(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("codec_bytes_max", &codec_bytes_max, "codec"_a, "shape"_a, "group"_a = 0);
  module.def("codec_encode", &codec_encode, "codec"_a, "shape"_a, "raw"_a, "out"_a, "group"_a = 0, "isa"_a = "auto");
  module.def("codec_decode", &codec_decode, "payload"_a, "shape"_a, "raw"_a, "isa"_a = "auto");
  module.def("codec_header", &codec_header, "payload"_a);
  module.def("codec_fingerprint", &codec_fingerprint, "fingerprint"_a, "codec"_a, "group"_a = 0);
  module.def("codecs", &codecs);
  module.def("codec_isas", &codec_isas);
}
