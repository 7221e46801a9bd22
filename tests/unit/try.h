// A call of the trusted part that throws, as a value: what it returned, or the errno and the words.
#pragma once
#include <stdexcept>
#include <system_error>

#include "cmd/result.h"

namespace jobworker {

template <class Function, class... Arguments>
auto Try(Function function, Arguments&&... arguments)
    -> Result<decltype(function(std::forward<Arguments>(arguments)...))> {
  try {
    return function(std::forward<Arguments>(arguments)...);
  } catch (const std::system_error& error) {
    return Error{error.code().value(), error.what()};
  } catch (const std::runtime_error& error) {
    return Error{EINVAL, error.what()};
  }
}

}  // namespace jobworker
