// Fixed-width little-endian integers and length-prefixed byte strings, bounded in both directions.
// Both classes take the same field calls, so one list of fields (broker_protocol.h) writes and reads a message.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace jobworker {

// Appends to a buffer it owns. It checks no bound: the sender keeps to them, the receiver enforces them.
class ByteWriter {
 public:
  template <class T>
  void Number(const T& value) {
    Raw(static_cast<uint64_t>(value), sizeof(T));
  }
  void Check(bool) {}
  void String(const std::string& value, size_t max);
  void Strings(const std::vector<std::string>& values, size_t max_count, size_t max_total);
  [[nodiscard]] std::string Take() { return std::move(out_); }

 private:
  void Raw(uint64_t value, size_t width);
  std::string out_;
};

// Reads a buffer it borrows. The first bad field makes every later one fail too; the values read until then are
// not to be used unless Finish() returns true, which demands that every byte was consumed.
class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}
  template <class T>
  void Number(T& value) {
    value = static_cast<T>(Raw(sizeof(T)));
  }
  // A range check of a field just read.
  void Check(bool holds) { ok_ = ok_ && holds; }
  // At most `max` bytes and no NUL among them.
  void String(std::string& value, size_t max);
  // At most `max_count` strings with at most `max_total` bytes in all, not counting prefixes.
  void Strings(std::vector<std::string>& values, size_t max_count, size_t max_total);
  [[nodiscard]] bool Finish() const { return ok_ && in_.empty(); }

 private:
  uint64_t Raw(size_t width);
  std::string_view Take(size_t size);
  std::string_view in_;
  bool ok_ = true;
};

// Numbers, enums, arrays of them and structs that have Fields, in order.
void All(auto& io, auto&... fields) {
  const auto one = [&io](auto& field) {
    if constexpr (requires { field.Fields(io); }) {
      field.Fields(io);
    } else if constexpr (requires { field.size(); }) {
      for (auto& number : field) io.Number(number);
    } else {
      io.Number(field);
    }
  };
  (one(fields), ...);
}

}  // namespace jobworker
