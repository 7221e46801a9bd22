// For a build without Prometheus's library: nothing is counted, and who asks for the page is told why.
#include "daemon/because.h"
#include "daemon/metrics.h"

namespace jobworker {

namespace metrics {

void Call(std::string_view, std::string_view) {}
void Started(Seconds) {}
void NotStarted(std::string_view) {}
void Ended(std::string_view) {}
void OutputTaken(uint64_t) {}
void OutputSent(uint64_t) {}
void BrokerAnswered(Seconds) {}

}  // namespace metrics

struct MetricsPage::Server {};

tl::expected<std::unique_ptr<MetricsPage>, std::string> MetricsPage::Open(const std::string&, const Count&) {
  return Because(
      "--metrics: this jobserver has none: all of its libraries are linked in, as in the tar.gz, and Debian has no "
      "such form of Prometheus's; leave --metrics out, or install the package jobworker-server, whose jobserver has "
      "them");
}

MetricsPage::MetricsPage(std::unique_ptr<Server> server) : server_(std::move(server)) {}
MetricsPage::~MetricsPage() = default;
int MetricsPage::port() const { return 0; }

}  // namespace jobworker
