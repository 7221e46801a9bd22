// A value, or the errno and the name of the operation that failed.
#pragma once
#include <cerrno>
#include <optional>
#include <string>
#include <utility>

namespace jobworker {

// `code` is an errno; `what` says what was being done, in words fit for a log line.
struct Error {
  int code = 0;
  std::string what;
};

inline Error ErrnoError(std::string what) { return Error{errno, std::move(what)}; }

// Look at Ok() before value() or error(): libstdc++'s assertions abort on the wrong one.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(std::move(error)) {}
  [[nodiscard]] bool Ok() const { return value_.has_value(); }
  T& value() { return *value_; }
  const T& value() const { return *value_; }
  const Error& error() const { return error_; }

 private:
  std::optional<T> value_;
  Error error_;
};

struct Done {};
using Status = Result<Done>;

}  // namespace jobworker
