#include "common/message_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <filesystem>

#include "common/broker_protocol.h"
#include "tests/unit/try.h"

namespace jobworker {
namespace {

size_t OpenDescriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

class MessageSocket : public testing::Test {
 protected:
  void SetUp() override {
    auto pair = Try(MessageSocketPair);
    ASSERT_TRUE(pair.has_value());
    a_ = std::move(pair.value().first);
    b_ = std::move(pair.value().second);
  }
  Receive ReceiveAtB() { return ReceiveMessage(b_.Get(), buffer_, message_); }

  UniqueFd a_, b_;
  std::string buffer_ = std::string(kMaxMessageBytes, '\0');
  std::string_view message_;
};

TEST_F(MessageSocket, ClosesOnExec) {
  EXPECT_EQ(fcntl(a_.Get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(fcntl(b_.Get(), F_GETFD), FD_CLOEXEC);
}

TEST_F(MessageSocket, KeepsTheBordersOfMessages) {
  EXPECT_EQ(ReceiveAtB(), Receive::kNothingYet);
  ASSERT_TRUE(SendMessage(a_.Get(), "one") == 0);
  ASSERT_TRUE(SendMessage(a_.Get(), std::string_view("\0two", 4)) == 0);
  ASSERT_EQ(ReceiveAtB(), Receive::kMessage);
  EXPECT_EQ(message_, "one");
  ASSERT_EQ(ReceiveAtB(), Receive::kMessage);
  EXPECT_EQ(message_, std::string_view("\0two", 4));
  EXPECT_EQ(ReceiveAtB(), Receive::kNothingYet);
}

TEST_F(MessageSocket, TheLargestMessagePassesAndOneByteMoreIsAViolation) {
  ASSERT_TRUE(SendMessage(a_.Get(), std::string(kMaxMessageBytes, 'x')) == 0);
  ASSERT_EQ(ReceiveAtB(), Receive::kMessage);
  EXPECT_EQ(message_.size(), kMaxMessageBytes);
  ASSERT_TRUE(SendMessage(a_.Get(), std::string(kMaxMessageBytes + 1, 'x')) == 0);
  EXPECT_EQ(ReceiveAtB(), Receive::kViolation);
}

TEST_F(MessageSocket, AnEmptyDatagramAndAClosedPeerAreClosed) {
  ASSERT_EQ(send(a_.Get(), "", 0, 0), 0);
  EXPECT_EQ(ReceiveAtB(), Receive::kClosed);
  ASSERT_TRUE(SendMessage(a_.Get(), "last") == 0);
  a_.Reset();
  EXPECT_EQ(ReceiveAtB(), Receive::kMessage);
  EXPECT_EQ(ReceiveAtB(), Receive::kClosed);
}

TEST_F(MessageSocket, SendingToAClosedPeerIsAnErrorAndNoSignal) {
  b_.Reset();
  const int sent = SendMessage(a_.Get(), "x");
  ASSERT_NE(sent, 0);
  EXPECT_EQ(sent, EPIPE);
}

TEST_F(MessageSocket, SendingToAPeerThatDoesNotReadDoesNotBlock) {
  int sent = 0;
  while (sent == 0) sent = SendMessage(a_.Get(), std::string(1000, 'x'));
  EXPECT_EQ(sent, EAGAIN);
}

TEST_F(MessageSocket, DescriptorsAreAViolationAndAreNotInstalled) {
  const size_t before = OpenDescriptors();
  for (const std::initializer_list<int>& descriptors : {std::initializer_list<int>{0}, {0, 1}}) {
    ASSERT_TRUE(SendMessage(a_.Get(), "x", std::span(descriptors.begin(), descriptors.size())) == 0);
    EXPECT_EQ(ReceiveAtB(), Receive::kViolation);
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(MessageSocket, DescriptorsArriveInOrder) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  ASSERT_TRUE(SendMessage(a_.Get(), "x", std::array{read_end.Get(), write_end.Get()}) == 0);
  char body[2];
  iovec part{body, sizeof(body)};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ASSERT_EQ(recvmsg(b_.Get(), &header, MSG_CMSG_CLOEXEC), 1);
  const cmsghdr* rights = CMSG_FIRSTHDR(&header);
  ASSERT_NE(rights, nullptr);
  ASSERT_EQ(rights->cmsg_len, CMSG_LEN(2 * sizeof(int)));
  std::array<int, 2> got{};
  std::memcpy(got.data(), CMSG_DATA(rights), sizeof(got));
  const UniqueFd got_read(got[0]), got_write(got[1]);
  EXPECT_EQ(write(got_write.Get(), "y", 1), 1);
  EXPECT_EQ(read(got_read.Get(), body, 1), 1);
  EXPECT_EQ(body[0], 'y');
}

TEST_F(MessageSocket, AsManyDescriptorsAsAJobHasPassAndOneMoreIsRefused) {
  const std::vector<int> most(kMaxDescriptors, 0), more(kMaxDescriptors + 1, 0);
  EXPECT_EQ(SendMessage(a_.Get(), "x", more), EINVAL);
  EXPECT_EQ(ReceiveAtB(), Receive::kNothingYet);
  EXPECT_EQ(SendMessage(a_.Get(), "x", most), 0);
  EXPECT_EQ(ReceiveAtB(), Receive::kViolation);
}

}  // namespace
}  // namespace jobworker
