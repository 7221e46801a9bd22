// The broker's cgroup v2 tree, <root>/<user>/<job id>, through directory descriptors. The control files are described
// in the kernel's Documentation/admin-guide/cgroup-v2.rst. What fails is thrown as std::system_error.
#pragma once
#include <set>

#include "broker/users.h"

namespace jobworker {
// " cpu io memory pids", those whose bits are set.
std::string ControllerNames(uint8_t controllers);

// The whole disk that io.max needs for files on `device`; 0 when there is none (tmpfs, overlayfs, btrfs, network).
dev_t DiskUnder(dev_t device);
bool NeedsDisk(const Limits& limits);

// Writes the limits but kUnlimited ones and the controllers in `missing`; returns what the kernel made of them,
// kUnlimited for what was not written. `disk` is what io.max acts on.
Limits ApplyLimits(int directory, const Limits& limits, uint8_t missing, dev_t disk);

Counters ReadCounters(int directory);
uint32_t CountProcesses(int directory);
// The OOM killer's victims in this cgroup, and whether it acted for this cgroup's own limit.
void ReadOomKills(int directory, uint32_t& kills, OomLevel& level);

// A cgroup with its cgroup.events and cgroup.kill: when it is to end there may be no descriptors to be had.
struct Leaf {
  UniqueFd directory, events, kill;
};
Leaf OpenLeaf(int parent, const std::string& name);  // closed when it is not there
// <user>/<id>. EEXIST is an error: a directory that is there is never adopted.
Leaf MakeLeaf(int user_directory, uint64_t id);
bool RemoveLeaf(int user_directory, uint64_t id);
// SIGKILL to everything in the cgroup, also to what is being forked (Linux 5.14). Returns an errno or 0.
int KillAll(const UniqueFd& kill);
bool IsPopulated(const UniqueFd& events);  // re-arms POLLPRI; false when the cgroup has been removed

// The root of the tree. Its lock keeps other brokers out as long as this process or a fork of it lives.
class CgroupTree {
 public:
  // Makes the root if it is missing, ends and removes what an earlier broker left in it, but for `kept`, paths as
  // "/alice" and "/alice/7", turns the controllers on. `alone`: refuses where another broker has the lock.
  CgroupTree(const std::string& path, const std::set<std::string>& kept, bool alone);
  // Bits of Controller that the kernel does not offer here.
  [[nodiscard]] uint8_t missing() const { return missing_; }
  // Makes <root>/<name> with the user's ceilings, readable by the user's group alone; sets user.cgroup and
  // user.applied.
  void MakeUser(const std::string& name, User& user);
  // Kills all that lives below the root, waits until nothing does, removes every directory below it, and the root.
  void Clear();

 private:
  const std::string path_;
  UniqueFd root_;
  uint8_t missing_ = 0;
};
}  // namespace jobworker
