// The kernel says no, at every step of a start: that start fails, nothing is left of it, the next one works.
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <random>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

struct Fault {
  const char* inject;  // for strace -e inject=
  Stage stage;
  int error;  // 0: whatever it is
};

class Faults : public BoundaryTest, public testing::WithParamInterface<Fault> {
 protected:
  void SetUp() override {
    if (access("/usr/bin/strace", X_OK) != 0) GTEST_SKIP() << "needs strace";
    BoundaryTest::SetUp();
  }
  void Inject(const std::string& fault) {
    const std::string call = fault.substr(0, fault.find(':'));
    const fs::path log = broker_.directory() / "strace";
    fs::remove(log);
    fs::remove(Trace());
    strace_ = Process({"strace", "-f", "-o", Trace(), "-e", "trace=" + call, "-e", "inject=" + fault, "-p",
                       std::to_string(broker_pid())},
                      log);
    ASSERT_TRUE(WaitForText(log, "attached"));
  }
  [[nodiscard]] fs::path Trace() const { return broker_.directory() / "trace"; }
  void StopInjecting() {
    strace_.Signal(SIGINT);
    (void)strace_.Wait();
  }
  void TearDown() override {
    StopInjecting();
    BoundaryTest::TearDown();
  }

 private:
  Process strace_;
};

TEST_P(Faults, FailTheOneStart) {
  const Fault& fault = GetParam();
  const fs::path ran = broker_.work("alice") / "ran";
  Inject(fault.inject);
  front().Send(StartOf(Alice(2), {"touch", ran}));
  const auto failed = front().Await<Failed>(Alice(2));
  EXPECT_EQ(failed.request, RequestType::kStart);
  EXPECT_EQ(failed.stage, fault.stage);
  EXPECT_TRUE(fault.error == 0 || failed.error == static_cast<uint32_t>(fault.error)) << failed.error;
  StopInjecting();
  EXPECT_FALSE(fs::exists(ran));
  EXPECT_EQ(Run(StartOf(Alice(2), {"touch", ran})).exited.value, 0);
  EXPECT_TRUE(fs::exists(ran));
}

std::string NameOf(const testing::TestParamInfo<Fault>& info) {
  std::string name = info.param.inject;
  for (char& c : name) c = isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    InTheBroker, Faults,
    testing::Values(
        Fault{"mkdirat:error=ENOSPC", Stage::kCgroup, ENOSPC}, Fault{"mkdirat:error=EAGAIN", Stage::kCgroup, EAGAIN},
        Fault{"openat:error=ENFILE:when=1", Stage::kCgroup, ENFILE},
        Fault{"openat:error=ENFILE:when=2", Stage::kCgroup, ENFILE},
        Fault{"openat:error=ENFILE:when=3", Stage::kCgroup, ENFILE}, Fault{"pipe2:error=EMFILE", Stage::kPipe, EMFILE},
        Fault{"pipe2:error=EMFILE:when=2", Stage::kPipe, EMFILE},
        Fault{"pipe2:error=ENFILE:when=3", Stage::kPipe, ENFILE}, Fault{"fchmod:error=EPERM", Stage::kPipe, EPERM},
        Fault{"fcntl:error=EMFILE:when=1", Stage::kLimits, EMFILE},
        Fault{"fcntl:error=EMFILE:when=2", Stage::kLimits, EMFILE},
        Fault{"fcntl:error=EMFILE:when=3", Stage::kLimits, EMFILE},
        Fault{"fcntl:error=EINVAL:when=4", Stage::kPipe, EINVAL},
        Fault{"fcntl:error=EMFILE:when=5", Stage::kPipe, EMFILE},
        Fault{"fcntl:error=EMFILE:when=11", Stage::kPipe, EMFILE},
        Fault{"fcntl:error=EMFILE:when=12", Stage::kPipe, EMFILE},
        Fault{"fcntl:error=EMFILE:when=13", Stage::kPipe, EMFILE},
        Fault{"memfd_create:error=EMFILE", Stage::kPipe, EMFILE},
        Fault{"memfd_create:error=ENFILE:when=2", Stage::kPipe, ENFILE},
        Fault{"pwrite64:error=ENOSPC", Stage::kPipe, ENOSPC}, Fault{"pwrite64:retval=7", Stage::kPipe, ENOSPC},
        Fault{"clone3:error=EAGAIN", Stage::kClone, EAGAIN}, Fault{"clone3:error=ENOMEM", Stage::kClone, ENOMEM},
        Fault{"clone3:error=EBUSY", Stage::kClone, EBUSY}, Fault{"clone3:error=ENODEV", Stage::kClone, ENODEV}),
    NameOf);

// retval=0: the call says that it worked, and did nothing.
INSTANTIATE_TEST_SUITE_P(
    InTheChild, Faults,
    testing::Values(
        Fault{"setsid:error=EPERM", Stage::kSetUp, EPERM}, Fault{"dup2:error=EBUSY", Stage::kSetUp, EBUSY},
        Fault{"close_range:error=ENOMEM:when=1", Stage::kSetUp, ENOMEM},
        Fault{"close_range:error=EINVAL:when=2", Stage::kSetUp, EINVAL},
        Fault{"write:error=EAGAIN:when=1", Stage::kSetUp, EAGAIN}, Fault{"prlimit64:error=EPERM", Stage::kSetUp, EPERM},
        Fault{"prctl:error=EPERM", Stage::kIdentity, EPERM}, Fault{"setgroups:error=EPERM", Stage::kIdentity, EPERM},
        Fault{"setgroups:retval=0", Stage::kIdentity, 0}, Fault{"setresgid:error=EPERM", Stage::kIdentity, EPERM},
        Fault{"setresgid:retval=0", Stage::kIdentity, 0}, Fault{"setresuid:error=EAGAIN", Stage::kIdentity, EAGAIN},
        Fault{"setresuid:retval=0", Stage::kIdentity, 0}, Fault{"getresuid:error=EFAULT", Stage::kIdentity, EFAULT},
        Fault{"getresgid:error=EFAULT", Stage::kIdentity, EFAULT}, Fault{"capset:error=EPERM", Stage::kIdentity, EPERM},
        Fault{"chdir:error=EACCES", Stage::kDirectory, EACCES}, Fault{"execve:error=ENOMEM", Stage::kExec, ENOMEM}),
    NameOf);

using OtherFaults = Faults;
INSTANTIATE_TEST_SUITE_P(One, OtherFaults, testing::Values(Fault{"own", Stage::kUser, 0}), NameOf);

TEST_P(OtherFaults, AKillThatTheKernelRefusesIsReportedAndCanBeAskedAgain) {
  (void)Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  Inject("write:error=EBUSY");
  front().Send(Kill{Alice(2)});
  const auto failed = front().Await<Failed>(Alice(2));
  EXPECT_EQ(failed.stage, Stage::kKill);
  EXPECT_EQ(failed.error, static_cast<uint32_t>(EBUSY));
  StopInjecting();
  front().Send(Kill{Alice(2)});
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
}

// A job that opens all that the machine has must not be the one that cannot be ended.
TEST_P(OtherFaults, AnEndNeedsNoDescriptor) {
  for (const bool by_itself : {true, false}) {
    const auto output = Begin(Shell(Alice(2), "sleep infinity & echo; exec sleep infinity"));
    ASSERT_TRUE(WaitFor(output[kStdout].Get(), POLLIN));
    const std::vector<pid_t> mine = ChildrenOf(broker_pid()), all = ProcessesIn(Leaf(Alice(2)));
    ASSERT_EQ(all.size(), 2U);
    const auto main = std::find_first_of(all.begin(), all.end(), mine.begin(), mine.end());
    ASSERT_NE(main, all.end());
    Inject("openat:error=ENFILE");
    if (by_itself) {
      EXPECT_EQ(kill(*main, SIGTERM), 0);
    } else {
      front().Send(Kill{Alice(2)});
    }
    EXPECT_EQ(Finish(Alice(2)).value, by_itself ? SIGTERM : SIGKILL);
    StopInjecting();
  }
}

// As on a kernel before Linux 6.3.
TEST_P(OtherFaults, AKernelWithoutTheFlagForJournalsMakesThemWithoutIt) {
  Inject("memfd_create:error=EINVAL:when=1+2");
  EXPECT_EQ(Run(StartOf(Alice(2), {"true"})).exited.value, 0);
}

TEST_P(OtherFaults, AReplyThatFindsNoRoomIsSentLater) {
  Inject("sendmsg:error=EAGAIN:when=1+2");
  for (int i = 0; i < 20; ++i) Sync();
}

TEST_P(OtherFaults, ARequestWhoseReadingIsInterruptedIsReadAgain) {
  Inject("recvmsg:error=EINTR:when=1+2");
  for (int i = 0; i < 20; ++i) Sync();
}

// It stops when it has a table of its own, with what was low in the broker's, and has not closed any of that.
TEST_P(OtherFaults, AViolationIsSeenAlsoWhileAChildHasACopyOfTheConnection) {
  Inject("dup2:signal=STOP:when=1");
  front().Send(StartOf(Alice(2), {"true"}));
  ASSERT_TRUE(WaitForText(Trace(), "--- stopped by SIGSTOP ---"));
  EXPECT_EQ(front().SendRaw("x"), 0);
  EXPECT_TRUE(front().AwaitClose());
  StopInjecting();
  Reconnect().Send(Kill{Alice(2)});
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
}

TEST_P(OtherFaults, AFrontEndWithoutASocketForItCanComeAgain) {
  front().Close();
  Inject("socketpair:error=EMFILE");
  EXPECT_FALSE(FrontEnd(broker_).IsOpen());
  StopInjecting();
  Reconnect();
  EXPECT_TRUE(front().IsOpen());
}

TEST_P(OtherFaults, ATooManyOfDescriptorsInFlightCostsTheConnection) {
  Inject("sendmsg:error=ETOOMANYREFS:when=1");
  front().Send(StartOf(Alice(2), {"sleep", "infinity"}));
  EXPECT_TRUE(front().AwaitClose());
  StopInjecting();
  Reconnect();
  EXPECT_EQ(front().held().size(), 2U);
}

// With room for few descriptors.
class FewDescriptors : public BoundaryTest {
 protected:
  rlim_t Files() const override { return 96; }
  // Until one is refused.
  std::vector<uint64_t> Fill(uint64_t from) {
    std::vector<uint64_t> running;
    for (uint64_t id = from; id < from + 100; ++id) {
      front().Send(StartOf(Alice(id), {"sleep", "infinity"}));
      Sync();
      const std::optional<Failed> failed = front().TakeIf<Failed>(Alice(id));
      if (failed) {
        EXPECT_EQ(failed->error, static_cast<uint32_t>(EMFILE));
        break;
      }
      (void)front().Await<Started>(Alice(id));
      running.push_back(id);
    }
    return running;
  }
  void End(uint64_t id) {
    front().Send(Kill{Alice(id)});
    EXPECT_EQ(Finish(Alice(id)).value, SIGKILL);
  }
};

TEST_F(FewDescriptors, AStartWithoutAnyFailsAndTheNextAfterAnEndWorks) {
  const std::vector<uint64_t> running = Fill(2);
  ASSERT_GT(running.size(), 3U);
  ASSERT_LT(running.size(), 90U);
  End(running[1]);
  EXPECT_EQ(Run(StartOf(Alice(500), {"true"})).exited.value, 0);
}

TEST_F(FewDescriptors, AFrontEndCanStillComeBackAndEndThem) {
  std::mt19937 random(7);
  std::vector<uint64_t> running = Fill(2);
  for (uint64_t round = 1; round <= 20; ++round) {
    Reconnect();
    ASSERT_TRUE(front().IsOpen());
    // Holes among the descriptors, in other places each time.
    for (size_t i = 0; i < 3 && !running.empty(); ++i) {
      const size_t at = random() % running.size();
      End(running[at]);
      running.erase(running.begin() + static_cast<ptrdiff_t>(at));
    }
    const std::vector<uint64_t> more = Fill(round * 1000);
    running.insert(running.end(), more.begin(), more.end());
  }
}

}  // namespace
}  // namespace jobworker
