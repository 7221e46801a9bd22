#include "cmd/cli_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "cmd/cli_text.h"

namespace jobworker {
namespace {

std::string WhoseMemory(const JobEnd& end, const std::string& user) {
  return end.oom_level() == JobEnd::USER ? fmt::format("out of memory (the limit of all {}'s jobs together)", user)
                                         : "out of memory (the job's own limit)";
}

std::string HowItEnded(const JobEnd& end, const std::string& user) {
  const bool out_of_memory = end.oom_level() != JobEnd::NONE;
  if (end.cause() == JobEnd::SIGNALLED && out_of_memory) return "was killed: " + WhoseMemory(end, user);
  if (end.cause() == JobEnd::SIGNALLED) {
    return fmt::format("was terminated by signal {}{}{}", SignalName(end.signal()),
                       end.core_dumped() ? ", core dumped" : "", end.stopped() ? ", stopped" : "");
  }
  if (end.cause() != JobEnd::EXITED) return "has ended, but how is not known";
  if (end.stopped()) return fmt::format("was stopped and exited with {}", end.exit_code());
  if (!out_of_memory) return "";
  return fmt::format("exited with {}; {} of its processes were killed: {}", end.exit_code(), end.oom_kills(),
                     WhoseMemory(end, user));
}

}  // namespace

void WarnUnenforced(const WorkerResponse& response) {
  if (response.unenforced_size() == 0) return;
  Say(fmt::format("the server does not enforce these limits on job {}: {}", response.pid(),
                  fmt::join(response.unenforced(), ", ")));
}

int JobView::Show(const WorkerResponse& response) {
  if (id_.empty()) id_ = response.pid();
  WarnUnenforced(response);
  if (response.dropped() > 0) {
    Say(fmt::format("{} bytes of job {}'s output before this point are gone: it made more than the server keeps",
                    response.dropped(), id_));
  }
  std::string_view log = response.log();
  if (response.has_offset()) {
    if (position_ && response.offset() < *position_) {
      log.remove_prefix(std::min<uint64_t>(*position_ - response.offset(), log.size()));
    }
    position_ = std::max(position_.value_or(0), response.offset() + response.log().size());
  }
  if (response.has_end()) end_ = response.end();
  return WriteFully(response.stream() == STDERR ? err_ : out_, log);
}

int JobView::ExitStatus() const {
  if (end_->cause() == JobEnd::EXITED) return end_->exit_code();
  if (end_->cause() == JobEnd::SIGNALLED) return 128 + end_->signal();
  return kOurFailure;
}

std::string JobView::DescribeEnd() const {
  std::string text = HowItEnded(*end_, user_);
  if (end_->leftovers() > 0) {
    text += fmt::format("{}left {} running; what was left has been killed", text.empty() ? "" : " and ",
                        end_->leftovers() == 1 ? "1 process" : fmt::format("{} processes", end_->leftovers()));
  }
  return text.empty() ? "" : fmt::format("job {} {}", id_, text);
}

}  // namespace jobworker
