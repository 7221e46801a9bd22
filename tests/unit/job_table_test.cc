#include "daemon/job_table.h"

#include <gtest/gtest.h>

#include <csignal>
#include <optional>

#include "tests/unit/fake_broker.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;

class QuietReader : public OutputReader {
 public:
  void OutputReady() override {}
};

class JobTableTest : public testing::Test {
 protected:
  explicit JobTableTest(const JobTableLimits& limits = {.stop_grace = 1h, .ended_per_user = 2})
      : table_(loop_, limits, [this](const std::string&) { broker_gone_ = true; }) {
    table_.Use(client_);
    broker_.Send(Welcome{});
    if (!client_.Greet() || !client_.Attach()) abort();
    broker_.Next<Hello>();
  }

  void RunUntil(const std::function<bool()>& holds) {
    while (!holds()) loop_.RunOnce();
  }
  void Start(const std::string& user) {
    result_.reset();
    table_.StartJob(user, {"echo"}, {}, [this](const JobTable::StartResult& result) { result_ = result; });
  }
  void AnswerStarted(const JobKey& key) {
    const int out = out_.read.Get(), err = err_.read.Get();
    broker_.Send(Started{key, {}, kIo}, {out, err, out, err});
    RunUntil([this] { return result_.has_value(); });
  }
  JobTable::View StartRunning(const std::string& user) {
    Start(user);
    AnswerStarted(broker_.Next<jobworker::Start>().key);
    return **result_;
  }
  void SendExited(const JobKey& key, uint8_t code = 0) {
    Exited exited;
    exited.key = key;
    exited.value = code;
    broker_.Send(exited);
  }
  void End(const JobKey& key) {
    const auto view = table_.Find(key);
    SendExited(key);
    RunUntil([&] { return Output(**view).second == OutputStore::Outcome::kEnd; });
  }
  void Stop(const JobKey& key) {
    stopped_.reset();
    table_.StopJob(key, [this](const JobTable::StopResult& result) { stopped_ = result; });
  }
  std::pair<std::string, OutputStore::Outcome> Output(const JobView& view) {
    std::string all;
    uint64_t offset = 0;
    for (;;) {
      const auto segment = view.output->Read(offset, reader_);
      if (segment.outcome != OutputStore::Outcome::kBytes) return {all, segment.outcome};
      all += segment.bytes;
    }
  }

  bool broker_gone_ = false;
  EventLoop loop_;
  FakeBroker broker_;
  JobTable table_;
  BrokerClient client_{loop_, broker_.TakeClientEnd(), table_};
  TestPipe out_, err_;
  std::shared_ptr<QuietReader> reader_ = std::make_shared<QuietReader>();
  std::optional<JobTable::StartResult> result_;
  std::optional<JobTable::StopResult> stopped_;
};

TEST_F(JobTableTest, CountsIdsForEachUser) {
  EXPECT_EQ(StartRunning("alice")->key, (JobKey{"alice", 1}));
  EXPECT_EQ(StartRunning("bob")->key, (JobKey{"bob", 1}));
  EXPECT_EQ(StartRunning("alice")->key, (JobKey{"alice", 2}));
  EXPECT_FALSE(table_.Find({"bob", 2}));
  EXPECT_EQ(table_.Find({"bob", 2}).error(), table_.Find({"alice", 99}).error());
}

TEST_F(JobTableTest, GoesOnAfterTheHighestReplayedId) {
  table_.OnJob(Job{{"alice", 41}, {}, 0}, {std::move(out_.read), std::move(err_.read)});
  EXPECT_TRUE(table_.Find({"alice", 41}));
  Start("alice");
  EXPECT_EQ(broker_.Next<jobworker::Start>().key.id, 42U);
}

TEST_F(JobTableTest, AReplayedJobEndsLikeAnyOther) {
  const JobKey key{"alice", 41};
  table_.OnJob(Job{key, {}, 0}, {std::move(out_.read), std::move(err_.read)});
  out_.Put("left in the pipe");
  const auto view = *table_.Find(key);
  End(key);
  EXPECT_EQ(Output(*view).first, "left in the pipe");
}

TEST_F(JobTableTest, AFailedStartFreesItsKeyAndTellsTheStage) {
  Start("alice");
  const JobKey key = broker_.Next<jobworker::Start>().key;
  EXPECT_EQ(table_.Find(key).error(), NoJob::kUnknown);
  broker_.Send(Failed{key, RequestType::kStart, Stage::kExec, ENOENT});
  RunUntil([this] { return result_.has_value(); });
  const StageFailed failed = std::get<StageFailed>(result_->error());
  EXPECT_EQ(failed.stage, Stage::kExec);
  EXPECT_EQ(failed.error, ENOENT);
  Stop(key);
  EXPECT_EQ(stopped_->error(), NoJob::kUnknown);
}

TEST_F(JobTableTest, OutputIsReadBeforeTheEndIsTold) {
  const auto view = StartRunning("alice");
  EXPECT_EQ(view->missing, kIo);
  out_.Put("out");
  err_.Put("err");
  SendExited(view->key, 3);
  RunUntil([&] { return Output(*view).second == OutputStore::Outcome::kEnd; });
  EXPECT_EQ(Output(*view).first.size(), 6U);
  EXPECT_EQ(view->result.exited.value, 3);
  EXPECT_FALSE(view->result.stopped);
}

// out_.write stays open, as if a process outside of the job had been handed it.
TEST_F(JobTableTest, AStrangerWithTheWriteEndDoesNotHoldUpTheEnd) {
  const auto view = StartRunning("alice");
  out_.Put(std::string(60'000, 'x'));
  End(view->key);
  out_.read.Reset();
  EXPECT_EQ(Output(*view).first.size(), 60'000U);
}

TEST_F(JobTableTest, StopAsksOnceAndTellsEverybody) {
  const auto view = StartRunning("alice");
  int told = 0;
  for (int i = 0; i < 2; ++i) {
    table_.StopJob(view->key, [&](const JobTable::StopResult& result) { told += result && result->stopped ? 1 : 0; });
  }
  EXPECT_EQ(broker_.Next<Signal>().number, SIGTERM);
  EXPECT_TRUE(broker_.NothingSent());
  EXPECT_EQ(told, 0);
  SendExited(view->key);
  RunUntil([&] { return told == 2; });
  Stop(view->key);
  EXPECT_TRUE(stopped_.value());
}

TEST_F(JobTableTest, StoppingAnEndedJobTellsHowItEnded) {
  const auto view = StartRunning("alice");
  End(view->key);
  Stop(view->key);
  EXPECT_FALSE(stopped_->value().stopped);
  EXPECT_TRUE(broker_.NothingSent());
}

// The broker drops a connection that names a job it does not know, and a start may yet fail.
TEST_F(JobTableTest, AJobIsNotNamedBeforeItHasStarted) {
  Start("alice");
  const JobKey key = broker_.Next<jobworker::Start>().key;
  Stop(key);
  EXPECT_TRUE(broker_.NothingSent());
  AnswerStarted(key);
  EXPECT_EQ(broker_.Next<Kill>().key, key);
  SendExited(key);
  RunUntil([this] { return stopped_.has_value(); });
  EXPECT_TRUE(stopped_->value().stopped);
}

TEST_F(JobTableTest, AStopOfAJobThatNeverStartedFindsNone) {
  Start("alice");
  const JobKey key = broker_.Next<jobworker::Start>().key;
  Stop(key);
  broker_.Send(Failed{key, RequestType::kStart, Stage::kExec, EACCES});
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(stopped_->error(), NoJob::kUnknown);
}

TEST_F(JobTableTest, ForgetsTheOldestEndedJob) {
  for (uint64_t id = 1; id <= 3; ++id) End(StartRunning("alice")->key);
  EXPECT_EQ(broker_.Next<Forget>().key, (JobKey{"alice", 1}));
  EXPECT_EQ(table_.Find({"alice", 1}).error(), NoJob::kUnknown);
  EXPECT_TRUE(table_.Find({"alice", 2}));
}

TEST_F(JobTableTest, EndedJobsMakeRoomForANewOne) {
  const JobKey ended = StartRunning("alice")->key;
  End(ended);
  Start("alice");
  const JobKey key = broker_.Next<jobworker::Start>().key;
  broker_.Send(Failed{key, RequestType::kStart, Stage::kJobs, EAGAIN});
  RunUntil([this] { return !broker_.NothingSent(); });
  EXPECT_EQ(broker_.Next<Forget>().key, ended);
  EXPECT_EQ(broker_.Next<jobworker::Start>().key, key);
  broker_.Send(Failed{key, RequestType::kStart, Stage::kJobs, EAGAIN});
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(std::get<StageFailed>(result_->error()).stage, Stage::kJobs);
}

TEST_F(JobTableTest, AJobWhoseDescriptorsWereLostIsKilledAndForgotten) {
  Start("alice");
  const JobKey key = broker_.Next<jobworker::Start>().key;
  table_.OnStarted(Started{key, {}, 0}, {});
  EXPECT_EQ(std::get<StageFailed>(result_->error()).error, EMFILE);
  EXPECT_EQ(broker_.Next<Kill>().key, key);
  EXPECT_EQ(table_.Find(key).error(), NoJob::kUnknown);
  SendExited(key);
  RunUntil([this] { return !broker_.NothingSent(); });
  EXPECT_EQ(broker_.Next<Forget>().key, key);
}

TEST_F(JobTableTest, ABrokerThatIsGoneEndsEveryWait) {
  const auto view = StartRunning("alice");
  Start("alice");
  Stop(view->key);
  broker_.Hang();
  RunUntil([this] { return broker_gone_; });
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  EXPECT_EQ(stopped_->error(), NoJob::kGone);
  EXPECT_EQ(Output(*view).second, OutputStore::Outcome::kAbandoned);
  Start("alice");
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  EXPECT_EQ(table_.Find(view->key).error(), NoJob::kGone);
}

class ImpatientJobTableTest : public JobTableTest {
 protected:
  ImpatientJobTableTest() : JobTableTest({.stop_grace = 1ms, .broker_backlog = 1}) {}
};

TEST_F(ImpatientJobTableTest, AfterTheGracePeriodTheCgroupIsKilled) {
  const auto view = StartRunning("alice");
  Stop(view->key);
  EXPECT_EQ(broker_.Next<Signal>().number, SIGTERM);
  RunUntil([this] { return !broker_.NothingSent(); });
  EXPECT_EQ(broker_.Next<Kill>().key, view->key);
}

TEST_F(ImpatientJobTableTest, AStartFailsWhenTheBrokerDoesNotKeepUp) {
  while (!result_) {
    table_.StartJob("alice", {"echo", std::string(30'000, 'x')}, {},
                    [this](const JobTable::StartResult& result) { result_ = result; });
  }
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kBusy);
}

}  // namespace
}  // namespace jobworker
