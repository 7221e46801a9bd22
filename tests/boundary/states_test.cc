// Every request in every state, against the table in broker/dispatch.h.
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include "broker/dispatch.h"
#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

using Cell = std::tuple<State, RequestType>;

class States : public BoundaryTest, public testing::WithParamInterface<Cell> {
 protected:
  static JobKey Key() { return Alice(2); }

  void TearDown() override {
    if (frozen_) Freeze('0');
    if (held_ > 0) ptrace(PTRACE_DETACH, held_, nullptr, nullptr);
    BoundaryTest::TearDown();
  }

  void Reach(State state) {
    switch (state) {
      case State::kNewPeer:
        front().Close();
        front() = FrontEnd(broker_);
        return;
      case State::kAbsent: return;
      case State::kStarting:
        // Born frozen, it does not come to exec.
        Freeze('1');
        front().Send(StartOf(Key(), {"sleep", "infinity"}));
        return Sync();
      case State::kRunning: (void)Begin(StartOf(Key(), {"sleep", "infinity"})); return;
      case State::kEnding: return HoldAtEnd();
      case State::kEnded:
        (void)Begin(StartOf(Key(), {"true"}));
        (void)front().Await<Exited>(Key());
        return;
    }
  }

  void Freeze(char value) {
    std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << value;
    frozen_ = value == '1';
  }

  // Its main process ends and another one of it cannot: a tracer holds it at its exit.
  void HoldAtEnd() {
    const std::vector<UniqueFd> output = Begin(Shell(Key(), "sleep infinity & echo $!; exec sleep infinity"));
    ASSERT_EQ(output.size(), size_t{kStdin});
    char line[32] = {};
    ASSERT_TRUE(WaitFor(output[0].Get(), POLLIN));
    ASSERT_GT(read(output[0].Get(), line, sizeof(line) - 1), 0);
    held_ = std::stoi(line);
    ASSERT_EQ(ptrace(PTRACE_SEIZE, held_, nullptr, PTRACE_O_TRACEEXIT), 0) << strerror(errno);
    front().Send(Signal{Key(), SIGKILL});
    int status = 0;
    ASSERT_EQ(waitpid(held_, &status, __WALL), held_);
    ASSERT_EQ(status >> 8, SIGTRAP | (PTRACE_EVENT_EXIT << 8));
  }

  std::string Datagram(RequestType type) const {
    switch (type) {
      case RequestType::kHello: return Encode(Hello{});
      case RequestType::kPing: return Encode(Ping{});
      case RequestType::kWhoIs: return Encode(WhoIs{Key().user});
      case RequestType::kStart: return Encode(StartOf(Key(), {"true"}));
      case RequestType::kSignal: return Encode(jobworker::Signal{Key(), SIGCONT});
      case RequestType::kKill: return Encode(Kill{Key()});
      case RequestType::kUsage: return Encode(UsageRequest{Key()});
      case RequestType::kForget: return Encode(Forget{Key()});
    }
    return {};
  }

  // What an allowed request does, beside leaving the connection open.
  void ExpectAllowed(State state, RequestType type) {
    switch (type) {
      case RequestType::kHello: (void)front().Await<Welcome>(); return;
      case RequestType::kPing: (void)front().Await<Pong>(); return;
      case RequestType::kWhoIs: EXPECT_EQ(front().Await<UserIs>().known, 1); return;
      case RequestType::kStart: (void)front().Await<Started>(Key()); return;
      case RequestType::kUsage: (void)front().Await<UsageIs>(Key()); return;
      case RequestType::kForget:
        Sync();
        Run(StartOf(Key(), {"true"}));
        return;
      default: break;
    }
    if (state == State::kEnded) {
      const auto failed = front().Await<Failed>(Key());
      EXPECT_EQ(failed.request, type);
      EXPECT_EQ(failed.error, static_cast<uint32_t>(ESRCH));
    } else if (state == State::kEnding && type == RequestType::kSignal) {
      EXPECT_EQ(front().Await<Failed>(Key()).error, static_cast<uint32_t>(ESRCH));
    } else {
      Sync();
    }
  }

  // The job is what it was, or is not there, as before.
  void ExpectUntouched(State state) {
    Reconnect();
    const bool there = state != State::kNewPeer && state != State::kAbsent && state != State::kStarting;
    EXPECT_EQ(front().held().size(), there ? 2U : 1U);
    EXPECT_EQ(front().starting().size(), state == State::kStarting ? 1U : 0U);
    if (state == State::kRunning || state == State::kStarting) {
      EXPECT_EQ(ProcessesIn(Leaf(Key())).size(), 1U);
    }
    if (state == State::kEnded) {
      EXPECT_EQ(front().Await<Exited>(Key()).value, 0);
    }
  }

 private:
  bool frozen_ = false;
  pid_t held_ = 0;
};

TEST_P(States, IsJudgedByTheTable) {
  const auto [state, type] = GetParam();
  Reach(state);
  if (HasFatalFailure()) return;
  EXPECT_EQ(front().SendRaw(Datagram(type)), 0);
  if (IsAllowed(state, type)) return ExpectAllowed(state, type);
  EXPECT_TRUE(front().AwaitClose());
  ExpectUntouched(state);
}

std::string NameOf(const testing::TestParamInfo<Cell>& info) {
  constexpr const char* kStateNames[] = {"NewPeer", "Absent", "Starting", "Running", "Ending", "Ended"};
  constexpr const char* kRequestNames[] = {"Hello", "Ping", "Start", "Signal", "Kill", "Usage", "Forget", "WhoIs"};
  return std::string(kStateNames[static_cast<size_t>(std::get<0>(info.param))]) + "_" +
         kRequestNames[static_cast<size_t>(std::get<1>(info.param))];
}

INSTANTIATE_TEST_SUITE_P(All, States,
                         testing::Combine(testing::Values(State::kNewPeer, State::kAbsent, State::kStarting,
                                                          State::kRunning, State::kEnding, State::kEnded),
                                          testing::Values(RequestType::kHello, RequestType::kPing, RequestType::kStart,
                                                          RequestType::kSignal, RequestType::kKill, RequestType::kUsage,
                                                          RequestType::kForget, RequestType::kWhoIs)),
                         NameOf);

}  // namespace
}  // namespace jobworker
