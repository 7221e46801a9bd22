// Every job of every user: ids, states, ends, and who waits for what. It turns the broker's replies into all of that.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tl/expected.hpp>
#include <variant>
#include <vector>

#include "daemon/broker_client.h"
#include "daemon/event_loop.h"
#include "daemon/output_store.h"

namespace jobworker {

// How a job ended, and whether a stop had been asked for before.
struct JobResult {
  Exited exited;
  bool stopped = false;
};

// A job that has started. Shared with the followers of its output, on any thread.
struct JobView {
  JobKey key;
  uint8_t missing = 0;
  std::shared_ptr<OutputStore> output;
  // Set before the output is closed, and then for good: read it after Read said kEnd.
  JobResult result;
};

struct JobTableLimits {
  std::chrono::milliseconds stop_grace{5000};  // from SIGTERM to cgroup.kill
  size_t ended_per_user = 1000;                // older ones are forgotten
  size_t broker_backlog = 1024;                // requests that wait for the broker; a start beyond them fails
  size_t output_per_job = size_t{64} << 20;
  size_t output_in_all = size_t{256} << 20;
};

// Why there is no job, or none any more that a call could wait for.
struct StageFailed {
  Stage stage = Stage::kCgroup;
  int error = 0;  // errno
};
enum class NoJob {
  kUnknown,  // another user's, or one that never was, or forgotten
  kBusy,     // the broker does not keep up
  kGone,     // the broker or this server is ending
};
using JobFailure = std::variant<NoJob, StageFailed>;

// Lives on the loop's thread: all calls are made there, and so are all callbacks. Each callback is called exactly once.
class JobTable : public BrokerEvents {
 public:
  using View = std::shared_ptr<const JobView>;
  using StartResult = tl::expected<View, JobFailure>;
  using StartCallback = std::function<void(const StartResult&)>;
  using StopResult = tl::expected<JobResult, NoJob>;
  using StopCallback = std::function<void(const StopResult&)>;

  JobTable(EventLoop& loop, const JobTableLimits& limits, std::function<void(const std::string&)> broker_gone);
  // The broker's client, which reports to this table and outlives its use. To be set before anything else.
  void Use(BrokerClient& broker) { broker_ = &broker; }

  // Gives the job the user's next id.
  void StartJob(const std::string& user, std::vector<std::string> argv, std::vector<std::string> env,
                StartCallback done);
  tl::expected<View, NoJob> Find(const JobKey& key) const;
  // SIGTERM, the grace period, SIGKILL to the whole cgroup. `done` is called when the cgroup is empty and gone; at once
  // for a job that has ended. A second stop waits for the same end.
  void StopJob(const JobKey& key, StopCallback done);
  // Everybody who waits is told kGone, and so is everybody who comes. The jobs are left as they are.
  void Close();

  void OnJob(const Job& job, JobDescriptors pipes) override;
  void OnStarted(const Started& started, JobDescriptors pipes) override;
  void OnFailed(const Failed& failed) override;
  void OnExited(const Exited& exited) override;
  void OnUsage(const UsageIs&) override {}
  void OnBrokerGone(const std::string& why) override;

 private:
  enum class Phase { kStarting, kRunning, kUnusable, kEnded };
  struct Entry {
    Phase phase = Phase::kStarting;
    Start start;            // while kStarting
    StartCallback started;  // while kStarting
    std::shared_ptr<JobView> view;
    JobDescriptors pipes;
    bool stopping = false;
    std::vector<StopCallback> stop_waiters;
  };
  struct UserJobs {
    uint64_t last_id = 0;
    std::deque<uint64_t> ended;  // oldest first
  };
  using Jobs = std::map<JobKey, Entry>;

  void Adopt(const JobKey& key, uint8_t missing, Entry& entry, JobDescriptors pipes);
  bool WatchPipes(const JobKey& key, Entry& entry);
  void ReadPipe(const JobKey& key, size_t index);
  void Drain(Entry& entry);
  void ClosePipe(Entry& entry, size_t index);
  void Terminate(const JobKey& key);
  void ForgetOldest(const std::string& user);

  EventLoop& loop_;
  const JobTableLimits limits_;
  const std::function<void(const std::string&)> broker_gone_;
  BrokerClient* broker_ = nullptr;  // none once it is gone or the table is closed
  std::shared_ptr<OutputMemory> memory_;
  Jobs jobs_;
  std::map<std::string, UserJobs> users_;
};

}  // namespace jobworker
