// The wall clock, as the broker and the API tell it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <ctime>

namespace jobworker {

// UTC, microseconds since 1970.
inline uint64_t NowUs() {
  timespec now{};
  (void)clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

// What is left of a span that began at `since_us`: never more than all of it, though the clock
// may have been set back since.
inline uint64_t LeftUs(uint64_t since_us, uint64_t span_us) {
  const uint64_t due = since_us + span_us;
  return std::min(due - std::min(due, NowUs()), span_us);
}

}  // namespace jobworker
