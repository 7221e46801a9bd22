// One line for each event on standard error: `jobserver: EVENT key=value …`. In the journal, when standard error goes
// there (systemd.exec(5), JOURNAL_STREAM), the line is the MESSAGE and has fields beside it, to be asked for by
// `journalctl JOBWORKER_EVENT=denied JOBWORKER_USER=carl`.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace jobworker {

// Printable ASCII as it is; in quotes when it is empty or has blanks, quotes or `=`; all other bytes as \xNN, so that
// no text of a user's starts a line or moves a cursor. Cut after 256 bytes, with "..." to show it.
std::string Escaped(std::string_view text);

// Keys are ours, values are escaped. One write(2) for each line, which ends with time=… in UTC unless it goes to the
// journal. From any thread.
using LogFields = std::initializer_list<std::pair<std::string_view, std::string_view>>;
void Log(std::string_view event, LogFields fields);

// What the journal gets, as sd_journal_sendv(3) takes it: MESSAGE, PRIORITY (4 for what was denied, else 6),
// SYSLOG_IDENTIFIER, JOBWORKER_EVENT and, for each key, JOBWORKER_KEY, upper case. A field holds the value itself, cut
// after 256 bytes: the journal's protocol carries any byte.
std::vector<std::string> JournalFields(std::string_view event, LogFields fields);

}  // namespace jobworker
