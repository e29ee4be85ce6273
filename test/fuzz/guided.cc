// What libFuzzer calls. It keeps an input that ends the process.
#include <cstdio>
#include <cstdlib>

#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t count) {
  try {
    attention_bias::fuzz::run_input(bytes, count);
  } catch (const std::exception& exception) {
    fprintf(stderr, "failed: %s\n", exception.what());
    std::abort();
  }
  return 0;
}
