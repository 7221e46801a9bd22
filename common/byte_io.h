// Little-endian integers of fixed width and length-prefixed byte strings. One class writes and reads them by the same
// calls, so one list of fields (broker_protocol.h) does for both.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace jobworker {
// A writer checks nothing: the sender keeps to the bounds, the receiver enforces them. In a reader, after a field that
// is cut short or breaks its bound every later one fails too, and Finish() is false; it also is when bytes are left
// over. Only a true Finish() makes the values fit for use.
class ByteIo {
 public:
  ByteIo() = default;                                              // writes
  explicit ByteIo(std::string_view in) : reads_(true), in_(in) {}  // reads what it borrows
  void Number(auto&& value) {
    if (!reads_) {
      for (size_t i = 0; i < sizeof(value); ++i) out_ += static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
      return;
    }
    uint64_t number = 0;
    const std::string_view bytes = Cut(sizeof(value));
    for (size_t i = 0; i < bytes.size(); ++i) number |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    value = static_cast<std::remove_cvref_t<decltype(value)>>(number);
  }
  void Check(bool holds) { ok_ = ok_ && (holds || !reads_); }
  // At most `max` bytes.
  void Bytes(auto&& value, size_t max) {
    auto size = static_cast<uint32_t>(value.size());
    Number(size);
    Check(size <= max);
    if (reads_) value = Cut(size);
    if (!reads_) out_ += value;
  }
  // Without a NUL among them.
  void String(auto&& value, size_t max) {
    Bytes(value, max);
    Check(value.find('\0') == value.npos);
  }
  // At most `max_count` strings with at most `max_bytes` in all.
  void Strings(auto&& values, size_t max_count, size_t max_bytes) {
    auto count = static_cast<uint32_t>(values.size());
    Number(count);
    Check(count <= max_count);
    if (reads_) values.clear();
    for (uint32_t i = 0; ok_ && i < count; ++i) {
      if (reads_) values.emplace_back();
      String(values[i], max_bytes);
      max_bytes -= values[i].size();
    }
  }
  [[nodiscard]] bool Finish() const { return ok_ && in_.empty(); }
  [[nodiscard]] std::string Take() { return std::move(out_); }

 private:
  std::string_view Cut(size_t size) {
    Check(size <= in_.size());
    const std::string_view bytes = in_.substr(0, ok_ ? size : 0);
    in_.remove_prefix(bytes.size());
    return bytes;
  }
  bool reads_ = false, ok_ = true;
  std::string_view in_;
  std::string out_;
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
