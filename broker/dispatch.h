// Which request is allowed when: the whole permission of the front end, as constant data.
#pragma once
#include <array>

#include "common/broker_protocol.h"

namespace jobworker {
// kNewPeer is a connection before its Hello. The others are the state of the job that a request names: kStarting from
// clone to exec, kRunning, kEnding from the end of its main process until its cgroup is removed, kEnded until Forget.
enum class State : uint8_t { kNewPeer, kAbsent, kStarting, kRunning, kEnding, kEnded };
inline constexpr size_t kStates = 6;
enum class Verdict : uint8_t { kViolation, kAllowed };

// [state][request], in the order of both enums. A violation costs the connection; there is no third verdict.
inline constexpr auto kPermissions = [] {
  constexpr Verdict no = Verdict::kViolation, ok = Verdict::kAllowed;
  return std::array{
      //         Hello Ping Start Signal Kill Usage Forget
      std::array{ok, no, no, no, no, no, no},  // kNewPeer
      std::array{no, ok, ok, no, no, no, no},  // kAbsent
      std::array{no, ok, no, ok, ok, ok, no},  // kStarting
      std::array{no, ok, no, ok, ok, ok, no},  // kRunning
      std::array{no, ok, no, ok, ok, ok, no},  // kEnding
      std::array{no, ok, no, ok, ok, ok, ok},  // kEnded
  };
}();
static_assert(kPermissions.size() == kStates && kPermissions[0].size() == std::variant_size_v<Request>);

constexpr Verdict Judge(State state, RequestType request) {
  return kPermissions.at(static_cast<size_t>(state)).at(static_cast<size_t>(request));
}
}  // namespace jobworker
