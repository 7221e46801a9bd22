// The command line of `jobworker`, read into plain values and not judged any further.
#pragma once
#include <optional>
#include <string>
#include <vector>

namespace jobworker {

enum class Verb { kStart, kStop, kQuery };

struct Options {
  std::optional<std::string> profile;
  std::optional<std::string> host;  // HOST[:PORT]
  std::optional<std::string> certs;
  bool reconnect = true;
  Verb verb = Verb::kStart;
  bool detach = false;             // start
  std::vector<std::string> env;    // start: NAME=VALUE
  std::vector<std::string> words;  // start: the job's, at least one
  bool verbatim = false;           // start: a `--` came before the words
  std::string id;                  // stop, query
};

// What to do, or what to print instead of doing anything.
struct ParsedOptions {
  std::optional<Options> options;
  bool failed = false;  // `text` is an error, not an answer
  std::string text;     // --help, --version, or what is wrong
};

ParsedOptions ParseOptions(int argc, const char* const* argv);

}  // namespace jobworker
