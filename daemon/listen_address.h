// Where a server listens, as a flag says it.
#pragma once
#include <string>
#include <tl/expected.hpp>

namespace jobworker {

// The host in ADDR:PORT or [ADDR]:PORT, without brackets. The error names the flag and what it takes.
tl::expected<std::string, std::string> ListenHost(const std::string& flag, const std::string& address);

// 127.0.0.0/8, ::1 or "localhost".
bool IsLoopback(const std::string& host);

}  // namespace jobworker
