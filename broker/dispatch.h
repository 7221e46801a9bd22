// Which request is allowed when: the whole permission of the front end, as constant data.
#pragma once
#include "common/broker_protocol.h"

namespace jobworker {
// kNewPeer is a connection before its Hello. The others are the state of the job that a request names: kStarting from
// clone to exec, kRunning, kEnding from the end of its main process until its cgroup is removed, kEnded until Forget.
enum class State : uint8_t { kNewPeer, kAbsent, kStarting, kRunning, kEnding, kEnded };

// [state][request], in the order of both enums. What is not allowed costs the connection; there is no third verdict.
inline constexpr bool kAllowed[6][std::variant_size_v<Request>] = {
    // Hello, Ping, Start, Signal, Kill, Usage, Forget, WhoIs
    {true, false, false, false, false, false, false, false},  // kNewPeer
    {false, true, true, false, false, false, false, true},    // kAbsent
    {false, true, false, true, true, true, false, true},      // kStarting
    {false, true, false, true, true, true, false, true},      // kRunning
    {false, true, false, true, true, true, false, true},      // kEnding
    {false, true, false, true, true, true, true, true},       // kEnded
};
constexpr bool IsAllowed(State state, RequestType request) {
  return kAllowed[static_cast<size_t>(state)][static_cast<size_t>(request)];
}
}  // namespace jobworker
