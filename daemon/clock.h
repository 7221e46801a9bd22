// The wall clock, as the broker and the API tell it.
#pragma once
#include <cstdint>
#include <ctime>

namespace jobworker {

// UTC, microseconds since 1970.
inline uint64_t NowUs() {
  timespec now{};
  (void)clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

}  // namespace jobworker
