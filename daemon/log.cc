#include "daemon/log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <ctime>
#include <iterator>

namespace jobworker {

namespace {

constexpr size_t kMaxValue = 256;

// sd_journal_sendv says that all is well when there is no socket.
bool HasJournal() { return access("/run/systemd/journal/socket", W_OK) == 0; }

bool GoesToJournal() {
  const char* stream = getenv("JOURNAL_STREAM");
  struct stat info {};
  if (stream == nullptr || fstat(STDERR_FILENO, &info) != 0) return false;
  return fmt::format("{}:{}", info.st_dev, info.st_ino) == stream;
}

std::string Timestamp() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return fmt::format("{:%FT%T}.{:03}Z", fmt::gmtime(now.tv_sec), now.tv_nsec / 1'000'000);
}

std::string Line(std::string_view event, LogFields fields) {
  std::string line(event);
  for (const auto& [key, value] : fields) fmt::format_to(std::back_inserter(line), " {}={}", key, Escaped(value));
  return line;
}

}  // namespace

std::string Escaped(std::string_view text) {
  std::string out;
  bool quoted = text.empty();
  for (const char c : text.substr(0, kMaxValue)) {
    const auto byte = static_cast<unsigned char>(c);
    quoted = quoted || c == ' ' || c == '"' || c == '=' || c == '\\';
    if (c == '"' || c == '\\') out += '\\';
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", byte);
    }
  }
  if (text.size() > kMaxValue) out += "...";
  return quoted ? '"' + out + '"' : out;
}

std::vector<std::string> JournalFields(std::string_view event, LogFields fields) {
  std::vector<std::string> all = {"MESSAGE=" + Line(event, fields), event == "denied" ? "PRIORITY=4" : "PRIORITY=6",
                                  "SYSLOG_IDENTIFIER=jobserver", fmt::format("JOBWORKER_EVENT={}", event)};
  for (const auto& [key, value] : fields) {
    std::string field = fmt::format("JOBWORKER_{}=", key);
    for (char& c : field) c = static_cast<char>(toupper(static_cast<unsigned char>(c)));
    all.push_back(field.append(value.substr(0, kMaxValue)));
  }
  return all;
}

void Log(std::string_view event, LogFields fields) {
  const bool journal = GoesToJournal();
  if (journal && HasJournal()) {
    std::vector<std::string> all = JournalFields(event, fields);
    std::vector<iovec> parts;
    for (std::string& field : all) parts.push_back({field.data(), field.size()});
    if (sd_journal_sendv(parts.data(), static_cast<int>(parts.size())) == 0) return;
  }
  std::string line = "jobserver: " + Line(event, fields);
  if (!journal) line += " time=" + Timestamp();
  line += '\n';
  (void)!write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace jobworker
