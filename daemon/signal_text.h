// Signals in words.
#pragma once
#include <fmt/format.h>
#include <string.h>

#include <string>

namespace jobworker {

// "signal 15 (SIGTERM)", or "signal 42" for one that has no name.
inline std::string SignalText(int number) {
  const char* const name = sigabbrev_np(number);
  return name == nullptr ? fmt::format("signal {}", number) : fmt::format("signal {} (SIG{})", number, name);
}

}  // namespace jobworker
