// One datagram on a SOCK_SEQPACKET socket (unix(7)). Receiving descriptors is the front end's business and lives in
// daemon/: the receiving code here gives the kernel no room for any, so none is ever installed.
#pragma once
#include <sys/socket.h>

#include <cstring>
#include <span>
#include <string_view>

#include "common/unique_fd.h"

namespace jobworker {
inline constexpr size_t kMaxSent = 5;  // descriptors in one message

// Throws std::system_error.
inline std::pair<UniqueFd, UniqueFd> MessageSocketPair() {
  int ends[2];
  OrThrow(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// Does not block, unless told to with `flags` 0. The descriptors stay the caller's. Returns 0 or an errno; EAGAIN: the
// peer does not read.
inline int SendMessage(int socket, std::string_view message, std::span<const int> descriptors = {},
                       int flags = MSG_DONTWAIT) {
  iovec body{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxSent * sizeof(int))] = {};
  msghdr header{nullptr, 0, &body, 1, nullptr, 0, 0};
  if (descriptors.size() > kMaxSent) return EINVAL;
  if (!descriptors.empty()) {
    const cmsghdr rights{CMSG_LEN(descriptors.size_bytes()), SOL_SOCKET, SCM_RIGHTS};
    header.msg_control = std::memcpy(control, &rights, sizeof(rights));
    header.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    std::memcpy(control + CMSG_LEN(0), descriptors.data(), descriptors.size_bytes());
  }
  return sendmsg(socket, &header, MSG_NOSIGNAL | flags) < 0 ? errno : 0;
}

enum class Receive { kMessage, kNothingYet, kClosed, kViolation };
// Does not block. `message` becomes the part of `buffer` that was filled. kClosed: the peer is gone, or sent an empty
// datagram. kViolation: longer than the buffer, or with descriptors (which the kernel has dropped).
inline Receive ReceiveMessage(int socket, std::span<char> buffer, std::string_view& message) {
  iovec body{buffer.data(), buffer.size()};
  msghdr header{nullptr, 0, &body, 1, nullptr, 0, 0};
  const ssize_t received = recvmsg(socket, &header, MSG_DONTWAIT);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return Receive::kNothingYet;
  if (received <= 0) return Receive::kClosed;
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return Receive::kViolation;
  message = {buffer.data(), static_cast<size_t>(received)};
  return Receive::kMessage;
}
}  // namespace jobworker
