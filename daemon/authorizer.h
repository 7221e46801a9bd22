// Who may call what. Rights come from the user's name and from nowhere else.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace jobworker {

enum class Method : uint8_t {
  kJobStart,
  kJobStop,
  kJobSignal,
  kJobRemove,
  kJobQuery,
  kJobInput,
  kJobStatusOf,
  kJobList,
  kJobWait,
  kWhoAmI,
  kServerVersion,
  kHealthCheck,
  kHealthWatch,
  kReflect,
};

struct MethodRow {
  Method method;
  std::string_view service;  // as in its proto, with the package
  std::string_view name;
  std::string_view right;  // as in the policy file; empty: any identity
};
inline constexpr std::string_view kStartRight = "allow_start", kStopRight = "allow_stop", kQueryRight = "allow_query";
inline constexpr std::array kRights = {kStartRight, kStopRight, kQueryRight};
inline constexpr std::array kMethods = {
    MethodRow{Method::kJobStart, "Worker", "JobStart", kStartRight},
    MethodRow{Method::kJobStop, "Worker", "JobStop", kStopRight},
    MethodRow{Method::kJobSignal, "Worker", "JobSignal", kStopRight},
    MethodRow{Method::kJobRemove, "Worker", "JobRemove", kStopRight},
    MethodRow{Method::kJobQuery, "Worker", "JobQuery", kQueryRight},
    MethodRow{Method::kJobInput, "Worker", "JobInput", kStartRight},
    MethodRow{Method::kJobStatusOf, "Worker", "JobStatusOf", kQueryRight},
    MethodRow{Method::kJobList, "Worker", "JobList", kQueryRight},
    MethodRow{Method::kJobWait, "Worker", "JobWait", kQueryRight},
    MethodRow{Method::kWhoAmI, "Worker", "WhoAmI", ""},
    MethodRow{Method::kServerVersion, "Worker", "ServerVersion", ""},
    MethodRow{Method::kHealthCheck, "grpc.health.v1.Health", "Check", ""},
    MethodRow{Method::kHealthWatch, "grpc.health.v1.Health", "Watch", ""},
    MethodRow{Method::kReflect, "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", ""},
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

  // A method that takes no right is for every user, also for one that is not in the policy.
  [[nodiscard]] bool Allows(std::string_view user, Method method) const;
  // In the order of kRights.
  [[nodiscard]] std::vector<std::string_view> RightsOf(std::string_view user) const;

 private:
  std::map<std::string, std::set<std::string_view>, std::less<>> rights_;  // of kRights
};

}  // namespace jobworker
