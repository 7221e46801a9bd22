// Writes the seed corpus: make_corpus tests/fuzz/corpus. Run it again, and check in what it writes, when the protocol
// changes.
#include <filesystem>
#include <fstream>
#include <initializer_list>

#include "common/broker_protocol.h"

namespace jobworker {
namespace {

std::filesystem::path root;

void Write(const char* target, const std::string& name, const std::string& bytes) {
  std::filesystem::create_directories(root / target);
  std::ofstream(root / target / name, std::ios::binary) << bytes;
}

const JobKey kKey{"alice", 7};
const JobKey kLongest{std::string(kMaxUserName, 'a'), UINT64_MAX};

void WriteRequests() {
  Write("request", "hello", Encode(Hello{}));
  Write("request", "hello-other-version", Encode(Hello{UINT32_MAX}));
  Write("request", "start", Encode(Start{kKey, {}, {"ls", "-l", ""}, {}}));
  Write("request", "start-limits", Encode(Start{kKey, {1, 2, 3, 4, 5, 6, kUnlimited}, {"/bin/true"}, {}}));
  Write("request", "start-environment", Encode(Start{kLongest, {}, {"env"}, {"A=1", "B=", "C==x"}}));
  Write("request", "start-many", Encode(Start{kKey, {}, std::vector<std::string>(40, "x"), {"A=1", "A=2", "A=3"}}));
  Write("request", "start-elsewhere", Encode(Start{kKey, {}, {"pwd"}, {}, "/tmp", std::string("n\0te", 4), 1}));
  Write("request", "ping", Encode(Ping{}));
  Write("request", "who-is", Encode(WhoIs{"alice"}));
  Write("request", "bad-who-is", Encode(WhoIs{"Alice"}));
  Write("request", "bad-stdin", Encode(Start{kKey, {}, {"cat"}, {}, "", "", 2}));
  Write("request", "bad-directory", Encode(Start{kKey, {}, {"pwd"}, {}, std::string("/\0", 2), ""}));
  Write("request", "signal", Encode(Signal{kKey, 15}));
  Write("request", "signal-64", Encode(Signal{kLongest, 64}));
  Write("request", "kill", Encode(Kill{kKey}));
  Write("request", "usage", Encode(UsageRequest{kKey}));
  Write("request", "forget", Encode(Forget{kLongest}));
  Write("request", "bad-user", Encode(Kill{{"../../etc", 1}}));
  Write("request", "bad-user-nul", Encode(Kill{{std::string("a\0b", 3), 1}}));
  Write("request", "bad-id", Encode(Kill{{"alice", 0}}));
  Write("request", "bad-signal", Encode(Signal{kKey, 65}));
  Write("request", "bad-no-words", Encode(Start{kKey, {}, {}, {}}));
  Write("request", "bad-environment", Encode(Start{kKey, {}, {"x"}, {"=A"}}));
  Write("request", "bad-tail", Encode(Kill{kKey}) + "x");
  Write("request", "bad-cut", Encode(Kill{kKey}).substr(0, 12));
}

std::string Row(std::initializer_list<std::string> datagrams) {
  std::string row;
  for (const std::string& datagram : datagrams) {
    row += static_cast<char>(datagram.size() & 0xff);
    row += static_cast<char>(datagram.size() >> 8);
    row += datagram;
  }
  return row;
}

void WriteDispatch() {
  const auto start = [](const char* command, uint64_t id) { return Encode(Start{{"alice", id}, {}, {command}, {}}); };
  const std::string hello = Encode(Hello{}), kill = Encode(Kill{kKey}), usage = Encode(UsageRequest{kKey});
  const std::string signal = Encode(Signal{kKey, 15}), forget = Encode(Forget{kKey});
  Write("dispatch", "stdin", Row({hello, Encode(Start{kKey, {}, {"run"}, {}, "", "", 1}), Encode(Ping{}), usage}));
  Write("dispatch", "runs", Row({hello, start("run", 7), usage, signal, kill, usage}));
  Write("dispatch", "ends",
        Row({hello, start("end", 7), usage, usage, usage, usage, signal, kill, forget, start("end", 7)}));
  Write("dispatch", "fails", Row({hello, start("fail", 7), usage, kill, start("fail", 7)}));
  Write("dispatch", "twice", Row({hello, start("run", 7), start("run", 7)}));
  Write("dispatch", "many",
        Row({hello, start("run", 1), start("end", 2), start("run", 3), start("run", 4), start("run", 5)}));
  Write("dispatch", "forgets-early", Row({hello, start("run", 7), usage, usage, usage, forget, usage}));
  Write("dispatch", "stranger", Row({hello, Encode(Start{{"bob", 1}, {}, {"run"}, {}}), kill}));
  Write("dispatch", "no-hello", Row({start("run", 7)}));
  Write("dispatch", "two-hellos", Row({hello, hello}));
  Write("dispatch", "empty", Row({hello, "", usage}));
  Write("dispatch", "greedy", Row({hello, Encode(Start{kKey, {kUnlimited}, {"run"}, {}}), usage}));
}

void WriteReplies() {
  const Limits limits{500, 4096, 10, 1, 2, 3, kUnlimited};
  Write("reply", "welcome", Encode(Welcome{kProtocolVersion, kAllControllers, UINT32_MAX}));
  Write("reply", "job", Encode(Job{kLongest, limits, kIo, 0, 1}));
  Write("reply", "started", Encode(Started{kKey, limits, 0, 1, UINT64_MAX}));
  Write("reply", "pong", Encode(Pong{}));
  for (const Stage stage : {Stage::kUser, Stage::kClone, Stage::kExec}) {
    Write("reply", "failed-" + std::to_string(static_cast<int>(stage)),
          Encode(Failed{kKey, RequestType::kStart, stage, 2}));
  }
  Write("reply", "failed-kill", Encode(Failed{kKey, RequestType::kKill, Stage::kKill, 3}));
  Write("reply", "exited", Encode(Exited{kKey, EndCause::kExited, 3, 0, OomLevel::kNone, 0, 0, 7, {1, 2, 3, 4, 5, 6}}));
  Write("reply", "exited-oom", Encode(Exited{kKey, EndCause::kSignalled, 9, 1, OomLevel::kUser, 2, 3, 4, {}}));
  Write("reply", "usage", Encode(UsageIs{kKey, {1, 2, 3, 4, 5, UINT64_MAX}}));
  Write("reply", "user", Encode(UserIs{"alice", 1, kIo, 2, 3, limits, limits}));
  Write("reply", "bad-stage", Encode(Failed{kKey, RequestType::kStart, Stage{14}, 2}));
  Write("reply", "bad-cause", Encode(Exited{kKey, EndCause{3}, 3, 0, OomLevel::kNone, 0, 0, 0, {}}));
  Write("reply", "bad-tail", Encode(UsageIs{kKey, {}}) + "x");
}

void WriteUsers() {
  Write("users", "one", "alice uid=1000 gid=1000 dir=/a\n");
  Write("users", "all",
        "# people\nalice uid=70001 gid=70001 dir=/srv/alice jobs=7 cpu=1500 memory=1 pids=2 read-bytes=3 write-bytes=4 "
        "read-ops=5 write-ops=max job-cpu=max job-memory=8 job-pids=9 # rest\n\n\tbob uid=70002 gid=70002 dir=/b\n");
  Write("users", "bad-uid", "a uid=0 gid=1000 dir=/a\n");
  Write("users", "bad-minus-one", "a uid=4294967295 gid=1000 dir=/a\n");
  Write("users", "bad-twice", "a uid=1000 gid=1000 dir=/a\na uid=1001 gid=1001 dir=/b\n");
  Write("users", "bad-key", "a uid=1000 gid=1000 dir=/a color=red\n");
}

// Sessions as sessions_fuzz reads them: a byte for Hello, then two or more for each request.
void WriteSessions() {
  Write("sessions", "run-kill-forget", {0, 0, 0, 0, 3, 0, 2, 0, 3, 0, 4, 0});
  Write("sessions", "quick-forget-again", {0, 0, 0, 1, 3, 1, 3, 1, 4, 0, 0, 0, 1});
  Write("sessions", "slow-usage-signal", {0, 0, 4, 2, 3, 4, 1, 4, 9, 3, 4, 4, 4});
  Write("sessions", "exec-fails", {0, 0, 1, 3, 3, 2, 0, 1, 0, 2, 1});
  Write("sessions", "stdin-ping", {0, 0, 0, 32, 6, 0, 2, 0});
  Write("sessions", "no-clone", {0, 0, 2, 4, 0, 2, 0, 2, 2});
  Write("sessions", "leftovers", {0, 0, 0, 64, 2, 0, 3, 0, 4, 0});
  Write("sessions", "unknown-user", {0, 0, 3, 0, 2, 3});
  Write("sessions", "no-hello", {static_cast<char>(255), 0, 0, 0});
  Write("sessions", "hello-twice", {0, 5, 0, 0});
  Write("sessions", "key-twice", {0, 0, 0, 0, 0, 0, 0});
  Write("sessions", "limit-above", {0, 0, 0, static_cast<char>(128), 1, 63});
  Write("sessions", "raw", {0, 7, 3, 1, 2, 3});
}

}  // namespace
}  // namespace jobworker

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  jobworker::root = argv[1];
  jobworker::WriteRequests();
  jobworker::WriteReplies();
  jobworker::WriteDispatch();
  jobworker::WriteUsers();
  jobworker::WriteSessions();
  return 0;
}
