// Tells when something in a directory has changed.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <tl/expected.hpp>

#include "common/unique_fd.h"
#include "daemon/event_loop.h"

namespace jobworker {

// Files that are written, renamed or linked, whose mode changes, and the directory itself when another one, or a link
// to another one, takes its name. Not what happens to the target of a link that leads out of it. On the loop's thread.
class DirectoryWatch {
 public:
  // Whoever changes one file is likely to change others: `changed` is called once for all that comes within this time.
  static constexpr std::chrono::milliseconds kSettles{250};

  DirectoryWatch(EventLoop& loop, std::string directory, EventLoop::Work changed);
  ~DirectoryWatch();
  DirectoryWatch(const DirectoryWatch&) = delete;

  // Watches what has the directory's name now. The error says why it cannot.
  tl::expected<void, std::string> Begin();

 private:
  void Read();
  bool IsOurs(int watch, const char* name) const;

  EventLoop& loop_;
  const std::string directory_, parent_, name_;
  const EventLoop::Work changed_;
  UniqueFd inotify_;
  int directory_watch_ = -1, parent_watch_ = -1;
  std::optional<EventLoop::Timer> settles_;
};

}  // namespace jobworker
