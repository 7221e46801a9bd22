#include "daemon/gate.h"

#include <fmt/format.h>

#include "daemon/because.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

namespace jobworker {

namespace {

std::vector<std::string_view> Property(const grpc::AuthContext& context, const std::string& name) {
  std::vector<std::string_view> values;
  for (const grpc::string_ref& value : context.FindPropertyValues(name))
    values.emplace_back(value.data(), value.size());
  return values;
}

// Not the peer's identity as gRPC has it: that is the list of SubjectAltNames when there is one.
tl::expected<Identity, std::string> CallerOf(const grpc::ServerContextBase& context, const TrustAnchors& anchors) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr || !authentication->IsPeerAuthenticated()) {
    return Because("the connection is not authenticated");
  }
  const auto leaf = Property(*authentication, "x509_pem_cert");
  if (leaf.size() != 1) return Because("there is no client certificate");
  // Not time(2), which may be a tick behind the clock that timers go by: OpenCalls asks in the very second.
  const auto now = static_cast<time_t>(NowUs() / 1'000'000);
  return IdentifyUser(leaf[0], Property(*authentication, "x509_common_name"), anchors, now);
}

bool ClaimsRight(const grpc::ServerContextBase& context) {
  for (const auto& [key, value] : context.client_metadata()) {
    if (key.starts_with(grpc::string_ref(kRightPrefix.data(), kRightPrefix.size()))) return true;
  }
  return false;
}

std::string_view VerdictOf(grpc::StatusCode refusal) {
  if (refusal == grpc::StatusCode::UNAUTHENTICATED) return "unauthenticated";
  return refusal == grpc::StatusCode::UNIMPLEMENTED ? "no such method" : "denied";
}

}  // namespace

void Gate::Use(Policy policy) {
  auto next = std::make_shared<const Policy>(std::move(policy));
  const std::lock_guard lock(mutex_);
  policy_.swap(next);
}

tl::expected<Identity, Gate::Refusal> Gate::Identify(const grpc::ServerContextBase& context) const {
  auto caller = CallerOf(context, certificates_.current()->anchors);
  if (caller) return std::move(*caller);
  std::string message = "no usable identity: " + caller.error();
  if (caller.error() != kListNotGood) message += "; use a certificate that this server's authority made for a user";
  return tl::unexpected(Refusal{"-", caller.error(), {grpc::StatusCode::UNAUTHENTICATED, message}});
}

std::optional<Gate::Refusal> Gate::CheckRight(const std::string& user, const MethodRow& row) const {
  if (policy()->Allows(user, row.method)) return std::nullopt;
  return Refusal{user,
                 "not in the policy",
                 {grpc::StatusCode::PERMISSION_DENIED,
                  fmt::format("user '{}' may not call {}: the server's policy does not give {} to this user", user,
                              row.name, row.right)}};
}

tl::expected<Identity, grpc::Status> Gate::Admit(const grpc::ServerContextBase& context, const MethodRow* row) {
  const std::string_view name = row != nullptr ? row->name : "?";
  const std::string peer = context.peer();
  const auto refuse = [&](const Refusal& why) {
    metrics::Call(name, VerdictOf(why.status.error_code()));
    Log("denied", {{"method", name}, {"user", why.user}, {"peer", peer}, {"reason", why.reason}});
    return tl::unexpected(why.status);
  };
  auto caller = Identify(context);
  if (!caller) return refuse(caller.error());
  const std::string& user = caller->user;
  if (ClaimsRight(context)) {
    return refuse({user,
                   fmt::format("metadata claims a right, {} such calls so far", ++forged_),
                   {grpc::StatusCode::PERMISSION_DENIED,
                    "metadata keys that begin with allow_ are refused: rights come from the certificate alone"}});
  }
  if (row == nullptr) {
    return refuse({user, "no such method", {grpc::StatusCode::UNIMPLEMENTED, "this server has no such method"}});
  }
  if (const auto why = CheckRight(user, *row)) return refuse(*why);
  metrics::Call(name, "allowed");
  Log("allowed", {{"method", name}, {"user", user}, {"peer", peer}});
  return std::move(*caller);
}

tl::expected<Identity, Gate::Refusal> Gate::Recheck(const grpc::ServerContextBase& context,
                                                    const MethodRow& row) const {
  auto caller = Identify(context);
  if (!caller) return caller;
  if (auto why = CheckRight(caller->user, row)) return tl::unexpected(std::move(*why));
  return caller;
}

int64_t Gate::CertificateEndsUs(const grpc::ServerContextBase& context) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr) return 0;
  const auto leaf = Property(*authentication, "x509_pem_cert");
  return leaf.size() == 1 ? int64_t{CertificateEnd(leaf[0])} * 1'000'000 : 0;
}

}  // namespace jobworker
