#include "cmd/cli_config.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <charconv>
#include <cstring>

#include "cmd/cli_text.h"
#include "common/broker_protocol.h"
#include "daemon/because.h"
#include "daemon/toml.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

bool IsIpv6(const std::string& text) {
  in6_addr address;
  return inet_pton(AF_INET6, text.c_str(), &address) == 1;
}

bool IsHostName(std::string_view text) {
  const std::string_view allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !text.empty() && text.size() <= 253 && text.find_first_not_of(allowed) == std::string_view::npos;
}

std::optional<uint16_t> ParsePort(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size() || port == 0) return std::nullopt;
  return port;
}

// The host part and, when there is one, the port part with its colon.
std::pair<std::string, std::string> SplitServer(std::string_view text) {
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return {std::string(text), ""};
    return {std::string(text.substr(1, close - 1)), std::string(text.substr(close + 1))};
  }
  const size_t colon = text.find(':');
  // Two colons without brackets: an IPv6 address, which then has no port.
  if (colon == std::string_view::npos || text.find(':', colon + 1) != std::string_view::npos) {
    return {std::string(text), ""};
  }
  return {std::string(text.substr(0, colon)), std::string(text.substr(colon))};
}

tl::unexpected<std::string> FileError(const fs::path& path, const toml::source_region& where, std::string_view what) {
  return Because(fmt::format("{}:{}: {}", path.native(), where.begin.line, what));
}

// Puts one key into `keys`; the words for what is wrong with it, or nothing.
std::string TakeKey(ConfigKeys& keys, bool in_profile, std::string_view key, const toml::node& value) {
  if (key == "port") {
    const auto port = value.value_exact<int64_t>();
    if (!port || *port < 1 || *port > UINT16_MAX) return "port must be a number from 1 to 65535";
    keys.port = static_cast<uint16_t>(*port);
    return "";
  }
  std::optional<std::string>* const field = key == "host"                     ? &keys.host
                                            : key == "certs"                  ? &keys.certs
                                            : key == "profile" && !in_profile ? &keys.profile
                                            : key == "user" && in_profile     ? &keys.user
                                                                              : nullptr;
  if (field == nullptr) {
    return fmt::format("unknown key {}; the keys {}", key,
                       in_profile ? "of a profile are host, port, certs and user"
                                  : "are host, port, profile, certs and the tables profiles.NAME");
  }
  *field = value.value_exact<std::string>();
  return *field ? "" : fmt::format("{} must be a string, in quotes", key);
}

tl::expected<ConfigKeys, std::string> TakeKeys(const fs::path& path, const toml::table& table, bool in_profile) {
  ConfigKeys keys;
  for (const auto& [key, value] : table) {
    if (!in_profile && key == "profiles" && value.is_table()) continue;
    const std::string wrong = TakeKey(keys, in_profile, key.str(), value);
    if (!wrong.empty()) return FileError(path, key.source(), wrong);
  }
  if (keys.certs) keys.certs = path.parent_path() / *keys.certs;
  return keys;
}

// A variable that is set but empty counts as not set, as XDG has it.
std::optional<std::string> Variable(const Environment& environment, const char* name) {
  const char* const value = environment(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

// The first of several places that says anything, best first, with its name.
struct Place {
  std::optional<std::string> value;
  std::string source;
};
Place FirstOf(std::initializer_list<Place> places) {
  for (const Place& place : places) {
    if (place.value) return place;
  }
  return {};
}

// What the two files say, in four levels.
struct Files {
  // Those of the profile, where there is such a table.
  void Choose(const std::string& profile) {
    for (size_t each = 0; each < 2; ++each) {
      const auto table = files[each].profiles.find(profile);
      if (table == files[each].profiles.end()) continue;
      tables[each] = table->second;
      known = true;
    }
    name = fmt::format(", profiles.{}", profile);
  }
  [[nodiscard]] Place Find(std::optional<std::string> ConfigKeys::*key) const {
    return FirstOf({{tables[0].*key, paths[0] + name},
                    {files[0].keys.*key, paths[0]},
                    {tables[1].*key, paths[1] + name},
                    {files[1].keys.*key, paths[1]}});
  }
  [[nodiscard]] Place Port() const {
    const auto text = [](const ConfigKeys& keys) {
      return keys.port ? std::optional(std::to_string(*keys.port)) : std::nullopt;
    };
    return FirstOf({{text(tables[0]), paths[0] + name},
                    {text(files[0].keys), paths[0]},
                    {text(tables[1]), paths[1] + name},
                    {text(files[1].keys), paths[1]},
                    {std::to_string(kDefaultPort), "built in"}});
  }
  std::string paths[2];
  ConfigFile files[2];  // the user's, the machine's
  ConfigKeys tables[2];
  std::string name;
  bool known = false;
};

std::string FlagsToRepeat(const Options& options) {
  std::string flags;
  if (options.profile) flags += " -u " + QuoteWord(*options.profile);
  if (options.host) flags += " -h " + QuoteWord(*options.host);
  if (options.certs) flags += " --certs " + QuoteWord(*options.certs);
  return flags;
}

}  // namespace

std::string Server::Name() const {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

tl::expected<Server, std::string> ParseServer(std::string_view text, uint16_t default_port) {
  const auto [host, port] = SplitServer(text);
  if (!IsIpv6(host) && (text.starts_with('[') || !IsHostName(host))) {
    return Because(fmt::format("'{}' is not a host name or address; say HOST, HOST:PORT or [IPv6]:PORT", text));
  }
  if (port.empty()) return Server{host, default_port};
  const auto number = port[0] == ':' ? ParsePort(std::string_view(port).substr(1)) : std::nullopt;
  if (!number) return Because(fmt::format("in '{}' the port must be a number from 1 to 65535", text));
  return Server{host, *number};
}

tl::expected<ConfigFile, std::string> ReadConfigFile(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    if (!error) return ConfigFile{};
    return Because(fmt::format("{} cannot be read: {}", path.native(), error.message()));
  }
  const toml::parse_result parsed = toml::parse_file(path.native());
  if (!parsed) return FileError(path, parsed.error().source(), parsed.error().description());
  ConfigFile file;
  auto keys = TakeKeys(path, parsed.table(), false);
  if (!keys) return Because(keys.error());
  file.keys = std::move(*keys);
  const toml::table* const profiles = parsed.table()["profiles"].as_table();
  if (profiles == nullptr) return file;
  for (const auto& [name, table] : *profiles) {
    if (!table.is_table())
      return FileError(path, name.source(), fmt::format("profiles.{} must be a table", name.str()));
    auto own = TakeKeys(path, *table.as_table(), true);
    if (!own) return Because(own.error());
    file.profiles[std::string(name.str())] = std::move(*own);
  }
  return file;
}

fs::path UserConfigDirectory(const Environment& environment) {
  const auto config = Variable(environment, "XDG_CONFIG_HOME");
  // The XDG rules: a relative path there is to be ignored.
  if (config && fs::path(*config).is_absolute()) return fs::path(*config) / "jobworker";
  const auto home = Variable(environment, "HOME");
  return home ? fs::path(*home) / ".config" / "jobworker" : fs::path();
}

tl::expected<Settings, std::string> FindSettings(const Options& options, const Environment& environment,
                                                 const fs::path& machine_file) {
  const fs::path directory = UserConfigDirectory(environment);
  const fs::path user_file = directory.empty() ? fs::path() : directory / "config.toml";
  auto user = user_file.empty() ? ConfigFile{} : ReadConfigFile(user_file);
  if (!user) return Because(user.error());
  auto machine = ReadConfigFile(machine_file);
  if (!machine) return Because(machine.error());
  Files files{{user_file.native(), machine_file.native()}, {std::move(*user), std::move(*machine)}, {}, "", false};

  const auto best = [&](const std::optional<std::string>& flag, const char* flag_name, const char* variable,
                        std::optional<std::string> ConfigKeys::*key, const char* built_in) {
    const Place file = files.Find(key);
    return FirstOf({{flag, flag_name},
                    {Variable(environment, variable), variable},
                    file,
                    {built_in != nullptr ? std::optional<std::string>(built_in) : std::nullopt, "built in"}});
  };
  const Place profile = best(options.profile, "-u", "JOBWORKER_PROFILE", &ConfigKeys::profile, "alice");
  files.Choose(*profile.value);
  const Place named = files.Find(&ConfigKeys::user);
  const Place name = FirstOf({named, {profile.value, "the profile's name"}});
  const Place host = best(options.host, "-h", "JOBWORKER_HOST", &ConfigKeys::host, "localhost");
  const Place port = files.Port();
  const Place certs = best(options.certs, "--certs", "JOBWORKER_CERTS", &ConfigKeys::certs, nullptr);

  const auto server = ParseServer(*host.value, *ParsePort(*port.value));
  if (!server) return Because(server.error());
  // It becomes part of a file's name.
  if (!IsUserName(*name.value)) {
    return Because(
        fmt::format("'{}' cannot be a profile: one is 1 to 32 characters of a-z, 0-9, _ and -, the first a letter or "
                    "_, or the name of a table [profiles.NAME] in {}",
                    *name.value, user_file.native()));
  }
  Settings settings{*server, *profile.value, *name.value, std::nullopt, FlagsToRepeat(options), {}};
  if (certs.value) settings.certs = *certs.value;
  const bool own_port = server->port != *ParsePort(*port.value) || host.value->ends_with(":" + *port.value);
  settings.origins = {{"profile", *profile.value, profile.source},
                      {"user", *name.value, name.source},
                      {"host", server->host, host.source},
                      {"port", std::to_string(server->port), own_port ? host.source : port.source},
                      {"certs", certs.value.value_or(""), certs.value ? certs.source : "the usual places"}};
  return settings;
}

}  // namespace jobworker
