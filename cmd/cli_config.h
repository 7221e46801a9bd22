// Which server, which profile, which certificates: flag > environment > the user's file > the machine's file > built
// in. In a file, the table of the chosen profile comes before the keys of the file itself.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

#include "cmd/cli_options.h"

namespace jobworker {

inline constexpr uint16_t kDefaultPort = 57533;

// A host name or address, without brackets, and a port.
struct Server {
  std::string host;
  uint16_t port = kDefaultPort;
  // "localhost:57533", "[::1]:57533"
  [[nodiscard]] std::string Name() const;
  bool operator==(const Server&) const = default;
};

// HOST, HOST:PORT, ADDRESS, [IPv6], [IPv6]:PORT. error() is a sentence that repeats `text`.
tl::expected<Server, std::string> ParseServer(std::string_view text, uint16_t default_port);

// The keys of a file, or of one of its [profiles.NAME] tables.
struct ConfigKeys {
  std::optional<std::string> host;
  std::optional<uint16_t> port;        // used when the host names none
  std::optional<std::string> profile;  // not in a table
  std::optional<std::string> certs;    // absolute; a relative one is taken from the file's own directory
  std::optional<std::string> user;     // only in a table: the certificate's name, when it is not the profile's
};

struct ConfigFile {
  ConfigKeys keys;
  std::map<std::string, ConfigKeys, std::less<>> profiles;
};

// A file that is not there is an empty one. error() names the file, and the line where there is one.
tl::expected<ConfigFile, std::string> ReadConfigFile(const std::filesystem::path& path);

// One setting, and which flag, variable or file it comes from.
struct Origin {
  std::string key;
  std::string value;
  std::string source;
};

struct Settings {
  Server server;
  std::string profile;
  std::string user;                            // whose certificate: USER.pem
  std::optional<std::filesystem::path> certs;  // nothing: look in the usual places
  std::string flags;                           // " -u bob -h host": what a follow-up command must repeat
  std::vector<Origin> origins;
};

// Null when the variable is not set; also used for XDG_CONFIG_HOME and HOME.
using Environment = std::function<const char*(const char*)>;

// $XDG_CONFIG_HOME/jobworker or ~/.config/jobworker; empty without a home.
std::filesystem::path UserConfigDirectory(const Environment& environment);

tl::expected<Settings, std::string> FindSettings(const Options& options, const Environment& environment,
                                                 const std::filesystem::path& machine_file);

}  // namespace jobworker
