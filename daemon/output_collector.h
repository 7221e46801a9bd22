// Takes what jobs write from their pipes into their journals, and keeps all journals within the limits. A job whose
// output may not grow now is left to wait in its pipe.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "common/broker_protocol.h"
#include "common/unique_fd.h"
#include "daemon/event_loop.h"
#include "daemon/journal.h"
#include "daemon/retention.h"

namespace jobworker {

// Lives on the loop's thread.
class OutputCollector {
 public:
  using Pipes = std::array<UniqueFd, 2>;  // their read ends, non-blocking, by OutputStream; closed ones are allowed
  // A pipe begins as small as it can be, and grows as it is found full. The kernel bounds what the pipes that one
  // account has made may hold together (pipe-user-pages-soft in pipe(7), 64 MiB), and all of them are the broker's: so
  // many quiet jobs are not to use it up, nor a few busy ones.
  static constexpr int kQuietPipe = 4096, kBusyPipe = 64 * 1024, kFloodedPipe = 512 * 1024;
  static constexpr size_t kMostFlooded = 32;  // pipes; a quarter of that bound

  // `kill` is to end a job whose output has reached a bound at which the policy is to kill. It may be called by any of
  // the calls here, more than once for a job, and must not remove one.
  OutputCollector(EventLoop& loop, const OutputLimits& limits, std::function<void(const JobKey&)> kill);
  // From now on, also for jobs that wait.
  void SetLimits(const OutputLimits& limits);

  // From now on, until Remove. False when the kernel has no room to watch a pipe now. What is not watched is not lost:
  // it is in the pipe, and is tried again.
  bool Add(const JobKey& key, std::shared_ptr<Journal> journal, Pipes pipes);
  // The job's cgroup is empty, so what is in its pipes now is all of its output: takes that, and closes them. False
  // with errno when the kernel could not move it now; then it is still there.
  bool Finish(const JobKey& key);
  // Its journal is closed. It gives way before those of running jobs.
  void Ended(const JobKey& key);
  void Remove(const JobKey& key);
  // Leaves what is in the pipes to the next front end.
  void ClosePipes();
  [[nodiscard]] const Retention& retention() const { return retention_; }

 private:
  struct Job {
    std::shared_ptr<Journal> journal;
    Pipes pipes;
    std::array<int, 2> capacity{};
    bool waits = false;  // for followers to read, before more is taken
  };
  struct User {
    bool any_waits = false;                     // one of the jobs does
    std::optional<EventLoop::Timer> next_look;  // while one does: then a follower that has left is waited for no longer
  };

  bool Watch(const JobKey& key, Job& job);
  void WatchLater(const JobKey& key);
  void ReadPipe(const JobKey& key, size_t index);
  void Widen(Job& job, size_t index);
  void ClosePipe(Job& job, size_t index);
  void Check(const JobKey& key, Job& job);
  void HeedProgress(const std::string& user);
  void Resume(const std::string& user);
  void CallBack(const std::string& user);
  void LookAgain(const std::string& user);
  void ForJobsOf(const std::string& user, const std::function<void(const JobKey&, Job&)>& each);

  EventLoop& loop_;
  const std::function<void(const JobKey&)> kill_;
  Retention retention_;
  std::map<JobKey, Job> jobs_;
  std::map<std::string, User> users_;
  size_t flooded_ = 0;  // pipes of kFloodedPipe
};

}  // namespace jobworker
