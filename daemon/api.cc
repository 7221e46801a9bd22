#include "daemon/api.h"

namespace jobworker {

namespace {

JobEnd::Reason ReasonOf(const JobResult& result) {
  switch (result.stop.kind) {
    case StopKind::kAsked: return JobEnd::STOPPED;
    case StopKind::kTimeout: return JobEnd::TIMED_OUT;
    case StopKind::kLease: return JobEnd::LEASE_LOST;
    case StopKind::kOutputLimit: return JobEnd::OUTPUT_LIMIT;
    case StopKind::kNone: break;
  }
  const Exited& exited = result.exited;
  if (exited.cause == EndCause::kUnknown) return JobEnd::LOST;
  if (exited.cause == EndCause::kExited) return JobEnd::EXITED_BY_ITSELF;
  const bool out_of_memory = exited.oom_level != OomLevel::kNone;
  return out_of_memory ? JobEnd::OUT_OF_MEMORY : JobEnd::SIGNALLED_BY_OTHERS;
}

void SetUnless(uint64_t value, uint64_t unlimited, auto set) {
  if (value != unlimited) set(value);
}

JobStatus::State StateOf(const JobView& job) {
  return job.phase == JobView::Phase::kEnded    ? JobStatus::ENDED
         : job.phase == JobView::Phase::kEnding ? JobStatus::ENDING
                                                : JobStatus::RUNNING;
}

}  // namespace

JobEnd ToJobEnd(const JobResult& result, uint64_t started_us) {
  const Exited& exited = result.exited;
  const bool stopped = result.stop.kind != StopKind::kNone;
  JobEnd end;
  switch (exited.cause) {
    case EndCause::kExited:
      end.set_cause(JobEnd::EXITED);
      end.set_exit_code(exited.value);
      break;
    case EndCause::kSignalled:
      end.set_cause(JobEnd::SIGNALLED);
      end.set_signal(exited.value);
      break;
    case EndCause::kUnknown: end.set_detail("the broker was restarted, and the job ended meanwhile"); break;
  }
  end.set_core_dumped(exited.core_dumped != 0);
  end.set_stopped(stopped);
  end.set_oom_level(static_cast<JobEnd::OomLevel>(exited.oom_level));
  end.set_oom_kills(exited.oom_kills);
  end.set_leftovers(exited.leftovers);
  end.set_cpu_user_us(exited.counters[kCpuUser]);
  end.set_cpu_system_us(exited.counters[kCpuSystem]);
  end.set_memory_peak(exited.counters[kMemoryPeak]);
  end.set_read_bytes(exited.counters[kReadBytes]);
  end.set_write_bytes(exited.counters[kWriteBytes]);
  end.set_pids_peak(exited.counters[kPidsPeak]);
  end.set_reason(ReasonOf(result));
  if (result.stop.kind == StopKind::kAsked) end.set_actor(exited.key.user);
  if (stopped) end.set_stop_signal(result.stop.signal);
  end.set_stop_killed(result.stop.killed);
  end.set_started_us(static_cast<int64_t>(started_us));
  end.set_ended_us(static_cast<int64_t>(exited.ended_us));
  return end;
}

ResourceLimits ToResourceLimits(const Limits& limits) {
  ResourceLimits out;
  const auto [cpu, memory, pids, rbps, wbps, riops, wiops] = limits;
  SetUnless(cpu, kUnlimited, [&](uint64_t value) { out.set_cpu_milli(value); });
  SetUnless(memory, kUnlimited, [&](uint64_t value) { out.set_memory_bytes(value); });
  SetUnless(pids, kUnlimited, [&](uint64_t value) { out.set_pids(value); });
  SetUnless(rbps, kUnlimited, [&](uint64_t value) { out.set_read_bytes_per_second(value); });
  SetUnless(wbps, kUnlimited, [&](uint64_t value) { out.set_write_bytes_per_second(value); });
  SetUnless(riops, kUnlimited, [&](uint64_t value) { out.set_read_ops_per_second(value); });
  SetUnless(wiops, kUnlimited, [&](uint64_t value) { out.set_write_ops_per_second(value); });
  return out;
}

JobStatus ToJobStatus(const JobTable& jobs, const JobView& job) {
  JobStatus status;
  const Start& start = job.journal->start();
  status.set_pid(std::to_string(job.key.id));
  status.set_state(StateOf(job));
  for (const std::string& word : start.argv) status.add_argv(word);
  *status.mutable_labels() = job.note.labels();
  status.set_started_us(static_cast<int64_t>(job.started_us));
  *status.mutable_limits() = ToResourceLimits(job.limits);
  constexpr std::pair<Controller, const char*> kNames[] = {
      {kCpu, "cpu"}, {kIo, "io"}, {kMemory, "memory"}, {kPids, "pids"}};
  for (const auto& [bit, name] : kNames) {
    if ((job.missing & bit) != 0) status.add_unenforced(name);
  }
  const OutputLimits& limits = jobs.retention().limits();
  const Journal::Range range = job.journal->range();
  JobStatus::Output& output = *status.mutable_output();
  output.set_first(range.first);
  output.set_end(range.end);
  output.set_held(job.journal->held());
  output.set_limit(limits.per_job);
  output.set_policy(std::string(PolicyName(limits.policy)));
  output.set_followers(static_cast<uint32_t>(job.journal->followers()));
  if (job.phase == JobView::Phase::kEnded) *status.mutable_end() = ToJobEnd(job.result, job.started_us);
  status.set_timeout_ms(job.note.timeout_ms());
  status.set_lease_ms(job.note.lease_ms());
  status.set_on_disconnect(job.note.lease_ms() != 0 ? ON_DISCONNECT_STOP : ON_DISCONNECT_KEEP);
  status.set_directory(start.directory);
  return status;
}

WorkerResponse ToFirstResponse(const JobTable& jobs, const JobView& job) {
  WorkerResponse response;
  response.set_pid(std::to_string(job.key.id));
  *response.mutable_status() = ToJobStatus(jobs, job);
  *response.mutable_unenforced() = response.status().unenforced();
  return response;
}

}  // namespace jobworker
