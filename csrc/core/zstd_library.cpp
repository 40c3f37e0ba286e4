#include "zstd_library.h"

#include <dlfcn.h>

#include <memory>

namespace kvcommons {
namespace {

constexpr unsigned kVersionMin = 10'400;

// The part of zstd's stable interface that is used; its contexts are opaque.
struct Library {
  unsigned (*version)() = nullptr;
  unsigned (*is_error)(std::size_t) = nullptr;
  void* (*create_cctx)() = nullptr;
  std::size_t (*free_cctx)(void*) = nullptr;
  std::size_t (*compress)(void*, void*, std::size_t, const void*, std::size_t, int) = nullptr;
  void* (*create_dctx)() = nullptr;
  std::size_t (*free_dctx)(void*) = nullptr;
  std::size_t (*decompress)(void*, void*, std::size_t, const void*, std::size_t) = nullptr;
  const char* missing = "not opened";
};

template <typename Fn>
bool find(void* handle, const char* name, Fn* out) {
  *out = reinterpret_cast<Fn>(dlsym(handle, name));
  return *out != nullptr;
}

Library open_library() {
  Library z;
  void* handle = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);  // stays open
  if (handle == nullptr) {
    z.missing = "libzstd.so.1 is not on this machine: install it (Debian, Ubuntu: libzstd1)";
  } else if (!find(handle, "ZSTD_versionNumber", &z.version) || !find(handle, "ZSTD_isError", &z.is_error) ||
             !find(handle, "ZSTD_createCCtx", &z.create_cctx) || !find(handle, "ZSTD_freeCCtx", &z.free_cctx) ||
             !find(handle, "ZSTD_compressCCtx", &z.compress) || !find(handle, "ZSTD_createDCtx", &z.create_dctx) ||
             !find(handle, "ZSTD_freeDCtx", &z.free_dctx) || !find(handle, "ZSTD_decompressDCtx", &z.decompress)) {
    z.missing = "libzstd.so.1 lacks a function of zstd's stable interface: install zstd 1.4 or newer";
  } else if (z.version() < kVersionMin) {
    z.missing = "libzstd.so.1 is older than 1.4: install a newer one";
  } else {
    z.missing = nullptr;
  }
  return z;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

struct FreeCompressor {
  void operator()(void* context) const { library().free_cctx(context); }
};
struct FreeDecompressor {
  void operator()(void* context) const { library().free_dctx(context); }
};

}  // namespace

const char* zstd_missing() noexcept { return library().missing; }

unsigned zstd_version() noexcept { return library().missing == nullptr ? library().version() : 0; }

std::optional<std::size_t> zstd_compress(std::span<const std::byte> data, std::span<std::byte> out, int level) {
  const Library& z = library();
  if (z.missing != nullptr) return std::nullopt;
  thread_local const std::unique_ptr<void, FreeCompressor> context(z.create_cctx());
  if (context == nullptr) return std::nullopt;
  const std::size_t done = z.compress(context.get(), out.data(), out.size(), data.data(), data.size(), level);
  if (z.is_error(done) != 0) return std::nullopt;
  return done;
}

bool zstd_decompress(std::span<const std::byte> frame, std::span<std::byte> out) {
  const Library& z = library();
  if (z.missing != nullptr) return false;
  thread_local const std::unique_ptr<void, FreeDecompressor> context(z.create_dctx());
  if (context == nullptr) return false;
  const std::size_t done = z.decompress(context.get(), out.data(), out.size(), frame.data(), frame.size());
  return z.is_error(done) == 0 && done == out.size();
}

}  // namespace kvcommons
