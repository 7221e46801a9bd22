#include "daemon/authorizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "common/broker_protocol.h"
#include "daemon/because.h"
#include "daemon/files.h"

namespace jobworker {

namespace {

tl::expected<std::set<std::string_view>, std::string> ParseRights(std::istringstream& words) {
  std::set<std::string_view> rights;
  for (std::string word; words >> word;) {
    const auto right = std::find(kRights.begin(), kRights.end(), word);
    if (right == kRights.end()) return Because("'" + word + "' is not a right (allow_start allow_stop allow_query)");
    rights.insert(*right);
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
  const size_t slash = path.rfind('/');
  if (slash == std::string_view::npos || slash == 0 || path[0] != '/') return nullptr;
  const std::string_view service = path.substr(1, slash - 1), name = path.substr(slash + 1);
  const auto row = std::find_if(kMethods.begin(), kMethods.end(),
                                [&](const auto& each) { return each.service == service && each.name == name; });
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
  if (row == nullptr) return false;
  if (row->right.empty()) return true;
  const auto found = rights_.find(user);
  return found != rights_.end() && found->second.count(row->right) == 1;
}

std::vector<std::string_view> Policy::RightsOf(std::string_view user) const {
  std::vector<std::string_view> rights;
  const auto found = rights_.find(user);
  for (const std::string_view right : kRights) {
    if (found != rights_.end() && found->second.count(right) == 1) rights.push_back(right);
  }
  return rights;
}

}  // namespace jobworker
