#include "daemon/rpc_server.h"

// gRPC is not built for ThreadSanitizer, which therefore does not see that what was done before a tag was handed to it
// happened before what is done when it comes back.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define JOBWORKER_TSAN
#endif
#elif defined(__SANITIZE_THREAD__)
#define JOBWORKER_TSAN
#endif
#ifdef JOBWORKER_TSAN
#include <sanitizer/tsan_interface.h>
#define HAND_OVER(tag) __tsan_release(tag)
#define TAKE_BACK(tag) __tsan_acquire(tag)
#else
#define HAND_OVER(tag) static_cast<void>(tag)
#define TAKE_BACK(tag) static_cast<void>(tag)
#endif

namespace jobworker {

Call::Call(RpcServer& server, grpc::ServerCompletionQueue& queue) : server_(server), queue_(queue), stream_(&context_) {
  for (size_t i = 0; i < kEvents; ++i) tags_[i] = {this, static_cast<Event>(i)};
}

void Call::Use(std::shared_ptr<CallHandler> handler) {
  const std::lock_guard lock(mutex_);
  handler_ = std::move(handler);
}

void* Call::Expect(Event event) {
  if (expected_++ == 0) self_ = shared_from_this();
  HAND_OVER(&tags_[event]);
  return &tags_[event];
}

void Call::ReadNext() {
  void* tag = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Ends()) return;
    tag = Expect(kRead);
  }
  stream_.Read(&incoming_, tag);
}

void Call::Write(const grpc::ByteBuffer& message) {
  void* tag = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Ends()) return;
    writing_ = true;
    tag = Expect(kWritten);
  }
  stream_.Write(message, tag);
}

void Call::WriteAndFinish(const grpc::ByteBuffer& message, const grpc::Status& status) {
  void* tag = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Ends()) return;
    finished_ = true;
    tag = Expect(kFinished);
  }
  stream_.WriteAndFinish(message, grpc::WriteOptions(), status, tag);
}

void Call::Finish(const grpc::Status& status) {
  void* tag = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Ends()) return;
    finished_ = true;
    tag = Expect(kFinished);
  }
  stream_.Finish(status, tag);
}

bool Call::Revoke(const grpc::Status& status) {
  void* tag = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (Ends()) return false;
    if (writing_) {  // gRPC takes one thing at a time
      revoked_ = status;
      return true;
    }
    finished_ = true;
    tag = Expect(kFinished);
  }
  stream_.Finish(status, tag);
  return true;
}

// What was received after the end is as if it had not been sent.
void Call::Received(bool ok) {
  std::shared_ptr<CallHandler> handler;
  {
    const std::lock_guard lock(mutex_);
    handler = handler_;
    ok = ok && !Ends();
  }
  if (handler) handler->OnMessage(ok ? std::optional(incoming_) : std::nullopt);
}

void Call::Written(bool ok) {
  std::shared_ptr<CallHandler> handler;
  std::optional<grpc::Status> revoked;
  {
    const std::lock_guard lock(mutex_);
    handler = handler_;
    writing_ = false;
    revoked.swap(revoked_);
  }
  if (revoked) return Finish(*revoked);
  if (handler && ok) handler->OnWritten();  // when it could not be sent, kDone follows
}

void Call::Happened(Event event, bool ok) {
  std::shared_ptr<Call> last;  // ends this, when nothing else holds it, after the lock
  switch (event) {
    case kAccepted: Accepted(ok); break;
    case kRead: Received(ok); break;
    case kWritten: Written(ok); break;
    case kFinished: break;
    case kDone: {
      std::shared_ptr<CallHandler> handler;
      {
        const std::lock_guard lock(mutex_);
        cancelled_ = true;
        handler = std::move(handler_);
      }
      if (handler) handler->OnOver();
      break;
    }
    case kEvents: break;
  }
  {
    const std::lock_guard lock(mutex_);
    if (--expected_ == 0) last = std::move(self_);
  }
  if (last != nullptr) server_.Ended(*this);
}

void Call::Accepted(bool ok) {
  if (!ok) {  // the server is ending; kDone does not come for a call that never was
    const std::lock_guard lock(mutex_);
    --expected_;
    return;
  }
  server_.Opened(*this);
  server_.Accept(queue_);
  server_.answer_(shared_from_this());
}

RpcServer::RpcServer(grpc::ServerBuilder& builder, size_t threads, Answer answer) : answer_(std::move(answer)) {
  builder.RegisterAsyncGenericService(&service_);
  for (size_t i = 0; i < threads; ++i) queues_.push_back(builder.AddCompletionQueue());
}

RpcServer::~RpcServer() {
  if (server_ != nullptr) Shutdown(std::chrono::milliseconds(0));
}

void RpcServer::Start(std::unique_ptr<grpc::Server> server) {
  server_ = std::move(server);
  for (const auto& queue : queues_) {
    Accept(*queue);
    threads_.emplace_back([&queue] { Run(*queue); });
  }
}

void RpcServer::Accept(grpc::ServerCompletionQueue& queue) {
  const std::lock_guard lock(mutex_);
  if (ending_) return;
  ++calls_;
  const auto call = std::make_shared<Call>(*this, queue);
  const std::lock_guard call_lock(call->mutex_);
  call->context_.AsyncNotifyWhenDone(call->Expect(Call::kDone));
  service_.RequestCall(&call->context_, &call->stream_, &queue, &queue, call->Expect(Call::kAccepted));
}

void RpcServer::Opened(Call& call) {
  const std::lock_guard lock(mutex_);
  open_.insert(&call);
}

std::vector<std::shared_ptr<Call>> RpcServer::Open() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Call>> calls;
  calls.reserve(open_.size());
  for (Call* const call : open_) calls.push_back(call->shared_from_this());
  return calls;
}

void RpcServer::Ended(Call& call) {
  const std::lock_guard lock(mutex_);
  open_.erase(&call);
  if (--calls_ == 0) idle_.notify_all();
}

void RpcServer::Run(grpc::ServerCompletionQueue& queue) {
  void* raw = nullptr;
  for (bool ok = false; queue.Next(&raw, &ok);) {
    auto* const tag = static_cast<Call::Tag*>(raw);
    TAKE_BACK(tag);
    tag->call->Happened(tag->event, ok);
  }
}

void RpcServer::Shutdown(std::chrono::milliseconds grace) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(ending_, true)) return;
  }
  server_->Shutdown(std::chrono::system_clock::now() + grace);
  {
    // gRPC aborts the process when a queue that was shut down is given another tag, and until a call is over others may
    // ask things of it.
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [this] { return calls_ == 0; });
  }
  for (const auto& queue : queues_) queue->Shutdown();
  for (std::thread& thread : threads_) thread.join();
}

grpc::ByteBuffer ToBuffer(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return {&slice, 1};
}

bool FromBuffer(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite& message) {
  grpc::Slice slice;
  if (buffer.TrySingleSlice(&slice).ok()) {
    return message.ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
  }
  return buffer.DumpToSingleSlice(&slice).ok() && message.ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
}

}  // namespace jobworker
