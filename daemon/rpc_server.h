// Calls as they come in, of every method, on gRPC's completion-queue API: its threads wait for nothing but the next
// event. (Those of its callback API, in 1.51, wake every second and may sleep 100 ms while there is work.)
#pragma once
#include <google/protobuf/message_lite.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <array>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

namespace jobworker {

class RpcServer;

// What a method does with one call. Called on a thread of the queue, one call at a time for each Call.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  // After the first one, once for each Call::ReadNext; nothing when the client has no more to say.
  virtual void OnMessage(const std::optional<grpc::ByteBuffer>& /*message*/) {}
  // After each Call::Write.
  virtual void OnWritten() {}
  // The end was sent, or the client is gone. Nothing comes after it, and nothing that is asked of the call is done.
  virtual void OnOver() {}
};

// One call, from its first byte to its last. Any thread may use it.
class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(RpcServer& server, grpc::ServerCompletionQueue& queue);
  Call(const Call&) = delete;

  [[nodiscard]] const grpc::GenericServerContext& context() const { return context_; }
  // "/Worker/JobStart"
  [[nodiscard]] const std::string& method() const { return context_.method(); }

  // Kept until the call is over. To be set before anything is asked of the call.
  void Use(std::shared_ptr<CallHandler> handler);
  // Asks for the client's next message. One at a time.
  void ReadNext();
  // One at a time, until OnWritten. The second ends the call, as Finish does. After an end, nothing more is done.
  void Write(const grpc::ByteBuffer& message);
  void WriteAndFinish(const grpc::ByteBuffer& message, const grpc::Status& status = grpc::Status::OK);
  void Finish(const grpc::Status& status);

  // From outside, whatever its handler is doing: nothing more is read or written, and it ends once what is being
  // written is on its way. A client that does not take that keeps it open until Cancel. False when it was ending by
  // itself.
  bool Revoke(const grpc::Status& status);
  void Cancel() const { context_.TryCancel(); }

 private:
  friend class RpcServer;
  enum Event : size_t { kAccepted, kRead, kWritten, kFinished, kDone, kEvents };
  struct Tag {
    Call* call;
    Event event;
  };
  // Hands `event`'s tag to gRPC; the call lives until it has come back.
  void* Expect(Event event);
  void Happened(Event event, bool ok);
  void Accepted(bool ok);
  // Nothing more is to be asked of gRPC. With the lock held.
  [[nodiscard]] bool Ends() const { return finished_ || cancelled_ || revoked_.has_value(); }
  void Received(bool ok);
  void Written(bool ok);

  RpcServer& server_;
  grpc::ServerCompletionQueue& queue_;
  grpc::GenericServerContext context_;
  grpc::GenericServerAsyncReaderWriter stream_;
  std::array<Tag, kEvents> tags_;
  grpc::ByteBuffer incoming_;

  std::mutex mutex_;  // guards the rest
  std::shared_ptr<Call> self_;
  size_t expected_ = 0;  // tags that gRPC has
  bool finished_ = false, cancelled_ = false, writing_ = false;
  std::optional<grpc::Status> revoked_;  // while that waits for a write
  std::shared_ptr<CallHandler> handler_;
};

// A port with its threads. Each call is handed to `answer` on one of them, when its headers are there; what
// `answer` does with it there must not wait.
class RpcServer {
 public:
  using Answer = std::function<void(const std::shared_ptr<Call>&)>;

  // Adds what it needs to the builder: a queue for each thread, which then has its connections for itself. Start it
  // once the server is built.
  RpcServer(grpc::ServerBuilder& builder, size_t threads, Answer answer);
  ~RpcServer();
  void Start(std::unique_ptr<grpc::Server> server);
  // The calls that `answer` was given, or is being given, and that are not over.
  std::vector<std::shared_ptr<Call>> Open();
  // Ends what is in progress within `grace`, then the threads. Blocks; not from one of them.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  friend class Call;
  void Accept(grpc::ServerCompletionQueue& queue);
  void Opened(Call& call);
  void Ended(Call& call);
  static void Run(grpc::ServerCompletionQueue& queue);

  const Answer answer_;
  grpc::AsyncGenericService service_;
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues_;
  std::unique_ptr<grpc::Server> server_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards the rest, and Accept against Shutdown
  bool ending_ = false;
  size_t calls_ = 0;  // that gRPC has tags of
  std::unordered_set<Call*> open_;
  std::condition_variable idle_;
};

// A message of protobuf's as gRPC sends it, and back. False when the bytes are not one.
grpc::ByteBuffer ToBuffer(const google::protobuf::MessageLite& message);
bool FromBuffer(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite& message);

}  // namespace jobworker
