#include "broker/users.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

namespace jobworker {
namespace {
constexpr const char* kLimitKeys[kLimitCount] = {"cpu",         "memory",   "pids",     "read-bytes",
                                                 "write-bytes", "read-ops", "write-ops"};
constexpr const char* kTryOut =
    "alice uid=70001 gid=70001 dir=/var/lib/jobworker/alice\nbob uid=70002 gid=70002 dir=/var/lib/jobworker/bob\n"
    "carl uid=70003 gid=70003 dir=/var/lib/jobworker/carl\n";

// 65534 is nobody; 65535 and 2^32-1 tell set*id calls to change nothing.
bool IsId(uint64_t id) { return id >= 1000 && id != 65534 && id != 65535 && id < UINT32_MAX; }

// Takes it off the front of `text`; the separator goes too.
std::string_view Next(std::string_view& text, const char* separators) {
  const std::string_view next = text.substr(0, text.find_first_of(separators));
  text.remove_prefix(std::min(next.size() + 1, text.size()));
  return next;
}

// One line, without blanks before it; what is wrong with it, or nothing.
std::string ParseLine(std::string_view line, Users& users) {
  const std::string name(Next(line, " \t"));
  if (!IsUserName(name)) return "'" + name + "' is not a user name ([a-z_][a-z0-9_-]{0,31})";
  User user;
  Settings settings = {{"uid", &user.uid}, {"gid", &user.gid}, {"jobs", &user.max_jobs}, {"dir", &user.directory}};
  for (size_t i = 0; i < kLimitCount; ++i) {
    settings[kLimitKeys[i]] = &user.ceiling[i];
    settings[std::string("job-") + kLimitKeys[i]] = &user.job[i];
  }
  while (!line.empty()) {
    const std::string word(Next(line, " \t"));
    if (!word.empty() && !Assign(word, settings)) {
      return "'" + word + "' is not a known KEY=VALUE in its range, or is there twice";
    }
  }
  if (!IsId(user.uid) || !IsId(user.gid)) return "uid= and gid= must be there, from 1000, not 65534 or 65535";
  if (user.directory.size() < 2 || user.directory.front() != '/' || user.directory.back() == '/') {
    return "dir= must be there, an absolute path without a slash at its end";
  }
  for (const auto& [other, its] : users) {
    if (other == name || its.uid == user.uid || its.gid == user.gid || its.directory == user.directory) {
      return "'" + name + "' has the name, uid, gid or dir of '" + other + "'";
    }
  }
  users.emplace(name, std::move(user));
  return "";
}
}  // namespace

bool Assign(std::string_view word, Settings& settings) {
  const std::string_view key = word.substr(0, word.find('='));
  const auto found = settings.find(key);
  if (found == settings.end() || key.size() + 1 >= word.size()) return false;
  const std::string_view value = word.substr(key.size() + 1);
  bool fits = true;
  if (std::string* const* text = std::get_if<std::string*>(&found->second)) {
    **text = value;
  } else {
    uint64_t& number = *std::get<uint64_t*>(found->second);
    const auto [end, code] = std::from_chars(value.begin(), value.end(), number);
    fits = code == std::errc() && end == value.end() && number > 0;
    if (value == "max") fits = (number = kUnlimited) != 0;
  }
  settings.erase(found);
  return fits;
}

Users LoadUsers(const std::string& path) {
  if (path.empty()) return ParseUsers(kTryOut);
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
    std::string_view line = Next(text, "\n");
    line = line.substr(0, line.find('#'));
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    const std::string wrong = line.empty() ? "" : ParseLine(line, users);
    if (!wrong.empty()) throw std::runtime_error(where + "line " + std::to_string(number) + ": " + wrong);
  }
  return users.empty() ? throw std::runtime_error(where + "it names no user") : std::move(users);
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
  // O_PATH, because without CAP_DAC_* root cannot read what is the user's alone.
  const UniqueFd directory(OrThrow(open(user.directory.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), what));
  const auto uid = static_cast<uid_t>(user.uid);
  if (made) OrThrow(fchownat(directory.Get(), "", uid, static_cast<gid_t>(user.gid), AT_EMPTY_PATH), what);
  struct stat info {};
  OrThrow(fstat(directory.Get(), &info), what);
  if (info.st_uid != uid || (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    throw std::runtime_error(what + " must be its user's and not writable by others");
  }
  return info.st_dev;
}
}  // namespace jobworker
