#include "cmd/cli_connection.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <jobworker.pb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <utility>

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

// What a field of the API that the server complains of is called here: "timeout_ms: ..." is "--timeout (timeout_ms):
// ...".
std::string WithFlag(const std::string& words) {
  constexpr std::pair<std::string_view, std::string_view> kFlags[] = {{"limits.cpu_milli", "--cpu"},
                                                                      {"limits.memory_bytes", "--memory"},
                                                                      {"limits.pids", "--pids"},
                                                                      {"limits.read_bytes_per_second", "--io-read"},
                                                                      {"limits.write_bytes_per_second", "--io-write"},
                                                                      {"timeout_ms", "--timeout"},
                                                                      {"lease_ms", "--lease"},
                                                                      {"labels", "--label"},
                                                                      {"env", "--env"},
                                                                      {"directory", "--cwd"},
                                                                      {"offset", "--from"},
                                                                      {"grace_ms", "--grace"},
                                                                      {"pids", "ID"},
                                                                      {"pid", "ID"}};
  const std::string_view field = std::string_view(words).substr(0, words.find(':'));
  for (const auto& [name, flag] : kFlags) {
    if (field == name) return fmt::format("{} ({}){}", flag, name, words.substr(field.size()));
  }
  return words;
}

}  // namespace

void PrepareGrpc() {
  ForbidOldTls();
  setenv("GRPC_VERBOSITY", "NONE", 0);
  setenv("GRPC_DNS_RESOLVER", "native", 0);
  setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "0", 0);
}

std::shared_ptr<grpc::Channel> Connect(const Server& server, const Identity& identity) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Otherwise a new channel to the same server inherits the delays of the one that was lost.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  const TlsFiles& files = identity.files;
  const auto credentials = grpc::SslCredentials({files.authorities, files.key, files.certificate});
  return grpc::CreateCustomChannel(Target(server), credentials, arguments);
}

void NoticeDeadPeers(uint16_t port) {
  constexpr std::pair<int, int> kOptions[] = {{TCP_KEEPIDLE, 30}, {TCP_KEEPINTVL, 10}, {TCP_KEEPCNT, 3}};
  constexpr int kOn = 1;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const std::string name = entry.path().filename();
    int fd = -1;
    (void)std::from_chars(name.data(), name.data() + name.size(), fd);
    sockaddr_in6 peer{};  // the port is where sockaddr_in has it
    socklen_t size = sizeof peer;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
    if ((peer.sin6_family != AF_INET && peer.sin6_family != AF_INET6) || ntohs(peer.sin6_port) != port) continue;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof kOn);
    for (const auto& [option, seconds] : kOptions) setsockopt(fd, IPPROTO_TCP, option, &seconds, sizeof seconds);
  }
}

std::string ExplainFailure(const grpc::Status& status, const Server& server, const Identity& identity) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAUTHENTICATED:
      return fmt::format("{} does not accept the certificate {}: {}", server.Name(), identity.CertificateFile(),
                         Words(status, "it says nothing more"));
    case grpc::StatusCode::PERMISSION_DENIED:
      return fmt::format("not allowed: {}", Words(status, identity.user + " has no right to this"));
    case grpc::StatusCode::UNAVAILABLE: {
      const auto diagnosis = DiagnoseConnection(server, identity);
      return diagnosis
                 ? *diagnosis
                 : fmt::format("{} cannot do this now: {}; try again", server.Name(), Words(status, "no reason given"));
    }
    case grpc::StatusCode::INVALID_ARGUMENT:
      return WithFlag(Words(status, fmt::format("{} refused the request without a reason", server.Name())));
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
