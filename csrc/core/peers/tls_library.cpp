#include "peers/tls_library.h"

#include <dlfcn.h>
#include <poll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <stdexcept>

namespace kvcommons::peers {
namespace {

// Of libssl's stable interface, by its documented values.
constexpr int kPem = 1, kVerifyPeer = 0x01, kFailWithoutCertificate = 0x02;
constexpr int kWantRead = 2, kWantWrite = 3;
constexpr int kSetMinVersion = 123, kTls13 = 0x0304;
constexpr int kCtrlMode = 33, kPartialWrite = 1, kMovingWriteBuffer = 2;

struct Library {
  const void* (*method)() = nullptr;
  void* (*context_new)(const void*) = nullptr;
  void (*context_free)(void*) = nullptr;
  long (*context_ctrl)(void*, int, long, void*) = nullptr;
  int (*use_chain)(void*, const char*) = nullptr;
  int (*use_key)(void*, const char*, int) = nullptr;
  int (*check_key)(const void*) = nullptr;
  int (*load_ca)(void*, const char*, const char*) = nullptr;
  void (*set_verify)(void*, int, void*) = nullptr;
  void* (*make)(void*) = nullptr;
  void (*free)(void*) = nullptr;
  int (*set_fd)(void*, int) = nullptr;
  int (*connect)(void*) = nullptr;
  int (*accept)(void*) = nullptr;
  int (*read)(void*, void*, int) = nullptr;
  int (*write)(void*, const void*, int) = nullptr;
  int (*pending)(const void*) = nullptr;
  int (*get_error)(const void*, int) = nullptr;
  void (*clear_errors)() = nullptr;
  const char* missing = "not opened";
};

template <typename Fn>
bool find(void* handle, const char* name, Fn* out) {
  *out = reinterpret_cast<Fn>(dlsym(handle, name));
  return *out != nullptr;
}

Library open_library() {
  Library l;
  void* handle = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);  // stays open
  if (handle == nullptr) {
    l.missing = "libssl.so.3 is not on this machine: install it (Debian, Ubuntu: libssl3), or leave peers.tls_* empty";
    return l;
  }
  const bool all = find(handle, "TLS_method", &l.method) && find(handle, "SSL_CTX_new", &l.context_new) &&
                   find(handle, "SSL_CTX_free", &l.context_free) && find(handle, "SSL_CTX_ctrl", &l.context_ctrl) &&
                   find(handle, "SSL_CTX_use_certificate_chain_file", &l.use_chain) &&
                   find(handle, "SSL_CTX_use_PrivateKey_file", &l.use_key) &&
                   find(handle, "SSL_CTX_check_private_key", &l.check_key) &&
                   find(handle, "SSL_CTX_load_verify_locations", &l.load_ca) &&
                   find(handle, "SSL_CTX_set_verify", &l.set_verify) && find(handle, "SSL_new", &l.make) &&
                   find(handle, "SSL_free", &l.free) && find(handle, "SSL_set_fd", &l.set_fd) &&
                   find(handle, "SSL_connect", &l.connect) && find(handle, "SSL_accept", &l.accept) &&
                   find(handle, "SSL_read", &l.read) && find(handle, "SSL_write", &l.write) &&
                   find(handle, "SSL_pending", &l.pending) && find(handle, "SSL_get_error", &l.get_error) &&
                   find(handle, "ERR_clear_error", &l.clear_errors);
  l.missing = all ? nullptr : "libssl.so.3 lacks a function of OpenSSL 3: install one that has them";
  return l;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

int at_most_int(std::size_t bytes) {
  return static_cast<int>(std::min<std::size_t>(bytes, std::numeric_limits<int>::max()));
}

class TlsStream final : public Stream {
 public:
  TlsStream(UniqueFd fd, void* ssl) : Stream(std::move(fd)), ssl_(ssl) {}
  ~TlsStream() override { library().free(ssl_); }

  bool shake(bool server, Deadline deadline) {
    return repeat([&] { return server ? library().accept(ssl_) : library().connect(ssl_); }, deadline) == 1;
  }
  bool read(std::span<std::byte> into, Deadline deadline) override {
    while (!into.empty()) {
      const int got = repeat([&] { return library().read(ssl_, into.data(), at_most_int(into.size())); }, deadline);
      if (got <= 0) return false;
      into = into.subspan(static_cast<std::size_t>(got));
    }
    return true;
  }
  bool write(std::span<const std::byte> bytes, Deadline deadline) override {
    while (!bytes.empty()) {
      const int sent = repeat([&] { return library().write(ssl_, bytes.data(), at_most_int(bytes.size())); }, deadline);
      if (sent <= 0) return false;
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
    return true;
  }
  bool readable(Deadline deadline) override { return library().pending(ssl_) > 0 || Stream::readable(deadline); }
  [[nodiscard]] bool plain() const noexcept override { return false; }

 private:
  template <typename Call>
  int repeat(Call call, Deadline deadline) {
    for (;;) {
      library().clear_errors();  // what an earlier call of this thread left would be taken for this one's
      const int result = call();
      if (result > 0) return result;
      const int error = library().get_error(ssl_, result);
      if (error != kWantRead && error != kWantWrite) return result;
      if (!wait_until(fd_.get(), error == kWantRead ? POLLIN : POLLOUT, deadline)) return -1;
    }
  }

  void* ssl_;
};

// Throws std::invalid_argument: the setting, the file and what is wrong with it. The caller frees what it gets.
void* open_context(const TlsConfig& config) {
  const Library& l = library();
  if (l.missing != nullptr) throw std::invalid_argument(l.missing);
  void* context = l.context_new(l.method());
  if (context == nullptr) throw std::invalid_argument("libssl.so.3 gives no context: it may be out of memory");
  const auto need = [&](bool good, const char* setting, const std::string& file, const char* remedy) {
    if (good) return;
    l.context_free(context);
    throw std::invalid_argument(std::string(setting) + " '" + file + "': " + remedy);
  };
  (void)l.context_ctrl(context, kSetMinVersion, kTls13, nullptr);
  (void)l.context_ctrl(context, kCtrlMode, kPartialWrite | kMovingWriteBuffer, nullptr);
  need(l.load_ca(context, config.ca_file.c_str(), nullptr) == 1, "peers.tls_ca_file", config.ca_file,
       "give a readable file with the authority's certificate (PEM)");
  need(l.use_chain(context, config.cert_file.c_str()) == 1, "peers.tls_cert_file", config.cert_file,
       "give a readable file with this node's certificate (PEM)");
  need(l.use_key(context, config.key_file.c_str(), kPem) == 1 && l.check_key(context) == 1, "peers.tls_key_file",
       config.key_file, "give a readable file with the private key of peers.tls_cert_file (PEM)");
  l.set_verify(context, kVerifyPeer | kFailWithoutCertificate, nullptr);
  return context;
}

// As the files are now; null where they can't be used, as while somebody renews them.
void* try_context(const TlsConfig& config) {
  try {
    return open_context(config);
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}

}  // namespace

const char* tls_missing() noexcept { return library().missing; }

TlsContext::TlsContext(const TlsConfig& config) : config_(config), context_(open_context(config)) {}

TlsContext::~TlsContext() {
  if (context_ != nullptr) library().context_free(context_);
}

std::unique_ptr<Stream> TlsContext::wrap(UniqueFd fd, bool server, Deadline deadline, std::string* why) const {
  const Library& l = library();
  void* renewed = try_context(config_);
  void* ssl = l.make(renewed != nullptr ? renewed : context_);
  if (renewed != nullptr) l.context_free(renewed);  // the connection holds it
  *why = "no TLS connection could be made";
  if (ssl == nullptr) return nullptr;
  const int number = fd.get();
  auto stream = std::make_unique<TlsStream>(std::move(fd), ssl);
  if (l.set_fd(ssl, number) != 1 || !stream->shake(server, deadline)) {
    *why = "the TLS handshake failed: both nodes need certificates that peers.tls_ca_file has signed";
    return nullptr;
  }
  why->clear();
  return stream;
}

}  // namespace kvcommons::peers
