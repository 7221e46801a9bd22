// Who may call what. Rights come from the user's name and from nowhere else.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tl/expected.hpp>

namespace jobworker {

enum class Method : uint8_t { kJobStart, kJobStop, kJobQuery };

struct MethodRow {
  Method method;
  std::string_view name;   // as in the proto
  std::string_view right;  // as in the policy file
};
inline constexpr std::array kMethods = {
    MethodRow{Method::kJobStart, "JobStart", "allow_start"},
    MethodRow{Method::kJobStop, "JobStop", "allow_stop"},
    MethodRow{Method::kJobQuery, "JobQuery", "allow_query"},
};
// What metadata keys of clients may not begin with: the names of rights.
inline constexpr std::string_view kRightPrefix = "allow_";

// The row of a method, also by its path on the wire ("/Worker/JobStart"); none means that nobody may call it.
const MethodRow* FindMethod(Method method);
const MethodRow* FindMethod(std::string_view path);

class Policy {
 public:
  // alice and bob may do everything, carl nothing.
  static Policy BuiltIn();
  // One user a line: NAME RIGHT..., `#` starts a comment. Errors name the line.
  static tl::expected<Policy, std::string> Parse(std::string_view text);
  // Refuses a file that others can write, or that is neither root's nor this process's user's.
  static tl::expected<Policy, std::string> Load(const std::string& path);

  [[nodiscard]] bool Allows(std::string_view user, Method method) const;

 private:
  std::map<std::string, uint32_t, std::less<>> rights_;  // bit i: row i of kMethods
};

}  // namespace jobworker
