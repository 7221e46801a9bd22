#include "cmd/cli_connection.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <jobworker.pb.h>

#include <cerrno>
#include <cstdlib>

#include "cmd/cli_diagnosis.h"
#include "cmd/cli_job.h"
#include "cmd/cli_text.h"
#include "daemon/tls.h"

namespace jobworker {
namespace {

// An address goes past the resolver, and no text of the user's is taken for another scheme than dns.
std::string Target(const Server& server) {
  in_addr v4{};
  if (server.host.find(':') != std::string::npos) return "ipv6:" + server.Name();
  if (inet_pton(AF_INET, server.host.c_str(), &v4) == 1) return "ipv4:" + server.Name();
  return "dns:///" + server.Name();
}

std::string Words(const grpc::Status& status, std::string_view otherwise) {
  return status.error_message().empty() ? std::string(otherwise) : status.error_message();
}

}  // namespace

void PrepareGrpc() {
  ForbidOldTls();
  setenv("GRPC_VERBOSITY", "NONE", 0);
  setenv("GRPC_DNS_RESOLVER", "native", 0);
}

std::shared_ptr<grpc::Channel> Connect(const Server& server, const Identity& identity) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  const TlsFiles& files = identity.files;
  const auto credentials = grpc::SslCredentials({files.authorities, files.key, files.certificate});
  auto channel = grpc::CreateCustomChannel(Target(server), credentials, arguments);
  channel->GetState(true);
  return channel;
}

std::string ExplainFailure(const grpc::Status& status, const Server& server, const Identity& identity) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAUTHENTICATED:
      return fmt::format("{} does not accept the certificate {}: {}", server.Name(), identity.CertificateFile(),
                         Words(status, "it says nothing more"));
    case grpc::StatusCode::PERMISSION_DENIED:
      return fmt::format("not allowed: {}", Words(status, identity.profile + " has no right to this"));
    case grpc::StatusCode::UNAVAILABLE: {
      const auto diagnosis = DiagnoseConnection(server, identity);
      return diagnosis
                 ? *diagnosis
                 : fmt::format("{} cannot do this now: {}; try again", server.Name(), Words(status, "no reason given"));
    }
    case grpc::StatusCode::UNIMPLEMENTED:
      return fmt::format(
          "the server at {} does not know this request; is it a jobserver, and as new as this jobworker?",
          server.Name());
    case grpc::StatusCode::INTERNAL:
    case grpc::StatusCode::UNKNOWN:
    case grpc::StatusCode::CANCELLED:
      return fmt::format("{} failed: {}; its log may say more", server.Name(), Words(status, "no reason given"));
    default: return Words(status, fmt::format("{} refused the request without a reason", server.Name()));
  }
}

int FailureExitStatus(const grpc::Status& status) {
  StartFailure failure;
  const bool found =
      status.error_code() == grpc::StatusCode::FAILED_PRECONDITION && failure.ParseFromString(status.error_details());
  if (!found || failure.stage() != "exec") return kOurFailure;
  return failure.error() == ENOENT ? kNotFound : kCannotExecute;
}

}  // namespace jobworker
