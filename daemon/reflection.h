// The method of proto/reflection.proto.
#pragma once
#include <memory>

#include "daemon/rpc_server.h"
#include "reflection.pb.h"

namespace jobworker {

// What this program's own descriptors say.
grpc::reflection::v1alpha::ServerReflectionResponse Reflect(
    const grpc::reflection::v1alpha::ServerReflectionRequest& request);

// Answers one request after the other.
class Reflection final : public CallHandler {
 public:
  explicit Reflection(std::shared_ptr<Call> call) : call_(std::move(call)) {}
  void OnMessage(const std::optional<grpc::ByteBuffer>& message) override;
  void OnWritten() override { call_->ReadNext(); }
  void OnOver() override { call_ = nullptr; }

 private:
  std::shared_ptr<Call> call_;
};

}  // namespace jobworker
