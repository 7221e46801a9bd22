#include "cmd/cli_retry.h"

#include <sys/random.h>

#include <algorithm>
#include <memory>

namespace jobworker {
namespace {

constexpr std::chrono::milliseconds kFirst{100};
constexpr std::chrono::milliseconds kLongest{5000};

}  // namespace

bool WorthARetry(grpc::StatusCode code, const Circumstances& circumstances) {
  if (!circumstances.reached) return false;
  switch (code) {
    case grpc::StatusCode::OK:                  // a stream that ended without an end
    case grpc::StatusCode::RESOURCE_EXHAUSTED:  // too many at once, as when all clients come back at the same time
      return circumstances.following;
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::CANCELLED:  // by the server, as it is being stopped
      return circumstances.following || circumstances.lost || !circumstances.connected;
    default: return false;
  }
}

std::string RandomBytes(size_t count) {
  std::string bytes(count, '\0');
  return getrandom(bytes.data(), count, 0) == static_cast<ssize_t>(count) ? bytes : "";
}

Backoff::Backoff()
    : random_([engine = std::make_shared<std::minstd_rand>(std::random_device()())] {
        return std::uniform_real_distribution(0.0, 1.0)(*engine);
      }) {}

std::chrono::milliseconds Backoff::Next(Clock::time_point now) {
  if (connected_ < now && now - connected_ > kLongest) tries_ = 0;
  connected_ = Clock::time_point::max();
  const auto whole = std::min(kLongest, kFirst * (1 << std::min(tries_, 10)));
  ++tries_;
  return std::chrono::duration_cast<std::chrono::milliseconds>(whole * (0.5 + random_() / 2));
}

}  // namespace jobworker
