// What a start brings beside the process: its journal, its stdin, the directory it asked for, its times.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <ctime>
#include <fstream>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

std::string Contents(const UniqueFd& file) {
  struct stat info {};
  EXPECT_EQ(fstat(file.Get(), &info), 0);
  std::string text(static_cast<size_t>(info.st_size), '?');
  EXPECT_EQ(pread(file.Get(), text.data(), text.size(), 0), info.st_size);
  return text;
}

// What the broker writes into a new job's index: nothing for the front end's header, then the Start after its length.
std::string IndexOf(const Start& start) {
  ByteIo writer;
  writer.Bytes(Encode(start), 0);
  return std::string(kJournalStart, '\0') + writer.Take();
}

class Given : public BoundaryTest {
 protected:
  static Start With(std::vector<std::string> argv, const std::string& directory, uint8_t want_stdin = 0) {
    Start start = StartOf(Alice(2), std::move(argv));
    start.directory = directory;
    start.want_stdin = want_stdin;
    return start;
  }
  // `cat` with a stdin.
  static Start Cat() { return With({"cat"}, "", 1); }
  void ExpectNotEntered(const std::string& directory, int error) {
    front().Send(With({"true"}, directory));
    const auto failed = front().Await<Failed>(Alice(2));
    EXPECT_EQ(failed.stage, Stage::kDirectory) << directory;
    EXPECT_EQ(failed.error, static_cast<uint32_t>(error)) << directory;
  }
  static void Write(const UniqueFd& stdin_end, const std::string& text) {
    EXPECT_EQ(write(stdin_end.Get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
};

TEST_F(Given, AJournalHasTheStartAndNothingElse) {
  Start start = With({"sleep", "infinity"}, "/", 1);
  start.env = {"A=1"};
  start.limits[kPidsLimit] = 7;
  for (const std::string& note : {std::string(), std::string("a\0b\xff", 4), std::string(kMaxNoteBytes, '\0')}) {
    start.note = note;
    ++start.key.id;
    const std::vector<UniqueFd> descriptors = Begin(start);
    ASSERT_EQ(descriptors.size(), size_t{kMaxDescriptors});
    EXPECT_EQ(Contents(descriptors[kJournalData]), "");
    EXPECT_EQ(Contents(descriptors[kJournalIndex]), IndexOf(start));
    for (const size_t journal : {kJournalData, kJournalIndex}) {
      EXPECT_EQ(fcntl(descriptors[journal].Get(), F_GETFL) & O_ACCMODE, O_RDWR);
      EXPECT_EQ(lseek(descriptors[journal].Get(), 0, SEEK_CUR), 0);
    }
  }
}

TEST_F(Given, TheLargestStartFitsIntoItsJournal) {
  std::vector<std::string> argv(kMaxArguments, "x");
  argv[0] = "true";
  argv.back() = std::string(kMaxArgumentBytes - kMaxArguments - 2, 'x');
  Start start = StartOf(Alice(2), argv);
  start.env.assign(kMaxEnvironment, "A=");
  start.env.back() = "B=" + std::string(kMaxEnvironmentBytes - 2 * kMaxEnvironment, 'x');
  start.directory = "/" + std::string(kMaxDirectoryBytes - 1, '/');
  start.note = std::string(kMaxNoteBytes, 'n');
  const std::vector<UniqueFd> descriptors = Begin(start);
  EXPECT_EQ(Contents(descriptors.at(kJournalIndex)), IndexOf(start));
  EXPECT_EQ(Finish(start.key).value, 0);
}

// The broker keeps it, and does not look at what is in it.
TEST_F(Given, TheNextFrontEndFindsTheJournalAsTheLastOneLeftIt) {
  const Start start = StartOf(Alice(2), {"sleep", "infinity"});
  {
    const std::vector<UniqueFd> descriptors = Begin(start);
    EXPECT_EQ(pwrite(descriptors.at(kJournalData).Get(), "output", 6, 1 << 20), 6);
    EXPECT_EQ(pwrite(descriptors.at(kJournalIndex).Get(), "mine", 4, 0), 4);
  }
  Reconnect();
  ASSERT_EQ(front().descriptors(Alice(2)).size(), size_t{kStdin});
  EXPECT_EQ(Contents(front().descriptors(Alice(2))[kJournalData]).substr(1 << 20), "output");
  EXPECT_EQ(Contents(front().descriptors(Alice(2))[kJournalIndex]).substr(0, 4), "mine");
  EXPECT_EQ(Contents(front().descriptors(Alice(2))[kJournalIndex]).substr(kJournalStart),
            IndexOf(start).substr(kJournalStart));
}

TEST_F(Given, AJournalCannotBeExecuted) {
  const std::vector<UniqueFd> descriptors = Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  const UniqueFd probe(memfd_create("probe", 8 | MFD_CLOEXEC));
  if (!probe.IsOpen()) GTEST_SKIP() << "this kernel has no MFD_NOEXEC_SEAL";
  for (const size_t journal : {kJournalData, kJournalIndex}) {
    EXPECT_EQ(fcntl(descriptors.at(journal).Get(), F_GET_SEALS) & 0x20, 0x20);  // F_SEAL_EXEC
    EXPECT_NE(fchmod(descriptors.at(journal).Get(), 0777), 0);
  }
}

TEST_F(Given, AJobReadsWhatIsWrittenAndSeesTheEndWhenTheFrontEndClosesIt) {
  std::vector<UniqueFd> descriptors = Begin(Cat());
  ASSERT_EQ(descriptors.size(), size_t{kMaxDescriptors});
  EXPECT_EQ(fcntl(descriptors[kStdin].Get(), F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_NONBLOCK | O_WRONLY);
  Write(descriptors[kStdin], std::string("a\0b\n\xff", 5));
  descriptors[kStdin].Reset();
  EXPECT_EQ(ReadAll(descriptors[kStdout].Get()), std::string("a\0b\n\xff", 5));
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

TEST_F(Given, AJobSeesTheEndOfItsInputWhenTheFrontEndDies) {
  (void)Begin(Cat());  // and lets go of all of it
  Reconnect();
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

// The answer to its Start waits in the socket of one that dies.
TEST_F(Given, AJobSeesTheEndOfItsInputWhenTheFrontEndDiesBeforeItTookIt) {
  front().Send(Cat());
  ASSERT_TRUE(WaitFor(front().fd(), POLLIN));
  Reconnect();
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

// Frozen at its birth, it starts when another front end is there, which gets what the first one asked for.
TEST_F(Given, AJobThatStartsLateGivesItsStdinToWhoIsThereThen) {
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  front().Send(Cat());
  Sync();
  Reconnect();
  EXPECT_EQ(front().starting(), std::vector<JobKey>{Alice(2)});
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
  EXPECT_EQ(front().Await<Started>(Alice(2)).has_stdin, 0);  // it came with the replay, once and for all
  front().descriptors(Alice(2)).at(kStdin).Reset();
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

TEST_F(Given, AJobThatStartsWithNobodyThereKeepsItsStdinForTheNext) {
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  front().Send(Cat());
  Sync();
  const size_t before = DescriptorsOf(broker_pid());
  front().Close();
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
  // The connection, the four ends that the child was given, and the status pipe.
  while (DescriptorsOf(broker_pid()) != before - 6) sched_yield();
  Reconnect();
  EXPECT_TRUE(front().starting().empty());
  ASSERT_EQ(front().descriptors(Alice(2)).size(), size_t{kMaxDescriptors});
  Write(front().descriptors(Alice(2))[kStdin], "late");
  front().descriptors(Alice(2))[kStdin].Reset();
  EXPECT_EQ(ReadAll(front().descriptors(Alice(2))[kStdout].Get()), "late");
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

// A front end that is greeted and does not read, with more to be told than fits into its socket: the replay of a job
// that is still starting waits in the broker, and then the news of its start beside it.
class GivenLate : public Given {
 protected:
  static JobKey Late() { return {"carl", 1}; }
  void QueueReplayAndStart() {
    for (uint64_t id = 2; id < 202; ++id) {
      (void)Begin(StartOf(Alice(id), {"true"}));
      (void)front().Await<Exited>(Alice(id));
    }
    Start start = Cat();
    start.key = Late();
    std::ofstream(broker_.cgroup() / "carl" / "cgroup.freeze") << '1';
    front().Send(start);
    Sync();
    front().Close();
    front() = FrontEnd(broker_);
    front().Send(Hello{});
    ASSERT_TRUE(WaitFor(front().fd(), POLLIN));  // the Hello has been handled
    const size_t before = DescriptorsOf(broker_pid());
    std::ofstream(broker_.cgroup() / "carl" / "cgroup.freeze") << '0';
    // The four ends that the child was given, and the status pipe.
    while (DescriptorsOf(broker_pid()) != before - 5) sched_yield();
    Stop();
    for (pollfd sent{front().fd(), POLLIN, 0}; poll(&sent, 1, 0) == 1;) {
      const std::optional<Reply> reply = front().Next();
      ASSERT_TRUE(reply);
      const auto* job = std::get_if<Job>(&*reply);
      ASSERT_TRUE(job == nullptr || job->key != Late()) << "it did not have to wait";
    }
  }
  void TearDown() override {
    Continue();
    Given::TearDown();
  }
};

TEST_F(GivenLate, AStdinThatTwoMessagesCouldTakeGoesWithTheFirst) {
  QueueReplayAndStart();
  Continue();
  std::vector<UniqueFd> descriptors;
  EXPECT_EQ(front().Await<Job>(Late(), &descriptors).has_stdin, 1);
  ASSERT_EQ(descriptors.size(), size_t{kMaxDescriptors});
  EXPECT_EQ(front().Await<Started>(Late()).has_stdin, 0);
  Write(descriptors[kStdin], "late");
  descriptors[kStdin].Reset();
  EXPECT_EQ(ReadAll(descriptors[kStdout].Get()), "late");
  EXPECT_EQ(Finish(Late()).value, 0);
}

TEST_F(GivenLate, AStdinThatWasNeverSentGoesToTheNextFrontEnd) {
  QueueReplayAndStart();
  front().Close();
  Continue();
  Reconnect();
  ASSERT_EQ(front().descriptors(Late()).size(), size_t{kMaxDescriptors});
  front().descriptors(Late())[kStdin].Reset();
  EXPECT_EQ(Finish(Late()).value, 0);
}

TEST_F(Given, AJobWithoutAStdinReadsNothing) {
  EXPECT_EQ(Run(Shell(Alice(2), "cat; readlink /proc/self/fd/0")).out, "/dev/null\n");
}

TEST_F(Given, AJobCanOpenItsOwnStreamsAnew) {
  std::vector<UniqueFd> descriptors =
      Begin(With({"sh", "-c", "cat </dev/stdin >/dev/stdout; echo e >/dev/stderr"}, "", 1));
  Write(descriptors.at(kStdin), "x");
  descriptors[kStdin].Reset();
  EXPECT_EQ(ReadAll(descriptors[kStdout].Get()), "x");
  EXPECT_EQ(ReadAll(descriptors[kStderr].Get()), "e\n");
  EXPECT_EQ(Finish(Alice(2)).value, 0);
}

TEST_F(Given, TheDirectoryIsEnteredByTheUserFromTheirOwn) {
  const fs::path own = broker_.work("alice");
  EXPECT_EQ(Run(With({"sh", "-c", "mkdir -p sub; pwd -P"}, "")).out, own.string() + "\n");
  EXPECT_EQ(Run(With({"pwd", "-P"}, "/")).out, "/\n");
  EXPECT_EQ(Run(With({"pwd", "-P"}, "sub")).out, (own / "sub").string() + "\n");
  EXPECT_EQ(Run(With({"pwd", "-P"}, "../../..")).out, broker_.directory().parent_path().string() + "\n");
  fs::create_directory_symlink("/usr", own / "link");
  EXPECT_EQ(Run(With({"pwd", "-P"}, "link/bin")).out, "/usr/bin\n");
}

TEST_F(Given, ADirectoryThatTheUserMayNotEnterIsNotEntered) {
  std::ofstream(broker_.work("alice") / "file") << "x";
  fs::create_directory(broker_.directory() / "closed");
  fs::permissions(broker_.directory() / "closed", fs::perms(0700));
  fs::create_directory_symlink(broker_.directory() / "closed", broker_.work("alice") / "link");
  ExpectNotEntered(broker_.directory() / "closed", EACCES);
  ExpectNotEntered(broker_.work("bob"), EACCES);
  ExpectNotEntered("link", EACCES);
  ExpectNotEntered("/root", EACCES);
  ExpectNotEntered("no-such", ENOENT);
  ExpectNotEntered("/no/such", ENOENT);
  ExpectNotEntered("file", ENOTDIR);
  ExpectNotEntered("/etc/passwd", ENOTDIR);
  ExpectNotEntered(std::string(256, 'x'), ENAMETOOLONG);
  EXPECT_EQ(Run(With({"true"}, "")).exited.value, 0);
}

TEST_F(Given, TheTimesAreThoseOfTheClockAndInOrder) {
  const auto now = [] {
    timespec time{};
    EXPECT_EQ(clock_gettime(CLOCK_REALTIME, &time), 0);
    return static_cast<uint64_t>(time.tv_sec) * 1'000'000 + static_cast<uint64_t>(time.tv_nsec) / 1000;
  };
  const uint64_t before = now();
  front().Send(StartOf(Alice(2), {"sleep", "0.05"}));
  const auto started = front().Await<Started>(Alice(2));
  const uint64_t between = now();
  const auto exited = front().Await<Exited>(Alice(2));
  EXPECT_LE(before, started.started_us);
  EXPECT_LE(started.started_us, between);
  EXPECT_LE(started.started_us + 50'000, exited.ended_us);
  EXPECT_LE(exited.ended_us, now());
  Reconnect();
  EXPECT_EQ(front().Await<Exited>(Alice(2)).ended_us, exited.ended_us);
}

// Until exec it may turn out never to have been. What comes of it is told to whoever is there then, who knows of it.
TEST_F(Given, AJobThatIsStillStartingIsReplayedAsSuch) {
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  front().Send(StartOf(Alice(2), {"true"}));
  front().Send(StartOf(Alice(3), {"no-such-program"}));
  Sync();
  Reconnect();
  EXPECT_EQ(front().held(), std::vector<JobKey>{Canary()});
  EXPECT_EQ(front().starting(), (std::vector<JobKey>{Alice(2), Alice(3)}));
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
  (void)front().Await<Started>(Alice(2));
  EXPECT_EQ(Finish(Alice(2)).value, 0);
  EXPECT_EQ(front().Await<Failed>(Alice(3)).stage, Stage::kExec);
  Reconnect();
  EXPECT_TRUE(front().starting().empty());
}

// Frozen at their birth, they have the broker's table of descriptors, in which others come and go.
TEST_F(Given, JobsThatStartLateHaveTheirOwnDescriptors) {
  constexpr uint64_t kEnd = 40;
  const auto told = [](const JobKey& key) { return key.user + std::to_string(key.id); };
  const auto says = [&](const JobKey& key) {
    Start start = Shell(key, "cat; echo " + told(key) + " >&2; echo /proc/self/fd/*");
    start.want_stdin = 1;
    return start;
  };
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  for (uint64_t id = 2; id < kEnd; ++id) front().Send(says(Alice(id)));
  const auto check = [&](const JobKey& key, std::vector<UniqueFd> descriptors) {
    Write(descriptors.at(kStdin), told(key) + "\n");
    descriptors[kStdin].Reset();
    // The last one is the directory, which the shell reads.
    EXPECT_EQ(ReadAll(descriptors[kStdout].Get()),
              told(key) + "\n/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n");
    EXPECT_EQ(ReadAll(descriptors[kStderr].Get()), told(key) + "\n");
    EXPECT_EQ(Finish(key).value, 0);
  };
  for (uint64_t id = 2; id < kEnd; ++id) check({"carl", id}, Begin(says({"carl", id})));
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
  for (uint64_t id = 2; id < kEnd; ++id) {
    std::vector<UniqueFd> descriptors;
    (void)front().Await<Started>(Alice(id), &descriptors);
    check(Alice(id), std::move(descriptors));
  }
}

TEST_F(Given, AJobThatIsKilledBeforeItHasItsOwnDescriptorsEnds) {
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  for (uint64_t id = 2; id < 6; ++id) front().Send(StartOf(Alice(id), {"true"}));
  for (uint64_t id = 2; id < 6; ++id) {
    front().Send(Kill{Alice(id)});
    EXPECT_EQ(Finish(Alice(id)).value, SIGKILL);
  }
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
}

// So that a front end can keep its user's newest job, whose id the next front end goes on from.
class FewJobs : public BoundaryTest {
 protected:
  void SetUp() override {
    std::string users;
    for (const auto& [name, uid] : {std::pair{"alice", kAliceUid}, {"bob", kBobUid}, {"carl", kCarlUid}}) {
      const std::string id = std::to_string(uid);
      users += std::string(name) + " uid=" + id + " gid=" + id + " dir=" + broker_.work(name).string() + " jobs=2\n";
    }
    broker_.WriteUsers(users);
    BoundaryTest::SetUp();
  }
};

TEST_F(FewJobs, OneThatHasEndedDoesNotCount) {
  const auto refused = [this](uint64_t id) {
    front().Send(StartOf(Alice(id), {"sleep", "1000"}));
    const Failed failed = front().Await<Failed>(Alice(id));
    EXPECT_EQ(failed.stage, Stage::kJobs);
  };
  Begin(StartOf(Alice(1), {"true"}));
  (void)front().Await<Exited>(Alice(1));
  Begin(StartOf(Alice(2), {"sleep", "1000"}));
  Begin(StartOf(Alice(3), {"sleep", "1000"}));
  refused(4);
  front().Send(Forget{Alice(1)});
  refused(5);
  front().Send(Kill{Alice(2)});
  (void)front().Await<Exited>(Alice(2));
  Begin(StartOf(Alice(6), {"true"}));
  (void)front().Await<Exited>(Alice(6));
  refused(7);  // two that have ended, and one that lives
}

// One more than as many as there can be is still not none.
TEST_F(Given, AsManyJobsAsAUserLikesAreManyWhenOneHasEnded) {
  EXPECT_EQ(Run(StartOf(Alice(2), {"true"})).exited.value, 0);
  Begin(StartOf(Alice(3), {"true"}));
  (void)front().Await<Exited>(Alice(3));
  EXPECT_EQ(Run(StartOf(Alice(4), {"true"})).exited.value, 0);
}

TEST_F(Given, WhoIsTellsTheListAndCounts) {
  (void)Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  front().Send(WhoIs{"alice"});
  const auto alice = front().Await<UserIs>();
  EXPECT_EQ(alice.user, "alice");
  EXPECT_EQ(alice.known, 1);
  EXPECT_EQ(alice.jobs, 1U);
  EXPECT_EQ(alice.max_jobs, UINT32_MAX);
  EXPECT_EQ(alice.ceiling, (Limits{2000, 268435456, 2000, kUnlimited, kUnlimited, kUnlimited, kUnlimited}));
  EXPECT_EQ(alice.defaults, (Limits{kUnlimited, kUnlimited, 128, kUnlimited, kUnlimited, kUnlimited, kUnlimited}));
  for (const char* user : {"dave", "root"}) {
    front().Send(WhoIs{user});
    EXPECT_EQ(Encode(front().Await<UserIs>()), Encode(UserIs{user})) << user;
  }
}

TEST_F(Given, APongComesAfterAllThatWasAskedBefore) {
  for (int i = 0; i < 100; ++i) {
    front().Send(UsageRequest{Canary()});
    front().Send(Ping{});
    (void)front().Await<Pong>();
    EXPECT_EQ(front().pending(), 1U);
    (void)front().Await<UsageIs>(Canary());
  }
}

}  // namespace
}  // namespace jobworker
