// Little-endian integers of fixed width and length-prefixed byte strings. Writer and reader take the same calls, so one
// list of fields (broker_protocol.h) both writes and reads a message.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace jobworker {
// Checks no bound: the sender keeps to them, the receiver enforces them.
class ByteWriter {
 public:
  void Number(const auto& value) {
    for (size_t i = 0; i < sizeof(value); ++i) out_ += static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
  }
  void Check(bool) {}
  void Bytes(const std::string& value, size_t) {
    Number(static_cast<uint32_t>(value.size()));
    out_ += value;
  }
  void String(const std::string& value, size_t) { Bytes(value, 0); }
  void Strings(const std::vector<std::string>& values, size_t, size_t) {
    Number(static_cast<uint32_t>(values.size()));
    for (const std::string& value : values) String(value, 0);
  }
  [[nodiscard]] std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads bytes that it borrows. After a field that is cut short or breaks its bound every later one fails too, and
// Finish() is false; it also is when bytes are left over. Only a true Finish() makes the values fit for use.
class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}
  void Number(auto& value) {
    uint64_t number = 0;
    const std::string_view bytes = Take(sizeof(value));
    for (size_t i = 0; i < bytes.size(); ++i) number |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    value = static_cast<std::remove_reference_t<decltype(value)>>(number);
  }
  void Check(bool holds) { ok_ = ok_ && holds; }
  // At most `max` bytes.
  void Bytes(std::string& value, size_t max) {
    uint32_t size = 0;
    Number(size);
    Check(size <= max);
    value = Take(size);
  }
  // Without a NUL among them.
  void String(std::string& value, size_t max) {
    Bytes(value, max);
    Check(value.find('\0') == std::string::npos);
  }
  // At most `max_count` strings with at most `max_bytes` in all.
  void Strings(std::vector<std::string>& values, size_t max_count, size_t max_bytes) {
    uint32_t count = 0;
    Number(count);
    Check(count <= max_count);
    values.clear();
    for (uint32_t i = 0; ok_ && i < count; ++i) {
      String(values.emplace_back(), max_bytes);
      max_bytes -= values.back().size();
    }
  }
  [[nodiscard]] bool Finish() const { return ok_ && in_.empty(); }

 private:
  std::string_view Take(size_t size) {
    Check(size <= in_.size());
    const std::string_view taken = in_.substr(0, ok_ ? size : 0);
    in_.remove_prefix(taken.size());
    return taken;
  }
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
