// What this process counts for its operators, in Prometheus's text format
// (https://prometheus.io/docs/instrumenting/exposition_formats/). jobserver(8) lists the names and their units.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <tl/expected.hpp>

namespace jobworker {

// One for the process, as the log is, whether anybody looks or not. From any thread.
namespace metrics {

using Seconds = std::chrono::duration<double>;

// `method` and the other words are ours: they make the series, so none may be a client's.
void Call(std::string_view method, std::string_view verdict);
void Started(Seconds since_the_call);
void NotStarted(std::string_view stage);
void Ended(std::string_view reason);
void OutputTaken(uint64_t bytes);
void OutputSent(uint64_t bytes);
void BrokerAnswered(Seconds after);

}  // namespace metrics

// What there is at the moment of a scrape.
struct Census {
  uint64_t starting = 0, running = 0, stopping = 0, ended = 0;  // jobs
  uint64_t followers = 0;
  uint64_t lag_bytes = 0;   // of the follower that is farthest behind
  uint64_t held_bytes = 0;  // of memory, for the output of all jobs
  bool has_broker = false;
};

// Answers GET /metrics on a loopback address, with two threads of its own, as long as it lives.
class MetricsPage {
 public:
  // Called for each scrape, on a thread of the page's.
  using Count = std::function<Census()>;
  // `address` is ADDR:PORT or [ADDR]:PORT. The error says what is wrong with it, or that the port cannot be had.
  static tl::expected<std::unique_ptr<MetricsPage>, std::string> Open(const std::string& address, const Count& count);
  ~MetricsPage();
  MetricsPage(const MetricsPage&) = delete;
  MetricsPage& operator=(const MetricsPage&) = delete;
  [[nodiscard]] int port() const;

 private:
  struct Server;
  explicit MetricsPage(std::unique_ptr<Server> server);
  std::unique_ptr<Server> server_;
};

}  // namespace jobworker
