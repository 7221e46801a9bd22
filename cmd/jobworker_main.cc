// jobworker: run a command on another machine, watch it, come back to it, stop it.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "cmd/cli_config.h"
#include "cmd/cli_connection.h"
#include "cmd/cli_identity.h"
#include "cmd/cli_job.h"
#include "cmd/cli_options.h"
#include "cmd/cli_text.h"
#include "cmd/cli_verbs.h"

namespace jobworker {
namespace {

int Fail(const std::string& why) {
  Say(why);
  return kOurFailure;
}

int Main(int argc, const char* const* argv) {
  const ParsedOptions parsed = ParseOptions(argc, argv);
  if (parsed.failed) return Fail(parsed.text);
  if (!parsed.options) return WriteFully(STDOUT_FILENO, parsed.text) == 0 ? 0 : kOurFailure;

  const Environment environment = [](const char* name) { return secure_getenv(name); };
  const auto settings = FindSettings(*parsed.options, environment, "/etc/jobworker/client.toml");
  if (!settings) return Fail(settings.error());

  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  const auto places = CertificatePlaces(UserConfigDirectory(environment), program);
  const auto identity = LoadIdentity(settings.value(), places);
  if (!identity) return Fail(identity.error());

  PrepareGrpc();
  return RunVerb(*parsed.options, settings.value(), identity.value());
}

}  // namespace
}  // namespace jobworker

int main(int argc, char** argv) { return jobworker::Main(argc, argv); }
