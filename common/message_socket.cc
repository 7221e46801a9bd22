#include "common/message_socket.h"

#include <sys/socket.h>

#include <cstring>

#include "common/broker_protocol.h"

namespace jobworker {
std::pair<UniqueFd, UniqueFd> MessageSocketPair() {
  int ends[2];
  OrThrow(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

int SendMessage(int socket, std::string_view message, std::span<const int> descriptors) {
  iovec body{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  const size_t bytes = descriptors.size() * sizeof(int);
  msghdr header{nullptr, 0, &body, 1, nullptr, 0, 0};
  if (descriptors.size() > kMaxDescriptors) return EINVAL;
  if (bytes != 0) {
    const cmsghdr rights{CMSG_LEN(bytes), SOL_SOCKET, SCM_RIGHTS};
    std::memcpy(control, &rights, sizeof(rights));
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(bytes);
    std::memcpy(control + CMSG_LEN(0), descriptors.data(), bytes);
  }
  return sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? errno : 0;
}

Receive ReceiveMessage(int socket, std::span<char> buffer, std::string_view& message) {
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
