// The front end as its clients see it: behind TLS, before a broker that the test plays.
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "daemon/tls.h"
#include "daemon/worker_service.h"
#include "jobworker.grpc.pb.h"
#include "tests/unit/certificates.h"
#include "tests/unit/test_journal.h"

namespace jobworker {
namespace {

using namespace std::chrono_literals;
using grpc::StatusCode;
using testing::Authority;
using testing::Issue;
using testing::KeyedCertificate;

using Stream = std::unique_ptr<grpc::ClientReader<WorkerResponse>>;

// A stream with its context. Ends with the test, however that ends.
struct Following {
  Following() { context.set_deadline(std::chrono::system_clock::now() + 60s); }
  ~Following() {
    context.TryCancel();
    if (stream == nullptr) return;
    WorkerResponse rest;
    while (stream->Read(&rest)) continue;
  }
  Following(const Following&) = delete;
  WorkerResponse Next() {
    WorkerResponse response;
    EXPECT_TRUE(stream->Read(&response));
    return response;
  }
  // To the end, or until so much output has come: "o'abc' <2> e'def'".
  std::string Output(uint64_t until = UINT64_MAX) {
    std::string all;
    for (last.Clear(); last.offset() + last.log().size() < until && stream->Read(&last);) {
      if (last.dropped() != 0) all += (all.empty() ? "<" : " <") + std::to_string(last.dropped()) + ">";
      if (last.log().empty()) continue;
      const std::string stream_of = last.stream() == STDOUT ? "o'" : "e'";
      all += (all.empty() ? "" : " ") + stream_of + last.log() + "'";
    }
    return all;
  }
  grpc::Status Status() {
    WorkerResponse none;
    EXPECT_FALSE(stream->Read(&none));
    return std::exchange(stream, nullptr)->Finish();
  }
  grpc::ClientContext context;
  Stream stream;
  WorkerResponse last;
};

class FrontEndTest : public ::testing::Test {
 protected:
  struct Running {
    explicit Running(const Start& started) : start(started), memory(started) {}
    Start start;
    JournalMemory memory;
    TestPipe out, err;
  };

  static void SetUpTestSuite() { ForbidOldTls(); }
  explicit FrontEndTest(const JobTableLimits& limits = {}) : table_(loop_, limits) {}

  void SetUp() override {
    table_.Use(client_, [this](const std::string&) { table_.Close(); });
    broker_.Send(Welcome{});
    ASSERT_TRUE(client_.Greet());
    ASSERT_TRUE(client_.Attach());
    table_.Reconcile();
    broker_.Next<Hello>();
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", ServerCredentials(certificates_), &port_);
    rpc_ = std::make_unique<RpcServer>(builder, 2, [this](const auto& call) { service_.Answer(call); });
    open_calls_.Of(*rpc_);
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    ASSERT_NE(server, nullptr);
    rpc_->Start(std::move(server));
    runs_ = std::thread([this] { loop_.Run(); });
    alice_ = As("alice");
  }
  void TearDown() override {
    OnLoop([this] { table_.Close(); });
    rpc_->Shutdown(0ms);
    loop_.Stop();
    runs_.join();
  }

  std::unique_ptr<Worker::Stub> As(const std::string& name) const { return Worker::NewStub(ChannelOf(name)); }
  std::shared_ptr<grpc::Channel> ChannelOf(const std::string& name) const {
    const KeyedCertificate user = Issue({{name}}, authority_);
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port_),
                                     grpc::SslCredentials({authority_.Pem(), user.KeyPem(), user.Pem()}),
                                     own_connection);
  }
  void OnLoop(const std::function<void()>& work) {
    std::promise<void> done;
    loop_.Post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  static WorkerPIDRequest Pid(const std::string& pid) {
    WorkerPIDRequest request;
    request.set_pid(pid);
    return request;
  }
  static void Begin(Worker::Stub& stub, Following& following, const std::string& key = "") {
    WorkerStartRequest request;
    request.set_command("echo hi");
    request.set_request_key(key);
    following.stream = stub.JobStart(&following.context, request);
  }
  // What the broker does with a start that succeeds.
  std::unique_ptr<Running> AnswerStart() {
    auto job = std::make_unique<Running>(broker_.Next<Start>());
    broker_.Send(Started{job->start.key, {}, kIo, 0, 5},
                 {job->out.read.Get(), job->err.read.Get(), job->memory.data.Get(), job->memory.index.Get()});
    return job;
  }
  void SendExited(const Running& job, uint8_t value) {
    Exited exited;
    exited.key = job.start.key;
    exited.value = value;
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    exited.ended_us = static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
    broker_.Send(exited);
  }
  // A job of alice's that has ended, with this on its stdout.
  std::unique_ptr<Running> RunToEnd(const std::string& output, uint8_t value = 0) {
    Following start;
    Begin(*alice_, start);
    auto job = AnswerStart();
    job->out.Put(output);
    SendExited(*job, value);
    (void)start.Output();
    EXPECT_TRUE(start.Status().ok());
    return job;
  }
  grpc::Status QueryStatus(Worker::Stub& stub, const WorkerPIDRequest& request) {
    Following query;
    query.stream = stub.JobQuery(&query.context, request);
    (void)query.Output();
    return query.Status();
  }
  std::string Query(const WorkerPIDRequest& request, WorkerResponse* last = nullptr) {
    Following query;
    query.stream = alice_->JobQuery(&query.context, request);
    std::string output = query.Output();
    if (last != nullptr) *last = query.last;
    const grpc::Status status = query.Status();
    return status.ok() ? output : status.error_message();
  }

  const KeyedCertificate authority_ = Authority("JobWorker CA");
  const KeyedCertificate worker_ = Issue({{"worker"}, testing::kServerExtensions}, authority_);
  Certificates certificates_{testing::SetOf(authority_, worker_)};
  Gate gate_{certificates_, Policy::BuiltIn()};
  EventLoop loop_;
  FakeBroker broker_;
  JobTable table_;
  BrokerClient client_{loop_, broker_.TakeClientEnd(), table_};
  OpenCalls open_calls_{loop_, gate_};
  WorkerService service_{gate_, open_calls_, loop_, table_};
  int port_ = 0;
  std::unique_ptr<RpcServer> rpc_;
  std::thread runs_;
  std::unique_ptr<Worker::Stub> alice_;
};

// --- Who may not, and what is none. ---

TEST_F(FrontEndTest, WhoHasNoRightGetsNowhere) {
  const auto carl = As("carl");
  Following start;
  Begin(*carl, start);
  EXPECT_EQ(start.Status().error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(QueryStatus(*carl, Pid("1")).error_code(), StatusCode::PERMISSION_DENIED);
  grpc::ClientContext context;
  WorkerResponse response;
  EXPECT_EQ(carl->JobStop(&context, Pid("1"), &response).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(broker_.NothingSent());
}

TEST_F(FrontEndTest, AnothersJobIsNotFoundWordForWordAsOneThatNeverWas) {
  RunToEnd("secret");
  const auto bob = As("bob");
  const grpc::Status others = QueryStatus(*bob, Pid("1")), never = QueryStatus(*bob, Pid("99"));
  EXPECT_EQ(others.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(never.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(others.error_message(), never.error_message());
  grpc::ClientContext context;
  WorkerResponse response;
  EXPECT_EQ(bob->JobStop(&context, Pid("1"), &response).error_message(), never.error_message());
}

TEST_F(FrontEndTest, InvalidRequestsReachNobody) {
  WorkerStartRequest nothing;
  Following start;
  start.stream = alice_->JobStart(&start.context, nothing);
  EXPECT_EQ(start.Status().error_code(), StatusCode::INVALID_ARGUMENT);
  WorkerPIDRequest streams = Pid("1");
  streams.set_streams(static_cast<WorkerPIDRequest::Streams>(7));
  for (const WorkerPIDRequest& request : {Pid(""), Pid("0"), Pid("x"), streams}) {
    EXPECT_EQ(QueryStatus(*alice_, request).error_code(), StatusCode::INVALID_ARGUMENT);
  }
  WorkerPIDRequest signal = Pid("1");
  signal.set_signal(65);
  grpc::ClientContext context;
  WorkerResponse response;
  EXPECT_EQ(alice_->JobStop(&context, signal, &response).error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(broker_.NothingSent());
}

TEST_F(FrontEndTest, WhatIsNoRequestIsRefused) {
  const auto channel = ChannelOf("alice");
  const auto call = [&](const std::string& method, const std::string& bytes) {
    grpc::CompletionQueue queue;
    grpc::ClientContext context;
    const grpc::Slice slice(bytes);
    grpc::ByteBuffer response;
    grpc::Status status;
    const auto reader = grpc::GenericStub(channel).PrepareUnaryCall(&context, method, {&slice, 1}, &queue);
    reader->StartCall();
    reader->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue.Next(&tag, &ok));
    return status.error_code();
  };
  for (const MethodRow& row : kMethods) {
    if (row.service != "Worker") continue;
    EXPECT_EQ(call("/Worker/" + std::string(row.name), "\xff\xff"), StatusCode::INVALID_ARGUMENT) << row.name;
  }
  for (const char* method : {"/Worker/NoSuchMethod", "/worker/JobStart", "/grpc.health.v1.Health/Start"}) {
    EXPECT_EQ(call(method, "\xff\xff"), StatusCode::UNIMPLEMENTED) << method;
  }
  EXPECT_TRUE(broker_.NothingSent());
}

// --- A start. ---

TEST_F(FrontEndTest, AStartStreamsTheJobToItsEnd) {
  Following start;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  const WorkerResponse first = start.Next();
  EXPECT_EQ(first.pid(), "1");
  EXPECT_EQ(first.status().state(), JobStatus::RUNNING);
  EXPECT_EQ(first.status().argv_size(), 2);
  EXPECT_EQ(first.status().started_us(), 5);
  ASSERT_EQ(first.unenforced_size(), 1);
  EXPECT_EQ(first.unenforced(0), "io");
  job->out.Put("out");
  EXPECT_EQ(start.Output(3), "o'out'");
  job->err.Put("error");
  EXPECT_EQ(start.Output(8), "e'error'");
  EXPECT_EQ(start.last.offset(), 3U);
  EXPECT_GT(start.last.time_us(), 0);
  SendExited(*job, 3);
  EXPECT_EQ(start.Output(), "");
  EXPECT_EQ(start.last.offset(), 8U);
  EXPECT_EQ(start.last.end().exit_code(), 3);
  EXPECT_EQ(start.last.end().reason(), JobEnd::EXITED_BY_ITSELF);
  EXPECT_TRUE(start.Status().ok());
}

TEST_F(FrontEndTest, AStartThatFailsSaysWhere) {
  Following start;
  Begin(*alice_, start);
  broker_.Send(Failed{broker_.Next<Start>().key, RequestType::kStart, Stage::kExec, ENOENT});
  const grpc::Status status = start.Status();
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  StartFailure detail;
  ASSERT_TRUE(detail.ParseFromString(status.error_details()));
  EXPECT_EQ(detail.stage(), "exec");
  EXPECT_EQ(detail.error(), ENOENT);
}

TEST_F(FrontEndTest, ARepeatedStartFollowsTheSameJobFromItsFirstByte) {
  Following first, second;
  Begin(*alice_, first, "key");
  const auto job = AnswerStart();
  job->out.Put("abc");
  EXPECT_EQ(first.Output(3), "o'abc'");
  Begin(*alice_, second, "key");
  EXPECT_EQ(second.Output(3), "o'abc'");
  SendExited(*job, 0);
  EXPECT_EQ(first.Output(), "");
  EXPECT_EQ(second.Output(), "");
  EXPECT_TRUE(broker_.NothingSent());
}

TEST_F(FrontEndTest, AJobRunsOnWhenItsStarterLeaves) {
  std::unique_ptr<Running> job;
  {
    Following start;
    Begin(*alice_, start);
    job = AnswerStart();
    start.Next();
  }
  job->out.Put("still there");
  SendExited(*job, 0);
  EXPECT_EQ(Query(Pid("1")), "o'still there'");
}

TEST_F(FrontEndTest, AClientThatLeavesBeforeTheJobHasStartedCostsNothing) {
  {
    Following start;
    Begin(*alice_, start);
    broker_.Next<Start>();
  }
  Running job({{"alice", 1}, {}, {"echo"}, {}});
  broker_.Send(Started{job.start.key, {}, 0, 0, 5},
               {job.out.read.Get(), job.err.read.Get(), job.memory.data.Get(), job.memory.index.Get()});
  job.out.Put("unheard");
  SendExited(job, 0);
  Following next;
  Begin(*alice_, next);
  const auto other = AnswerStart();  // once that has arrived, so has all before it
  EXPECT_EQ(next.Next().pid(), "2");
  EXPECT_EQ(Query(Pid("1")), "o'unheard'");
}

// --- Queries. ---

TEST_F(FrontEndTest, AQueryBeginsWhereItIsAskedTo) {
  const auto job = RunToEnd("one\ntwo\nthree", 4);
  WorkerResponse last;
  EXPECT_EQ(Query(Pid("1"), &last), "o'one\ntwo\nthree'");
  EXPECT_EQ(last.end().exit_code(), 4);
  EXPECT_EQ(last.offset(), 13U);
  WorkerPIDRequest request = Pid("1");
  request.set_offset(8);
  EXPECT_EQ(Query(request), "o'three'");
  request.set_offset(13);
  EXPECT_EQ(Query(request, &last), "");
  EXPECT_TRUE(last.has_end());
  request.set_offset(14);
  EXPECT_EQ(QueryStatus(*alice_, request).error_code(), StatusCode::INVALID_ARGUMENT);
  request.clear_offset();
  request.set_tail_bytes(2);
  EXPECT_EQ(Query(request), "o'ee'");
  request.set_tail_bytes(0);
  EXPECT_EQ(Query(request), "");
  request.clear_tail_bytes();
  request.set_tail_lines(2);
  EXPECT_EQ(Query(request), "o'two\nthree'");
  request.set_streams(WorkerPIDRequest::ONLY_STDERR);
  EXPECT_EQ(Query(request, &last), "");
  EXPECT_TRUE(last.has_end());
}

TEST_F(FrontEndTest, WithoutFollowingItEndsWithWhatThereIs) {
  Following start;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  WorkerPIDRequest request = Pid("1");
  request.set_no_follow(true);
  start.Next();
  WorkerResponse last;
  EXPECT_EQ(Query(request, &last), "");
  EXPECT_TRUE(last.partial());
  job->out.Put("abc");
  EXPECT_EQ(start.Output(3), "o'abc'");
  EXPECT_EQ(Query(request, &last), "o'abc'");
  EXPECT_TRUE(last.partial());
  EXPECT_FALSE(last.has_end());
  EXPECT_EQ(last.offset(), 3U);
  SendExited(*job, 0);
  (void)start.Output();
  EXPECT_EQ(Query(request, &last), "o'abc'");
  EXPECT_FALSE(last.partial());
  EXPECT_TRUE(last.has_end());
}

TEST_F(FrontEndTest, AQueryAheadOfTheOutputWaitsForIt) {
  Following start, query;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  start.Next();
  WorkerPIDRequest request = Pid("1");
  request.set_offset(2);
  query.stream = alice_->JobQuery(&query.context, request);
  EXPECT_EQ(query.Next().offset(), 2U);
  job->out.Put("abcd");
  EXPECT_EQ(query.Output(4), "o'cd'");
}

TEST_F(FrontEndTest, FollowersThatLeaveAreLetGo) {
  Following start;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  start.Next();
  // A thread that lets go of the output may still be in the callback when the test is over.
  struct Leaving {
    JobTable::View view;
    std::promise<void> alone;
    std::atomic<bool> begun = false, told = false;
  };
  const auto leaving = std::make_shared<Leaving>();
  OnLoop([&] {
    leaving->view = *table_.Find(job->start.key);
    leaving->view->journal->OnProgress([leaving] {
      if (!leaving->begun || leaving->view->journal->followers() != 1) return;
      if (!leaving->told.exchange(true)) leaving->alone.set_value();
    });
  });
  {
    Following queries[5];
    for (Following& query : queries) {
      query.stream = alice_->JobQuery(&query.context, Pid("1"));
      query.Next();
    }
    EXPECT_EQ(leaving->view->journal->followers(), 6U);
    leaving->begun = true;
  }
  leaving->alone.get_future().wait();
  OnLoop([&] { leaving->view->journal->OnProgress(nullptr); });
  job->out.Put("abc");
  EXPECT_EQ(start.Output(3), "o'abc'");
}

class SmallFrontEndTest : public FrontEndTest {
 protected:
  static JobTableLimits Small() {
    JobTableLimits limits;
    limits.output.per_job = 256 * 1024;
    return limits;
  }
  SmallFrontEndTest() : FrontEndTest(Small()) {}
};

TEST_F(SmallFrontEndTest, AGapIsToldAndEveryByteAfterItComes) {
  Following start;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  uint64_t end = 0;
  start.Next();
  for (int i = 0; i < 20; ++i) {
    job->out.Put(std::string(60'000, static_cast<char>('a' + i)));
    (void)start.Output(end += 60'000);
  }
  Following query;
  query.stream = alice_->JobQuery(&query.context, Pid("1"));
  const WorkerResponse first = query.Next();
  EXPECT_GT(first.status().output().first(), 0U);
  const WorkerResponse gap = query.Next();
  EXPECT_EQ(gap.dropped(), gap.offset());
  EXPECT_EQ(gap.offset(), first.status().output().first());
  SendExited(*job, 0);
  uint64_t next = gap.offset() + gap.log().size();
  WorkerResponse response;
  while (query.stream->Read(&response) && !response.has_end()) {
    EXPECT_EQ(response.offset(), next);
    next += response.log().size();
  }
  EXPECT_EQ(next, end);
  EXPECT_TRUE(response.has_end());
}

// --- Stops, and the server's own end. ---

TEST_F(FrontEndTest, AStopTellsHowTheJobEnded) {
  Following start;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  start.Next();
  WorkerPIDRequest request = Pid("1");
  request.set_signal(2);
  WorkerResponse response;
  auto stopped = std::async(std::launch::async, [&] {
    grpc::ClientContext context;
    return alice_->JobStop(&context, request, &response);
  });
  EXPECT_EQ(broker_.Next<Signal>().number, 2);
  EXPECT_EQ(broker_.Next<Signal>().number, SIGCONT);
  SendExited(*job, 9);
  EXPECT_TRUE(stopped.get().ok());
  EXPECT_EQ(response.pid(), "1");
  EXPECT_EQ(response.end().reason(), JobEnd::STOPPED);
  EXPECT_EQ(response.end().actor(), "alice");
  EXPECT_EQ(response.end().stop_signal(), 2);
  EXPECT_EQ(response.end().started_us(), 5);
  (void)start.Output();
  EXPECT_EQ(start.last.end().reason(), JobEnd::STOPPED);
  grpc::ClientContext context;
  EXPECT_TRUE(alice_->JobStop(&context, request, &response).ok());
  EXPECT_EQ(response.end().exit_code(), 9);
}

TEST_F(FrontEndTest, EverybodyIsToldWhenTheServerEnds) {
  Following start, unborn;
  Begin(*alice_, start);
  const auto job = AnswerStart();
  start.Next();
  job->out.Put("abc");
  EXPECT_EQ(start.Output(3), "o'abc'");
  Begin(*alice_, unborn);
  broker_.Next<Start>();
  OnLoop([this] { table_.Close(); });
  EXPECT_EQ(start.Status().error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(unborn.Status().error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(QueryStatus(*alice_, Pid("1")).error_code(), StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace jobworker
