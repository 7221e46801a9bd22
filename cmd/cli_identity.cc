#include "cmd/cli_identity.h"

#include <fmt/format.h>

#include <ctime>
#include <optional>

#include "daemon/because.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

std::optional<fs::path> FirstWith(const std::string& name, const std::vector<fs::path>& places) {
  for (const fs::path& place : places) {
    std::error_code error;
    if (fs::exists(place / name, error)) return place;
  }
  return std::nullopt;
}

std::string NotFound(const std::string& name, const std::vector<fs::path>& places) {
  std::string tried;
  for (const fs::path& place : places) tried += (tried.empty() ? "" : ", ") + place.native();
  return fmt::format(
      "there is no {} in {}; name the profile with -u and the directory of its certificates with "
      "--certs, or make some with scripts/make-certs",
      name, tried);
}

}  // namespace

std::vector<fs::path> CertificatePlaces(const fs::path& user_config, const fs::path& program) {
  std::vector<fs::path> places;
  if (!user_config.empty()) places.push_back(user_config / "certs");
  places.emplace_back("/etc/jobworker/certs");
  places.push_back(program / "certs");
  places.push_back(program.parent_path() / "certs");
  places.push_back(program.parent_path() / "share/jobworker/certs");
  std::error_code error;
  if (fs::exists(program.parent_path() / "CMakeCache.txt", error)) {
    places.push_back((program / "../../../certs").lexically_normal());
  }
  return places;
}

tl::expected<Identity, std::string> LoadIdentity(const Settings& settings, const std::vector<fs::path>& places) {
  const auto searched = settings.certs ? std::vector<fs::path>{*settings.certs} : places;
  const std::string name = settings.user + ".pem";
  const auto directory = FirstWith(name, searched);
  if (!directory) return Because(NotFound(name, searched));
  auto files = LoadTlsFiles(directory->native(), settings.user);
  if (!files) return Because(files.error());
  Identity identity{*directory, settings.user, std::move(*files)};
  const std::string problem = ValidityProblem(identity.files.validity, time(nullptr));
  if (problem.empty()) return identity;
  return Because(fmt::format("the certificate {} cannot be used: {}; ask for a new one, or look at the clock",
                             identity.CertificateFile(), problem));
}

}  // namespace jobworker
