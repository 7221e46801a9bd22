// What the CLI writes: our own words, made safe for a terminal, and the job's bytes, untouched.
#pragma once
#include <string>
#include <string_view>

namespace jobworker {

// Control characters, DEL and everything outside ASCII as \xNN, so that text from the network cannot drive a
// terminal or forge a second line.
std::string Escape(std::string_view text);

// "jobworker: LINE" to stderr, escaped.
void Say(std::string_view line);

// Whether colours are wanted there: a terminal that is not "dumb", and no NO_COLOR.
bool UsesColour(int fd);

// All of `bytes`, however many writes that takes, also when `fd` does not block. 0 or an errno.
int WriteFully(int fd, std::string_view bytes);

// One POSIX shell word that stands for exactly `word`: itself when no character in it is special, else quoted.
std::string QuoteWord(std::string_view word);

}  // namespace jobworker
