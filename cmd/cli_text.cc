#include "cmd/cli_text.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cwchar>
#include <cwctype>

namespace jobworker {

namespace {

// The first character, in the locale's encoding.
struct Character {
  explicit Character(std::string_view text) {
    wchar_t code = 0;
    mbstate_t state{};
    const size_t decoded = mbrtowc(&code, text.data(), text.size(), &state);
    // A NUL, or no character at all, is a byte that is not shown.
    if (decoded == 0 || decoded > text.size() || iswprint(static_cast<wint_t>(code)) == 0) return;
    size = decoded;
    columns = wcwidth(code);
  }
  size_t size = 1;
  int columns = 0;
};

}  // namespace

std::string Escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Character next(text);
    if (next.columns > 0) {
      out += text.substr(0, next.size);
    } else {
      for (const char c : text.substr(0, next.size)) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
    text.remove_prefix(next.size);
  }
  return out;
}

std::string_view Clip(std::string_view text, size_t columns) {
  size_t end = 0;
  while (end < text.size()) {
    const Character next(text.substr(end));
    const auto wide = static_cast<size_t>(next.columns);
    if (wide > columns) break;
    columns -= wide;
    end += next.size;
  }
  return text.substr(0, end);
}

void Say(std::string_view line) {
  // One write, so that lines of several processes on one terminal stay whole. Nobody is left to tell if it fails.
  static_cast<void>(WriteFully(STDERR_FILENO, "jobworker: " + Escape(line) + "\n"));
}

bool UsesColour(int fd) {
  const char* const refused = getenv("NO_COLOR");
  const char* const terminal = getenv("TERM");
  return isatty(fd) == 1 && (refused == nullptr || *refused == '\0') &&
         (terminal == nullptr || std::string_view(terminal) != "dumb");
}

int WriteFully(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      pollfd ready{fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

std::string QuoteWord(std::string_view word) {
  const std::string_view plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
  if (!word.empty() && word.find_first_not_of(plain) == std::string_view::npos) return std::string(word);
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace jobworker
