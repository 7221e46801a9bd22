// How the broker itself begins and ends: whatever ends it, no job and no cgroup stays.
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <fstream>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

class Lifecycle : public testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to run the broker";
    StartWithJobs();
  }
  // A job of each kind: one that runs, one that went away from its parent, one that has ended.
  void StartWithJobs() {
    broker_.Start(GetParam());
    front_ = std::make_unique<FrontEnd>(GetParam() == Mode::kDeployed ? FrontEnd(broker_) : FrontEnd(broker_.TakeFd()));
    front_->Greet();
    const char* const scripts[] = {"exec sleep infinity", "( setsid sleep infinity & ); echo; exec sleep infinity",
                                   "exit"};
    for (uint64_t id = 1; id <= 3; ++id) {
      const JobKey key{"alice", id};
      front_->Send(Start{key, {}, {"sh", "-c", scripts[id - 1]}, {}});
      std::vector<UniqueFd> output;
      (void)front_->Await<Started>(key, &output);
      ASSERT_TRUE(id != 2 || WaitFor(output.at(0).Get(), POLLIN));
    }
    (void)front_->Await<Exited>({"alice", 3});
    for (const char* id : {"1", "2"}) {
      for (const pid_t pid : ProcessesIn(broker_.cgroup() / "alice" / id)) jobs_.push_back(pid);
    }
    ASSERT_EQ(jobs_.size(), 3U);
    broker_pid_ = broker_.broker().pid();
    ASSERT_GT(broker_pid_, 0);
  }
  // One that has the broker's table of descriptors as long as it lives.
  void StartFrozen() {
    std::ofstream(broker_.cgroup() / "bob" / "cgroup.freeze") << '1';
    front_->Send(Start{{"bob", 1}, {}, {"true"}, {}});
    front_->Send(Ping{});
    (void)front_->Await<Pong>();
    jobs_.push_back(ProcessesIn(broker_.cgroup() / "bob" / "1").at(0));
  }
  void ExpectNothingLeft() {
    EXPECT_FALSE(fs::exists(broker_.cgroup()));
    EXPECT_FALSE(fs::exists(broker_.socket()));
    for (const pid_t pid : jobs_) EXPECT_FALSE(IsAlive(pid)) << pid;
  }

  static UniqueFd OpenPid(pid_t pid) { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0))); }

  BrokerProcess broker_;
  std::unique_ptr<FrontEnd> front_;
  std::vector<pid_t> jobs_;
  pid_t broker_pid_ = 0;
};

TEST_P(Lifecycle, ASignalThatAsksForItEndsAll) {
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
    StartFrozen();
    broker_.broker().Signal(number);
    EXPECT_EQ(broker_.broker().Wait(), 0) << broker_.Log();
    EXPECT_TRUE(front_->AwaitClose());
    ExpectNothingLeft();
    jobs_.clear();
    fs::remove(broker_.directory() / "log");
    if (number != SIGHUP) StartWithJobs();
  }
}

TEST_P(Lifecycle, AKilledBrokerIsClearedAwayByItsGuardian) {
  StartFrozen();
  const UniqueFd guardian = OpenPid(broker_.FindGuardian());
  kill(broker_pid_, SIGKILL);
  EXPECT_EQ(broker_.broker().Wait(), 128 + SIGKILL);
  EXPECT_TRUE(front_->AwaitClose());
  EXPECT_TRUE(WaitFor(guardian.Get(), POLLIN));
  EXPECT_FALSE(fs::exists(broker_.cgroup()));
  for (const pid_t pid : jobs_) EXPECT_FALSE(IsAlive(pid)) << pid;
}

TEST_P(Lifecycle, AKilledGuardianIsNoticedByItsBroker) {
  StartFrozen();
  kill(broker_.FindGuardian(), SIGKILL);
  EXPECT_EQ(broker_.broker().Wait(), 0);
  EXPECT_TRUE(front_->AwaitClose());
  for (const pid_t pid : jobs_) EXPECT_FALSE(IsAlive(pid)) << pid;
  // It may not have the right to remove the root.
  EXPECT_EQ(CgroupsBelow(broker_.cgroup()), std::set<std::string>{});
  fs::remove(broker_.cgroup());
}

TEST_P(Lifecycle, TheGuardianOutlivesASignalToTheWholeGroup) {
  const pid_t guardian = broker_.FindGuardian();
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) kill(guardian, number);
  front_->Send(Ping{});
  (void)front_->Await<Pong>();
  EXPECT_TRUE(IsAlive(guardian));
}

TEST_P(Lifecycle, WhatTwoKilledOnesLeaveIsClearedAwayByTheNext) {
  const UniqueFd guardian = OpenPid(broker_.FindGuardian());
  broker_.broker().Signal(SIGSTOP);
  kill(broker_.FindGuardian(), SIGKILL);
  broker_.broker().Signal(SIGKILL);
  EXPECT_EQ(broker_.broker().Wait(), 128 + SIGKILL);
  EXPECT_TRUE(WaitFor(guardian.Get(), POLLIN));
  for (const pid_t pid : jobs_) EXPECT_TRUE(IsAlive(pid)) << pid;
  const std::vector<pid_t> before = std::exchange(jobs_, {});
  fs::remove(broker_.directory() / "log");
  StartWithJobs();
  for (const pid_t pid : before) EXPECT_FALSE(IsAlive(pid)) << pid;
  broker_.broker().Signal(SIGTERM);
  EXPECT_EQ(broker_.broker().Wait(), 0);
  ExpectNothingLeft();
}

TEST_P(Lifecycle, AnotherBrokerInTheSameCgroupIsRefused) {
  Process other({JOBBROKER, "--socket", broker_.directory() / "other", "--peer", "1", "--cgroup-root", broker_.cgroup(),
                 "--users", broker_.directory() / "users", "--missing-controllers=warn"},
                broker_.directory() / "log");
  EXPECT_EQ(other.Wait(), 1);
  EXPECT_NE(broker_.Log().find("another broker"), std::string::npos) << broker_.Log();
  for (const pid_t pid : jobs_) EXPECT_TRUE(IsAlive(pid)) << pid;
}

std::string NameOf(const testing::TestParamInfo<Mode>& mode) {
  return mode.param == Mode::kDeployed ? "Deployed" : "Standalone";
}

INSTANTIATE_TEST_SUITE_P(All, Lifecycle, testing::Values(Mode::kDeployed, Mode::kStandalone), NameOf);

using Standalone = Lifecycle;
INSTANTIATE_TEST_SUITE_P(One, Standalone, testing::Values(Mode::kStandalone), NameOf);

TEST_P(Standalone, WhenTheFrontEndIsGoneAllEnds) {
  front_->Close();
  EXPECT_EQ(broker_.broker().Wait(), 0) << broker_.Log();
  ExpectNothingLeft();
}

TEST_P(Standalone, AViolationEndsAll) {
  EXPECT_EQ(front_->SendRaw("x"), 0);
  EXPECT_TRUE(front_->AwaitClose());
  broker_.broker().Wait();
  ExpectNothingLeft();
}

// What the command line and the users file get when they are wrong.
class StartUp : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to run the broker";
  }
  // Exit status 1 and these words, in less than no time, and nothing left.
  void ExpectRefused(const std::vector<std::string>& words) {
    EXPECT_EQ(broker_.broker().Wait(), 1);
    for (const std::string& word : words)
      EXPECT_NE(broker_.Log().find(word), std::string::npos) << word << broker_.Log();
    EXPECT_FALSE(fs::exists(broker_.cgroup()));
    fs::remove(broker_.directory() / "log");
  }
  // Standalone, because that does not wait for it to come up.
  void ExpectUsersRefused(const std::string& text, const std::vector<std::string>& words) {
    broker_.WriteUsers(text);
    broker_.Start(Mode::kStandalone);
    ExpectRefused(words);
  }
  std::string File() { return broker_.directory() / "users"; }
  std::string Alice(const std::string& ids) { return "alice " + ids + " dir=" + broker_.work("alice").string() + "\n"; }

  BrokerProcess broker_;
};

TEST_F(StartUp, UsersFilesThatAreWrongAreRefusedByLine) {
  for (const char* id : {"0", "1", "999", "-1", "65534", "65535", "4294967295", "4294967296", "5e9", "x", ""}) {
    ExpectUsersRefused("\n" + Alice("gid=70101 uid=" + std::string(id)), {File(), "line 2", "uid="});
    ExpectUsersRefused("\n" + Alice("uid=70101 gid=" + std::string(id)), {File(), "line 2", "gid="});
  }
  const std::string good = Alice("uid=70101 gid=70101");
  ExpectUsersRefused(good + good, {File(), "line 2", "alice"});
  ExpectUsersRefused(good + "bob uid=70101 gid=70102 dir=/srv/bob\n", {File(), "line 2", "alice"});
  ExpectUsersRefused(good + "../bob uid=70102 gid=70102 dir=/srv/bob\n", {File(), "line 2", "../bob"});
  ExpectUsersRefused(Alice("uid=70101 gid=70101 pids=many"), {File(), "line 1", "pids=many"});
  ExpectUsersRefused(Alice("uid=70101 gid=70101 cpu=-1"), {File(), "line 1", "cpu=-1"});
  ExpectUsersRefused("# nobody\n", {File(), "no user"});
}

TEST_F(StartUp, ItHasAStdinWhenItWasStartedWithout) {
  broker_.Start(Mode::kDeployed, 0, [] { close(0); });
  EXPECT_EQ(fs::read_symlink("/proc/" + std::to_string(broker_.broker().pid()) + "/fd/0"), "/dev/null");
  broker_.broker().Signal(SIGTERM);
  EXPECT_EQ(broker_.broker().Wait(), 0);
}

TEST_F(StartUp, AUsersFileThatOthersCanWriteIsRefused) {
  for (const int mode : {0664, 0646, 0666, 0602}) {
    fs::permissions(File(), fs::perms(mode));
    broker_.Start(Mode::kStandalone);
    ExpectRefused({File(), "not writable by others"});
  }
  fs::permissions(File(), fs::perms(0644));
  ASSERT_EQ(chown(File().c_str(), kAliceUid, 0), 0);
  broker_.Start(Mode::kStandalone);
  ExpectRefused({File(), "root"});
  fs::remove(File());
  broker_.Start(Mode::kStandalone);
  ExpectRefused({File(), "No such file"});
}

TEST_F(StartUp, AWorkingDirectoryOfAnotherIsRefused) {
  fs::create_directory(broker_.work("alice"));
  broker_.Start(Mode::kStandalone);
  ExpectRefused({broker_.work("alice")});
}

TEST_F(StartUp, MissingControllersAreRefusedUnlessToldOtherwise) {
  const std::string log = broker_.directory() / "log";
  Process broker({JOBBROKER, "--socket", broker_.socket(), "--peer", "1", "--cgroup-root", broker_.cgroup(), "--users",
                  File(), "--missing-controllers=refuse"},
                 log);
  if (ReadFile(broker_.cgroup().parent_path() / "cgroup.controllers").find("pids") != std::string::npos) {
    broker.Signal(SIGTERM);
    GTEST_SKIP() << "all controllers are here";
  }
  EXPECT_EQ(broker.Wait(), 1);
  EXPECT_NE(broker_.Log().find("--missing-controllers"), std::string::npos) << broker_.Log();
  EXPECT_FALSE(fs::exists(broker_.cgroup()));
}

TEST_F(StartUp, ACommandLineThatIsWrongIsRefused) {
  const std::string root = broker_.cgroup(), socket = broker_.socket();
  for (const std::vector<std::string>& words : {std::vector<std::string>{},
                                                {"--fd"},
                                                {"--fd", "x"},
                                                {"--fd", "2"},
                                                {"--fd", "-1"},
                                                {"--socket", socket},
                                                {"--peer", "1"},
                                                {"--fd", "3", "--socket", socket, "--peer", "1"},
                                                {"--socket", socket, "--peer", "-1"},
                                                {"--socket", socket, "--peer", "no-such-user"},
                                                {"--socket", socket, "--peer", "1", "more"},
                                                {"--socket", socket, "--peer", "1", "--missing-controllers", "maybe"},
                                                {"--no-such-flag", "x"},
                                                {"--socket", socket, "--peer", "1", "--cgroup-root", "/tmp"},
                                                {"--fd", "99"}}) {
    std::vector<std::string> command{JOBBROKER, "--cgroup-root", root, "--users", File(), "--missing-controllers=warn"};
    command.insert(command.end(), words.begin(), words.end());
    Process broker(command, broker_.directory() / "log");
    EXPECT_EQ(broker.Wait(), 1) << testing::PrintToString(words);
    EXPECT_FALSE(fs::exists(root)) << testing::PrintToString(words);
  }
}

}  // namespace
}  // namespace jobworker
