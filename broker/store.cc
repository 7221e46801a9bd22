#include "broker/store.h"

#include <sys/un.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "common/message_socket.h"

namespace jobworker {
namespace {
// Looks at the message and leaves it there: it outlives this broker too. Not one of ours: nothing.
std::optional<StoredJob> Look(const UniqueFd& socket) {
  char text[1024];
  iovec body{text, sizeof(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(253 * sizeof(int))];  // the most there can be: SCM_MAX_FD
  msghdr header{nullptr, 0, &body, 1, control, sizeof(control), 0};
  const ssize_t size = recvmsg(socket.Get(), &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) return std::nullopt;
  const cmsghdr* const rights = CMSG_FIRSTHDR(&header);
  const bool any = rights != nullptr && rights->cmsg_type == SCM_RIGHTS;
  const auto* const first = reinterpret_cast<const int*>(control + CMSG_LEN(0));
  std::vector<UniqueFd> descriptors(first, first + (any ? (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0));
  // Then it is not the message that is wrong, and its job must not be lost.
  if ((header.msg_flags & MSG_CTRUNC) != 0) throw std::runtime_error("RLIMIT_NOFILE is too low for the stored jobs");
  const auto parcel = Decode<std::variant<Parcel>>({text, static_cast<size_t>(size)});
  if (!parcel) return std::nullopt;
  StoredJob job{std::get<Parcel>(*parcel), {}};
  if (descriptors.size() != kStdin + (job.Ended() ? 0 : 1)) return std::nullopt;
  if (!job.Ended()) job.child.pidfd = std::move(descriptors[kStdin]);
  job.child.descriptors = std::make_shared<JobDescriptors>();
  std::move(descriptors.begin(), descriptors.end(), job.child.descriptors->begin());
  return job;
}
}  // namespace

std::string Parcel::Name(bool ended) const {
  return job.key.user + "." + std::to_string(job.key.id) + (ended ? "+" : "");
}

Store::Store(const std::string& notify_socket, uint64_t watchdog_us) : watchdog_us_(watchdog_us) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (!notify_socket.starts_with('/') || notify_socket.size() >= sizeof(address.sun_path)) return;
  notify_socket.copy(address.sun_path, notify_socket.size());
  socket_.Reset(OrThrow(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket"));
  const auto* const at = reinterpret_cast<const sockaddr*>(&address);
  OrThrow(connect(socket_.Get(), at, sizeof(address)), "connect to $NOTIFY_SOCKET");
}

void Store::Tell(const std::string& state, std::span<const int> descriptors) const {
  int error = IsOpen() ? EINTR : 0;  // by the heartbeat
  while (error == EINTR) error = SendMessage(socket_.Get(), state, descriptors, 0);
  if (error != 0) (void)fprintf(stderr, "jobbroker: systemd does not take %s: %s\n", state.c_str(), strerror(error));
}

void Store::Keep(const StoredJob& job) const try {
  if (!IsOpen()) return;
  std::vector<int> numbers;
  for (size_t i = 0; i < kStdin; ++i) numbers.push_back((*job.child.descriptors)[i].Get());
  if (!job.Ended()) numbers.push_back(job.child.pidfd.Get());
  const auto [kept, sender] = MessageSocketPair();
  errno = SendMessage(sender.Get(), Encode(static_cast<const Parcel&>(job)), numbers);
  OrThrow(errno == 0 ? 0 : -1, "send");
  Tell("FDSTORE=1\nFDPOLL=0\nFDNAME=" + job.Name(job.Ended()), std::array{kept.Get()});
} catch (const std::system_error& error) {
  (void)fprintf(stderr, "jobbroker: %s would not outlive the broker: %s\n", job.Name(false).c_str(), error.what());
}

StoredJobs Store::TakeBack(uint64_t count, std::string names, const Users& users) const {
  StoredJobs jobs;
  for (int fd = 3; fd < 3 + static_cast<int>(count); ++fd) {
    const std::string name = names.substr(0, names.find(':'));
    names.erase(0, name.size() + 1);
    std::optional<StoredJob> job = Look(UniqueFd(fd));
    if (job && job->Name(job->Ended()) == name && users.contains(job->job.key.user)) {
      // The one of its end takes the place of the other, which a broker that died may not have dropped.
      StoredJob& known = jobs[job->job.key];
      if (!known.Ended()) known = std::move(*job);
    } else {
      (void)fprintf(stderr, "jobbroker: the store has a stray \"%s\"\n", name.c_str());
      Drop(name);
    }
  }
  return jobs;
}
}  // namespace jobworker
