// Which failures of a call are worth another try, and when: the one place that decides it.
#pragma once
#include <grpcpp/support/status.h>

#include <chrono>
#include <functional>
#include <random>
#include <string>

namespace jobworker {

// What is known of the server and of the call when it failed.
struct Circumstances {
  bool reached = false;    // the server was connected to at some time, by this process
  bool connected = false;  // the connection still stands, so the server itself answered with this status
  bool lost = false;       // an earlier try of the same thing was lost with its connection
  bool following = false;  // what is repeated asks for nothing but what follows: JobQuery, JobWait
};

// True: the same again, later, may succeed and can do no harm. A server that never was reached is not worth waiting
// for.
bool WorthARetry(grpc::StatusCode code, const Circumstances& circumstances);

// That no other client has, to name what comes again: a start, or a reader. Empty when the kernel gives none.
std::string RandomBytes(size_t count);

// How long to wait before each try: from 50 to 100 ms before the first, twice as long before each next one, from 2.5
// to 5 s in the end. A connection that held for so long makes it start from the beginning.
class Backoff {
 public:
  using Clock = std::chrono::steady_clock;
  // `random` returns a number from 0 to 1.
  explicit Backoff(std::function<double()> random) : random_(std::move(random)) {}
  Backoff();
  void Connected(Clock::time_point now) { connected_ = now; }
  std::chrono::milliseconds Next(Clock::time_point now);

 private:
  std::function<double()> random_;
  int tries_ = 0;
  Clock::time_point connected_ = Clock::time_point::max();
};

}  // namespace jobworker
