// jobserver: the unprivileged half of Job Worker that faces the network.
#include <fcntl.h>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <pwd.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <optional>
#include <thread>

#include "common/message_socket.h"
#include "daemon/because.h"
#include "daemon/broker_link.h"
#include "daemon/certificates.h"
#include "daemon/config.h"
#include "daemon/confine.h"
#include "daemon/event_loop.h"
#include "daemon/files.h"
#include "daemon/gate.h"
#include "daemon/job_table.h"
#include "daemon/listen_address.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/open_calls.h"
#include "daemon/reload.h"
#include "daemon/rpc_server.h"
#include "daemon/tls.h"
#include "daemon/worker_service.h"

namespace jobworker {
namespace {

// For a try-out, when there is no account of that name: an id that no account range of Debian or systemd uses.
constexpr const char* kAccount = "jobworker";
constexpr Account kTryOutAccount{70000, 70000};

struct Options {
  std::string listen = "127.0.0.1:57533", port_file, certs = "/etc/jobworker/certs", policy, run_as, broker_socket;
  std::string cgroup_root, users, missing_controllers = "refuse", config, metrics;
  bool reflection = false;
};

[[noreturn]] void Die(const std::string& what) {
  (void)fprintf(stderr, "jobserver: %s\n", what.c_str());
  exit(1);
}

template <class T>
T OrDie(tl::expected<T, std::string> result) {
  if (!result) Die(result.error());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

void AddOptions(CLI::App& app, Options& options) {
  const auto add = [&app](const char* name, std::string& field, const char* type, const std::string& what) {
    return app.add_option(name, field, what)->option_text(type);
  };
  add("--listen", options.listen, "ADDR:PORT", "where to listen (" + options.listen + "); port 0 picks one");
  add("--port-file", options.port_file, "FILE", "write the port to this file once it is open");
  add("--certs", options.certs, "DIR",
      "where ca.pem, worker.pem, worker-key.pem and crl.pem are (" + options.certs + ")");
  add("--policy", options.policy, "FILE", "who may do what (built in: alice and bob everything, carl nothing)");
  add("--run-as", options.run_as, "ACCOUNT", "USER or UID:GID to become when started as root");
  add("--config", options.config, "FILE", "TOML: how much output is kept, how long ended jobs, stop-grace");
  add("--metrics", options.metrics, "ADDR:PORT", "answer GET /metrics for Prometheus, on a loopback address alone");
  app.add_flag("--reflection", options.reflection, "answer gRPC's reflection service, to whoever has a certificate");
  auto* socket = add("--broker-socket", options.broker_socket, "PATH", "meet a jobbroker that runs by itself");
  const auto* standalone = "Standalone (started as root, it starts its own jobbroker with these)";
  add("--cgroup-root", options.cgroup_root, "DIR", "cgroup v2 directory for the jobs")
      ->group(standalone)
      ->excludes(socket);
  add("--users", options.users, "FILE", "the users list (built in: alice, bob, carl)")
      ->group(standalone)
      ->excludes(socket);
  add("--missing-controllers", options.missing_controllers, "refuse|warn", "what to do where the kernel lacks one")
      ->group(standalone)
      ->excludes(socket)
      ->check(CLI::IsMember({"refuse", "warn"}));
}

std::string BesideThisProgram(const char* name) {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  const std::string self(path, size > 0 ? static_cast<size_t>(size) : 0);
  return self.substr(0, self.rfind('/') + 1) + name;
}

// Root's last act: the broker on one end of a socketpair. Returns the other end.
UniqueFd StartBroker(const Options& options, pid_t& broker) {
  std::pair<UniqueFd, UniqueFd> pair = MessageSocketPair();
  const std::string program = BesideThisProgram("jobbroker");
  if (access(program.c_str(), X_OK) != 0) {
    Die(fmt::format("there is no {}: jobserver starts the jobbroker beside itself; install both together", program));
  }
  constexpr int kBrokerFd = 3;
  std::vector<std::string> words = {program, "--fd", std::to_string(kBrokerFd), "--missing-controllers",
                                    options.missing_controllers};
  if (!options.cgroup_root.empty()) words.insert(words.end(), {"--cgroup-root", options.cgroup_root});
  if (!options.users.empty()) words.insert(words.end(), {"--users", options.users});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  broker = fork();
  if (broker < 0) Die(fmt::format("fork: {}", strerror(errno)));
  if (broker == 0) {
    const int end = pair.second.Release();
    (void)setsid();  // a terminal's Ctrl-C is for this program alone: it ends the broker in its own order
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, nullptr);
    const bool placed = end == kBrokerFd ? fcntl(end, F_SETFD, 0) == 0 : dup2(end, kBrokerFd) == kBrokerFd;
    if (placed) execv(program.c_str(), argv.data());
    (void)fprintf(stderr, "jobserver: cannot run %s: %s\n", program.c_str(), strerror(errno));
    _exit(1);
  }
  return std::move(pair.first);
}

std::optional<Account> AccountToBecome(const Options& options) {
  if (geteuid() != 0) return std::nullopt;
  if (!options.run_as.empty()) return OrDie(ParseAccount(options.run_as));
  return getpwnam(kAccount) != nullptr ? OrDie(ParseAccount(kAccount)) : kTryOutAccount;
}

// What is read at the start, as whoever started it.
struct Setup {
  explicit Setup(const Options& given)
      : options(given),
        source{given.certs, OrDie(ListenHost("--listen", given.listen))},
        certificates(OrDie(LoadCertificates(source))),
        gate(certificates, given.policy.empty() ? Policy::BuiltIn() : OrDie(Policy::Load(given.policy))),
        limits(given.config.empty() ? JobTableLimits{} : OrDie(LoadConfig(given.config))) {}

  const Options& options;
  const CertificateSource source;
  Certificates certificates;
  Gate gate;
  const JobTableLimits limits;
};

// Returns the port.
tl::expected<int, std::string> Listen(Setup& setup, grpc::ServerBuilder& builder, RpcServer& rpc) {
  int port = 0;
  builder.AddListeningPort(setup.options.listen, ServerCredentials(setup.certificates), &port);
  // gRPC has read a message whole before it looks at this, so a smaller number would save no memory; with this one a
  // field that is a thousand times too large is still answered with its name.
  builder.SetMaxReceiveMessageSize((1024 + 64) * 1024);
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 * 1024);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 4096);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  // Two servers that share a port by SO_REUSEPORT would each get some of the calls.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return Because(
        fmt::format("cannot listen on {}: the port is in use, or the address is not this machine's; --listen "
                    "takes another one",
                    setup.options.listen));
  }
  rpc.Start(std::move(server));
  return port;
}

tl::expected<void, std::string> Announce(const Options& options, const UniqueFd& port_file, int port) {
  const std::string address = options.listen.substr(0, options.listen.rfind(':') + 1) + std::to_string(port);
  const std::string line = std::to_string(port) + "\n";
  if (port_file.IsOpen() && write(port_file.Get(), line.data(), line.size()) < 0) {
    return Because(fmt::format("--port-file {}: {}", options.port_file, strerror(errno)));
  }
  Log("listening", {{"address", address}});
  return {};
}

// Opened while there is the right to, written when the port is open: until then it is empty.
UniqueFd OpenPortFile(const Options& options) {
  if (options.port_file.empty()) return {};
  UniqueFd file(open(options.port_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file.IsOpen()) Die(fmt::format("--port-file {}: {}", options.port_file, strerror(errno)));
  return file;
}

// Blocked in every thread and in the broker's child until it unblocks them: they are read from a descriptor.
UniqueFd TakeSignals() {
  sigset_t ends;
  sigemptyset(&ends);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&ends, number);
  (void)signal(SIGPIPE, SIG_IGN);
  if (sigprocmask(SIG_BLOCK, &ends, nullptr) != 0) Die("sigprocmask");
  UniqueFd signals(signalfd(-1, &ends, SFD_CLOEXEC));
  if (!signals.IsOpen()) Die("signalfd");
  return signals;
}

// None without an address. What there is to count is the loop's. The page ends before the loop does.
tl::expected<std::unique_ptr<MetricsPage>, std::string> OpenMetrics(const std::string& address, EventLoop& loop,
                                                                    const JobTable& jobs) {
  if (address.empty()) return nullptr;
  auto page = MetricsPage::Open(address, [&loop, &jobs] {
    std::promise<Census> census;
    loop.Post([&] { census.set_value(jobs.Count()); });
    return census.get_future().get();
  });
  if (page) {
    const std::string host = address.substr(0, address.rfind(':'));
    Log("metrics", {{"address", fmt::format("http://{}:{}/metrics", host, (*page)->port())}});
  }
  return page;
}

// The calls in progress are told, and get a second to take it; then the loop that answers them ends.
void EndServer(std::unique_ptr<MetricsPage> page, RpcServer& rpc, EventLoop& loop) {
  rpc.Shutdown(std::chrono::seconds(1));
  page.reset();
  loop.Stop();
}

// Its own, by this socket, or the one of --broker-socket.
tl::expected<void, std::string> MeetBroker(const Options& options, BrokerLink& link, UniqueFd socket) {
  if (!options.broker_socket.empty()) {
    link.Meet(options.broker_socket);
    return {};
  }
  const auto used = link.Use(std::move(socket));
  if (!used) return Because("no broker to work with: " + used.error() + " (its own words are above or in its log)");
  return {};
}

// Until a signal, or until a broker of its own is gone. Returns the exit status, or why it could not serve.
tl::expected<int, std::string> Serve(Setup& setup, UniqueFd broker_socket, const UniqueFd& port_file,
                                     const UniqueFd& signals) {
  const Options& options = setup.options;
  EventLoop loop;
  int status = 0;
  bool tried = false;
  std::function<void()> end;
  JobTable jobs(loop, setup.limits);
  const auto lost = [&](const std::string&) {
    status = 1;
    end();
  };
  BrokerLink link(loop, jobs,
                  {.tried = [&] { tried = true; }, .lost = lost, .well = [] { (void)sd_notify(0, "WATCHDOG=1"); }});
  const auto met = MeetBroker(options, link, std::move(broker_socket));
  if (!met) return Because(met.error());
  // Clients are let in once its jobs are known, or once it turns out to be away.
  while (!tried && !options.broker_socket.empty()) loop.RunOnce();
  OpenCalls open_calls(loop, setup.gate);
  WorkerService service(setup.gate, open_calls, loop, jobs, options.reflection);
  grpc::ServerBuilder builder;
  const size_t threads = std::clamp(std::thread::hardware_concurrency() / 2, 1U, 8U);
  RpcServer rpc(builder, threads, [&service](const std::shared_ptr<Call>& call) { service.Answer(call); });
  open_calls.Of(rpc);
  const auto port = Listen(setup, builder, rpc);
  if (!port) return Because(port.error());
  std::unique_ptr<MetricsPage> page;
  std::thread shutdown;
  end = [&] {
    if (shutdown.joinable()) return;
    (void)sd_notify(0, "STOPPING=1");
    jobs.Close();
    shutdown = std::thread([&] { EndServer(std::move(page), rpc, loop); });
  };
  Reloader reloader(loop, {setup.source, options.policy, options.config}, setup.certificates, setup.gate, jobs,
                    [&] { open_calls.Recheck(); });
  const auto signalled = [&] {
    signalfd_siginfo info{};
    if (read(signals.Get(), &info, sizeof(info)) != sizeof(info)) return;
    if (info.ssi_signo != SIGHUP) return end();
    if (shutdown.joinable()) return;
    (void)sd_notify(0, "RELOADING=1");
    reloader.Reload();
    (void)sd_notify(0, "READY=1");
  };
  if (!loop.Watch(signals.Get(), EPOLLIN, signalled)) return Because("epoll_ctl failed");
  uint64_t watchdog_us = 0;
  if (sd_watchdog_enabled(0, &watchdog_us) > 0) link.Watch(std::chrono::microseconds(watchdog_us / 3));
  reloader.Begin();
  if (const auto announced = Announce(options, port_file, *port); !announced) return Because(announced.error());
  auto opened = OpenMetrics(options.metrics, loop, jobs);
  if (!opened) return Because(opened.error());
  page = std::move(*opened);
  (void)sd_notify(0, "READY=1");
  loop.Run();
  shutdown.join();
  Log("stopped", {});
  return status;
}

// All that happens once root's last act is done.
tl::expected<int, std::string> BecomeServer(Setup& setup, const std::optional<Account>& account, UniqueFd broker_socket,
                                            const UniqueFd& port_file, const UniqueFd& signals) {
  if (account) {
    if (const auto become = BecomeAccount(*account); !become) return Because(become.error());
  }
  if (const auto confined = Confine(); !confined) return Because(confined.error());
  return Serve(setup, std::move(broker_socket), port_file, signals);
}

int Main(int argc, char** argv) try {
  Options options;
  CLI::App app("The network-facing half of Job Worker.\nExample: jobserver --certs certs", "jobserver");
  app.set_version_flag("--version", JOBWORKER_VERSION);
  AddOptions(app, options);
  CLI11_PARSE(app, argc, argv);

  if (getenv("GRPC_VERBOSITY") == nullptr) setenv("GRPC_VERBOSITY", "NONE", 1);
  ForbidOldTls();
  Setup setup(options);
  const std::string problem = setup.certificates.current()->problem;
  if (!problem.empty()) Log("certificates that keep clients out", {{"reason", problem}});
  const bool standalone = options.broker_socket.empty();
  if (standalone && geteuid() != 0) {
    Die("start it as root (it starts a jobbroker and then becomes an unprivileged user), or give --broker-socket PATH");
  }
  const std::optional<Account> account = AccountToBecome(options);
  const UniqueFd port_file = OpenPortFile(options);
  const UniqueFd signals = TakeSignals();
  pid_t broker = -1;
  UniqueFd socket = standalone ? StartBroker(options, broker) : UniqueFd();
  const auto served = BecomeServer(setup, account, std::move(socket), port_file, signals);
  // The broker has seen its socket close; it ends when every job and cgroup is gone.
  while (broker > 0 && waitpid(broker, nullptr, 0) < 0 && errno == EINTR) continue;
  if (!served) Die(served.error());
  return *served;
} catch (const std::exception& error) {
  Die(error.what());
}

}  // namespace
}  // namespace jobworker

#ifdef __SANITIZE_ADDRESS__
// The leak checker traces its own process, which the seccomp filter refuses.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#include <sanitizer/common_interface_defs.h>
// Its reports, and what is to be left out of them, take names, for which it starts a program: while it still may.
__attribute__((constructor)) void StartSymbolizer() {
  char name[64];
  __sanitizer_symbolize_pc(__builtin_return_address(0), "%f", name, sizeof(name));
}
#endif
#endif

int main(int argc, char** argv) { return jobworker::Main(argc, argv); }
