// What a job gets, what it cannot get, and how it ends.
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <sstream>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

class Jobs : public BoundaryTest {
 protected:
  // Where a job can execute it.
  std::string Install(const fs::path& program) {
    const fs::path copy = broker_.directory() / program.filename();
    fs::copy_file(program, copy, fs::copy_options::overwrite_existing);
    fs::permissions(copy, fs::perms(0755));
    return copy;
  }
  std::map<std::string, std::string> Inspect(const Start& start, std::vector<std::string>& environment) {
    const Outcome outcome = Run(start);
    EXPECT_EQ(outcome.exited.value, 0);
    EXPECT_EQ(outcome.err, "");
    std::map<std::string, std::string> facts;
    std::istringstream lines(outcome.out);
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("env ")) {
        environment.push_back(line.substr(4));
      } else {
        facts[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
      }
    }
    return facts;
  }
};

TEST_F(Jobs, AJobHasWhatItWasGivenAndNothingElse) {
  std::vector<std::string> environment;
  const std::map<std::string, std::string> facts = Inspect(StartOf(Alice(7), {Install(INSPECT_JOB)}), environment);
  const std::string uid = std::to_string(kAliceUid), ids = uid + " " + uid + " " + uid + " " + uid;
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NPROC, &limit), 0);
  const std::string processes = std::to_string(std::min<rlim_t>(limit.rlim_max, 2000));
  const std::string nothing = "0000000000000000";
  const fs::path mount = fs::exists("/sys/fs/cgroup/unified") ? "/sys/fs/cgroup/unified" : "/sys/fs/cgroup";
  std::map<std::string, std::string> expected{{"descriptors", "0 1 2"},
                                              {"Uid", ids},
                                              {"Gid", ids},
                                              {"Groups", ""},
                                              {"CapInh", nothing},
                                              {"CapPrm", nothing},
                                              {"CapEff", nothing},
                                              {"CapBnd", nothing},
                                              {"CapAmb", nothing},
                                              {"NoNewPrivs", "1"},
                                              {"Seccomp", "2"},
                                              {"SigBlk", nothing},
                                              {"SigIgn", nothing},
                                              {"Umask", "0077"},
                                              {"stdin", "/dev/null"},
                                              {"directory", broker_.work("alice")},
                                              {"core", "0 0"},
                                              {"processes", processes + " " + processes},
                                              {"oom", "0"},
                                              {"cgroup", "/" + fs::relative(Leaf(Alice(7)), mount).string()},
                                              {"leads", "session and group"},
                                              {"tty", "No such device or address"}};
  expected["files"] = facts.at("files");
  EXPECT_EQ(facts, expected);
  EXPECT_EQ(expected["files"].substr(0, 5), "1024 ");
  EXPECT_EQ(environment,
            (std::vector<std::string>{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + broker_.work("alice").string(),
                                      "USER=alice", "LOGNAME=alice", "SHELL=/bin/sh", "LANG=C.UTF-8", "JOB_ID=7"}));
}

TEST_F(Jobs, CgroupsAreRootsAndAUsersIsOpenToTheirGroupAlone) {
  (void)Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  for (const auto& [directory, group, mode] : {std::tuple{Leaf(Alice(2)).parent_path(), gid_t{kAliceUid}, 0750U},
                                               {Leaf(Canary()).parent_path(), gid_t{kBobUid}, 0750U},
                                               {Leaf(Alice(2)), gid_t{0}, 0755U}}) {
    struct stat info {};
    ASSERT_EQ(stat(directory.c_str(), &info), 0);
    EXPECT_EQ(info.st_uid, 0U) << directory;
    EXPECT_EQ(info.st_gid, group) << directory;
    EXPECT_EQ(info.st_mode & 07777, mode) << directory;
  }
}

TEST_F(Jobs, TheEscapeKitGetsNothing) {
  const fs::path id = Install("/usr/bin/id");
  fs::permissions(id, fs::perms(04755));
  const Outcome outcome =
      Run(StartOf(Alice(7), {Install(ESCAPE_KIT), broker_.cgroup(), "alice", "7", std::to_string(broker_pid()),
                             std::to_string(canary_pid()), "bob/1", broker_.work("bob"), broker_.socket(), id}));
  EXPECT_EQ(outcome.exited.cause, EndCause::kExited);
  EXPECT_EQ(outcome.exited.value, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  size_t refused = 0;
  std::string line;
  while (std::getline(lines, line) && line != "done") {
    EXPECT_TRUE(line.starts_with("refused ")) << line;
    ++refused;
  }
  EXPECT_EQ(line, "done");
  EXPECT_GT(refused, 150U);
}

TEST_F(Jobs, TheExitCodeIsExact) {
  for (const int code : {0, 1, 2, 126, 127, 128, 255}) {
    const Exited exited = Run(Shell(Alice(2), "exit " + std::to_string(code))).exited;
    EXPECT_EQ(exited.cause, EndCause::kExited);
    EXPECT_EQ(exited.value, code);
    EXPECT_EQ(exited.leftovers, 0U);
    EXPECT_EQ(exited.oom_level, OomLevel::kNone);
  }
}

TEST_F(Jobs, TheSignalIsExactAndThereIsNoCore) {
  for (const int number : {SIGTERM, SIGSEGV, SIGABRT, SIGKILL, 64}) {
    const Exited exited = Run(Shell(Alice(2), "ulimit -c unlimited; kill -" + std::to_string(number) + " $$")).exited;
    EXPECT_EQ(exited.cause, EndCause::kSignalled);
    EXPECT_EQ(exited.value, number);
    EXPECT_EQ(exited.core_dumped, 0);
  }
}

TEST_F(Jobs, TheCountersOfOneThatHasEndedStay) {
  (void)Begin(Shell(Alice(2), "for i in 1 2 3 4 5 6 7 8 9; do /bin/true; done"));
  const auto exited = front().Await<Exited>(Alice(2));
  EXPECT_GT(exited.counters[kCpuUser] + exited.counters[kCpuSystem], 0U);
  front().Send(UsageRequest{Alice(2)});
  EXPECT_EQ(front().Await<UsageIs>(Alice(2)).counters, exited.counters);
}

TEST_F(Jobs, OutputIsExactOnBothStreams) {
  const Outcome outcome = Run(Shell(Alice(2), "printf 'a\\0b'; printf 'c\\377' >&2; cat"));
  EXPECT_EQ(outcome.out, std::string("a\0b", 3));
  EXPECT_EQ(outcome.err, "c\xff");
}

TEST_F(Jobs, ACommandThatCannotRunFailsAtExecAndFreesItsKey) {
  const std::string plain = broker_.directory() / "plain";
  std::ofstream(plain) << "no program";
  const std::vector<std::pair<std::string, int>> commands{
      {"no-such-program", ENOENT}, {"/no/such", ENOENT},
      {"/etc/passwd", EACCES},     {"/tmp", EACCES},
      {"/root/x", EACCES},         {std::string(300, 'x'), ENAMETOOLONG}};
  for (const auto& [command, error] : commands) {
    front().Send(StartOf(Alice(2), {command}));
    const auto failed = front().Await<Failed>(Alice(2));
    EXPECT_EQ(failed.stage, Stage::kExec) << command;
    EXPECT_EQ(failed.error, static_cast<uint32_t>(error)) << command;
  }
  // What the other directories of PATH say does not hide that one could not be looked into.
  Start elsewhere = StartOf(Alice(2), {"no-such-program"});
  elsewhere.env = {"PATH=/root:/bin"};
  front().Send(elsewhere);
  EXPECT_EQ(front().Await<Failed>(Alice(2)).error, static_cast<uint32_t>(EACCES));
  fs::permissions(plain, fs::perms(0755));
  front().Send(StartOf(Alice(2), {plain}));
  EXPECT_EQ(front().Await<Failed>(Alice(2)).error, static_cast<uint32_t>(ENOEXEC));
  EXPECT_EQ(Run(StartOf(Alice(2), {"true"})).exited.value, 0);
}

TEST_F(Jobs, ADirectoryThatTheUserMayNotEnterFailsAtThatStage) {
  fs::permissions(broker_.directory() / "work", fs::perms(0700));
  front().Send(StartOf(Alice(2), {"true"}));
  const auto failed = front().Await<Failed>(Alice(2));
  EXPECT_EQ(failed.stage, Stage::kDirectory);
  EXPECT_EQ(failed.error, static_cast<uint32_t>(EACCES));
  fs::permissions(broker_.directory() / "work", fs::perms(0755));
}

TEST_F(Jobs, ACgroupThatIsThereIsNeverAdopted) {
  ASSERT_TRUE(fs::create_directory(Leaf(Alice(2))));
  front().Send(StartOf(Alice(2), {"true"}));
  const auto failed = front().Await<Failed>(Alice(2));
  EXPECT_EQ(failed.stage, Stage::kCgroup);
  EXPECT_EQ(failed.error, static_cast<uint32_t>(EEXIST));
  EXPECT_TRUE(fs::is_directory(Leaf(Alice(2))));
  fs::remove(Leaf(Alice(2)));
}

// Away from its parent, its session and its descriptors, but not out of its cgroup.
constexpr const char* kDaemonize = "( setsid sleep infinity <&- >&- 2>&- & ); ";

TEST_F(Jobs, WhatItLeavesBehindEndsWithIt) {
  const Outcome outcome = Run(Shell(Alice(2), std::string(kDaemonize) + kDaemonize + "exit 7"));
  EXPECT_EQ(outcome.exited.value, 7);
  EXPECT_EQ(outcome.exited.leftovers, 2U);
  EXPECT_FALSE(fs::exists(Leaf(Alice(2))));
}

TEST_F(Jobs, KillEndsAllOfIt) {
  const std::vector<UniqueFd> output = Begin(Shell(Alice(2), std::string(kDaemonize) + "echo x; exec sleep infinity"));
  ASSERT_TRUE(WaitFor(output[0].Get(), POLLIN));
  const std::vector<pid_t> all = ProcessesIn(Leaf(Alice(2)));
  EXPECT_EQ(all.size(), 2U);
  front().Send(Kill{Alice(2)});
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
  for (const pid_t pid : all) EXPECT_FALSE(IsAlive(pid));
}

TEST_F(Jobs, AStoppedJobAndAFrozenOneCanBeKilled) {
  (void)Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  front().Send(jobworker::Signal{Alice(2), SIGSTOP});
  (void)Begin(StartOf(Alice(3), {"sleep", "infinity"}));
  std::ofstream(Leaf(Alice(3)) / "cgroup.freeze") << '1';
  for (const uint64_t id : {2U, 3U}) {
    front().Send(Kill{Alice(id)});
    EXPECT_EQ(Finish(Alice(id)).value, SIGKILL);
  }
}

TEST_F(Jobs, OneThatFillsItsPipeWithoutAReaderCanBeKilled) {
  const std::vector<UniqueFd> output = Begin(StartOf(Alice(2), {"yes"}));
  for (int waiting = 0; waiting < 4096; sched_yield()) ASSERT_EQ(ioctl(output[0].Get(), FIONREAD, &waiting), 0);
  front().Send(Kill{Alice(2)});
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
}

// As another process of the job can: its parent is not told of its end before its tracer is.
TEST_F(Jobs, OneWhoseEndATracerKeepsToItselfDoesNotKeepTheBrokerBusy) {
  (void)Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  const pid_t main_process = ProcessesIn(Leaf(Alice(2))).at(0);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, main_process, nullptr, nullptr), 0);
  front().Send(jobworker::Signal{Alice(2), SIGKILL});
  siginfo_t end{};
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(main_process), &end, WEXITED | WNOWAIT), 0);
  Sync();
  AwaitIdle();
  EXPECT_EQ(waitpid(main_process, nullptr, __WALL), main_process);
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
}

TEST_F(Jobs, ASignalReachesTheMainProcessAlone) {
  const std::vector<UniqueFd> output = Begin(Shell(Alice(2), "trap 'exit 5' TERM; sleep infinity & echo ready; wait"));
  ASSERT_TRUE(WaitFor(output[0].Get(), POLLIN));
  front().Send(jobworker::Signal{Alice(2), SIGTERM});
  const Exited exited = Finish(Alice(2));
  EXPECT_EQ(exited.cause, EndCause::kExited);
  EXPECT_EQ(exited.value, 5);
  EXPECT_EQ(exited.leftovers, 1U);
}

TEST_F(Jobs, AForkBombEndsWhenItIsKilled) {
  const std::vector<UniqueFd> output =
      Begin(Shell(Alice(2), "echo x; bomb() { bomb | bomb & }; bomb; exec sleep infinity"));
  ASSERT_TRUE(WaitFor(output[0].Get(), POLLIN));
  front().Send(Kill{Alice(2)});
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
}

TEST_F(Jobs, ManyAtOnceAllEnd) {
  for (uint64_t id = 2; id < 202; ++id) front().Send(Shell(Alice(id), "exit " + std::to_string(id)));
  for (uint64_t id = 2; id < 202; ++id) {
    (void)front().Await<Started>(Alice(id));
    EXPECT_EQ(Finish(Alice(id)).value, id);
  }
}

}  // namespace
}  // namespace jobworker
