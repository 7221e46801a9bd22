#include "cmd/cli_input.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <thread>
#include <utility>

#include "cmd/cli_retry.h"
#include "cmd/cli_text.h"

namespace jobworker {
namespace {

constexpr size_t kChunk = 64 * 1024;

class InputSender {
 public:
  InputSender(Session& session, std::string id, int fd) : session_(session), id_(std::move(id)), fd_(fd) {}
  void Run();

 private:
  using Call = grpc::ClientReaderWriter<InputChunk, InputResult>;
  grpc::Status SendAll(Worker::Stub& stub, grpc::ClientContext& context);
  bool ReadMore();
  bool WriteNext(Call& call);
  bool ReadResult(Call& call);
  void Finished(const grpc::Status& status) const;

  Session& session_;
  const std::string id_;
  const int fd_;
  InputWindow window_;
  uint64_t sent_ = 0;
  bool eof_read_ = false;
  bool eof_sent_ = false;
  InputState state_ = INPUT_OPEN;
};

// False at the end of our input; an error of it is taken for the end too.
bool InputSender::ReadMore() {
  char buffer[kChunk];
  for (;;) {
    const ssize_t size = read(fd_, buffer, sizeof buffer);
    if (size > 0) window_.Append({buffer, static_cast<size_t>(size)});
    if (size >= 0) return size > 0;
    if (errno == EAGAIN) {
      pollfd ready{fd_, POLLIN, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return false;
    }
  }
}

// What is held and was not sent yet, or the end.
bool InputSender::WriteNext(Call& call) {
  InputChunk chunk;
  chunk.set_offset(sent_);
  chunk.set_data(std::string(window_.From(sent_, kChunk)));
  sent_ += chunk.data().size();
  eof_sent_ = eof_read_ && sent_ == window_.End();
  chunk.set_eof(eof_sent_);
  return call.Write(chunk);
}

bool InputSender::ReadResult(Call& call) {
  InputResult result;
  if (!call.Read(&result)) return false;
  state_ = result.state();
  return window_.Confirm(result.taken());
}

grpc::Status InputSender::SendAll(Worker::Stub& stub, grpc::ClientContext& context) {
  const auto call = stub.JobInput(&context);
  // Asks where to go on; what was sent on an earlier connection may have arrived or not.
  InputChunk first;
  first.set_pid(id_);
  first.set_offset(window_.Begin());
  eof_sent_ = false;
  bool works = call->Write(first) && ReadResult(*call);
  sent_ = window_.Begin();
  while (works && state_ == INPUT_OPEN && !eof_sent_) {
    if (sent_ == window_.End() && !eof_read_ && !window_.Full()) eof_read_ = !ReadMore();
    const bool wait = window_.Full() && sent_ == window_.End() && !eof_read_;
    works = wait ? ReadResult(*call) : WriteNext(*call);
  }
  if (works) call->WritesDone();
  while (ReadResult(*call)) continue;
  return call->Finish();
}

void InputSender::Finished(const grpc::Status& status) const {
  if (!status.ok()) Say(fmt::format("no more input for job {}: {}", id_, session_.Explain(status)));
}

void InputSender::Run() {
  Backoff backoff;
  for (;;) {
    grpc::Status status(grpc::StatusCode::UNAVAILABLE, "");
    // The connection is the main thread's to make; nothing is said here about one that is lost.
    if (const auto channel = session_.CurrentChannel()) {
      const auto stub = Worker::NewStub(channel);
      grpc::ClientContext context;
      status = SendAll(*stub, context);
    }
    const bool again = state_ == INPUT_OPEN && WorthARetry(status.error_code(), {.reached = true, .lost = true});
    if (!again) return Finished(status);
    poll(nullptr, 0, static_cast<int>(backoff.Next(Backoff::Clock::now()).count()));
  }
}

}  // namespace

bool InputWindow::Confirm(uint64_t position) {
  if (position > End()) return false;
  if (position <= begin_) return true;
  held_.erase(0, static_cast<size_t>(position - begin_));
  begin_ = position;
  return true;
}

std::string_view InputWindow::From(uint64_t position, size_t size) const {
  return std::string_view(held_).substr(static_cast<size_t>(position - begin_), size);
}

void SendInput(Session& session, const std::string& id, int fd) {
  std::thread([sender = std::make_shared<InputSender>(session, id, fd)] { sender->Run(); }).detach();
}

}  // namespace jobworker
