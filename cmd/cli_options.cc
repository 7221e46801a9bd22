#include "cmd/cli_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

namespace jobworker {
namespace {

constexpr char kFooter[] = R"(Examples:
  jobworker start ls -l            run it, show its output, exit as it exits
  jobworker -u bob start -d make   print the job's id and leave it running
  jobworker query 3                all its output from the first byte, then follow
  jobworker -h build.example:57533 stop 3

Exit status: the job's own; 128+N if signal N ended it; 125 when jobworker itself fails (network, certificates,
not allowed, bad request); 126 when the command cannot be executed, 127 when it is not found.
Settings: flag, then JOBWORKER_HOST, JOBWORKER_PROFILE, JOBWORKER_CERTS, then the keys host, port, profile and certs
of ~/.config/jobworker/config.toml, then of /etc/jobworker/client.toml.)";

constexpr char kStartFooter[] =
    R"(The words from the first one that is not a flag on belong to the job, as they are: no shell comes between.
One word alone is split into words by shell quoting rules, with nothing expanded: start 'ls -l' is start ls -l.
After -- even one word is taken as it is: start -- '/opt/my tools/run'. For a shell, ask for one: start sh -c 'a | b'.)";

// CLI11 cannot know that words follow `start`.
class HelpText : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    const std::string verb = app->get_name();
    if (verb == "start")
      return "Usage: jobworker [FLAGS] start [-d] [--env NAME=VALUE]... [--] COMMAND [ARGUMENT]...\n";
    if (verb != "jobworker") return "Usage: jobworker [FLAGS] " + verb + " ID\n";
    return "Usage: jobworker [-u PROFILE] [-h HOST[:PORT]] [--certs DIR] start|stop|query ...\n";
  }
};

void AddStart(CLI::App& app, Options& options) {
  CLI::App* const start = app.add_subcommand("start", "Start a job and show its output until it ends");
  start->add_flag("-d,--detach", options.detach, "Print the job's id and leave it running");
  start->add_option("--env", options.env, "Add to the job's environment; may be repeated")
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  start->prefix_command();
  start->footer(kStartFooter);
  start->callback([&options] { options.verb = Verb::kStart; });
}

void AddWithId(CLI::App& app, Options& options, Verb verb, const char* name, const char* description) {
  CLI::App* const command = app.add_subcommand(name, description);
  command->add_option("ID", options.id, "The id that start gave")->type_name("")->required();
  command->callback([&options, verb] { options.verb = verb; });
}

// The words of the command line without the program's name. CLI11 loses the `--` of `start -- ...`, so it is shown an
// ordinary word there; `from_end` is how many words there are from that one on, 0 without one.
struct Arguments {
  Arguments(int argc, const char* const* argv) : words(argv + 1, argv + argc) {
    const auto start = std::find(words.begin(), words.end(), "start");
    const auto dashes = std::find(start, words.end(), "--");
    from_end = static_cast<size_t>(words.end() - dashes);
    if (from_end > 0) *dashes = "command";
  }
  std::vector<std::string> words;
  size_t from_end;
};

// What CLI11 left over is the job's, but for a `--` in front and for flags it does not know.
void TakeWords(std::vector<std::string> words, size_t from_end, Options& options) {
  options.verbatim = from_end > 0 && from_end == words.size();
  if (options.verbatim) {
    words.erase(words.begin());
  } else if (from_end > 0 && from_end < words.size()) {
    words[words.size() - from_end] = "--";
  }
  if (words.empty()) throw CLI::ValidationError("start needs a command, such as: jobworker start ls -l");
  if (!options.verbatim && words[0].size() > 1 && words[0][0] == '-') {
    throw CLI::ValidationError("start does not know the flag " + words[0] + " (a command of that name goes after --)");
  }
  options.words = std::move(words);
}

std::string ErrorText(const CLI::App& app, const CLI::Error& error) {
  const auto chosen = app.get_subcommands();
  if (chosen.empty() && error.get_name() == "RequiredError")
    return "say what to do: start, stop or query; see jobworker --help";
  const std::string verb = chosen.empty() ? "" : " " + chosen[0]->get_name();
  return std::string(error.what()) + "; see jobworker" + verb + " --help";
}

}  // namespace

ParsedOptions ParseOptions(int argc, const char* const* argv) {
  Options options;
  CLI::App app("Run a command on another machine, watch it, come back to it, stop it.", "jobworker");
  app.formatter(std::make_shared<HelpText>());
  app.set_help_flag("--help", "Print this help");
  app.set_version_flag("--version", "jobworker " JOBWORKER_VERSION);
  app.add_option("-u,--profile", options.profile, "Whose certificate to use (alice)")->type_name("PROFILE");
  app.add_option("-h,--host", options.host, "The server (localhost:57533); [::1]:57533 for IPv6")
      ->type_name("HOST[:PORT]");
  app.add_option("--certs", options.certs, "Where ca.pem, PROFILE.pem and PROFILE-key.pem are")->type_name("DIR");
  app.add_flag_callback(
      "--no-reconnect", [&options] { options.reconnect = false; },
      "Fail when the connection is lost, instead of trying again");
  app.footer(kFooter);
  app.require_subcommand(1);
  AddStart(app, options);
  AddWithId(app, options, Verb::kStop, "stop", "Stop a job and all its processes");
  AddWithId(app, options, Verb::kQuery, "query", "Show a job's output from the first byte, and follow it to its end");
  try {
    const Arguments arguments(argc, argv);
    app.parse(std::vector<std::string>(arguments.words.rbegin(), arguments.words.rend()));  // last one first
    if (options.verb == Verb::kStart) TakeWords(app.get_subcommand("start")->remaining(), arguments.from_end, options);
  } catch (const CLI::CallForHelp&) {
    const auto chosen = app.get_subcommands();
    return {{}, false, chosen.empty() ? app.help() : chosen[0]->help("jobworker")};
  } catch (const CLI::CallForVersion& version) {
    return {{}, false, std::string(version.what()) + "\n"};
  } catch (const CLI::Error& error) {
    return {{}, true, ErrorText(app, error)};
  }
  return {std::move(options), false, ""};
}

}  // namespace jobworker
