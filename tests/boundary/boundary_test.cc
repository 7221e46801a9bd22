#include "tests/boundary/boundary_test.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>

namespace jobworker {

void BoundaryTest::SetUp() {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to run the broker";
  broker_.Start(Mode::kDeployed, Files());
  Reconnect();
  ASSERT_TRUE(front().IsOpen()) << broker_.Log();
  canary_output_ = Begin(StartOf(Canary(), {"sleep", "infinity"}));
  broker_pid_ = broker_.broker().pid();
  ASSERT_GT(broker_pid_, 0);
  const std::vector<pid_t> canary = ProcessesIn(Leaf(Canary()));
  ASSERT_EQ(canary.size(), 1U);
  canary_pid_ = canary[0];
  Run(StartOf(Alice(1), {"true"}));  // what is allocated once is there from here on
  descriptors_ = DescriptorsOf(broker_pid_);
  limits_ = LimitFiles();
}

void BoundaryTest::TearDown() {
  if (canary_pid_ == 0) return;
  CheckUnharmed();
  broker_.broker().Signal(SIGTERM);
  EXPECT_EQ(broker_.broker().Wait(), 0) << broker_.Log();
  EXPECT_FALSE(fs::exists(broker_.cgroup()));
  EXPECT_FALSE(fs::exists(broker_.socket()));
  EXPECT_FALSE(IsAlive(canary_pid_));
  if (HasFailure()) std::fputs(("the broker's log:\n" + broker_.Log()).c_str(), stderr);
}

void BoundaryTest::CheckUnharmed() {
  ForgetAll();
  EXPECT_EQ(Run(StartOf(Alice(900), {"true"})).exited.value, 0);
  EXPECT_EQ(ProcessesIn(Leaf(Canary())), std::vector<pid_t>{canary_pid_});
  EXPECT_EQ(CgroupsBelow(broker_.cgroup()), (std::set<std::string>{"alice", "bob", "bob/1", "carl"}));
  EXPECT_EQ(DescriptorsOf(broker_pid_), descriptors_);
  EXPECT_EQ(LimitFiles(), limits_);
  CheckProcesses();
}

void BoundaryTest::CheckProcesses() {
  std::vector<pid_t> children = ChildrenOf(broker_pid_);
  std::erase(children, broker_.FindGuardian());
  EXPECT_EQ(children, std::vector<pid_t>{canary_pid_});
  const std::vector<std::string> bob(4, std::to_string(kBobUid));
  EXPECT_EQ(StatusLine(canary_pid_, "Uid"), bob);
  EXPECT_EQ(StatusLine(broker_pid_, "Threads"), std::vector<std::string>{"1"});
}

std::map<std::string, std::string> BoundaryTest::LimitFiles() const {
  std::map<std::string, std::string> files;
  for (const char* group : {"alice", "bob", "bob/1", "carl"}) {
    for (const char* file : {"cpu.max", "memory.max", "memory.swap.max", "pids.max", "io.max", "cgroup.freeze"}) {
      const std::string name = std::string(group) + "/" + file;
      files[name] = ReadFile(broker_.cgroup() / name);
    }
  }
  return files;
}

FrontEnd& BoundaryTest::Reconnect() {
  front_.reset();
  front_ = std::make_unique<FrontEnd>(broker_);
  if (front_->IsOpen()) front_->Greet();
  return *front_;
}

BoundaryTest::Outcome BoundaryTest::Run(const Start& start) {
  const std::vector<UniqueFd> output = Begin(start);
  if (output.size() < kStdin) return {};
  Outcome outcome;
  outcome.out = ReadAll(output[0].Get());
  outcome.err = ReadAll(output[1].Get());
  outcome.exited = Finish(start.key);
  return outcome;
}

std::vector<UniqueFd> BoundaryTest::Begin(const Start& start) {
  std::vector<UniqueFd> output;
  front().Send(start);
  (void)front().Await<Started>(start.key, &output);
  return output;
}

Exited BoundaryTest::Finish(const JobKey& key) {
  const auto exited = front().Await<Exited>(key);
  front().Send(Forget{key});
  Sync();
  return exited;
}

void BoundaryTest::Sync() {
  front().Send(Ping{});
  (void)front().Await<Pong>();
}

void BoundaryTest::Stop() const {
  kill(broker_pid_, SIGSTOP);
  // There is no event for the stop of another's child.
  while (StatusLine(broker_pid_, "State").at(0) != "T") sched_yield();
}

void BoundaryTest::AwaitIdle() const {
  // One that is busy is seen asleep too, but not every time.
  const auto guard = std::chrono::steady_clock::now() + std::chrono::milliseconds(kHangMs);
  for (int asleep = 0; asleep < 100 && std::chrono::steady_clock::now() < guard; sched_yield()) {
    asleep = StatusLine(broker_pid_, "State").at(0) == "S" ? asleep + 1 : 0;
  }
  EXPECT_LT(std::chrono::steady_clock::now(), guard) << "the broker is busy";
}

void BoundaryTest::Continue() const { kill(broker_pid_, SIGCONT); }

void BoundaryTest::ForgetAll() {
  Reconnect();
  const std::vector<JobKey> starting = front().starting();
  for (const JobKey& key : starting) front().AwaitOutcome(key);
  Reconnect();
  ASSERT_TRUE(front().IsOpen()) << "the broker takes no front end";
  for (const JobKey& key : front().held()) {
    if (key == Canary()) continue;
    front().Send(Kill{key});
    Finish(key);
  }
}

}  // namespace jobworker
