#include "cmd/cli_describe.h"

#include <fmt/format.h>
#include <string.h>

#include <vector>

#include "cmd/cli_text.h"
#include "cmd/cli_units.h"
#include "daemon/signal_text.h"

namespace jobworker {
namespace {

std::string WhoseMemory(const JobEnd& end, const std::string& user) {
  return end.oom_level() == JobEnd::USER ? fmt::format("out of memory (the limit of all {}'s jobs together)", user)
                                         : "out of memory (the job's own limit)";
}

// What the main process did in the end.
std::string LastAct(const JobEnd& end) {
  if (end.cause() == JobEnd::EXITED) return fmt::format("exited with {}", end.exit_code());
  if (end.cause() == JobEnd::UNKNOWN) return "has ended, but how is not known";
  return fmt::format("was terminated by {}{}", SignalText(end.signal()), end.core_dumped() ? ", core dumped" : "");
}

// "was stopped by alice with SIGTERM"; the last act follows.
std::string StopText(const JobEnd& end, std::string_view why) {
  std::string text(why);
  if (end.stop_signal() != 0) text += fmt::format(", with {}", SignalText(end.stop_signal()));
  if (end.stop_killed()) text += end.stop_signal() != 0 ? ", did not end in time and was killed" : ", by SIGKILL";
  return fmt::format("{}; it {}", text, LastAct(end));
}

std::string ByReason(const JobEnd& end, const std::string& user) {
  switch (end.reason()) {
    case JobEnd::STOPPED:
      return StopText(end, end.actor().empty() ? "was stopped" : fmt::format("was stopped by {}", end.actor()));
    case JobEnd::TIMED_OUT: return StopText(end, "was stopped because its timeout was over");
    case JobEnd::LEASE_LOST: return StopText(end, "was stopped because nobody followed it any more");
    case JobEnd::OUTPUT_LIMIT: return StopText(end, "was stopped because it made more output than is kept");
    case JobEnd::OUT_OF_MEMORY: return fmt::format("was killed: {}", WhoseMemory(end, user));
    case JobEnd::LOST: return "was lost";
    case JobEnd::SIGNALLED_BY_OTHERS: return LastAct(end);
    default: return "";
  }
}

// From a server that gives no reason, and for an end that has none.
std::string ByCause(const JobEnd& end, const std::string& user) {
  const bool out_of_memory = end.oom_level() != JobEnd::NONE;
  if (end.cause() == JobEnd::SIGNALLED && out_of_memory) return "was killed: " + WhoseMemory(end, user);
  if (end.cause() == JobEnd::SIGNALLED) return LastAct(end) + (end.stopped() ? ", stopped" : "");
  if (end.cause() != JobEnd::EXITED) return LastAct(end);
  if (end.stopped()) return fmt::format("was stopped and exited with {}", end.exit_code());
  if (!out_of_memory) return "";
  return fmt::format("exited with {}; {} of its processes were killed: {}", end.exit_code(), end.oom_kills(),
                     WhoseMemory(end, user));
}

std::string EndText(const JobEnd& end, const std::string& user) {
  std::string text = ByReason(end, user);
  if (text.empty()) text = ByCause(end, user);
  if (end.leftovers() > 0) {
    text += fmt::format("{}left {} running; what was left has been killed", text.empty() ? "" : " and ",
                        end.leftovers() == 1 ? "1 process" : fmt::format("{} processes", end.leftovers()));
  }
  if (!end.detail().empty()) text += fmt::format("{}({})", text.empty() ? "" : " ", end.detail());
  return text;
}

std::string SignalWord(int number) {
  const char* const name = sigabbrev_np(number);
  return name == nullptr ? fmt::format("signal {}", number) : fmt::format("SIG{}", name);
}

std::string Ago(int64_t time_us, int64_t now_us) {
  return fmt::format("{} ({} ago)", TimeText(time_us, false),
                     DurationText(now_us > time_us ? static_cast<uint64_t>(now_us - time_us) : 0));
}

class Lines {
 public:
  void Add(std::string_view name, const std::string& text) {
    if (!text.empty()) text_ += fmt::format("  {:<10} {}\n", name, Escape(text));
  }
  std::string text_;
};

std::string OutputText(const JobStatus::Output& output) {
  std::string text = SizeText(output.end());
  if (output.first() > 0) text += fmt::format(", of which those before byte {} are gone", output.first());
  if (output.limit() > 0) text += fmt::format("; {} are kept", SizeText(output.limit()));
  if (!output.policy().empty()) text += fmt::format(" ({})", output.policy());
  return text + fmt::format("; {} following", output.followers());
}

std::string UsageText(const ResourceUsage& usage) {
  std::string text =
      fmt::format("cpu {} user, {} system", DurationText(usage.cpu_user_us()), DurationText(usage.cpu_system_us()));
  if (usage.memory_peak() > 0) text += fmt::format("; memory at most {}", SizeText(usage.memory_peak()));
  if (usage.pids_peak() > 0) text += fmt::format("; at most {} processes", usage.pids_peak());
  return text + fmt::format("; {} read, {} written", SizeText(usage.read_bytes()), SizeText(usage.write_bytes()));
}

ResourceUsage UsageOf(const JobStatus& status) {
  if (status.has_usage() || !status.has_end()) return status.usage();
  ResourceUsage usage;
  usage.set_cpu_user_us(status.end().cpu_user_us());
  usage.set_cpu_system_us(status.end().cpu_system_us());
  usage.set_memory_peak(status.end().memory_peak());
  usage.set_read_bytes(status.end().read_bytes());
  usage.set_write_bytes(status.end().write_bytes());
  usage.set_pids_peak(status.end().pids_peak());
  return usage;
}

std::string InputText(const InputResult& input) {
  const std::string taken = SizeText(input.taken());
  switch (input.state()) {
    case INPUT_OPEN: return taken + " taken, open";
    case INPUT_CLOSED: return taken + " taken, complete";
    case INPUT_REFUSED: return taken + " taken, then closed by the job";
    case INPUT_LOST: return "about " + taken + " taken, then cut off when the server was restarted";
    default: return taken + " taken";
  }
}

}  // namespace

int ExitStatusOf(const JobEnd& end) {
  if (end.reason() == JobEnd::TIMED_OUT) return kTimedOut;
  if (end.cause() == JobEnd::EXITED) return end.exit_code();
  if (end.cause() == JobEnd::SIGNALLED) return 128 + end.signal();
  return kOurFailure;
}

std::string DescribeEnd(const std::string& id, const JobEnd& end, const std::string& user) {
  const std::string text = EndText(end, user);
  return text.empty() ? "" : fmt::format("job {} {}", id, text);
}

std::string DescribeAnyEnd(const std::string& id, const JobEnd& end, const std::string& user) {
  const std::string text = DescribeEnd(id, end, user);
  return text.empty() ? fmt::format("job {} {}", id, LastAct(end)) : text;
}

std::string StateWord(const JobStatus& status) {
  switch (status.state()) {
    case JobStatus::STARTING: return "starting";
    case JobStatus::RUNNING: return "running";
    case JobStatus::ENDING: return "ending";
    default: break;
  }
  const JobEnd& end = status.end();
  switch (end.reason()) {
    case JobEnd::STOPPED: return "stopped";
    case JobEnd::TIMED_OUT: return "timed out";
    case JobEnd::OUT_OF_MEMORY: return "out of memory";
    case JobEnd::LEASE_LOST: return "lease lost";
    case JobEnd::OUTPUT_LIMIT: return "output limit";
    case JobEnd::LOST: return "lost";
    default: break;
  }
  if (end.cause() == JobEnd::EXITED) return fmt::format("exited {}", end.exit_code());
  return end.cause() == JobEnd::SIGNALLED ? SignalWord(end.signal()) : "ended";
}

std::string CommandText(const JobStatus& status) {
  std::string text;
  for (const std::string& word : status.argv()) text += (text.empty() ? "" : " ") + QuoteWord(word);
  return Escape(text);
}

std::string LimitsText(const ResourceLimits& limits) {
  std::vector<std::string> texts;
  if (limits.has_cpu_milli()) texts.push_back(fmt::format("cpu {:g}", static_cast<double>(limits.cpu_milli()) / 1000));
  if (limits.has_memory_bytes()) texts.push_back("memory " + SizeText(limits.memory_bytes()));
  if (limits.has_pids()) texts.push_back(fmt::format("{} processes", limits.pids()));
  if (limits.has_read_bytes_per_second()) texts.push_back("read " + SizeText(limits.read_bytes_per_second()) + "/s");
  if (limits.has_write_bytes_per_second()) texts.push_back("write " + SizeText(limits.write_bytes_per_second()) + "/s");
  if (limits.has_read_ops_per_second()) texts.push_back(fmt::format("{} reads/s", limits.read_ops_per_second()));
  if (limits.has_write_ops_per_second()) texts.push_back(fmt::format("{} writes/s", limits.write_ops_per_second()));
  return texts.empty() ? "none" : fmt::format("{}", fmt::join(texts, ", "));
}

std::string StatusText(const JobStatus& status, const std::string& user, int64_t now_us) {
  Lines lines;
  lines.text_ = fmt::format("job {}: {}\n", Escape(status.pid()), StateWord(status));
  // Escaped already.
  lines.text_ += fmt::format("  {:<10} {}\n", "command", CommandText(status));
  lines.Add("directory", status.directory());
  for (const auto& [key, value] : status.labels()) lines.Add("label", key + "=" + value);
  if (status.started_us() != 0) lines.Add("started", Ago(status.started_us(), now_us));
  if (status.end().ended_us() != 0) lines.Add("ended", Ago(status.end().ended_us(), now_us));
  if (status.has_end()) lines.Add("end", DescribeAnyEnd(status.pid(), status.end(), user));
  lines.Add("limits", LimitsText(status.limits()));
  if (status.unenforced_size() > 0)
    lines.Add("", fmt::format("not enforced: {}", fmt::join(status.unenforced(), ", ")));
  if (status.timeout_ms() > 0) lines.Add("timeout", DurationText(status.timeout_ms() * 1000));
  if (status.on_disconnect() == ON_DISCONNECT_STOP) {
    lines.Add("lease", fmt::format("stopped after {} without a follower", DurationText(status.lease_ms() * 1000)));
  }
  if (status.has_input()) lines.Add("input", InputText(status.input()));
  lines.Add("output", OutputText(status.output()));
  if (status.has_usage() || status.has_end()) lines.Add("usage", UsageText(UsageOf(status)));
  return lines.text_;
}

}  // namespace jobworker
