// One datagram out or in on a SOCK_SEQPACKET socket (unix(7)). Receiving descriptors is the front end's business
// alone and lives in daemon/: this code passes the kernel no control buffer, so none is ever installed.
#pragma once
#include <initializer_list>
#include <span>
#include <string_view>

#include "common/result.h"
#include "common/unique_fd.h"

namespace jobworker {

// A connected pair, CLOEXEC, with room for the largest message.
Result<std::pair<UniqueFd, UniqueFd>> MessageSocketPair();

// Sends without blocking and without SIGPIPE. The descriptors stay the caller's. error().code is EAGAIN when the peer
// does not read.
Status SendMessage(int socket, std::string_view message, std::initializer_list<int> descriptors = {});

enum class Receive { kMessage, kNothingYet, kClosed, kViolation };

// Receives one datagram into `buffer` without blocking and cuts `message` to it. kClosed: the peer is gone, or sent
// an empty datagram. kViolation: longer than the buffer, or with descriptors (which the kernel has already dropped).
Receive ReceiveMessage(int socket, std::span<char> buffer, std::string_view& message);

}  // namespace jobworker
