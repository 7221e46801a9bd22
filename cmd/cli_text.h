// What the CLI writes: our own words, made safe for a terminal, and the job's bytes, untouched.
#pragma once
#include <string>
#include <string_view>

namespace jobworker {

// All but the characters that a terminal of this locale (setlocale(3), LC_CTYPE) shows as such, as \xNN: text from the
// network cannot drive a terminal, forge a second line, or turn the order of what is read.
std::string Escape(std::string_view text);

// As much of what Escape gave as that many columns have room for.
std::string_view Clip(std::string_view text, size_t columns);

// "jobworker: LINE" to stderr, escaped.
void Say(std::string_view line);

// Whether colours are wanted there: a terminal that is not "dumb", and no NO_COLOR.
bool UsesColour(int fd);

// All of `bytes`, however many writes that takes, also when `fd` does not block. 0 or an errno.
int WriteFully(int fd, std::string_view bytes);

// One POSIX shell word that stands for exactly `word`: itself when no character in it is special, else quoted.
std::string QuoteWord(std::string_view word);

}  // namespace jobworker
