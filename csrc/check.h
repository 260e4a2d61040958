// Errors that give name, expected and got. pybind11 turns std::invalid_argument into ValueError.
#pragma once

#include <stdexcept>
#include <string>

namespace octavo {

template <class Got>
inline std::string shown(const Got& got) {
  return std::to_string(got);
}
inline std::string shown(const std::string& got) { return "'" + got + "'"; }

// check(k <= kMaxK, "k", "at most 131071", k) throws "k: expected at most 131071, got 200000".
template <class Got>
inline void check(bool ok, const char* name, const std::string& expected, const Got& got) {
  if (!ok) throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + shown(got));
}

}  // namespace octavo
