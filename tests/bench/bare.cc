// The peers of the bench: the same work done by the kernel alone, without Job Worker.
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <deque>
#include <string>

#include "common/unique_fd.h"
#include "tests/bench/figures.h"

namespace jobworker::bench {
namespace {

constexpr const char* kUsage =
    "bare spawn PROGRAM COUNT            milliseconds of each posix_spawn and wait\n"
    "bare births PROGRAM COUNT AT_ONCE CGROUP   per second: mkdir, clone3 into it, pipes, exec, wait, rmdir\n"
    "bare kill PROCESSES CGROUP          milliseconds from cgroup.kill to the proof that it is empty\n"
    "bare crowd PROCESSES                makes them, says so, and stays\n"
    "bare ticks COUNT                    writes the time, every 5 ms\n"
    "bare delays                         reads what ticks writes: milliseconds from each write to here\n"
    "bare waits FIFO COMMAND...          executes it once somebody has written to FIFO\n";

void Spawn(char* program, int count) {
  for (int i = 0; i < count; ++i) {
    const auto begin = Clock::now();
    char* argv[] = {program, nullptr};
    pid_t pid = -1;
    errno = posix_spawn(&pid, program, nullptr, nullptr, argv, environ);
    Require(errno == 0 && waitpid(pid, nullptr, 0) == pid, "posix_spawn");
    Print(MillisecondsSince(begin));
  }
}

struct Born {
  std::string directory;
  pid_t pid = -1;
  UniqueFd out, err;
};

pid_t CloneInto(int cgroup) {
  clone_args arguments{};
  arguments.flags = CLONE_INTO_CGROUP;
  arguments.exit_signal = SIGCHLD;
  arguments.cgroup = static_cast<unsigned>(cgroup);
  return static_cast<pid_t>(syscall(SYS_clone3, &arguments, sizeof(arguments)));
}

Born Bear(char* program, std::string directory) {
  int out[2], err[2];
  Require(mkdir(directory.c_str(), 0755) == 0, "mkdir");
  const UniqueFd cgroup(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  Require(cgroup.IsOpen() && pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0, "open or pipe2");
  const UniqueFd write_out(out[1]), write_err(err[1]);
  const pid_t pid = CloneInto(cgroup.Get());
  Require(pid >= 0, "clone3");
  if (pid == 0) {
    char* argv[] = {program, nullptr};
    (void)dup2(out[1], 1);
    (void)dup2(err[1], 2);
    (void)execve(program, argv, environ);
    _exit(127);
  }
  return {std::move(directory), pid, UniqueFd(out[0]), UniqueFd(err[0])};
}

void Bury(const Born& born) {
  char byte;
  for (const UniqueFd* pipe : {&born.out, &born.err}) Require(read(pipe->Get(), &byte, 1) == 0, "read");
  Require(waitpid(born.pid, nullptr, 0) == born.pid, "waitpid");
  Require(rmdir(born.directory.c_str()) == 0, "rmdir");
}

void Births(char* program, int count, size_t at_once, const std::string& cgroup) {
  Require(mkdir(cgroup.c_str(), 0755) == 0, "mkdir");
  std::deque<Born> alive;
  const auto begin = Clock::now();
  for (int i = 0; i < count; ++i) {
    if (alive.size() == at_once) {
      Bury(alive.front());
      alive.pop_front();
    }
    alive.push_back(Bear(program, cgroup + "/" + std::to_string(i)));
  }
  for (const Born& born : alive) Bury(born);
  Print(count / MillisecondsSince(begin) * 1000);
  (void)rmdir(cgroup.c_str());
}

void Crowd(int processes) {
  for (int i = 0; i < processes; ++i) {
    const pid_t pid = fork();
    Require(pid >= 0, "fork");
    if (pid == 0) pause();
  }
}

bool IsEmpty(int events) {
  char text[256];
  const ssize_t size = pread(events, text, sizeof(text) - 1, 0);
  Require(size > 0, "cgroup.events");
  return std::string_view(text, static_cast<size_t>(size)).find("populated 0") != std::string_view::npos;
}

void Kill(int processes, const std::string& directory) {
  Require(mkdir(directory.c_str(), 0755) == 0, "mkdir");
  const UniqueFd cgroup(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  int ready[2];
  Require(pipe2(ready, O_CLOEXEC) == 0, "pipe2");
  const pid_t pid = CloneInto(cgroup.Get());
  Require(pid >= 0, "clone3");
  if (pid == 0) {
    Crowd(processes - 1);
    Require(write(ready[1], "+", 1) == 1, "write");
    pause();
  }
  char byte;
  Require(read(ready[0], &byte, 1) == 1, "read");
  const UniqueFd events(openat(cgroup.Get(), "cgroup.events", O_RDONLY | O_CLOEXEC));
  const auto begin = Clock::now();
  const UniqueFd kill(openat(cgroup.Get(), "cgroup.kill", O_WRONLY | O_CLOEXEC));
  Require(write(kill.Get(), "1", 1) == 1, "cgroup.kill");
  while (!IsEmpty(events.Get())) {
    pollfd changed{events.Get(), POLLPRI, 0};
    (void)poll(&changed, 1, -1);
  }
  Require(waitpid(pid, nullptr, 0) == pid && rmdir(directory.c_str()) == 0, "rmdir");
  Print(MillisecondsSince(begin));
}

void Ticks(int count) {
  constexpr timespec kPause{0, 5'000'000};
  for (int i = 0; i < count; ++i) {
    (void)nanosleep(&kPause, nullptr);
    const Clock::time_point now = Clock::now();
    Require(write(1, &now, sizeof(now)) == sizeof(now), "write");
  }
}

void Delays() {
  Clock::time_point then;
  while (read(0, &then, sizeof(then)) == sizeof(then)) Print(MillisecondsSince(then));
}

void Waits(const char* fifo, char** command) {
  char byte;
  const UniqueFd release(open(fifo, O_RDONLY | O_CLOEXEC));
  Require(read(release.Get(), &byte, 1) == 1, fifo);
  (void)execvp(command[0], command);
  Require(false, command[0]);
}

int Main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  if (verb == "spawn" && argc == 4) {
    Spawn(argv[2], atoi(argv[3]));
  } else if (verb == "births" && argc == 6) {
    Births(argv[2], atoi(argv[3]), static_cast<size_t>(atoi(argv[4])), argv[5]);
  } else if (verb == "kill" && argc == 4) {
    Kill(atoi(argv[2]), argv[3]);
  } else if (verb == "crowd" && argc == 3) {
    Crowd(atoi(argv[2]) - 1);
    Require(write(1, "+", 1) == 1, "write");
    pause();
  } else if (verb == "ticks" && argc == 3) {
    Ticks(atoi(argv[2]));
  } else if (verb == "delays" && argc == 2) {
    Delays();
  } else if (verb == "waits" && argc > 3) {
    Waits(argv[2], argv + 3);
  } else {
    (void)fputs(kUsage, stderr);
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace jobworker::bench

int main(int argc, char** argv) { return jobworker::bench::Main(argc, argv); }
