// What the programs of the bench print: one figure a line, for scripts/bench to take medians of.
#pragma once
#include <chrono>
#include <cstdio>
#include <cstdlib>

namespace jobworker::bench {

using Clock = std::chrono::steady_clock;

inline double MillisecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

inline void Print(double figure) { (void)printf("%.6f\n", figure); }

inline void Require(bool done, const char* what) {
  if (done) return;
  perror(what);
  exit(1);
}

}  // namespace jobworker::bench
