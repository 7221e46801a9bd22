#include "daemon/log.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <iterator>

namespace jobworker {

namespace {

constexpr size_t kMaxValue = 256;

// systemd.exec(5): JOURNAL_STREAM names the descriptor that systemd gave us. The journal stamps each line itself.
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

void Log(std::string_view event, std::initializer_list<std::pair<std::string_view, std::string_view>> fields) {
  std::string line = fmt::format("jobserver: {}", event);
  for (const auto& [key, value] : fields) fmt::format_to(std::back_inserter(line), " {}={}", key, Escaped(value));
  if (!GoesToJournal()) line += " time=" + Timestamp();
  line += '\n';
  (void)!write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace jobworker
