// A native fuzz target: run_input() makes a case of any bytes and throws Failure where what they ask for is
// neither refused with an error nor computed right. guided.cc runs it for libFuzzer, replay.cc without.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace attention_bias::fuzz {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

void run_input(const uint8_t* bytes, size_t count);

}  // namespace attention_bias::fuzz
