// toml++ as both of our readers of configuration use it: errors are values.
#pragma once
#define TOML_EXCEPTIONS 0
// Without NDEBUG its parser asserts what a file need not be ("[[["), just before it would report that as an error.
#define TOML_ASSERT(condition) static_assert(true)
#include <toml++/toml.h>
