// The verbs about the server, the user and the settings: whoami, version, config, completion.
#include <fmt/format.h>

#include "cmd/cli_completion.h"
#include "cmd/cli_describe.h"
#include "cmd/cli_follow.h"
#include "cmd/cli_json.h"
#include "cmd/cli_text.h"
#include "cmd/cli_units.h"
#include "cmd/cli_verbs.h"

namespace jobworker {
namespace {

std::string IdentityText(const WhoAmIResponse& identity, const std::string& server) {
  std::string text = fmt::format("{} at {}\n", Escape(identity.user()), server);
  const auto add = [&](std::string_view name, const std::string& value) {
    text += fmt::format("  {:<12} {}\n", name, Escape(value));
  };
  add("rights", identity.rights().empty() ? "none" : fmt::format("{}", fmt::join(identity.rights(), ", ")));
  if (identity.has_ceilings()) add("all jobs", LimitsText(identity.ceilings()));
  if (identity.has_defaults()) add("each job", LimitsText(identity.defaults()));
  const std::string limit = identity.jobs_limit() > 0 ? fmt::format(" of {}", identity.jobs_limit()) : "";
  add("jobs", fmt::format("{} live and {} ended{}", identity.jobs_live(), identity.jobs_ended(), limit));
  add("output", SizeText(identity.output_held()) +
                    (identity.output_limit() > 0 ? " of " + SizeText(identity.output_limit()) : "") + " held");
  if (identity.certificate_ends_us() > 0)
    add("certificate", "until " + TimeText(identity.certificate_ends_us(), false));
  return text;
}

std::string VersionText(const ServerVersionResponse& server, const std::string& name) {
  std::string text = fmt::format("jobworker {}\njobserver {} at {}, API {}, running since {}\n", JOBWORKER_VERSION,
                                 Escape(server.version()), name, server.api(), TimeText(server.started_us(), false));
  if (!server.broker_connected()) text += "its jobbroker is away\n";
  if (server.unenforced_size() > 0) {
    text += fmt::format("not enforced there: {}\n", Escape(fmt::format("{}", fmt::join(server.unenforced(), ", "))));
  }
  return text;
}

}  // namespace

int WhoAmIVerb(Session& session, const Options& options) {
  WhoAmIResponse response;
  const grpc::Status status = session.Ask(
      [&](Worker::Stub& stub, grpc::ClientContext* context) { return stub.WhoAmI(context, {}, &response); });
  if (!status.ok()) return session.Fail(status);
  return Print(options.json ? IdentityJson(response) : IdentityText(response, session.GetSettings().server.Name()));
}

int VersionVerb(Session& session, const Options& options) {
  ServerVersionResponse response;
  const grpc::Status status = session.Ask(
      [&](Worker::Stub& stub, grpc::ClientContext* context) { return stub.ServerVersion(context, {}, &response); });
  if (!status.ok()) {
    static_cast<void>(Print(options.json ? "" : "jobworker " JOBWORKER_VERSION "\n"));
    return session.Fail(status);
  }
  return Print(options.json ? VersionJson(response) : VersionText(response, session.GetSettings().server.Name()));
}

int RunLocalVerb(const Options& options, const Settings& settings) {
  std::string text;
  if (options.verb == Verb::kCompletion) {
    text = CompletionScript(options.shell);
    return Print(options.json ? CompletionJson(options.shell, text) : text);
  }
  for (const Origin& origin : settings.origins) {
    text += options.json ? SettingJson(origin)
                         : fmt::format("{:<9} {:<28} {}\n", origin.key,
                                       Escape(origin.value.empty() ? "-" : origin.value), Escape(origin.source));
  }
  return Print(text);
}

}  // namespace jobworker
