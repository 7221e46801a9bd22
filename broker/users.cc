#include "broker/users.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <set>

namespace jobworker {

namespace {

constexpr std::string_view kLimitKeys[] = {"cpu",         "memory",   "pids",     "read-bytes",
                                           "write-bytes", "read-ops", "write-ops"};
static_assert(std::size(kLimitKeys) == kLimitCount);

Error Invalid(std::string what) { return Error{EINVAL, std::move(what)}; }

bool ParseNumber(std::string_view text, uint64_t& value) {
  const auto [end, code] = std::from_chars(text.begin(), text.end(), value);
  return code == std::errc() && end == text.end();
}

bool ParseLimit(std::string_view text, uint64_t& value) {
  if (text == "max") value = kUnlimited;
  return text == "max" || (ParseNumber(text, value) && value > 0);
}

// 65534 is nobody; 65535 and 2^32-1 tell set*id calls to change nothing.
bool ParseId(std::string_view text, uint32_t& id) {
  uint64_t value = 0;
  if (!ParseNumber(text, value) || value < 1000 || value == 65534 || value == 65535 || value >= UINT32_MAX)
    return false;
  id = static_cast<uint32_t>(value);
  return true;
}

bool ParseSetting(std::string_view key, std::string_view value, User& user) {
  if (key == "uid") return ParseId(value, user.uid);
  if (key == "gid") return ParseId(value, user.gid);
  if (key == "jobs") return ParseNumber(value, user.max_jobs) && user.max_jobs > 0;
  if (key == "dir") {
    user.directory = value;
    return value.size() > 1 && value.front() == '/' && value.back() != '/';
  }
  Limits& limits = key.starts_with("job-") ? user.job : user.ceiling;
  if (key.starts_with("job-")) key.remove_prefix(4);
  const auto known = std::find(std::begin(kLimitKeys), std::end(kLimitKeys), key);
  return known != std::end(kLimitKeys) && ParseLimit(value, limits[static_cast<size_t>(known - kLimitKeys)]);
}

std::string_view NextWord(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
  const std::string_view word = line.substr(0, line.find_first_of(" \t"));
  line.remove_prefix(word.size());
  return word;
}

Status ParseLine(std::string_view line, Users& users) {
  const std::string name(NextWord(line));
  if (!IsUserName(name)) return Invalid("'" + name + "' is not a user name ([a-z_][a-z0-9_-]{0,31})");
  User user;
  std::set<std::string_view> seen;
  for (std::string_view word = NextWord(line); !word.empty(); word = NextWord(line)) {
    const std::string_view key = word.substr(0, word.find('='));
    const std::string_view value = word.substr(std::min(key.size() + 1, word.size()));
    if (!seen.insert(key).second || !ParseSetting(key, value, user)) {
      return Invalid("'" + std::string(word) + "' is not a known KEY=VALUE in its range, or is there twice");
    }
  }
  if (!seen.contains("uid") || !seen.contains("gid") || !seen.contains("dir")) return Invalid("needs uid= gid= dir=");
  for (const auto& [other, its] : users) {
    if (other == name || its.uid == user.uid || its.gid == user.gid || its.directory == user.directory) {
      return Invalid("'" + name + "' has the name, uid, gid or dir of '" + other + "'");
    }
  }
  users.emplace(name, std::move(user));
  return Done{};
}

}  // namespace

Users BuiltInUsers() {
  Users users;
  for (const auto& [name, id] : {std::pair{"alice", 70001U}, {"bob", 70002U}, {"carl", 70003U}}) {
    users[name].uid = users[name].gid = id;
    users[name].directory = std::string("/var/lib/jobworker/") + name;
  }
  return users;
}

Result<Users> LoadUsers(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  struct stat info {};
  if (!file.IsOpen() || fstat(file.Get(), &info) != 0) return ErrnoError("users file " + path);
  if (!S_ISREG(info.st_mode) || info.st_uid != 0 || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Error{EPERM, "users file " + path + " must be root's and not writable by others (chown root, chmod go-w)"};
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  if (read(file.Get(), text.data(), text.size()) != info.st_size) return ErrnoError("read users file " + path);
  Result<Users> users = ParseUsers(text);
  if (!users.Ok()) return Invalid("users file " + path + ": " + users.error().what);
  return users;
}

Result<Users> ParseUsers(std::string_view text) {
  Users users;
  for (int number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    line = line.substr(0, line.find('#'));
    if (line.find_first_not_of(" \t") == line.npos) continue;
    const Status parsed = ParseLine(line, users);
    if (!parsed.Ok()) return Invalid("line " + std::to_string(number) + ": " + parsed.error().what);
  }
  if (users.empty()) return Invalid("it names no user");
  return users;
}

Result<Limits> JobLimits(const User& user, const Limits& asked) {
  Limits limits = user.job;
  for (size_t i = 0; i < kLimitCount; ++i) {
    if (asked[i] > user.ceiling[i]) return Error{EPERM, std::string(kLimitKeys[i])};
    if (asked[i] != 0) limits[i] = asked[i];
  }
  return limits;
}

Result<dev_t> PrepareDirectory(const User& user) {
  const char* path = user.directory.c_str();
  (void)mkdir(user.directory.substr(0, user.directory.rfind('/')).c_str(), 0755);
  const bool made = mkdir(path, 0700) == 0;
  const UniqueFd directory(open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info {};
  if (!directory.IsOpen() || (made && fchown(directory.Get(), user.uid, user.gid) != 0) ||
      fstat(directory.Get(), &info) != 0) {
    return ErrnoError("working directory " + user.directory);
  }
  if (info.st_uid != user.uid || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Error{EPERM, "working directory " + user.directory + " must be its user's and not writable by others"};
  }
  return info.st_dev;
}

}  // namespace jobworker
