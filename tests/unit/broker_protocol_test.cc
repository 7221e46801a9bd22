#include "common/broker_protocol.h"

#include <gtest/gtest.h>

#include <functional>

namespace jobworker {
namespace {

const JobKey kKey{"alice", 7};

std::string Text(size_t size) { return std::string(size, 'x'); }

Start ValidStart() {
  return Start{kKey, {1, 2, 3, 4, 5, 6, 7}, {"ls", "-l"}, {"A=1", "B="}, "/home", std::string("n\0t", 3), 1};
}

// One valid message of each type.
const std::vector<std::string>& Requests() {
  static const std::vector<std::string> all{Encode(Hello{}),          Encode(Ping{}),      Encode(ValidStart()),
                                            Encode(Signal{kKey, 15}), Encode(Kill{kKey}),  Encode(UsageRequest{kKey}),
                                            Encode(Forget{kKey}),     Encode(WhoIs{"bob"})};
  return all;
}

const std::vector<std::string>& Replies() {
  static const std::vector<std::string> all{
      Encode(Welcome{kProtocolVersion, kCpu | kPids, 3}),
      Encode(Pong{}),
      Encode(Job{kKey, {1, 2, 3, 4, 5, 6, kUnlimited}, kIo, 0, 7}),
      Encode(Started{kKey, {1, 2, 3, 4, 5, 6, kUnlimited}, kIo, 1, UINT64_MAX}),
      Encode(Failed{kKey, RequestType::kStart, Stage::kExec, 2}),
      Encode(Exited{kKey, EndCause::kSignalled, 9, 1, OomLevel::kUser, 2, 3, 4, {1, 2, 3, 4, 5, 6}}),
      Encode(UsageIs{kKey, {1, 2, 3, 4, 5, 6}}),
      Encode(UserIs{"alice", 1, kIo, 2, UINT32_MAX, {1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, kUnlimited}})};
  return all;
}

template <class Variant>
std::string Again(const std::string& datagram) {
  const std::optional<Variant> message = Decode<Variant>(datagram);
  return message ? std::visit([](const auto& known) { return Encode(known); }, *message) : "refused";
}

bool Accepts(const std::string& datagram) { return Decode<Request>(datagram).has_value(); }
bool AcceptsReply(const std::string& datagram) { return Decode<Reply>(datagram).has_value(); }

TEST(BrokerProtocol, EveryMessageComesBackByteForByte) {
  ASSERT_EQ(Requests().size(), std::variant_size_v<Request>);
  ASSERT_EQ(Replies().size(), std::variant_size_v<Reply>);
  for (size_t i = 0; i < Requests().size(); ++i) {
    EXPECT_EQ(Again<Request>(Requests()[i]), Requests()[i]) << i;
    EXPECT_EQ(Decode<Request>(Requests()[i])->index(), i);
  }
  for (size_t i = 0; i < Replies().size(); ++i) {
    EXPECT_EQ(Again<Reply>(Replies()[i]), Replies()[i]) << i;
    EXPECT_EQ(Decode<Reply>(Replies()[i])->index(), i);
  }
}

// The form on the wire. When one of these changes, so must kProtocolVersion.
TEST(BrokerProtocol, TheBytesOfVersionFour) {
  EXPECT_EQ(kProtocolVersion, 4U);
  const std::string key("\5\0\0\0alice\7\0\0\0\0\0\0\0", 17);
  EXPECT_EQ(Encode(Hello{}), std::string("\0\4\0\0\0", 5));
  EXPECT_EQ(Encode(Ping{}), "\1");
  EXPECT_EQ(Encode(Pong{}), "\x41");
  EXPECT_EQ(Encode(Signal{kKey, 15}), "\3" + key + "\17");
  EXPECT_EQ(Encode(Kill{kKey}), "\4" + key);
  EXPECT_EQ(Encode(UsageRequest{kKey}), "\5" + key);
  EXPECT_EQ(Encode(Forget{kKey}), "\6" + key);
  const std::string one_to_seven(
      "\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3\0\0\0\0\0\0\0\4\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0\7\0\0\0\0\0\0"
      "\0",
      56);
  const std::string words("\2\0\0\0\2\0\0\0ls\2\0\0\0-l\2\0\0\0\3\0\0\0A=1\2\0\0\0B=", 33);
  const std::string directory_and_note("\5\0\0\0/home\3\0\0\0n\0t", 16);
  EXPECT_EQ(Encode(ValidStart()), "\2" + key + one_to_seven + "\1" + words + directory_and_note);
  const std::string job = key + one_to_seven + std::string("\2\1\11\0\0\0\0\0\0\0\1", 11);
  EXPECT_EQ(Encode(Job{kKey, {1, 2, 3, 4, 5, 6, 7}, kIo, 1, 9, 1}), "\x42" + job);
  EXPECT_EQ(Encode(Started{kKey, {1, 2, 3, 4, 5, 6, 7}, kIo, 1, 9, 1}), "\x43" + job);
  EXPECT_EQ(Encode(WhoIs{"alice"}), std::string("\7\5\0\0\0alice", 10));
  EXPECT_EQ(Encode(UserIs{"alice", 1, kIo, 3, 4, {1, 2, 3, 4, 5, 6, 7}, {1, 2, 3, 4, 5, 6, 7}}),
            std::string("\x47\5\0\0\0alice\1\2\3\0\0\0\4\0\0\0", 20) + one_to_seven + one_to_seven);
  EXPECT_EQ(Encode(Failed{kKey, RequestType::kKill, Stage::kKill, 3}), "\x44" + key + std::string("\4\10\3\0\0\0", 6));
  EXPECT_EQ(Encode(Exited{kKey, EndCause::kSignalled, 9, 1, OomLevel::kUser, 2, 3, 4, {}}),
            "\x45" + key + std::string("\1\11\1\2\2\0\0\0\3\0\0\0\4\0\0\0\0\0\0\0", 20) + std::string(48, '\0'));
}

template <class Variant>
void CutAtEveryByte(const std::vector<std::string>& messages) {
  for (const std::string& message : messages) {
    for (size_t size = 0; size < message.size(); ++size) {
      EXPECT_FALSE(Decode<Variant>(message.substr(0, size))) << "type " << int{message[0]} << " cut to " << size;
    }
  }
}

TEST(BrokerProtocol, CutShortAtAnyByteIsRefused) {
  CutAtEveryByte<Request>(Requests());
  CutAtEveryByte<Reply>(Replies());
}

TEST(BrokerProtocol, OneByteTooManyIsRefused) {
  for (const std::string& message : Requests()) {
    for (const char last : {'\0', 'x'}) EXPECT_FALSE(Accepts(message + last)) << int{message[0]};
  }
  for (const std::string& message : Replies()) {
    for (const char last : {'\0', 'x'}) EXPECT_FALSE(AcceptsReply(message + last)) << int{message[0]};
  }
}

TEST(BrokerProtocol, EveryUnknownTypeIsRefused) {
  for (int type = 0; type < 256; ++type) {
    for (std::string message : Requests()) {
      const bool same_body = message[0] == type || (message[0] >= 4 && message[0] < 7 && type >= 4 && type < 7);
      message[0] = static_cast<char>(type);
      EXPECT_EQ(Accepts(message), same_body) << type;
      EXPECT_EQ(AcceptsReply(message), message.size() == 1 && type == 65) << type;  // a Pong
    }
    for (std::string message : Replies()) {
      message[0] = static_cast<char>(type);
      EXPECT_EQ(Accepts(message), message.size() == 1 && type == 1) << type;  // a Ping
      EXPECT_TRUE(type >= 64 && type < 72 ? true : !AcceptsReply(message)) << type;
    }
  }
}

TEST(BrokerProtocol, UserNames) {
  for (const char* good : {"a", "_", "alice", "_apt", "a-b", "a0", "a_9-z"}) {
    EXPECT_TRUE(IsUserName(good)) << good;
    EXPECT_TRUE(Accepts(Encode(Kill{{good, 1}}))) << good;
    EXPECT_TRUE(Accepts(Encode(WhoIs{good}))) << good;
    EXPECT_TRUE(AcceptsReply(Encode(UserIs{good}))) << good;
  }
  for (const char* bad :
       {"",  "0",   "1000", "0a",  "-a",   "-1",    "Alice", "aLice",    "a.b", "..",      ".",   "a/b", "../../etc",
        "/", "a b", " a",   "a\n", "a\tb", "a\x1b", "a\x80", "\xc3\xa9", "a+",  "alice\r", "a:b", "*",   "@a"}) {
    EXPECT_FALSE(IsUserName(bad)) << bad;
    EXPECT_FALSE(Accepts(Encode(Kill{{bad, 1}}))) << bad;
    EXPECT_FALSE(Accepts(Encode(WhoIs{bad}))) << bad;
    EXPECT_FALSE(AcceptsReply(Encode(UserIs{bad}))) << bad;
  }
  EXPECT_FALSE(Accepts(Encode(Kill{{std::string("alice\0root", 10), 1}})));
  EXPECT_FALSE(Accepts(Encode(Kill{{std::string("\0", 1), 1}})));
}

TEST(BrokerProtocol, TheNamesLengthAtItsBoundAndPastIt) {
  const std::string longest(kMaxUserName, 'a');
  for (const auto& encode : {std::function<std::string(const JobKey&)>([](auto& key) { return Encode(Kill{key}); }),
                             {[](auto& key) { return Encode(UsageRequest{key}); }},
                             {[](auto& key) { return Encode(Forget{key}); }},
                             {[](auto& key) {
                               return Encode(Signal{key, 1});
                             }},
                             {[](auto& key) {
                               return Encode(Start{key, {}, {"ls"}, {}});
                             }}}) {
    EXPECT_TRUE(Accepts(encode({longest, 1})));
    EXPECT_FALSE(Accepts(encode({longest + 'a', 1})));
    EXPECT_FALSE(Accepts(encode({"", 1})));
    EXPECT_FALSE(Accepts(encode({"alice", 0})));
    EXPECT_TRUE(Accepts(encode({"alice", UINT64_MAX})));
  }
}

TEST(BrokerProtocol, EverySignalNumber) {
  for (int number = 0; number < 256; ++number) {
    EXPECT_EQ(Accepts(Encode(Signal{kKey, static_cast<uint8_t>(number)})), number >= 1 && number <= 64) << number;
  }
}

TEST(BrokerProtocol, AnyVersionIsWellFormed) {
  for (const uint32_t version : {0U, 2U, UINT32_MAX}) EXPECT_TRUE(Accepts(Encode(Hello{version})));
}

bool AcceptsStart(std::vector<std::string> argv, std::vector<std::string> env = {}) {
  return Accepts(Encode(Start{kKey, {}, std::move(argv), std::move(env)}));
}

TEST(BrokerProtocol, ArgumentsAtTheirBoundsAndPastThem) {
  EXPECT_FALSE(AcceptsStart({}));
  EXPECT_FALSE(AcceptsStart({""}));
  EXPECT_FALSE(AcceptsStart({"", "x"}));
  EXPECT_TRUE(AcceptsStart({"x", ""}));
  EXPECT_TRUE(AcceptsStart(std::vector<std::string>(kMaxArguments, "x")));
  EXPECT_FALSE(AcceptsStart(std::vector<std::string>(kMaxArguments + 1, "x")));
  EXPECT_TRUE(AcceptsStart({Text(kMaxArgumentBytes)}));
  EXPECT_FALSE(AcceptsStart({Text(kMaxArgumentBytes + 1)}));
  EXPECT_TRUE(AcceptsStart({"x", Text(kMaxArgumentBytes - 2), "x"}));
  EXPECT_FALSE(AcceptsStart({"x", Text(kMaxArgumentBytes - 1), "x"}));
  EXPECT_FALSE(AcceptsStart({std::string("a\0b", 3)}));
  EXPECT_FALSE(AcceptsStart({"ls", std::string("\0", 1)}));
}

TEST(BrokerProtocol, TheEnvironmentAtItsBoundsAndPastThem) {
  EXPECT_TRUE(AcceptsStart({"x"}, std::vector<std::string>(kMaxEnvironment, "A=")));
  EXPECT_FALSE(AcceptsStart({"x"}, std::vector<std::string>(kMaxEnvironment + 1, "A=")));
  EXPECT_TRUE(AcceptsStart({"x"}, {"A=" + Text(kMaxEnvironmentBytes - 2)}));
  EXPECT_FALSE(AcceptsStart({"x"}, {"A=" + Text(kMaxEnvironmentBytes - 1)}));
  EXPECT_TRUE(AcceptsStart({"x"}, {"A=b=c", "B==", "C= \n"}));
  for (const char* bad : {"", "A", "=", "=A", "=A=b"}) EXPECT_FALSE(AcceptsStart({"x"}, {"A=1", bad})) << bad;
  EXPECT_FALSE(AcceptsStart({"x"}, {std::string("A=\0", 3)}));
  EXPECT_FALSE(AcceptsStart({"x"}, {std::string("A\0=", 3)}));
}

TEST(BrokerProtocol, TheDirectoryAndTheNoteAtTheirBoundsAndPastThem) {
  const auto accepts = [](const std::string& directory, const std::string& note) {
    return Accepts(Encode(Start{kKey, {}, {"x"}, {}, directory, note}));
  };
  EXPECT_TRUE(accepts("", ""));
  EXPECT_TRUE(accepts(Text(kMaxDirectoryBytes), Text(kMaxNoteBytes)));
  EXPECT_FALSE(accepts(Text(kMaxDirectoryBytes + 1), ""));
  EXPECT_FALSE(accepts("", Text(kMaxNoteBytes + 1)));
  EXPECT_TRUE(accepts("", std::string(kMaxNoteBytes, '\0')));
  EXPECT_FALSE(accepts("", std::string(kMaxNoteBytes + 1, '\0')));
  EXPECT_FALSE(accepts(std::string("/a\0b", 4), ""));
  EXPECT_FALSE(accepts(std::string("\0", 1), ""));
}

TEST(BrokerProtocol, AYesOrNoIsOneOrZero) {
  for (int i = 0; i < 256; ++i) {
    const auto value = static_cast<uint8_t>(i);
    EXPECT_EQ(Accepts(Encode(Start{kKey, {}, {"x"}, {}, "", "", value})), i <= 1) << i;
    EXPECT_EQ(AcceptsReply(Encode(Job{kKey, {}, 0, value})), i <= 1) << i;
    EXPECT_EQ(AcceptsReply(Encode(Started{kKey, {}, 0, value})), i <= 1) << i;
    EXPECT_EQ(AcceptsReply(Encode(Job{kKey, {}, 0, 0, 1, value})), i <= 1) << i;
    EXPECT_EQ(AcceptsReply(Encode(UserIs{"alice", value})), i <= 1) << i;
  }
}

TEST(BrokerProtocol, HowManyDescriptorsComeWithEachReply) {
  EXPECT_EQ(DescriptorsOf(Job{kKey, {}, 0, 0}), 4U);
  EXPECT_EQ(DescriptorsOf(Job{kKey, {}, 0, 1}), 5U);
  EXPECT_EQ(DescriptorsOf(Started{kKey, {}, 0, 0}), 4U);
  EXPECT_EQ(DescriptorsOf(Started{kKey, {}, 0, 1}), 5U);
  EXPECT_EQ(DescriptorsOf(Welcome{}), 0U);
  EXPECT_EQ(DescriptorsOf(Pong{}), 0U);
  EXPECT_EQ(DescriptorsOf(Failed{}), 0U);
  EXPECT_EQ(DescriptorsOf(Exited{}), 0U);
  EXPECT_EQ(DescriptorsOf(UsageIs{}), 0U);
  EXPECT_EQ(DescriptorsOf(UserIs{}), 0U);
}

TEST(BrokerProtocol, TheLargestStartFitsInOneMessage) {
  Start largest{{std::string(kMaxUserName, 'a'), 1}, {}, {}, {}, Text(kMaxDirectoryBytes), Text(kMaxNoteBytes), 1};
  largest.argv.assign(kMaxArguments, "x");
  largest.argv.back() = Text(kMaxArgumentBytes - (kMaxArguments - 1));
  largest.env.assign(kMaxEnvironment, "A=");
  largest.env.back() = "A=" + Text(kMaxEnvironmentBytes - 2 * kMaxEnvironment);
  const std::string message = Encode(largest);
  EXPECT_LE(message.size(), kMaxMessageBytes);
  EXPECT_TRUE(Accepts(message));
}

TEST(BrokerProtocol, LengthsAndCountsThatLieAreRefused) {
  const std::string start = Encode(ValidStart());
  // Where the prefixes of ValidStart() stand: the user, argv and its words, env and its entries, directory, note.
  for (const size_t at : {1U, 75U, 79U, 85U, 91U, 95U, 102U, 108U, 117U}) {
    for (const uint32_t lie : {0U, 4U, 255U, 65536U, 0x7fffffffU, 0x80000000U, UINT32_MAX}) {
      std::string message = start;
      for (size_t i = 0; i < 4; ++i) message[at + i] = static_cast<char>(lie >> (8 * i));
      EXPECT_FALSE(Accepts(message)) << at << " says " << lie;
    }
  }
}

TEST(BrokerProtocol, EveryEnumOutOfRangeIsRefused) {
  for (int i = 0; i < 256; ++i) {
    const auto value = static_cast<uint8_t>(i);
    EXPECT_EQ(AcceptsReply(Encode(Failed{kKey, RequestType{value}, Stage::kUser, 1})), i <= 6) << i;
    EXPECT_EQ(AcceptsReply(Encode(Failed{kKey, RequestType::kStart, Stage{value}, 1})), i <= 13) << i;
    Exited exited{kKey, EndCause{value}, 0, 0, OomLevel::kNone, 0, 0, 0, {}};
    EXPECT_EQ(AcceptsReply(Encode(exited)), i <= 2) << i;
    exited.cause = EndCause::kExited;
    exited.oom_level = OomLevel{value};
    EXPECT_EQ(AcceptsReply(Encode(exited)), i <= 2) << i;
  }
}

}  // namespace
}  // namespace jobworker
