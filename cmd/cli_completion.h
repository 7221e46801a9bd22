// The completion scripts of cmd/completions, as they were when this program was built.
#pragma once
#include <string>

namespace jobworker {

// `shell` is bash, zsh or fish.
std::string CompletionScript(const std::string& shell);

}  // namespace jobworker
