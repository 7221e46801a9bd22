#include "common/byte_io.h"

namespace jobworker {

void ByteWriter::Raw(uint64_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) out_.push_back(static_cast<char>(value >> (8 * i)));
}

void ByteWriter::String(const std::string& value, size_t) {
  Number(static_cast<uint32_t>(value.size()));
  out_ += value;
}

void ByteWriter::Strings(const std::vector<std::string>& values, size_t, size_t) {
  Number(static_cast<uint32_t>(values.size()));
  for (const std::string& value : values) String(value, value.size());
}

std::string_view ByteReader::Take(size_t size) {
  if (!ok_ || size > in_.size()) {
    ok_ = false;
    return {};
  }
  const std::string_view taken = in_.substr(0, size);
  in_.remove_prefix(size);
  return taken;
}

uint64_t ByteReader::Raw(size_t width) {
  uint64_t value = 0;
  const std::string_view bytes = Take(width);
  for (size_t i = 0; i < bytes.size(); ++i) value |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  return value;
}

void ByteReader::String(std::string& value, size_t max) {
  uint32_t size = 0;
  Number(size);
  Check(size <= max);
  const std::string_view bytes = Take(size);
  Check(bytes.find('\0') == std::string_view::npos);
  value = bytes;
}

void ByteReader::Strings(std::vector<std::string>& values, size_t max_count, size_t max_total) {
  uint32_t count = 0;
  Number(count);
  Check(count <= max_count);
  values.clear();
  for (uint32_t i = 0; ok_ && i < count; ++i) {
    String(values.emplace_back(), max_total);
    max_total -= values.back().size();
  }
}

}  // namespace jobworker
