#include "common/byte_io.h"

namespace jobworker {

std::string_view ByteReader::Take(size_t size) {
  Check(size <= in_.size());
  const std::string_view taken = in_.substr(0, ok_ ? size : 0);
  in_.remove_prefix(taken.size());
  return taken;
}

void ByteReader::String(std::string& value, size_t max) {
  uint32_t size = 0;
  Number(size);
  Check(size <= max);
  value = Take(size);
  Check(value.find('\0') == std::string::npos);
}

void ByteReader::Strings(std::vector<std::string>& values, size_t max_count, size_t max_bytes) {
  uint32_t count = 0;
  Number(count);
  Check(count <= max_count);
  values.clear();
  for (uint32_t i = 0; ok_ && i < count; ++i) {
    String(values.emplace_back(), max_bytes);
    max_bytes -= values.back().size();
  }
}

}  // namespace jobworker
