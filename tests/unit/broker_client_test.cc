#include "daemon/broker_client.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>

#include "tests/unit/fake_broker.h"

namespace jobworker {
namespace {

const JobKey kKey{"alice", 1};

size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

class RecordingEvents : public BrokerEvents {
 public:
  void OnJob(const Job& job, JobDescriptors pipes) override { Record("job", job.key, std::move(pipes)); }
  void OnStarted(const Started& started, JobDescriptors pipes) override {
    Record("started", started.key, std::move(pipes));
  }
  void OnFailed(const Failed& failed) override { Record("failed", failed.key, {}); }
  void OnExited(const Exited& exited) override { Record("exited", exited.key, {}); }
  void OnUsage(const UsageIs& usage) override { Record("usage", usage.key, {}); }
  void OnBrokerGone(const std::string&) override { log += "gone "; }
  std::string log;
  JobDescriptors last;

 private:
  void Record(const char* what, const JobKey& key, JobDescriptors pipes) {
    log += what + std::to_string(key.id) + " ";
    last = std::move(pipes);
  }
};

class BrokerClientTest : public testing::Test {
 protected:
  void Greet() {
    broker_.Send(Welcome{});
    ASSERT_TRUE(client_.Greet());
    broker_.Next<Hello>();
    ASSERT_TRUE(client_.Attach());
  }
  std::string LogAfterOneEvent() {
    loop_.RunOnce();
    return events_.log;
  }

  // Pipes, and something in the places of the journal and, if asked for, of the stdin.
  [[nodiscard]] std::vector<int> With(size_t count = kStdin) const {
    std::vector<int> numbers(count, out_.read.Get());
    numbers.at(kStderr) = err_.read.Get();
    return numbers;
  }

  EventLoop loop_;
  FakeBroker broker_;
  RecordingEvents events_;
  BrokerClient client_{loop_, broker_.TakeClientEnd(), events_};
  TestPipe out_, err_;
};

TEST_F(BrokerClientTest, TakesInEveryReplayedJob) {
  broker_.Send(Welcome{kProtocolVersion, kIo, 2});
  broker_.Send(Job{{"alice", 7}, {}, kIo}, With());
  Exited exited;
  exited.key = {"alice", 7};
  broker_.Send(exited);
  broker_.Send(Job{{"bob", 9}, {}, 0}, With());
  const auto welcome = client_.Greet();
  ASSERT_TRUE(welcome);
  EXPECT_EQ(welcome->missing, kIo);
  EXPECT_EQ(events_.log, "job7 exited7 job9 ");
}

TEST_F(BrokerClientTest, RefusesAnotherVersion) {
  broker_.Send(Welcome{kProtocolVersion + 1, 0, 0});
  EXPECT_FALSE(client_.Greet());
}

TEST_F(BrokerClientTest, RefusesABrokerThatSpeaksFirstOrLeaves) {
  broker_.Send(UsageIs{kKey, {}});
  EXPECT_FALSE(client_.Greet());
  broker_.Hang();
  EXPECT_FALSE(client_.Greet());
}

TEST_F(BrokerClientTest, RequestsArriveAsTheyWereMeant) {
  Greet();
  client_.StartJob({kKey, {}, {"echo", ""}, {"A=b"}});
  client_.SignalJob(kKey, 15);
  client_.KillJob(kKey);
  client_.Usage(kKey);
  client_.ForgetJob(kKey);
  const Start start = broker_.Next<Start>();
  EXPECT_EQ(start.argv, (std::vector<std::string>{"echo", ""}));
  EXPECT_EQ(start.env, std::vector<std::string>{"A=b"});
  EXPECT_EQ(broker_.Next<Signal>().number, 15);
  EXPECT_EQ(broker_.Next<Kill>().key, kKey);
  EXPECT_EQ(broker_.Next<UsageRequest>().key, kKey);
  EXPECT_EQ(broker_.Next<Forget>().key, kKey);
}

TEST_F(BrokerClientTest, WhatTheSocketDoesNotTakeWaitsInOrder) {
  Greet();
  const std::string big(30'000, 'x');
  uint64_t sent = 0;
  while (client_.backlog() < 3) client_.StartJob({{"alice", ++sent}, {}, {"echo", big}, {}});
  for (uint64_t id = 1; id <= sent; ++id) {
    while (broker_.NothingSent()) loop_.RunOnce();
    EXPECT_EQ(broker_.Next<Start>().key.id, id);
  }
  EXPECT_EQ(client_.backlog(), 0U);
}

TEST_F(BrokerClientTest, HandsOverTheDescriptors) {
  Greet();
  broker_.Send(Started{kKey, {}, 0}, With());
  EXPECT_EQ(LogAfterOneEvent(), "started1 ");
  out_.Put("o");
  err_.Put("e");
  for (const auto& [pipe, byte] : {std::pair(0, 'o'), std::pair(1, 'e')}) {
    char got = 0;
    EXPECT_EQ(read(events_.last.at(static_cast<size_t>(pipe)).Get(), &got, 1), 1);
    EXPECT_EQ(got, byte);
    EXPECT_EQ(fcntl(events_.last.at(static_cast<size_t>(pipe)).Get(), F_GETFD), FD_CLOEXEC);
  }
}

TEST_F(BrokerClientTest, ClosesWhatItDidNotExpect) {
  Greet();
  const size_t before = OpenDescriptors();
  broker_.Send(UsageIs{kKey, {}}, With(2));
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
  EXPECT_EQ(OpenDescriptors(), before - 1);  // its socket
}

TEST_F(BrokerClientTest, TooFewDescriptorsAreAViolation) {
  Greet();
  const size_t before = OpenDescriptors();
  broker_.Send(Started{kKey, {}, 0}, With(kStdin - 1));
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
  EXPECT_EQ(OpenDescriptors(), before - 1);
}

TEST_F(BrokerClientTest, AStdinComesWithAJobThatSaysSoAndOnlyWithIt) {
  Greet();
  broker_.Send(Started{kKey, {}, 0, 1}, With(kMaxDescriptors));
  EXPECT_EQ(LogAfterOneEvent(), "started1 ");
  EXPECT_TRUE(events_.last.at(kStdin).IsOpen());
  broker_.Send(Started{kKey, {}, 0, 0}, With());
  EXPECT_EQ(LogAfterOneEvent(), "started1 started1 ");
  EXPECT_FALSE(events_.last.at(kStdin).IsOpen());
  broker_.Send(Started{kKey, {}, 0, 0}, With(kMaxDescriptors));
  EXPECT_EQ(LogAfterOneEvent(), "started1 started1 gone ");
}

TEST_F(BrokerClientTest, AJobThatSaysItHasAStdinWithoutOneIsAViolation) {
  Greet();
  broker_.Send(Started{kKey, {}, 0, 1}, With());
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
}

TEST_F(BrokerClientTest, JunkIsAViolation) {
  Greet();
  broker_.SendRaw("junk");
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
}

TEST_F(BrokerClientTest, ASecondWelcomeIsAViolation) {
  Greet();
  broker_.Send(Welcome{});
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
}

// EMFILE here is one job's misfortune: the message arrives without its descriptors.
TEST_F(BrokerClientTest, LostDescriptorsCostTheOneJob) {
  Greet();
  broker_.Send(Started{kKey, {}, 0}, With());
  broker_.Send(Started{{"alice", 2}, {}, 0}, With());
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const UniqueFd highest(dup(0));
  const rlimit none{static_cast<rlim_t>(highest.Get()) + 1, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  loop_.RunOnce();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_EQ(events_.log, "started1 started2 ");
  EXPECT_FALSE(events_.last[0].IsOpen());
  EXPECT_FALSE(events_.last[1].IsOpen());
}

TEST_F(BrokerClientTest, APongIsTakenOnce) {
  Greet();
  EXPECT_FALSE(client_.TakePong());
  client_.PingBroker();
  broker_.Next<Ping>();
  broker_.Send(Pong{});
  EXPECT_EQ(LogAfterOneEvent(), "");
  EXPECT_TRUE(client_.TakePong());
  EXPECT_FALSE(client_.TakePong());
}

TEST_F(BrokerClientTest, DroppingItIsToldAsALossIs) {
  Greet();
  EXPECT_TRUE(client_.connected());
  client_.Drop("why");
  EXPECT_EQ(events_.log, "gone ");
  EXPECT_FALSE(client_.connected());
  client_.KillJob(kKey);
  EXPECT_EQ(client_.backlog(), 0U);
}

TEST_F(BrokerClientTest, TellsThatTheBrokerIsGoneOnceAndSendsNothingMore) {
  Greet();
  broker_.Hang();
  EXPECT_EQ(LogAfterOneEvent(), "gone ");
  client_.KillJob(kKey);
  EXPECT_EQ(client_.backlog(), 0U);
}

}  // namespace
}  // namespace jobworker
