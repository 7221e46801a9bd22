#include "cmd/cli_job.h"

#include <fmt/format.h>

#include <algorithm>

#include "cmd/cli_json.h"
#include "cmd/cli_text.h"
#include "cmd/cli_units.h"

namespace jobworker {
namespace {

// `log` with `stamp` before each line that begins in it.
std::string Stamped(std::string_view log, const std::string& stamp, bool& inside_line) {
  std::string text;
  while (!log.empty()) {
    if (!inside_line) text += stamp;
    const size_t size = std::min(log.find('\n'), log.size() - 1) + 1;
    text += log.substr(0, size);
    inside_line = log[size - 1] != '\n';
    log.remove_prefix(size);
  }
  return text;
}

}  // namespace

void WarnUnenforced(const WorkerResponse& response) {
  if (response.unenforced_size() == 0) return;
  Say(fmt::format("the server does not enforce these limits on job {}: {}", response.pid(),
                  fmt::join(response.unenforced(), ", ")));
}

int JobView::ShowFirst(const WorkerResponse& response) {
  id_ = response.pid();
  WarnUnenforced(response);
  if (format_ != Format::kJson) return 0;
  return WriteFully(out_, response.has_status() ? JobJson(response.status()) : IdJson("job", id_));
}

int JobView::ShowGap(const WorkerResponse& response) const {
  if (response.dropped() == 0) return 0;
  Say(fmt::format("{} bytes of job {}'s output before this point are gone: it made more than the server keeps",
                  response.dropped(), id_));
  return format_ == Format::kJson ? WriteFully(out_, GapJson(id_, response)) : 0;
}

int JobView::ShowLog(const WorkerResponse& response, std::string_view log) {
  if (log.empty()) return 0;
  if (format_ == Format::kJson) return WriteFully(out_, OutputJson(id_, response, log));
  const int fd = response.stream() == STDERR ? err_ : out_;
  if (format_ == Format::kPlain) return WriteFully(fd, log);
  const std::string stamp = response.time_us() == 0 ? "- " : TimeText(response.time_us(), true) + " ";
  return WriteFully(fd, Stamped(log, stamp, inside_line_[response.stream() == STDERR ? 1 : 0]));
}

int JobView::Show(const WorkerResponse& response) {
  int error = id_.empty() ? ShowFirst(response) : 0;
  if (error == 0) error = ShowGap(response);
  std::string_view log = response.log();
  if (response.has_offset()) {
    if (position_ && response.offset() < *position_) {
      log.remove_prefix(std::min<uint64_t>(*position_ - response.offset(), log.size()));
    }
    position_ = std::max(position_.value_or(0), response.offset() + response.log().size());
  }
  if (error == 0) error = ShowLog(response, log);
  partial_ = response.partial();
  resume_ = response.resume();
  if (response.has_end()) end_ = response.end();
  if (error != 0 || format_ != Format::kJson || !Complete()) return error;
  return WriteFully(out_, end_ ? EndJson(id_, *end_) : IdJson("partial", id_));
}

}  // namespace jobworker
