// The other end of a BrokerClient's socket, in the hands of a test.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <tuple>

#include "common/broker_protocol.h"
#include "common/message_socket.h"

namespace jobworker {

class FakeBroker {
 public:
  FakeBroker() { std::tie(socket_, client_end_) = MessageSocketPair(); }
  UniqueFd TakeClientEnd() { return std::move(client_end_); }

  // The next request, which must be a T.
  template <class T>
  T Next() {
    pollfd ready{socket_.Get(), POLLIN, 0};
    if (poll(&ready, 1, 10'000) != 1) ADD_FAILURE() << "no request came";
    std::string buffer(kMaxMessageBytes, '\0');
    std::string_view message;
    EXPECT_EQ(ReceiveMessage(socket_.Get(), buffer, message), Receive::kMessage);
    const auto request = Decode<Request>(message);
    if (!request || !std::holds_alternative<T>(*request)) {
      ADD_FAILURE() << "another request than the expected one";
      return {};
    }
    return std::get<T>(*request);
  }
  [[nodiscard]] bool NothingSent() const {
    pollfd ready{socket_.Get(), POLLIN, 0};
    return poll(&ready, 1, 0) == 0;
  }

  template <class T>
  void Send(const T& reply, const std::vector<int>& descriptors = {}) {
    SendRaw(Encode(reply), descriptors);
  }
  void SendRaw(std::string_view message, const std::vector<int>& descriptors = {}) {
    EXPECT_EQ(SendMessage(socket_.Get(), message, descriptors), 0);
  }
  void Hang() { socket_.Reset(); }

 private:
  UniqueFd socket_, client_end_;
};

// A pipe as the broker makes them: what is read from it does not wait.
struct TestPipe {
  TestPipe() {
    int ends[2] = {-1, -1};
    if (pipe2(ends, O_CLOEXEC) != 0 || fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) abort();
    read.Reset(ends[0]);
    write.Reset(ends[1]);
  }
  // Whoever reads may have made the pipe small, and nobody reads before this returns.
  void Put(std::string_view bytes) const {
    const int size = static_cast<int>(bytes.size());
    const int room = std::max(fcntl(write.Get(), F_GETPIPE_SZ), size);
    EXPECT_GE(fcntl(write.Get(), F_SETPIPE_SZ, room), size);
    EXPECT_EQ(::write(write.Get(), bytes.data(), bytes.size()), size);
  }
  UniqueFd read, write;
};

}  // namespace jobworker
