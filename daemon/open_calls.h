// Calls that were let in, for as long as they would be: each ends when what decides has changed against it, and when
// the caller's certificate, or the list of revoked ones, runs out.
#pragma once
#include <atomic>
#include <ctime>
#include <limits>

#include "common/unique_fd.h"
#include "daemon/event_loop.h"
#include "daemon/gate.h"
#include "daemon/rpc_server.h"

namespace jobworker {

class OpenCalls {
 public:
  // Both outlive it. Throws std::system_error when the kernel gives no timerfd.
  OpenCalls(EventLoop& loop, const Gate& gate);
  // Of this server, which has not started yet.
  void Of(RpcServer& server) { server_ = &server; }

  // The gate has let in a call of theirs. From any thread.
  void LetIn(const Identity& caller);
  // Ends those that would not be let in any more. On the loop's thread.
  void Recheck();

 private:
  static constexpr time_t kNever = std::numeric_limits<time_t>::max();
  void RecheckAt(time_t when);

  EventLoop& loop_;
  const Gate& gate_;
  RpcServer* server_ = nullptr;
  // Of the wall clock, by which certificates go: that one may be set, and goes on while the machine sleeps.
  const UniqueFd timer_;
  std::atomic<time_t> due_ = kNever;
};

}  // namespace jobworker
