// One hostile datagram at a time.
#include <csignal>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

class Requests : public BoundaryTest {
 protected:
  // On a connection of its own, greeted, the bytes cost that connection.
  void ExpectDropped(const std::string& bytes, const std::string& what) {
    Reconnect();
    ASSERT_TRUE(front().IsOpen());
    EXPECT_EQ(front().SendRaw(bytes), 0) << what;
    EXPECT_TRUE(front().AwaitClose()) << what;
  }
  void ExpectFailed(const Start& start, Stage stage, int error) {
    front().Send(start);
    const auto failed = front().Await<Failed>(start.key);
    EXPECT_EQ(failed.request, RequestType::kStart);
    EXPECT_EQ(failed.stage, stage) << start.key.user;
    EXPECT_EQ(failed.error, static_cast<uint32_t>(error)) << start.key.user;
  }
  // Datagrams of every type about a key that is not there.
  static std::vector<std::string> AllTypes(const JobKey& key) {
    return {Encode(Hello{}),   Encode(StartOf(key, {"true"})), Encode(Signal{key, 1}),
            Encode(Kill{key}), Encode(UsageRequest{key}),      Encode(Forget{key}),
            Encode(Ping{})};
  }
};

TEST_F(Requests, CutShortAtEveryByte) {
  for (const std::string& whole : AllTypes(Alice(2))) {
    for (size_t size = 1; size < whole.size(); ++size) ExpectDropped(whole.substr(0, size), std::to_string(size));
  }
}

TEST_F(Requests, WithABehindByte) {
  for (const std::string& whole : AllTypes(Alice(2))) ExpectDropped(whole + '\0', std::to_string(whole[0]));
}

TEST_F(Requests, OfEveryUnknownType) {
  const std::string body = Encode(Kill{Alice(2)}).substr(1);
  for (int type = 8; type < 256; ++type) {
    ExpectDropped(static_cast<char>(type) + body, std::to_string(type));
    ExpectDropped(std::string(1, static_cast<char>(type)), std::to_string(type));
  }
}

TEST_F(Requests, ThatAreEmpty) {
  for (int i = 0; i < 100; ++i) ExpectDropped("", "empty");
}

TEST_F(Requests, LongerThanAMessageMayBe) {
  const std::string start = Encode(Shell(Alice(2), ":"));
  for (const size_t size : {kMaxMessageBytes, kMaxMessageBytes + 1, 2 * kMaxMessageBytes}) {
    ExpectDropped(std::string(size, '\0'), std::to_string(size));
    ExpectDropped(start + std::string(size - start.size(), 'x'), std::to_string(size));
  }
}

TEST_F(Requests, OfAnotherVersion) {
  for (const uint32_t version : {0U, kProtocolVersion - 1, kProtocolVersion + 1, UINT32_MAX}) {
    front().Close();
    FrontEnd fresh(broker_);
    fresh.Send(Hello{version});
    EXPECT_TRUE(fresh.AwaitClose()) << version;
  }
}

TEST_F(Requests, OfUsersThatAreNotInTheList) {
  for (const char* user : {"root", "daemon", "nobody", "dave", "jobworker", "_", "alice-", "a"}) {
    ExpectFailed(StartOf({user, 1}, {"true"}), Stage::kUser, ENOENT);
  }
  Sync();
}

TEST_F(Requests, OfUsersWithNamesLikeUidsOrPaths) {
  for (const std::string user : {"0",       "70101",      "-1",
                                 "+0",      "4294967295", "../bob",
                                 "bob/1",   "/",          ".",
                                 "..",      "alice/..",   "alice/../../..",
                                 "./alice", "Alice",      "alice ",
                                 " alice",  "al\nice",    "alice\t",
                                 "",        "alice%n",    "\xc0\xae\xc0\xae",
                                 "~alice",  "alice:0",    "*"}) {
    for (const std::string& request : AllTypes({user, 1})) {
      if (request[0] >= 2) ExpectDropped(request, user);
    }
  }
  for (const char* user : {"", "0", "../bob", "Alice", "alice "}) ExpectDropped(Encode(WhoIs{user}), user);
  ExpectDropped(Encode(StartOf({std::string("alice\0root", 10), 1}, {"true"})), "NUL");
  ExpectDropped(Encode(StartOf({std::string(kMaxUserName + 1, 'a'), 1}, {"true"})), "33 letters");
  ExpectDropped(Encode(StartOf({"alice", 0}, {"true"})), "id 0");
}

TEST_F(Requests, WithArgumentsAtTheirBoundsAndPastThem) {
  std::vector<std::string> argv(kMaxArguments, "x");
  argv[0] = "true";
  argv.back() = std::string(kMaxArgumentBytes - kMaxArguments - 2, 'x');
  Start start = StartOf(Alice(2), argv);
  start.env.assign(kMaxEnvironment, "A=");
  start.env.back() = "B=" + std::string(kMaxEnvironmentBytes - 2 * kMaxEnvironment, 'x');
  EXPECT_EQ(Run(start).exited.value, 0);
  Start longer = start;
  longer.argv.back() += 'x';
  ExpectDropped(Encode(longer), "argument bytes");
  longer = start;
  longer.env.back() += 'x';
  ExpectDropped(Encode(longer), "environment bytes");
  longer = start;
  longer.argv.back() = "";
  longer.argv.push_back("");
  ExpectDropped(Encode(longer), "argument count");
  longer = start;
  longer.env.back() = "";
  longer.env.push_back("A=");
  ExpectDropped(Encode(longer), "environment count");
}

TEST_F(Requests, WithADirectoryOrANotePastItsBound) {
  for (const auto& [directory, note] : {std::pair(std::string(kMaxDirectoryBytes + 1, '/'), std::string()),
                                        {std::string("/\0", 2), ""},
                                        {"", std::string(kMaxNoteBytes + 1, 'n')}}) {
    Start start = StartOf(Alice(2), {"true"});
    start.directory = directory;
    start.note = note;
    ExpectDropped(Encode(start), "directory " + std::to_string(directory.size()));
  }
  for (const uint8_t want_stdin : {uint8_t{2}, uint8_t{255}}) {
    Start start = StartOf(Alice(2), {"true"});
    start.want_stdin = want_stdin;
    ExpectDropped(Encode(start), "stdin");
  }
}

TEST_F(Requests, WithWordsThatAreNone) {
  for (const std::vector<std::string>& argv :
       {std::vector<std::string>{}, {""}, {"", "true"}, {std::string("true\0", 5)}, {"true", std::string("\0", 1)}}) {
    ExpectDropped(Encode(StartOf(Alice(2), argv)), "argv");
  }
  for (const std::string entry : {"", "A", "=", "=A", "=A=B", "\0A=B"}) {
    Start start = StartOf(Alice(2), {"true"});
    start.env = {entry};
    ExpectDropped(Encode(start), "env " + entry);
  }
}

TEST_F(Requests, WithCountsAndLengthsThatLie) {
  const std::string whole = Encode(Shell(Alice(2), "true"));
  for (size_t at = 1; at + 4 <= whole.size(); ++at) {
    std::string bytes = whole;
    bytes.replace(at, 4, "\xff\xff\xff\xff");
    Reconnect();
    // Some of these are valid: a limit, a job's id, the script. None may do harm.
    EXPECT_EQ(front().SendRaw(bytes), 0);
    front().Close();
  }
}

TEST_F(Requests, AKeyUsedTwice) {
  Begin(StartOf(Alice(2), {"sleep", "infinity"}));
  ExpectDropped(Encode(StartOf(Alice(2), {"true"})), "running");
  Reconnect().Send(Kill{Alice(2)});
  (void)front().Await<Exited>(Alice(2));
  ExpectDropped(Encode(StartOf(Alice(2), {"true"})), "ended");
  Reconnect();
  EXPECT_EQ(Finish(Alice(2)).value, SIGKILL);
  EXPECT_EQ(Run(StartOf(Alice(2), {"true"})).exited.value, 0);
}

TEST_F(Requests, AboutJobsOfAnotherUser) {
  for (const char* user : {"alice", "carl", "root"}) {
    for (const std::string& request : AllTypes({user, Canary().id})) {
      if (request[0] >= 3) ExpectDropped(request, user);
    }
  }
}

TEST_F(Requests, WithLimitsAboveTheCeiling) {
  for (size_t i = 0; i <= kPidsLimit; ++i) {
    for (const uint64_t limit : {uint64_t{268435457}, uint64_t{1} << 63, kUnlimited}) {
      Start start = StartOf(Alice(2), {"true"});
      start.limits[i] = limit;
      ExpectFailed(start, Stage::kCeiling, EPERM);
    }
  }
  Sync();
}

TEST_F(Requests, WithLimitsAtTheCeiling) {
  Start start = StartOf(Alice(2), {"true"});
  start.limits = {2000, 268435456, 2000, kUnlimited, kUnlimited, kUnlimited, kUnlimited};
  front().Send(start);
  const auto started = front().Await<Started>(start.key);
  for (const auto& [limit, controller] : {std::pair{kCpuLimit, kCpu}, {kMemoryLimit, kMemory}, {kPidsLimit, kPids}}) {
    const bool enforced = (started.missing & controller) == 0;
    EXPECT_EQ(started.limits[limit], enforced ? start.limits[limit] : kUnlimited) << limit;
  }
  Finish(start.key);
}

// What acts on a job without a limit of its own is its user's ceiling.
TEST_F(Requests, WithNoLimitsHaveTheCeiling) {
  front().Send(StartOf(Alice(2), {"true"}));
  const auto started = front().Await<Started>(Alice(2));
  for (const auto& [limit, controller, ceiling] :
       {std::tuple{kCpuLimit, kCpu, 2000U}, {kMemoryLimit, kMemory, 268435456U}, {kPidsLimit, kPids, 128U}}) {
    EXPECT_EQ(started.limits[limit], (started.missing & controller) == 0 ? ceiling : kUnlimited) << limit;
  }
  Finish(Alice(2));
}

TEST_F(Requests, WithDescriptors) {
  const size_t before = DescriptorsOf(broker_pid());
  for (const size_t count : {1U, 10U, 253U}) {
    for (const std::string& request : AllTypes(Alice(2))) {
      Reconnect();
      const int failed = front().SendRaw(request, std::vector<int>(count, 0));
      // Linux 6.16 refuses them to the sender; before, they cost the connection.
      if (failed != 0) {
        EXPECT_EQ(failed, EPERM);
        Sync();
      } else {
        EXPECT_TRUE(front().AwaitClose()) << count;
      }
    }
  }
  Reconnect();
  EXPECT_EQ(DescriptorsOf(broker_pid()), before);
}

}  // namespace
}  // namespace jobworker
