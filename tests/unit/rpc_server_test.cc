// Calls as the server sees them, from clients that behave and clients that do not, over loopback.
#include "daemon/rpc_server.h"

#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <set>

#include "jobworker.grpc.pb.h"

namespace jobworker {
namespace {

using std::chrono::milliseconds;

// Only so that a test that fails ends.
std::chrono::system_clock::time_point Patience() { return std::chrono::system_clock::now() + std::chrono::seconds(60); }

// Writes down what it is told, and lets a test wait for it.
class Recorder : public CallHandler {
 public:
  void OnMessage(const std::optional<grpc::ByteBuffer>& message) override {
    WorkerPIDRequest request;
    Note(!message ? "none" : FromBuffer(*message, request) ? "message(" + request.pid() + ")" : "garbage");
  }
  void OnWritten() override { Note("written"); }
  void OnOver() override { Note("over"); }
  // Until so much has been told.
  std::vector<std::string> Log(size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(told_.wait_until(lock, Patience(), [&] { return log_.size() >= count; })) << count;
    return log_;
  }

 private:
  void Note(std::string what) {
    const std::lock_guard lock(mutex_);
    log_.push_back(std::move(what));
    told_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable told_;
  std::vector<std::string> log_;
};

WorkerResponse Response(const std::string& log) {
  WorkerResponse response;
  response.set_log(log);
  return response;
}

class RpcServerTest : public testing::Test {
 protected:
  static constexpr int kMaxRequest = 256 * 1024;

  void SetUp() override { Serve(2); }
  void TearDown() override { rpc_ = nullptr; }
  void Serve(size_t threads) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(kMaxRequest);
    rpc_ = std::make_unique<RpcServer>(builder, threads, [this](const auto& call) { answer()(call); });
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    ASSERT_NE(server, nullptr);
    rpc_->Start(std::move(server));
  }
  [[nodiscard]] std::shared_ptr<grpc::Channel> Connect() const {
    grpc::ChannelArguments own_connection;
    own_connection.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port_), grpc::InsecureChannelCredentials(),
                                     own_connection);
  }
  // To a client that takes 64 KiB at most before it reads: by itself gRPC makes a window as large as the way is fast.
  [[nodiscard]] std::shared_ptr<grpc::Channel> ConnectSlow() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    return grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port_), grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  // What is to be done with calls from now on.
  void Do(RpcServer::Answer answer) {
    const std::lock_guard lock(mutex_);
    answer_ = std::move(answer);
  }
  RpcServer::Answer answer() {
    const std::lock_guard lock(mutex_);
    return answer_;
  }
  // The next call is kept for the test, with the recorder, and otherwise left alone.
  void Keep() {
    const auto promise = std::make_shared<std::promise<std::shared_ptr<Call>>>();
    kept_ = promise->get_future();
    Do([promise, recorder = recorder_](const std::shared_ptr<Call>& call) {
      call->Use(recorder);
      promise->set_value(call);
    });
  }
  std::shared_ptr<Call> Kept() {
    EXPECT_EQ(kept_.wait_until(Patience()), std::future_status::ready);
    return kept_.get();
  }
  // One that nobody holds any more.
  static void ExpectGone(const std::weak_ptr<Call>& call) {
    const auto until = Patience();
    while (!call.expired() && std::chrono::system_clock::now() < until) std::this_thread::yield();
    EXPECT_TRUE(call.expired());
  }

  int port_ = 0;
  std::mutex mutex_;  // guards answer_
  RpcServer::Answer answer_;
  std::shared_ptr<Recorder> recorder_ = std::make_shared<Recorder>();
  std::future<std::shared_ptr<Call>> kept_;
  std::unique_ptr<RpcServer> rpc_;
};

// A client's side of one call, in bytes.
class RawCall {
 public:
  RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) {
    context_.set_deadline(Patience());
    stream_ = grpc::GenericStub(channel).PrepareCall(&context_, method, &queue_);
    stream_->StartCall(nullptr);
    EXPECT_TRUE(Next());
  }
  ~RawCall() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) continue;
  }
  RawCall(const RawCall&) = delete;

  bool Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    stream_->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    return Next();
  }
  bool WritesDone() {
    stream_->WritesDone(nullptr);
    return Next();
  }
  std::optional<WorkerResponse> Read() {
    grpc::ByteBuffer buffer;
    stream_->Read(&buffer, nullptr);
    WorkerResponse response;
    if (!Next()) return std::nullopt;
    EXPECT_TRUE(FromBuffer(buffer, response));
    return response;
  }
  grpc::Status Finish() {
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    EXPECT_TRUE(Next());
    return status;
  }
  void Cancel() { context_.TryCancel(); }

 private:
  bool Next() {
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue_.Next(&tag, &ok));
    return ok;
  }
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

std::string Encoded(const std::string& pid) {
  WorkerPIDRequest request;
  request.set_pid(pid);
  return request.SerializeAsString();
}

// --- What a client may send. ---

TEST_F(RpcServerTest, EveryMethodComesByItsPath) {
  Do([](const std::shared_ptr<Call>& call) {
    call->Finish({grpc::StatusCode::UNIMPLEMENTED, call->method(), "details"});
  });
  const auto channel = Connect();
  for (const char* path : {"/Worker/JobStop", "/Worker/NoSuchMethod", "/grpc.health.v1.Health/Check", "/x", "/"}) {
    RawCall call(channel, path);
    EXPECT_EQ(call.Read(), std::nullopt);
    const grpc::Status status = call.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
    EXPECT_EQ(status.error_message(), path);
    EXPECT_EQ(status.error_details(), "details");
  }
}

TEST_F(RpcServerTest, AMessageThatIsNoneIsTold) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  EXPECT_TRUE(client.Write("\xff\xff\xff"));
  const auto call = Kept();
  call->ReadNext();
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"garbage"});
  call->Finish({grpc::StatusCode::INVALID_ARGUMENT, "no"});
  EXPECT_EQ(client.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(recorder_->Log(2).back(), "over");
}

TEST_F(RpcServerTest, NoMessageIsTold) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  EXPECT_TRUE(client.WritesDone());
  const auto call = Kept();
  call->ReadNext();
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"none"});
  call->ReadNext();
  EXPECT_EQ(recorder_->Log(2), (std::vector<std::string>{"none", "none"}));
  call->Finish(grpc::Status::OK);
  EXPECT_TRUE(client.Finish().ok());
}

TEST_F(RpcServerTest, AnEmptyMessageIsAMessage) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  EXPECT_TRUE(client.Write(""));
  const auto call = Kept();
  call->ReadNext();
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"message()"});
  call->Finish(grpc::Status::OK);
  EXPECT_TRUE(client.Finish().ok());
}

TEST_F(RpcServerTest, ARequestAtTheBoundIsTakenAndALargerOneIsNot) {
  Do([](const std::shared_ptr<Call>& call) {
    struct Sizes : CallHandler {
      explicit Sizes(std::shared_ptr<Call> on) : call(std::move(on)) {}
      void OnMessage(const std::optional<grpc::ByteBuffer>& message) override {
        call->Finish({grpc::StatusCode::ABORTED, message ? std::to_string(message->Length()) : "none"});
      }
      void OnOver() override { call = nullptr; }
      std::shared_ptr<Call> call;
    };
    call->Use(std::make_shared<Sizes>(call));
    call->ReadNext();
  });
  const auto channel = Connect();
  for (const int size : {kMaxRequest - 1, kMaxRequest}) {
    RawCall call(channel, "/Worker/JobStart");
    EXPECT_TRUE(call.Write(std::string(static_cast<size_t>(size), 'x')));
    EXPECT_EQ(call.Finish().error_message(), std::to_string(size));
  }
  for (const int size : {kMaxRequest + 1, 1 << 20}) {
    RawCall call(channel, "/Worker/JobStart");
    (void)call.Write(std::string(static_cast<size_t>(size), 'x'));
    const grpc::Status status = call.Finish();
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED || status.error_message() == "none")
        << status.error_code() << status.error_message();
  }
}

TEST_F(RpcServerTest, MessagesComeAndGoInOrder) {
  Do([](const std::shared_ptr<Call>& call) {
    struct Echo : CallHandler {
      explicit Echo(std::shared_ptr<Call> on) : call(std::move(on)) {}
      void OnMessage(const std::optional<grpc::ByteBuffer>& message) override {
        WorkerPIDRequest request;
        if (!message) return call->WriteAndFinish(ToBuffer(Response("last")));
        EXPECT_TRUE(FromBuffer(*message, request));
        call->Write(ToBuffer(Response(request.pid())));
      }
      void OnWritten() override { call->ReadNext(); }
      void OnOver() override { call = nullptr; }
      std::shared_ptr<Call> call;
    };
    call->Use(std::make_shared<Echo>(call));
    call->ReadNext();
  });
  RawCall client(Connect(), "/Worker/JobInput");
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(client.Write(Encoded(std::to_string(i))));
    EXPECT_EQ(client.Read()->log(), std::to_string(i));
  }
  EXPECT_TRUE(client.WritesDone());
  EXPECT_EQ(client.Read()->log(), "last");
  EXPECT_EQ(client.Read(), std::nullopt);
  EXPECT_TRUE(client.Finish().ok());
}

// --- The end. ---

TEST_F(RpcServerTest, TheFirstEndCountsAndNothingIsDoneAfterIt) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  auto call = Kept();
  call->Finish({grpc::StatusCode::ABORTED, "first"});
  call->Finish({grpc::StatusCode::ABORTED, "second"});
  call->WriteAndFinish(ToBuffer(Response("third")));
  call->Write(ToBuffer(Response("fourth")));
  call->ReadNext();
  EXPECT_EQ(client.Read(), std::nullopt);
  EXPECT_EQ(client.Finish().error_message(), "first");
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"over"});
  call->Write(ToBuffer(Response("fifth")));
  call->ReadNext();
  call->Finish(grpc::Status::OK);
  const std::weak_ptr<Call> weak = call;
  call = nullptr;
  ExpectGone(weak);
  EXPECT_EQ(recorder_->Log(1).size(), 1U);
}

TEST_F(RpcServerTest, ACallThatNobodyAnswersLivesUntilItsClientLeaves) {
  std::promise<std::weak_ptr<Call>> seen;
  Do([&](const std::shared_ptr<Call>& call) { seen.set_value(call); });
  std::weak_ptr<Call> call;
  {
    const RawCall client(Connect(), "/Worker/JobStop");
    call = seen.get_future().get();
    EXPECT_FALSE(call.expired());
  }
  ExpectGone(call);
}

// The client leaves when the call was accepted, when its message is waited for, when it has been read, while a response
// that it does not read is being written, and when the end is on its way.
class CancelTest : public RpcServerTest, public testing::WithParamInterface<int> {};

TEST_P(CancelTest, IsToldOnceAndFreesTheCall) {
  const int step = GetParam();
  Keep();
  std::optional<RawCall> client(std::in_place, Connect(), "/Worker/JobInput");
  auto call = Kept();
  const std::weak_ptr<Call> weak = call;
  std::vector<std::string> expected;
  if (step == 1) call->ReadNext();
  if (step >= 2) {
    EXPECT_TRUE(client->Write(Encoded("7")));
    call->ReadNext();
    EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"message(7)"});
    expected.emplace_back("message(7)");
  }
  if (step == 3) call->Write(ToBuffer(Response(std::string(4 << 20, 'x'))));
  if (step == 4) call->WriteAndFinish(ToBuffer(Response(std::string(4 << 20, 'x'))));
  if (step == 5) call->Finish({grpc::StatusCode::ABORTED, "end"});
  client->Cancel();
  client.reset();
  if (step == 1) expected.emplace_back("none");  // in place of a message
  expected.emplace_back("over");
  std::vector<std::string> log = recorder_->Log(expected.size());
  std::erase(log, "written");  // as far as the client's window was open
  EXPECT_EQ(log, expected);
  call->Write(ToBuffer(Response("late")));
  call->ReadNext();
  call->Finish(grpc::Status::OK);
  call = nullptr;
  ExpectGone(weak);
}

INSTANTIATE_TEST_SUITE_P(AtEachStep, CancelTest, testing::Range(0, 6));

TEST_F(RpcServerTest, ManyClientsAtOnce) {
  std::atomic<int> over = 0;
  Do([&over](const std::shared_ptr<Call>& call) {
    struct Once : CallHandler {
      Once(std::shared_ptr<Call> on, std::atomic<int>& counted) : call(std::move(on)), over(counted) {}
      void OnMessage(const std::optional<grpc::ByteBuffer>& message) override {
        WorkerPIDRequest request;
        if (!message || !FromBuffer(*message, request)) return call->Finish(grpc::Status::CANCELLED);
        call->WriteAndFinish(ToBuffer(Response(request.pid())));
      }
      void OnOver() override {
        call = nullptr;
        ++over;
      }
      std::shared_ptr<Call> call;
      std::atomic<int>& over;
    };
    call->Use(std::make_shared<Once>(call, over));
    call->ReadNext();
  });
  constexpr int kThreads = 4, kCalls = 100;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([i, stub = Worker::NewStub(Connect())] {
      for (int n = 0; n < kCalls; ++n) {
        grpc::ClientContext context;
        WorkerPIDRequest request;
        request.set_pid(std::to_string(i * kCalls + n));
        WorkerResponse response;
        EXPECT_TRUE(stub->JobStop(&context, request, &response).ok());
        EXPECT_EQ(response.log(), request.pid());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  rpc_->Shutdown(milliseconds(0));
  EXPECT_EQ(over, kThreads * kCalls);
}

// --- A call is ended from outside. ---

const grpc::Status kRevoked{grpc::StatusCode::PERMISSION_DENIED, "revoked"};

TEST_F(RpcServerTest, ACallThatWaitsIsRevokedAtOnce) {
  Keep();
  RawCall client(Connect(), "/Worker/JobInput");
  const auto call = Kept();
  call->ReadNext();
  EXPECT_TRUE(call->Revoke(kRevoked));
  EXPECT_FALSE(call->Revoke(grpc::Status::OK));
  call->Write(ToBuffer(Response("late")));
  call->Finish(grpc::Status::OK);
  EXPECT_EQ(client.Read(), std::nullopt);
  const grpc::Status status = client.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(status.error_message(), "revoked");
  EXPECT_EQ(recorder_->Log(2), (std::vector<std::string>{"none", "over"}));
}

TEST_F(RpcServerTest, WhatComesAfterARevocationIsNotHeard) {
  Keep();
  RawCall client(ConnectSlow(), "/Worker/JobInput");
  const auto call = Kept();
  call->Write(ToBuffer(Response(std::string(3 << 20, 'x'))));  // so that the end has to wait
  call->ReadNext();
  EXPECT_TRUE(call->Revoke(kRevoked));
  EXPECT_TRUE(client.Write(Encoded("7")));
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"none"});
  EXPECT_EQ(client.Read()->log().size(), size_t{3} << 20);
  EXPECT_EQ(client.Read(), std::nullopt);
  EXPECT_EQ(client.Finish().error_message(), "revoked");
  EXPECT_EQ(recorder_->Log(2).back(), "over");
}

TEST_F(RpcServerTest, AClientThatDoesNotTakeItsRevocationIsCancelled) {
  Keep();
  RawCall client(ConnectSlow(), "/Worker/JobInput");
  auto call = Kept();
  call->Write(ToBuffer(Response(std::string(3 << 20, 'x'))));
  EXPECT_TRUE(call->Revoke(kRevoked));
  call->Cancel();
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"over"});
  const std::weak_ptr<Call> weak = call;
  call = nullptr;
  ExpectGone(weak);
}

TEST_F(RpcServerTest, ACallThatEndsByItselfIsNotRevoked) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  const auto call = Kept();
  call->Finish({grpc::StatusCode::ABORTED, "first"});
  EXPECT_FALSE(call->Revoke(kRevoked));
  EXPECT_EQ(client.Finish().error_message(), "first");
  EXPECT_EQ(recorder_->Log(1), std::vector<std::string>{"over"});
  EXPECT_FALSE(call->Revoke(kRevoked));
}

TEST_F(RpcServerTest, KnowsTheCallsThatAreOpen) {
  EXPECT_TRUE(rpc_->Open().empty());
  Keep();
  RawCall first(Connect(), "/Worker/JobStop");
  const auto call = Kept();
  Keep();
  std::optional<RawCall> second(std::in_place, Connect(), "/Worker/JobInput");
  std::weak_ptr<Call> other = Kept();
  EXPECT_EQ(rpc_->Open().size(), 2U);
  second.reset();
  ExpectGone(other);
  EXPECT_EQ(rpc_->Open(), std::vector{call});
  rpc_->Shutdown(milliseconds(0));
  EXPECT_TRUE(rpc_->Open().empty());
}

// --- The server ends. ---

TEST_F(RpcServerTest, EndsCallsThatAreInProgress) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  const auto call = Kept();
  call->ReadNext();
  rpc_->Shutdown(milliseconds(0));
  EXPECT_EQ(recorder_->Log(2), (std::vector<std::string>{"none", "over"}));
  EXPECT_FALSE(client.Finish().ok());
  call->Finish(grpc::Status::OK);
  rpc_->Shutdown(milliseconds(0));
}

TEST_F(RpcServerTest, LetsCallsEndWithinTheGrace) {
  Keep();
  RawCall client(Connect(), "/Worker/JobStop");
  const auto call = Kept();
  std::thread ending([this] { rpc_->Shutdown(std::chrono::minutes(1)); });
  call->Finish({grpc::StatusCode::ABORTED, "in time"});
  ending.join();
  EXPECT_EQ(client.Finish().error_message(), "in time");
}

TEST_F(RpcServerTest, MayEndBeforeItHasStarted) {
  grpc::ServerBuilder builder;
  const RpcServer never(builder, 2, [](const auto&) {});
}

// Other threads go on asking for things: what they ask for when the queues are closing is not done.
TEST_F(RpcServerTest, EndsWhileOthersAreBusyWithItsCalls) {
  for (int round = 0; round < 20; ++round) {
    recorder_ = std::make_shared<Recorder>();
    Keep();
    RawCall client(Connect(), "/Worker/JobInput");
    const auto call = Kept();
    std::atomic<bool> ended = false;
    std::thread busy([&] {
      while (!ended) {
        call->ReadNext();
        (void)recorder_->Log(1);
        call->Finish({grpc::StatusCode::ABORTED, "busy"});
      }
    });
    rpc_->Shutdown(milliseconds(0));
    ended = true;
    busy.join();
    Serve(2);
  }
}

}  // namespace
}  // namespace jobworker
