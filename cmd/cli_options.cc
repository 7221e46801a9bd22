#include "cmd/cli_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "cmd/cli_units.h"
#include "daemon/because.h"

namespace jobworker {
namespace {

constexpr char kFooter[] = R"(Examples:
  jobworker start ls -l            run it, show its output, exit as it exits
  jobworker -u bob start -d make   print the job's id and leave it running
  jobworker query 3                all its output from the first byte, then follow
  jobworker -h build.example:57533 stop 3

A job is named by the id that start gave, or as @last: your newest one. jobworker VERB --help says more.
Exit status: the job's own; 128+N if signal N ended it; 124 when its timeout did; 125 when jobworker itself fails
(network, certificates, not allowed, bad request); 126 when the command cannot be executed, 127 when it is not found.
Settings: flag, then JOBWORKER_HOST, JOBWORKER_PROFILE, JOBWORKER_CERTS, then ~/.config/jobworker/config.toml, then
/etc/jobworker/client.toml; see jobworker config, and man jobworker-config.)";

// What stands behind the verb's name, and examples; CLI11 does not know either.
struct VerbText {
  const char* name;
  const char* usage;
  const char* footer;
};
constexpr VerbText kVerbs[] = {
    {"start", "[FLAG]... [--] COMMAND [ARGUMENT]...",
     R"(The words from the first one that is not a flag on belong to the job, as they are: no shell comes between.
One word alone is split into words by shell quoting rules, with nothing expanded: start 'ls -l' is start ls -l.
After -- even one word is taken as it is: start -- '/opt/my tools/run'. For a shell, ask for one: start sh -c 'a | b'.
Ctrl-C sends SIGINT to the job's main process; a second one within 2 seconds stops the job. A hang-up leaves it running.
Sizes: 4096, 64K, 128M, 1.5G. CPU: 1.5, 50%. Times: 250ms, 10s, 5m, 2h, 1d.

Examples:
  jobworker start --memory 1G --cpu 150% --timeout 10m -- make -j4
  jobworker start --stdin -- tar x < big.tar
  jobworker start -d --label team=web ./nightly)"},
    {"stop", "[FLAG]... ID...",
     R"(Sends the signal, after the grace SIGKILL to all that is left of the job, and returns when nothing is.

Examples:
  jobworker stop 3
  jobworker stop --signal INT --grace 1m 3 4)"},
    {"query", "[FLAG]... ID",
     R"(Exits as the job does. Ctrl-C leaves the job to itself. With --no-follow, a job that still runs gives 0.

Examples:
  jobworker query 3
  jobworker query --tail 20 @last           the last 20 lines, then what comes
  jobworker query --tail 4K --no-follow 3   the last 4096 bytes
  jobworker query --from 1048576 --stderr 3)"},
    {"list", "[FLAG]...",
     "Newest first.\n\nExamples:\n  jobworker list --live\n  jobworker list --label team=web --json"},
    {"status", "ID...", "Examples:\n  jobworker status 3\n  jobworker status --json @last"},
    {"wait", "[FLAG]... ID...",
     R"(Says how each job ended, as it ends. Exits with 0 when all did, else as the first job that did not.

Examples:
  jobworker wait 3 4 5
  jobworker wait --any 3 4)"},
    {"signal", "SIGNAL ID...",
     R"(The signal goes to the job's main process. STOP halts it, and CONT lets it go on; its timeout runs meanwhile.

Examples:
  jobworker signal HUP 3
  jobworker signal 10 3 4)"},
    {"rm", "ID...", "Only jobs that have ended.\n\nExamples:\n  jobworker rm 3 4"},
    {"whoami", "", "Examples:\n  jobworker whoami\n  jobworker -u bob whoami --json"},
    {"version", "", "Examples:\n  jobworker version"},
    {"config", "", "Asks no server.\n\nExamples:\n  jobworker config\n  jobworker -u build config --json"},
    {"completion", "bash|zsh|fish",
     R"(Examples:
  jobworker completion bash > ~/.local/share/bash-completion/completions/jobworker
  jobworker completion fish > ~/.config/fish/completions/jobworker.fish)"}};

const VerbText& TextOf(const std::string& verb) {
  return *std::find_if(std::begin(kVerbs), std::end(kVerbs), [&](const VerbText& each) { return each.name == verb; });
}

constexpr char kCommonFlags[] = "Flags of every verb";

class HelpText : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    const std::string& verb = app->get_name();
    if (verb == "jobworker") return "Usage: jobworker [-u PROFILE] [-h HOST[:PORT]] [FLAG]... VERB ...\n";
    const std::string usage = TextOf(verb).usage;
    return "Usage: jobworker [FLAG]... " + verb + (usage.empty() ? "" : " ") + usage + "\n";
  }
  std::string make_positionals(const CLI::App*) const override { return ""; }  // the usage shows them
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override {
    // CLI11 leaves two empty lines between groups.
    return CLI::detail::find_and_replace(Formatter::make_help(app, std::move(name), mode), "\n\n\n", "\n\n");
  }
  std::string make_option_name(const CLI::Option* option, bool positional) const override {
    return CLI::detail::find_and_replace(Formatter::make_option_name(option, positional), ",", ", ");
  }
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_size() == 0 ? "" : " " + option->get_type_name();
  }
};

// For the program and for each verb, so that they may come before the verb's name and after it.
void AddGlobal(CLI::App& app, Options& options) {
  app.option_defaults()->group(kCommonFlags);
  app.set_help_flag("--help", "Print this help");
  app.add_option("-u,--profile", options.profile, "Whose certificate to use (alice), or a profile of config.toml")
      ->type_name("PROFILE");
  app.add_option("-h,--host", options.host, "The server (localhost:57533); [::1]:57533 for IPv6")
      ->type_name("HOST[:PORT]");
  app.add_option("--certs", options.certs, "Where ca.pem, USER.pem and USER-key.pem are")->type_name("DIR");
  app.add_flag("--json", options.json, "Answers as JSON, one object a line; see man jobworker");
  app.add_flag_callback(
      "--no-reconnect", [&options] { options.reconnect = false; },
      "Fail when the connection is lost, instead of trying again");
}

CLI::App* AddVerb(CLI::App& app, Options& options, Verb verb, const char* name, const char* description) {
  CLI::App* const command = app.add_subcommand(name, description);
  command->footer(TextOf(name).footer);
  command->set_help_flag();
  command->option_defaults()->group("Flags");
  command->callback([&options, verb] { options.verb = verb; });
  return command;
}

// An option whose text `parse` understands, given to `take`.
template <class Value, class Take>
CLI::Option* AddParsed(CLI::App* command, const char* name, Parsed<Value> (*parse)(std::string_view), Take take,
                       const char* description, const char* type) {
  const auto read = [name, parse, take](const std::string& text) {
    const auto value = parse(text);
    if (!value) throw CLI::ValidationError(name, value.error());
    take(*value);
  };
  return command->add_option_function<std::string>(name, read, description)->type_name(type);
}

Parsed<bool> ParseOnDisconnect(std::string_view text) {
  if (text != "keep" && text != "stop") return Because(fmt::format("'{}' is neither keep nor stop", text));
  return text == "stop";
}

Parsed<std::string> ParseShell(std::string_view text) {
  if (text != "bash" && text != "zsh" && text != "fish") {
    return Because(fmt::format("there are scripts for bash, zsh and fish, none for '{}'", text));
  }
  return std::string(text);
}

template <class Value>
auto Into(std::optional<Value>& field) {
  return [&field](Value value) { field = value; };
}

// May be repeated, one value each.
void AddLabels(CLI::App* command, Options& options, const char* description) {
  const auto read = [&options](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      const auto label = ParseLabel(text);
      if (!label) throw CLI::ValidationError("--label", label.error());
      options.labels[label->first] = label->second;
    }
  };
  command->add_option_function<std::vector<std::string>>("--label", read, description)
      ->type_name("KEY=VALUE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
}

void AddLimits(CLI::App* start, Options& options) {
  AddParsed(start, "--cpu", ParseCpu, Into(options.cpu_milli), "At most so much CPU", "AMOUNT");
  AddParsed(start, "--memory", ParseSize, Into(options.memory_bytes), "At most so much memory", "SIZE");
  AddParsed(start, "--pids", ParseCount, Into(options.pids), "At most so many processes and threads", "NUMBER");
  AddParsed(start, "--io-read", ParseRate, Into(options.read_rate), "Read at most so much a second from disk", "SIZE");
  AddParsed(start, "--io-write", ParseRate, Into(options.write_rate), "Write at most so much a second to disk", "SIZE");
}

void AddStart(CLI::App& app, Options& options) {
  CLI::App* const start = AddVerb(app, options, Verb::kStart, "start", "Start a job and show its output until it ends");
  start->add_flag("-d,--detach", options.detach, "Print the job's id and leave it running");
  start->add_flag("--stdin", options.send_stdin, "Send our standard input to the job; otherwise it has none");
  start->add_option("--env", options.env, "Add to the job's environment; may be repeated")
      ->type_name("NAME=VALUE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->allow_extra_args(false);
  start->add_option("--cwd", options.directory, "Where the job runs: an absolute path on the server")->type_name("DIR");
  AddParsed(start, "--timeout", ParseDuration, Into(options.timeout_ms), "Stop the job when it has run for so long",
            "TIME");
  AddLimits(start, options);
  AddLabels(start, options, "A label for list and status; may be repeated");
  AddParsed(
      start, "--on-disconnect", ParseOnDisconnect, [&options](bool stop) { options.stop_on_disconnect = stop; },
      "What happens to the job when nobody follows it any more (keep)", "keep|stop");
  AddParsed(start, "--lease", ParseDuration, Into(options.lease_ms),
            "With --on-disconnect stop: after so long without a follower (10s)", "TIME");
  start->prefix_command();
}

void AddIds(CLI::App* command, Options& options, int most) {
  CLI::Option* const ids = command->add_option("ID", options.ids, "The id that start gave, or @last")->type_name("");
  ids->required();
  ids->check([](const std::string& text) {
    const auto id = ParseId(text);
    return id ? "" : id.error();
  });
  if (most == 1) {
    ids->expected(1);
  } else {
    ids->expected(1, most);
  }
}

void TakeTail(Options& options, const std::string& text) {
  const bool lines = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  const auto amount = ParseSize(text);
  if (!amount) {
    throw CLI::ValidationError("--tail",
                               "'" + text + "' is not a number of lines, or of bytes with a unit: 20, 512B, 64K");
  }
  (lines ? options.begin.tail_lines : options.begin.tail_bytes) = *amount;
}

void AddQuery(CLI::App& app, Options& options) {
  CLI::App* const query =
      AddVerb(app, options, Verb::kQuery, "query", "Show a job's output from the first byte, and follow it to its end");
  CLI::Option* const from = AddParsed(query, "--from", ParseSize, Into(options.begin.offset),
                                      "Begin at this byte of the output, both streams counted", "POSITION");
  query
      ->add_option_function<std::string>(
          "--tail", [&options](const std::string& text) { TakeTail(options, text); },
          "Begin so many lines, or with a unit bytes, before the end")
      ->type_name("NUMBER")
      ->excludes(from);
  query->add_flag_callback(
      "--no-follow", [&options] { options.follow = false; }, "Only what is there now");
  CLI::Option* const out = query->add_flag("--stdout", options.only_stdout, "Only standard output");
  query->add_flag("--stderr", options.only_stderr, "Only standard error")->excludes(out);
  query->add_flag("--timestamps", options.timestamps, "Before each line, when it was read from the job");
  AddIds(query, options, 1);
}

constexpr int kManyIds = 100000;

void AddOthers(CLI::App& app, Options& options) {
  CLI::App* const stop = AddVerb(app, options, Verb::kStop, "stop", "Stop jobs and all their processes");
  const auto signal = [&options](int number) { options.signal = number; };
  CLI::Option* const now = stop->add_flag("--now", options.now, "SIGKILL at once");
  AddParsed(stop, "--signal", ParseSignal, signal, "What is sent first (TERM)", "SIGNAL")->excludes(now);
  AddParsed(stop, "--grace", ParseDuration, Into(options.grace_ms), "From that to SIGKILL", "TIME")->excludes(now);
  AddIds(stop, options, kManyIds);

  CLI::App* const list = AddVerb(app, options, Verb::kList, "list", "Your jobs");
  list->add_flag("-q,--ids", options.ids_only, "Only the ids, one a line");
  list->add_flag("--live", options.only_live, "Only jobs that have not ended");
  AddLabels(list, options, "Only jobs with this label; may be repeated");
  AddParsed(list, "-n", ParseCount, Into(options.count), "At most so many", "NUMBER");

  AddIds(AddVerb(app, options, Verb::kStatus, "status", "All that is known of jobs"), options, kManyIds);
  CLI::App* const wait = AddVerb(app, options, Verb::kWait, "wait", "Wait until jobs have ended");
  wait->add_flag("--any", options.any, "Only until one of them has");
  AddIds(wait, options, kManyIds);

  CLI::App* const send = AddVerb(app, options, Verb::kSignal, "signal", "Send a signal to jobs");
  AddParsed(send, "SIGNAL", ParseSignal, signal, "Its name or number", "")->required();
  AddIds(send, options, kManyIds);

  AddIds(AddVerb(app, options, Verb::kRemove, "rm", "Forget ended jobs and their output"), options, kManyIds);
  AddVerb(app, options, Verb::kWhoAmI, "whoami", "Who the server takes you for, and what you may do");
  AddVerb(app, options, Verb::kVersion, "version", "The versions of jobworker and of the server");
  AddVerb(app, options, Verb::kConfig, "config", "Each setting, and where it comes from");
  CLI::App* const completion =
      AddVerb(app, options, Verb::kCompletion, "completion", "Print a shell's completion script");
  AddParsed(
      completion, "SHELL", ParseShell, [&options](const std::string& shell) { options.shell = shell; },
      "bash, zsh or fish", "")
      ->required();
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

// What goes together and what does not; CLI11 has no words for it.
void CheckStart(const Options& options) {
  if (options.detach && options.send_stdin) {
    throw CLI::ValidationError("--stdin needs somebody who sends it, so it does not go with -d");
  }
  if (options.lease_ms && !options.stop_on_disconnect) {
    throw CLI::ValidationError("--lease goes with --on-disconnect stop");
  }
  if (options.timeout_ms && *options.timeout_ms == 0) {
    throw CLI::ValidationError("--timeout: 0 is not a length of time for a job; leave it out for no timeout");
  }
  if (options.directory && !options.directory->starts_with('/')) {
    throw CLI::ValidationError("--cwd: '" + *options.directory + "' is not an absolute path on the server");
  }
  for (const std::string& entry : options.env) {
    if (entry.find('=') == std::string::npos || entry[0] == '=') {
      throw CLI::ValidationError("--env: '" + entry + "' is not NAME=VALUE");
    }
  }
}

// What is wrong with words that nothing takes.
std::string Unexpected(const CLI::App& app, const CLI::App& verb) {
  const auto before = app.remaining();
  const std::string word = before.empty() ? verb.remaining()[0] : before[0];
  const std::string& name = verb.get_name();
  if (word[0] != '-') return fmt::format("{} does not take '{}'", name, word);
  return before.empty() ? fmt::format("{} does not know the flag {}", name, word)
                        : fmt::format("{} is not a flag of every verb; flags of {} alone stand behind it", word, name);
}

std::string ErrorText(const CLI::App& app, const CLI::Error& error) {
  const auto chosen = app.get_subcommands();
  const std::string help = "; see jobworker" + (chosen.empty() ? "" : " " + chosen[0]->get_name()) + " --help";
  const std::string what = error.what();
  if (chosen.empty() && error.get_name() == "RequiredError") {
    const auto words = app.remaining();
    return (words.empty() ? "say what to do" : "there is no verb '" + words[0] + "'; say what to do") +
           ", such as start, list or stop" + help;
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) return Unexpected(app, *chosen[0]) + help;
  if (error.get_name() != "ArgumentMismatch") return what + help;
  if (what.starts_with("ID")) return chosen[0]->get_name() + " takes one ID" + help;
  return what.substr(0, what.find(':')) + (what.ends_with("missing") ? " needs a value" : " is given more than once") +
         help;
}

}  // namespace

ParsedOptions ParseOptions(int argc, const char* const* argv) {
  Options options;
  CLI::App app("Run a command on another machine, watch it, come back to it, stop it.", "jobworker");
  app.formatter(std::make_shared<HelpText>());
  AddGlobal(app, options);
  app.set_version_flag("--version", "jobworker " JOBWORKER_VERSION, "Print the version");
  app.footer(kFooter);
  app.require_subcommand(1);
  AddStart(app, options);
  AddQuery(app, options);
  AddOthers(app, options);
  for (CLI::App* const verb : app.get_subcommands({})) {
    verb->group("Verbs");
    AddGlobal(*verb, options);
  }
  try {
    const Arguments arguments(argc, argv);
    app.parse(std::vector<std::string>(arguments.words.rbegin(), arguments.words.rend()));  // last one first
    if (options.verb == Verb::kStart) {
      TakeWords(app.get_subcommand("start")->remaining(), arguments.from_end, options);
      CheckStart(options);
    }
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
