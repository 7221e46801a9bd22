#include "cmd/cli_units.h"

#include <fmt/format.h>
#include <string.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>
#include <ctime>
#include <optional>

#include "daemon/because.h"

namespace jobworker {
namespace {

constexpr std::string_view kDigits = "0123456789";

struct Unit {
  std::string_view name;
  double factor;
};

// A decimal number without sign or exponent, times the unit behind it, to the nearest whole, but 1 for less; nothing
// when it is anything else, or does not fit into 63 bits.
std::optional<uint64_t> Amount(std::string_view text, std::initializer_list<Unit> units) {
  const size_t end = std::min(text.find_first_not_of("0123456789."), text.size());
  const std::string_view number = text.substr(0, end);
  std::string_view name = text.substr(end);
  name.remove_prefix(std::min(name.find_first_not_of(' '), name.size()));
  const auto unit = std::find_if(units.begin(), units.end(), [&](const Unit& each) { return each.name == name; });
  if (unit == units.end() || number.empty() || number.front() == '.' || number.back() == '.') return std::nullopt;
  uint64_t whole = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), whole);
  if (parsed.ec == std::errc() && parsed.ptr == number.data() + number.size() && unit->factor == 1) {
    return whole <= INT64_MAX ? std::optional(whole) : std::nullopt;
  }
  double value = 0;
  const auto real = std::from_chars(number.data(), number.data() + number.size(), value, std::chars_format::fixed);
  if (real.ec != std::errc() || real.ptr != number.data() + number.size()) return std::nullopt;
  value *= unit->factor;
  value = value > 0 ? std::max(std::round(value), 1.0) : 0;
  return value < 0x1p63 ? std::optional(static_cast<uint64_t>(value)) : std::nullopt;
}

constexpr double kKi = 1024;
constexpr double kMi = kKi * kKi;
constexpr double kGi = kMi * kKi;
constexpr double kTi = kGi * kKi;

std::optional<uint64_t> Size(std::string_view text) {
  return Amount(text, {{"", 1},
                       {"B", 1},
                       {"K", kKi},
                       {"M", kMi},
                       {"G", kGi},
                       {"T", kTi},
                       {"k", kKi},
                       {"KiB", kKi},
                       {"MiB", kMi},
                       {"GiB", kGi},
                       {"TiB", kTi},
                       {"KB", kKi},
                       {"MB", kMi},
                       {"GB", kGi},
                       {"TB", kTi}});
}

std::optional<int> RealTimeSignal(std::string_view name) {
  if (name == "RTMAX") return SIGRTMAX;
  if (!name.starts_with("RTMIN")) return std::nullopt;
  int above = 0;
  if (name.size() > 5) {
    const auto parsed = std::from_chars(name.data() + 6, name.data() + name.size(), above);
    if (name[5] != '+' || name.size() == 6 || parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) {
      return std::nullopt;
    }
  }
  return above >= 0 && above <= SIGRTMAX - SIGRTMIN ? std::optional(SIGRTMIN + above) : std::nullopt;
}

std::optional<int> SignalNumber(std::string_view text) {
  if (!text.empty() && text.find_first_not_of(kDigits) == std::string_view::npos) {
    int number = 0;
    std::from_chars(text.data(), text.data() + text.size(), number);
    return number >= 1 && number <= 64 ? std::optional(number) : std::nullopt;
  }
  std::string name(text);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c); });
  if (name.starts_with("SIG")) name.erase(0, 3);
  for (int number = 1; number < 32; ++number) {
    const char* const known = sigabbrev_np(number);
    if (known != nullptr && name == known) return number;
  }
  return RealTimeSignal(name);
}

}  // namespace

Parsed<uint64_t> ParseSize(std::string_view text) {
  const auto size = Size(text);
  if (!size)
    return Because(
        fmt::format("'{}' is not a size; say a number of bytes, or 64K, 128M, 1.5G, below 2^63 bytes", text));
  return *size;
}

Parsed<uint64_t> ParseRate(std::string_view text) {
  const std::string_view amount = text.ends_with("/s") ? text.substr(0, text.size() - 2) : text;
  const auto size = Size(amount);
  if (!size || *size == 0)
    return Because(fmt::format("'{}' is not a rate; say bytes a second, or 64K, 10M, from 1 to below 2^63", text));
  return *size;
}

Parsed<uint64_t> ParseCount(std::string_view text) {
  const auto count = Amount(text, {{"", 1}});
  if (!count || *count == 0 || text.find('.') != std::string_view::npos) {
    return Because(fmt::format("'{}' is not a whole number from 1 to below 2^63", text));
  }
  return *count;
}

Parsed<uint64_t> ParseCpu(std::string_view text) {
  const auto cpu = Amount(text, {{"", 1000}, {"%", 10}, {"m", 1}, {"CPU", 1000}, {"CPUs", 1000}});
  if (!cpu || *cpu == 0) {
    return Because(
        fmt::format("'{}' is not an amount of CPU; say 0.5 or 50% for half of one, 2 for two, more than 0", text));
  }
  return *cpu;
}

Parsed<uint64_t> ParseDuration(std::string_view text) {
  const auto time =
      Amount(text, {{"", 1e3}, {"ms", 1}, {"s", 1e3}, {"m", 6e4}, {"min", 6e4}, {"h", 36e5}, {"d", 864e5}});
  if (!time)
    return Because(fmt::format("'{}' is not a length of time; say 250ms, 10s, 5m, 2h or 1d, below 2^63 ms", text));
  return *time;
}

Parsed<int> ParseSignal(std::string_view text) {
  const auto number = SignalNumber(text);
  if (!number) return Because(fmt::format("'{}' is not a signal; say its name, as HUP or SIGHUP, or 1 to 64", text));
  return *number;
}

Parsed<std::string> ParseId(std::string_view text) {
  uint64_t id = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), id);
  const bool number = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && text[0] != '0';
  if (!number && text != "@last") {
    return Because(fmt::format("'{}' is not a job's id, a number from 1 to {}, and not @last", text, UINT64_MAX));
  }
  return std::string(text);
}

Parsed<std::pair<std::string, std::string>> ParseLabel(std::string_view text) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) return Because(fmt::format("the label '{:.80}' is not KEY=VALUE", text));
  if (!IsUtf8(text)) return Because(fmt::format("the label '{:.80}' is not UTF-8", text));
  return std::pair(std::string(text.substr(0, equals)), std::string(text.substr(equals + 1)));
}

std::string SizeText(uint64_t bytes) {
  if (bytes == 1) return "1 byte";
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  auto size = static_cast<double>(bytes);
  constexpr const char* kNames[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  for (size /= kKi; size >= kKi && unit < 5; size /= kKi) ++unit;
  return size < 10 && size != std::floor(size) ? fmt::format("{:.1f} {}", size, kNames[unit])
                                               : fmt::format("{:.0f} {}", size, kNames[unit]);
}

std::string DurationText(uint64_t microseconds) {
  const uint64_t seconds = microseconds / 1'000'000;
  if (seconds < 1) return fmt::format("{} ms", microseconds / 1000);
  if (seconds < 60) return fmt::format("{}.{} s", seconds, microseconds / 100'000 % 10);
  if (seconds < 3600) return fmt::format("{} min {} s", seconds / 60, seconds % 60);
  if (seconds < 86400) return fmt::format("{} h {} min", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{} d {} h", seconds / 86400, seconds / 3600 % 24);
}

std::string TimeText(int64_t microseconds, bool fraction) {
  const int64_t part = ((microseconds % 1'000'000) + 1'000'000) % 1'000'000;
  const time_t seconds = (microseconds - part) / 1'000'000;
  tm utc{};
  if (gmtime_r(&seconds, &utc) == nullptr) return "?";
  char text[40];
  text[strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc)] = '\0';
  return fraction ? fmt::format("{}.{:06}Z", text, part) : fmt::format("{}Z", text);
}

bool IsUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto byte = [&](size_t index) { return index < text.size() ? static_cast<unsigned char>(text[index]) : 0U; };
    const unsigned first = byte(at);
    const size_t more = first < 0x80 ? 0 : first >= 0xc2 && first < 0xe0 ? 1 : (first & 0xf0) == 0xe0 ? 2 : 3;
    if (first >= 0x80 && (first < 0xc2 || first > 0xf4)) return false;
    for (size_t next = 1; next <= more; ++next) {
      if ((byte(at + next) & 0xc0) != 0x80) return false;
    }
    // Too long, a surrogate, or above U+10FFFF.
    const unsigned second = byte(at + 1);
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
        (first == 0xf4 && second > 0x8f)) {
      return false;
    }
    at += more + 1;
  }
  return true;
}

}  // namespace jobworker
