#include "broker/store.h"

#include <sys/un.h>

#include <algorithm>
#include <cstdio>

#include "common/message_socket.h"

namespace jobworker {
namespace {
// Looks at the message and leaves it there: it outlives this broker too. Not one of ours: nothing.
std::optional<StoredJob> Look(const UniqueFd& socket) {
  char text[1024];
  iovec body{text, sizeof(text)};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSent * sizeof(int))];
  msghdr header{nullptr, 0, &body, 1, control, sizeof(control), 0};
  const ssize_t size = recvmsg(socket.Get(), &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  StoredJob job;
  const cmsghdr* const rights = size > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
  for (size_t at = CMSG_LEN(0); rights != nullptr && at < rights->cmsg_len; at += sizeof(int)) {
    int fd = -1;
    std::memcpy(&fd, control + at, sizeof(fd));
    job.descriptors.emplace_back(fd);
  }
  const auto parcel = Decode<std::variant<Parcel>>({text, static_cast<size_t>(std::max<ssize_t>(size, 0))});
  if (!parcel || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return std::nullopt;
  job.parcel = std::get<Parcel>(*parcel);
  const size_t expected = job.parcel.Ended() ? kStdin : kStdin + 2;
  return job.descriptors.size() == expected ? std::optional(std::move(job)) : std::nullopt;
}
}  // namespace

std::string Parcel::Name(bool ended) const {
  return job.key.user + "." + std::to_string(job.key.id) + (ended ? ".end" : "");
}

Store::Store(const std::string& notify_socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t size = notify_socket.size();
  if (size < 2 || size >= sizeof(address.sun_path) || (notify_socket[0] != '/' && notify_socket[0] != '@')) return;
  notify_socket.copy(address.sun_path, size);
  if (notify_socket[0] == '@') address.sun_path[0] = '\0';
  socket_.Reset(OrThrow(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket"));
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size);
  OrThrow(connect(socket_.Get(), reinterpret_cast<const sockaddr*>(&address), length), "connect to $NOTIFY_SOCKET");
}

void Store::Tell(const std::string& state, std::span<const int> descriptors) const {
  int error = EINTR;  // by the heartbeat
  while (IsOpen() && error == EINTR) error = SendMessage(socket_.Get(), state, descriptors, 0);
  if (IsOpen() && error != 0) (void)fprintf(stderr, "jobbroker: systemd does not take %s\n", state.c_str());
}

void Store::Keep(const Parcel& parcel, std::span<const int> descriptors) const {
  if (!IsOpen()) return;
  try {
    const auto [kept, sender] = MessageSocketPair();
    const int error = SendMessage(sender.Get(), Encode(parcel), descriptors);
    if (error != 0) throw std::system_error(error, std::generic_category());
    Tell("FDSTORE=1\nFDPOLL=0\nFDNAME=" + parcel.Name(parcel.Ended()), std::array{kept.Get()});
  } catch (const std::system_error& error) {
    (void)fprintf(stderr, "jobbroker: %s would not outlive the broker: %s\n", parcel.Name(parcel.Ended()).c_str(),
                  error.what());
  }
}

void Store::Drop(const std::string& name) const { Tell("FDSTOREREMOVE=1\nFDNAME=" + name); }

StoredJobs Store::TakeBack(uint64_t count, std::string names) const {
  StoredJobs jobs;
  for (int fd = 3; fd < 3 + static_cast<int>(count); ++fd) {
    const std::string name = names.substr(0, names.find(':'));
    names.erase(0, name.size() + 1);
    std::optional<StoredJob> job = Look(UniqueFd(fd));
    if (job && job->parcel.Name(job->parcel.Ended()) == name) {
      // The one of its end takes the place of the other, which a broker that died may not have dropped.
      StoredJob& known = jobs[job->parcel.job.key];
      if (!known.parcel.Ended()) known = std::move(*job);
    } else {
      (void)fprintf(stderr, "jobbroker: the store has a stray \"%s\"\n", name.c_str());
      Drop(name);
    }
  }
  return jobs;
}
}  // namespace jobworker
