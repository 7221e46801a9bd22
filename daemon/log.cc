#include "daemon/log.h"

#include <fmt/format.h>
#include <unistd.h>

#include <iterator>

namespace jobworker {

namespace {
constexpr size_t kMaxValue = 256;
}

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
  line += '\n';
  (void)!write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace jobworker
