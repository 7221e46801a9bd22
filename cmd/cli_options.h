// The command line of `jobworker`, read into plain values. Amounts are understood here; whether they are too large is
// the server's to say.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace jobworker {

enum class Verb {
  kStart,
  kStop,
  kQuery,
  kList,
  kStatus,
  kWait,
  kSignal,
  kRemove,
  kWhoAmI,
  kVersion,
  kConfig,
  kCompletion
};

// Where in a job's output a query begins; at most one of these.
struct Begin {
  std::optional<uint64_t> offset;
  std::optional<uint64_t> tail_bytes;
  std::optional<uint64_t> tail_lines;
};

struct Options {
  std::optional<std::string> profile;
  std::optional<std::string> host;  // HOST[:PORT]
  std::optional<std::string> certs;
  bool reconnect = true;
  bool json = false;
  Verb verb = Verb::kStart;

  // start
  bool detach = false;
  bool send_stdin = false;
  std::vector<std::string> env;    // NAME=VALUE
  std::vector<std::string> words;  // the job's, at least one
  bool verbatim = false;           // a `--` came before the words
  std::optional<std::string> directory;
  std::optional<uint64_t> timeout_ms;
  std::optional<uint64_t> cpu_milli, memory_bytes, pids, read_rate, write_rate;
  std::map<std::string, std::string> labels;  // and list: those that a job must have
  bool stop_on_disconnect = false;
  std::optional<uint64_t> lease_ms;

  std::vector<std::string> ids;  // stop, query, status, wait, signal, rm; "@last" for the newest
  Begin begin;                   // query, as are the next
  bool follow = true;
  bool only_stdout = false, only_stderr = false;
  bool timestamps = false;
  int signal = 0;  // stop, signal
  std::optional<uint64_t> grace_ms;
  bool now = false;
  bool any = false;        // wait
  bool ids_only = false;   // list, as are the next
  bool only_live = false;  // running or ending
  std::optional<uint64_t> count;
  std::string shell;  // completion
};

// What to do, or what to print instead of doing anything.
struct ParsedOptions {
  std::optional<Options> options;
  bool failed = false;  // `text` is an error, not an answer
  std::string text;     // --help, --version, or what is wrong
};

ParsedOptions ParseOptions(int argc, const char* const* argv);

}  // namespace jobworker
