// Every job of every user: ids, states, ends, and who waits for what. It turns the broker's replies into all of that.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tl/expected.hpp>
#include <variant>
#include <vector>

#include "daemon/broker_client.h"
#include "daemon/broker_questions.h"
#include "daemon/event_loop.h"
#include "daemon/job_deadlines.h"
#include "daemon/job_input.h"
#include "daemon/journal.h"
#include "daemon/metrics.h"
#include "daemon/output_collector.h"
#include "job_note.pb.h"

namespace jobworker {

// How a job ended, and the stop that had been decided before its main process ended.
struct JobResult {
  Exited exited;
  StopState stop;
};

// A job that has started. Shared with the followers of its output, on any thread.
struct JobView {
  JobKey key;
  Limits limits{};  // effective
  uint8_t missing = 0;
  uint64_t started_us = 0;
  JobNote note;
  std::shared_ptr<Journal> journal;  // and, in its start(), what was asked for
  // Of the loop's thread.
  enum class Phase { kRunning, kEnding, kEnded } phase = Phase::kRunning;  // kEnding: a stop has begun
  std::shared_ptr<JobInput> input;                                         // none without want_stdin
  // Set before the journal is closed, and then for good: read it after Read said kEnd.
  JobResult result;
};

struct JobTableLimits {
  std::chrono::milliseconds stop_grace{5000};                 // from SIGTERM to cgroup.kill, when the stop does not say
  size_t ended_per_user = 1000;                               // older ones are forgotten
  std::chrono::milliseconds ended_age{7LL * 24 * 3'600'000};  // and those that ended so long ago; 0: never
  size_t broker_backlog = 1024;  // requests that wait for the broker; a start beyond them fails
  OutputLimits output;
};

// Why there is no job, or none any more that a call could wait for.
struct StageFailed {
  Stage stage = Stage::kCgroup;
  int error = 0;  // errno
};
enum class NoJob {
  kUnknown,  // another user's, or one that never was, or forgotten
  kBusy,     // the broker does not keep up
  kGone,     // the broker is away, or this server is ending
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

  JobTable(EventLoop& loop, const JobTableLimits& limits);
  // From now on, also for the jobs that there are.
  void SetLimits(const JobTableLimits& limits);

  // The broker's client, which reports to this table, until Lose. `gone` is told when it has lost its connection.
  using BrokerGone = std::function<void(const std::string& why)>;
  void Use(BrokerClient& broker, BrokerGone gone);
  // After the client's Greet: what lived when there was a broker last, and is not there now, is lost.
  // `missing`: the controllers that do not act on jobs that start now.
  void Reconcile(uint8_t missing = 0);
  // There is no broker: starts and stops are refused until there is one again, but output goes on.
  void Lose();
  [[nodiscard]] bool has_broker() const { return broker_ != nullptr; }
  // Jobs were taken over without their output: this process had no room for their descriptors, or another front end,
  // which has lost the broker and still lives, reads it. It is not lost: a broker that is met again gives all of them
  // again.
  [[nodiscard]] bool lacks_output() const { return !lacking_.empty(); }
  // No other front end reads any of that now.
  [[nodiscard]] bool LackedIsFree() const;
  // A start is being answered, which meeting a broker anew would cut short.
  [[nodiscard]] bool IsStarting() const;
  [[nodiscard]] uint8_t missing() const { return missing_; }
  // Whether jobs can be started now. `changed` is told whenever that changes, and once more when this server ends.
  enum class Service { kAway, kServing, kEnding };
  [[nodiscard]] Service service() const;
  void OnService(std::function<void()> changed) { service_changed_ = std::move(changed); }

  // `start` with the user's next id in its key, unless the user has a job with the note's request key: then that one.
  void StartJob(const std::string& user, Start start, const JobNote& note, StartCallback done);
  tl::expected<View, NoJob> Find(const JobKey& key) const;
  // The signal, the grace period, SIGKILL to the whole cgroup. `done` is called when the cgroup is empty and gone; at
  // once for a job that has ended. The first stop counts; a later one can only shorten the grace.
  struct StopOrder {
    StopKind kind = StopKind::kAsked;
    uint8_t signal = 15;  // 0: cgroup.kill at once
    std::chrono::milliseconds grace{};
  };
  void StopJob(const JobKey& key, const StopOrder& order, StopCallback done);
  // From any thread.
  [[nodiscard]] std::chrono::milliseconds stop_grace() const { return stop_grace_; }
  // To the main process. Tells what kill(2) would: 0 or an errno, ESRCH once that process has ended.
  using SignalCallback = std::function<void(const tl::expected<int, NoJob>&)>;
  void SignalJob(const JobKey& key, uint8_t number, const SignalCallback& done);
  // The counters of the job's cgroup as they are now, or were at its end.
  using UsageCallback = std::function<void(const tl::expected<Counters, NoJob>&)>;
  void Usage(const JobKey& key, const UsageCallback& done);
  // What the users list says of a user.
  using UserCallback = std::function<void(const tl::expected<UserIs, NoJob>&)>;
  void WhoIs(const std::string& user, const UserCallback& done);
  // Forgets an ended job. False when it has not ended.
  tl::expected<bool, NoJob> RemoveJob(const JobKey& key);
  // The user's jobs with ids below `below`, newest first, as long as `visit` says true.
  tl::expected<void, NoJob> Visit(const std::string& user, uint64_t below,
                                  const std::function<bool(const JobView&)>& visit) const;
  // `done` is told when the job has ended, at once if it has. `who` names the watch, for UnwatchEnd.
  using EndCallback = std::function<void(const tl::expected<View, NoJob>&)>;
  void WatchEnd(const JobKey& key, const void* who, EndCallback done);
  void UnwatchEnd(const JobKey& key, const void* who);
  // A stream of its user's follows the job, and no longer: for its lease.
  void Follow(const JobKey& key) { deadlines_.Follow(key); }
  void Leave(const JobKey& key) { deadlines_.Leave(key); }
  // Everybody who waits is told kGone, and so is everybody who comes. The jobs are left as they are.
  void Close();
  [[nodiscard]] const Retention& retention() const { return output_.retention(); }
  [[nodiscard]] Census Count() const;

  void OnJob(const Job& job, JobDescriptors descriptors) override;
  void OnStarted(const Started& started, JobDescriptors descriptors) override;
  void OnFailed(const Failed& failed) override;
  void OnExited(const Exited& exited) override;
  void OnUsage(const UsageIs& usage) override { questions_.OnUsage(usage); }
  void OnUser(const UserIs& user) override { questions_.OnUser(user); }
  void OnBrokerGone(const std::string& why) override { broker_gone_(why); }

 private:
  // kUnusable: it could not be taken, and is killed. To its user it never was.
  enum class Phase { kStarting, kRunning, kUnusable, kEnded };
  struct Entry {
    Phase phase = Phase::kStarting;
    Start start;                                        // while kStarting
    std::vector<StartCallback> started;                 // while kStarting
    std::optional<EventLoop::Clock::time_point> asked;  // for, of this front end
    std::shared_ptr<JobView> view;
    uint64_t greeting = 0;  // the last one in which the broker had it
    StopState stop;
    std::vector<StopCallback> stop_waiters;
    uint64_t ended_at = 0;  // its place in UserJobs::ended
  };
  struct UserJobs {
    uint64_t last_id = 0;
    std::set<std::pair<uint64_t, uint64_t>> ended;  // when (us), id: see Place
    // The broker alone knows the last id over a restart of this process, so the newest job stays with it, though it is
    // forgotten here, until there is a newer one. 0: none.
    uint64_t anchor = 0;
    std::map<std::string, uint64_t> by_request_key;
  };
  using Jobs = std::map<JobKey, Entry>;

  void ForgetView(const JobKey& key, Entry& entry);
  void AdoptUnborn(const Job& job, JobDescriptors descriptors);
  template <class Message>
  void Adopt(const Message& job, JobDescriptors descriptors);
  template <class Message>
  bool MakeView(const Message& job, JobDescriptors descriptors, Entry& entry);
  tl::expected<BrokerClient*, NoJob> BrokerToAsk() const;
  void DecideStop(const JobKey& key, Entry& entry, const StopOrder& order);
  void BeginStop(const JobKey& key, Entry& entry);
  void KillAt(const JobKey& key, const StopState& stop);
  void Kill(const JobKey& key);
  void End(Entry& entry, const Exited& exited);
  void Place(Entry& entry);
  void TellEnd(const View& job);
  void Forget(const JobKey& key);
  [[nodiscard]] bool IsNewest(const JobKey& key) const;
  void ForgetRequestKey(const std::string& user, const std::string& note);
  void ForgetAnchor(const std::string& user);
  void ForgetSurplus(const std::string& user);
  void ForgetOld();

  EventLoop& loop_;
  JobTableLimits limits_;
  std::atomic<std::chrono::milliseconds> stop_grace_;  // of limits_
  BrokerGone broker_gone_;
  BrokerClient* broker_ = nullptr;  // none while it is away
  bool complete_ = false;           // a broker has told all its jobs, and this server is not ending
  bool closed_ = false;
  uint64_t greeting_ = 0;  // counts the brokers that were met
  uint8_t missing_ = 0;
  std::function<void()> service_changed_ = [] {};
  BrokerQuestions questions_;
  JobDeadlines deadlines_;
  std::map<std::pair<JobKey, const void*>, EndCallback> end_watches_;
  OutputCollector output_;
  Jobs jobs_;
  std::map<JobKey, UniqueFd> lacking_;  // of jobs_: see lacks_output; the index of one that another front end holds
  std::map<std::string, UserJobs> users_;
  EventLoop::Clock::time_point next_look_ = EventLoop::Clock::time_point::max();  // of ForgetOld
};

}  // namespace jobworker
