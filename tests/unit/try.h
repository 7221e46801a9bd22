// A call of the trusted part that throws, as a value: what it returned, or the errno and the words.
#pragma once
#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tl/expected.hpp>

namespace jobworker {

struct Error {
  int code = 0;  // an errno
  std::string what;
};
template <class T>
using Result = tl::expected<T, Error>;

template <class Function, class... Arguments>
auto Try(Function function, Arguments&&... arguments)
    -> Result<decltype(function(std::forward<Arguments>(arguments)...))> {
  try {
    return function(std::forward<Arguments>(arguments)...);
  } catch (const std::system_error& error) {
    return tl::make_unexpected(Error{error.code().value(), error.what()});
  } catch (const std::runtime_error& error) {
    return tl::make_unexpected(Error{EINVAL, error.what()});
  }
}

}  // namespace jobworker
