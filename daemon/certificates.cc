#include "daemon/certificates.h"

#include <fmt/format.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <sys/stat.h>

#include <cerrno>
#include <ctime>

#include "daemon/because.h"
#include "daemon/files.h"

namespace jobworker {

namespace {

// A link that leads nowhere is there: taking it for no list would let those in who are on it.
bool IsThere(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 || errno != ENOENT;
}

std::string Problem(const std::string& directory, const TlsFiles& files, const TrustAnchors& anchors) {
  const time_t now = time(nullptr);
  const std::string validity = ValidityProblem(files.validity, now);
  if (!validity.empty()) {
    return fmt::format("{}/worker.pem: {}; make a new one with jobworker-certs DIR --renew worker --install", directory,
                       validity);
  }
  const std::string list = anchors.ListProblem(now);
  return list.empty() ? "" : fmt::format("{}/crl.pem: {}", directory, list);
}

// gRPC's C++ API has no credentials that change, but its C API has.
class ChangingCredentials final : public grpc::ServerCredentials {
 public:
  explicit ChangingCredentials(Certificates& certificates)
      : credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, &ToTls, &certificates))) {}
  ~ChangingCredentials() override { grpc_server_credentials_release(credentials_); }
  ChangingCredentials(const ChangingCredentials&) = delete;
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  // For each new connection, one at a time.
  static grpc_ssl_certificate_config_reload_status ToTls(void* raw, grpc_ssl_server_certificate_config** config) {
    const auto set = static_cast<Certificates*>(raw)->TakeNew();
    if (set == nullptr) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const TlsFiles& files = set->files;
    const grpc_ssl_pem_key_cert_pair pair{files.key.c_str(), files.certificate.c_str()};
    *config = grpc_ssl_server_certificate_config_create(files.authorities.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  grpc_server_credentials* const credentials_;
};

// The text of the list that counts, empty when there is none.
tl::expected<std::string, std::string> AddList(const std::string& path, bool gone, const KeptFiles& kept,
                                               TrustAnchors& anchors) {
  if (gone && (!kept.list || kept.of->revoked.empty())) return "";
  tl::expected<std::string, std::string> text = gone ? kept.of->revoked : ReadFile(path, FileRule::kAny);
  if (!text) return text;
  const auto added = anchors.AddRevoked(*text);
  if (added) return text;
  return Because(fmt::format("{}: {}; make it with jobworker-certs DIR --crl --install", path, added.error()));
}

}  // namespace

tl::expected<CertificateSet, std::string> LoadCertificates(const CertificateSource& source, const KeptFiles& kept) {
  const std::string& directory = source.directory;
  auto files = LoadTlsFiles(directory, "worker", kept.key ? &kept.of->files.key : nullptr);
  if (!files) return Because(files.error());
  if (const auto may = CheckListenHost(source.host, *files); !may) return Because(may.error());
  // gRPC goes on with the set that it has when it cannot use the next one, and then the gate would go by another one.
  if (!TlsTakes(*files)) {
    return Because(fmt::format("{}/worker.pem: TLS does not take a key of that kind or size", directory));
  }
  auto anchors = TrustAnchors::Parse(files->authorities);
  if (!anchors) return Because(fmt::format("{}/ca.pem: {}", directory, anchors.error()));
  const std::string list = directory + "/crl.pem";
  const bool gone = !IsThere(list);
  auto revoked = AddList(list, gone, kept, *anchors);
  if (!revoked) return Because(revoked.error());
  std::string problem = Problem(directory, *files, *anchors);
  const bool list_kept = gone && !revoked->empty();
  return CertificateSet{std::move(*files), std::move(*revoked), std::move(*anchors), std::move(problem), list_kept};
}

std::shared_ptr<const CertificateSet> Certificates::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

void Certificates::Use(CertificateSet set) {
  auto next = std::make_shared<const CertificateSet>(std::move(set));
  const std::lock_guard lock(mutex_);
  current_.swap(next);
}

std::shared_ptr<const CertificateSet> Certificates::TakeNew() {
  const std::lock_guard lock(mutex_);
  if (taken_ == current_) return nullptr;
  return taken_ = current_;
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(Certificates& certificates) {
  return std::make_shared<ChangingCredentials>(certificates);
}

}  // namespace jobworker
