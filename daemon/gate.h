// The one choke point: no method of the service does anything before Admit has let the call in.
#pragma once
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/authorizer.h"
#include "daemon/certificates.h"

namespace jobworker {

class Gate {
 public:
  // By the certificates that are in use at each call. They outlive the gate.
  Gate(const Certificates& certificates, Policy policy) : certificates_(certificates), policy_(std::move(policy)) {}

  // The calling user's name, or the status to end the call with: UNAUTHENTICATED without a usable identity,
  // UNIMPLEMENTED without a row, PERMISSION_DENIED without the row's right or with metadata that claims one. Every
  // decision is logged with its reason. From any thread.
  tl::expected<std::string, grpc::Status> Admit(const grpc::ServerContextBase& context, const MethodRow* row);

  [[nodiscard]] std::vector<std::string_view> RightsOf(std::string_view user) const { return policy_.RightsOf(user); }
  // When the caller's certificate ends, UTC, microseconds since 1970; 0 without one.
  static int64_t CertificateEndsUs(const grpc::ServerContextBase& context);

  // How many calls came with metadata that claimed a right.
  [[nodiscard]] uint64_t forged() const { return forged_; }

 private:
  const Certificates& certificates_;
  const Policy policy_;
  std::atomic<uint64_t> forged_ = 0;
};

}  // namespace jobworker
