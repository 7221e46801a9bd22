#include "daemon/broker_link.h"

#include <sys/epoll.h>

#include <algorithm>

#include "daemon/log.h"

namespace jobworker {

namespace {

constexpr std::chrono::milliseconds kFirstPause{50}, kLongestPause{2000};
constexpr std::chrono::seconds kHandOverWithin{5};
constexpr std::chrono::seconds kLookForRoomEvery{1};

}  // namespace

tl::expected<void, std::string> BrokerLink::Use(UniqueFd socket) {
  client_ = std::make_unique<BrokerClient>(loop_, std::move(socket), jobs_);
  jobs_.Use(*client_, [this](const std::string& why) { Gone(why); });
  const auto welcome = client_->Greet();
  const bool attached = welcome && client_->Attach();
  if (!attached) {
    jobs_.Lose();
    client_.reset();
    return tl::unexpected(welcome ? "epoll_ctl failed" : welcome.error());
  }
  jobs_.Reconcile(welcome->missing);
  asked_ = false;
  return {};
}

void BrokerLink::Meet(std::string path) {
  path_ = std::move(path);
  Try();
}

void BrokerLink::Try() {
  auto visitor = BrokerClient::Visit(path_);
  if (!visitor) return Failed(visitor.error());
  visitor_ = std::move(*visitor);
  if (!loop_.Watch(visitor_.Get(), EPOLLIN, [this] { Met(); })) return Failed("epoll_ctl failed");
  patience_ = loop_.At(EventLoop::Clock::now() + kHandOverWithin, [this] { Failed("it does not answer"); });
}

void BrokerLink::Met() {
  loop_.Cancel(patience_);
  auto socket = BrokerClient::TakeHandOver(visitor_.Get());
  loop_.Unwatch(visitor_.Get());
  visitor_.Reset();
  const auto used = socket ? Use(std::move(*socket)) : tl::unexpected(socket.error());
  if (!used) return Failed(used.error());
  Log("broker met", {{"socket", path_}});
  pause_ = {};
  reason_.clear();
  LookForRoom();
  if (!std::exchange(tried_, true)) hooks_.tried();
}

// Nobody tells when a descriptor becomes free, or another front end ends. Never at once: what failed for another reason
// would fail again.
void BrokerLink::LookForRoom() {
  loop_.Cancel(room_);
  if (!jobs_.lacks_output()) return;
  room_ = loop_.At(EventLoop::Clock::now() + kLookForRoomEvery, [this] {
    if (client_ == nullptr || !client_->connected()) return;
    const bool room = !jobs_.IsStarting() && jobs_.LackedIsFree() && BrokerClient::HasRoom();
    room ? client_->Drop("it is to give again what could not be had") : LookForRoom();
  });
}

void BrokerLink::Failed(const std::string& why) {
  if (visitor_.IsOpen()) loop_.Unwatch(visitor_.Get());
  visitor_.Reset();
  if (why != std::exchange(reason_, why)) {
    Log("broker away", {{"socket", path_}, {"reason", why}, {"next", "it is tried again until it is there"}});
  }
  pause_ = std::clamp(pause_ * 2, kFirstPause, kLongestPause);
  loop_.At(EventLoop::Clock::now() + pause_, [this] { Try(); });
  if (!std::exchange(tried_, true)) hooks_.tried();
}

void BrokerLink::Gone(const std::string& why) {
  Log("broker gone", {{"reason", why}});
  if (path_.empty()) return hooks_.lost(why);
  jobs_.Lose();
  // Not now: it is the client that tells this.
  loop_.Post([this] {
    client_.reset();
    Try();
  });
}

void BrokerLink::Watch(std::chrono::microseconds interval) {
  interval_ = interval;
  Look();
}

void BrokerLink::Look() {
  if (client_ != nullptr && client_->connected()) {
    if (asked_ && !client_->TakePong() && client_->connected()) client_->Drop("it does not answer");
    client_->PingBroker();
    asked_ = true;
  }
  hooks_.well();
  loop_.At(EventLoop::Clock::now() + interval_, [this] { Look(); });
}

}  // namespace jobworker
