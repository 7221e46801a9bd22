#include "daemon/broker_link.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/unit/fake_broker.h"
#include "tests/unit/temporary_directory.h"
#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;

// A broker's rendezvous socket.
class Rendezvous {
 public:
  explicit Rendezvous(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, path.size());
    (void)unlink(path.c_str());
    EXPECT_EQ(bind(socket_.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(socket_.Get(), 8), 0);
  }
  // Whether somebody is at the door.
  [[nodiscard]] bool Visited() const {
    pollfd ready{socket_.Get(), POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
  }
  [[nodiscard]] UniqueFd Accept() const { return UniqueFd(accept4(socket_.Get(), nullptr, nullptr, SOCK_CLOEXEC)); }
  void HandOver(const UniqueFd& visitor, FakeBroker& broker) const {
    const UniqueFd end = broker.TakeClientEnd();
    EXPECT_EQ(SendMessage(visitor.Get(), std::string_view("\0", 1), std::vector<int>{end.Get()}), 0);
  }

 private:
  UniqueFd socket_{socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
};

class BrokerLinkTest : public ::testing::Test {
 protected:
  void RunUntil(const std::function<bool()>& holds) {
    while (!holds()) loop_.RunOnce();
  }
  // A broker answers at the door, and is greeted.
  void Welcomes(const Rendezvous& door, FakeBroker& broker) {
    RunUntil([&] { return door.Visited(); });
    broker.Send(Welcome{});
    door.HandOver(door.Accept(), broker);
    RunUntil([&] { return !broker.NothingSent(); });
    broker.Next<Hello>();
    EXPECT_TRUE(jobs_.has_broker());
  }
  // It has one, with its output.
  void GiveJob(FakeBroker& broker) const {
    const int pipe = pipe_.read.Get();
    broker.Send(Welcome{kProtocolVersion, 0, 1});
    broker.Send(Job{{"alice", 1}, {}, 0}, {pipe, pipe, memory_.data.Get(), memory_.index.Get()});
  }

  const JournalMemory memory_{Start{{"alice", 1}, {}, {"echo"}, {}}};
  const TestPipe pipe_;
  testing::TemporaryDirectory directory_;
  const std::string path_ = directory_.path() + "/socket";
  int tried_ = 0, well_ = 0;
  std::string lost_;
  EventLoop loop_;
  JobTable jobs_{loop_, {}};
  BrokerLink link_{loop_,
                   jobs_,
                   {.tried = [this] { ++tried_; },
                    .lost = [this](const std::string& why) { lost_ = why; },
                    .well = [this] { ++well_; }}};
};

// --- Standalone. ---

TEST_F(BrokerLinkTest, ABrokerThatDoesNotGreetIsAnError) {
  FakeBroker broker;
  UniqueFd end = broker.TakeClientEnd();
  broker.Hang();
  const auto used = link_.Use(std::move(end));
  ASSERT_FALSE(used);
  EXPECT_EQ(used.error(), "the broker closed the connection");
  EXPECT_FALSE(jobs_.has_broker());
  EXPECT_EQ(jobs_.Find({"alice", 1}).error(), NoJob::kGone);
}

TEST_F(BrokerLinkTest, StandaloneALostBrokerIsTheEnd) {
  FakeBroker broker;
  broker.Send(Welcome{});
  ASSERT_TRUE(link_.Use(broker.TakeClientEnd()));
  EXPECT_TRUE(jobs_.has_broker());
  EXPECT_EQ(jobs_.Find({"alice", 1}).error(), NoJob::kUnknown);
  broker.Hang();
  RunUntil([this] { return !lost_.empty(); });
  EXPECT_EQ(tried_, 0);
}

// --- Deployed. ---

TEST_F(BrokerLinkTest, WithoutABrokerItTriesOn) {
  link_.Meet(path_);
  EXPECT_EQ(tried_, 1);
  EXPECT_FALSE(jobs_.has_broker());
  EXPECT_EQ(jobs_.Find({"alice", 1}).error(), NoJob::kGone);
  const Rendezvous door(path_);
  FakeBroker broker;
  Welcomes(door, broker);
  EXPECT_EQ(tried_, 1);
  EXPECT_EQ(jobs_.Find({"alice", 1}).error(), NoJob::kUnknown);
}

TEST_F(BrokerLinkTest, APathThatIsTooLongIsNoBroker) {
  link_.Meet(std::string(200, 'x'));
  EXPECT_EQ(tried_, 1);
  EXPECT_FALSE(jobs_.has_broker());
}

TEST_F(BrokerLinkTest, ABrokerThatRefusesIsTriedAgain) {
  const Rendezvous door(path_);
  link_.Meet(path_);
  EXPECT_EQ(tried_, 0);
  door.Accept().Reset();
  RunUntil([this] { return tried_ == 1; });
  EXPECT_FALSE(jobs_.has_broker());
  RunUntil([&] { return door.Visited(); });
  EXPECT_EQ(SendMessage(door.Accept().Get(), std::string_view("x", 1)), 0);  // and no descriptor
  RunUntil([&] { return door.Visited(); });
  FakeBroker gone;
  const UniqueFd visitor = door.Accept();
  door.HandOver(visitor, gone);
  gone.Hang();  // before it has greeted
  FakeBroker broker;
  Welcomes(door, broker);
  EXPECT_EQ(tried_, 1);
  EXPECT_EQ(lost_, "");
}

TEST_F(BrokerLinkTest, ALostBrokerIsMetAgain) {
  const Rendezvous door(path_);
  link_.Meet(path_);
  FakeBroker first, second;
  Welcomes(door, first);
  EXPECT_EQ(tried_, 1);
  first.Hang();
  RunUntil([this] { return !jobs_.has_broker(); });
  EXPECT_EQ(jobs_.Find({"alice", 1}).error(), NoJob::kUnknown);  // what there is can still be read
  Welcomes(door, second);
  EXPECT_EQ(tried_, 1);
  EXPECT_EQ(lost_, "");
}

TEST_F(BrokerLinkTest, ABrokerWhoseDescriptorsFoundNoRoomIsMetAgainWhenThereIsSome) {
  const Rendezvous door(path_);
  link_.Meet(path_);
  FakeBroker first, second;
  RunUntil([&] { return door.Visited(); });
  for (FakeBroker* broker : {&first, &second}) GiveJob(*broker);
  door.HandOver(door.Accept(), first);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  const UniqueFd highest(dup(0));
  const rlimit few{static_cast<rlim_t>(highest.Get()) + 4, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  RunUntil([&] { return jobs_.has_broker(); });
  EXPECT_TRUE(jobs_.lacks_output());
  loop_.RunOnce();  // it looks, in vain
  EXPECT_TRUE(jobs_.has_broker());
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  RunUntil([&] { return door.Visited(); });
  door.HandOver(door.Accept(), second);
  RunUntil([&] { return !jobs_.lacks_output(); });
  EXPECT_TRUE(jobs_.has_broker());
  EXPECT_EQ(lost_, "");
}

TEST_F(BrokerLinkTest, ABrokerIsMetAgainOnceAnotherFrontEndHasLeftItsOutput) {
  const Rendezvous door(path_);
  auto other = std::make_unique<OtherFrontEnd>(memory_);
  link_.Meet(path_);
  FakeBroker first, second;
  RunUntil([&] { return door.Visited(); });
  for (FakeBroker* broker : {&first, &second}) GiveJob(*broker);
  door.HandOver(door.Accept(), first);
  RunUntil([&] { return jobs_.has_broker(); });
  EXPECT_TRUE(jobs_.lacks_output());
  loop_.RunOnce();  // it looks, in vain
  EXPECT_TRUE(jobs_.has_broker());
  other = nullptr;
  RunUntil([&] { return door.Visited(); });
  door.HandOver(door.Accept(), second);
  RunUntil([&] { return !jobs_.lacks_output(); });
  EXPECT_EQ(lost_, "");
}

TEST_F(BrokerLinkTest, ABrokerThatAnswersIsKept) {
  FakeBroker broker;
  broker.Send(Welcome{});
  ASSERT_TRUE(link_.Use(broker.TakeClientEnd()));
  broker.Next<Hello>();
  for (int looks = 1; looks <= 5; ++looks) {
    link_.Watch(1h);  // which looks at once
    EXPECT_EQ(well_, looks);
    broker.Next<Ping>();
    broker.Send(Pong{});
    loop_.RunOnce();
  }
  EXPECT_EQ(lost_, "");
  EXPECT_TRUE(jobs_.has_broker());
}

TEST_F(BrokerLinkTest, ABrokerThatDoesNotAnswerIsDropped) {
  FakeBroker broker;
  broker.Send(Welcome{});
  ASSERT_TRUE(link_.Use(broker.TakeClientEnd()));
  link_.Watch(1ms);
  RunUntil([this] { return !lost_.empty(); });
  EXPECT_EQ(lost_, "it does not answer");
  const int before = well_;
  RunUntil([&] { return well_ > before; });  // this process is well all the same
}

// Or the watchdog would replace a front end that has nothing wrong with it, and whose jobs can still be read.
TEST_F(BrokerLinkTest, DeployedItIsWellWithoutABroker) {
  link_.Meet(path_);
  link_.Watch(1ms);
  RunUntil([this] { return well_ >= 3; });
  const Rendezvous door(path_);
  FakeBroker broker;
  Welcomes(door, broker);
  broker.Hang();
  RunUntil([this] { return !jobs_.has_broker(); });
  const int before = well_;
  RunUntil([&] { return well_ > before + 3; });
  EXPECT_EQ(lost_, "");
}

TEST_F(BrokerLinkTest, DeployedABrokerThatDoesNotAnswerIsMetAgain) {
  const Rendezvous door(path_);
  link_.Meet(path_);
  FakeBroker deaf, broker;
  Welcomes(door, deaf);
  link_.Watch(1ms);
  RunUntil([this] { return !jobs_.has_broker(); });
  RunUntil([&] { return door.Visited(); });
  EXPECT_EQ(lost_, "");
}

}  // namespace
}  // namespace jobworker
