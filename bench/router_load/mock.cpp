// Engines that cost next to nothing: OpenAI's chat completions on several ports, by one thread and epoll.
//
//   mock COUNT      prints COUNT ports on one line, then serves until its standard input ends
//
// Of a body it reads "max_tokens", "stream" and "seed" (microseconds between tokens), wherever they stand.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::string_view kToken =
    "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
constexpr std::string_view kDone = "data: [DONE]\n\n";
constexpr std::size_t kHeadEnd = 4;  // "\r\n\r\n"

std::uint64_t NowUs() {
  using namespace std::chrono;
  return static_cast<std::uint64_t>(duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count());
}

struct Connection {
  int fd = -1;
  std::uint64_t generation = 0;
  std::string in;
  std::string out;
  long tokens_left = 0;
  std::uint64_t interval_us = 0;
  bool streaming = false;
  bool waits_to_write = false;
};

struct Timer {
  std::uint64_t at_us;
  int fd;
  std::uint64_t generation;
  bool operator<(const Timer& other) const { return at_us > other.at_us; }  // the earliest on top
};

long Number(std::string_view body, std::string_view key, long otherwise) {
  const std::size_t at = body.rfind(key);
  return at == std::string_view::npos ? otherwise : std::strtol(body.data() + at + key.size(), nullptr, 10);
}

std::size_t ContentLength(std::string_view head) {
  constexpr std::string_view kName = "\r\ncontent-length:";
  for (std::size_t at = 0; at + kName.size() <= head.size(); ++at) {
    std::size_t same = 0;
    while (same < kName.size() && (head[at + same] | 0x20) == (kName[same] | 0x20)) ++same;
    if (same == kName.size()) return std::strtoul(head.data() + at + same, nullptr, 10);
  }
  return 0;
}

class Server {
 public:
  explicit Server(int count) : epoll_(epoll_create1(0)) {
    Watch(STDIN_FILENO, EPOLLIN, EPOLL_CTL_ADD);
    for (int i = 0; i < count; ++i) Listen(i + 1 < count ? ' ' : '\n');
    std::fflush(stdout);
  }

  void Run() {
    epoll_event events[256];
    for (;;) {
      const int found = epoll_wait(epoll_, events, 256, Patience());
      for (int i = 0; i < found; ++i) {
        const int fd = events[i].data.fd;
        if (fd == STDIN_FILENO) return;
        if (listeners_.contains(fd)) {
          Accept(fd);
        } else if (auto it = connections_.find(fd); it != connections_.end() && !Serve(*it->second)) {
          Close(fd);
        }
      }
      FireTimers();
    }
  }

 private:
  void Watch(int fd, std::uint32_t what, int operation) const {
    epoll_event event{};
    event.events = what;
    event.data.fd = fd;
    if (epoll_ctl(epoll_, operation, fd, &event) != 0) std::perror("epoll_ctl");
  }

  void Listen(char end) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      std::perror("listen");
      std::exit(1);
    }
    listeners_[fd] = true;
    Watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    std::printf("%d%c", ntohs(address.sin_port), end);
  }

  void Accept(int listener) {
    for (int fd; (fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK)) >= 0;) {
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      auto connection = std::make_unique<Connection>();
      connection->fd = fd;
      connection->generation = ++generations_;
      connections_[fd] = std::move(connection);
      Watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
  }

  void Close(int fd) {
    close(fd);
    connections_.erase(fd);
  }

  int Patience() const {
    if (timers_.empty()) return -1;
    const std::uint64_t now = NowUs();
    return timers_.top().at_us <= now ? 0 : static_cast<int>((timers_.top().at_us - now + 999) / 1000);
  }

  void FireTimers() {
    const std::uint64_t now = NowUs();
    while (!timers_.empty() && timers_.top().at_us <= now) {
      const Timer timer = timers_.top();
      timers_.pop();
      auto it = connections_.find(timer.fd);
      if (it == connections_.end() || it->second->generation != timer.generation) continue;
      Connection& connection = *it->second;
      Emit(connection);
      if (connection.streaming) timers_.push({timer.at_us + connection.interval_us, timer.fd, timer.generation});
      if (!Flush(connection) || !Requests(connection)) Close(timer.fd);
    }
  }

  // Reads, answers, writes; false when the connection is over.
  bool Serve(Connection& connection) {
    static char buffer[1 << 18];
    for (;;) {
      const ssize_t got = recv(connection.fd, buffer, sizeof buffer, 0);
      if (got > 0) {
        connection.in.append(buffer, static_cast<std::size_t>(got));
        if (static_cast<std::size_t>(got) == sizeof buffer) continue;
      } else if (got == 0 || errno != EAGAIN) {
        return false;
      }
      break;
    }
    return Flush(connection) && Requests(connection);
  }

  bool Requests(Connection& connection) {
    while (!connection.streaming) {
      const std::size_t head = connection.in.find("\r\n\r\n");
      if (head == std::string::npos) return true;
      const std::size_t length = ContentLength(std::string_view(connection.in).substr(0, head));
      const std::size_t end = head + kHeadEnd + length;
      if (connection.in.size() < end) return true;
      Answer(connection, std::string_view(connection.in).substr(head + kHeadEnd, length));
      connection.in.erase(0, end);
      if (!Flush(connection)) return false;
    }
    return true;
  }

  void Answer(Connection& connection, std::string_view body) {
    const long tokens = Number(body, "\"max_tokens\":", 0);
    if (body.find("\"stream\":true") != std::string_view::npos) {
      connection.out +=
          "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";
      connection.tokens_left = tokens;
      connection.interval_us = static_cast<std::uint64_t>(Number(body, "\"seed\":", 0));
      connection.streaming = true;
      Emit(connection);
      if (connection.streaming) timers_.push({NowUs() + connection.interval_us, connection.fd, connection.generation});
      return;
    }
    std::string text;
    for (long i = 0; i < tokens; ++i) text += " token";
    const std::string json = body.empty() ? "{\"status\":\"ok\"}"
                                          : "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1,"
                                            "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                                            "\"assistant\",\"content\":\"" +
                                                text +
                                                "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,"
                                                "\"total_tokens\":2,\"completion_tokens\":1}}";
    connection.out +=
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(json.size()) +
        "\r\n\r\n" + json;
  }

  static void Chunk(std::string& out, std::string_view data) {
    char size[32];
    out.append(size, static_cast<std::size_t>(std::snprintf(size, sizeof size, "%zx\r\n", data.size())));
    out.append(data);
    out.append("\r\n");
  }

  static void Emit(Connection& connection) {
    if (connection.tokens_left-- > 0) Chunk(connection.out, kToken);
    if (connection.tokens_left <= 0) {
      Chunk(connection.out, kDone);
      connection.out += "0\r\n\r\n";
      connection.streaming = false;
    }
  }

  bool Flush(Connection& connection) {
    while (!connection.out.empty()) {
      const ssize_t sent = send(connection.fd, connection.out.data(), connection.out.size(), MSG_NOSIGNAL);
      if (sent > 0) {
        connection.out.erase(0, static_cast<std::size_t>(sent));
      } else if (errno == EAGAIN) {
        break;
      } else {
        return false;
      }
    }
    if (connection.out.empty() == connection.waits_to_write) {
      connection.waits_to_write = !connection.waits_to_write;
      Watch(connection.fd, connection.waits_to_write ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    }
    return true;
  }

  int epoll_;
  std::uint64_t generations_ = 0;
  std::unordered_map<int, bool> listeners_;
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;
  std::priority_queue<Timer> timers_;
};

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  Server server(argc > 1 ? std::atoi(argv[1]) : 1);
  server.Run();
  return 0;
}
