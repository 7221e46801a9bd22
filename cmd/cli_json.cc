#include "cmd/cli_json.h"

#include <nlohmann/json.hpp>

#include "cmd/cli_describe.h"
#include "cmd/cli_units.h"

namespace jobworker {
namespace {

using Json = nlohmann::ordered_json;

Json Object(std::string_view type) { return {{"v", 1}, {"type", type}}; }

std::string Line(const Json& json) { return json.dump(-1, ' ', true) + "\n"; }

std::string Base64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    const size_t have = std::min<size_t>(3, bytes.size() - at);
    uint32_t group = 0;
    for (size_t i = 0; i < 3; ++i) group = group << 8U | (i < have ? static_cast<unsigned char>(bytes[at + i]) : 0U);
    for (size_t i = 0; i < 4; ++i) text += i <= have ? kDigits[group >> (18 - 6 * i) & 63U] : '=';
  }
  return text;
}

// A string, or where that cannot be, an object with the bytes.
Json Bytes(std::string_view bytes) {
  if (IsUtf8(bytes)) return bytes;
  return {{"base64", Base64(bytes)}};
}

Json Limits(const ResourceLimits& limits) {
  Json json = Json::object();
  if (limits.has_cpu_milli()) json["cpu_milli"] = limits.cpu_milli();
  if (limits.has_memory_bytes()) json["memory_bytes"] = limits.memory_bytes();
  if (limits.has_pids()) json["pids"] = limits.pids();
  if (limits.has_read_bytes_per_second()) json["read_bytes_per_second"] = limits.read_bytes_per_second();
  if (limits.has_write_bytes_per_second()) json["write_bytes_per_second"] = limits.write_bytes_per_second();
  if (limits.has_read_ops_per_second()) json["read_ops_per_second"] = limits.read_ops_per_second();
  if (limits.has_write_ops_per_second()) json["write_ops_per_second"] = limits.write_ops_per_second();
  return json;
}

template <class Counters>
void AddUsage(Json& json, const Counters& counters) {
  json["cpu_user_us"] = counters.cpu_user_us();
  json["cpu_system_us"] = counters.cpu_system_us();
  json["memory_peak"] = counters.memory_peak();
  json["read_bytes"] = counters.read_bytes();
  json["write_bytes"] = counters.write_bytes();
  json["pids_peak"] = counters.pids_peak();
}

const char* ReasonName(JobEnd::Reason reason) {
  switch (reason) {
    case JobEnd::EXITED_BY_ITSELF: return "exited";
    case JobEnd::SIGNALLED_BY_OTHERS: return "signalled";
    case JobEnd::STOPPED: return "stopped";
    case JobEnd::TIMED_OUT: return "timed-out";
    case JobEnd::OUT_OF_MEMORY: return "out-of-memory";
    case JobEnd::LEASE_LOST: return "lease-lost";
    case JobEnd::OUTPUT_LIMIT: return "output-limit";
    case JobEnd::LOST: return "lost";
    default: return "unknown";
  }
}

Json End(const JobEnd& end) {
  Json json = {{"reason", ReasonName(end.reason())}, {"exit_status", ExitStatusOf(end)}};
  if (end.cause() == JobEnd::EXITED) json["exit_code"] = end.exit_code();
  if (end.cause() == JobEnd::SIGNALLED) {
    json["signal"] = end.signal();
    json["core_dumped"] = end.core_dumped();
  }
  if (!end.actor().empty()) json["actor"] = Bytes(end.actor());
  json["stopped"] = end.stopped();
  if (end.stop_signal() != 0) json["stop_signal"] = end.stop_signal();
  json["stop_killed"] = end.stop_killed();
  json["oom_level"] = end.oom_level() == JobEnd::USER ? "user" : end.oom_level() == JobEnd::JOB ? "job" : "none";
  json["oom_kills"] = end.oom_kills();
  json["leftovers"] = end.leftovers();
  json["started_us"] = end.started_us();
  json["ended_us"] = end.ended_us();
  AddUsage(json, end);
  if (!end.detail().empty()) json["detail"] = Bytes(end.detail());
  return json;
}

const char* StateName(JobStatus::State state) {
  switch (state) {
    case JobStatus::STARTING: return "starting";
    case JobStatus::RUNNING: return "running";
    case JobStatus::ENDING: return "ending";
    case JobStatus::ENDED: return "ended";
    default: return "unknown";
  }
}

const char* InputName(InputState state) {
  switch (state) {
    case INPUT_OPEN: return "open";
    case INPUT_CLOSED: return "closed";
    case INPUT_REFUSED: return "refused";
    case INPUT_LOST: return "lost";
    default: return "unknown";
  }
}

template <class Strings>
Json List(const Strings& strings) {
  Json json = Json::array();
  for (const std::string& each : strings) json.push_back(Bytes(each));
  return json;
}

}  // namespace

std::string JobJson(const JobStatus& status) {
  Json json = Object("job");
  json["id"] = Bytes(status.pid());
  json["state"] = StateName(status.state());
  json["argv"] = List(status.argv());
  json["labels"] = Json::object();
  for (const auto& [key, value] : status.labels()) json["labels"][key] = value;
  if (!status.directory().empty()) json["directory"] = Bytes(status.directory());
  json["started_us"] = status.started_us();
  json["limits"] = Limits(status.limits());
  json["unenforced"] = List(status.unenforced());
  if (status.timeout_ms() > 0) json["timeout_ms"] = status.timeout_ms();
  json["on_disconnect"] = status.on_disconnect() == ON_DISCONNECT_STOP ? "stop" : "keep";
  if (status.lease_ms() > 0) json["lease_ms"] = status.lease_ms();
  if (status.has_output()) {
    const auto& output = status.output();
    json["output"] = {{"first", output.first()}, {"end", output.end()},       {"held", output.held()},
                      {"limit", output.limit()}, {"policy", output.policy()}, {"followers", output.followers()}};
  }
  if (status.has_input()) {
    json["input"] = {{"taken", status.input().taken()}, {"state", InputName(status.input().state())}};
  }
  if (status.has_usage()) AddUsage(json["usage"], status.usage());
  if (status.has_end()) json["end"] = End(status.end());
  return Line(json);
}

std::string IdJson(std::string_view type, const std::string& id) {
  Json json = Object(type);
  json["id"] = Bytes(id);
  return Line(json);
}

std::string OutputJson(const std::string& id, const WorkerResponse& response, std::string_view log) {
  Json json = Object("output");
  json["id"] = Bytes(id);
  json["stream"] = response.stream() == STDERR ? "stderr" : "stdout";
  json["offset"] = response.offset() + (response.log().size() - log.size());
  if (response.time_us() != 0) json["time_us"] = response.time_us();
  json["data"] = Bytes(log);
  return Line(json);
}

std::string GapJson(const std::string& id, const WorkerResponse& response) {
  Json json = Object("gap");
  json["id"] = Bytes(id);
  json["dropped"] = response.dropped();
  json["offset"] = response.offset();
  return Line(json);
}

std::string EndJson(const std::string& id, const JobEnd& end) {
  Json json = Object("end");
  json["id"] = Bytes(id);
  json.update(End(end));
  return Line(json);
}

std::string SignalJson(const std::string& id, int signal) {
  Json json = Object("signalled");
  json["id"] = Bytes(id);
  json["signal"] = signal;
  return Line(json);
}

std::string IdentityJson(const WhoAmIResponse& identity) {
  Json json = Object("identity");
  json["user"] = Bytes(identity.user());
  json["rights"] = List(identity.rights());
  json["ceilings"] = Limits(identity.ceilings());
  json["defaults"] = Limits(identity.defaults());
  json["jobs_live"] = identity.jobs_live();
  json["jobs_ended"] = identity.jobs_ended();
  json["jobs_limit"] = identity.jobs_limit();
  json["output_held"] = identity.output_held();
  json["output_limit"] = identity.output_limit();
  json["certificate_ends_us"] = identity.certificate_ends_us();
  return Line(json);
}

std::string VersionJson(const ServerVersionResponse& server) {
  Json json = Object("version");
  json["client"] = JOBWORKER_VERSION;
  json["server"] = Bytes(server.version());
  json["api"] = server.api();
  json["broker_protocol"] = server.broker_protocol();
  json["started_us"] = server.started_us();
  json["broker_connected"] = server.broker_connected();
  json["unenforced"] = List(server.unenforced());
  return Line(json);
}

std::string CompletionJson(const std::string& shell, const std::string& script) {
  Json json = Object("completion");
  json["shell"] = shell;
  json["script"] = script;
  return Line(json);
}

std::string SettingJson(const Origin& origin) {
  Json json = Object("setting");
  json["key"] = origin.key;
  json["value"] = Bytes(origin.value);
  json["source"] = Bytes(origin.source);
  return Line(json);
}

}  // namespace jobworker
