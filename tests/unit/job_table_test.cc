#include "daemon/job_table.h"

#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <optional>
#include <semaphore>
#include <thread>

#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;
using Outcome = Journal::Outcome;

uint64_t NowUs() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

Exited ExitedWith(const JobKey& key, uint8_t value, EndCause cause = EndCause::kExited) {
  Exited exited;
  exited.key = key;
  exited.cause = cause;
  exited.value = value;
  exited.ended_us = NowUs();
  return exited;
}

JobTableLimits LimitsWith(const std::function<void(JobTableLimits&)>& change) {
  JobTableLimits limits;
  limits.stop_grace = 1h;
  change(limits);
  return limits;
}

JobNote WithKey(const std::string& request_key) {
  JobNote note;
  note.set_request_key(request_key);
  return note;
}

class JobTableTest : public testing::Test {
 protected:
  // What the broker has of a job until it is told to forget it.
  struct Kept {
    explicit Kept(const Start& started) : start(started), memory(started) {}
    const Start start;
    const JournalMemory memory;
    TestPipe out, err;
    std::optional<Exited> exited;
    [[nodiscard]] std::vector<int> Descriptors() const {
      return {out.read.Get(), err.read.Get(), memory.data.Get(), memory.index.Get()};
    }
  };
  struct FrontEnd {
    explicit FrontEnd(const JobTableLimits& limits) : table(loop, limits) {}
    bool broker_gone = false;
    EventLoop loop;
    JobTable table;
    std::unique_ptr<FakeBroker> broker;
    std::unique_ptr<BrokerClient> client;
  };

  explicit JobTableTest(const JobTableLimits& limits = LimitsWith([](auto& all) { all.ended_per_user = 2; }))
      : limits_(limits) {
    Restart();
  }

  // A new front end, which is told of all that the broker has kept.
  void Restart() {
    at_ = nullptr;
    at_ = std::make_unique<FrontEnd>(limits_);
    MeetBroker();
  }
  // A new broker, which was given all that the one before had kept.
  void MeetBroker() {
    at_->client = nullptr;
    at_->broker = std::make_unique<FakeBroker>();
    at_->client = std::make_unique<BrokerClient>(at_->loop, broker().TakeClientEnd(), table());
    at_->broker_gone = false;
    table().Use(*at_->client, [this](const std::string&) {
      at_->broker_gone = true;
      table().Lose();
    });
    broker().Send(Welcome{kProtocolVersion, 0, static_cast<uint32_t>(kept_.size())});
    for (const auto& [key, kept] : kept_) {
      broker().Send(Job{key, {}, kIo, 0, 5}, kept.Descriptors());
      if (kept.exited) broker().Send(*kept.exited);
    }
    if (!at_->client->Greet() || !at_->client->Attach()) abort();
    broker().Next<Hello>();
    table().Reconcile();
    RunUntil([this] {
      return std::all_of(kept_.begin(), kept_.end(), [this](const auto& kept) { return Told(kept.second); });
    });
  }
  // Whether another process finds it held.
  static bool HeldForOthers(const JournalMemory& memory) {
    const pid_t child = fork();
    if (child == 0) _exit(Journal::Holder(memory.index.Get()) == getppid() ? 0 : 1);
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status == 0;
  }
  void LoseBroker() {
    broker().Hang();
    RunUntil([this] { return at_->broker_gone; });
  }
  // Whether the front end knows what it was told of a job's end.
  bool Told(const Kept& kept) {
    const auto view = table().Find(kept.start.key);
    return !kept.exited || !view || (*view)->phase == JobView::Phase::kEnded;
  }
  FakeBroker& broker() { return *at_->broker; }
  JobTable& table() { return at_->table; }

  void RunUntil(const std::function<bool()>& holds) {
    while (!holds()) at_->loop.RunOnce();
  }
  // Until the broker has been sent something.
  template <class T>
  T Next() {
    RunUntil([this] { return !broker().NothingSent(); });
    return broker().Next<T>();
  }
  void NextIsForget(const JobKey& key) {
    EXPECT_EQ(Next<Forget>().key, key);
    kept_.erase(key);
  }

  void Ask(const std::string& user, const JobNote& note = {}) {
    result_.reset();
    table().StartJob(user, {{}, {}, {"echo"}, {}}, note,
                     [this](const JobTable::StartResult& result) { result_ = result; });
  }
  Kept& Keep(const Start& start) { return kept_.try_emplace(start.key, start).first->second; }
  void AnswerStarted(const Start& start) {
    broker().Send(Started{start.key, {}, kIo, 0, 5}, Keep(start).Descriptors());
    RunUntil([this] { return result_.has_value(); });
  }
  JobTable::View StartRunning(const std::string& user, const JobNote& note = {}) {
    Ask(user, note);
    AnswerStarted(broker().Next<Start>());
    return **result_;
  }
  void AnswerFailed(const JobKey& key, Stage stage, uint32_t error) {
    broker().Send(Failed{key, RequestType::kStart, stage, error});
  }
  void SendExited(const Exited& exited) {
    kept_.at(exited.key).exited = exited;
    broker().Send(exited);
  }
  void End(const JobKey& key, const std::optional<Exited>& exited = {}) {
    const auto view = table().Find(key);
    SendExited(exited ? *exited : ExitedWith(key, 0));
    RunUntil([&] { return Finished(**view) == Outcome::kEnd; });
  }
  void Stop(const JobKey& key, const JobTable::StopOrder& order = {StopKind::kAsked, SIGTERM, 1h}) {
    stopped_.reset();
    table().StopJob(key, order, [this](const JobTable::StopResult& result) { stopped_ = result; });
  }
  static Outcome Finished(const JobView& view) {
    OutputCursor cursor;
    for (;;) {
      const Outcome outcome = view.journal->Read(cursor, nullptr).outcome;
      if (outcome != Outcome::kBytes) return outcome;
    }
  }

  const JobTableLimits limits_;
  std::map<JobKey, Kept> kept_;
  std::unique_ptr<FrontEnd> at_;
  std::optional<JobTable::StartResult> result_;
  std::optional<JobTable::StopResult> stopped_;
};

// --- Starts. ---

TEST_F(JobTableTest, CountsIdsForEachUser) {
  EXPECT_EQ(StartRunning("alice")->key, (JobKey{"alice", 1}));
  EXPECT_EQ(StartRunning("bob")->key, (JobKey{"bob", 1}));
  EXPECT_EQ(StartRunning("alice")->key, (JobKey{"alice", 2}));
  EXPECT_FALSE(table().Find({"bob", 2}));
  EXPECT_EQ(table().Find({"bob", 2}).error(), table().Find({"alice", 99}).error());
}

TEST_F(JobTableTest, AFailedStartFreesItsKeyAndTellsTheStage) {
  Ask("alice", WithKey("k"));
  const JobKey key = broker().Next<Start>().key;
  EXPECT_EQ(table().Find(key).error(), NoJob::kUnknown);
  AnswerFailed(key, Stage::kExec, ENOENT);
  RunUntil([this] { return result_.has_value(); });
  const StageFailed failed = std::get<StageFailed>(result_->error());
  EXPECT_EQ(failed.stage, Stage::kExec);
  EXPECT_EQ(failed.error, ENOENT);
  Stop(key);
  EXPECT_EQ(stopped_->error(), NoJob::kUnknown);
  EXPECT_EQ(StartRunning("alice", WithKey("k"))->key.id, 2U);  // the same request may be tried again
}

TEST_F(JobTableTest, AFailureThatNobodyWaitsForIsIgnored) {
  const auto view = StartRunning("alice");
  broker().Send(Failed{view->key, RequestType::kSignal, Stage::kSignal, ESRCH});
  broker().Send(Failed{view->key, RequestType::kKill, Stage::kKill, EIO});
  broker().Send(Failed{{"alice", 9}, RequestType::kStart, Stage::kExec, ENOENT});
  broker().Send(ExitedWith({"alice", 9}, 0));
  End(view->key);
  EXPECT_FALSE(at_->broker_gone);
}

TEST_F(JobTableTest, TheViewHasWhatWasAskedForAndWhatCameOfIt) {
  JobNote note = WithKey("k");
  (*note.mutable_labels())["a"] = "b";
  note.set_timeout_ms(7);
  const auto view = StartRunning("alice", note);
  EXPECT_EQ(view->missing, kIo);
  EXPECT_EQ(view->started_us, 5U);
  EXPECT_EQ(view->journal->start().argv, std::vector<std::string>{"echo"});
  EXPECT_EQ(view->note.SerializeAsString(), note.SerializeAsString());
  EXPECT_EQ(view->phase, JobView::Phase::kRunning);
}

// --- Request keys. ---

TEST_F(JobTableTest, ARepeatedStartJoinsTheJobOfTheFirst) {
  Ask("alice", WithKey("k"));
  const auto start = broker().Next<Start>();
  std::vector<JobTable::StartResult> joined;
  const auto join = [&](const char* user, const char* key) {
    table().StartJob(user, {{}, {}, {"other"}, {}}, WithKey(key),
                     [&](const auto& result) { joined.push_back(result); });
  };
  join("alice", "k");
  EXPECT_TRUE(broker().NothingSent());
  EXPECT_TRUE(joined.empty());
  AnswerStarted(start);
  ASSERT_EQ(joined.size(), 1U);
  EXPECT_EQ(*joined[0], **result_);
  join("alice", "k");
  ASSERT_EQ(joined.size(), 2U);
  EXPECT_EQ(*joined[1], **result_);
  EXPECT_TRUE(broker().NothingSent());
  End(start.key);
  join("alice", "k");
  EXPECT_EQ(*joined.at(2), **result_);
  EXPECT_TRUE(broker().NothingSent());
  join("bob", "k");
  EXPECT_EQ(broker().Next<Start>().key, (JobKey{"bob", 1}));
  join("alice", "k2");
  EXPECT_EQ(broker().Next<Start>().key, (JobKey{"alice", 2}));
}

TEST_F(JobTableTest, StartsWithoutAKeyAreJobsOfTheirOwn) {
  EXPECT_NE(StartRunning("alice")->key, StartRunning("alice")->key);
}

TEST_F(JobTableTest, AFailedStartIsToldToAllWhoJoined) {
  Ask("alice", WithKey("k"));
  const auto start = broker().Next<Start>();
  int told = 0;
  table().StartJob("alice", {}, WithKey("k"), [&](const auto& result) { told += result ? 100 : 1; });
  AnswerFailed(start.key, Stage::kClone, EAGAIN);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_FALSE(*result_);
  EXPECT_EQ(told, 1);
}

TEST_F(JobTableTest, ARequestKeyIsForgottenWithItsJob) {
  const JobKey first = StartRunning("alice", WithKey("k"))->key;
  End(first);
  for (int i = 0; i < 2; ++i) End(StartRunning("alice")->key);
  NextIsForget(first);
  EXPECT_EQ(StartRunning("alice", WithKey("k"))->key.id, 4U);
}

TEST_F(JobTableTest, ARequestKeyOutlivesTheFrontEnd) {
  const JobKey key = StartRunning("alice", WithKey("k"))->key;
  Restart();
  Ask("alice", WithKey("k"));
  ASSERT_TRUE(result_);
  EXPECT_EQ((**result_)->key, key);
  EXPECT_TRUE(broker().NothingSent());
}

// --- Output and the end. ---

TEST_F(JobTableTest, OutputIsReadBeforeTheEndIsTold) {
  const auto view = StartRunning("alice");
  kept_.at(view->key).out.Put("out");
  kept_.at(view->key).err.Put("err");
  End(view->key, ExitedWith(view->key, 3));
  EXPECT_EQ(view->journal->range().end, 6U);
  EXPECT_EQ(view->result.exited.value, 3);
  EXPECT_EQ(view->result.stop.kind, StopKind::kNone);
  EXPECT_EQ(view->phase, JobView::Phase::kEnded);
}

TEST_F(JobTableTest, ThePipesThatTheBrokerKeepsOfAnEndedJobAreSmall) {
  const auto view = StartRunning("alice");
  const Kept& kept = kept_.at(view->key);
  kept.out.Put(std::string(65'536, 'x'));
  RunUntil([&] { return view->journal->range().end == 65'536; });
  EXPECT_GE(fcntl(kept.out.read.Get(), F_GETPIPE_SZ), 65'536);
  End(view->key);
  for (const TestPipe* pipe : {&kept.out, &kept.err}) EXPECT_EQ(fcntl(pipe->read.Get(), F_GETPIPE_SZ), 4096);
}

// The write end stays open, as if a process outside of the job had been handed it.
TEST_F(JobTableTest, AStrangerWithTheWriteEndDoesNotHoldUpTheEnd) {
  const auto view = StartRunning("alice");
  kept_.at(view->key).out.Put(std::string(60'000, 'x'));
  End(view->key);
  EXPECT_EQ(view->journal->range().end, 60'000U);
}

TEST_F(JobTableTest, AJobThatClosesItsOutputRunsOn) {
  const auto view = StartRunning("alice");
  Kept& kept = kept_.at(view->key);
  kept.out.Put("a");
  kept.out.write.Reset();
  RunUntil([&] { return view->journal->range().end == 1; });
  kept.err.Put("b");
  RunUntil([&] { return view->journal->range().end == 2; });
  EXPECT_EQ(Finished(*view), Outcome::kWait);
  End(view->key);
  EXPECT_EQ(ReadAll(*view->journal), "o'a' e'b'");
}

TEST_F(JobTableTest, AJobWhoseDescriptorsWereLostIsKilledAndForgotten) {
  Ask("alice");
  const JobKey key = broker().Next<Start>().key;
  table().OnStarted(Started{key, {}, 0}, {});
  EXPECT_EQ(std::get<StageFailed>(result_->error()).error, EMFILE);
  EXPECT_EQ(broker().Next<Kill>().key, key);
  EXPECT_EQ(table().Find(key).error(), NoJob::kUnknown);
  broker().Send(ExitedWith(key, 0));
  EXPECT_EQ(Next<Forget>().key, key);
  EXPECT_EQ(StartRunning("alice")->key.id, 2U);
}

TEST_F(JobTableTest, ALostJobsRequestMayBeTriedAgain) {
  Ask("alice", WithKey("k"));
  const JobKey key = broker().Next<Start>().key;
  table().OnStarted(Started{key, {}, 0}, {});
  EXPECT_EQ(broker().Next<Kill>().key, key);
  EXPECT_EQ(StartRunning("alice", WithKey("k"))->key.id, 2U);
}

TEST_F(JobTableTest, WhoStopsAJobWhoseDescriptorsAreLostIsTold) {
  Ask("alice");
  const JobKey key = broker().Next<Start>().key;
  int told = 0;
  const auto stop = [&] {
    table().StopJob(key, {}, [&](const JobTable::StopResult& result) {
      told += !result && result.error() == NoJob::kUnknown ? 1 : 100;
    });
  };
  stop();
  table().OnStarted(Started{key, {}, 0}, {});
  stop();
  broker().Send(ExitedWith(key, 0));
  RunUntil([&] { return told == 2; });
}

TEST_F(JobTableTest, AJobWhoseDescriptorsWereLostStaysGoneWithTheNextBroker) {
  Ask("alice");
  const Start start = broker().Next<Start>();
  table().OnStarted(Started{start.key, {}, 0}, {});
  Keep(start);
  LoseBroker();  // which may not have read the Kill
  MeetBroker();
  EXPECT_EQ(broker().Next<Kill>().key, start.key);
  EXPECT_EQ(table().Find(start.key).error(), NoJob::kUnknown);
  SendExited(ExitedWith(start.key, 9));
  NextIsForget(start.key);
  LoseBroker();
  MeetBroker();
  EXPECT_EQ(StartRunning("alice")->key.id, 2U);
}

TEST_F(JobTableTest, AJobWhoseDescriptorsWereLostMayBeGoneWithItsBroker) {
  Ask("alice");
  const JobKey key = broker().Next<Start>().key;
  table().OnStarted(Started{key, {}, 0}, {});
  LoseBroker();
  MeetBroker();
  EXPECT_EQ(table().Find(key).error(), NoJob::kUnknown);
  EXPECT_FALSE(table().IsStarting());
  table().Close();
}

// Or ids would begin again from 1.
TEST_F(JobTableTest, AJobWhoseDescriptorsWereLostDoesNotCostTheNewestId) {
  const JobKey newest = StartRunning("alice")->key;
  End(newest);
  Ask("alice");
  const JobKey key = broker().Next<Start>().key;
  table().OnStarted(Started{key, {}, 0}, {});
  EXPECT_EQ(broker().Next<Kill>().key, key);
  EXPECT_TRUE(*table().RemoveJob(newest));
  broker().Send(ExitedWith(key, 9));
  EXPECT_EQ(Next<Forget>().key, key);
  EXPECT_TRUE(broker().NothingSent());  // of the other
}

// One that is not forgotten by the broker would be: nobody counts its memory any more.
TEST_F(JobTableTest, AFollowerOfAForgottenJobDoesNotKeepItsOutput) {
  const auto view = StartRunning("alice");
  kept_.at(view->key).out.Put(std::string(60'000, 'x'));
  End(view->key);
  for (int i = 0; i < 2; ++i) End(StartRunning("alice")->key);
  NextIsForget(view->key);
  EXPECT_EQ(view->journal->range().first, 60'000U);
  EXPECT_LE(view->journal->held(), kEmptyHeld + kMarkHeld);
}

TEST_F(JobTableTest, AReplayedJobWhoseDescriptorsWereLostIsStillThere) {
  const JobKey key{"alice", 7};
  table().OnJob(Job{key, {}, 0}, {});
  const auto view = table().Find(key);
  ASSERT_TRUE(view);
  EXPECT_NE((*view)->journal->damage(), "");
  Stop(key, {StopKind::kAsked, SIGINT, 1h});
  EXPECT_EQ(broker().Next<Signal>().number, SIGINT);
  kept_.try_emplace(key, Start{key, {}, {"echo"}, {}});
  SendExited(ExitedWith(key, 9));
  RunUntil([&] { return stopped_.has_value(); });
  EXPECT_EQ(stopped_->value().exited.value, 9);
  EXPECT_EQ(stopped_->value().stop.kind, StopKind::kAsked);
  EXPECT_EQ(Finished(**view), Outcome::kAbandoned);  // nobody is told that this was all
}

TEST_F(JobTableTest, WhatFoundNoRoomIsThereOnceABrokerIsMetAgain) {
  const JobKey key{"alice", 7};
  Kept& kept = Keep(Start{key, {}, {"echo"}, {}, {}, WithKey("k").SerializeAsString()});
  kept.out.Put("abc");
  EXPECT_FALSE(table().lacks_output());
  table().OnJob(Job{key, {}, 0}, {});
  EXPECT_TRUE(table().lacks_output());
  const auto before = *table().Find(key);
  Stop(key, {StopKind::kAsked, SIGINT, 1h});
  for (const int number : {SIGINT, SIGCONT}) EXPECT_EQ(Next<Signal>().number, number);
  // Its request key is not known.
  Ask("alice", WithKey("k"));
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  const auto bobs = StartRunning("bob", WithKey("k"));
  LoseBroker();
  MeetBroker();
  EXPECT_FALSE(table().lacks_output());
  EXPECT_EQ(Finished(*before), Outcome::kAbandoned);
  const auto view = *table().Find(key);
  RunUntil([&] { return ReadAll(*view->journal) == "o'abc'"; });
  EXPECT_EQ(view->phase, JobView::Phase::kEnding);
  EXPECT_EQ(view->journal->stop().signal, SIGINT);
  for (const int number : {SIGINT, SIGCONT}) EXPECT_EQ(Next<Signal>().number, number);
  Ask("alice", WithKey("k"));
  EXPECT_EQ((**result_)->key, key);
  EXPECT_EQ(table().retention().HeldBy("alice"), view->journal->held());
}

TEST_F(JobTableTest, EvenIfItHasEndedMeanwhile) {
  const JobKey key{"alice", 7};
  Keep(Start{key, {}, {"echo"}, {}}).out.Put("abc");
  table().OnJob(Job{key, {}, 0}, {});
  int ends = 0;
  table().WatchEnd(key, &ends, [&](const auto& job) { ends += job ? 1 : 100; });
  SendExited(ExitedWith(key, 9));
  RunUntil([&] { return ends == 1; });
  LoseBroker();
  MeetBroker();
  const auto view = *table().Find(key);
  EXPECT_EQ(ReadAll(*view->journal), "o'abc'");
  EXPECT_EQ(Finished(*view), Outcome::kEnd);
  EXPECT_EQ(view->result.exited.value, 9);
  EXPECT_FALSE(table().lacks_output());
  for (int i = 0; i < 2; ++i) End(StartRunning("alice")->key);
  NextIsForget(key);  // of three, it is the oldest: it counts once
  EXPECT_TRUE(broker().NothingSent());
}

// It has lost the broker, and lives on.
TEST_F(JobTableTest, WhatAnotherFrontEndReadsIsLeftToIt) {
  const JobKey key{"alice", 7};
  Kept& kept = Keep(Start{key, {}, {"echo"}, {}});
  {
    const OtherFrontEnd other(kept.memory);
    LoseBroker();
    MeetBroker();
    kept.out.Put("abc");
    EXPECT_TRUE(table().lacks_output());
    EXPECT_FALSE(table().LackedIsFree());
    const auto view = *table().Find(key);
    EXPECT_NE(view->journal->damage().find(std::to_string(other.pid())), std::string::npos);
    LoseBroker();
    MeetBroker();  // in vain
    EXPECT_EQ(Finished(*view), Outcome::kAbandoned);
    EXPECT_FALSE(table().LackedIsFree());
  }
  EXPECT_TRUE(table().LackedIsFree());
  LoseBroker();
  MeetBroker();
  EXPECT_FALSE(table().lacks_output());
  RunUntil([&] { return ReadAll(*(*table().Find(key))->journal) == "o'abc'"; });
}

// The descriptors that a broker gives again are closed again.
TEST_F(JobTableTest, WhatIsReadHereIsHeldOverABroker) {
  const Kept& fresh = kept_.at(StartRunning("alice")->key);
  const JobKey key{"alice", 7};
  const Kept& lacked = Keep(Start{key, {}, {"echo"}, {}});
  table().OnJob(Job{key, {}, 0}, {});
  for (int i = 0; i < 2; ++i) {
    LoseBroker();
    MeetBroker();
    for (const Kept* kept : {&fresh, &lacked}) EXPECT_TRUE(HeldForOthers(kept->memory));
  }
}

TEST_F(JobTableTest, AnUnbornJobThatFoundNoRoomIsNotStartedTwice) {
  const Start start{{"alice", 7}, {}, {"echo"}, {}, {}, WithKey("k").SerializeAsString()};
  Job job{start.key, {}, 0};
  job.starting = 1;
  table().OnJob(job, {});
  EXPECT_TRUE(table().lacks_output());
  Ask("alice", WithKey("k"));
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  result_.reset();
  broker().Send(Started{start.key, {}, kIo, 0, 5}, Keep(start).Descriptors());
  RunUntil([&] { return table().Find(start.key).has_value(); });
  EXPECT_FALSE(table().lacks_output());
  Ask("alice", WithKey("k"));
  EXPECT_EQ((**result_)->key, start.key);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AnUnbornJobThatFoundNoRoomAndFailsIsNoMore) {
  Job job{{"alice", 7}, {}, 0};
  job.starting = 1;
  for (const bool lost : {false, true}) {
    table().OnJob(job, {});
    EXPECT_TRUE(table().IsStarting());
    EXPECT_TRUE(table().lacks_output());
    if (lost) LoseBroker();
    if (!lost) table().OnFailed(Failed{job.key, RequestType::kStart, Stage::kExec, ENOENT});
    EXPECT_FALSE(table().lacks_output());
    EXPECT_FALSE(table().IsStarting());
  }
}

// --- Stops. ---

TEST_F(JobTableTest, StopAsksOnceAndTellsEverybody) {
  const auto view = StartRunning("alice");
  int told = 0;
  for (int i = 0; i < 2; ++i) {
    table().StopJob(view->key, {StopKind::kAsked, SIGTERM, 1h}, [&](const JobTable::StopResult& result) {
      told += result && result->stop.kind == StopKind::kAsked ? 1 : 0;
    });
  }
  EXPECT_EQ(broker().Next<Signal>().number, SIGTERM);
  EXPECT_EQ(broker().Next<Signal>().number, SIGCONT);
  EXPECT_TRUE(broker().NothingSent());
  EXPECT_EQ(told, 0);
  EXPECT_EQ(view->phase, JobView::Phase::kEnding);
  End(view->key);
  EXPECT_EQ(told, 2);
  Stop(view->key);
  EXPECT_TRUE(stopped_.value());
}

TEST_F(JobTableTest, TheFirstStopCountsAndALaterOneOnlyShortensTheGrace) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, SIGINT, 1h});
  EXPECT_EQ(broker().Next<Signal>().number, SIGINT);
  EXPECT_EQ(broker().Next<Signal>().number, SIGCONT);
  Stop(view->key, {StopKind::kTimeout, SIGTERM, 2h});
  EXPECT_EQ(view->journal->stop().grace_ms, 3'600'000U);
  Stop(view->key, {StopKind::kTimeout, SIGTERM, 1min});
  EXPECT_LE(view->journal->stop().grace_ms, 3'600'000U);
  EXPECT_GE(view->journal->stop().grace_ms, 60'000U);
  EXPECT_TRUE(broker().NothingSent());
  Stop(view->key, {StopKind::kLease, 0, 1h});
  EXPECT_EQ(Next<Kill>().key, view->key);
  End(view->key, ExitedWith(view->key, SIGKILL, EndCause::kSignalled));
  EXPECT_EQ(view->result.stop.kind, StopKind::kAsked);
  EXPECT_EQ(view->result.stop.signal, SIGINT);
  EXPECT_TRUE(view->result.stop.killed);
}

TEST_F(JobTableTest, AStopWithoutASignalKillsAtOnce) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, 0, 1h});
  EXPECT_EQ(Next<Kill>().key, view->key);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AKillThatTheKernelRefusesIsTriedAgain) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, 0, 1h});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Next<Kill>().key, view->key);
    broker().Send(Failed{view->key, RequestType::kKill, Stage::kKill, ENFILE});
  }
  EXPECT_EQ(Next<Kill>().key, view->key);
  broker().Send(Failed{view->key, RequestType::kKill, Stage::kKill, ESRCH});  // it has just ended
  End(view->key);
  EXPECT_TRUE(stopped_.has_value());
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AfterTheGracePeriodTheCgroupIsKilled) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, SIGTERM, 0ms});
  EXPECT_EQ(broker().Next<Signal>().number, SIGTERM);
  EXPECT_EQ(broker().Next<Signal>().number, SIGCONT);
  EXPECT_EQ(Next<Kill>().key, view->key);
  EXPECT_TRUE(view->journal->stop().killed);
}

TEST_F(JobTableTest, StoppingAnEndedJobTellsHowItEnded) {
  const auto view = StartRunning("alice");
  End(view->key);
  Stop(view->key);
  EXPECT_EQ(stopped_->value().stop.kind, StopKind::kNone);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, OnlyTheOwnJobsCanBeStopped) {
  StartRunning("alice");
  Stop({"bob", 1});
  EXPECT_EQ(stopped_->error(), NoJob::kUnknown);
  EXPECT_TRUE(broker().NothingSent());
}

// The broker drops a connection that names a job it does not know, and a start may yet fail.
TEST_F(JobTableTest, AJobIsNotNamedBeforeItHasStarted) {
  Ask("alice");
  const auto start = broker().Next<Start>();
  Stop(start.key, {StopKind::kAsked, 0, 0ms});
  EXPECT_TRUE(broker().NothingSent());
  AnswerStarted(start);
  EXPECT_EQ(Next<Kill>().key, start.key);
  End(start.key);
  EXPECT_EQ(stopped_->value().stop.kind, StopKind::kAsked);
}

TEST_F(JobTableTest, AStopOfAJobThatNeverStartedFindsNone) {
  Ask("alice");
  const JobKey key = broker().Next<Start>().key;
  Stop(key);
  AnswerFailed(key, Stage::kExec, EACCES);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(stopped_->error(), NoJob::kUnknown);
}

// --- What is forgotten. ---

TEST_F(JobTableTest, ForgetsTheOldestEndedJob) {
  for (uint64_t id = 1; id <= 3; ++id) End(StartRunning("alice")->key);
  NextIsForget({"alice", 1});
  EXPECT_EQ(table().Find({"alice", 1}).error(), NoJob::kUnknown);
  EXPECT_TRUE(table().Find({"alice", 2}));
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AClockThatWasSetBackDoesNotMakeTheLastTheOldest) {
  std::vector<JobKey> keys;
  for (const uint64_t hours : {7U, 5U, 0U, 0U}) {  // ahead
    keys.push_back(StartRunning("alice")->key);
    Exited exited = ExitedWith(keys.back(), 0);
    exited.ended_us += hours * 3'600'000'000;
    End(keys.back(), exited);
    if (keys.size() > 2) NextIsForget(keys[keys.size() - 3]);
  }
  for (const JobKey& key : {keys[2], keys[3]}) EXPECT_TRUE(table().Find(key));
  Restart();
  for (const JobKey& key : {keys[2], keys[3]}) EXPECT_TRUE(table().Find(key));
  EXPECT_TRUE(*table().RemoveJob(keys[2]));
  NextIsForget(keys[2]);
  End(StartRunning("alice")->key);
  EXPECT_TRUE(broker().NothingSent());  // what was removed counts no longer
}

TEST_F(JobTableTest, AnEndAtAnUnknownTimeIsNotAnOldOne) {
  const JobKey key = StartRunning("alice")->key;
  Exited exited = ExitedWith(key, 0, EndCause::kUnknown);
  exited.ended_us = 0;
  End(key, exited);
  EXPECT_TRUE(table().Find(key));
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AnotherUsersEndedJobsDoNotCount) {
  for (uint64_t id = 1; id <= 2; ++id) {
    End(StartRunning("alice")->key);
    End(StartRunning("bob")->key);
  }
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, EndedJobsMakeRoomForANewOne) {
  End(StartRunning("alice")->key);
  End(StartRunning("alice")->key);
  Ask("alice");
  const auto start = broker().Next<Start>();
  AnswerFailed(start.key, Stage::kJobs, EAGAIN);
  NextIsForget({"alice", 1});
  const auto again = broker().Next<Start>();
  EXPECT_EQ(Encode(again), Encode(start));
  AnswerStarted(again);
  EXPECT_EQ((**result_)->key.id, 3U);
  EXPECT_TRUE(table().Find({"alice", 2}));
}

TEST_F(JobTableTest, AStartFailsWhenNoEndedJobCanMakeRoom) {
  StartRunning("alice");
  Ask("alice");
  AnswerFailed(broker().Next<Start>().key, Stage::kJobs, EAGAIN);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(std::get<StageFailed>(result_->error()).stage, Stage::kJobs);
  EXPECT_TRUE(broker().NothingSent());
}

class ForgetfulJobTableTest : public JobTableTest {
 protected:
  ForgetfulJobTableTest() : JobTableTest(LimitsWith([](auto& all) { all.ended_age = 1000s; })) {}
  static Exited EndedAt(const JobKey& key, uint64_t ended_us) {
    Exited exited = ExitedWith(key, 0);
    exited.ended_us = ended_us;
    return exited;
  }
};

TEST_F(ForgetfulJobTableTest, ForgetsWhatEndedLongAgo) {
  const auto old = StartRunning("alice"), fresh = StartRunning("alice");
  End(fresh->key);
  End(old->key, EndedAt(old->key, NowUs() - 1'000'000'000));
  NextIsForget(old->key);
  EXPECT_TRUE(table().Find(fresh->key));
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(ForgetfulJobTableTest, LooksAgainWhenTheNextIsOldEnough) {
  const auto soon = StartRunning("alice"), later = StartRunning("alice"), last = StartRunning("alice");
  End(later->key);
  // Not old enough yet, as a rule: then the timer must tell. On a machine that stalls it may already be.
  End(soon->key, EndedAt(soon->key, NowUs() - 999'980'000));
  NextIsForget(soon->key);
  EXPECT_TRUE(table().Find(later->key));
}

// A clock that was wrong may date an end so far ahead that the time to it cannot be told in nanoseconds.
TEST_F(ForgetfulJobTableTest, AnEndInAnotherMillenniumStandsInNobodysWay) {
  const auto strange = StartRunning("alice"), old = StartRunning("alice"), fresh = StartRunning("alice");
  End(strange->key, EndedAt(strange->key, 1'000'000'000'000'000'000));
  End(old->key, EndedAt(old->key, NowUs() - 1'000'000'000));
  NextIsForget(old->key);
  EXPECT_TRUE(table().Find(strange->key));
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(ForgetfulJobTableTest, AJobThatIsForgottenIsReadToItsEndByWhoHasIt) {
  const auto old = StartRunning("alice"), fresh = StartRunning("alice");
  End(old->key, EndedAt(old->key, 1));
  NextIsForget(old->key);
  EXPECT_EQ(Finished(*old), Outcome::kEnd);
  EXPECT_EQ(old->result.exited.key, old->key);
}

class ManyYearsJobTableTest : public JobTableTest {
 protected:
  ManyYearsJobTableTest() : JobTableTest(LimitsWith([](auto& all) { all.ended_age = 0s; })) {}
};

TEST_F(ManyYearsJobTableTest, AnAgeOfNothingIsForEver) {
  const auto old = StartRunning("alice"), other = StartRunning("alice");
  Exited exited = ExitedWith(old->key, 0);
  exited.ended_us = 1;
  End(old->key, exited);
  EXPECT_TRUE(table().Find(old->key));
  EXPECT_TRUE(broker().NothingSent());
}

// --- The newest id is never lost. ---

TEST_F(ForgetfulJobTableTest, TheNewestJobStaysWithTheBrokerUntilThereIsANewerOne) {
  const auto view = StartRunning("alice");
  kept_.at(view->key).out.Put("gone");
  End(view->key, EndedAt(view->key, 1));
  EXPECT_EQ(table().Find(view->key).error(), NoJob::kUnknown);
  EXPECT_TRUE(broker().NothingSent());
  EXPECT_EQ(view->journal->range().first, 4U);
  Restart();
  EXPECT_EQ(table().Find(view->key).error(), NoJob::kUnknown);
  EXPECT_TRUE(broker().NothingSent());
  Ask("alice");
  const auto start = broker().Next<Start>();
  EXPECT_EQ(start.key.id, 2U);
  EXPECT_TRUE(broker().NothingSent());
  AnswerStarted(start);
  NextIsForget(view->key);
  Restart();
  EXPECT_TRUE(table().Find(start.key));
  EXPECT_TRUE(broker().NothingSent());
}

// Killed between the answer to the newer one's start and the Forget of the older.
TEST_F(ForgetfulJobTableTest, AFrontEndThatFindsANewerJobForgetsTheForgottenOne) {
  const JobKey first = StartRunning("alice")->key;
  End(first, EndedAt(first, 1));
  Start start{{"alice", 2}, {}, {"echo"}, {}};
  Keep(start);
  Restart();
  NextIsForget(first);
  EXPECT_TRUE(table().Find(start.key));
  EXPECT_EQ(table().Find(first).error(), NoJob::kUnknown);
}

TEST_F(ForgetfulJobTableTest, AStartThatFailsDoesNotCostTheNewestId) {
  const JobKey first = StartRunning("alice")->key;
  End(first, EndedAt(first, 1));
  Ask("alice");
  AnswerFailed(broker().Next<Start>().key, Stage::kExec, ENOENT);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(ForgetfulJobTableTest, NotEvenAFullListCostsTheNewestId) {
  const JobKey first = StartRunning("alice")->key;
  End(first, EndedAt(first, 1));
  Ask("alice");
  AnswerFailed(broker().Next<Start>().key, Stage::kJobs, EAGAIN);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(std::get<StageFailed>(result_->error()).stage, Stage::kJobs);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, TheNewestOfTheEndedJobsMakesNoRoom) {
  const JobKey first = StartRunning("alice")->key;
  End(first);
  Ask("alice");
  AnswerFailed(broker().Next<Start>().key, Stage::kJobs, EAGAIN);
  RunUntil([this] { return result_.has_value(); });
  EXPECT_EQ(std::get<StageFailed>(result_->error()).stage, Stage::kJobs);
  EXPECT_TRUE(broker().NothingSent());
  EXPECT_TRUE(table().Find(first));
}

// --- A new front end. ---

TEST_F(JobTableTest, GoesOnAfterTheHighestReplayedId) {
  for (const uint64_t id : {uint64_t{41}, uint64_t{7}}) Keep({{"alice", id}, {}, {"echo"}, {}});
  Restart();
  EXPECT_TRUE(table().Find({"alice", 41}));
  EXPECT_TRUE(table().Find({"alice", 7}));
  Ask("alice");
  EXPECT_EQ(broker().Next<Start>().key.id, 42U);
  Ask("bob");
  EXPECT_EQ(broker().Next<Start>().key.id, 1U);
}

TEST_F(JobTableTest, ARunningJobIsTakenOver) {
  const JobKey key = StartRunning("alice")->key;
  Kept& kept = kept_.at(key);
  kept.out.Put("before");
  RunUntil([&] { return (*table().Find(key))->journal->range().end == 6; });
  at_ = nullptr;
  kept.err.Put("between");
  Restart();
  const auto view = *table().Find(key);
  EXPECT_EQ(view->missing, kIo);
  EXPECT_EQ(view->started_us, 5U);
  EXPECT_EQ(view->phase, JobView::Phase::kRunning);
  RunUntil([&] { return view->journal->range().end == 13; });
  kept.out.Put("after");
  End(key, ExitedWith(key, 4));
  EXPECT_EQ(ReadAll(*view->journal), "o'before' e'between' o'after'");
  EXPECT_EQ(view->result.exited.value, 4);
}

TEST_F(JobTableTest, AnEndedJobIsTakenOverWithItsEnd) {
  const JobKey key = StartRunning("alice")->key;
  kept_.at(key).out.Put("output");
  Stop(key, {StopKind::kAsked, SIGINT, 1h});
  End(key, ExitedWith(key, 5));
  Restart();
  const auto view = *table().Find(key);
  EXPECT_EQ(view->phase, JobView::Phase::kEnded);
  EXPECT_EQ(ReadAll(*view->journal), "o'output'");
  EXPECT_EQ(Finished(*view), Outcome::kEnd);
  EXPECT_EQ(view->result.exited.value, 5);
  EXPECT_EQ(view->result.stop.kind, StopKind::kAsked);
  EXPECT_EQ(view->result.stop.signal, SIGINT);
  EXPECT_TRUE(broker().NothingSent());
}

// It ended while there was no front end.
TEST_F(JobTableTest, WhatWasLeftInThePipesOfAnEndedJobIsRead) {
  const JobKey key = StartRunning("alice")->key;
  at_ = nullptr;
  kept_.at(key).out.Put("late");
  kept_.at(key).exited = ExitedWith(key, 6);
  Restart();
  const auto view = *table().Find(key);
  EXPECT_EQ(Finished(*view), Outcome::kEnd);
  EXPECT_EQ(ReadAll(*view->journal), "o'late'");
  ASSERT_TRUE(view->journal->end());
  EXPECT_EQ(view->journal->end()->value, 6);
}

// A broker that was restarted too does not know what the journal knows.
TEST_F(JobTableTest, AnEndThatWasKnownStaysKnown) {
  const JobKey key = StartRunning("alice")->key;
  End(key, ExitedWith(key, 7));
  kept_.at(key).exited = ExitedWith(key, 0, EndCause::kUnknown);
  Restart();
  const auto view = *table().Find(key);
  EXPECT_EQ(view->result.exited.cause, EndCause::kExited);
  EXPECT_EQ(view->result.exited.value, 7);
}

TEST_F(JobTableTest, AnUnknownEndIsAnEnd) {
  const JobKey key = StartRunning("alice")->key;
  kept_.at(key).exited = ExitedWith(key, 0, EndCause::kUnknown);
  Restart();
  EXPECT_EQ((*table().Find(key))->result.exited.cause, EndCause::kUnknown);
  EXPECT_EQ(Finished(**table().Find(key)), Outcome::kEnd);
}

TEST_F(JobTableTest, AStopGoesOnWhereItWas) {
  const JobKey key = StartRunning("alice")->key;
  Stop(key, {StopKind::kTimeout, SIGTERM, 1h});
  Restart();
  const auto view = *table().Find(key);
  EXPECT_EQ(view->phase, JobView::Phase::kEnding);
  EXPECT_TRUE(broker().NothingSent());
  Stop(key, {StopKind::kAsked, SIGTERM, 2h});
  EXPECT_TRUE(broker().NothingSent());
  Stop(key, {StopKind::kAsked, 0, 0ms});
  EXPECT_EQ(Next<Kill>().key, key);
  End(key);
  EXPECT_EQ(view->result.stop.kind, StopKind::kTimeout);
}

TEST_F(JobTableTest, AGraceThatRanOutWhileThereWasNoFrontEndIsOver) {
  const JobKey key = StartRunning("alice")->key;
  const auto journal = kept_.at(key).memory.Open();
  journal->SetStop({StopKind::kAsked, SIGTERM, false, 1000, NowUs() - 1'000'001});
  Restart();
  EXPECT_EQ(Next<Kill>().key, key);
}

TEST_F(JobTableTest, AClockThatWasSetBackDoesNotLengthenAGrace) {
  const JobKey key = StartRunning("alice")->key;
  const auto journal = kept_.at(key).memory.Open();
  journal->SetStop({StopKind::kAsked, SIGTERM, false, 1, NowUs() + 3'600'000'000});
  Restart();
  EXPECT_EQ(Next<Kill>().key, key);
}

TEST_F(JobTableTest, AJobThatAnEarlierFrontEndAskedForIsTakenOver) {
  Start start{{"alice", 3}, {}, {"echo"}, {}, "", WithKey("k").SerializeAsString()};
  broker().Send(Started{start.key, {}, 0, 0, 5}, Keep(start).Descriptors());
  RunUntil([&] { return table().Find(start.key).has_value(); });
  Ask("alice", WithKey("k"));
  ASSERT_TRUE(result_);
  EXPECT_EQ((**result_)->key, start.key);
  Ask("alice");
  EXPECT_EQ(broker().Next<Start>().key.id, 4U);
}

TEST_F(JobTableTest, ADamagedJournalCostsTheOutputAlone) {
  const JobKey key = StartRunning("alice")->key;
  kept_.at(key).out.Put("output");
  RunUntil([&] { return (*table().Find(key))->journal->range().end == 6; });
  at_ = nullptr;
  kept_.at(key).memory.PokeMark(0, 5, OutputStream::kStdout, 1);
  Restart();
  const auto view = *table().Find(key);
  EXPECT_NE(view->journal->damage(), "");
  kept_.at(key).out.Put("more");
  End(key, ExitedWith(key, 8));
  EXPECT_EQ(ReadAll(*view->journal), "<6> o'more'");
  EXPECT_EQ(view->result.exited.value, 8);
}

// --- Limits of the output. ---

class PolicyTest : public JobTableTest {
 protected:
  static constexpr uint64_t kPerJob = 64 * 1024;
  explicit PolicyTest(OutputPolicy policy, uint64_t per_user = 1 << 20,
                      std::chrono::milliseconds comes_back_within = Journal::kComesBackWithin)
      : JobTableTest(LimitsWith([&](auto& all) {
          all.output = {kPerJob, per_user, 1 << 20, policy, comes_back_within};
        })) {}
  // Writes more than is kept, as far as it is taken.
  void Fill(const JobView& view) {
    for (int i = 0; i < 4; ++i) {
      kept_.at(view.key).out.Put(std::string(kPerJob / 4, 'x'));
      RunUntil([&] { return Left(view) == 0 || view.journal->held() >= kPerJob; });
    }
  }
  int Left(const JobView& view) {
    int left = 0;
    EXPECT_EQ(ioctl(kept_.at(view.key).out.read.Get(), FIONREAD, &left), 0);
    return left;
  }
};

class DropTest : public PolicyTest {
 protected:
  DropTest() : PolicyTest(OutputPolicy::kDropOldest) {}
};

TEST_F(DropTest, TheOldestGoes) {
  const auto view = StartRunning("alice");
  Fill(*view);
  Fill(*view);
  EXPECT_EQ(Left(*view), 0);
  EXPECT_LE(view->journal->held(), kPerJob);
  EXPECT_GT(view->journal->range().first, 0U);
  EXPECT_EQ(table().retention().held(), view->journal->held());
  EXPECT_TRUE(broker().NothingSent());
}

class KillTest : public PolicyTest {
 protected:
  KillTest() : PolicyTest(OutputPolicy::kKill) {}
};

TEST_F(KillTest, TheJobIsKilledOnce) {
  const auto view = StartRunning("alice");
  Fill(*view);
  EXPECT_EQ(Next<Kill>().key, view->key);
  End(view->key, ExitedWith(view->key, SIGKILL, EndCause::kSignalled));
  EXPECT_TRUE(broker().NothingSent());
  EXPECT_EQ(view->result.stop.kind, StopKind::kOutputLimit);
  EXPECT_EQ(view->journal->range().first, 0U);
}

TEST_F(KillTest, AJobThatIsBeingStoppedAnywayIsNot) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, SIGTERM, 1h});
  broker().Next<Signal>();
  broker().Next<Signal>();
  Fill(*view);
  EXPECT_TRUE(broker().NothingSent());
  End(view->key);
  EXPECT_EQ(view->result.stop.kind, StopKind::kAsked);
}

class BlockTest : public PolicyTest {
 protected:
  BlockTest() : PolicyTest(OutputPolicy::kBlock) {}
};

TEST_F(BlockTest, TheJobWaitsUntilItsOutputWasRead) {
  const auto view = StartRunning("alice");
  Fill(*view);
  Kept& kept = kept_.at(view->key);
  EXPECT_GE(view->journal->held(), kPerJob);
  const uint64_t end = view->journal->range().end;
  kept.out.Put("more");
  EXPECT_NE(Left(*view), 0);
  OutputCursor cursor;
  view->journal->Attach(&cursor);
  const auto reader = std::make_shared<CountingReader>();
  while (view->journal->Read(cursor, reader).outcome == Outcome::kBytes) continue;
  RunUntil([&] { return Left(*view) == 0; });
  EXPECT_GT(view->journal->range().end, end);
  EXPECT_EQ(reader->told, 1);
  view->journal->Detach(&cursor);
}

// Nobody reads any more by then.
TEST_F(BlockTest, WhatTheKernelRefusedToDropIsDroppedLater) {
  const auto view = StartRunning("alice");
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  OutputCursor cursor;
  view->journal->Attach(&cursor);
  (void)signal(SIGXFSZ, SIG_IGN);
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &files), 0);
  const rlimit none{0, files.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  while (view->journal->Read(cursor, nullptr).outcome == Outcome::kBytes) continue;
  at_->loop.RunOnce();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &files), 0);
  EXPECT_NE(Left(*view), 0);
  RunUntil([&] { return Left(*view) == 0; });
  view->journal->Detach(&cursor);
}

TEST_F(BlockTest, AFollowerThatLeavesMakesRoom) {
  const auto view = StartRunning("alice");
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  OutputCursor stalled, reading;
  view->journal->Attach(&stalled);
  view->journal->Attach(&reading);
  while (view->journal->Read(reading, nullptr).outcome == Outcome::kBytes) continue;
  at_->loop.RunOnce();  // which finds nothing to give up
  EXPECT_NE(Left(*view), 0);
  view->journal->Detach(&stalled);
  RunUntil([&] { return Left(*view) == 0; });
  view->journal->Detach(&reading);
}

TEST_F(BlockTest, WhoComesBackIsCalledToSayWhatHasArrived) {
  const auto view = StartRunning("alice");
  OutputCursor cursor{0, {}, 1};
  view->journal->Attach(&cursor);
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  const auto reader = std::make_shared<CountingReader>();
  Journal::Chunk chunk;
  do {
    chunk = view->journal->Read(cursor, reader);
  } while (chunk.outcome == Outcome::kBytes);
  EXPECT_EQ(chunk.outcome, Outcome::kResume);
  at_->loop.RunOnce();  // which finds nothing to give up
  EXPECT_NE(Left(*view), 0);
  view->journal->Detach(&cursor);
  cursor.needed = cursor.offset;
  view->journal->Attach(&cursor);
  EXPECT_EQ(view->journal->Read(cursor, reader).outcome, Outcome::kWait);
  RunUntil([&] { return Left(*view) == 0; });
  EXPECT_EQ(reader->told, 1);
  view->journal->Detach(&cursor);
}

TEST_F(BlockTest, NobodyIsCalledBackForAJobThatItDoesNotFollow) {
  const auto full = StartRunning("alice"), other = StartRunning("alice");
  OutputCursor cursor{0, {}, 1};
  other->journal->Attach(&cursor);
  Fill(*full);
  kept_.at(other->key).out.Put("abc");
  RunUntil([&] { return Left(*other) == 0; });
  const auto reader = std::make_shared<CountingReader>();
  EXPECT_EQ(other->journal->Read(cursor, reader).outcome, Outcome::kBytes);
  EXPECT_EQ(other->journal->Read(cursor, reader).outcome, Outcome::kWait);
  other->journal->Detach(&cursor);
}

class ImpatientBlockTest : public PolicyTest {
 protected:
  ImpatientBlockTest() : PolicyTest(OutputPolicy::kBlock, 1 << 20, 50ms) {}
};

TEST_F(ImpatientBlockTest, WhoDoesNotComeBackIsGivenUp) {
  const auto view = StartRunning("alice");
  OutputCursor left{0, {}, 1}, reading;
  for (OutputCursor* each : {&left, &reading}) view->journal->Attach(each);
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  while (view->journal->Read(reading, nullptr).outcome == Outcome::kBytes) continue;
  view->journal->Detach(&left);
  RunUntil([&] { return Left(*view) == 0; });
  view->journal->Detach(&reading);
}

// --- New limits. ---

TEST_F(JobTableTest, FewerEndedJobsAreKeptAtOnce) {
  std::vector<JobKey> keys;
  for (int i = 0; i < 2; ++i) {
    keys.push_back(StartRunning("alice")->key);
    End(keys.back());
  }
  const auto bobs = StartRunning("bob");
  End(bobs->key);
  JobTableLimits limits = limits_;
  limits.ended_per_user = 1;
  table().SetLimits(limits);
  NextIsForget(keys[0]);
  EXPECT_TRUE(table().Find(keys[1]));
  EXPECT_TRUE(table().Find(bobs->key));
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, MoreEndedJobsAreKeptFromNowOn) {
  JobTableLimits limits = limits_;
  limits.ended_per_user = 3;
  table().SetLimits(limits);
  for (int i = 0; i < 3; ++i) End(StartRunning("alice")->key);
  EXPECT_TRUE(broker().NothingSent());
  const JobKey last = StartRunning("alice")->key;
  End(last);
  NextIsForget({"alice", 1});
}

TEST_F(JobTableTest, AnEarlierAgeForgetsAtOnceAndLaterWhatIsNotYetSoOld) {
  std::vector<JobKey> keys;
  for (const uint64_t minutes : {60U, 0U}) {
    keys.push_back(StartRunning("alice")->key);
    Exited exited = ExitedWith(keys.back(), 0);
    exited.ended_us -= minutes * 60'000'000;
    End(keys.back(), exited);
  }
  const JobKey newest = StartRunning("alice")->key;
  JobTableLimits limits = limits_;
  limits.ended_age = 30min;
  table().SetLimits(limits);
  NextIsForget(keys[0]);
  EXPECT_TRUE(table().Find(keys[1]));
  limits.ended_age = 100ms;
  table().SetLimits(limits);
  NextIsForget(keys[1]);
  EXPECT_TRUE(table().Find(newest));
}

TEST_F(JobTableTest, AnotherGraceIsThatOfTheNextStop) {
  JobTableLimits limits = limits_;
  limits.stop_grace = 7s;
  table().SetLimits(limits);
  EXPECT_EQ(table().stop_grace(), 7s);
}

TEST_F(BlockTest, AJobThatWaitsIsKilledWhenThatIsTheNewPolicy) {
  const auto view = StartRunning("alice"), quiet = StartRunning("alice");
  Fill(*view);
  EXPECT_TRUE(broker().NothingSent());
  JobTableLimits limits = limits_;
  limits.output.policy = OutputPolicy::kKill;
  table().SetLimits(limits);
  EXPECT_EQ(Next<Kill>().key, view->key);
  End(view->key, ExitedWith(view->key, SIGKILL, EndCause::kSignalled));
  EXPECT_EQ(view->result.stop.kind, StopKind::kOutputLimit);
  EXPECT_EQ(quiet->phase, JobView::Phase::kRunning);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(BlockTest, AJobThatWaitsGoesOnWhenTheNewPolicyIsToDrop) {
  const auto view = StartRunning("alice");
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  JobTableLimits limits = limits_;
  limits.output.policy = OutputPolicy::kDropOldest;
  table().SetLimits(limits);
  RunUntil([&] { return Left(*view) == 0; });
  EXPECT_GT(view->journal->range().first, 0U);
}

TEST_F(BlockTest, AJobThatWaitsGoesOnWhenMoreIsKept) {
  const auto view = StartRunning("alice");
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  JobTableLimits limits = limits_;
  limits.output.per_job *= 2;
  table().SetLimits(limits);
  RunUntil([&] { return Left(*view) == 0; });
  EXPECT_EQ(view->journal->range().first, 0U);
}

// Whenever that is: also while the job is found to have to wait.
TEST_F(BlockTest, AFollowerOnAnotherThreadMakesRoom) {
  struct Sleeper : OutputReader {
    void OutputReady() override { ready.release(); }
    std::binary_semaphore ready{0};
  };
  const auto view = StartRunning("alice");
  OutputCursor cursor;
  view->journal->Attach(&cursor);
  std::thread follower([&] {
    const auto reader = std::make_shared<Sleeper>();
    for (Outcome outcome = Outcome::kBytes; outcome != Outcome::kEnd;) {
      outcome = view->journal->Read(cursor, reader).outcome;
      if (outcome == Outcome::kWait) reader->ready.acquire();
    }
  });
  for (int i = 0; i < 10'000; ++i) {
    kept_.at(view->key).out.Put(std::string(kPerJob / 4, 'x'));
    RunUntil([&] { return Left(*view) == 0; });
  }
  End(view->key);
  follower.join();
  view->journal->Detach(&cursor);
}

class NarrowBlockTest : public PolicyTest {
 protected:
  NarrowBlockTest() : PolicyTest(OutputPolicy::kBlock, kPerJob + kEmptyHeld) {}
};

TEST_F(NarrowBlockTest, TheEndOfAnotherJobMakesRoom) {
  const auto big = StartRunning("alice"), small = StartRunning("alice"), others = StartRunning("bob");
  Fill(*big);
  kept_.at(others->key).out.Put("other users do not wait");
  RunUntil([&] { return Left(*others) == 0; });
  kept_.at(small->key).out.Put("taken, and found to be too much");
  RunUntil([&] { return Left(*small) == 0; });
  kept_.at(small->key).out.Put("more");
  End(big->key);
  RunUntil([&] { return Left(*small) == 0; });
}

TEST_F(NarrowBlockTest, AReaderOfAnotherJobMakesRoom) {
  const auto big = StartRunning("alice"), small = StartRunning("alice");
  Fill(*big);
  kept_.at(small->key).out.Put("taken, and found to be too much");
  RunUntil([&] { return Left(*small) == 0; });
  kept_.at(small->key).out.Put("more");
  OutputCursor cursor;
  big->journal->Attach(&cursor);
  while (big->journal->Read(cursor, nullptr).outcome == Outcome::kBytes) continue;
  RunUntil([&] { return Left(*small) == 0; });
  big->journal->Detach(&cursor);
}

TEST_F(NarrowBlockTest, AReaderOfAnotherJobIsCalledBackWhenTheUserIsAtTheBound) {
  const auto big = StartRunning("alice"), small = StartRunning("alice");
  OutputCursor cursor{0, {}, 1};
  big->journal->Attach(&cursor);
  Fill(*big);
  kept_.at(small->key).out.Put("taken, and found to be too much");
  RunUntil([&] { return Left(*small) == 0; });
  kept_.at(small->key).out.Put("more");
  const auto reader = std::make_shared<CountingReader>();
  while (big->journal->Read(cursor, reader).outcome == Outcome::kBytes) continue;
  EXPECT_EQ(big->journal->Read(cursor, reader).outcome, Outcome::kResume);
  big->journal->Detach(&cursor);
  cursor.needed = cursor.offset;
  big->journal->Attach(&cursor);
  EXPECT_EQ(big->journal->Read(cursor, reader).outcome, Outcome::kWait);
  RunUntil([&] { return Left(*small) == 0; });
  big->journal->Detach(&cursor);
}

TEST_F(BlockTest, TheEndReleasesIt) {
  const auto view = StartRunning("alice");
  Fill(*view);
  kept_.at(view->key).out.Put("more");
  End(view->key);
  EXPECT_EQ(Left(*view), 0);
}

// It takes what is there once before it finds that no more may be kept.
TEST_F(BlockTest, ANewFrontEndWaitsToo) {
  const JobKey key = StartRunning("alice")->key;
  Fill(**table().Find(key));
  kept_.at(key).out.Put("more");
  Restart();
  const auto view = *table().Find(key);
  RunUntil([&] { return Left(*view) == 0; });
  kept_.at(key).out.Put("and more");
  OutputCursor cursor;
  view->journal->Attach(&cursor);
  while (view->journal->Read(cursor, nullptr).outcome == Outcome::kBytes) continue;
  EXPECT_NE(Left(*view), 0);
  RunUntil([&] { return Left(*view) == 0; });
  EXPECT_GT(view->journal->range().first, 0U);
  view->journal->Detach(&cursor);
}

// --- A broker that is away, behind, or new. ---

TEST_F(JobTableTest, ABrokerThatIsGoneEndsEveryWait) {
  const auto view = StartRunning("alice");
  Ask("alice", WithKey("k"));
  const JobKey unborn = broker().Next<Start>().key;
  Stop(view->key);
  LoseBroker();
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  EXPECT_EQ(stopped_->error(), NoJob::kGone);
  Ask("alice", WithKey("k"));
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kGone);
  Stop(view->key);
  EXPECT_EQ(stopped_->error(), NoJob::kGone);
  EXPECT_EQ(table().Find(unborn).error(), NoJob::kUnknown);
  EXPECT_EQ(*table().Find(view->key), view);
  EXPECT_EQ(Finished(*view), Outcome::kWait);
}

TEST_F(JobTableTest, OutputGoesOnWithoutABroker) {
  const auto view = StartRunning("alice");
  LoseBroker();
  kept_.at(view->key).out.Put("output");
  RunUntil([&] { return view->journal->range().end == 6; });
  MeetBroker();
  EXPECT_EQ(*table().Find(view->key), view);
  kept_.at(view->key).out.Put("!");
  End(view->key, ExitedWith(view->key, 1));
  EXPECT_EQ(ReadAll(*view->journal), "o'output!'");
  EXPECT_EQ(view->result.exited.value, 1);
}

TEST_F(JobTableTest, AJobThatEndedWhileTheBrokerWasAway) {
  const auto view = StartRunning("alice");
  LoseBroker();
  kept_.at(view->key).err.Put("last words");
  kept_.at(view->key).exited = ExitedWith(view->key, 2);
  MeetBroker();
  EXPECT_EQ(view->result.exited.value, 2);
  EXPECT_EQ(ReadAll(*view->journal), "e'last words'");
  EXPECT_EQ(Finished(*view), Outcome::kEnd);
}

TEST_F(JobTableTest, WhatTheNewBrokerDoesNotHaveIsLost) {
  const auto lost = StartRunning("alice"), ended = StartRunning("alice"), kept = StartRunning("alice");
  End(ended->key, ExitedWith(ended->key, 3));
  LoseBroker();
  kept_.at(lost->key).out.Put("last words");
  kept_.erase(ended->key);
  TestPipe out = std::move(kept_.at(lost->key).out);
  kept_.erase(lost->key);
  MeetBroker();
  EXPECT_EQ(lost->result.exited.cause, EndCause::kUnknown);
  EXPECT_EQ(ReadAll(*lost->journal), "o'last words'");
  EXPECT_EQ(Finished(*lost), Outcome::kEnd);
  EXPECT_EQ(ended->result.exited.value, 3);
  EXPECT_TRUE(table().Find(ended->key));
  EXPECT_EQ(kept->phase, JobView::Phase::kRunning);
  EXPECT_TRUE(broker().NothingSent());
}

// The broker does not know what was forgotten here while it was away, or only here.
TEST_F(JobTableTest, ABrokerIsNotToldToForgetWhatItDoesNotHave) {
  const auto lost = StartRunning("alice"), kept = StartRunning("alice");
  LoseBroker();
  kept_.erase(lost->key);
  MeetBroker();
  End(StartRunning("alice")->key);
  End(StartRunning("alice")->key);
  EXPECT_EQ(table().Find(lost->key).error(), NoJob::kUnknown);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, AStopThatMayNotHaveArrivedIsRepeated) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, SIGINT, 1h});
  LoseBroker();
  MeetBroker();
  EXPECT_EQ(broker().Next<Signal>().number, SIGINT);
  EXPECT_EQ(broker().Next<Signal>().number, SIGCONT);
  EXPECT_TRUE(broker().NothingSent());
  End(view->key);
  EXPECT_EQ(view->result.stop.signal, SIGINT);
}

TEST_F(JobTableTest, AStartThatDidSucceedIsFoundByItsKey) {
  Ask("alice", WithKey("k"));
  const auto start = broker().Next<Start>();
  LoseBroker();
  Keep(start);
  MeetBroker();
  Ask("alice", WithKey("k"));
  ASSERT_TRUE(result_);
  EXPECT_EQ((**result_)->key, start.key);
  Ask("alice");
  EXPECT_EQ(broker().Next<Start>().key.id, start.key.id + 1);
}

TEST_F(JobTableTest, AGraceThatRunsOutWithoutABrokerIsOverWithTheNext) {
  const auto view = StartRunning("alice");
  Stop(view->key, {StopKind::kAsked, SIGTERM, 1h});
  LoseBroker();
  kept_.at(view->key).memory.Open()->SetStop({StopKind::kAsked, SIGTERM, false, 0, NowUs()});
  Restart();
  EXPECT_EQ(Next<Kill>().key, view->key);
}

TEST_F(ForgetfulJobTableTest, WhatIsForgottenWithoutABrokerIsForgottenByTheNext) {
  const auto old = StartRunning("alice"), fresh = StartRunning("alice");
  // A second, so that the broker is away by then on a machine that stalls too.
  End(old->key, EndedAt(old->key, NowUs() - 999'000'000));
  LoseBroker();
  RunUntil([&] { return !table().Find(old->key); });
  MeetBroker();
  NextIsForget(old->key);
  EXPECT_EQ(table().Find(old->key).error(), NoJob::kUnknown);
  EXPECT_TRUE(table().Find(fresh->key));
}

TEST_F(ForgetfulJobTableTest, TheNewestIdOutlivesTheBrokerThatHadIt) {
  const JobKey key = StartRunning("alice")->key;
  End(key, EndedAt(key, 1));
  LoseBroker();
  kept_.clear();
  MeetBroker();
  Ask("alice");
  const auto start = broker().Next<Start>();
  EXPECT_EQ(start.key.id, 2U);
  AnswerStarted(start);
  EXPECT_TRUE(broker().NothingSent());
}

TEST_F(JobTableTest, ATableThatIsClosedKnowsNothingAndLeavesTheJobsAsTheyAre) {
  const auto view = StartRunning("alice");
  table().Close();
  EXPECT_EQ(table().Find(view->key).error(), NoJob::kGone);
  Stop(view->key);
  EXPECT_EQ(stopped_->error(), NoJob::kGone);
  EXPECT_EQ(Finished(*view), Outcome::kAbandoned);
  EXPECT_TRUE(broker().NothingSent());
  kept_.at(view->key).out.Put("later");
  Restart();
  const auto again = *table().Find(view->key);
  End(view->key);
  EXPECT_EQ(ReadAll(*again->journal), "o'later'");
}

class NarrowJobTableTest : public JobTableTest {
 protected:
  NarrowJobTableTest() : JobTableTest(LimitsWith([](auto& all) { all.broker_backlog = 1; })) {}
};

TEST_F(NarrowJobTableTest, AStartFailsWhenTheBrokerDoesNotKeepUp) {
  while (!result_) {
    table().StartJob("alice", {{}, {}, {"echo", std::string(30'000, 'x')}, {}}, {},
                     [this](const JobTable::StartResult& result) { result_ = result; });
  }
  EXPECT_EQ(std::get<NoJob>(result_->error()), NoJob::kBusy);
}

}  // namespace
}  // namespace jobworker
