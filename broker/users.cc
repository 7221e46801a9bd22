#include "broker/users.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

namespace jobworker {
namespace {
constexpr const char* kLimitKeys[] = {"cpu", "memory", "pids", "read-bytes", "write-bytes", "read-ops", "write-ops"};
static_assert(std::size(kLimitKeys) == kLimitCount);

bool ParseNumber(std::string_view text, uint64_t& value) {
  if (text == "max") value = kUnlimited;
  const auto [end, code] = std::from_chars(text.begin(), text.end(), value);
  return text == "max" || (code == std::errc() && end == text.end() && value > 0);
}

// 65534 is nobody; 65535 and 2^32-1 tell set*id calls to change nothing.
bool IsId(uint64_t id) { return id >= 1000 && id != 65534 && id != 65535 && id < UINT32_MAX; }

std::string_view NextWord(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
  const std::string_view word = line.substr(0, line.find_first_of(" \t"));
  line.remove_prefix(word.size());
  return word;
}

// One line; what is wrong with it, or nothing.
std::string ParseLine(std::string_view line, Users& users) {
  const std::string name(NextWord(line));
  if (!IsUserName(name)) return "'" + name + "' is not a user name ([a-z_][a-z0-9_-]{0,31})";
  User user;
  std::map<std::string, uint64_t*, std::less<>> numbers = {
      {"uid", &user.uid}, {"gid", &user.gid}, {"jobs", &user.max_jobs}};
  for (size_t i = 0; i < kLimitCount; ++i) {
    numbers[kLimitKeys[i]] = &user.ceiling[i];
    numbers[std::string("job-") + kLimitKeys[i]] = &user.job[i];
  }
  for (std::string_view word = NextWord(line); !word.empty(); word = NextWord(line)) {
    const std::string_view key = word.substr(0, word.find('='));
    const std::string_view value = word.substr(std::min(key.size() + 1, word.size()));
    const auto number = numbers.find(key);
    const bool is_directory =
        key == "dir" && user.directory.empty() && value.size() > 1 && value.front() == '/' && value.back() != '/';
    if (is_directory) user.directory = value;
    if (!is_directory && (number == numbers.end() || !ParseNumber(value, *number->second))) {
      return "'" + std::string(word) + "' is not a known KEY=VALUE in its range, or is there twice";
    }
    if (!is_directory) numbers.erase(number);
  }
  if (!IsId(user.uid) || !IsId(user.gid)) return "uid= and gid= must be there, from 1000, not 65534 or 65535";
  if (user.directory.empty()) return "dir= must be there";
  for (const auto& [other, its] : users) {
    if (other == name || its.uid == user.uid || its.gid == user.gid || its.directory == user.directory) {
      return "'" + name + "' has the name, uid, gid or dir of '" + other + "'";
    }
  }
  users.emplace(name, std::move(user));
  return "";
}
}  // namespace

Users BuiltInUsers() {
  return ParseUsers(
      "alice uid=70001 gid=70001 dir=/var/lib/jobworker/alice\nbob uid=70002 gid=70002 dir=/var/lib/jobworker/bob\n"
      "carl uid=70003 gid=70003 dir=/var/lib/jobworker/carl\n");
}

Users LoadUsers(const std::string& path) {
  const UniqueFd file(OrThrow(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), "users file " + path));
  struct stat info {};
  OrThrow(fstat(file.Get(), &info), path);
  if (!S_ISREG(info.st_mode) || info.st_uid != 0 || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    throw std::runtime_error("users file " + path +
                             " must be root's and not writable by others (chown root; chmod go-w)");
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  OrThrow(static_cast<int>(read(file.Get(), text.data(), text.size())), path);
  return ParseUsers(text, "users file " + path + ": ");
}

Users ParseUsers(std::string_view text, const std::string& where) {
  Users users;
  for (int number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    line = line.substr(0, line.find('#'));
    if (line.find_first_not_of(" \t") == line.npos) continue;
    const std::string wrong = ParseLine(line, users);
    if (!wrong.empty()) throw std::runtime_error(where + "line " + std::to_string(number) + ": " + wrong);
  }
  if (users.empty()) throw std::runtime_error(where + "it names no user");
  return users;
}

std::optional<Limits> JobLimits(const User& user, const Limits& asked) {
  Limits limits = user.job;
  for (size_t i = 0; i < kLimitCount; ++i) {
    if (asked[i] > user.ceiling[i]) return std::nullopt;
    if (asked[i] != 0) limits[i] = asked[i];
  }
  return limits;
}

dev_t PrepareDirectory(const User& user) {
  const std::string what = "working directory " + user.directory;
  (void)mkdir(user.directory.substr(0, user.directory.rfind('/')).c_str(), 0755);
  const bool made = mkdir(user.directory.c_str(), 0700) == 0;
  const UniqueFd directory(
      OrThrow(open(user.directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), what));
  const auto uid = static_cast<uid_t>(user.uid);
  if (made) OrThrow(fchown(directory.Get(), uid, static_cast<gid_t>(user.gid)), what);
  struct stat info {};
  OrThrow(fstat(directory.Get(), &info), what);
  if (info.st_uid != uid || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    throw std::runtime_error(what + " must be its user's and not writable by others");
  }
  return info.st_dev;
}
}  // namespace jobworker
