// Why something did not succeed, in words for whoever asked for it.
#pragma once
#include <string>
#include <tl/expected.hpp>

namespace jobworker {

inline tl::unexpected<std::string> Because(std::string why) { return tl::unexpected<std::string>(std::move(why)); }

}  // namespace jobworker
