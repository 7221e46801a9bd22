#include "daemon/job_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "daemon/api.h"
#include "daemon/because.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/metrics.h"

namespace jobworker {

namespace {

using std::chrono::microseconds, std::chrono::milliseconds;

constexpr milliseconds kKillAgain{1000};     // after the kernel has refused it
constexpr uint64_t kJustNowUs = 60'000'000;  // from the end of a main process to that of the whole job, at most

void LogEnd(const JobResult& result) {
  constexpr std::string_view kWhat[] = {"code", "signal", "unknown"};
  constexpr std::string_view kWhy[] = {"no", "asked", "timeout", "lease", "output"};
  const Exited& exited = result.exited;
  Log("job ended", {{"user", exited.key.user},
                    {"job", std::to_string(exited.key.id)},
                    {kWhat[static_cast<size_t>(exited.cause)], std::to_string(exited.value)},
                    {"stopped", kWhy[static_cast<size_t>(result.stop.kind)]},
                    {"oom_kills", std::to_string(exited.oom_kills)},
                    {"leftovers", std::to_string(exited.leftovers)}});
}

}  // namespace

JobTable::JobTable(EventLoop& loop, const JobTableLimits& limits)
    : loop_(loop),
      limits_(limits),
      stop_grace_(limits.stop_grace),
      deadlines_(loop,
                 [this](const JobKey& key, StopKind kind) {
                   const auto found = jobs_.find(key);
                   if (found == jobs_.end() || found->second.phase != Phase::kRunning) return;
                   DecideStop(key, found->second, {kind, SIGTERM, limits_.stop_grace});
                 }),
      output_(loop, limits.output, [this](const JobKey& key) {
        Entry& entry = jobs_.at(key);
        if (entry.stop.kind == StopKind::kNone) DecideStop(key, entry, {StopKind::kOutputLimit, 0, {}});
      }) {}

void JobTable::SetLimits(const JobTableLimits& limits) {
  limits_ = limits;
  stop_grace_ = limits.stop_grace;
  output_.SetLimits(limits.output);
  for (const auto& [user, jobs] : users_) ForgetSurplus(user);
  ForgetOld();
}

JobTable::Service JobTable::service() const {
  if (closed_) return Service::kEnding;
  return broker_ != nullptr && complete_ ? Service::kServing : Service::kAway;
}

void JobTable::Use(BrokerClient& broker, BrokerGone gone) {
  broker_ = &broker;
  broker_gone_ = std::move(gone);
  ++greeting_;
  for (auto& [name, user] : users_) user.anchor = 0;  // it tells those that it has
}

void JobTable::Reconcile(uint8_t missing) {
  complete_ = true;
  missing_ = missing;
  std::vector<JobKey> lost;
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    const bool here = job->second.greeting == greeting_;
    if (job->second.phase == Phase::kRunning && !here) lost.push_back(job->first);
    job = job->second.phase == Phase::kUnusable && !here ? jobs_.erase(job) : std::next(job);
  }
  for (const JobKey& key : lost) {
    Exited exited;
    exited.key = key;
    exited.cause = EndCause::kUnknown;
    exited.ended_us = NowUs();
    End(jobs_.at(key), exited);
  }
  service_changed_();
}

void JobTable::Lose() {
  broker_ = nullptr;
  std::vector<StartCallback> starts;
  std::vector<StopCallback> stops;
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    Entry& entry = job->second;
    std::move(entry.stop_waiters.begin(), entry.stop_waiters.end(), std::back_inserter(stops));
    entry.stop_waiters.clear();
    const bool unborn = entry.phase == Phase::kStarting;
    // If it was born after all, the next broker tells, and who asked finds it by its request key.
    std::move(entry.started.begin(), entry.started.end(), std::back_inserter(starts));
    entry.started.clear();
    if (entry.phase == Phase::kStarting) ForgetRequestKey(job->first.user, entry.start.note);
    if (unborn) lacking_.erase(job->first);
    job = unborn ? jobs_.erase(job) : std::next(job);
  }
  for (const StartCallback& started : starts) started(tl::unexpected(JobFailure(NoJob::kGone)));
  for (const StopCallback& done : stops) done(tl::unexpected(NoJob::kGone));
  questions_.Lose();
  service_changed_();
}

bool JobTable::LackedIsFree() const {
  return std::none_of(lacking_.begin(), lacking_.end(), [](const auto& lacked) {
    return lacked.second.IsOpen() && Journal::Holder(lacked.second.Get());
  });
}

bool JobTable::IsStarting() const {
  return std::any_of(jobs_.begin(), jobs_.end(), [](const auto& job) {
    return job.second.phase == Phase::kStarting || job.second.phase == Phase::kUnusable;
  });
}

void JobTable::Close() {
  complete_ = false;
  closed_ = true;
  Lose();
  for (const auto& [watch, done] : std::exchange(end_watches_, {})) done(tl::unexpected(NoJob::kGone));
  for (auto& [key, entry] : jobs_) {
    if (entry.view == nullptr) continue;
    entry.view->journal->Abandon();
    if (entry.view->input != nullptr) entry.view->input->Abandon();
    deadlines_.Remove(key);
  }
  output_.ClosePipes();
}

void JobTable::StartJob(const std::string& user, Start start, const JobNote& note, StartCallback done) {
  if (broker_ == nullptr || !complete_) return done(tl::unexpected(JobFailure(NoJob::kGone)));
  UserJobs& mine = users_[user];
  if (const auto known = mine.by_request_key.find(note.request_key()); known != mine.by_request_key.end()) {
    Entry& entry = jobs_.at({user, known->second});
    if (entry.phase == Phase::kStarting) return entry.started.push_back(std::move(done));
    return done(View(entry.view));
  }
  // The key may be that of a job that could not be read.
  const auto lacking = lacking_.lower_bound({user, 0});
  const bool unknown = lacking != lacking_.end() && lacking->first.user == user;
  if (unknown && !note.request_key().empty()) return done(tl::unexpected(JobFailure(NoJob::kGone)));
  if (broker_->backlog() >= limits_.broker_backlog) return done(tl::unexpected(JobFailure(NoJob::kBusy)));
  start.key = {user, ++mine.last_id};
  start.note = note.SerializeAsString();
  if (!note.request_key().empty()) mine.by_request_key[note.request_key()] = start.key.id;
  Entry& entry = jobs_[start.key];
  entry.start = std::move(start);
  entry.asked = EventLoop::Clock::now();
  entry.started.push_back(std::move(done));
  broker_->StartJob(entry.start);
}

Census JobTable::Count() const {
  Census census;
  for (const auto& [key, entry] : jobs_) {
    if (entry.view == nullptr) {
      ++census.starting;
      continue;
    }
    const JobView::Phase phase = entry.view->phase;
    ++(phase == JobView::Phase::kRunning  ? census.running
       : phase == JobView::Phase::kEnding ? census.stopping
                                          : census.ended);
    census.followers += entry.view->journal->followers();
    census.lag_bytes = std::max(census.lag_bytes, entry.view->journal->lag());
  }
  census.held_bytes = retention().held();
  census.has_broker = service() == Service::kServing;
  return census;
}

tl::expected<JobTable::View, NoJob> JobTable::Find(const JobKey& key) const {
  if (!complete_) return tl::unexpected(NoJob::kGone);
  const auto found = jobs_.find(key);
  if (found == jobs_.end() || found->second.view == nullptr) return tl::unexpected(NoJob::kUnknown);
  return found->second.view;
}

void JobTable::StopJob(const JobKey& key, const StopOrder& order, StopCallback done) {
  if (!complete_) return done(tl::unexpected(NoJob::kGone));
  const auto found = jobs_.find(key);
  if (found == jobs_.end()) return done(tl::unexpected(NoJob::kUnknown));
  Entry& entry = found->second;
  if (entry.phase == Phase::kEnded) return done(entry.view->result);
  if (broker_ == nullptr) return done(tl::unexpected(NoJob::kGone));
  entry.stop_waiters.push_back(std::move(done));
  DecideStop(key, entry, order);
}

void JobTable::DecideStop(const JobKey& key, Entry& entry, const StopOrder& order) {
  const uint64_t now = NowUs();
  const uint64_t due =
      now + static_cast<uint64_t>(microseconds(order.signal == 0 ? milliseconds(0) : order.grace).count());
  const bool first = entry.stop.kind == StopKind::kNone;
  if (!first && due >= entry.stop.since_us + uint64_t{entry.stop.grace_ms} * 1000) return;
  if (first) entry.stop = {order.kind, order.signal, false, 0, now};
  entry.stop.grace_ms = static_cast<uint32_t>((due - std::min(due, entry.stop.since_us)) / 1000);
  // A job that is starting is stopped once it has started: until then it may fail, its key be free, and a request that
  // names it break the protocol.
  if (entry.phase != Phase::kRunning) return;
  if (first) return BeginStop(key, entry);
  entry.view->journal->SetStop(entry.stop);
  KillAt(key, entry.stop);
}

void JobTable::BeginStop(const JobKey& key, Entry& entry) {
  entry.view->phase = JobView::Phase::kEnding;
  // Before it is done: the next front end carries it on.
  entry.view->journal->SetStop(entry.stop);
  if (broker_ == nullptr) return;  // OnJob
  if (entry.stop.signal != 0) broker_->SignalJob(key, entry.stop.signal);
  // A job that is stopped (SIGSTOP) takes nothing but SIGKILL before it goes on.
  if (entry.stop.signal != 0) broker_->SignalJob(key, SIGCONT);
  KillAt(key, entry.stop);
}

void JobTable::KillAt(const JobKey& key, const StopState& stop) {
  const uint64_t left = LeftUs(stop.since_us, uint64_t{stop.grace_ms} * 1000);
  loop_.At(EventLoop::Clock::now() + microseconds(left), [this, key] { Kill(key); });
}

void JobTable::Kill(const JobKey& key) {
  const auto found = jobs_.find(key);
  if (broker_ == nullptr || found == jobs_.end()) return;
  Entry& entry = found->second;
  if (entry.phase == Phase::kRunning) {
    entry.stop.killed = true;
    entry.view->journal->SetStop(entry.stop);
  } else if (entry.phase != Phase::kUnusable) {
    return;
  }
  broker_->KillJob(key);
}

void JobTable::OnJob(const Job& job, JobDescriptors descriptors) {
  const auto known = jobs_.find(job.key);
  if (job.starting != 0) return AdoptUnborn(job, std::move(descriptors));
  if (known != jobs_.end() && known->second.phase == Phase::kUnusable) {
    known->second.greeting = greeting_;
    return broker_->KillJob(job.key);  // what was sent to the one before may not have arrived
  }
  if (known == jobs_.end()) return Adopt(job, std::move(descriptors));
  if (lacking_.count(job.key) != 0 && descriptors[kJournalIndex].IsOpen()) {
    ForgetView(job.key, known->second);
    return Adopt(job, std::move(descriptors));
  }
  // Another broker has taken it over, with the same descriptors. What was asked of the one before may not have arrived.
  Entry& entry = known->second;
  entry.greeting = greeting_;
  descriptors = {};
  if (entry.view != nullptr) (void)entry.view->journal->Hold();  // which that has undone
  if (entry.phase == Phase::kRunning && entry.stop.kind != StopKind::kNone) BeginStop(job.key, entry);
}

void JobTable::OnStarted(const Started& started, JobDescriptors descriptors) {
  const auto found = jobs_.find(started.key);
  // Of a connection before this one.
  if (found == jobs_.end()) return Adopt(started, std::move(descriptors));
  if (found->second.phase != Phase::kStarting) return;
  Entry& entry = found->second;
  const std::vector<StartCallback> waiting = std::exchange(entry.started, {});
  const std::string note = entry.start.note;
  if (!MakeView(started, std::move(descriptors), entry)) {
    // Nobody could read what it writes: it never was. The broker tells its end, and then it is forgotten.
    ForgetRequestKey(started.key.user, note);
    output_.Remove(started.key);
    entry.phase = Phase::kUnusable;
    entry.view = nullptr;
    lacking_.erase(started.key);
    broker_->KillJob(started.key);
    for (const StartCallback& done : waiting) done(tl::unexpected(JobFailure(StageFailed{Stage::kPipe, EMFILE})));
    return;
  }
  const std::string& request_key = entry.view->note.request_key();
  if (!request_key.empty()) users_[started.key.user].by_request_key[request_key] = started.key.id;
  deadlines_.Add(started.key, entry.view->note, started.started_us);
  if (entry.asked) metrics::Started(EventLoop::Clock::now() - *entry.asked);
  Log("job started", {{"user", started.key.user}, {"job", std::to_string(started.key.id)}});
  ForgetAnchor(started.key.user);
  if (entry.stop.kind != StopKind::kNone) BeginStop(started.key, entry);
  for (const StartCallback& done : waiting) done(View(entry.view));
}

// Asked for by an earlier front end. Its Started, with the descriptors again, or its Failed is still to come; until
// then its id and its request key are taken.
void JobTable::AdoptUnborn(const Job& job, JobDescriptors descriptors) {
  Entry& entry = jobs_[job.key];
  UserJobs& user = users_[job.key.user];
  user.last_id = std::max(user.last_id, job.key.id);
  const auto journal = Journal::Open(std::move(descriptors[kJournalData]), std::move(descriptors[kJournalIndex]));
  if (journal) entry.start = (*journal)->start();
  if (!journal) lacking_.try_emplace(job.key);
  JobNote note;
  if (note.ParseFromString(entry.start.note) && !note.request_key().empty()) {
    user.by_request_key[note.request_key()] = job.key.id;
  }
}

// So that it can be adopted again. Who follows it is told to come again; the stop that was asked for stays.
void JobTable::ForgetView(const JobKey& key, Entry& entry) {
  users_[key.user].ended.erase({entry.ended_at, key.id});
  output_.Remove(key);
  entry.view->journal->Abandon();
  entry.view = nullptr;
}

// A job that is there without this front end having asked for it.
template <class Message>
void JobTable::Adopt(const Message& job, JobDescriptors descriptors) {
  Entry& entry = jobs_[job.key];
  (void)MakeView(job, std::move(descriptors), entry);
  JobView& view = *entry.view;
  UserJobs& user = users_[job.key.user];
  user.last_id = std::max(user.last_id, job.key.id);
  if (job.key.id > user.anchor) ForgetAnchor(job.key.user);
  if (!view.note.request_key().empty()) user.by_request_key[view.note.request_key()] = job.key.id;
  deadlines_.Add(job.key, view.note, job.started_us);
  Log("job taken over", {{"user", job.key.user},
                         {"job", std::to_string(job.key.id)},
                         {"output", std::to_string(view.journal->range().end)},
                         {"damage", view.journal->damage().empty() ? "none" : view.journal->damage()}});
  if (entry.stop.kind != StopKind::kNone) return BeginStop(job.key, entry);
  entry.stop = view.journal->stop();
  if (entry.stop.kind == StopKind::kNone) return;
  view.phase = JobView::Phase::kEnding;
  KillAt(job.key, entry.stop);
}

// False when the job's output could not be had; there is a view all the same.
template <class Message>
bool JobTable::MakeView(const Message& job, JobDescriptors descriptors, Entry& entry) {
  entry.phase = Phase::kRunning;
  entry.greeting = greeting_;
  entry.start = {};
  entry.view = std::make_shared<JobView>();
  JobView& view = *entry.view;
  view.key = job.key;
  view.limits = job.limits;
  view.missing = job.missing;
  view.started_us = job.started_us;
  lacking_.erase(job.key);  // first: see Journal::Hold
  UniqueFd index = std::move(descriptors[kJournalIndex]);
  const auto holder = index.IsOpen() ? Journal::Holder(index.Get()) : std::nullopt;
  tl::expected<std::shared_ptr<Journal>, std::string> opened = Because("this process has no descriptors free");
  if (holder) {
    opened = Because(fmt::format("the front end with pid {} still reads it", *holder));
    lacking_.try_emplace(job.key, std::move(index));
  } else if (index.IsOpen()) {
    opened = Journal::Open(std::move(descriptors[kJournalData]), std::move(index), limits_.output.comes_back_within);
  }
  view.journal = opened ? std::move(*opened) : Journal::Unreadable(opened.error());
  if (!opened) lacking_.try_emplace(job.key);
  (void)view.note.ParseFromString(view.journal->start().note);
  if (job.has_stdin != 0 || view.journal->start().want_stdin != 0) {
    view.input = std::make_shared<JobInput>(loop_, std::move(descriptors[kStdin]), view.journal);
  }
  OutputCollector::Pipes pipes;
  for (size_t i = 0; i < pipes.size() && opened; ++i) pipes[i] = std::move(descriptors[i]);
  return output_.Add(job.key, view.journal, std::move(pipes)) && opened;
}

void JobTable::OnFailed(const Failed& failed) {
  const auto found = jobs_.find(failed.key);
  questions_.OnFailed(failed);
  if (found == jobs_.end()) return;
  Entry& entry = found->second;
  const bool asked = entry.phase == Phase::kUnusable || (entry.phase == Phase::kRunning && entry.stop.killed);
  if (failed.request == RequestType::kKill && failed.error != ESRCH && asked) {
    Log("kill refused", {{"user", failed.key.user},
                         {"job", std::to_string(failed.key.id)},
                         {"reason", strerror(static_cast<int>(failed.error))},
                         {"next", "it is tried again"}});
    loop_.At(EventLoop::Clock::now() + kKillAgain, [this, key = failed.key] { Kill(key); });
    return;
  }
  if (failed.request != RequestType::kStart) return;  // what came too late
  UserJobs& user = users_[failed.key.user];
  // Ended jobs count in the broker until they are forgotten, all but one, so the oldest makes room.
  const auto old = std::find_if(user.ended.begin(), user.ended.end(), [&](const auto& ended) {
    return !IsNewest({failed.key.user, ended.second});
  });
  if (failed.stage == Stage::kJobs && old != user.ended.end()) {
    Forget({failed.key.user, old->second});
    return broker_->StartJob(entry.start);
  }
  metrics::NotStarted(StageName(failed.stage));
  Log("job not started", {{"user", failed.key.user},
                          {"job", std::to_string(failed.key.id)},
                          {"stage", StageName(failed.stage)},
                          {"errno", std::to_string(failed.error)}});
  ForgetRequestKey(failed.key.user, entry.start.note);
  lacking_.erase(failed.key);
  const auto node = jobs_.extract(found);
  for (const StopCallback& done : node.mapped().stop_waiters) done(tl::unexpected(NoJob::kUnknown));
  for (const StartCallback& done : node.mapped().started) {
    done(tl::unexpected(JobFailure(StageFailed{failed.stage, static_cast<int>(failed.error)})));
  }
}

void JobTable::OnExited(const Exited& exited) {
  const auto found = jobs_.find(exited.key);
  if (found == jobs_.end()) return;
  if (found->second.phase == Phase::kRunning) return End(found->second, exited);
  if (found->second.phase != Phase::kUnusable) return;
  const auto node = jobs_.extract(found);
  broker_->ForgetJob(exited.key);
  for (const StopCallback& done : node.mapped().stop_waiters) done(tl::unexpected(NoJob::kUnknown));
}

void JobTable::End(Entry& entry, const Exited& exited) {
  Journal& journal = *entry.view->journal;
  if (!output_.Finish(exited.key)) {
    Log("output waits",
        {{"user", exited.key.user}, {"job", std::to_string(exited.key.id)}, {"reason", strerror(errno)}});
    loop_.At(EventLoop::Clock::now() + Journal::kTryAgain, [this, exited] {
      const auto found = jobs_.find(exited.key);
      if (found != jobs_.end() && found->second.phase == Phase::kRunning) End(found->second, exited);
    });
    return;
  }
  // A broker that was restarted may know less than was known before.
  const std::optional<Exited> known = journal.end();
  entry.view->result = {known ? *known : exited, entry.stop};
  StopState& stop = entry.view->result.stop;
  const uint64_t ended_us = entry.view->result.exited.ended_us;
  if (ended_us != 0 && stop.since_us > ended_us) stop = {};  // what had ended by then was not stopped
  entry.view->phase = JobView::Phase::kEnded;
  if (!known) {
    journal.SetEnd(exited);
    metrics::Ended(JobEnd::Reason_Name(ToJobEnd(entry.view->result, entry.view->started_us).reason()));
    LogEnd(entry.view->result);
  }
  journal.readable() ? journal.Close() : journal.Abandon();
  output_.Ended(exited.key);
  entry.phase = Phase::kEnded;
  deadlines_.Remove(exited.key);
  if (entry.view->input != nullptr) entry.view->input->End();
  TellEnd(entry.view);
  for (const StopCallback& done : std::exchange(entry.stop_waiters, {})) done(entry.view->result);
  // The broker keeps its record until then, so a front end that is restarted still learns of the job.
  Place(entry);
  if (journal.forgotten()) return Forget(exited.key);
  ForgetSurplus(exited.key.user);
  ForgetOld();
}

// The clock may have been set back since others ended; what ended just now is not to be forgotten before them.
void JobTable::Place(Entry& entry) {
  auto& ended = users_[entry.view->key.user].ended;
  const uint64_t now = NowUs(), told = entry.view->result.exited.ended_us;
  entry.ended_at = told != 0 ? told : now;
  if (!ended.empty() && entry.ended_at + kJustNowUs > now) {
    entry.ended_at = std::max(entry.ended_at, ended.rbegin()->first);
  }
  ended.emplace(entry.ended_at, entry.view->key.id);
}

void JobTable::TellEnd(const View& job) {
  std::vector<EndCallback> told;
  const auto begin = end_watches_.lower_bound({job->key, nullptr});
  auto watch = begin;
  for (; watch != end_watches_.end() && watch->first.first == job->key; ++watch) told.push_back(watch->second);
  end_watches_.erase(begin, watch);
  for (const EndCallback& done : told) done(job);
}

void JobTable::WatchEnd(const JobKey& key, const void* who, EndCallback done) {
  const auto job = Find(key);
  if (!job || (*job)->phase == JobView::Phase::kEnded) return done(job);
  end_watches_[{key, who}] = std::move(done);
}

void JobTable::UnwatchEnd(const JobKey& key, const void* who) { end_watches_.erase({key, who}); }

tl::expected<BrokerClient*, NoJob> JobTable::BrokerToAsk() const {
  if (broker_ == nullptr || !complete_) return tl::unexpected(NoJob::kGone);
  if (broker_->backlog() >= limits_.broker_backlog) return tl::unexpected(NoJob::kBusy);
  return broker_;
}

void JobTable::SignalJob(const JobKey& key, uint8_t number, const SignalCallback& done) {
  const auto job = Find(key);
  if (!job) return done(tl::unexpected(job.error()));
  if ((*job)->phase == JobView::Phase::kEnded) return done(ESRCH);
  const auto broker = BrokerToAsk();
  if (!broker) return done(tl::unexpected(broker.error()));
  questions_.Signal(**broker, key, number, [done](const int* error) {
    done(error != nullptr ? tl::expected<int, NoJob>(*error) : tl::unexpected(NoJob::kGone));
  });
}

void JobTable::Usage(const JobKey& key, const UsageCallback& done) {
  const auto job = Find(key);
  if (!job) return done(tl::unexpected(job.error()));
  if ((*job)->phase == JobView::Phase::kEnded) return done((*job)->result.exited.counters);
  const auto broker = BrokerToAsk();
  if (!broker) return done(tl::unexpected(broker.error()));
  questions_.Usage(**broker, key, [done](const Counters* counters) {
    done(counters != nullptr ? tl::expected<Counters, NoJob>(*counters) : tl::unexpected(NoJob::kGone));
  });
}

void JobTable::WhoIs(const std::string& user, const UserCallback& done) {
  const auto broker = BrokerToAsk();
  if (!broker) return done(tl::unexpected(broker.error()));
  questions_.WhoIs(**broker, user, [done](const UserIs* is) {
    done(is != nullptr ? tl::expected<UserIs, NoJob>(*is) : tl::unexpected(NoJob::kGone));
  });
}

tl::expected<bool, NoJob> JobTable::RemoveJob(const JobKey& key) {
  const auto job = Find(key);
  if (!job) return tl::unexpected(job.error());
  if ((*job)->phase != JobView::Phase::kEnded) return false;
  Forget(key);
  return true;
}

tl::expected<void, NoJob> JobTable::Visit(const std::string& user, uint64_t below,
                                          const std::function<bool(const JobView&)>& visit) const {
  if (!complete_) return tl::unexpected(NoJob::kGone);
  for (auto job = jobs_.lower_bound({user, below}); job != jobs_.begin();) {
    --job;
    if (job->first.user != user) break;
    if (job->second.view != nullptr && !visit(*job->second.view)) break;
  }
  return {};
}

void JobTable::ForgetSurplus(const std::string& user) {
  const auto& ended = users_[user].ended;
  while (ended.size() > limits_.ended_per_user) Forget({user, ended.begin()->second});
}

// Looks again when the next one will be old enough.
void JobTable::ForgetOld() {
  if (limits_.ended_age.count() == 0) return;
  const auto age = static_cast<uint64_t>(microseconds(limits_.ended_age).count());
  const uint64_t now = NowUs();
  uint64_t next = UINT64_MAX;
  for (auto& [name, user] : users_) {
    while (!user.ended.empty() && user.ended.begin()->first + age <= now) Forget({name, user.ended.begin()->second});
    if (!user.ended.empty()) next = std::min(next, user.ended.begin()->first + age);
  }
  if (next == UINT64_MAX) return;
  // At most a day ahead: a clock that was wrong may have dated an end centuries from now.
  constexpr uint64_t kDayUs = 24ULL * 3600 * 1'000'000;
  const auto when = EventLoop::Clock::now() + microseconds(std::min(next - now, kDayUs));
  if (when >= next_look_) return;
  next_look_ = when;
  loop_.At(when, [this] {
    next_look_ = EventLoop::Clock::time_point::max();
    ForgetOld();
  });
}

void JobTable::Forget(const JobKey& key) {
  const auto found = jobs_.find(key);
  UserJobs& user = users_[key.user];
  const std::shared_ptr<JobView> view = found->second.view;
  user.ended.erase({found->second.ended_at, key.id});
  user.by_request_key.erase(view->note.request_key());
  const bool with_broker = broker_ != nullptr && found->second.greeting == greeting_;
  const bool newest = IsNewest(key);
  view->journal->Forget();  // for a follower that is still there, and for whoever the broker hands it to
  if (with_broker && newest) user.anchor = key.id;
  if (with_broker && !newest) broker_->ForgetJob(key);
  output_.Remove(key);
  lacking_.erase(key);
  jobs_.erase(found);
}

// None that has started is younger.
bool JobTable::IsNewest(const JobKey& key) const {
  return std::none_of(jobs_.upper_bound(key), jobs_.upper_bound({key.user, UINT64_MAX}),
                      [](const auto& job) { return job.second.view != nullptr; });
}

void JobTable::ForgetRequestKey(const std::string& user, const std::string& note_bytes) {
  JobNote note;
  if (note.ParseFromString(note_bytes)) users_[user].by_request_key.erase(note.request_key());
}

void JobTable::ForgetAnchor(const std::string& user) {
  const uint64_t anchor = std::exchange(users_[user].anchor, 0);
  if (anchor != 0) broker_->ForgetJob({user, anchor});
}

}  // namespace jobworker
