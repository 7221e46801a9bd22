// The job of the tests that look for a lost byte: what is at position N of a stream is known, so every byte can be
// checked. The 64-bit little-endian word number I of stream S (0 stdout, 1 stderr) is TAG << 48 | S << 47 | I.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr const char* kUsage =
    "torture_job TAG OUT ERR CHUNK END [HELD RELEASE]\n"
    "  writes OUT bytes to stdout and ERR to stderr by turns, each time from 1 to CHUNK bytes, as fast as it can;\n"
    "  then exits with END, or if END is negative kills itself with the signal -END.\n"
    "  HELD is opened for writing until the end; a byte is read from RELEASE before anything is written.\n";

struct Output {
  int fd;
  uint64_t base, left;
  uint64_t at = 0;
};

void Die(const char* what) {
  perror(what);
  _exit(124);
}

void Write(Output& output, std::vector<uint64_t>& words, uint64_t size) {
  const uint64_t first = output.at / sizeof(uint64_t), skipped = output.at % sizeof(uint64_t);
  const uint64_t count = (skipped + size + sizeof(uint64_t) - 1) / sizeof(uint64_t);
  for (uint64_t i = 0; i < count; ++i) words[i] = output.base | (first + i);
  const char* bytes = reinterpret_cast<const char*>(words.data()) + skipped;
  output.at += size;
  output.left -= size;
  while (size > 0) {
    const ssize_t written = write(output.fd, bytes, size);
    if (written < 0) Die("write");
    bytes += written;
    size -= static_cast<uint64_t>(written);
  }
}

int End(int end) {
  if (end >= 0) return end;
  (void)kill(getpid(), -end);
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6 && argc != 8) return (void)fputs(kUsage, stderr), 124;
  const uint64_t tag = strtoull(argv[1], nullptr, 10), chunk = strtoull(argv[4], nullptr, 10);
  std::array<Output, 2> outputs{{{1, tag << 48, strtoull(argv[2], nullptr, 10)},
                                 {2, tag << 48 | uint64_t{1} << 47, strtoull(argv[3], nullptr, 10)}}};
  if (argc == 8) {
    if (open(argv[6], O_WRONLY) < 0) Die(argv[6]);
    const int release = open(argv[7], O_RDONLY);
    char byte;
    if (release < 0 || read(release, &byte, 1) != 1) Die(argv[7]);
  }
  std::vector<uint64_t> words(chunk / sizeof(uint64_t) + 2);
  uint64_t random = tag;
  while (outputs[0].left + outputs[1].left > 0) {
    for (Output& output : outputs) {
      random = random * 6364136223846793005U + 1442695040888963407U;
      if (output.left > 0) Write(output, words, std::min(output.left, 1 + (random >> 33) % chunk));
    }
  }
  return End(atoi(argv[5]));
}
