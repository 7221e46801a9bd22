// Ctrl-C while a job that was started here is followed.
#pragma once
#include <chrono>
#include <string>

#include "cmd/cli_session.h"

namespace jobworker {

// What each Ctrl-C means: the first sends SIGINT, a second one within 2 seconds of it stops the job. One more, or one
// while there is no connection, or after a call that failed, leaves the job to itself.
class InterruptSteps {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Step { kSignal, kStop, kLeave };
  Step Next(Clock::time_point now, bool connected);
  void Failed() { last_ = Step::kLeave; }

 private:
  Step last_ = Step::kSignal;
  Clock::time_point signalled_ = Clock::time_point::min();
};

// Ctrl-C does that from now on. The session must live as long as the process.
void PassInterrupts(Session& session, const std::string& id);

}  // namespace jobworker
