#include "daemon/config.h"

#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "daemon/because.h"
#include "daemon/files.h"
#include "daemon/toml.h"

namespace jobworker {

namespace {

// Takes a value; what is right when it is not.
using Key = std::function<std::string(const toml::node&)>;
using Keys = std::map<std::string, Key, std::less<>>;

Key Bytes(uint64_t& target) {
  return [&target](const toml::node& node) -> std::string {
    constexpr int64_t kLeast = 64 * 1024, kMost = int64_t{1} << 50;
    const auto value = node.value_exact<int64_t>();
    if (!value || *value < kLeast || *value > kMost)
      return fmt::format("a number of bytes from {} to {}", kLeast, kMost);
    target = static_cast<uint64_t>(*value);
    return "";
  };
}

Key Count(size_t& target, int64_t most) {
  return [&target, most](const toml::node& node) -> std::string {
    const auto value = node.value_exact<int64_t>();
    if (!value || *value < 1 || *value > most) return fmt::format("a whole number from 1 to {}", most);
    target = static_cast<size_t>(*value);
    return "";
  };
}

// A number of `unit`s, with or without a fraction.
template <class Duration>
Key Time(Duration& target, std::chrono::milliseconds unit, double most) {
  return [&target, unit, most](const toml::node& node) -> std::string {
    const auto value = node.value<double>();
    if (!node.is_number() || !(*value >= 0 && *value <= most)) return fmt::format("a number from 0 to {}", most);
    const auto milliseconds = std::llround(*value * static_cast<double>(unit.count()));
    target = std::chrono::duration_cast<Duration>(std::chrono::milliseconds(milliseconds));
    return "";
  };
}

Key Policy(OutputPolicy& target) {
  return [&target](const toml::node& node) -> std::string {
    const auto value = node.value_exact<std::string>();
    for (const OutputPolicy policy : {OutputPolicy::kDropOldest, OutputPolicy::kBlock, OutputPolicy::kKill}) {
      if (value != PolicyName(policy)) continue;
      target = policy;
      return "";
    }
    return R"("drop-oldest", "block" or "kill")";
  };
}

tl::unexpected<std::string> At(const toml::source_region& where, std::string_view what) {
  return Because(fmt::format("line {}: {}", where.begin.line, what));
}

bool HasSection(const Keys& keys, const std::string& name) {
  const auto first = keys.lower_bound(name + ".");
  return first != keys.end() && first->first.starts_with(name + ".");
}

tl::expected<void, std::string> TakeTable(const toml::table& table, const Keys& keys, const std::string& prefix) {
  for (const auto& [name, node] : table) {
    const std::string path = prefix + std::string(name.str());
    if (const toml::table* inner = node.as_table(); inner != nullptr && HasSection(keys, path)) {
      if (auto taken = TakeTable(*inner, keys, path + "."); !taken) return taken;
      continue;
    }
    const auto key = keys.find(path);
    if (key == keys.end()) {
      std::string known;
      for (const auto& [each, take] : keys) known += (known.empty() ? "" : ", ") + each;
      return At(name.source(), fmt::format("there is no key {}; there are {}", path, known));
    }
    if (const std::string right = key->second(node); !right.empty()) {
      return At(name.source(), fmt::format("{} must be {}", path, right));
    }
  }
  return {};
}

}  // namespace

tl::expected<JobTableLimits, std::string> ParseConfig(std::string_view text, JobTableLimits limits) {
  using std::chrono::milliseconds;
  const Keys keys = {{"stop-grace", Time(limits.stop_grace, milliseconds(1000), 3600)},
                     {"output.per-job", Bytes(limits.output.per_job)},
                     {"output.per-user", Bytes(limits.output.per_user)},
                     {"output.total", Bytes(limits.output.in_all)},
                     {"output.policy", Policy(limits.output.policy)},
                     {"ended.per-user", Count(limits.ended_per_user, 1'000'000)},
                     {"ended.days", Time(limits.ended_age, milliseconds(24 * 3'600'000), 36500)}};
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) return At(parsed.error().source(), parsed.error().description());
  if (const auto taken = TakeTable(parsed.table(), keys, ""); !taken) return Because(taken.error());
  return limits;
}

tl::expected<JobTableLimits, std::string> LoadConfig(const std::string& path) {
  const auto text = ReadFile(path, FileRule::kNobodyElseWrites);
  if (!text) return Because(text.error());
  auto limits = ParseConfig(*text);
  if (!limits) return Because(fmt::format("configuration file {}: {}", path, limits.error()));
  return limits;
}

}  // namespace jobworker
