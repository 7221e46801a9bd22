#include "cmd/cli_config.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <charconv>
#include <cstring>
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "cmd/cli_text.h"
#include "common/broker_protocol.h"
#include "daemon/because.h"

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

// Puts one key into `config`; the words for what is wrong with it, or nothing.
std::string TakeKey(ConfigFile& config, std::string_view key, const toml::node& value) {
  if (key == "port") {
    const auto port = value.value_exact<int64_t>();
    if (!port || *port < 1 || *port > UINT16_MAX) return "port must be a number from 1 to 65535";
    config.port = static_cast<uint16_t>(*port);
    return "";
  }
  std::optional<std::string>* const field = key == "host"      ? &config.host
                                            : key == "profile" ? &config.profile
                                            : key == "certs"   ? &config.certs
                                                               : nullptr;
  if (field == nullptr) return fmt::format("unknown key {}; the keys are host, port, profile and certs", key);
  *field = value.value_exact<std::string>();
  return *field ? "" : fmt::format("{} must be a string, in quotes", key);
}

// A variable that is set but empty counts as not set, as XDG has it.
std::optional<std::string> Variable(const Environment& environment, const char* name) {
  const char* const value = environment(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

using Setting = std::optional<std::string>;
Setting FirstOf(std::initializer_list<Setting> settings) {
  for (const Setting& setting : settings) {
    if (setting) return setting;
  }
  return std::nullopt;
}

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
  ConfigFile config;
  for (const auto& [key, value] : parsed.table()) {
    const std::string wrong = TakeKey(config, key.str(), value);
    if (!wrong.empty()) return FileError(path, key.source(), wrong);
  }
  if (config.certs) config.certs = path.parent_path() / *config.certs;
  return config;
}

fs::path UserConfigDirectory(const Environment& environment) {
  const Setting config = Variable(environment, "XDG_CONFIG_HOME");
  // The XDG rules: a relative path there is to be ignored.
  if (config && fs::path(*config).is_absolute()) return fs::path(*config) / "jobworker";
  const Setting home = Variable(environment, "HOME");
  return home ? fs::path(*home) / ".config" / "jobworker" : fs::path();
}

tl::expected<Settings, std::string> FindSettings(const Options& options, const Environment& environment,
                                                 const fs::path& machine_file) {
  const fs::path directory = UserConfigDirectory(environment);
  const auto user = directory.empty() ? ConfigFile{} : ReadConfigFile(directory / "config.toml");
  if (!user) return Because(user.error());
  const auto machine = ReadConfigFile(machine_file);
  if (!machine) return Because(machine.error());
  const ConfigFile& mine = user.value();
  const ConfigFile& ours = machine.value();

  const Setting host = FirstOf({options.host, Variable(environment, "JOBWORKER_HOST"), mine.host, ours.host});
  const uint16_t port = mine.port.value_or(ours.port.value_or(kDefaultPort));
  const auto server = ParseServer(host.value_or("localhost"), port);
  if (!server) return Because(server.error());
  const Setting profile =
      FirstOf({options.profile, Variable(environment, "JOBWORKER_PROFILE"), mine.profile, ours.profile});
  Settings settings{server.value(), profile.value_or("alice"), std::nullopt, FlagsToRepeat(options)};
  // The profile becomes part of a file's name.
  if (!IsUserName(settings.profile)) {
    return Because(
        fmt::format("'{}' cannot be a profile: one is 1 to 32 characters of a-z, 0-9, _ and -, the first "
                    "a letter or _",
                    settings.profile));
  }
  const Setting certs = FirstOf({options.certs, Variable(environment, "JOBWORKER_CERTS"), mine.certs, ours.certs});
  if (certs) settings.certs = *certs;
  return settings;
}

}  // namespace jobworker
