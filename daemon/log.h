// One line for each event on standard error: `jobserver: EVENT key=value …`.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace jobworker {

// Printable ASCII as it is; in quotes when it is empty or has blanks, quotes or `=`; all other bytes as \xNN, so that
// no text of a user's starts a line or moves a cursor. Cut after 256 bytes, with "..." to show it.
std::string Escaped(std::string_view text);

// Keys are ours, values are escaped. One write(2) for each line, which ends with time=… in UTC unless it goes to the
// journal. From any thread.
void Log(std::string_view event, std::initializer_list<std::pair<std::string_view, std::string_view>> fields);

}  // namespace jobworker
