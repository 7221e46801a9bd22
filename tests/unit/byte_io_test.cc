#include "common/byte_io.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

namespace jobworker {
namespace {

std::string Bytes(std::initializer_list<int> values) {
  std::string bytes;
  for (const int value : values) bytes.push_back(static_cast<char>(value));
  return bytes;
}

TEST(ByteIo, NumbersAreLittleEndianAndOfTheirTypesWidth) {
  ByteIo writer;
  writer.Number(uint8_t{0x01});
  writer.Number(uint16_t{0x0203});
  writer.Number(uint32_t{0x04050607});
  writer.Number(uint64_t{0x08090a0b0c0d0e0f});
  EXPECT_EQ(writer.Take(), Bytes({1, 3, 2, 7, 6, 5, 4, 15, 14, 13, 12, 11, 10, 9, 8}));
}

TEST(ByteIo, NumbersComeBackAtTheirExtremes) {
  std::array<uint64_t, 3> in{0, 1, std::numeric_limits<uint64_t>::max()}, out{};
  ByteIo writer;
  All(writer, in);
  const std::string bytes = writer.Take();
  ByteIo reader(bytes);
  All(reader, out);
  EXPECT_TRUE(reader.Finish());
  EXPECT_EQ(in, out);
}

TEST(ByteIo, EveryShortNumberFails) {
  for (size_t size = 0; size < sizeof(uint64_t); ++size) {
    const std::string bytes(size, 'x');
    ByteIo reader(bytes);
    uint64_t value = 1;
    reader.Number(value);
    EXPECT_FALSE(reader.Finish()) << size;
  }
}

TEST(ByteIo, FinishDemandsThatNothingIsLeft) {
  ByteIo reader("ab");
  uint8_t value = 0;
  reader.Number(value);
  EXPECT_FALSE(reader.Finish());
  reader.Number(value);
  EXPECT_TRUE(reader.Finish());
}

TEST(ByteIo, AFailedFieldFailsAllThatFollow) {
  ByteIo reader(std::string_view("\x02\0\0\0abcd", 8));
  std::string text = "before";
  uint8_t value = 7;
  reader.String(text, 1);
  for (int i = 0; i < 6; ++i) reader.Number(value);
  EXPECT_FALSE(reader.Finish());
  EXPECT_TRUE(text.empty());
  EXPECT_EQ(value, 0);
}

TEST(ByteIo, AFailedCheckFails) {
  ByteIo reader("");
  reader.Check(true);
  EXPECT_TRUE(reader.Finish());
  reader.Check(false);
  reader.Check(true);
  EXPECT_FALSE(reader.Finish());
}

bool ReadsString(std::string_view bytes, size_t max) {
  ByteIo reader(bytes);
  std::string text;
  reader.String(text, max);
  return reader.Finish();
}

TEST(ByteIo, StringsAtTheirBoundAndPastIt) {
  const std::string three = Bytes({3, 0, 0, 0, 'a', 'b', 'c'});
  EXPECT_TRUE(ReadsString(three, 4));
  EXPECT_TRUE(ReadsString(three, 3));
  EXPECT_FALSE(ReadsString(three, 2));
  EXPECT_TRUE(ReadsString(Bytes({0, 0, 0, 0}), 0));
  EXPECT_FALSE(ReadsString(Bytes({1, 0, 0, 0, 'a'}), 0));
}

TEST(ByteIo, ALyingLengthFails) {
  EXPECT_FALSE(ReadsString(Bytes({4, 0, 0, 0, 'a', 'b', 'c'}), 100));
  EXPECT_FALSE(ReadsString(Bytes({0xff, 0xff, 0xff, 0xff, 'a'}), std::numeric_limits<size_t>::max()));
  EXPECT_FALSE(ReadsString(Bytes({2, 0, 0, 0, 'a', 'b', 'c'}), 100));
}

TEST(ByteIo, NulIsRefusedWhereverItStands) {
  EXPECT_FALSE(ReadsString(Bytes({3, 0, 0, 0, 0, 'b', 'c'}), 3));
  EXPECT_FALSE(ReadsString(Bytes({3, 0, 0, 0, 'a', 0, 'c'}), 3));
  EXPECT_FALSE(ReadsString(Bytes({3, 0, 0, 0, 'a', 'b', 0}), 3));
}

TEST(ByteIo, BytesTakeANulAndAreBoundedToo) {
  const std::string three = Bytes({3, 0, 0, 0, 0, 'b', 0});
  for (const size_t max : {2U, 3U}) {
    ByteIo reader(three);
    std::string bytes;
    reader.Bytes(bytes, max);
    EXPECT_EQ(reader.Finish(), max == 3);
    EXPECT_EQ(bytes, max == 3 ? three.substr(4) : "");
  }
}

bool ReadsStrings(std::vector<std::string> values, size_t max_count, size_t max_total) {
  ByteIo writer;
  writer.Strings(values, max_count, max_total);
  const std::string bytes = writer.Take();
  ByteIo reader(bytes);
  std::vector<std::string> read{"stale"};
  reader.Strings(read, max_count, max_total);
  return reader.Finish() && read == values;
}

TEST(ByteIo, ListsAtTheirBoundsAndPastThem) {
  EXPECT_TRUE(ReadsStrings({}, 0, 0));
  EXPECT_TRUE(ReadsStrings({"", "", ""}, 3, 0));
  EXPECT_FALSE(ReadsStrings({"", "", "", ""}, 3, 0));
  EXPECT_TRUE(ReadsStrings({"ab", "", "cde"}, 3, 5));
  EXPECT_FALSE(ReadsStrings({"ab", "", "cde"}, 3, 4));
  EXPECT_FALSE(ReadsStrings({"abcde", ""}, 3, 4));
}

TEST(ByteIo, ALyingCountFailsAndTakesNoMemory) {
  ByteIo reader(std::string_view("\xff\xff\xff\xff\0\0\0\0", 8));
  std::vector<std::string> read;
  reader.Strings(read, std::numeric_limits<uint32_t>::max(), 100);
  EXPECT_FALSE(reader.Finish());
  EXPECT_LE(read.size(), 2U);
}

}  // namespace
}  // namespace jobworker
