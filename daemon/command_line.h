// Splits a command into words as a POSIX shell would, expanding nothing.
#pragma once
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <vector>

namespace jobworker {

// Blanks (space, tab, newline) separate words; '...' keeps all, "..." all but \ before $ ` " \ and newline; \ outside
// quotes keeps the next character and joins lines. XCU 2.2, Shell Command Language. The error is fit for the user.
tl::expected<std::vector<std::string>, std::string> SplitWords(std::string_view command);

}  // namespace jobworker
