// Amounts as people write them: sizes, shares of a CPU, lengths of time, signals, labels. Errors are whole sentences
// that repeat the text and say what is taken.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace jobworker {

template <class T>
using Parsed = tl::expected<T, std::string>;

// Bytes: 4096, 64K, 1.5G; K, M, G, T are powers of 1024, and KiB, KB, B are understood too.
Parsed<uint64_t> ParseSize(std::string_view text);
// As sizes; "/s" may follow.
Parsed<uint64_t> ParseRate(std::string_view text);
// A plain number, from 1.
Parsed<uint64_t> ParseCount(std::string_view text);
// Thousandths of one CPU: 0.5, 1.5, 50%, 500m.
Parsed<uint64_t> ParseCpu(std::string_view text);
// Milliseconds: 10s, 1.5m, 2h, 1d, 250ms; without a unit, seconds. 0 is a length of time.
Parsed<uint64_t> ParseDuration(std::string_view text);
// 15, TERM, SIGTERM, RTMIN+1; 1 to 64.
Parsed<int> ParseSignal(std::string_view text);
// A job's id, or @last.
Parsed<std::string> ParseId(std::string_view text);
// KEY=VALUE, UTF-8.
Parsed<std::pair<std::string, std::string>> ParseLabel(std::string_view text);

// "1.5 MiB", "17 bytes"
std::string SizeText(uint64_t bytes);
// "250 ms", "1.5 s", "2 min 3 s", "5 h 10 min", "3 d 4 h"
std::string DurationText(uint64_t microseconds);
// "2026-11-24T10:52:18Z", with `fraction` "….123456Z"
std::string TimeText(int64_t microseconds, bool fraction);
bool IsUtf8(std::string_view text);

}  // namespace jobworker
