// One datagram on a SOCK_SEQPACKET socket (unix(7)). Receiving descriptors is the front end's business and lives in
// daemon/: the receiving code here gives the kernel no room for any, so none is ever installed.
#pragma once
#include <span>
#include <string_view>

#include "common/unique_fd.h"

namespace jobworker {
// Throws std::system_error.
std::pair<UniqueFd, UniqueFd> MessageSocketPair();

// Does not block. The descriptors, at most kMaxDescriptors, stay the caller's. Returns 0 or an errno; EAGAIN: the
// peer does not read.
int SendMessage(int socket, std::string_view message, std::span<const int> descriptors = {});

enum class Receive { kMessage, kNothingYet, kClosed, kViolation };
// Does not block. `message` becomes the part of `buffer` that was filled. kClosed: the peer is gone, or sent an empty
// datagram. kViolation: longer than the buffer, or with descriptors (which the kernel has dropped).
Receive ReceiveMessage(int socket, std::span<char> buffer, std::string_view& message);
}  // namespace jobworker
