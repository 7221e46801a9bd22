#include "tests/boundary/front_end.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstring>

namespace jobworker {

namespace {

constexpr size_t kMostDescriptors = 253;  // SCM_MAX_FD: more the kernel does not send at once

// recv(2) with all the descriptors there are; -1 and 0 as in recvmsg.
ssize_t ReceiveWithDescriptors(int socket, std::string& bytes, std::vector<UniqueFd>& descriptors) {
  bytes.resize(2 * kMaxMessageBytes);
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))];
  iovec body{bytes.data(), bytes.size()};
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t size = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  bytes.resize(size > 0 ? static_cast<size_t>(size) : 0);
  const cmsghdr* rights = size > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  if (rights == nullptr) return size;
  std::vector<int> numbers((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
  std::memcpy(numbers.data(), CMSG_DATA(rights), numbers.size() * sizeof(int));
  for (const int number : numbers) descriptors.emplace_back(number);
  return size;
}

}  // namespace

UniqueFd FrontEnd::Meet(UniqueFd visitor) {
  std::string greeting;
  std::vector<UniqueFd> descriptors;
  if (!visitor.IsOpen() || !WaitFor(visitor.Get(), POLLIN)) return {};
  ssize_t size = ReceiveWithDescriptors(visitor.Get(), greeting, descriptors);
  // The broker closed without reading what this side said; what it said itself comes after that news.
  if (size < 0 && errno == ECONNRESET) size = ReceiveWithDescriptors(visitor.Get(), greeting, descriptors);
  return size == 1 && descriptors.size() == 1 ? std::move(descriptors[0]) : UniqueFd();
}

int FrontEnd::SendRaw(std::string_view bytes, const std::vector<int>& descriptors) const {
  iovec body{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMostDescriptors * sizeof(int))] = {};
  if (!descriptors.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size() * sizeof(int));
  }
  return sendmsg(fd(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

void FrontEnd::SendWaiting(const std::string& bytes) const {
  int failed = SendRaw(bytes);
  while (failed == EAGAIN && WaitFor(fd(), POLLOUT)) failed = SendRaw(bytes);
  EXPECT_EQ(failed, 0) << strerror(failed);
}

Welcome FrontEnd::Greet() {
  Send(Hello{});
  const auto welcome = Await<Welcome>();
  EXPECT_TRUE(pending_.empty()) << "it comes after what was meant for another front end";
  held_.clear();
  starting_.clear();
  descriptors_.clear();
  const auto is_job = [](const Reply& reply) { return std::holds_alternative<Job>(reply); };
  for (uint32_t i = 0; i < welcome.job_count; ++i) {
    Received job = Take(is_job, Job{});
    const Job& replayed = std::get<Job>(job.reply);
    (replayed.starting != 0 ? starting_ : held_).push_back(replayed.key);
    descriptors_[replayed.key] = std::move(job.descriptors);
  }
  return welcome;
}

std::optional<Received> FrontEnd::ReceiveOne() {
  std::string bytes;
  Received received;
  if (!IsOpen() || !WaitFor(fd(), POLLIN)) return std::nullopt;
  if (ReceiveWithDescriptors(fd(), bytes, received.descriptors) <= 0) return std::nullopt;
  std::optional<Reply> reply = Decode<Reply>(bytes);
  EXPECT_TRUE(reply.has_value()) << "a reply of " << bytes.size() << " bytes that is none";
  if (!reply) return std::nullopt;
  EXPECT_EQ(received.descriptors.size(),
            std::visit([](const auto& message) { return jobworker::DescriptorsOf(message); }, *reply));
  received.reply = std::move(*reply);
  return received;
}

Received FrontEnd::Take(const std::function<bool(const Reply&)>& wanted, Reply fallback) {
  for (auto at = pending_.begin(); at != pending_.end(); ++at) {
    if (!wanted(at->reply)) continue;
    Received found = std::move(*at);
    pending_.erase(at);
    return found;
  }
  while (std::optional<Received> received = ReceiveOne()) {
    if (wanted(received->reply)) return std::move(*received);
    pending_.push_back(std::move(*received));
  }
  ADD_FAILURE() << "the broker did not answer with a " << fallback.index();
  return {std::move(fallback), {}};
}

void FrontEnd::AwaitOutcome(const JobKey& key) {
  const auto wanted = [&key](const Reply& reply) {
    const auto* started = std::get_if<Started>(&reply);
    const auto* failed = std::get_if<Failed>(&reply);
    return (started != nullptr && started->key == key) || (failed != nullptr && failed->key == key);
  };
  (void)Take(wanted, Started{});
}

bool FrontEnd::AwaitClose() {
  char byte;
  while (WaitFor(fd(), POLLIN)) {
    const ssize_t size = recv(fd(), &byte, 1, MSG_DONTWAIT);
    if (size == 0 || (size < 0 && errno == ECONNRESET)) return true;
    if (size < 0) return false;
  }
  return false;
}

std::string ReadAll(int fd) {
  std::string text;
  char part[65536];
  while (WaitFor(fd, POLLIN)) {
    const ssize_t size = read(fd, part, sizeof(part));
    if (size == 0 || (size < 0 && errno != EAGAIN)) break;
    if (size > 0) text.append(part, static_cast<size_t>(size));
  }
  return text;
}

}  // namespace jobworker
