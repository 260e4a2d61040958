// Errors that give name, expected and got. pybind11 turns std::invalid_argument into ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace octavo {

static inline std::string shown(long long got) { return std::to_string(got); }
static inline std::string shown(const std::string& got) { return "'" + got + "'"; }

// fail("k", "at most 131071", k) throws "k: expected at most 131071, got 200000".
template <class Got>
[[noreturn]] static inline void fail(const char* name, const std::string& expected, const Got& got) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + shown(got));
}

// A check that holds costs a branch: nothing is formatted.
static inline void check(bool ok, const char* name, const char* expected, long long got) {
  if (!ok) fail(name, expected, got);
}

}  // namespace octavo
