#include "daemon/metrics.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cctype>
#include <map>
#include <utility>

#include "daemon/because.h"
#include "daemon/listen_address.h"

namespace jobworker {

namespace {

using prometheus::Labels;
using Counters = prometheus::Family<prometheus::Counter>;
using Histograms = prometheus::Family<prometheus::Histogram>;

// From what a start through an open connection takes on a fast machine to what a client would take for a hang.
const prometheus::Histogram::BucketBoundaries kSeconds = {.0001, .00025, .0005, .001, .0025, .005, .01, .025,
                                                          .05,   .1,     .25,   .5,   1,     2.5,  5,   10};

struct Counted {
  static Counters& Counter(prometheus::Registry& registry, const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
  }
  static prometheus::Histogram& Histogram(prometheus::Registry& registry, const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, kSeconds);
  }

  const std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  Counters& calls = Counter(*registry, "jobserver_calls_total", "Calls, by method and verdict.");
  Counters& failed = Counter(*registry, "jobserver_starts_failed_total", "Starts that made no job, by stage.");
  Counters& ended = Counter(*registry, "jobserver_jobs_ended_total", "Jobs that have ended, by reason.");
  prometheus::Histogram& started =
      Histogram(*registry, "jobserver_start_seconds", "From a start's arrival to its exec.");
  prometheus::Histogram& broker =
      Histogram(*registry, "jobserver_broker_round_trip_seconds", "From a question to the broker's answer.");
  prometheus::Counter& taken =
      Counter(*registry, "jobserver_output_bytes_total", "Bytes that jobs have written.").Add({});
  prometheus::Counter& sent =
      Counter(*registry, "jobserver_sent_bytes_total", "Bytes of output handed to followers' streams.").Add({});
};

Counted& All() {
  static Counted counted;
  return counted;
}

void Gauge(std::vector<prometheus::MetricFamily>& all, const char* name, const char* help,
           std::initializer_list<std::pair<const char*, uint64_t>> by_state) {
  prometheus::MetricFamily family{name, help, prometheus::MetricType::Gauge, {}};
  for (const auto& [state, value] : by_state) {
    prometheus::ClientMetric metric;
    if (*state != '\0') metric.label = {{"state", state}};
    metric.gauge.value = static_cast<double>(value);
    family.metric.push_back(std::move(metric));
  }
  all.push_back(std::move(family));
}

// Asked when a scrape asks.
struct CensusPage : prometheus::Collectable {
  explicit CensusPage(MetricsPage::Count function) : count(std::move(function)) {}
  [[nodiscard]] std::vector<prometheus::MetricFamily> Collect() const override {
    std::vector<prometheus::MetricFamily> all;
    const Census now = count();
    Gauge(all, "jobserver_jobs", "Jobs that are known, by state.",
          {{"starting", now.starting}, {"running", now.running}, {"stopping", now.stopping}, {"ended", now.ended}});
    Gauge(all, "jobserver_followers", "Streams that follow a job.", {{"", now.followers}});
    Gauge(all, "jobserver_follower_lag_bytes", "Output not yet sent to the follower farthest behind.",
          {{"", now.lag_bytes}});
    Gauge(all, "jobserver_held_bytes", "Memory that the output of all jobs takes.", {{"", now.held_bytes}});
    Gauge(all, "jobserver_has_broker", "1 when there is a broker, else 0.", {{"", now.has_broker ? 1U : 0U}});
    return all;
  }
  const MetricsPage::Count count;
};

tl::expected<void, std::string> Check(const std::string& address) {
  const auto host = ListenHost("--metrics", address);
  if (!host) return Because(host.error());
  if (IsLoopback(*host) && *host != "localhost") return {};
  return Because(fmt::format(
      "--metrics: '{}' is not a loopback address (127.0.0.1 or [::1]): it asks nobody for a certificate", address));
}

}  // namespace

namespace metrics {

void Call(std::string_view method, std::string_view verdict) {
  All().calls.Add({{"method", std::string(method)}, {"verdict", std::string(verdict)}}).Increment();
}
void Started(Seconds since_the_call) { All().started.Observe(since_the_call.count()); }
void NotStarted(std::string_view stage) { All().failed.Add({{"stage", std::string(stage)}}).Increment(); }
void Ended(std::string_view reason) {
  std::string label(reason);
  for (char& c : label) c = static_cast<char>(tolower(static_cast<unsigned char>(c)));
  All().ended.Add({{"reason", std::move(label)}}).Increment();
}
void OutputTaken(uint64_t bytes) { All().taken.Increment(static_cast<double>(bytes)); }
void OutputSent(uint64_t bytes) { All().sent.Increment(static_cast<double>(bytes)); }
void BrokerAnswered(Seconds after) { All().broker.Observe(after.count()); }

}  // namespace metrics

struct MetricsPage::Server {
  Server(const std::string& address, Count count)
      : census(std::make_shared<CensusPage>(std::move(count))), exposer(address) {
    exposer.RegisterCollectable(All().registry);
    exposer.RegisterCollectable(census);
  }
  const std::shared_ptr<CensusPage> census;
  prometheus::Exposer exposer;
};

tl::expected<std::unique_ptr<MetricsPage>, std::string> MetricsPage::Open(const std::string& address,
                                                                          const Count& count) {
  if (const auto checked = Check(address); !checked) return Because(checked.error());
  try {
    return std::unique_ptr<MetricsPage>(new MetricsPage(std::make_unique<Server>(address, count)));
  } catch (const std::exception&) {
    return Because(fmt::format("--metrics: cannot listen on {}: the port is in use", address));
  }
}

MetricsPage::MetricsPage(std::unique_ptr<Server> server) : server_(std::move(server)) {}
MetricsPage::~MetricsPage() = default;

int MetricsPage::port() const { return server_->exposer.GetListeningPorts().at(0); }

}  // namespace jobworker
