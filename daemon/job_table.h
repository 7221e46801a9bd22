// Every job of every user: ids, states, ends, and who waits for what. It turns the broker's replies into all of that.
#pragma once
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "daemon/broker_client.h"
#include "daemon/event_loop.h"
#include "daemon/output_store.h"

namespace jobworker {

// How a job ended, and whether somebody had asked for it.
struct JobResult {
  Exited exited;
  bool stopped = false;
};

// A job that has started. Shared with the followers of its output; key, missing and output may be used by any thread.
struct JobView {
  JobKey key;
  uint8_t missing = 0;
  std::unique_ptr<OutputStore> output;
  // Set before the output is closed, and then for good: read it after Read said kEnd.
  JobResult result;
};

struct JobTableLimits {
  std::chrono::milliseconds stop_grace{5000};  // from SIGTERM to cgroup.kill
  size_t ended_per_user = 1000;                // older ones are forgotten
  size_t broker_backlog = 1024;                // requests that wait for the broker; a start beyond fails
  uint64_t output_per_job = 64ULL << 20;
  uint64_t output_in_all = 512ULL << 20;
};

struct StartFailed {
  Stage stage = Stage::kCgroup;
  int error = 0;          // errno
  bool no_reply = false;  // the broker is gone or does not keep up; stage and error say nothing
};

// Lives on the loop's thread: all calls are made there, and so are all callbacks.
class JobTable : public BrokerEvents {
 public:
  using StartResult = tl::expected<std::shared_ptr<const JobView>, StartFailed>;
  using StartCallback = std::function<void(StartResult)>;
  using StopCallback = std::function<void(const JobResult*)>;  // none: the broker is gone, or the server ends

  JobTable(EventLoop& loop, JobTableLimits limits, std::function<void(const std::string&)> broker_gone);
  // The broker's client, which reports to this table. To be set before anything else.
  void Use(BrokerClient& broker) { broker_ = &broker; }

  // Gives the job the user's next id. `done` is called once, with the job or with what failed.
  void StartJob(const std::string& user, std::vector<std::string> argv, std::vector<std::string> env,
                StartCallback done);
  // None for another user's job as for one that never was.
  std::shared_ptr<const JobView> Find(const JobKey& key) const;
  // SIGTERM, the grace period, SIGKILL to the whole cgroup. `done` is called when the cgroup is empty and gone; at once
  // for a job that has ended. A second stop waits for the same end.
  void StopJob(const JobKey& key, StopCallback done);
  // Ends every wait for the broker; later starts and stops fail at once. Jobs are not touched.
  void Abandon();

  void OnJob(const Job& job, OutputPipes pipes) override;
  void OnStarted(const Started& started, OutputPipes pipes) override;
  void OnFailed(const Failed& failed) override;
  void OnExited(const Exited& exited) override;
  void OnBrokerGone(const std::string& why) override;

 private:
  struct Entry {
    std::shared_ptr<JobView> view;
    OutputPipes pipes;
    StartCallback started;  // while the broker has not answered the start
    bool ended = false;
    bool stopping = false;
    std::vector<StopCallback> stop_waiters;
  };
  struct UserJobs {
    uint64_t last_id = 0;
    std::deque<uint64_t> ended;  // oldest first
  };
  void Adopt(const JobKey& key, uint8_t missing, Entry& entry, OutputPipes pipes);
  void ReadPipe(const JobKey& key, size_t index);
  bool ReadOnce(Entry& entry, size_t index);
  void Drain(Entry& entry);
  void ClosePipe(Entry& entry, size_t index);
  void KeepEnded(const JobKey& key);

  EventLoop& loop_;
  const JobTableLimits limits_;
  const std::function<void(const std::string&)> broker_gone_;
  BrokerClient* broker_ = nullptr;
  std::shared_ptr<MemoryBudget> budget_;
  std::map<JobKey, Entry> jobs_;
  std::map<std::string, UserJobs> users_;
  std::string buffer_;
};

}  // namespace jobworker
