// A closed-loop HTTP/1.1 client: so many kept connections, each sends its next request when it has its answer.
//
//   load PORT CONNECTIONS SECONDS PROMPT_BYTES TOKENS INTERVAL_US STREAM THINK_US SEED
//
// Prints one JSON line. Prompts come in 64 groups that share three quarters of their text; the rest of each is new.

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <queue>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kGroups = 64;
constexpr std::size_t kMarkBytes = 16;  // what makes each prompt new
constexpr std::uint64_t kPatienceNs = 5'000'000'000;

std::uint64_t NowNs() {
  using namespace std::chrono;
  return static_cast<std::uint64_t>(duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count());
}

struct Options {
  int port, connections;
  double seconds;
  std::size_t prompt_bytes;
  int tokens;
  long interval_us;
  bool stream;
  std::uint64_t think_ns;
  std::uint64_t seed;
};

enum class State { kIdle, kHead, kLength, kChunkSize };

struct Connection {
  int fd = -1;
  State state = State::kIdle;
  std::string in;
  std::size_t at = 0;   // how far it is read
  std::size_t end = 0;  // of a body with a length
  int status = 0;
  std::uint64_t sent_ns = 0;
  std::uint64_t first_ns = 0;
};

struct Wake {
  std::uint64_t at_ns;
  std::size_t index;
  bool operator<(const Wake& other) const { return at_ns > other.at_ns; }
};

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = std::min(values.size() - 1, static_cast<std::size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

class Load {
 public:
  explicit Load(const Options& options)
      : options_(options), epoll_(epoll_create1(0)), random_(options.seed * 7919 + 17), sequence_(options.seed << 40) {
    for (std::size_t group = 0; group < kGroups; ++group) MakeRequest();
    connections_.resize(static_cast<std::size_t>(options.connections));
    for (std::size_t i = 0; i < connections_.size(); ++i) Connect(i);
  }

  void Run() {
    begin_ns_ = NowNs();
    const auto length = static_cast<std::uint64_t>(options_.seconds * 1e9);
    measured_from_ = begin_ns_ + std::min<std::uint64_t>(1'000'000'000, length / 5);
    end_ns_ = begin_ns_ + length;
    for (std::size_t i = 0; i < connections_.size(); ++i) Send(i);
    while ((active_ > 0 || !sleeping_.empty()) && NowNs() < end_ns_ + kPatienceNs) Step();
  }

  void Print() {
    const double seconds = static_cast<double>(end_ns_ - measured_from_) / 1e9;
    std::printf(
        "{\"requests\":%ld,\"errors\":%ld,\"rps\":%.1f,\"first_p50_us\":%.1f,\"first_p99_us\":%.1f,"
        "\"total_p50_us\":%.1f}\n",
        all_, errors_, static_cast<double>(first_us_.size()) / seconds, Percentile(first_us_, 0.5),
        Percentile(first_us_, 0.99), Percentile(total_us_, 0.5));
  }

 private:
  std::uint32_t Random() {
    random_ = random_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(random_ >> 33);
  }

  void Words(std::string& text, std::size_t bytes) {
    while (text.size() < bytes) text += "w" + std::to_string(Random() % 5000) + " ";
    text.resize(bytes);
  }

  void MakeRequest() {
    std::string prompt;
    Words(prompt, options_.prompt_bytes * 3 / 4);
    const std::size_t mark = prompt.size();
    prompt.append(kMarkBytes, '0');
    Words(prompt, std::max(options_.prompt_bytes, prompt.size()));
    std::string body = "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"";
    const std::size_t prefix = body.size();
    body += prompt + "\"}],\"stream\":" + (options_.stream ? "true" : "false") +
            ",\"max_tokens\":" + std::to_string(options_.tokens) + ",\"seed\":" + std::to_string(options_.interval_us) +
            "}";
    const std::string head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(options_.port) +
                             "\r\nContent-Type: application/json\r\nAuthorization: Bearer none\r\nContent-Length: " +
                             std::to_string(body.size()) + "\r\n\r\n";
    marks_.push_back(head.size() + prefix + mark);
    requests_.push_back(head + body);
  }

  void Connect(std::size_t index) {
    Connection& connection = connections_[index];
    if (connection.fd >= 0) close(connection.fd);
    connection.fd = socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(options_.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(connection.fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      std::perror("connect");
      std::exit(1);
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = index;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event);
  }

  void Send(std::size_t index) {
    const std::size_t group = Random() % kGroups;
    char mark[kMarkBytes + 1];
    std::snprintf(mark, sizeof mark, "%016llx", static_cast<unsigned long long>(++sequence_));
    std::memcpy(&requests_[group][marks_[group]], mark, kMarkBytes);
    Connection& connection = connections_[index];
    connection.state = State::kHead;
    connection.in.clear();
    connection.at = 0;
    connection.first_ns = 0;
    connection.sent_ns = NowNs();
    ++active_;
    const std::string& request = requests_[group];
    for (std::size_t done = 0; done < request.size();) {
      const ssize_t sent = send(connection.fd, request.data() + done, request.size() - done, MSG_NOSIGNAL);
      if (sent < 0 && errno != EINTR) break;  // the answer, or its absence, will tell
      if (sent > 0) done += static_cast<std::size_t>(sent);
    }
  }

  void Step() {
    epoll_event events[256];
    int patience_ms = 1000;
    if (!sleeping_.empty()) {
      const std::uint64_t now = NowNs();
      patience_ms = sleeping_.top().at_ns <= now ? 0 : static_cast<int>((sleeping_.top().at_ns - now) / 1'000'000 + 1);
    }
    const int found = epoll_wait(epoll_, events, 256, patience_ms);
    const std::uint64_t now = NowNs();
    while (!sleeping_.empty() && sleeping_.top().at_ns <= now) {
      const std::size_t index = sleeping_.top().index;
      sleeping_.pop();
      if (now < end_ns_) Send(index);
    }
    for (int i = 0; i < found; ++i) Receive(events[i].data.u64);
  }

  void Receive(std::size_t index) {
    static char buffer[1 << 18];
    Connection& connection = connections_[index];
    const ssize_t got = recv(connection.fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const int on = 1;
    setsockopt(connection.fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
    if (got <= 0) {
      if (connection.state != State::kIdle) Finish(index, false);
      Connect(index);
      return;
    }
    if (connection.state == State::kIdle) return;
    connection.in.append(buffer, static_cast<std::size_t>(got));
    while (Parse(index)) {
    }
  }

  // One step through what has come; false when more must come, or when the answer is over.
  bool Parse(std::size_t index) {
    Connection& connection = connections_[index];
    if (connection.state == State::kHead) {
      const std::size_t end = connection.in.find("\r\n\r\n");
      if (end == std::string::npos) return false;
      ReadHead(connection, end);
      return true;
    }
    if (connection.first_ns == 0 && connection.in.size() > connection.at) connection.first_ns = NowNs();
    if (connection.state == State::kLength) {
      if (connection.in.size() >= connection.end) Finish(index, true);
      return false;
    }
    if (connection.state != State::kChunkSize) return false;
    const std::size_t line = connection.in.find("\r\n", connection.at);
    if (line == std::string::npos) return false;
    const std::size_t size = std::strtoul(connection.in.c_str() + connection.at, nullptr, 16);
    if (connection.in.size() < line + 2 + size + 2) return false;
    connection.at = line + 2 + size + 2;
    if (size == 0) Finish(index, true);
    return size != 0;
  }

  static void ReadHead(Connection& connection, std::size_t end) {
    connection.status = std::atoi(connection.in.c_str() + 9);
    connection.at = end + 4;
    std::string head = connection.in.substr(0, end);
    std::transform(head.begin(), head.end(), head.begin(), [](char c) { return static_cast<char>(std::tolower(c)); });
    const std::size_t length = head.find("\r\ncontent-length:");
    if (length == std::string::npos) {
      connection.state = State::kChunkSize;
    } else {
      connection.state = State::kLength;
      connection.end = connection.at + std::strtoul(head.c_str() + length + 17, nullptr, 10);
    }
  }

  void Finish(std::size_t index, bool whole) {
    Connection& connection = connections_[index];
    const std::uint64_t now = NowNs();
    connection.state = State::kIdle;
    --active_;
    ++all_;
    if (!whole || connection.status != 200) {
      ++errors_;
    } else if (now >= measured_from_ && now < end_ns_) {
      first_us_.push_back(static_cast<double>(connection.first_ns - connection.sent_ns) / 1e3);
      total_us_.push_back(static_cast<double>(now - connection.sent_ns) / 1e3);
    }
    if (now >= end_ns_) return;
    if (options_.think_ns > 0) {
      sleeping_.push({now + options_.think_ns, index});
    } else if (whole) {
      Send(index);
    } else {
      sleeping_.push({now + 1'000'000, index});
    }
  }

  const Options options_;
  int epoll_;
  std::uint64_t random_;
  std::uint64_t sequence_;
  std::vector<std::string> requests_;
  std::vector<std::size_t> marks_;
  std::vector<Connection> connections_;
  std::priority_queue<Wake> sleeping_;
  std::uint64_t begin_ns_ = 0, measured_from_ = 0, end_ns_ = 0;
  int active_ = 0;
  long all_ = 0, errors_ = 0;
  std::vector<double> first_us_, total_us_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 10) {
    std::fprintf(stderr, "load PORT CONNECTIONS SECONDS PROMPT_BYTES TOKENS INTERVAL_US STREAM THINK_US SEED\n");
    return 2;
  }
  Load load({std::atoi(argv[1]), std::atoi(argv[2]), std::atof(argv[3]), std::strtoul(argv[4], nullptr, 10),
             std::atoi(argv[5]), std::atol(argv[6]), std::atoi(argv[7]) != 0,
             std::strtoull(argv[8], nullptr, 10) * 1000, std::strtoull(argv[9], nullptr, 10)});
  load.Run();
  load.Print();
  return 0;
}
