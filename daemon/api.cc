#include "daemon/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <iterator>

#include "daemon/requests.h"
#include "daemon/signal_text.h"

namespace jobworker {

namespace {

// A user's bytes in a sentence of ours.
std::string Shown(std::string_view bytes) {
  std::string shown;
  for (const char c : bytes.substr(0, 256)) {
    const auto byte = static_cast<unsigned char>(c);
    byte >= 0x20 && byte < 0x7f ? void(shown += c) : void(fmt::format_to(std::back_inserter(shown), "\\x{:02x}", byte));
  }
  return bytes.size() > 256 ? shown + "..." : shown;
}

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
  // memory.oom.group: all of the cgroup is killed, the main process too.
  const bool out_of_memory = exited.oom_level != OomLevel::kNone && exited.value == SIGKILL;
  return out_of_memory ? JobEnd::OUT_OF_MEMORY : JobEnd::SIGNALLED_BY_OTHERS;
}

void SetUnless(uint64_t value, uint64_t unlimited, auto set) {
  if (value != unlimited) set(value);
}

std::string PathOf(const Start& start) {
  std::string path = "/usr/local/bin:/usr/bin:/bin";
  for (const std::string& entry : start.env) {
    if (entry.rfind("PATH=", 0) == 0) path = entry.substr(5);
  }
  return path;
}

std::string ExecFailure(int error, const Start& start) {
  const std::string command = Shown(start.argv[0]);
  const bool searched = start.argv[0].find('/') == std::string::npos;
  if (error == ENOENT && searched) {
    return fmt::format("command '{}' was not found in PATH ({})", command, Shown(PathOf(start)));
  }
  if (error == ENOENT) return fmt::format("command '{}' does not exist, or the interpreter it names does not", command);
  if (error == EACCES) return fmt::format("command '{}' is not an executable file that you may run", command);
  return fmt::format("command '{}' cannot be executed: {}", command, strerror(error));
}

std::string FailureSentence(const StageFailed& failed, const Start& start) {
  if (failed.stage == Stage::kExec) return ExecFailure(failed.error, start);
  if (failed.stage == Stage::kDirectory && !start.directory.empty()) {
    return fmt::format("directory: '{}' cannot be entered as the job's user: {}", Shown(start.directory),
                       strerror(failed.error));
  }
  return fmt::format("the job could not be started: {}: {}", StageName(failed.stage), strerror(failed.error));
}

}  // namespace

JobStatus::State StateOf(const JobView& job) {
  return job.phase == JobView::Phase::kEnded    ? JobStatus::ENDED
         : job.phase == JobView::Phase::kEnding ? JobStatus::ENDING
                                                : JobStatus::RUNNING;
}

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
    case EndCause::kUnknown:
      end.set_detail("it ended while there was no broker to see how: the kernel no longer tells its exit status");
      break;
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

std::vector<std::string> ControllerNames(uint8_t controllers) {
  constexpr std::pair<Controller, const char*> kNames[] = {
      {kCpu, "cpu"}, {kIo, "io"}, {kMemory, "memory"}, {kPids, "pids"}};
  std::vector<std::string> names;
  for (const auto& [bit, name] : kNames) {
    if ((controllers & bit) != 0) names.emplace_back(name);
  }
  return names;
}

ResourceUsage ToResourceUsage(const Counters& counters) {
  ResourceUsage usage;
  usage.set_cpu_user_us(counters[kCpuUser]);
  usage.set_cpu_system_us(counters[kCpuSystem]);
  usage.set_memory_peak(counters[kMemoryPeak]);
  usage.set_read_bytes(counters[kReadBytes]);
  usage.set_write_bytes(counters[kWriteBytes]);
  usage.set_pids_peak(counters[kPidsPeak]);
  return usage;
}

InputResult ToInputResult(const InputProgress& progress) {
  static_assert(INPUT_OPEN == static_cast<int>(InputPhase::kOpen) &&
                INPUT_CLOSED == static_cast<int>(InputPhase::kClosed));
  static_assert(INPUT_REFUSED == static_cast<int>(InputPhase::kRefused) &&
                INPUT_LOST == static_cast<int>(InputPhase::kLost));
  InputResult result;
  result.set_taken(progress.taken);
  result.set_state(static_cast<InputState>(progress.phase));
  return result;
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
  for (const std::string& name : ControllerNames(job.missing)) status.add_unenforced(name);
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
  if (job.input != nullptr) *status.mutable_input() = ToInputResult(job.input->progress());
  return status;
}

WorkerResponse ToFirstResponse(const JobTable& jobs, const JobView& job) {
  WorkerResponse response;
  response.set_pid(std::to_string(job.key.id));
  *response.mutable_status() = ToJobStatus(jobs, job);
  *response.mutable_unenforced() = response.status().unenforced();
  return response;
}

std::string StopSentence(const JobResult& result) {
  const Exited& exited = result.exited;
  const bool stopped = result.stop.kind != StopKind::kNone;
  if (exited.cause == EndCause::kUnknown)
    return fmt::format("job {} is gone; how it ended is not known\n", exited.key.id);
  return fmt::format(
      "job {} {}: {}\n", exited.key.id, stopped ? "is stopped" : "had ended before",
      exited.cause == EndCause::kExited ? fmt::format("exit code {}", exited.value) : SignalText(exited.value));
}

// Word for word the same for another user's job as for one that never was.
grpc::Status NoJobStatus(NoJob why) {
  switch (why) {
    case NoJob::kUnknown: return {grpc::StatusCode::NOT_FOUND, "you have no job with this id"};
    case NoJob::kBusy:
      return {grpc::StatusCode::RESOURCE_EXHAUSTED, "too many requests wait for the broker; try again in a moment"};
    case NoJob::kGone: break;
  }
  return {grpc::StatusCode::UNAVAILABLE, "the server is being stopped, or its broker is gone; try again later"};
}

grpc::Status StartFailedStatus(const JobFailure& failure, const std::string& user, const Start& start) {
  if (const NoJob* none = std::get_if<NoJob>(&failure)) return NoJobStatus(*none);
  const StageFailed failed = std::get<StageFailed>(failure);
  if (failed.stage == Stage::kUser) {
    return {grpc::StatusCode::PERMISSION_DENIED, fmt::format("user '{}' is not in the broker's users list", user)};
  }
  if (failed.stage == Stage::kJobs) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            fmt::format("user '{}' has as many jobs as the users list allows (jobs=)", user)};
  }
  if (failed.error == EAGAIN) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED,
            fmt::format("the limit of processes of user '{}' is reached (pids=); stop a job first", user)};
  }
  if (failed.error == EMFILE || failed.error == ENFILE || failed.error == ENOMEM || failed.error == ENOSPC) {
    return {grpc::StatusCode::RESOURCE_EXHAUSTED, fmt::format("the server's host is short of something: {}: {}",
                                                              StageName(failed.stage), strerror(failed.error))};
  }
  const std::string sentence = FailureSentence(failed, start);
  if (failed.stage == Stage::kDirectory && !start.directory.empty()) {
    return {grpc::StatusCode::INVALID_ARGUMENT, sentence};
  }
  StartFailure detail;
  detail.set_stage(std::string(StageName(failed.stage)));
  detail.set_error(failed.error);
  return {grpc::StatusCode::FAILED_PRECONDITION, sentence, detail.SerializeAsString()};
}

grpc::Status AboveCeilingStatus(const Limits& asked, const UserIs& user) {
  for (const LimitField& field : kLimitFields) {
    const uint64_t ceiling = user.ceiling.at(field.index);
    if (asked.at(field.index) <= ceiling) continue;
    return {grpc::StatusCode::INVALID_ARGUMENT, fmt::format("limits.{}: {} is above the ceiling of user '{}', {}",
                                                            field.name, asked.at(field.index), user.user, ceiling)};
  }
  // The list was changed meanwhile.
  return {grpc::StatusCode::UNAVAILABLE, "limits: they were above the user's ceilings, which have changed; try again"};
}

}  // namespace jobworker
