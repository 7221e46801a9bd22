#include "broker/cgroup.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

namespace jobworker {
namespace {
constexpr std::pair<Controller, const char*> kControllers[] = {
    {kCpu, " cpu"}, {kIo, " io"}, {kMemory, " memory"}, {kPids, " pids"}};

struct LimitFile {
  Controller controller;
  const char *name, *key;
};
constexpr LimitFile kLimitFiles[kLimitCount] = {
    {kCpu, "cpu.max", ""},   {kMemory, "memory.max", ""}, {kPids, "pids.max", ""}, {kIo, "io.max", "rbps"},
    {kIo, "io.max", "wbps"}, {kIo, "io.max", "riops"},    {kIo, "io.max", "wiops"}};

std::string ToText(dev_t device) { return std::to_string(major(device)) + ":" + std::to_string(minor(device)); }

// What `text` begins with; `otherwise` when that is no number ("max").
uint64_t ToNumber(std::string_view text, uint64_t otherwise = kUnlimited) {
  (void)std::from_chars(text.begin(), text.end(), otherwise);
  return otherwise;
}

UniqueFd OpenAt(int directory, const std::string& name, int flags = O_RDONLY) {
  return UniqueFd(openat(directory, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
}

UniqueFd OpenDirectory(int parent, const std::string& name) {
  UniqueFd directory = OpenAt(parent, name, O_RDONLY | O_DIRECTORY);
  OrThrow(directory.Get(), name);
  return directory;
}

// Empty when it cannot be read: what this kernel does not count is 0. `=` and newlines become blanks.
std::string ReadControl(const UniqueFd& file) {
  std::string text;
  char part[4096];
  for (ssize_t n; (n = pread(file.Get(), part, sizeof(part), static_cast<off_t>(text.size()))) > 0;) {
    text.append(part, static_cast<size_t>(n));
  }
  for (char& c : text) c = c == '\n' || c == '=' ? ' ' : c;
  return text;
}
std::string ReadControl(int directory, const char* file) { return ReadControl(OpenAt(directory, file)); }

// The sum of the numbers behind each `key`, a word of a text from ReadControl; `absent` if there is none.
uint64_t ValueOf(const std::string& text, const std::string& key, uint64_t absent = 0) {
  const std::string words = " " + text, word = " " + key + " ";
  uint64_t sum = 0;
  size_t at = words.find(word);
  if (at == words.npos) return absent;
  for (; at != words.npos; at = words.find(word, at + 1)) sum += ToNumber(words.substr(at + word.size()));
  return sum;
}

// An errno, or 0.
int WriteControl(int directory, const char* file, std::string_view value) {
  const UniqueFd fd = OpenAt(directory, file, O_WRONLY);
  return fd.IsOpen() && write(fd.Get(), value.data(), value.size()) >= 0 ? 0 : errno;
}

uint8_t MissingControllers(int directory) {
  const std::string offered = " " + ReadControl(directory, "cgroup.controllers");
  uint8_t missing = 0;
  for (const auto& [bit, name] : kControllers) {
    if (offered.find(std::string(name) + " ") == offered.npos) missing |= bit;
  }
  return missing;
}

// Each on its own: one that is not offered must not keep the others off. What is missing then is found by reading.
void TurnOnControllers(int directory) {
  for (const auto& [bit, name] : kControllers) {
    (void)WriteControl(directory, "cgroup.subtree_control", std::string("+") + (name + 1));
  }
}

// Ends and removes all below `directory` but what is in `kept`, by its path from the root. Another process may be
// doing the same.
void Prune(int directory, const std::string& path, const std::set<std::string>& kept) {
  DIR* const entries = fdopendir(OpenAt(directory, ".", O_RDONLY | O_DIRECTORY).Release());
  while (const dirent* entry = entries != nullptr ? readdir(entries) : nullptr) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const std::string below = path + "/" + entry->d_name;
    const Leaf leaf = OpenLeaf(directory, entry->d_name);
    const bool ends = !kept.contains(below) && KillAll(leaf.kill) == 0;
    for (pollfd changed{leaf.events.Get(), POLLPRI, 0}; ends && IsPopulated(leaf.events);) (void)poll(&changed, 1, -1);
    Prune(leaf.directory.Get(), below, kept);
    if (ends) (void)unlinkat(directory, entry->d_name, AT_REMOVEDIR);
  }
  if (entries != nullptr) (void)closedir(entries);
}
}  // namespace

std::string ControllerNames(uint8_t controllers) {
  std::string names;
  for (const auto& [bit, name] : kControllers) names += (controllers & bit) != 0 ? name : "";
  return names;
}

dev_t DiskUnder(dev_t device) {
  for (const char* file : {"/../dev", "/dev"}) {  // of the disk, when this is a partition
    const std::string disk = ReadControl(AT_FDCWD, ("/sys/dev/block/" + ToText(device) + file).c_str());
    const auto number = [&](size_t at) { return static_cast<unsigned>(ToNumber(std::string_view(disk).substr(at))); };
    if (disk.find(':') != disk.npos) return makedev(number(0), number(disk.find(':') + 1));
  }
  return 0;
}

bool NeedsDisk(const Limits& limits) {
  return std::any_of(&limits[kReadBytesLimit], limits.end(), [](uint64_t limit) { return limit != kUnlimited; });
}

Limits ApplyLimits(int directory, const Limits& limits, uint8_t missing, dev_t disk) {
  const auto write = [directory](const char* file, const std::string& value) {
    errno = WriteControl(directory, file, value);
    // A kernel without swap has no such file, and nothing to forbid with it.
    OrThrow(errno == 0 || (errno == ENOENT && value == "0") ? 0 : -1, "write '" + value + "' to " + file);
  };
  Limits applied;
  applied.fill(kUnlimited);
  for (size_t i = 0; i < kLimitCount; ++i) {
    const auto [controller, file, key] = kLimitFiles[i];
    if (limits[i] == kUnlimited || (missing & controller) != 0) continue;
    const uint64_t scale = i == kCpuLimit ? kCpuPeriodUs / 1000 : 1;
    errno = ERANGE;  // beyond this the product would wrap
    OrThrow(scale == 1 || limits[i] <= UINT32_MAX ? 0 : -1, file);
    if (i == kMemoryLimit) write("memory.swap.max", "0");
    const std::string device = controller == kIo ? ToText(disk) + " " + key + "=" : "";
    write(file, device + std::to_string(limits[i] * scale) + (scale == 1 ? "" : " " + std::to_string(kCpuPeriodUs)));
    const std::string text = ReadControl(directory, file);
    applied[i] = controller == kIo ? ValueOf(text, key, kUnlimited) : ToNumber(text) / scale;
  }
  return applied;
}

Counters ReadCounters(int directory) {
  const std::string cpu = ReadControl(directory, "cpu.stat"), io = ReadControl(directory, "io.stat");
  const uint64_t memory = ToNumber(ReadControl(directory, "memory.peak"), 0);
  const uint64_t pids = ToNumber(ReadControl(directory, "pids.peak"), 0);
  return {ValueOf(cpu, "user_usec"), ValueOf(cpu, "system_usec"), memory,
          ValueOf(io, "rbytes"),     ValueOf(io, "wbytes"),       pids};
}

uint32_t CountProcesses(int directory) {
  const std::string pids = ReadControl(directory, "cgroup.procs");
  return static_cast<uint32_t>(std::count(pids.begin(), pids.end(), ' '));
}

void ReadOomKills(int directory, uint32_t& kills, OomLevel& level) {
  const std::string events = ReadControl(directory, "memory.events");
  kills = static_cast<uint32_t>(ValueOf(events, "oom_kill"));
  level = kills == 0 ? OomLevel::kNone : ValueOf(events, "oom") > 0 ? OomLevel::kJob : OomLevel::kUser;
}

int KillAll(const UniqueFd& kill) { return write(kill.Get(), "1", 1) == 1 ? 0 : errno; }

bool IsPopulated(const UniqueFd& events) { return ValueOf(ReadControl(events), "populated") != 0; }

Leaf OpenLeaf(int parent, const std::string& name) {
  Leaf leaf{OpenAt(parent, name, O_RDONLY | O_DIRECTORY), {}, {}};
  if (leaf.directory.IsOpen()) leaf.events = OpenAt(leaf.directory.Get(), "cgroup.events");
  if (leaf.events.IsOpen()) leaf.kill = OpenAt(leaf.directory.Get(), "cgroup.kill", O_WRONLY);
  OrThrow(leaf.kill.IsOpen() || errno == ENOENT || errno == ENODEV ? 0 : -1, "open cgroup " + name);
  return leaf;
}

Leaf MakeLeaf(int user_directory, uint64_t id) {
  OrThrow(mkdirat(user_directory, std::to_string(id).c_str(), 0755), "make the job's cgroup");
  Leaf leaf = OpenLeaf(user_directory, std::to_string(id));
  // The OOM killer takes the job as a whole. Not there without the memory controller.
  (void)WriteControl(leaf.directory.Get(), "memory.oom.group", "1");
  return leaf;
}

bool RemoveLeaf(int user_directory, uint64_t id) {
  return unlinkat(user_directory, std::to_string(id).c_str(), AT_REMOVEDIR) == 0;
}

CgroupTree::CgroupTree(const std::string& path, const std::set<std::string>& kept, bool alone) : path_(path) {
  const bool made = mkdir(path.c_str(), 0755) == 0;
  root_ = OpenDirectory(AT_FDCWD, path);
  struct statfs info {};
  if (fstatfs(root_.Get(), &info) != 0 || info.f_type != CGROUP2_SUPER_MAGIC) {
    if (made) (void)rmdir(path.c_str());
    throw std::runtime_error(path + " is not on a cgroup v2 mount; --cgroup-root takes one that is");
  }
  OrThrow(flock(root_.Get(), LOCK_EX | LOCK_NB) == 0 || !alone ? 0 : -1, "another broker works in " + path);
  Prune(root_.Get(), "", kept);
  if (MissingControllers(root_.Get()) != 0) TurnOnControllers(OpenDirectory(root_.Get(), "..").Get());
  missing_ = MissingControllers(root_.Get());
  TurnOnControllers(root_.Get());
}

void CgroupTree::MakeUser(const std::string& name, User& user) {
  // cgroupfs gives a new directory and its files to the caller's fsgid: the user's jobs may read their own limits,
  // other users' jobs may not even look.
  (void)setfsgid(static_cast<gid_t>(user.gid));
  const int made = mkdirat(root_.Get(), name.c_str(), 0750);
  (void)setfsgid(getegid());
  OrThrow(made == 0 || errno == EEXIST ? 0 : -1, "make cgroup " + path_ + "/" + name);
  user.cgroup = OpenDirectory(root_.Get(), name);
  user.applied = ApplyLimits(user.cgroup.Get(), user.ceiling, user.missing, user.disk);
  TurnOnControllers(user.cgroup.Get());
}

void CgroupTree::Clear() {
  Prune(root_.Get(), "", {});
  (void)rmdir(path_.c_str());
}
}  // namespace jobworker
