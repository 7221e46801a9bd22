// The broker's loop on whatever a front end sends: the real server.cc over a socketpair, above a kernel that only keeps
// count. An input is a row of datagrams, each after its length in two bytes, low one first.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <set>

#include "broker/cgroup.h"
#include "broker/server.h"
#include "broker/spawn.h"
#include "common/message_socket.h"

namespace jobworker {
namespace {

void Demand(bool holds) {
  if (!holds) std::abort();
}

const Users* users;
std::set<std::pair<int, uint64_t>> leaves;  // the cgroups that there are, by user directory and job

UniqueFd NewDescriptor() { return UniqueFd(OrThrow(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")); }

}  // namespace

// What server.cc calls of cgroup.cc and spawn.cc.

Leaf MakeLeaf(int user_directory, uint64_t id) {
  Demand(id != 0 && leaves.emplace(user_directory, id).second);
  return {NewDescriptor(), NewDescriptor(), NewDescriptor()};
}

Leaf OpenLeaf(int, const std::string&) { std::abort(); }  // there is no earlier broker

bool RemoveLeaf(int user_directory, uint64_t id) {
  Demand(leaves.erase({user_directory, id}) == 1);
  return true;
}

Limits ApplyLimits(int, const Limits& limits, uint8_t, dev_t) {
  const User& user = users->begin()->second;
  for (size_t i = 0; i < kLimitCount; ++i) Demand(limits[i] <= user.ceiling[i] || limits[i] == user.job[i]);
  return limits;
}

Counters ReadCounters(int) { return {}; }
uint32_t CountProcesses(int) { return 0; }
void ReadOomKills(int, uint32_t& kills, OomLevel&) { kills = 0; }
int KillAll(const UniqueFd&) { return 0; }
bool IsPopulated(const UniqueFd&) { return false; }

// A job named "end" is a process that ends at once; any other runs for as long as the loop does. One named "fail"
// cannot exec.
Child Spawn(const User& user, const Start& start, int, Stage&) {
  Demand(user.uid >= 1000 && !start.argv.empty() && !start.argv[0].empty());
  int status[2];
  OrThrow(pipe2(status, O_CLOEXEC | O_NONBLOCK), "pipe2");
  const UniqueFd write_end(status[1]);
  const bool fails = start.argv[0] == "fail";
  const ChildFailure failure{Stage::kExec, 2};
  if (fails) Demand(write(status[1], &failure, sizeof(failure)) == sizeof(failure));
  UniqueFd pidfd = NewDescriptor();
  if (fails || start.argv[0] == "end") {
    const pid_t child = OrThrow(fork(), "fork");
    if (child == 0) _exit(3);
    pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
  }
  auto descriptors = std::make_shared<JobDescriptors>();
  const size_t count = start.want_stdin != 0 ? kMaxDescriptors : kStdin;
  for (size_t i = 0; i < count; ++i) (*descriptors)[i] = NewDescriptor();
  return {std::move(pidfd), std::move(descriptors), UniqueFd(status[0])};
}

}  // namespace jobworker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace jobworker;
  Users list;
  User& alice = list["alice"];
  alice.uid = alice.gid = 1000;
  alice.max_jobs = 4;
  alice.applied.fill(kUnlimited);
  users = &list;
  leaves.clear();
  std::pair<UniqueFd, UniqueFd> pair = MessageSocketPair();
  for (size_t at = 0; at + 2 <= size;) {
    const size_t length = std::min<size_t>(data[at] + 256U * data[at + 1], size - at - 2);
    (void)SendMessage(pair.first.Get(), {reinterpret_cast<const char*>(data) + at + 2, length});
    at += 2 + length;
  }
  (void)shutdown(pair.first.Get(), SHUT_WR);
  const UniqueFd guardian(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  Serve(list, 0, Store("", 0), {}, {guardian.Get()}, std::move(pair.second), UniqueFd(), 0);
  Demand(alice.job_count <= alice.max_jobs + 1 && leaves.size() <= alice.job_count);
  while (waitpid(-1, nullptr, WNOHANG) > 0) continue;
  return 0;
}
