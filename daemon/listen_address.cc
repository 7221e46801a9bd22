#include "daemon/listen_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <charconv>

#include "daemon/because.h"

namespace jobworker {

tl::expected<std::string, std::string> ListenHost(const std::string& flag, const std::string& address) {
  const size_t colon = address.rfind(':');
  const auto bad = [&] { return Because(fmt::format("{}: '{}' is not ADDR:PORT or [ADDR]:PORT", flag, address)); };
  if (colon == std::string::npos || colon == 0) return bad();
  unsigned port = 0;
  const char* const last = address.data() + address.size();
  const auto [end, code] = std::from_chars(address.data() + colon + 1, last, port);
  if (code != std::errc() || end != last || port > 65535) return bad();
  std::string host = address.substr(0, colon);
  const bool bracketed = host.front() == '[' && host.back() == ']';
  if (!bracketed && host.find(':') != std::string::npos) return bad();
  return bracketed ? host.substr(1, host.size() - 2) : host;
}

bool IsLoopback(const std::string& host) {
  in_addr v4{};
  in6_addr v6{};
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6) != 0;
  return host == "localhost";
}

}  // namespace jobworker
