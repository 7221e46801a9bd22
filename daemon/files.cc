#include "daemon/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "common/unique_fd.h"
#include "daemon/because.h"

namespace jobworker {

namespace {

constexpr off_t kMaxFile = 1 << 20;

tl::expected<void, std::string> Check(const std::string& path, const struct stat& info, FileRule rule) {
  if (!S_ISREG(info.st_mode) || info.st_size > kMaxFile) {
    return Because(fmt::format("{} is not a regular file of at most 1 MiB", path));
  }
  if (rule == FileRule::kNobodyElseReads && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return Because(fmt::format("{} is a private key that others can read; run: chmod 600 {}", path, path));
  }
  if (rule != FileRule::kNobodyElseWrites) return {};
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Because(fmt::format("{} can be written by others; run: chmod go-w {}", path, path));
  }
  if (info.st_uid != 0 && info.st_uid != geteuid()) {
    return Because(fmt::format("{} belongs to uid {}; run: chown root {}", path, info.st_uid, path));
  }
  return {};
}

}  // namespace

tl::expected<std::string, std::string> ReadFile(const std::string& path, FileRule rule) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  struct stat info {};
  if (!file.IsOpen() || fstat(file.Get(), &info) != 0) {
    return Because(fmt::format("cannot read {}: {}", path, strerror(errno)));
  }
  if (const auto checked = Check(path, info, rule); !checked) return Because(checked.error());
  std::string text(static_cast<size_t>(info.st_size), '\0');
  const ssize_t size = read(file.Get(), text.data(), text.size());
  if (size < 0) return Because(fmt::format("cannot read {}: {}", path, strerror(errno)));
  text.resize(static_cast<size_t>(size));
  return text;
}

}  // namespace jobworker
