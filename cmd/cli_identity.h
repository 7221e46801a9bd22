// The certificate and key that say who the user is.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "cmd/cli_config.h"
#include "daemon/tls.h"

namespace jobworker {

struct Identity {
  std::filesystem::path directory;
  std::string user;
  TlsFiles files;
  [[nodiscard]] std::string CertificateFile() const { return (directory / (user + ".pem")).native(); }
  [[nodiscard]] std::string AuthorityFile() const { return (directory / "ca.pem").native(); }
};

// The usual places, best first. `program` is the directory of the running executable; the last place is there only
// for a program that runs from its build tree.
std::vector<std::filesystem::path> CertificatePlaces(const std::filesystem::path& user_config,
                                                     const std::filesystem::path& program);

// Reads ca.pem, USER.pem and USER-key.pem from settings.certs alone when it is set, otherwise from the first of
// `places` that has USER.pem. Refuses a key that others can read (unless it is a published one) and a certificate
// whose time has passed or not come. error() says what to do about it.
tl::expected<Identity, std::string> LoadIdentity(const Settings& settings,
                                                 const std::vector<std::filesystem::path>& places);

}  // namespace jobworker
