#include "daemon/gate.h"

#include <fmt/format.h>

#include <ctime>

#include "daemon/because.h"
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
tl::expected<std::string, std::string> Identify(const grpc::ServerContextBase& context, const TrustAnchors& anchors) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr || !authentication->IsPeerAuthenticated()) {
    return Because("the connection is not authenticated");
  }
  const auto leaf = Property(*authentication, "x509_pem_cert");
  if (leaf.size() != 1) return Because("there is no client certificate");
  return IdentifyUser(leaf[0], Property(*authentication, "x509_common_name"), anchors, time(nullptr));
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

tl::expected<std::string, grpc::Status> Gate::Admit(const grpc::ServerContextBase& context, const MethodRow* row) {
  const std::string_view name = row != nullptr ? row->name : "?";
  const std::string peer = context.peer();
  const auto refuse = [&](std::string_view user, grpc::StatusCode code, std::string_view why, std::string message) {
    metrics::Call(name, VerdictOf(code));
    Log("denied", {{"method", name}, {"user", user}, {"peer", peer}, {"reason", why}});
    return tl::unexpected(grpc::Status(code, std::move(message)));
  };
  const auto user = Identify(context, certificates_.current()->anchors);
  if (!user) {
    return refuse(
        "-", grpc::StatusCode::UNAUTHENTICATED, user.error(),
        fmt::format(
            "no usable identity: {}{}", user.error(),
            user.error() == kListNotGood ? "" : "; use a certificate that this server's authority made for a user"));
  }
  if (ClaimsRight(context)) {
    const std::string reason = fmt::format("metadata claims a right, {} such calls so far", ++forged_);
    return refuse(*user, grpc::StatusCode::PERMISSION_DENIED, reason,
                  "metadata keys that begin with allow_ are refused: rights come from the certificate alone");
  }
  if (row == nullptr) {
    return refuse(*user, grpc::StatusCode::UNIMPLEMENTED, "no such method", "this server has no such method");
  }
  if (!policy_.Allows(*user, row->method)) {
    return refuse(*user, grpc::StatusCode::PERMISSION_DENIED, "not in the policy",
                  fmt::format("user '{}' may not call {}: the server's policy does not give {} to this user", *user,
                              name, row->right));
  }
  metrics::Call(name, "allowed");
  Log("allowed", {{"method", name}, {"user", *user}, {"peer", peer}});
  return *user;
}

int64_t Gate::CertificateEndsUs(const grpc::ServerContextBase& context) {
  const auto authentication = context.auth_context();
  if (authentication == nullptr) return 0;
  const auto leaf = Property(*authentication, "x509_pem_cert");
  return leaf.size() == 1 ? int64_t{CertificateEnd(leaf[0])} * 1'000'000 : 0;
}

}  // namespace jobworker
