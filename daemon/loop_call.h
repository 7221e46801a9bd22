// A call that is handled on the loop's thread, from its first message to its end.
#pragma once
#include <memory>
#include <optional>

#include "daemon/event_loop.h"
#include "daemon/rpc_server.h"

namespace jobworker {

class LoopCall : public CallHandler, public std::enable_shared_from_this<LoopCall> {
 public:
  LoopCall(EventLoop& loop, std::shared_ptr<Call> call) : loop_(loop), call_(std::move(call)) {}

  void OnMessage(const std::optional<grpc::ByteBuffer>& message) final {
    Post([message](LoopCall& self) {
      if (!self.over_) self.Received(message);
    });
  }
  void OnWritten() final {
    Post([](LoopCall& self) {
      self.writing_ = false;
      if (!self.over_) self.Written();
    });
  }
  void OnOver() final {
    Post([](LoopCall& self) {
      self.over_ = true;
      self.Over();
    });
  }

 protected:
  // Nothing: the client has no more to say.
  virtual void Received(const std::optional<grpc::ByteBuffer>& message) = 0;
  // The next Write may come.
  virtual void Written() {}
  // The end was sent, or the client is gone. Nothing comes after it.
  virtual void Over() {}

  [[nodiscard]] bool writing() const { return writing_; }
  // Nothing more is to be said.
  [[nodiscard]] bool done() const { return over_; }
  void ReadNext() {
    if (!over_) call_->ReadNext();
  }
  void Write(const google::protobuf::MessageLite& message) {
    if (over_) return;
    writing_ = true;
    call_->Write(ToBuffer(message));
  }
  void WriteAndFinish(const google::protobuf::MessageLite& message) {
    if (!std::exchange(over_, true)) call_->WriteAndFinish(ToBuffer(message));
  }
  void Finish(const grpc::Status& status) {
    if (!std::exchange(over_, true)) call_->Finish(status);
  }
  EventLoop& loop() { return loop_; }

 private:
  template <class Step>
  void Post(Step step) {
    loop_.Post([self = shared_from_this(), step = std::move(step)] { step(*self); });
  }

  EventLoop& loop_;
  const std::shared_ptr<Call> call_;
  bool over_ = false, writing_ = false;
};

}  // namespace jobworker
