// The holder and what stands below it: descriptors outlive their daemon, sockets and memory are refused with a remedy.
#include "core/holder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <system_error>

#include "check.h"
#include "core/holder_packet.h"
#include "core/memory.h"
#include "core/process.h"
#include "node_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;
using Attach = HolderLink::Attach;

UniqueFd file_of(const std::string& text) {
  UniqueFd fd(::memfd_create("held", MFD_CLOEXEC));
  CHECK(::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  return fd;
}

std::string text_of(int fd) {
  std::string text(64, '\0');
  const ssize_t got = ::pread(fd, text.data(), text.size(), 0);
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return text;
}

// The message of the exception that `run` throws.
template <typename Error>
std::string refusal(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  fail("refusal", 0, "nothing was thrown");
}

bool mentions(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(what_was_put_is_there_for_the_next_node_after_a_kill) {
  TempDir directory;
  const auto holder = holder_process(directory.file("h"));
  const std::string meta = "meta of the arena";
  {
    HolderLink link(directory.file("h"));
    std::vector<HeldFd> held;
    CHECK(link.attach(&held, 5'000) == Attach::Attached);
    CHECK(held.empty());
    CHECK(link.put("arena", std::as_bytes(std::span(meta)), file_of("the arena").get()));
    CHECK(link.put("gone", {}, file_of("gone").get()));
    CHECK(link.put("arena.2", {}, file_of("second").get()));
    CHECK(link.remove("gone"));
  }  // closed at once: what was sent is kept all the same
  HolderLink link(directory.file("h"));
  std::vector<HeldFd> held;
  CHECK(link.attach(&held, 5'000) == Attach::Attached);
  CHECK_EQ(held.size(), 2u);
  CHECK_EQ(held[0].name, std::string("arena"));
  CHECK_EQ(std::string(reinterpret_cast<const char*>(held[0].meta.data()), held[0].meta.size()), meta);
  CHECK_EQ(text_of(held[0].fd.get()), std::string("the arena"));
  CHECK_EQ(text_of(held[1].fd.get()), std::string("second"));
}

TEST(thousands_of_descriptors_come_back) {
  TempDir directory;
  raise_descriptor_limit();
  const auto holder = holder_process(directory.file("h"));
  const UniqueFd self = open_pidfd(::getpid());
  constexpr int kCount = 4'000;
  {
    HolderLink link(directory.file("h"));
    std::vector<HeldFd> held;
    CHECK(link.attach(&held, 5'000) == Attach::Attached);
    for (int i = 0; i < kCount; ++i) CHECK(link.put("session." + std::to_string(i), {}, self.get()));
  }
  HolderLink link(directory.file("h"));
  std::vector<HeldFd> held;
  CHECK(link.attach(&held, 20'000) == Attach::Attached);  // all that the former one sent comes first
  CHECK_EQ(held.size(), std::size_t{kCount});
  CHECK_EQ(pid_of(held[kCount / 2].fd.get()), ::getpid());
}

TEST(two_live_nodes_never_share_a_holder) {
  TempDir directory;
  const auto holder = holder_process(directory.file("h"));
  HolderLink first(directory.file("h")), second(directory.file("h"));
  std::vector<HeldFd> held;
  CHECK(first.attach(&held, 5'000) == Attach::Attached);
  CHECK(second.attach(&held, 5'000) == Attach::InUse);
  NodeConfig config = node_config(directory);
  config.holder_socket = directory.file("h");
  NodeCore node(config);
  CHECK(mentions(refusal<std::system_error>([&] { node.start(); }), "serves another live node"));
  first.close();
  wait_until([&] { return second.attach(&held, 5'000) == Attach::Attached; }, "the first has ended");
}

TEST(a_malformed_packet_ends_its_connection_alone) {
  TempDir directory;
  const auto holder = holder_process(directory.file("h"));
  HolderLink link(directory.file("h"));
  std::vector<HeldFd> held;
  CHECK(link.attach(&held, 5'000) == Attach::Attached);
  for (const std::string& packet : {std::string("\x02"), std::string("\x02\xff\xff\xff"), std::string("\x63\0\0\0", 4),
                                    std::string("\x02\x01\0\0a", 5), std::string(1'000, '\x02')}) {
    UniqueFd socket = unix_connect(directory.file("h"), SOCK_SEQPACKET);
    CHECK(::send(socket.get(), packet.data(), packet.size(), MSG_NOSIGNAL) > 0);
    CHECK(wait_for(socket.get(), POLLIN, 20'000));
    char byte = 0;
    CHECK_LE(::recv(socket.get(), &byte, 1, 0), 0);
  }
  CHECK(link.alive());
}

TEST(a_holder_ends_when_told_to_and_when_nobody_came) {
  TempDir directory;
  auto holder = holder_process(directory.file("h"));
  CHECK(holder_stop(directory.file("h")));
  CHECK_EQ(holder->wait(), 0);
  CHECK(!holder_stop(directory.file("h")));
  Process idle([&] { holder_serve(directory.file("i"), 0, {}); });
  CHECK_EQ(idle.wait(), 0);
}

TEST(a_pidfd_is_proof_of_its_process_end_and_of_nothing_else) {
  auto process = std::make_unique<Process>([] {
    for (;;) ::pause();
  });
  const UniqueFd pidfd = open_pidfd(process->pid());
  CHECK(is_pidfd(pidfd.get()));
  CHECK(!is_pidfd(file_of("no pidfd").get()));
  CHECK(!is_pidfd(-1));
  CHECK(!process_ended(pidfd.get()));
  CHECK_EQ(pid_of(pidfd.get()), process->pid());
  process->kill();
  CHECK(process_ended(pidfd.get()));
  CHECK(is_pidfd(pidfd.get()));  // an ended process' descriptor is no forgery
}

TEST(the_kernel_names_the_process_behind_a_socket) {
  TempDir directory;
  UnixListener listener(directory.file("s"), SOCK_STREAM, 0600);
  listener.listen();
  Process peer([&] {
    const UniqueFd socket = unix_connect(directory.file("s"), SOCK_STREAM);
    for (;;) ::pause();
  });
  CHECK(wait_for(listener.fd(), POLLIN, 20'000));
  const UniqueFd socket = unix_accept(listener.fd());
  const PeerCredentials credentials = peer_credentials(socket.get());
  CHECK_EQ(credentials.pid, peer.pid());
  CHECK_EQ(credentials.uid, ::geteuid());
  const ProcessProof proof = prove_peer(socket.get(), credentials.pid, UniqueFd());
  CHECK(proof.source != ProofSource::None);
  CHECK(!process_ended(proof.pidfd.get()));
  // Where the kernel tells nothing, a descriptor that is no pidfd proves nothing either.
  int pair[2];
  CHECK(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0);
  peer.kill();
  CHECK(process_ended(proof.pidfd.get()));
  ::close(pair[0]);
  ::close(pair[1]);
}

TEST(a_socket_in_use_is_refused_and_a_stale_one_replaced) {
  TempDir directory;
  NodeCore first(node_config(directory));
  first.start();
  NodeCore second(node_config(directory));
  CHECK(mentions(refusal<std::system_error>([&] { second.start(); }), "in use by a live process"));
  first.stop();
  auto killed = node_process(node_config(directory));
  killed->kill();
  CHECK(std::filesystem::exists(directory.file("n")));  // left behind by the kill
  second.start();
  struct stat info{};
  CHECK(::stat(directory.file("n").c_str(), &info) == 0);
  CHECK_EQ(info.st_mode & 0777u, 0600u);
  second.stop();
  CHECK(!std::filesystem::exists(directory.file("n")));
}

TEST(a_clean_end_leaves_no_lock_file_and_owners_exclude_each_other_all_the_same) {
  const TempDir directory;
  const std::string path = directory.file("n");
  for (int life = 0; life < 3; ++life) {
    const UnixListener first(path, SOCK_STREAM, 0600);
    CHECK(std::filesystem::exists(path + ".lock"));
    CHECK(mentions(refusal<std::system_error>([&] { UnixListener(path, SOCK_STREAM, 0600); }), "in use by a live"));
  }
  CHECK(!std::filesystem::exists(path) && !std::filesystem::exists(path + ".lock"));
}

TEST(a_path_that_cannot_hold_the_socket_is_refused_with_the_remedy) {
  TempDir directory;
  const auto start_at = [&](const std::string& path) {
    NodeConfig config = node_config(directory);
    config.socket_path = path;
    NodeCore(config).start();
  };
  CHECK(mentions(refusal<std::invalid_argument>([&] { start_at(directory.file(std::string(120, 'x'))); }), "shorter"));
  CHECK(mentions(refusal<std::system_error>([&] { start_at(directory.file("none/n")); }), "create it"));
  std::ofstream(directory.file("file")) << "kept";
  CHECK(mentions(refusal<std::invalid_argument>([&] { start_at(directory.file("file")); }), "is no socket"));
  CHECK(std::filesystem::exists(directory.file("file")));
  std::filesystem::create_directory(directory.file("open"));
  CHECK(::chmod(directory.file("open").c_str(), 0777) == 0);
  CHECK(mentions(refusal<std::invalid_argument>([&] { start_at(directory.file("open/n")); }), "writable by everyone"));
}

TEST(an_arena_that_does_not_fit_is_refused_with_what_would) {
  const MemoryRoom room{8ull << 30, 6ull << 30, "the machine's memory"};
  check_capacity(4ull << 30, room);
  CHECK(mentions(refusal<std::invalid_argument>([&] { check_capacity(9ull << 30, room); }), "the machine's memory"));
  CHECK(mentions(refusal<std::invalid_argument>([&] { check_capacity(7ull << 30, room); }), "available now"));
  // An arena under a limit of its size and 10 % passes: that is how the memory is meant to be given.
  for (const std::uint64_t arena : {256ull << 20, 1ull << 30, 64ull << 30}) {
    check_capacity(arena, {arena + arena / 10, ~0ull, "memory.max"});
  }
  TempDir directory;
  NodeCore node(node_config(directory, 1ull << 40));
  CHECK(mentions(refusal<std::invalid_argument>([&] { node.start(); }), "set at most"));
  CHECK(!std::filesystem::exists(directory.file("n")));
}

TEST(the_arena_is_populated_and_sealed) {
  std::vector<std::string> notes;
  const UniqueFd fd = make_memfd("sealed", 8 << 20, {}, &notes);
  struct stat info{};
  CHECK(::fstat(fd.get(), &info) == 0);
  CHECK_EQ(info.st_blocks * 512, 8 << 20);
  CHECK_EQ(::ftruncate(fd.get(), 4096), -1);
  CHECK_EQ(::ftruncate(fd.get(), 16 << 20), -1);
  CHECK_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  const UniqueFd huge = make_memfd("huge", 4 << 20, {true, true}, &notes);  // had, or told that it was not
  CHECK(huge);
  CHECK_GE(file_bytes(huge.get()), 4u << 20);
}

TEST(a_mapping_starts_on_the_border_of_a_huge_page_and_ends_with_its_file) {
  std::vector<std::string> notes;
  const std::uint64_t border = 2 << 20, bytes = 3 * border + 4096;
  const UniqueFd fd = make_memfd("mapped", border + bytes, {}, &notes);
  std::byte* const at = map_shared(fd.get(), border, bytes, PROT_READ | PROT_WRITE);
  CHECK(at != nullptr);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(at) % border, 0u);
  at[bytes - 1] = std::byte{7};
  std::byte last{};
  CHECK_EQ(::pread(fd.get(), &last, 1, static_cast<off_t>(border + bytes - 1)), 1);
  CHECK_EQ(static_cast<int>(last), 7);
  // What was reserved to find the border is free again: something else is mapped right behind, and ends with its own.
  CHECK(::mmap(at + bytes, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at + bytes);
  CHECK_EQ(::munmap(at, bytes + 4096), 0);
  errno = 0;
  CHECK(map_shared(-1, 0, 4096, PROT_READ) == nullptr);
  CHECK_EQ(errno, EBADF);
}

TEST_MAIN()
