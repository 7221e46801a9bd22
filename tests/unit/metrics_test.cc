// The page as Prometheus reads it: over HTTP.
#include "daemon/metrics.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "common/unique_fd.h"

namespace jobworker {
namespace {

std::string Ask(int port, const std::string& request) {
  const UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(socket.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(send(socket.Get(), request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
  std::string answer;
  char part[4096];
  for (ssize_t n; (n = read(socket.Get(), part, sizeof(part))) > 0;) answer.append(part, static_cast<size_t>(n));
  return answer;
}

std::string Scrape(const MetricsPage& page) {
  return Ask(page.port(), "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n");
}

testing::AssertionResult Has(const std::string& page, const std::string& line) {
  if (page.find("\n" + line + "\n") != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "no line '" << line << "' in\n" << page;
}

TEST(MetricsPage, RefusesWhatIsNotALoopbackAddress) {
  for (const char* address : {"0.0.0.0:0", "[::]:0", "192.168.1.1:9100", "[fe80::1]:9100", "localhost:9100",
                              "128.0.0.1:1", "126.255.255.255:1", "", ":9100", "127.0.0.1", "127.0.0.1:",
                              "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:1x", "127.0.0.1:0,0.0.0.0:0"}) {
    const auto page = MetricsPage::Open(address, [] { return Census{}; });
    ASSERT_FALSE(page) << address;
    EXPECT_NE(page.error().find("--metrics: "), std::string::npos) << page.error();
  }
}

TEST(MetricsPage, SaysThatThePortIsTaken) {
  const auto first = MetricsPage::Open("127.0.0.1:0", [] { return Census{}; });
  ASSERT_TRUE(first) << first.error();
  const auto second = MetricsPage::Open(fmt::format("127.0.0.1:{}", (*first)->port()), [] { return Census{}; });
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().find("the port is in use"), std::string::npos) << second.error();
}

TEST(MetricsPage, HasWhatThereIsNow) {
  Census census{1, 2, 3, 4, 5, 6, 7, true};
  const auto page = MetricsPage::Open("127.0.0.1:0", [&] { return census; });
  ASSERT_TRUE(page) << page.error();
  const std::string text = Scrape(**page);
  EXPECT_TRUE(text.substr(8, 4) == " 200") << text;
  EXPECT_TRUE(Has(text, "jobserver_jobs{state=\"starting\"} 1"));
  EXPECT_TRUE(Has(text, "jobserver_jobs{state=\"running\"} 2"));
  EXPECT_TRUE(Has(text, "jobserver_jobs{state=\"stopping\"} 3"));
  EXPECT_TRUE(Has(text, "jobserver_jobs{state=\"ended\"} 4"));
  EXPECT_TRUE(Has(text, "jobserver_followers 5"));
  EXPECT_TRUE(Has(text, "jobserver_follower_lag_bytes 6"));
  EXPECT_TRUE(Has(text, "jobserver_held_bytes 7"));
  EXPECT_TRUE(Has(text, "jobserver_has_broker 1"));
  census.has_broker = false;
  EXPECT_TRUE(Has(Scrape(**page), "jobserver_has_broker 0"));
}

TEST(MetricsPage, CountsWhatHappens) {
  const auto page = MetricsPage::Open("127.0.0.1:0", [] { return Census{}; });
  ASSERT_TRUE(page) << page.error();
  metrics::Call("JobStart", "denied");
  metrics::Call("JobStart", "denied");
  metrics::Call("JobStop", "allowed");
  metrics::NotStarted("exec");
  metrics::Ended("OUT_OF_MEMORY");
  metrics::OutputTaken(100);
  metrics::OutputSent(300);
  metrics::OutputSent(1);
  metrics::Started(std::chrono::milliseconds(3));
  metrics::BrokerAnswered(std::chrono::seconds(20));
  const std::string text = Scrape(**page);
  EXPECT_TRUE(Has(text, "jobserver_calls_total{method=\"JobStart\",verdict=\"denied\"} 2"));
  EXPECT_TRUE(Has(text, "jobserver_calls_total{method=\"JobStop\",verdict=\"allowed\"} 1"));
  EXPECT_TRUE(Has(text, "jobserver_starts_failed_total{stage=\"exec\"} 1"));
  EXPECT_TRUE(Has(text, "jobserver_jobs_ended_total{reason=\"out_of_memory\"} 1"));
  EXPECT_TRUE(Has(text, "jobserver_output_bytes_total 100"));
  EXPECT_TRUE(Has(text, "jobserver_sent_bytes_total 301"));
  EXPECT_TRUE(Has(text, "jobserver_start_seconds_bucket{le=\"0.0025\"} 0"));
  EXPECT_TRUE(Has(text, "jobserver_start_seconds_bucket{le=\"0.005\"} 1"));
  EXPECT_TRUE(Has(text, "jobserver_start_seconds_count 1"));
  EXPECT_TRUE(Has(text, "jobserver_broker_round_trip_seconds_bucket{le=\"10\"} 0"));
  EXPECT_TRUE(Has(text, "jobserver_broker_round_trip_seconds_bucket{le=\"+Inf\"} 1"));
}

TEST(MetricsPage, OutlivesWhatIsNoScrape) {
  const auto page = MetricsPage::Open("127.0.0.1:0", [] { return Census{}; });
  ASSERT_TRUE(page) << page.error();
  EXPECT_TRUE(Ask((*page)->port(), "GET /../../etc/passwd HTTP/1.0\r\n\r\n").find("root:") == std::string::npos);
  EXPECT_EQ(Ask((*page)->port(), "GET /etc/passwd HTTP/1.0\r\nHost: localhost\r\n\r\n").substr(8, 4), " 404");
  (void)Ask((*page)->port(), "\x16\x03\x01\r\n\r\n");
  (void)Ask((*page)->port(), "GET /" + std::string(100'000, 'a') + " HTTP/1.0\r\n\r\n");
  (void)Ask((*page)->port(), "PUT /metrics HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_TRUE(Has(Scrape(**page), "jobserver_has_broker 0"));
}

}  // namespace
}  // namespace jobworker
