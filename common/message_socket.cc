#include "common/message_socket.h"

#include <sys/socket.h>

#include <cstring>

#include "common/broker_protocol.h"

namespace jobworker {

Result<std::pair<UniqueFd, UniqueFd>> MessageSocketPair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return ErrnoError("socketpair");
  std::pair<UniqueFd, UniqueFd> pair{UniqueFd(ends[0]), UniqueFd(ends[1])};
  return pair;
}

Status SendMessage(int socket, std::string_view message, std::initializer_list<int> descriptors) {
  iovec body{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kOutputDescriptors * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  if (descriptors.size() != 0) {
    if (descriptors.size() > kOutputDescriptors) return Error{EINVAL, "too many descriptors for one message"};
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), descriptors.begin(), descriptors.size() * sizeof(int));
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return ErrnoError("sendmsg");
  return Done{};
}

Receive ReceiveMessage(int socket, std::span<char> buffer, std::string_view& message) {
  iovec body{buffer.data(), buffer.size()};
  msghdr header{};
  header.msg_iov = &body;
  header.msg_iovlen = 1;
  const ssize_t received = recvmsg(socket, &header, MSG_DONTWAIT);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return Receive::kNothingYet;
  if (received <= 0) return Receive::kClosed;
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return Receive::kViolation;
  message = {buffer.data(), static_cast<size_t>(received)};
  return Receive::kMessage;
}

}  // namespace jobworker
