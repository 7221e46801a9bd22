// The broker under systemd, which keeps its descriptors: whatever kills it, the jobs go on and the next one has them.
#include "broker/store.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstring>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>

#include "tests/boundary/boundary_test.h"

namespace jobworker {
namespace {

// systemd's end of $NOTIFY_SOCKET, and its store. Like systemd it reads at all times.
class FakeSystemd {
 public:
  explicit FakeSystemd(const fs::path& path) : path_(path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.string().copy(address.sun_path, sizeof(address.sun_path) - 1);
    socket_.Reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sender_.Reset(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(socket_.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(connect(sender_.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    reader_ = std::thread([this] {
      while (Receive()) continue;
    });
  }
  ~FakeSystemd() {
    Say("end");
    reader_.join();
  }
  // All that was sent before has been taken in.
  void Drain() {
    const std::string mark = "mark " + std::to_string(++marks_);
    Say(mark);
    AwaitState(mark);
  }
  void AwaitState(const std::string& state) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(came_.wait_for(lock, std::chrono::milliseconds(kHangMs), [&] {
      return std::find(states_.begin(), states_.end(), state) != states_.end();
    })) << state;
  }
  // Sees to it that Give() can be called in a child, without a lock.
  void Prepare() {
    Drain();
    const std::lock_guard lock(mutex_);
    names_.clear();
    numbers_.clear();
    for (const auto& [name, fd] : store) {
      names_ += (names_.empty() && numbers_.empty() ? "" : ":") + name;
      numbers_.push_back(fd.Get());
    }
  }
  // In the broker that is to be: what systemd gives it.
  void Give(const std::string& watchdog_us) const {
    const int above = static_cast<int>(numbers_.size()) + 3;
    std::vector<int> high;
    for (const int fd : numbers_) high.push_back(fcntl(fd, F_DUPFD, above));
    for (int fd = 3; fd < above; ++fd) {
      if (dup2(high[static_cast<size_t>(fd) - 3], fd) != fd) _exit(102);
    }
    for (const int fd : high) close(fd);
    setenv("NOTIFY_SOCKET", path_.c_str(), 1);
    setenv("LISTEN_FDS", std::to_string(high.size()).c_str(), 1);
    setenv("LISTEN_FDNAMES", names_.c_str(), 1);
    setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
    if (watchdog_us.empty()) unsetenv("WATCHDOG_USEC");
    if (!watchdog_us.empty()) setenv("WATCHDOG_USEC", watchdog_us.c_str(), 1);
  }
  [[nodiscard]] std::vector<std::string> Names() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, fd] : store) names.push_back(name);
    std::sort(names.begin(), names.end());
    return names;
  }

  [[nodiscard]] UniqueFd CopyOfFirst() const {
    const std::lock_guard lock(mutex_);
    return UniqueFd(dup(store.at(0).second.Get()));
  }

  // To be looked at and changed after Drain(), while there is no broker or it is idle.
  std::vector<std::pair<std::string, UniqueFd>> store;

 private:
  void Say(const std::string& text) const {
    EXPECT_EQ(send(sender_.Get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  bool Receive() {
    char text[4096];
    iovec body{text, sizeof(text)};
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
    msghdr header{};
    header.msg_iov = &body;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof(control);
    const ssize_t size = recvmsg(socket_.Get(), &header, MSG_CMSG_CLOEXEC);
    if (size <= 0) return size < 0 && errno == EINTR;
    EXPECT_EQ(header.msg_flags & MSG_CTRUNC, 0) << "this process has no descriptors free";
    UniqueFd fd;
    if (const cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr) {
      EXPECT_EQ(rights->cmsg_len, CMSG_LEN(sizeof(int)));
      int number = -1;
      memcpy(&number, CMSG_DATA(rights), sizeof(number));
      fd.Reset(number);
    }
    const std::string message(text, static_cast<size_t>(size));
    const size_t named = message.find("FDNAME=");
    const std::string name = named == message.npos ? "" : message.substr(named + 7);
    const std::lock_guard lock(mutex_);
    if (message.starts_with("FDSTORE=1\nFDPOLL=0\nFDNAME=")) {
      store.emplace_back(name, std::move(fd));
    } else if (message.starts_with("FDSTOREREMOVE=1\nFDNAME=")) {
      std::erase_if(store, [&](const auto& entry) { return entry.first == name; });
    } else {
      states_.push_back(message);
    }
    came_.notify_all();
    EXPECT_FALSE(fd.IsOpen()) << message;
    return message != "end";
  }

  fs::path path_;
  UniqueFd socket_, sender_;
  mutable std::mutex mutex_;
  std::condition_variable came_;
  std::vector<std::string> states_;
  int marks_ = 0;
  std::string names_;
  std::vector<int> numbers_;
  std::thread reader_;
};

bool KernelTellsEnds() {
  utsname name{};
  uname(&name);
  int major = 0, minor = 0;
  EXPECT_EQ(sscanf(name.release, "%d.%d", &major, &minor), 2);
  return major > 6 || (major == 6 && minor >= 15);
}

class Stored : public testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to run the broker";
    // It is systemd, with all that is stored, and a front end with all that it has of each job.
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prctl(PR_SET_CHILD_SUBREAPER, 1);  // the jobs of a dead broker become this process's, as systemd's
    systemd_ = std::make_unique<FakeSystemd>(broker_.directory() / "notify");
    StartBroker();
  }
  void TearDown() override {
    if (systemd_ == nullptr) return;
    Reconnect();
    for (const JobKey& key : front_->held()) EndJob(key);
    front_->Send(Ping{});
    (void)front_->Await<Pong>();
    systemd_->Drain();
    EXPECT_EQ(systemd_->Names(), std::vector<std::string>{});
    EXPECT_EQ(CgroupsBelow(broker_.cgroup()), (std::set<std::string>{"alice", "bob", "carl"}));
    broker_.broker().Signal(SIGKILL);
    broker_.broker().Wait();
    for (const char* user : {"alice", "bob", "carl"}) fs::remove(broker_.cgroup() / user);
    fs::remove(broker_.cgroup());
    if (HasFailure()) std::fputs(("the broker's log:\n" + all_logs_ + broker_.Log()).c_str(), stderr);
    prctl(PR_SET_CHILD_SUBREAPER, 0);
  }
  // `changes` are to the environment that systemd gives.
  void StartBroker(
      const std::string& watchdog_us = "", const std::function<void()>& changes = [] {}) {
    systemd_->Prepare();
    all_logs_ += broker_.Log();
    fs::remove(broker_.directory() / "log");  // which tells when it listens
    broker_.Start(Mode::kDeployed, 0, [&] {
      systemd_->Give(watchdog_us);
      changes();
    });
  }
  void Kill9() {
    broker_.broker().Signal(SIGKILL);
    EXPECT_EQ(broker_.broker().Wait(), 128 + SIGKILL);
  }
  FrontEnd& Reconnect() {
    front_.reset();
    front_ = std::make_unique<FrontEnd>(broker_);
    if (front_->IsOpen()) front_->Greet();
    return *front_;
  }
  FrontEnd& Restart() {
    Kill9();
    StartBroker();
    return Reconnect();
  }
  // Also one whose broker has died: it is a child of this process now.
  void EndJob(const JobKey& key) {
    const std::vector<pid_t> all = ProcessesIn(broker_.cgroup() / key.user / std::to_string(key.id));
    front_->Send(Kill{key});
    for (const pid_t pid : all) waitpid(pid, nullptr, 0);
    Reap();  // and one that had ended before
    (void)front_->Await<Exited>(key);
    front_->Send(Forget{key});
  }
  // Those that have ended since their broker died.
  static void Reap() {
    while (waitpid(-1, nullptr, WNOHANG) > 0) continue;
  }
  // And the broker has done so.
  void ForgetJob(uint64_t id) {
    front_->Send(Forget{Alice(id)});
    front_->Send(Ping{});
    (void)front_->Await<Pong>();
  }
  static Start StartOf(uint64_t id, std::vector<std::string> argv) { return {Alice(id), {}, std::move(argv), {}}; }
  static JobKey Alice(uint64_t id) { return {"alice", id}; }
  Started Begin(const Start& start, std::vector<UniqueFd>* descriptors = nullptr) {
    front_->Send(start);
    return front_->Await<Started>(start.key, descriptors);
  }
  pid_t MainOf(uint64_t id) {
    const std::vector<pid_t> all = ProcessesIn(Leaf(id));
    return all.empty() ? 0 : all[0];
  }
  fs::path Leaf(uint64_t id) { return broker_.cgroup() / "alice" / std::to_string(id); }
  void ExpectEnd(uint64_t id, EndCause cause, int value) {
    const auto exited = front_->Await<Exited>(Alice(id));
    EXPECT_EQ(exited.cause, cause);
    EXPECT_EQ(exited.value, value);
    ForgetJob(id);
  }

  BrokerProcess broker_;
  std::unique_ptr<FakeSystemd> systemd_;
  std::unique_ptr<FrontEnd> front_;
  std::string all_logs_;
};

TEST_F(Stored, SystemdIsToldWhatTheBrokerDoes) {
  systemd_->AwaitState("READY=1");
  Kill9();
  StartBroker("20000");
  systemd_->AwaitState("WATCHDOG=1");
  broker_.broker().Signal(SIGHUP);
  EXPECT_EQ(broker_.broker().Wait(), 0);
  EXPECT_EQ(broker_.FindGuardian(), 0);
  StartBroker();
}

TEST_F(Stored, AJobGoesOnAndCanBeStopped) {
  for (const int number : {SIGKILL, SIGINT, SIGHUP}) {
    Reconnect();
    std::vector<UniqueFd> descriptors;
    const Started started = Begin(StartOf(1, {"sh", "-c", "echo one; exec sleep infinity"}), &descriptors);
    ASSERT_EQ(descriptors.size(), size_t{kStdin});
    ASSERT_TRUE(WaitFor(descriptors[kStdout].Get(), POLLIN));
    EXPECT_EQ(pwrite(descriptors[kJournalData].Get(), "data", 4, 0), 4);
    descriptors.clear();
    const pid_t job = MainOf(1);
    broker_.broker().Signal(number);
    EXPECT_EQ(broker_.broker().Wait(), number == SIGKILL ? 128 + SIGKILL : 0);
    EXPECT_TRUE(IsAlive(job));
    StartBroker();
    Reconnect();
    ASSERT_EQ(front_->held(), std::vector<JobKey>{Alice(1)});
    ASSERT_EQ(front_->descriptors(Alice(1)).size(), size_t{kStdin});
    char text[5] = {};
    EXPECT_EQ(pread(front_->descriptors(Alice(1))[kJournalData].Get(), text, 4, 0), 4);
    EXPECT_STREQ(text, "data");
    EXPECT_EQ(read(front_->descriptors(Alice(1))[kStdout].Get(), text, 4), 4);
    EXPECT_STREQ(text, "one\n");
    EXPECT_EQ(MainOf(1), job);
    front_->Send(Signal{Alice(1), SIGTERM});
    ASSERT_EQ(waitpid(job, nullptr, 0), job);
    if (KernelTellsEnds()) ExpectEnd(1, EndCause::kSignalled, SIGTERM);
    if (!KernelTellsEnds()) ExpectEnd(1, EndCause::kUnknown, 0);
  }
}

// `systemctl stop`: there would be nobody to stop them.
TEST_F(Stored, SigtermEndsTheJobs) {
  Reconnect();
  Begin(StartOf(1, {"sleep", "infinity"}));
  const pid_t job = MainOf(1);
  broker_.broker().Signal(SIGTERM);
  EXPECT_EQ(broker_.broker().Wait(), 0);
  EXPECT_FALSE(IsAlive(job));
  EXPECT_EQ(CgroupsBelow(broker_.cgroup()), std::set<std::string>{});
  StartBroker();  // as if systemd had not emptied the store
  Reconnect();
  EXPECT_TRUE(front_->held().empty());
}

TEST_F(Stored, TheReplayIsTheSame) {
  Reconnect();
  Start start = StartOf(1, {"sleep", "infinity"});
  start.limits[kPidsLimit] = 7;
  const Started started = Begin(start);
  for (int i = 0; i < 3; ++i) {
    Kill9();
    StartBroker();
    front_ = std::make_unique<FrontEnd>(broker_);
    front_->Send(Hello{});
    EXPECT_EQ(front_->Await<Welcome>().job_count, 1U);
    const Job job = front_->Await<Job>();
    EXPECT_EQ(job.key, started.key);
    EXPECT_EQ(job.limits, started.limits);
    EXPECT_EQ(job.missing, started.missing);
    EXPECT_EQ(job.started_us, started.started_us);
  }
  Reconnect();
}

TEST_F(Stored, ASignalMeanwhileIsExactOrUnknownAndNeverInvented) {
  Reconnect();
  const std::vector<int> signals{SIGTERM, SIGSEGV, SIGKILL};
  std::vector<pid_t> jobs;
  for (uint64_t id = 1; id <= 3; ++id) {
    Begin(StartOf(id, {"sleep", "infinity"}));
    jobs.push_back(MainOf(id));
  }
  Kill9();
  for (size_t i = 0; i < 3; ++i) kill(jobs[i], signals[i]);
  for (const pid_t job : jobs) EXPECT_EQ(waitpid(job, nullptr, 0), job);
  StartBroker();
  Reconnect();
  EXPECT_EQ(front_->held().size(), 3U);
  for (uint64_t id = 1; id <= 3; ++id) {
    if (KernelTellsEnds()) ExpectEnd(id, EndCause::kSignalled, signals[id - 1]);
    if (!KernelTellsEnds()) ExpectEnd(id, EndCause::kUnknown, 0);
    EXPECT_FALSE(fs::exists(Leaf(id)));
  }
}

TEST_F(Stored, AnExitCodeOfAMeanwhileIsExact) {
  if (!KernelTellsEnds()) GTEST_SKIP() << "this kernel has no PIDFD_INFO_EXIT";
  Reconnect();
  for (const int code : {0, 7, 255}) {
    std::vector<UniqueFd> output;
    Begin(StartOf(1, {"sh", "-c", "trap 'exit " + std::to_string(code) + "' TERM; sleep infinity & echo; wait"}),
          &output);
    ASSERT_TRUE(WaitFor(output.at(kStdout).Get(), POLLIN));
    const pid_t job = MainOf(1);
    Kill9();
    kill(job, SIGTERM);
    // With the broker there first, and with the reaper first.
    if (code == 7) {
      EXPECT_EQ(waitpid(job, nullptr, 0), job);
    }
    StartBroker();
    Reconnect();
    if (code != 7) {
      EXPECT_EQ(waitpid(job, nullptr, 0), job);
    }
    const auto exited = front_->Await<Exited>(Alice(1));
    EXPECT_EQ(exited.cause, EndCause::kExited);
    EXPECT_EQ(exited.value, code);
    EXPECT_EQ(exited.leftovers, 1U);
    ForgetJob(1);
    Restart();
  }
}

TEST_F(Stored, AnEndThatWasToldIsToldAgainTheSame) {
  Reconnect();
  Begin(StartOf(1, {"sh", "-c", "exit 9"}));
  const std::string told = Encode(front_->Await<Exited>(Alice(1)));
  systemd_->Drain();
  EXPECT_EQ(systemd_->Names(), std::vector<std::string>{"alice.1+"});
  for (int i = 0; i < 3; ++i) {
    Restart();
    EXPECT_EQ(front_->held(), std::vector<JobKey>{Alice(1)});
    EXPECT_EQ(Encode(front_->Await<Exited>(Alice(1))), told);
  }
  ForgetJob(1);
  Restart();
  EXPECT_TRUE(front_->held().empty());
}

TEST_F(Stored, AnEndThatIsKeptDoesNotCountAgainstAStart) {
  std::string users = ReadFile(broker_.directory() / "users");
  users.replace(users.find("jobs=max"), 8, "jobs=1");  // alice's
  broker_.WriteUsers(users);
  Restart();
  Begin(StartOf(1, {"true"}));
  (void)front_->Await<Exited>(Alice(1));
  Restart();
  Begin(StartOf(2, {"sleep", "infinity"}));
  front_->Send(StartOf(3, {"true"}));
  EXPECT_EQ(front_->Await<Failed>(Alice(3)).stage, Stage::kJobs);
  ForgetJob(1);
  front_->Send(StartOf(3, {"true"}));
  EXPECT_EQ(front_->Await<Failed>(Alice(3)).stage, Stage::kJobs);
}

// With any number of descriptors it either serves them or ends without having dropped one, and systemd starts another.
TEST_F(Stored, ABrokerThatHasNoRoomForItsJobsDoesNotLoseThem) {
  Reconnect();
  Begin(StartOf(1, {"sleep", "infinity"}));
  const pid_t job = MainOf(1);
  Kill9();
  std::set<std::string> said;
  for (rlim_t few = 4; few < 40; ++few) {
    systemd_->Prepare();
    const fs::path log = broker_.directory() / "starved";
    fs::remove(log);
    Process starved(
        {JOBBROKER, "--cgroup-root", broker_.cgroup(), "--users", broker_.directory() / "users",
         "--missing-controllers", "warn", "--socket", broker_.socket(), "--peer", std::to_string(kFrontEndUid)},
        log, -1, 0, [&] {
          systemd_->Give("");
          const rlimit files{few, few};
          setrlimit(RLIMIT_NOFILE, &files);
        });
    ASSERT_TRUE(WaitForText(log, "\n"));
    starved.Signal(SIGHUP);
    (void)starved.Wait();
    for (const char* what : {"RLIMIT_NOFILE is too low", "open cgroup 1", "waiting for a front end"}) {
      if (ReadFile(log).find(what) != std::string::npos) said.insert(what);
    }
    systemd_->Drain();
    ASSERT_EQ(systemd_->Names(), std::vector<std::string>{"alice.1"}) << few << ": " << ReadFile(log);
    ASSERT_TRUE(IsAlive(job)) << few << ": " << ReadFile(log);
  }
  EXPECT_EQ(said.size(), 3U);
  StartBroker();
  EXPECT_EQ(Reconnect().held(), std::vector<JobKey>{Alice(1)});
}

// As after a kill between the two.
TEST_F(Stored, AnEndTakesThePlaceOfAJobThatWasNotDropped) {
  Reconnect();
  Begin(StartOf(1, {"sleep", "infinity"}));
  systemd_->Drain();
  UniqueFd alive = systemd_->CopyOfFirst();
  front_->Send(Kill{Alice(1)});
  (void)front_->Await<Exited>(Alice(1));
  Kill9();
  systemd_->Drain();
  systemd_->store.emplace_back("alice.1", std::move(alive));
  StartBroker();
  Reconnect();
  EXPECT_EQ(front_->held(), std::vector<JobKey>{Alice(1)});
  systemd_->Drain();
  EXPECT_EQ(systemd_->Names(), std::vector<std::string>{"alice.1+"});
  ExpectEnd(1, EndCause::kSignalled, SIGKILL);
}

// Nobody has been told of it yet. Frozen, it would never end by itself.
TEST_F(Stored, AJobThatWasStillStartingNeverWas) {
  Reconnect();
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '1';
  front_->Send(StartOf(1, {"sleep", "infinity"}));
  front_->Send(Ping{});
  (void)front_->Await<Pong>();
  const pid_t job = MainOf(1);
  Kill9();
  StartBroker();
  EXPECT_EQ(waitpid(job, nullptr, 0), job);
  EXPECT_FALSE(fs::exists(Leaf(1)));
  std::ofstream(broker_.cgroup() / "alice" / "cgroup.freeze") << '0';
  Reconnect();
  EXPECT_TRUE(front_->held().empty());
  EXPECT_TRUE(front_->starting().empty());
  Begin(StartOf(1, {"sleep", "infinity"}));
}

TEST_F(Stored, WhatIsNotAJobIsClosedAndDropped) {
  Reconnect();
  Begin(StartOf(1, {"sleep", "infinity"}));
  Kill9();
  systemd_->Drain();
  ASSERT_EQ(systemd_->Names(), std::vector<std::string>{"alice.1"});
  const auto add = [&](const std::string& name, int fd) { systemd_->store.emplace_back(name, UniqueFd(fd)); };
  const auto parcel = [&](const std::string& text, size_t descriptors) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    FrontEnd sender{UniqueFd(ends[1])};
    EXPECT_EQ(sender.SendRaw(text, std::vector<int>(descriptors, 0)), 0);
    return ends[0];
  };
  const auto text = [&](uint64_t id, uint32_t version = kProtocolVersion) {
    Parcel one;
    one.job.key = one.exited.key = Alice(id);
    return Encode(one, version);
  };
  add("alice.2", systemd_->CopyOfFirst().Release());  // another's name
  add("stray", open("/dev/null", O_RDONLY | O_CLOEXEC));
  add("alice.3", parcel("junk", 6));
  add("alice.4", parcel(std::string(5000, 'x'), 6));
  add("alice.5", parcel("", 0));
  add("alice.6", parcel(text(6), kStdin));  // no pidfd
  add("alice.7", parcel(text(7), kStdin + 2));
  add("alice.8", parcel(text(8, kProtocolVersion + 1), kStdin + 1));
  const int credentials = parcel(text(9), 0), on = 1;  // which could be taken for descriptors
  EXPECT_EQ(setsockopt(credentials, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), 0);
  add("alice.9", credentials);
  add("alice.10", socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  add("", parcel("x", 7));
  StartBroker();
  Reconnect();
  // The uid 0 of the credentials is not a descriptor to close.
  const std::string broker_stdin = "/proc/" + std::to_string(broker_.broker().pid()) + "/fd/0";
  EXPECT_EQ(fs::read_symlink(broker_stdin), fs::read_symlink("/proc/self/fd/0"));
  EXPECT_EQ(front_->held(), std::vector<JobKey>{Alice(1)});
  systemd_->Drain();
  EXPECT_EQ(systemd_->Names(), std::vector<std::string>{"alice.1"});
  for (const char* name :
       {"alice.2", "stray", "alice.3", "alice.4", "alice.5", "alice.6", "alice.7", "alice.8", "alice.9", "alice.10"}) {
    EXPECT_NE(broker_.Log().find("a stray \"" + std::string(name) + "\""), std::string::npos) << name;
  }
}

TEST_F(Stored, WhatTheStoreDoesNotVouchForIsEnded) {
  Reconnect();
  for (uint64_t id = 1; id <= 2; ++id) Begin(StartOf(id, {"sleep", "infinity"}));
  const pid_t kept = MainOf(1), lost = MainOf(2);
  fs::create_directory(broker_.cgroup() / "alice" / "77");
  fs::create_directory(broker_.cgroup() / "dave");
  fs::create_directory(broker_.cgroup() / "dave" / "1");
  Kill9();
  systemd_->Drain();
  std::erase_if(systemd_->store, [](const auto& entry) { return entry.first == "alice.2"; });
  StartBroker();
  Reconnect();
  EXPECT_EQ(front_->held(), std::vector<JobKey>{Alice(1)});
  EXPECT_TRUE(IsAlive(kept));
  EXPECT_FALSE(IsAlive(lost));
  EXPECT_EQ(CgroupsBelow(broker_.cgroup()), (std::set<std::string>{"alice", "alice/1", "bob", "carl"}));
}

TEST_F(Stored, AJobWhoseCgroupIsGoneOrWhoseUserIsNoMoreIsDropped) {
  Reconnect();
  for (const char* user : {"alice", "bob"}) {
    front_->Send(Start{{user, 1}, {}, {"sleep", "infinity"}, {}});
    (void)front_->Await<Started>({user, 1});
  }
  const pid_t alices = MainOf(1), bobs = ProcessesIn(broker_.cgroup() / "bob" / "1").at(0);
  Kill9();
  kill(alices, SIGKILL);
  EXPECT_EQ(waitpid(alices, nullptr, 0), alices);
  while (!fs::remove(Leaf(1))) sched_yield();
  const std::string users = ReadFile(broker_.directory() / "users");
  std::string fewer;
  std::istringstream lines(users);
  for (std::string line; std::getline(lines, line);) fewer += line.starts_with("bob") ? "" : line + "\n";
  broker_.WriteUsers(fewer);
  StartBroker();
  Reconnect();
  EXPECT_TRUE(front_->held().empty());
  EXPECT_FALSE(IsAlive(bobs));
  Kill9();
  broker_.WriteUsers(users);
  StartBroker();
  Reconnect();
}

TEST_F(Stored, WithoutAStoreOfTheirOwnNamesAreNotTrusted) {
  Kill9();
  // LISTEN_PID is another's: the descriptors are somebody else's.
  StartBroker("", [] {
    setenv("LISTEN_PID", "1", 1);
    setenv("LISTEN_FDS", "100", 1);
  });
  Reconnect();
  EXPECT_TRUE(front_->held().empty());
}

// A program cannot be given more in one string of its environment, where the names of all that is stored come.
using ManyStored = Stored;

TEST_F(ManyStored, AStartBeyondWhatTheNextBrokerCanBeToldOfFails) {
  const std::string name(kMaxUserName, 'z'), users = ReadFile(broker_.directory() / "users");
  Kill9();
  broker_.WriteUsers(users + name + " uid=70110 gid=70110 jobs=max dir=" + broker_.work(name).string() + "\n");
  StartBroker();
  Reconnect();
  const auto key = [&](uint64_t number) { return JobKey{name, UINT64_MAX - number}; };
  const auto start = [&](uint64_t number) {
    front_->Send(Start{key(number), {}, {"true"}, {}});
    front_->AwaitOutcome(key(number));
  };
  constexpr uint64_t kStarts = 3000;
  for (uint64_t number = 0; number < kStarts; ++number) start(number);
  Restart();
  const uint64_t there = front_->held().size();
  EXPECT_GT(there, 2000U);
  EXPECT_LT(there, kStarts);
  front_->Send(Start{key(kStarts), {}, {"true"}, {}});
  EXPECT_EQ(front_->Await<Failed>(key(kStarts)).stage, Stage::kJobs);
  (void)front_->Await<Exited>(key(0));
  front_->Send(Forget{key(0)});
  front_->Send(Start{key(kStarts), {}, {"true"}, {}});
  (void)front_->Await<Started>(key(kStarts));
  Reconnect();
  for (const JobKey& held : front_->held()) {
    front_->Send(Forget{held});
    front_->Send(Ping{});
    (void)front_->Await<Pong>();
  }
  Kill9();
  broker_.WriteUsers(users);
  StartBroker();
}

// At the Nth call of every kind that a start, an end or a forget makes.
class StoredAndKilledAt : public Stored, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    if (access("/usr/bin/strace", X_OK) != 0) GTEST_SKIP() << "needs strace";
    Stored::SetUp();
  }
  // Starts the job, waits for its end and forgets it, as far as the broker lives. What it told of it.
  std::pair<bool, bool> Live(const Start& start) {
    bool started = false, exited = false;
    (void)front_->SendRaw(Encode(start));
    while (std::optional<Reply> reply = front_->Next()) {
      started |= std::holds_alternative<Started>(*reply);
      if (std::holds_alternative<Pong>(*reply)) break;
      if (!std::holds_alternative<Exited>(*reply)) continue;
      exited = true;
      (void)front_->SendRaw(Encode(Forget{start.key}));
      (void)front_->SendRaw(Encode(Ping{}));
    }
    return {started, exited};
  }
};

TEST_P(StoredAndKilledAt, ItLosesNoJobThatHasStarted) {
  const std::string call = GetParam();
  Reconnect();
  Begin(StartOf(1, {"sleep", "infinity"}));
  const pid_t kept = MainOf(1);
  int killed = 0;
  for (uint64_t when = 1; when <= 6; ++when) {
    const std::string inject = call + ":signal=KILL:when=" + std::to_string(when);
    const fs::path log = broker_.directory() / "strace";
    fs::remove(log);
    Process strace({"strace", "-o", "/dev/null", "-e", "trace=" + call, "-e", "inject=" + inject, "-p",
                    std::to_string(broker_.broker().pid())},
                   log);
    ASSERT_TRUE(WaitForText(log, "attached"));
    const Start start = StartOf(when + 1, {"true"});
    const auto [started, exited] = Live(start);
    strace.Signal(SIGINT);
    (void)strace.Wait();
    (void)front_->SendRaw(Encode(Ping{}));
    if (!front_->Next()) {
      ++killed;
      EXPECT_EQ(broker_.broker().Wait(), 128 + SIGKILL) << inject;
      StartBroker();
    }
    Reconnect();
    EXPECT_EQ(MainOf(1), kept) << inject;
    const std::vector<JobKey> held = front_->held();
    EXPECT_EQ(std::count(held.begin(), held.end(), Alice(1)), 1) << inject;
    const bool there = std::count(held.begin(), held.end(), start.key) == 1;
    EXPECT_TRUE(there || exited || !started) << inject;
    if (!there) continue;
    // It has ended by now, or ends by itself.
    for (const pid_t pid : ProcessesIn(Leaf(start.key.id))) waitpid(pid, nullptr, 0);
    Reap();
    const auto end = front_->Await<Exited>(start.key);
    EXPECT_EQ(end.cause, KernelTellsEnds() || exited ? EndCause::kExited : end.cause) << inject;
    EXPECT_EQ(end.value, 0) << inject;
    ForgetJob(start.key.id);
  }
  EXPECT_GT(killed, 0);
}

INSTANTIATE_TEST_SUITE_P(All, StoredAndKilledAt,
                         testing::Values("sendmsg", "recvmsg", "clone3", "mkdirat", "epoll_ctl", "epoll_wait", "close",
                                         "openat", "read", "unlinkat", "waitid", "pipe2", "memfd_create", "socketpair"),
                         [](const auto& call) { return std::string(call.param); });

TEST_F(Stored, KilledAHundredTimesAtRandomItLosesNoJob) {
  std::mt19937 random(9);
  Reconnect();
  std::map<uint64_t, pid_t> running;
  uint64_t id = 0;
  for (int round = 0; round < 100; ++round) {
    const uint64_t first = id + 1;
    const uint64_t starts = random() % 8;
    for (uint64_t i = 0; i < starts; ++i) front_->Send(StartOf(++id, {"sleep", "infinity"}));
    if (running.size() > 20) {
      front_->Send(Kill{Alice(running.begin()->first)});
      running.erase(running.begin());
    }
    for (uint64_t replies = random() % (starts + 1); replies > 0; --replies) {
      const std::optional<Reply> reply = front_->Next();
      ASSERT_TRUE(reply);
      if (const auto* started = std::get_if<Started>(&*reply)) running[started->key.id] = MainOf(started->key.id);
    }
    for (uint64_t i = random() % 30; i > 0; --i) sched_yield();
    Kill9();
    StartBroker();
    Reconnect();
    for (const auto& [each, pid] : running) {
      EXPECT_EQ(MainOf(each), pid) << each;
      EXPECT_EQ(std::count(front_->held().begin(), front_->held().end(), Alice(each)), 1) << each;
    }
    Reap();
    for (const JobKey& key : front_->held()) {
      if (key.id >= first) running[key.id] = MainOf(key.id);
    }
  }
}

}  // namespace
}  // namespace jobworker
