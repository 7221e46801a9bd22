#include "daemon/certificates.h"

#include <fmt/format.h>
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

std::string Problem(const std::string& directory, const std::string& certificate, const TrustAnchors& anchors) {
  const std::string validity = ValidityProblem(certificate);
  if (!validity.empty()) {
    return fmt::format("{}/worker.pem: {}; make a new one with jobworker-certs DIR --renew worker --install", directory,
                       validity);
  }
  const std::string list = anchors.ListProblem(time(nullptr));
  return list.empty() ? "" : fmt::format("{}/crl.pem: {}", directory, list);
}

}  // namespace

tl::expected<CertificateSet, std::string> LoadCertificates(const std::string& directory, const std::string& host) {
  auto files = LoadTlsFiles(directory, "worker");
  if (!files) return Because(files.error());
  if (const auto may = CheckListenHost(host, *files); !may) return Because(may.error());
  auto anchors = TrustAnchors::Parse(files->authorities);
  if (!anchors) return Because(fmt::format("{}/ca.pem: {}", directory, anchors.error()));
  std::string revoked;
  if (const std::string path = directory + "/crl.pem"; IsThere(path)) {
    auto text = ReadFile(path, FileRule::kAny);
    if (!text) return Because(text.error());
    if (const auto added = anchors->AddRevoked(*text); !added) {
      return Because(fmt::format("{}: {}; make it with jobworker-certs DIR --crl --install", path, added.error()));
    }
    revoked = std::move(*text);
  }
  std::string problem = Problem(directory, files->certificate, *anchors);
  return CertificateSet{std::move(*files), std::move(revoked), std::move(*anchors), std::move(problem)};
}

}  // namespace jobworker
