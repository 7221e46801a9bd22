#include "daemon/broker_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "common/message_socket.h"
#include "daemon/because.h"

namespace jobworker {

namespace {

constexpr int kGreetWithinMs = 10'000;  // from one message to the next
constexpr size_t kMaxInMessage = 253;   // SCM_MAX_FD: what one message can carry at most

// Receives one datagram with whatever descriptors it carries; all of them are owned before anything is looked at.
ssize_t ReceiveWithDescriptors(int socket, std::string& buffer, std::vector<UniqueFd>& descriptors, int& flags) {
  iovec body{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxInMessage * sizeof(int))];
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t size;
  do {
    size = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (size < 0 && errno == EINTR);
  if (size < 0) return size;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
  flags = header.msg_flags;
  return size;
}

// A quarter, and at most 64, is for the network and all else. The kernel gives the lowest numbers that are free.
int FirstNotForJobs() {
  const long most = sysconf(_SC_OPEN_MAX);
  return static_cast<int>(std::min<long>(most - std::min<long>(64, most / 4), INT_MAX));
}

size_t ExpectedDescriptors(const Reply& reply) {
  return std::visit([](const auto& message) { return DescriptorsOf(message); }, reply);
}

}  // namespace

std::string_view StageName(Stage stage) {
  constexpr std::string_view kNames[] = {"user",   "ceiling", "jobs",   "cgroup",   "limits",    "pipe",   "clone",
                                         "signal", "kill",    "set-up", "identity", "directory", "filter", "exec"};
  static_assert(std::size(kNames) == static_cast<size_t>(Stage::kExec) + 1);
  return kNames[static_cast<size_t>(stage)];
}

tl::expected<UniqueFd, std::string> BrokerClient::Visit(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return Because("--broker-socket: the path is too long");
  path.copy(address.sun_path, path.size());
  UniqueFd visitor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (connect(visitor.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return visitor;
  return Because(fmt::format(
      "cannot reach the broker at {}: {}; is jobbroker running with --socket {} and --peer naming this user?", path,
      strerror(errno), path));
}

tl::expected<UniqueFd, std::string> BrokerClient::TakeHandOver(int visitor) {
  std::string buffer(1, '\0');
  std::vector<UniqueFd> descriptors;
  int flags = 0;
  const ssize_t size = ReceiveWithDescriptors(visitor, buffer, descriptors, flags);
  if (size == 1 && descriptors.size() == 1) return std::move(descriptors.front());
  return Because("the broker refused this process: its uid is not --peer's, or another jobserver is connected");
}

bool BrokerClient::HasRoom() {
  const int room = FirstNotForJobs();
  std::array<UniqueFd, 4 * kMaxDescriptors> some;
  return std::all_of(some.begin(), some.end(), [room](UniqueFd& fd) {
    fd.Reset(eventfd(0, EFD_CLOEXEC));
    return fd.IsOpen() && fd.Get() < room;
  });
}

BrokerClient::BrokerClient(EventLoop& loop, UniqueFd socket, BrokerEvents& events)
    : loop_(loop),
      socket_(std::move(socket)),
      events_(events),
      buffer_(kMaxMessageBytes, '\0'),
      room_(FirstNotForJobs()) {}

tl::expected<Welcome, std::string> BrokerClient::Greet() {
  Send(Encode(Hello{}));
  std::optional<Welcome> welcome;
  uint32_t jobs = 0;
  while (!welcome || jobs < welcome->job_count) {
    pollfd ready{socket_.Get(), POLLIN, 0};
    const int polled = poll(&ready, 1, kGreetWithinMs);
    if (polled == 0) return Because("the broker does not answer");
    if (polled < 0 && errno != EINTR) return Because(fmt::format("poll: {}", strerror(errno)));
    auto received = Receive();
    if (!received) return Because(received.error());
    if (!*received) continue;
    Received& message = **received;
    if (const Welcome* first = std::get_if<Welcome>(&message.reply)) {
      if (welcome || first->version != kProtocolVersion) return Because("the broker is of another version");
      welcome = *first;
      continue;
    }
    if (!welcome) return Because("the broker spoke before it said Welcome");
    jobs += std::holds_alternative<Job>(message.reply) ? 1U : 0U;
    Dispatch(message);
  }
  return *welcome;
}

bool BrokerClient::Attach() {
  attached_ = loop_.Watch(socket_.Get(), Interest(), [this] { Ready(); });
  return attached_;
}

tl::expected<std::optional<BrokerClient::Received>, std::string> BrokerClient::Receive() {
  std::vector<UniqueFd> descriptors;
  int flags = 0;
  const ssize_t size = ReceiveWithDescriptors(socket_.Get(), buffer_, descriptors, flags);
  if (size < 0 && errno == EAGAIN) return std::nullopt;
  if (size <= 0) return Because("the broker closed the connection");
  std::optional<Reply> reply;
  if ((flags & MSG_TRUNC) == 0) reply = Decode<Reply>(std::string_view(buffer_).substr(0, static_cast<size_t>(size)));
  const size_t expected = reply ? ExpectedDescriptors(*reply) : 0;
  // The control buffer has room for all that a message can carry: what is cut found no free descriptor here
  // (RLIMIT_NOFILE). That costs the one job, not the connection.
  const bool no_room = (flags & MSG_CTRUNC) != 0 || std::any_of(descriptors.begin(), descriptors.end(),
                                                                [this](const auto& fd) { return fd.Get() >= room_; });
  const bool lost = no_room && expected != 0;
  if (!reply || (descriptors.size() != expected && !lost)) {
    return Because("the broker sent something that is not in the protocol");
  }
  Received received{std::move(*reply), {}};
  if (lost) return received;
  std::move(descriptors.begin(), descriptors.end(), received.descriptors.begin());
  return received;
}

void BrokerClient::Dispatch(Received& received) {
  const Reply& reply = received.reply;
  if (const Job* job = std::get_if<Job>(&reply)) return events_.OnJob(*job, std::move(received.descriptors));
  if (const Started* started = std::get_if<Started>(&reply)) {
    return events_.OnStarted(*started, std::move(received.descriptors));
  }
  if (const Failed* failed = std::get_if<Failed>(&reply)) return events_.OnFailed(*failed);
  if (const Exited* exited = std::get_if<Exited>(&reply)) return events_.OnExited(*exited);
  if (std::holds_alternative<Pong>(reply)) {
    ponged_ = true;
    return;
  }
  if (const UsageIs* usage = std::get_if<UsageIs>(&reply)) return events_.OnUsage(*usage);
  if (const UserIs* user = std::get_if<UserIs>(&reply)) return events_.OnUser(*user);
  Drop("the broker said Welcome twice");
}

void BrokerClient::Ready() {
  Flush();
  while (socket_.IsOpen()) {
    auto received = Receive();
    if (!received) return Drop(received.error());
    if (!*received) return;
    Dispatch(**received);
  }
}

bool BrokerClient::TakePong() {
  if (!ponged_) Ready();
  return std::exchange(ponged_, false);
}

void BrokerClient::Send(std::string message) {
  if (!socket_.IsOpen()) return;
  outgoing_.push_back(std::move(message));
  if (outgoing_.size() == 1) Flush();
}

void BrokerClient::Flush() {
  const bool waited = !outgoing_.empty();
  while (!outgoing_.empty()) {
    const int error = SendMessage(socket_.Get(), outgoing_.front());
    if (error == EAGAIN) break;
    if (error != 0) return;  // the read that follows tells why
    outgoing_.pop_front();
  }
  if (attached_ && waited) loop_.Rearm(socket_.Get(), Interest());
}

uint32_t BrokerClient::Interest() const {
  constexpr uint32_t kRead = EPOLLIN, kReadAndWrite = EPOLLIN | EPOLLOUT;
  return outgoing_.empty() ? kRead : kReadAndWrite;
}

void BrokerClient::Drop(const std::string& why) {
  loop_.Unwatch(socket_.Get());
  socket_.Reset();
  outgoing_.clear();
  events_.OnBrokerGone(why);
}

}  // namespace jobworker
