// The one choke point: no method of the service does anything before Admit has let the call in.
#pragma once
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/authorizer.h"
#include "daemon/certificates.h"

namespace jobworker {

class Gate {
 public:
  // By the certificates and the policy that are in use at each call. The certificates outlive the gate.
  Gate(const Certificates& certificates, Policy policy)
      : certificates_(certificates), policy_(std::make_shared<const Policy>(std::move(policy))) {}
  void Use(Policy policy);

  // Who calls, or the status to end the call with: UNAUTHENTICATED without a usable identity, UNIMPLEMENTED without a
  // row, PERMISSION_DENIED without the row's right or with metadata that claims one. Every decision is logged with its
  // reason. From any thread.
  tl::expected<Identity, grpc::Status> Admit(const grpc::ServerContextBase& context, const MethodRow* row);
  // Of a call that was let in: who calls, or why it would not be let in now.
  struct Refusal {
    std::string user, reason;  // for the log
    grpc::Status status;
  };
  [[nodiscard]] tl::expected<Identity, Refusal> Recheck(const grpc::ServerContextBase& context,
                                                        const MethodRow& row) const;

  [[nodiscard]] std::vector<std::string_view> RightsOf(std::string_view user) const { return policy()->RightsOf(user); }
  // When the caller's certificate ends, UTC, microseconds since 1970; 0 without one.
  static int64_t CertificateEndsUs(const grpc::ServerContextBase& context);

  // How many calls came with metadata that claimed a right.
  [[nodiscard]] uint64_t forged() const { return forged_; }

 private:
  [[nodiscard]] std::shared_ptr<const Policy> policy() const {
    const std::lock_guard lock(mutex_);
    return policy_;
  }
  [[nodiscard]] tl::expected<Identity, Refusal> Identify(const grpc::ServerContextBase& context) const;
  [[nodiscard]] std::optional<Refusal> CheckRight(const std::string& user, const MethodRow& row) const;

  const Certificates& certificates_;
  std::atomic<uint64_t> forged_ = 0;
  mutable std::mutex mutex_;  // guards the rest
  std::shared_ptr<const Policy> policy_;
};

}  // namespace jobworker
