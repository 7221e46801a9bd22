// Hostile connections: who may connect, peers that do not read, that die, that flood, that throw sockets.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <random>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kGrowthKib = SIZE_MAX / 2;  // a sanitizer keeps what was freed
#else
constexpr size_t kGrowthKib = 1024;
#endif

class Connections : public BoundaryTest {
 protected:
  void ExpectNoGrowth(size_t before_kib) { EXPECT_LT(ResidentKib(broker_pid()), before_kib + kGrowthKib); }
};

TEST_F(Connections, ASecondFrontEndIsRefusedAndTheFirstGoesOn) {
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(FrontEnd(broker_).IsOpen());
  Sync();
  EXPECT_EQ(Run(StartOf(Alice(2), {"true"})).exited.value, 0);
}

TEST_F(Connections, WhatTheyTalkToHasThreeCapabilitiesAndCanGetNoMore) {
  const std::string nothing = "0000000000000000", setuid_setgid_kill = "00000000000000e0";
  for (const auto& [name, value] : {std::pair{"CapPrm", setuid_setgid_kill},
                                    {"CapEff", setuid_setgid_kill},
                                    {"CapInh", nothing},
                                    {"CapBnd", nothing},
                                    {"CapAmb", nothing},
                                    {"NoNewPrivs", std::string("1")},
                                    {"Seccomp", std::string("2")}}) {
    EXPECT_EQ(StatusLine(broker_pid(), name), std::vector<std::string>{value}) << name;
  }
  // What it was started with is closed.
  for (const auto& fd : fs::directory_iterator("/proc/" + std::to_string(broker_pid()) + "/fd")) {
    EXPECT_NE(fs::read_symlink(fd), "/") << fd;
  }
}

TEST_F(Connections, AnotherUidIsRefused) {
  front().Close();
  for (const uid_t uid : {kAliceUid, kBobUid, uid_t{65534}, kFrontEndUid + 1}) {
    EXPECT_FALSE(FrontEnd::Meet(broker_.Visit(uid)).IsOpen()) << uid;
  }
  // The directory's mode holds for all but root, whom the uid check holds off.
  EXPECT_FALSE(broker_.Visit(kAliceUid).IsOpen());
  EXPECT_FALSE(FrontEnd::Meet(broker_.Visit(0)).IsOpen());
  EXPECT_NE(broker_.Log().find("refused uid=0"), std::string::npos);
}

TEST_F(Connections, WhatIsSaidAtTheRendezvousIsNeverRead) {
  front().Close();
  UniqueFd visitor = broker_.Visit();
  (void)send(visitor.Get(), Encode(Hello{}).data(), 5, MSG_NOSIGNAL);
  FrontEnd fresh(FrontEnd::Meet(std::move(visitor)));
  ASSERT_TRUE(fresh.IsOpen());
  EXPECT_EQ(fresh.Greet().job_count, 1U);
}

TEST_F(Connections, VisitorsThatLeaveAtOnceDoNoHarm) {
  front().Close();
  for (int i = 0; i < 100; ++i) (void)broker_.Visit();
}

// It has sent requests that the broker has not read when it dies and its successor comes.
TEST_F(Connections, ADeadFrontEndDoesNotKeepItsSuccessorOut) {
  Stop();
  for (uint64_t id = 2; id < 12; ++id) front().Send(StartOf(Alice(id), {"true"}));
  front().Close();
  UniqueFd visitor = broker_.Visit();
  Continue();
  FrontEnd fresh(FrontEnd::Meet(std::move(visitor)));
  ASSERT_TRUE(fresh.IsOpen());
  fresh.Greet();
}

TEST_F(Connections, JobsOutliveTheConnectionAndAreReplayed) {
  const fs::path gate = broker_.work("alice") / "gate";
  ASSERT_EQ(mkfifo(gate.c_str(), 0666), 0);
  fs::permissions(gate, fs::perms(0666));
  (void)Begin(Shell(Alice(2), "echo one; read x < gate; echo two >&2; exit 3"));
  (void)Begin(StartOf(Alice(3), {"true"}));
  (void)front().Await<Exited>(Alice(3));
  Reconnect();
  EXPECT_EQ(front().held(), (std::vector<JobKey>{Alice(2), Alice(3), Canary()}));
  EXPECT_EQ(Finish(Alice(3)).value, 0);
  const UniqueFd opened(open(gate.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(write(opened.Get(), "\n", 1), 1);
  EXPECT_EQ(Finish(Alice(2)).value, 3);
}

// Every session of these steps ends at every point of it.
TEST_F(Connections, AFrontEndThatDiesAtAnyPointLeavesTheBrokerAlone) {
  const std::vector<std::string> steps{Encode(Hello{}),
                                       Encode(StartOf(Alice(2), {"sleep", "infinity"})),
                                       Encode(UsageRequest{Alice(2)}),
                                       Encode(Signal{Alice(2), SIGTERM}),
                                       Encode(Kill{Alice(2)}),
                                       Encode(UsageRequest{Canary()})};
  for (size_t last = 0; last <= steps.size(); ++last) {
    front().Close();
    FrontEnd dying(broker_);
    ASSERT_TRUE(dying.IsOpen());
    for (size_t step = 0; step < last; ++step) EXPECT_EQ(dying.SendRaw(steps[step]), 0);
    dying.Close();
    ForgetAll();
  }
}

// The same with a process that is killed while it waits for the reply.
TEST_F(Connections, AFrontEndThatIsKilledWhileItWaitsLeavesTheBrokerAlone) {
  for (const std::string& request : {Encode(StartOf(Alice(2), {"sleep", "infinity"})), Encode(UsageRequest{Canary()}),
                                     Encode(Signal{Canary(), SIGCONT}), Encode(Hello{})}) {
    const pid_t pid = fork();
    if (pid == 0) {
      (void)front().SendRaw(request);
      raise(SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ForgetAll();
  }
}

// Returns how many times it was taken before there was no room.
size_t SendUntilFull(const FrontEnd& front, const std::string& request) {
  size_t sent = 0;
  while (sent < 1'000'000 && front.SendRaw(request) == 0) ++sent;
  return sent;
}

TEST_F(Connections, APeerThatNeverReadsIsNotReadEither) {
  const size_t before = ResidentKib(broker_pid());
  // It is full when the broker has read what it is going to.
  size_t sent = 0, more = 0;
  do {
    more = SendUntilFull(front(), Encode(UsageRequest{Canary()}));
    sent += more;
    AwaitIdle();
  } while (more > 0 && sent < 1'000'000);
  EXPECT_GT(sent, 10U);
  EXPECT_LT(sent, 1'000'000U);
  ExpectNoGrowth(before);
  // Once it reads, every answer is there.
  for (size_t i = 0; i < sent; ++i) (void)front().Await<UsageIs>(Canary());
  EXPECT_EQ(front().pending(), 0U);
  Sync();
}

TEST_F(Connections, StartsThatAreNeverReadAreThereForTheNextOne) {
  uint64_t id = 2;
  while (id < 2000 && front().SendRaw(Encode(StartOf(Alice(id), {"true"}))) == 0) ++id;
  Reconnect();
  const size_t there = front().held().size() + front().starting().size();
  EXPECT_GT(there, 1U);
  EXPECT_LE(there, id - 1);
}

TEST_F(Connections, AFloodOfRandomDatagrams) {
  std::mt19937 random(20'261'123);
  const auto flood = [&](size_t datagrams) {
    for (size_t sent = 0; sent < datagrams;) {
      front().Close();
      FrontEnd hostile(broker_);
      ASSERT_TRUE(hostile.IsOpen());
      if (random() % 2 == 0) hostile.Greet();
      for (int failed = 0; failed == 0 || (failed == EAGAIN && WaitFor(hostile.fd(), POLLOUT)); ++sent) {
        std::string bytes(random() % 300, '\0');
        for (char& byte : bytes) byte = static_cast<char>(random());
        if (!bytes.empty()) bytes[0] = static_cast<char>(random() % 9);
        failed = hostile.SendRaw(bytes);
      }
    }
  };
  flood(2'000);
  const size_t before = ResidentKib(broker_pid());
  flood(100'000);
  ExpectNoGrowth(before);
}

// Sockets whose closing waits a minute: bytes that nobody takes, and SO_LINGER.
class Lingering : public BoundaryTest {
 protected:
  void SetUp() override {
    BoundaryTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    listener_.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto* const name = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(bind(listener_.Get(), name, size), 0);
    ASSERT_EQ(getsockname(listener_.Get(), name, &size), 0);
    ASSERT_EQ(listen(listener_.Get(), 16), 0);
    for (int i = 0; i < 4; ++i) {
      UniqueFd sender(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      ASSERT_EQ(connect(sender.Get(), name, size), 0);
      const linger minute{1, 60};
      ASSERT_EQ(setsockopt(sender.Get(), SOL_SOCKET, SO_LINGER, &minute, sizeof(minute)), 0);
      const std::string bytes(1 << 20, 'x');
      while (send(sender.Get(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) continue;
      numbers_.push_back(sender.Get());
      senders_.push_back(std::move(sender));
    }
  }
  // The broker, which is stopped, now holds the last copies, if the kernel let it have them.
  void CloseOurs() { senders_.clear(); }
  // This process must not wait for them either.
  void LingerNoMore() {
    const linger none{0, 0};
    for (const UniqueFd& sender : senders_) setsockopt(sender.Get(), SOL_SOCKET, SO_LINGER, &none, sizeof(none));
  }
  void TearDown() override {
    LingerNoMore();
    BoundaryTest::TearDown();
  }

  UniqueFd listener_;
  std::vector<UniqueFd> senders_;
  std::vector<int> numbers_;
};

TEST_F(Lingering, SocketsThrownAtTheBrokerDoNotStallIt) {
  Stop();
  if (front().SendRaw(Encode(UsageRequest{Canary()}), numbers_) == 0) CloseOurs();
  Continue();
  Reconnect();
  Sync();
}

TEST_F(Lingering, SocketsQueuedBehindAViolationDoNotStallIt) {
  Stop();
  EXPECT_EQ(front().SendRaw("x"), 0);
  if (front().SendRaw(Encode(UsageRequest{Canary()}), numbers_) == 0) CloseOurs();
  Continue();
  Reconnect();
  Sync();
}

TEST_F(Lingering, SocketsThrownAtTheRendezvousDoNotStallIt) {
  Stop();
  front().Close();
  FrontEnd visitor(broker_.Visit());
  if (visitor.SendRaw("x", numbers_) == 0) CloseOurs();
  Continue();
  FrontEnd fresh(FrontEnd::Meet(UniqueFd(dup(visitor.fd()))));
  visitor.Close();
  ASSERT_TRUE(fresh.IsOpen());
  fresh.Greet();
}

// What the broker has not read when it ends is dropped by the closing of its sockets.
class LingeringAtTheEnd : public Lingering {
 protected:
  void EndWithUnread(const FrontEnd& sender) {
    Stop();
    broker_.broker().Signal(SIGTERM);
    if (sender.SendRaw(Encode(UsageRequest{Canary()}), numbers_) == 0) CloseOurs();
    Continue();
    EXPECT_EQ(broker_.broker().Wait(), 0);
  }
  void TearDown() override {
    LingerNoMore();
    EXPECT_FALSE(fs::exists(broker_.cgroup()));
  }
};

TEST_F(LingeringAtTheEnd, SocketsOfTheFrontEndDoNotKeepTheJobs) { EndWithUnread(front()); }

TEST_F(LingeringAtTheEnd, SocketsAtTheRendezvousDoNotKeepTheJobs) {
  front().Close();
  EndWithUnread(FrontEnd(broker_.Visit()));
}

}  // namespace
}  // namespace jobworker
