// jobworker: run a command on another machine, watch it, come back to it, stop it.
#include <fmt/format.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <utility>

#include "cmd/cli_config.h"
#include "cmd/cli_connection.h"
#include "cmd/cli_describe.h"
#include "cmd/cli_identity.h"
#include "cmd/cli_options.h"
#include "cmd/cli_text.h"
#include "cmd/cli_verbs.h"

namespace jobworker {
namespace {

int Fail(const std::string& why) {
  Say(why);
  return kOurFailure;
}

// Only people need to be told, and they have two weeks.
void WarnBeforeExpiry(const Identity& identity) {
  constexpr time_t kDay = 86400;
  const time_t left = identity.files.validity.until - time(nullptr);
  if (left > 14 * kDay || isatty(STDERR_FILENO) != 1) return;
  Say(fmt::format("the certificate {} ends {}; ask for a new one in time", identity.CertificateFile(),
                  left < 2 * kDay ? "within two days" : fmt::format("in {} days", left / kDay)));
}

int Main(int argc, const char* const* argv) {
  const ParsedOptions parsed = ParseOptions(argc, argv);
  if (parsed.failed) return Fail(parsed.text);
  if (!parsed.options) return WriteFully(STDOUT_FILENO, parsed.text) == 0 ? 0 : kOurFailure;

  const Environment environment = [](const char* name) { return secure_getenv(name); };
  const auto settings = FindSettings(*parsed.options, environment, "/etc/jobworker/client.toml");
  if (!settings) return Fail(settings.error());
  const Verb verb = parsed.options->verb;
  if (verb == Verb::kConfig || verb == Verb::kCompletion) return RunLocalVerb(*parsed.options, *settings);

  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  const auto places = CertificatePlaces(UserConfigDirectory(environment), program);
  const IdentityLoader load = [&settings, &places] { return LoadIdentity(*settings, places); };
  auto identity = load();
  if (!identity) return Fail(identity.error());
  WarnBeforeExpiry(*identity);

  PrepareGrpc();
  RunVerb(*parsed.options, *settings, std::move(*identity), load);
}

}  // namespace
}  // namespace jobworker

int main(int argc, char** argv) {
  (void)setlocale(LC_CTYPE, "");  // what the terminal shows: see Escape()
  return jobworker::Main(argc, argv);
}
