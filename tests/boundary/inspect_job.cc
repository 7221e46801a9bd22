// Run as a job: prints what it was given, one KEY=VALUE a line, environment variables as "env NAME=VALUE".
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

void Print(const std::string& key, const std::string& value) { std::printf("%s=%s\n", key.c_str(), value.c_str()); }

void PrintLink(const char* key, const char* path) {
  char target[4096] = {};
  Print(key, readlink(path, target, sizeof(target) - 1) < 0 ? strerror(errno) : target);
}

void PrintDescriptors() {
  std::vector<int> numbers;
  DIR* const directory = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(directory)) numbers.push_back(atoi(entry->d_name));
  }
  closedir(directory);
  std::sort(numbers.begin(), numbers.end());
  std::string text;
  for (const int number : numbers) text += (text.empty() ? "" : " ") + std::to_string(number);
  Print("descriptors", text);
}

// The words of the lines of /proc/self/status that say who this is and what it may do.
void PrintStatus() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    const std::string name = line.substr(0, line.find(':'));
    for (const char* wanted : {"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
                               "Seccomp", "SigBlk", "SigIgn", "Umask"}) {
      if (name != wanted) continue;
      std::string value = line.substr(name.size() + 1);
      std::replace(value.begin(), value.end(), '\t', ' ');
      value.erase(0, value.find_first_not_of(' '));
      value.erase(value.find_last_not_of(' ') + 1);
      Print(name, value);
    }
  }
}

void PrintLimit(const char* key, int resource) {
  rlimit limit{};
  getrlimit(static_cast<__rlimit_resource>(resource), &limit);
  Print(key, std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max));
}

std::string FirstLine(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string UnifiedCgroup() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("0::")) return line.substr(3);
  }
  return "none";
}

}  // namespace

int main(int, char**, char** environment) {
  PrintDescriptors();
  PrintStatus();
  PrintLink("stdin", "/proc/self/fd/0");
  PrintLink("directory", "/proc/self/cwd");
  PrintLimit("core", RLIMIT_CORE);
  PrintLimit("files", RLIMIT_NOFILE);
  PrintLimit("processes", RLIMIT_NPROC);
  Print("oom", FirstLine("/proc/self/oom_score_adj"));
  Print("cgroup", UnifiedCgroup());
  Print("leads", getsid(0) == getpid() && getpgrp() == getpid() ? "session and group" : "nothing");
  Print("tty", open("/dev/tty", O_RDWR) < 0 ? strerror(errno) : "there is one");
  for (char** variable = environment; *variable != nullptr; ++variable) std::printf("env %s\n", *variable);
  return 0;
}
