#include "cmd/cli_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>

#include "cmd/cli_identity.h"

namespace jobworker {
namespace {

namespace fs = std::filesystem;

TEST(ParseServer, Forms) {
  const std::map<std::string, Server> good = {{"localhost", {"localhost", 57533}},
                                              {"build.example:80", {"build.example", 80}},
                                              {"127.0.0.1", {"127.0.0.1", 57533}},
                                              {"127.0.0.1:65535", {"127.0.0.1", 65535}},
                                              {"::1", {"::1", 57533}},
                                              {"[::1]", {"::1", 57533}},
                                              {"[::1]:7", {"::1", 7}}};
  for (const auto& [text, server] : good) {
    const auto parsed = ParseServer(text, kDefaultPort);
    ASSERT_TRUE(parsed.has_value()) << parsed.error();
    EXPECT_EQ(parsed.value(), server) << text;
  }
  EXPECT_EQ((Server{"::1", 7}.Name()), "[::1]:7");
  EXPECT_EQ((Server{"a", 7}.Name()), "a:7");
}

TEST(ParseServer, Refused) {
  for (const char* text : {"", ":1", "host:", "host:0", "host:65536", "host:-1", "host:1x", "[::1", "[::1]7",
                           "[::1]:", "[host]:1", "a/b", "unix:/x", "a b", "a%b", "::1::2", "user@host"}) {
    const auto parsed = ParseServer(text, kDefaultPort);
    EXPECT_FALSE(parsed.has_value()) << text;
    EXPECT_NE(parsed.error().find(text), std::string::npos);
  }
}

fs::path NewDirectory() {
  std::string pattern = testing::TempDir() + "cli-config-XXXXXX";
  return mkdtemp(pattern.data());
}

class CliConfig : public testing::Test {
 protected:
  CliConfig() {
    fs::create_directories(directory_ / "jobworker");
    variables_["XDG_CONFIG_HOME"] = directory_.native();
  }
  ~CliConfig() override { fs::remove_all(directory_); }
  void Write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }
  tl::expected<Settings, std::string> Find(const Options& options = {}) {
    return FindSettings(
        options, [this](const char* name) { return variables_.contains(name) ? variables_[name].c_str() : nullptr; },
        machine_);
  }
  std::string Refusal(const std::string& text) {
    Write(user_, text);
    const auto settings = Find();
    EXPECT_FALSE(settings.has_value()) << text;
    return settings.error();
  }

  fs::path directory_ = NewDirectory();
  fs::path user_ = directory_ / "jobworker/config.toml";
  fs::path machine_ = directory_ / "client.toml";
  std::map<std::string, std::string> variables_;
};

TEST_F(CliConfig, BuiltIn) {
  const auto settings = Find();
  ASSERT_TRUE(settings.has_value()) << settings.error();
  EXPECT_EQ(settings.value().server.Name(), "localhost:57533");
  EXPECT_EQ(settings.value().profile, "alice");
  EXPECT_FALSE(settings.value().certs.has_value());
  EXPECT_EQ(settings.value().flags, "");
}

TEST_F(CliConfig, EachLevelOutranksTheNext) {
  Write(machine_, "host = 'machine'\nprofile = 'mach'\ncerts = '/m'\nport = 1\n");
  EXPECT_EQ(Find().value().server.Name(), "machine:1");
  EXPECT_EQ(Find().value().profile, "mach");
  Write(user_, "host = 'file:2'\nprofile = 'file'\ncerts = 'mine'\n");
  EXPECT_EQ(Find().value().server.Name(), "file:2");
  EXPECT_EQ(Find().value().certs, directory_ / "jobworker/mine");
  variables_["JOBWORKER_HOST"] = "env";
  variables_["JOBWORKER_PROFILE"] = "env";
  variables_["JOBWORKER_CERTS"] = "/env";
  EXPECT_EQ(Find().value().server.Name(), "env:1");
  EXPECT_EQ(Find().value().profile, "env");
  EXPECT_EQ(Find().value().certs, "/env");
  Options flags;
  flags.host = "flag:3";
  flags.profile = "flag";
  flags.certs = "/my certs";
  const Settings settings = Find(flags).value();
  EXPECT_EQ(settings.server.Name(), "flag:3");
  EXPECT_EQ(settings.profile, "flag");
  EXPECT_EQ(settings.certs, "/my certs");
  EXPECT_EQ(settings.flags, " -u flag -h flag:3 --certs '/my certs'");
}

TEST_F(CliConfig, ErrorsNameFileAndLine) {
  const std::string file = user_.native();
  EXPECT_EQ(Refusal("host = 'a'\nhots = 'b'\n").find(file + ":2: unknown key hots"), 0U);
  EXPECT_EQ(Refusal("\n\nprofile = 3\n").find(file + ":3: profile must be a string"), 0U);
  EXPECT_EQ(Refusal("port = 65536\n").find(file + ":1: port must be"), 0U);
  EXPECT_EQ(Refusal("port = '1'\n").find(file + ":1: port must be"), 0U);
  EXPECT_EQ(Refusal("user = 'a'\n").find(file + ":1: unknown key user"), 0U);
  EXPECT_EQ(Refusal("[profiles.a]\nprofile = 'b'\n").find(file + ":2: unknown key profile"), 0U);
  EXPECT_EQ(Refusal("[profiles]\na = 1\n").find(file + ":2: profiles.a must be a table"), 0U);
  EXPECT_EQ(Refusal("profiles = 1\n").find(file + ":1: unknown key profiles"), 0U);
  EXPECT_EQ(Refusal("host = 'a'\n[[[\n").find(file + ":2: "), 0U);
  EXPECT_EQ(Refusal("host = 'a'\nport = = 1\n").find(file + ":2: "), 0U);
}

TEST_F(CliConfig, ProfilesOfTheFiles) {
  Write(user_, "host = 'top'\nport = 5\n[profiles.build]\nhost = 'build1'\nport = 7\nuser = 'alice'\ncerts = 'b'\n");
  Write(machine_, "[profiles.Prod]\nhost = 'prod:9'\nuser = 'bob'\n");
  Options options;
  options.profile = "build";
  const Settings build = Find(options).value();
  EXPECT_EQ(build.server.Name(), "build1:7");
  EXPECT_EQ(build.user, "alice");
  EXPECT_EQ(build.profile, "build");
  EXPECT_EQ(build.certs, directory_ / "jobworker/b");
  options.profile = "Prod";                                 // a table may have any name, a certificate not
  EXPECT_EQ(Find(options).value().server.Name(), "top:5");  // the user's file comes first
  EXPECT_EQ(Find(options).value().user, "bob");
  options.profile = "carl";
  EXPECT_EQ(Find(options).value().server.Name(), "top:5");
  EXPECT_EQ(Find(options).value().user, "carl");
  variables_["JOBWORKER_HOST"] = "env";
  options.profile = "build";
  EXPECT_EQ(Find(options).value().server.Name(), "env:7");
}

TEST_F(CliConfig, EverySettingSaysWhereItIsFrom) {
  Write(user_, "port = 5\n[profiles.build]\nuser = 'alice'\n");
  variables_["JOBWORKER_HOST"] = "env";
  Options options;
  options.profile = "build";
  std::map<std::string, std::string> sources;
  const Settings settings = Find(options).value();
  for (const Origin& origin : settings.origins) {
    sources[origin.key] = origin.value + " < " + origin.source;
  }
  EXPECT_EQ(sources["profile"], "build < -u");
  EXPECT_EQ(sources["user"], "alice < " + user_.native() + ", profiles.build");
  EXPECT_EQ(sources["host"], "env < JOBWORKER_HOST");
  EXPECT_EQ(sources["port"], "5 < " + user_.native());
  EXPECT_EQ(sources["certs"], " < the usual places");
  variables_["JOBWORKER_HOST"] = "env:5";
  EXPECT_EQ(Find(options).value().origins[3].source, "JOBWORKER_HOST");
}

TEST_F(CliConfig, AProfileCannotBeAPath) {
  for (const char* profile : {"../bob", "Bob", "a/b", "", "worker.pem", "-x"}) {
    Options options;
    options.profile = profile;
    EXPECT_FALSE(Find(options).has_value()) << profile;
  }
}

TEST_F(CliConfig, RelativeXdgIsIgnored) {
  variables_["XDG_CONFIG_HOME"] = "relative";
  variables_["HOME"] = "/home/a";
  const Environment environment = [this](const char* name) {
    return variables_.contains(name) ? variables_[name].c_str() : nullptr;
  };
  EXPECT_EQ(UserConfigDirectory(environment), "/home/a/.config/jobworker");
}

TEST_F(CliConfig, CertificatesNowhere) {
  const Settings settings{{"localhost", 1}, "alice", "alice", std::nullopt, "", {}};
  const auto identity = LoadIdentity(settings, {directory_ / "a", directory_ / "b"});
  ASSERT_FALSE(identity.has_value());
  for (const char* part : {"alice.pem", "/a, ", "/b;", "--certs"}) {
    EXPECT_NE(identity.error().find(part), std::string::npos) << identity.error();
  }
}

TEST_F(CliConfig, BuildTreeCertificatesOnlyInABuildTree) {
  const fs::path bin = directory_ / "build/dev/bin";
  fs::create_directories(bin);
  const auto installed = CertificatePlaces("", bin);
  Write(bin.parent_path() / "CMakeCache.txt", "");
  const auto built = CertificatePlaces("", bin);
  EXPECT_EQ(built.size(), installed.size() + 1);
  EXPECT_EQ(built.back(), directory_ / "certs");
}

}  // namespace
}  // namespace jobworker
