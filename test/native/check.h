// Checks for the native tests: a failed one prints where, what and the values, and the program ends with 1.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

namespace attention_bias::test {

inline int failures = 0;
inline int checks = 0;
inline std::string context;  // printed with a failure: the case and its seed

inline void report(bool good, const char* file, int line, const std::string& text) {
  ++checks;
  if (good) return;
  ++failures;
  if (failures <= 20) fprintf(stderr, "%s:%d: failed: %s  [%s]\n", file, line, text.c_str(), context.c_str());
}

inline int finish(const char* name) {
  printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  text.precision(9);
  text << value;
  return text.str();
}

}  // namespace attention_bias::test

#define CHECK(condition) ::attention_bias::test::report((condition), __FILE__, __LINE__, #condition)

#define CHECK_EQ(a, b)                                                                                 \
  do {                                                                                                 \
    const auto a_ = (a);                                                                               \
    const auto b_ = (b);                                                                               \
    ::attention_bias::test::report(a_ == b_, __FILE__, __LINE__,                                       \
                                   std::string(#a " == " #b ": ") + ::attention_bias::test::show(a_) + \
                                       " and " + ::attention_bias::test::show(b_));                    \
  } while (0)

// The statement throws attention_bias::Error with this code and a message that contains the text.
#define CHECK_ERROR(statement, error_code, part)                                                 \
  do {                                                                                           \
    std::string got = "no error";                                                                \
    bool right = false;                                                                          \
    try {                                                                                        \
      statement;                                                                                 \
    } catch (const ::attention_bias::Error& e) {                                                 \
      got = std::string(::attention_bias::error_code_name(e.code())) + ": " + e.what();          \
      right = e.code() == (error_code) && std::string(e.what()).find(part) != std::string::npos; \
    }                                                                                            \
    ::attention_bias::test::report(right, __FILE__, __LINE__, #statement " gave " + got);        \
  } while (0)
