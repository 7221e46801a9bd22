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

std::string ToText(uint64_t value) { return value == kUnlimited ? "max" : std::to_string(value); }
std::string ToText(dev_t device, char) { return std::to_string(major(device)) + ":" + std::to_string(minor(device)); }

uint64_t ToNumber(std::string_view text, uint64_t otherwise = kUnlimited) {
  uint64_t value = otherwise;
  (void)std::from_chars(text.begin(), text.end(), value);
  return value;
}

// The number after `key` and one more character: "key value" lines and "key=value" words.
uint64_t ValueOf(std::string_view text, std::string_view key, uint64_t absent) {
  for (size_t at = text.find(key); at != text.npos; at = text.find(key, at + 1)) {
    const std::string_view rest = text.substr(at + key.size());
    const bool whole = at == 0 || text[at - 1] == '\n' || text[at - 1] == ' ';
    if (whole && (rest.starts_with(' ') || rest.starts_with('='))) return ToNumber(rest.substr(1));
  }
  return absent;
}

// Empty when it cannot be read: counters that this kernel does not have are 0.
std::string ReadControl(int directory, const char* file) {
  const UniqueFd fd(openat(directory, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  std::string text;
  char part[4096];
  for (ssize_t n; (n = read(fd.Get(), part, sizeof(part))) > 0;) text.append(part, static_cast<size_t>(n));
  return text;
}

// An errno, or 0.
int WriteControl(int directory, const char* file, std::string_view value) {
  const UniqueFd fd(openat(directory, file, O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
  return fd.IsOpen() && write(fd.Get(), value.data(), value.size()) >= 0 ? 0 : errno;
}

UniqueFd OpenDirectory(int parent, const std::string& name) {
  return UniqueFd(OrThrow(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), name));
}

uint8_t MissingControllers(int directory) {
  std::string offered = " " + ReadControl(directory, "cgroup.controllers");
  std::replace(offered.begin(), offered.end(), '\n', ' ');
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

void RemoveChildren(int directory) {
  DIR* entries = fdopendir(OpenDirectory(directory, ".").Release());
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    RemoveChildren(OpenDirectory(directory, entry->d_name).Get());
    (void)unlinkat(directory, entry->d_name, AT_REMOVEDIR);
  }
  (void)closedir(entries);
}
}  // namespace

std::string ControllerNames(uint8_t controllers) {
  std::string names;
  for (const auto& [bit, name] : kControllers) names += (controllers & bit) != 0 ? name : "";
  return names;
}

dev_t DiskUnder(dev_t device) {
  const std::string path = "/sys/dev/block/" + ToText(device, ':');
  const bool partition = access((path + "/partition").c_str(), F_OK) == 0;
  const std::string disk = ReadControl(AT_FDCWD, (path + (partition ? "/../dev" : "/dev")).c_str());
  if (disk.find(':') == disk.npos) return 0;
  return makedev(static_cast<unsigned>(ToNumber(disk)),
                 static_cast<unsigned>(ToNumber(disk.substr(disk.find(':') + 1))));
}

bool NeedsDisk(const Limits& limits) {
  return std::any_of(&limits[kReadBytesLimit], limits.end(), [](uint64_t limit) { return limit != kUnlimited; });
}

Limits ApplyLimits(int directory, const Limits& limits, uint8_t missing, dev_t disk) {
  std::string text;  // of the file that was written last, as the kernel gives it back
  const auto write = [&](Controller controller, bool limited, const char* file, const std::string& value) {
    text.clear();
    if (!limited || (missing & controller) != 0) return;
    errno = WriteControl(directory, file, value);
    // A kernel without swap has no such file, and nothing to forbid with it.
    OrThrow(errno == 0 || (errno == ENOENT && value == "0") ? 0 : -1, "write '" + value + "' to " + file);
    text = ReadControl(directory, file);
  };
  const auto [cpu, memory, pids, rbps, wbps, riops, wiops] = limits;
  constexpr uint64_t kUsPerMilliCpu = kCpuPeriodUs / 1000;
  errno = ERANGE;  // beyond this the product would wrap
  OrThrow(cpu == kUnlimited || cpu <= UINT32_MAX ? 0 : -1, "cpu.max");
  write(kCpu, cpu != kUnlimited, "cpu.max", ToText(cpu * kUsPerMilliCpu) + " " + ToText(kCpuPeriodUs));
  Limits applied{text.empty() ? kUnlimited : ToNumber(text) / kUsPerMilliCpu};
  write(kMemory, memory != kUnlimited, "memory.swap.max", "0");
  write(kMemory, memory != kUnlimited, "memory.max", ToText(memory));
  applied[kMemoryLimit] = ToNumber(text);
  write(kPids, pids != kUnlimited, "pids.max", ToText(pids));
  applied[kPidsLimit] = ToNumber(text);
  const std::string bytes = " rbps=" + ToText(rbps) + " wbps=" + ToText(wbps);
  write(kIo, NeedsDisk(limits), "io.max",
        ToText(disk, ':') + bytes + " riops=" + ToText(riops) + " wiops=" + ToText(wiops));
  applied[kReadBytesLimit] = ValueOf(text, "rbps", kUnlimited);
  applied[kWriteBytesLimit] = ValueOf(text, "wbps", kUnlimited);
  applied[kReadOpsLimit] = ValueOf(text, "riops", kUnlimited);
  applied[kWriteOpsLimit] = ValueOf(text, "wiops", kUnlimited);
  return applied;
}

Counters ReadCounters(int directory) {
  const std::string cpu = ReadControl(directory, "cpu.stat");
  const std::string io = ReadControl(directory, "io.stat");
  Counters counters{ValueOf(cpu, "user_usec", 0), ValueOf(cpu, "system_usec", 0)};
  counters[kMemoryPeak] = ToNumber(ReadControl(directory, "memory.peak"), 0);
  counters[kPidsPeak] = ToNumber(ReadControl(directory, "pids.peak"), 0);
  for (size_t at = 0; at < io.size(); at = std::min(io.find('\n', at), io.size()) + 1) {
    const std::string_view line = std::string_view(io).substr(at, io.find('\n', at) - at);
    counters[kReadBytes] += ValueOf(line, "rbytes", 0);
    counters[kWriteBytes] += ValueOf(line, "wbytes", 0);
  }
  return counters;
}

uint32_t CountProcesses(int directory) {
  const std::string pids = ReadControl(directory, "cgroup.procs");
  return static_cast<uint32_t>(std::count(pids.begin(), pids.end(), '\n'));
}

void ReadOomKills(int directory, uint32_t& kills, OomLevel& level) {
  const std::string events = ReadControl(directory, "memory.events");
  kills = static_cast<uint32_t>(ValueOf(events, "oom_kill", 0));
  level = kills == 0 ? OomLevel::kNone : ValueOf(events, "oom", 0) > 0 ? OomLevel::kJob : OomLevel::kUser;
}

int KillAll(int directory) { return WriteControl(directory, "cgroup.kill", "1"); }

UniqueFd OpenEvents(int directory) {
  return UniqueFd(OrThrow(openat(directory, "cgroup.events", O_RDONLY | O_NOFOLLOW | O_CLOEXEC), "open cgroup.events"));
}

bool IsPopulated(int events) {
  char text[256];
  const ssize_t size = pread(events, text, sizeof(text), 0);
  return size > 0 && ValueOf({text, static_cast<size_t>(size)}, "populated", 0) != 0;
}

UniqueFd MakeLeaf(int user_directory, uint64_t id) {
  OrThrow(mkdirat(user_directory, std::to_string(id).c_str(), 0755), "make the job's cgroup");
  UniqueFd leaf = OpenDirectory(user_directory, std::to_string(id));
  // The OOM killer takes the job as a whole. Not there without the memory controller.
  (void)WriteControl(leaf.Get(), "memory.oom.group", "1");
  return leaf;
}

bool RemoveLeaf(int user_directory, uint64_t id) {
  return unlinkat(user_directory, std::to_string(id).c_str(), AT_REMOVEDIR) == 0;
}

CgroupTree::CgroupTree(const std::string& path)
    : path_(path), made_(mkdir(path.c_str(), 0755) == 0), root_(OpenDirectory(AT_FDCWD, path)) {
  struct statfs info {};
  if (fstatfs(root_.Get(), &info) != 0 || info.f_type != CGROUP2_SUPER_MAGIC) {
    Remove();
    throw std::runtime_error(path + " is not on a cgroup v2 mount; --cgroup-root takes one that is");
  }
  OrThrow(flock(root_.Get(), LOCK_EX | LOCK_NB), "another broker works in " + path);
  Clear();
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
  OrThrow(made, "make cgroup " + path_ + "/" + name);
  user.cgroup = OpenDirectory(root_.Get(), name);
  user.applied = ApplyLimits(user.cgroup.Get(), user.ceiling, user.missing, user.disk);
  TurnOnControllers(user.cgroup.Get());
}

void CgroupTree::Clear() {
  errno = KillAll(root_.Get());
  OrThrow(errno != 0 ? -1 : 0, "kill what lives in " + path_);
  const UniqueFd events = OpenEvents(root_.Get());
  pollfd changed{events.Get(), POLLPRI, 0};
  while (IsPopulated(events.Get())) (void)poll(&changed, 1, -1);
  RemoveChildren(root_.Get());
}

void CgroupTree::Remove() { (void)rmdir(made_ ? path_.c_str() : ""); }
}  // namespace jobworker
