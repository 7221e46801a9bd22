#include "daemon/authorizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "common/broker_protocol.h"
#include "daemon/because.h"
#include "daemon/files.h"

namespace jobworker {

namespace {

uint32_t Bit(size_t row) { return 1U << row; }

tl::expected<uint32_t, std::string> ParseRights(std::istringstream& words) {
  uint32_t rights = 0;
  for (std::string right; words >> right;) {
    const auto row =
        std::find_if(kMethods.begin(), kMethods.end(), [&](const auto& each) { return each.right == right; });
    if (row == kMethods.end()) return Because("'" + right + "' is not a right (allow_start allow_stop allow_query)");
    rights |= Bit(static_cast<size_t>(row - kMethods.begin()));
  }
  return rights;
}

}  // namespace

const MethodRow* FindMethod(Method method) {
  const auto row =
      std::find_if(kMethods.begin(), kMethods.end(), [&](const auto& each) { return each.method == method; });
  return row == kMethods.end() ? nullptr : &*row;
}

const MethodRow* FindMethod(std::string_view path) {
  constexpr std::string_view kService = "/Worker/";
  if (path.substr(0, kService.size()) != kService) return nullptr;
  path.remove_prefix(kService.size());
  const auto row = std::find_if(kMethods.begin(), kMethods.end(), [&](const auto& each) { return each.name == path; });
  return row == kMethods.end() ? nullptr : &*row;
}

Policy Policy::BuiltIn() {
  return *Parse(
      "alice allow_start allow_stop allow_query\n"
      "bob   allow_start allow_stop allow_query\n"
      "carl\n");
}

tl::expected<Policy, std::string> Policy::Parse(std::string_view text) {
  Policy policy;
  std::istringstream lines{std::string(text)};
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::istringstream words(line.substr(0, line.find('#')));
    std::string user;
    if (!(words >> user)) continue;
    if (!IsUserName(user)) return Because(fmt::format("line {}: '{}' is not a user name", number, user));
    const auto rights = ParseRights(words);
    if (!rights) return Because(fmt::format("line {}: {}", number, rights.error()));
    if (!policy.rights_.emplace(user, *rights).second) {
      return Because(fmt::format("line {}: user '{}' is there twice", number, user));
    }
  }
  return policy;
}

tl::expected<Policy, std::string> Policy::Load(const std::string& path) {
  const auto text = ReadFile(path, FileRule::kNobodyElseWrites);
  if (!text) return Because(text.error());
  auto policy = Parse(*text);
  if (!policy) return Because(fmt::format("policy file {}: {}", path, policy.error()));
  return policy;
}

bool Policy::Allows(std::string_view user, Method method) const {
  const MethodRow* row = FindMethod(method);
  const auto found = rights_.find(user);
  if (row == nullptr || found == rights_.end()) return false;
  return (found->second & Bit(static_cast<size_t>(row - kMethods.data()))) != 0;
}

}  // namespace jobworker
