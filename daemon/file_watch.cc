#include "daemon/file_watch.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "daemon/because.h"

namespace jobworker {

namespace {

constexpr uint32_t kNames = IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE;
constexpr uint32_t kDirectory = kNames | IN_CLOSE_WRITE | IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF | IN_ONLYDIR;

std::string WithoutSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

DirectoryWatch::DirectoryWatch(EventLoop& loop, std::string directory, EventLoop::Work changed)
    : loop_(loop),
      directory_(WithoutSlashes(std::move(directory))),
      parent_(ParentOf(directory_)),
      name_(directory_.substr(directory_.rfind('/') + 1)),
      changed_(std::move(changed)) {}

DirectoryWatch::~DirectoryWatch() {
  if (settles_) loop_.Cancel(*settles_);
  if (inotify_.IsOpen()) loop_.Unwatch(inotify_.Get());
}

tl::expected<void, std::string> DirectoryWatch::Begin() {
  const auto failed = [&] { return Because(fmt::format("{}: {}", directory_, strerror(errno))); };
  if (!inotify_.IsOpen()) {
    inotify_ = UniqueFd(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    if (!inotify_.IsOpen() || !loop_.Watch(inotify_.Get(), EPOLLIN, [this] { Read(); })) return failed();
    // It may be closed to this user; then a directory that takes the other's name is seen when that one is moved away.
    parent_watch_ = inotify_add_watch(inotify_.Get(), parent_.c_str(), kNames | IN_ONLYDIR);
  }
  const int watch = inotify_add_watch(inotify_.Get(), directory_.c_str(), kDirectory);
  if (watch < 0) return failed();
  if (directory_watch_ >= 0 && directory_watch_ != watch) {
    (void)inotify_rm_watch(inotify_.Get(), directory_watch_);  // fails when that directory is gone
  }
  directory_watch_ = watch;
  return {};
}

bool DirectoryWatch::IsOurs(int watch, const char* name) const {
  return watch == -1 || watch == directory_watch_ || (watch == parent_watch_ && name_ == name);
}

void DirectoryWatch::Read() {
  alignas(inotify_event) char buffer[16 * 1024];
  bool ours = false;
  for (ssize_t size = 0; (size = read(inotify_.Get(), buffer, sizeof(buffer))) > 0;) {
    for (const char* at = buffer; at < buffer + size;) {
      const auto* event = reinterpret_cast<const inotify_event*>(at);
      // The kernel says IN_IGNORED after each watch that it, or Begin, has ended; -1 is its queue's overflow.
      ours = ours || ((event->mask & IN_IGNORED) == 0 && IsOurs(event->wd, event->len > 0 ? event->name : ""));
      at += sizeof(inotify_event) + event->len;
    }
  }
  if (!ours || settles_) return;
  settles_ = loop_.At(EventLoop::Clock::now() + kSettles, [this] {
    settles_ = std::nullopt;
    (void)Begin();
    changed_();
  });
}

}  // namespace jobworker
