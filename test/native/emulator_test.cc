// The emulator does what the device's instructions are defined to do, and catches the defects it is there to
// catch: each is planted in a kernel of this file, and the same kernel without it passes.
#include "emulator.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/device.cuh"

namespace attention_bias::test {
namespace {

using namespace cuda;  // a test reads as a kernel does
using emulator::emulate;
using emulator::Emulation;
using emulator::Grid;
using emulator::order_dependent;

constexpr int kSeeds = 12;

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// What a launch threw, or "".
template <class Kernel>
std::string error_of(int threads, size_t shared_bytes, const Kernel& kernel, Grid grid = {}) {
  try {
    emulate(grid, threads, shared_bytes, 1, kernel);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void check_says(const std::string& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    report(error.find(part) != std::string::npos, __FILE__, __LINE__, "\"" + error + "\" says " + part);
  }
}

bool any_nan(const std::vector<float>& values) {
  return std::any_of(values.begin(), values.end(), [](float v) { return std::isnan(v); });
}

// ---- what the wrappers do
// --------------------------------------------------------------------------------------------

void coordinates() {
  context = "coordinates";
  const Grid grid = {3, 4, 5};
  const int threads = 96;
  std::vector<int> visits(3 * 4 * 5 * 96);
  std::vector<std::vector<int>> orders;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    std::vector<int> order;
    const Emulation done = emulate(grid, threads, 0, seed, [&] {
      const int block = (block_z() * grid_y() + block_y()) * grid_x() + block_x();
      ++visits[block * block_threads() + thread_index()];
      CHECK(grid_x() == 3 && grid_y() == 4 && grid_z() == 5 && block_threads() == 96);
      CHECK(lane_index() == thread_index() % 32 && warp_index() == thread_index() / 32);
      order.push_back(block * block_threads() + thread_index());
    });
    CHECK_EQ(done.blocks, 60);
    orders.push_back(order);
  }
  for (const int count : visits) CHECK_EQ(count, 3);
  CHECK(orders[0] != orders[1] && orders[1] != orders[2] && orders[0] != orders[2]);
}

void shared_memory_of_a_block() {
  context = "shared memory";
  std::vector<int> written(4 * 64);
  emulate({4}, 64, 64 * 4, 0, [&] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0);
    CHECK(std::isnan(shared[thread_index()]));  // of this block alone, and nothing in it
    shared[thread_index()] = static_cast<float>(block_x());
    barrier();
    written[block_x() * 64 + thread_index()] = shared[63 - thread_index()] == static_cast<float>(block_x());
  });
  for (const int good : written) CHECK_EQ(good, 1);
}

void exchange() {
  context = "shuffles and votes";
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> f(64);
    std::vector<int32_t> s(64), lane(64);
    std::vector<uint32_t> u(64);
    for (int i = 0; i < 64; ++i) {
      f[i] = static_cast<float>(random()) - 1e9f;
      s[i] = static_cast<int32_t>(random());
      u[i] = static_cast<uint32_t>(random());
      lane[i] = static_cast<int32_t>(random() % 96) - 32;
    }
    const int mask = round < 6 ? (1 << round) % 32 : static_cast<int>(random() % 32);
    const uint32_t rare = round % 2 ? 31 : 3;
    const auto vote_of = [&](int i) { return (u[i] & rare) == 0; };
    std::vector<uint32_t> masks(2);
    for (int i = 0; i < 64; ++i) masks[i / 32] |= static_cast<uint32_t>(vote_of(i)) << i % 32;
    const Emulation done = emulate({1}, 64, 0, static_cast<uint64_t>(round), [&] {
      const int i = thread_index(), warp = i & ~31;
      CHECK_EQ(shuffle_xor(f[i], mask), f[i ^ mask]);
      CHECK_EQ(shuffle_xor(s[i], mask), s[i ^ mask]);
      CHECK_EQ(shuffle_xor(u[i], mask), u[i ^ mask]);
      CHECK_EQ(shuffle(f[i], lane[i]), f[warp | (lane[i] & 31)]);
      CHECK_EQ(shuffle(s[i], 7), s[warp | 7]);
      CHECK_EQ(shuffle(u[i], lane[i]), u[warp | (lane[i] & 31)]);
      CHECK_EQ(ballot(vote_of(i)), masks[i / 32]);
      CHECK_EQ(any_in_warp(vote_of(i)), masks[i / 32] != 0);
      CHECK_EQ(any_in_block(i == 37), true);
      CHECK_EQ(any_in_block(false), false);
      CHECK_EQ(any_in_block(vote_of(i)), (masks[0] | masks[1]) != 0);
      warp_barrier();
    });
    CHECK_EQ(done.warp_collectives, 2 * 9);
    CHECK_EQ(done.block_barriers, 3);
  }
}

void conversions() {
  context = "to_tf32";
  CHECK_EQ(to_tf32(1.0f), 0x3f800000u);
  CHECK_EQ(to_tf32(-1.0f), 0xbf800000u);
  CHECK_EQ(to_tf32(0.0f), 0u);
  CHECK_EQ(to_tf32(-0.0f), 0x80000000u);
  CHECK_EQ(to_tf32(float_of(0x3f800fff)), 0x3f800000u);  // below the tie
  CHECK_EQ(to_tf32(float_of(0x3f801000)), 0x3f802000u);  // ties go away from zero, to odd
  CHECK_EQ(to_tf32(float_of(0x3f803000)), 0x3f804000u);  // and to even
  CHECK_EQ(to_tf32(float_of(0xbf801000)), 0xbf802000u);
  CHECK_EQ(to_tf32(float_of(0x3f801001)), 0x3f802000u);
  CHECK_EQ(to_tf32(float_of(0x3fffffff)), 0x40000000u);  // a carry into the exponent
  CHECK_EQ(to_tf32(float_of(0x7f7fffff)), 0x7f800000u);
  CHECK_EQ(to_tf32(INFINITY), 0x7f800000u);
  CHECK_EQ(to_tf32(-INFINITY), 0xff800000u);
  CHECK(std::isnan(float_of(to_tf32(NAN))));
  CHECK(std::isnan(float_of(to_tf32(float_of(0x7f800001)))));  // a NaN in the bits that go
  CHECK(std::isnan(float_of(to_tf32(float_of(0xffffffff)))));

  context = "pack_bf16";
  CHECK_EQ(pack_bf16(1.0f, -2.0f), 0xc0003f80u);
  CHECK_EQ(pack_bf16(float_of(0x3f808000), float_of(0x3f818000)), 0x3f823f80u);  // ties go to even
  CHECK_EQ(pack_bf16(float_of(0x3f808001), float_of(0x3f807fff)), 0x3f803f81u);
  CHECK_EQ(pack_bf16(float_of(0xbf818000), float_of(0xbf808000)), 0xbf80bf82u);
  CHECK_EQ(pack_bf16(-0.0f, float_of(0x3fffffff)), 0x40008000u);
  CHECK_EQ(pack_bf16(float_of(0x7f7fffff), -INFINITY), 0xff807f80u);
  CHECK_EQ(pack_bf16(NAN, float_of(0xff800001)), 0x7fff7fffu);
  CHECK_EQ(pack_bf16(float_of(0x00000001), float_of(0x00018000)), 0x00020000u);

  // Over random values: the nearer of the two neighbours.
  context = "nearest";
  std::mt19937 random(2);
  for (int i = 0; i < 20000; ++i) {
    const float value = float_of(static_cast<uint32_t>(random()));
    if (!std::isfinite(value) || std::fabs(value) > 1e38f) continue;
    const auto is_nearest = [&](float rounded, uint32_t step) {
      const double error = std::fabs(static_cast<double>(rounded) - value);
      const uint32_t magnitude = bits_of(std::fabs(rounded));
      const double up = float_of(magnitude + step), down = magnitude ? float_of(magnitude - step) : 0;
      return error <= std::fabs(up - std::fabs(value)) && error <= std::fabs(std::fabs(value) - down);
    };
    CHECK(is_nearest(float_of(to_tf32(value)), 0x2000));
    CHECK_EQ(to_tf32(value) & 0x1fff, 0u);
    CHECK(is_nearest(float_of(pack_bf16(value, 0) << 16), 0x10000));
  }

  context = "fast_exp2";
  CHECK_EQ(fast_exp2(0), 1.0f);
  CHECK_EQ(fast_exp2(-INFINITY), 0.0f);
  CHECK_EQ(fast_exp2(INFINITY), INFINITY);
  CHECK(std::isnan(fast_exp2(NAN)));
  CHECK_EQ(fast_exp2(-126), FLT_MIN);
  CHECK_EQ(fast_exp2(-126.5f), 0.0f);
  for (float x = -125; x < 127; x += 0.37f) {
    CHECK(std::fabs(fast_exp2(x) / std::exp2(static_cast<double>(x)) - 1) < 3e-7);
  }
}

void vectors() {
  context = "vectors";
  alignas(16) float from[132], to[128] = {}, streamed[128] = {};
  for (int i = 0; i < 132; ++i) from[i] = static_cast<float>(i);
  emulate({1}, 32, 0, 0, [&] {
    const int i = 4 * thread_index();
    const Float4 value = load_16(from + i);
    CHECK(value.x == from[i] && value.y == from[i + 1] && value.z == from[i + 2] && value.w == from[i + 3]);
    store_16(to + i, value);
    store_16_streaming(streamed + i, value);
  });
  CHECK(std::memcmp(from, to, sizeof to) == 0 && std::memcmp(from, streamed, sizeof to) == 0);
  check_says(error_of(32, 0, [&] { load_16(from + 1); }), {"not aligned to 16"});

  alignas(16) uint32_t words[8] = {};
  emulate({1}, 32, 0, 0, [&] {
    if (thread_index() == 5) store_16(words + 4, {1, 2, 3, 4});
  });
  CHECK(words[3] == 0 && words[4] == 1 && words[5] == 2 && words[6] == 3 && words[7] == 4);
  check_says(error_of(32, 0, [&] { store_16(words + 1, {1, 2, 3, 4}); }), {"not aligned to 16"});
}

// Four 8 × 8 matrices of 16 bits, their rows scattered in shared memory: the lane's part is the operand B of
// mma_bf16, of rows that are columns of B, or transposed, of rows that are rows of B.
void matrices() {
  context = "matrices";
  std::mt19937 random(9);
  std::vector<uint16_t> elements(4 * 64);
  for (uint16_t& element : elements) element = static_cast<uint16_t>(random());
  std::vector<int> places(40);  // in units of 16 bytes; eight of them unused
  for (int i = 0; i < 40; ++i) places[i] = i;
  std::shuffle(places.begin(), places.end(), random);
  const Emulation done = emulate({1}, 64, 40 * 16, 3, [&] {
    const int lane = lane_index(), g = lane / 4, t = lane % 4;
    char* row = shared_memory() + places[lane] * 16;
    if (warp_index() == 0) std::memcpy(row, &elements[lane * 8], 16);
    barrier();
    uint32_t plain[4], transposed[4];
    load_matrices(plain, row);
    load_matrices_transposed(transposed, row);
    for (int m = 0; m < 4; ++m) {
      const auto at = [&](int i, int j) { return static_cast<uint32_t>(elements[m * 64 + i * 8 + j]); };
      CHECK_EQ(plain[m], at(g, 2 * t) | at(g, 2 * t + 1) << 16);
      CHECK_EQ(transposed[m], at(2 * t, g) | at(2 * t + 1, g) << 16);
    }
  });
  CHECK_EQ(done.warp_collectives, 2 * 2);
  const auto load_at = [&](int byte) {
    return error_of(32, 64, [=] {
      uint32_t words[4];
      load_matrices(words, shared_memory() + (lane_index() == 9 ? byte : 0));
    });
  };
  CHECK_EQ(load_at(48), "");
  check_says(load_at(8), {"thread 9", "not aligned to 16"});
  check_says(load_at(64), {"thread 9", "a row of a matrix at byte 64 of 64"});
  check_says(load_at(-16), {"at byte -16 of 64"});
}

void async_copies() {
  context = "async copies";
  alignas(16) float global[64 * 4];
  for (int i = 0; i < 256; ++i) global[i] = static_cast<float>(i + 1);
  const Emulation done = emulate({1}, 64, 64 * 4 * 4 + 64 * 4, 0, [&] {
    const int i = thread_index();
    float* wide = reinterpret_cast<float*>(shared_memory()) + i * 4;
    float* narrow = reinterpret_cast<float*>(shared_memory()) + 256 + i;
    wide[1] = *narrow = 9;
    copy_async_16(wide, i % 2 ? global + i * 4 : nullptr, i % 2);  // where it isn't valid it isn't read
    copy_async_commit();
    copy_async_4(narrow, global + i, i % 3);
    CHECK(std::isnan(wide[0]) && std::isnan(wide[1]) && std::isnan(*narrow));  // under way: nothing defined
    barrier();
    copy_async_wait<0>();  // the first group only: the second copy is in none yet
    for (int j = 0; j < 4; ++j) CHECK_EQ(wide[j], i % 2 ? global[i * 4 + j] : 0.0f);
    CHECK(std::isnan(*narrow));
    copy_async_commit();
    copy_async_wait<1>();
    CHECK(std::isnan(*narrow));
    copy_async_commit();  // an empty group counts
    copy_async_wait<1>();
    CHECK_EQ(*narrow, i % 3 ? global[i] : 0.0f);
    copy_async_wait<0>();

    copy_async_16(wide, global, true);  // two groups in order, one waited for at a time
    copy_async_commit();
    copy_async_4(narrow, global + 5, true);
    copy_async_commit();
    copy_async_wait<2>();
    CHECK(std::isnan(wide[3]) && std::isnan(*narrow));
    copy_async_wait<1>();
    CHECK(wide[3] == global[3] && std::isnan(*narrow));
    copy_async_wait<0>();
    CHECK_EQ(*narrow, global[5]);
  });
  CHECK_EQ(done.async_copies, 64 * 4);
}

struct Place {
  int row, column;
};

// The fragments as native/cuda/device.cuh draws them, written out apart from the emulator's own arithmetic.
Place place_tf32_a(int lane, int i) {
  const Place places[4] = {{0, 0}, {8, 0}, {0, 4}, {8, 4}};
  return {lane / 4 + places[i].row, lane % 4 + places[i].column};
}
Place place_tf32_b(int lane, int i) { return {lane % 4 + (i ? 4 : 0), lane / 4}; }
Place place_bf16_a(int lane, int i, int half) {
  const Place places[4] = {{0, 0}, {8, 0}, {0, 8}, {8, 8}};
  return {lane / 4 + places[i].row, lane % 4 * 2 + half + places[i].column};
}
Place place_bf16_b(int lane, int i, int half) { return {lane % 4 * 2 + half + (i ? 8 : 0), lane / 4}; }
Place place_c(int lane, int i) {
  const Place places[4] = {{0, 0}, {0, 1}, {8, 0}, {8, 1}};
  return {lane / 4 + places[i].row, lane % 4 * 2 + places[i].column};
}

// Every element of the matrices is in one lane's register, and no two.
void layouts() {
  context = "layouts";
  std::set<int> a8, b8, a16, b16, c;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      a8.insert(place_tf32_a(lane, i).row * 8 + place_tf32_a(lane, i).column);
      c.insert(place_c(lane, i).row * 8 + place_c(lane, i).column);
      for (int half = 0; half < 2; ++half) {
        a16.insert(place_bf16_a(lane, i, half).row * 16 + place_bf16_a(lane, i, half).column);
        if (i < 2) b16.insert(place_bf16_b(lane, i, half).row * 8 + place_bf16_b(lane, i, half).column);
      }
      if (i < 2) b8.insert(place_tf32_b(lane, i).row * 8 + place_tf32_b(lane, i).column);
    }
  }
  CHECK(a8.size() == 128 && b8.size() == 64 && a16.size() == 256 && b16.size() == 128 && c.size() == 128);
}

void mma_products() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 60; ++round) {
    const bool bf16 = round % 2, whole = round % 4 / 2;  // whole numbers: sums exact in any order
    context = "mma, round " + std::to_string(round);
    const int depth = bf16 ? 16 : 8;
    const auto number = [&] {
      const float value = whole ? static_cast<float>(static_cast<int>(random() % 17) - 8) : normal(random);
      return bf16 ? float_of(pack_bf16(value, 0) << 16) : float_of(to_tf32(value));
    };
    float a[16][16], b[16][8], c[16][8], d[16][8];
    for (auto& row : a) std::generate(row, row + 16, number);
    for (auto& row : b) std::generate(row, row + 8, number);
    for (auto& row : c) std::generate(row, row + 8, [&] { return round == 2 ? NAN : number(); });
    const bool in_place = round % 3 == 0;
    const uint32_t low_bits = round % 5 == 0 ? 0x1fff : 0;  // of a tf32 register, ignored
    const Emulation done = emulate({1}, 32, 0, static_cast<uint64_t>(round), [&] {
      const int lane = lane_index();
      uint32_t a_part[4], b_part[2];
      float c_part[4], d_part[4];
      const auto a_at = [&](Place p) { return a[p.row][p.column]; };
      const auto b_at = [&](Place p) { return b[p.row][p.column]; };
      for (int i = 0; i < 4; ++i) {
        a_part[i] = bf16 ? pack_bf16(a_at(place_bf16_a(lane, i, 0)), a_at(place_bf16_a(lane, i, 1)))
                         : bits_of(a_at(place_tf32_a(lane, i))) | low_bits;
        c_part[i] = c[place_c(lane, i).row][place_c(lane, i).column];
      }
      for (int i = 0; i < 2; ++i) {
        b_part[i] = bf16 ? pack_bf16(b_at(place_bf16_b(lane, i, 0)), b_at(place_bf16_b(lane, i, 1)))
                         : bits_of(b_at(place_tf32_b(lane, i))) | low_bits;
      }
      float(&result)[4] = in_place ? c_part : d_part;
      if (bf16) {
        mma_bf16(result, a_part, b_part, c_part);
      } else {
        mma_tf32(result, a_part, b_part, c_part);
      }
      for (int i = 0; i < 4; ++i) d[place_c(lane, i).row][place_c(lane, i).column] = result[i];
    });
    CHECK_EQ(done.mma, 1);
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        double exact = 0, size = 0;
        for (int k = 0; k < depth; ++k) {
          const double product = static_cast<double>(a[row][k]) * b[k][column];
          exact += product;
          size += std::fabs(product);
        }
        exact += c[row][column];
        size += std::fabs(c[row][column]);
        if (round == 2) {
          CHECK(std::isnan(d[row][column]));
        } else if (whole) {
          CHECK_EQ(static_cast<double>(d[row][column]), exact);
        } else {
          CHECK(std::fabs(d[row][column] - exact) <= std::fabs(exact) * 0x1p-24 + size * 0x1p-50);
        }
      }
    }
  }
}

// ---- planted defects
// -------------------------------------------------------------------------------------------------

// The sum of 128 floats, a thread a number: into one global cell, or by halves in shared memory.
void races() {
  context = "a race";
  std::vector<float> numbers(128);
  std::mt19937 random(4);
  for (float& number : numbers) number = std::normal_distribution<float>()(random);
  const auto sum = [&](bool racy) {
    return order_dependent(std::vector<float>(1), kSeeds, [&](std::vector<float>& output, uint64_t seed) {
      emulate({1}, 128, 128 * 4, seed, [&] {
        const int i = thread_index();
        if (racy) {
          output[0] += numbers[i];
          return;
        }
        float* shared = reinterpret_cast<float*>(shared_memory());
        shared[i] = numbers[i];
        for (int half = 64; half > 0; half /= 2) {
          barrier();
          if (i < half) shared[i] += shared[i + half];
        }
        if (i == 0) output[0] = shared[0];
      });
    });
  };
  CHECK(sum(true));
  CHECK(!sum(false));

  context = "a race of blocks";
  const auto last = [&](bool racy) {
    return order_dependent(std::vector<int>(8), kSeeds, [&](std::vector<int>& output, uint64_t seed) {
      emulate({8}, 32, 0, seed, [&] { output[racy ? 0 : block_x()] = block_x(); });
    });
  };
  CHECK(last(true));
  CHECK(!last(false));

  context = "a race of warps that are many collectives apart";
  const auto relay = [&](bool racy) {
    return order_dependent(std::vector<float>(1), kSeeds, [&](std::vector<float>& output, uint64_t seed) {
      emulate({1}, 64, 4, seed, [&] {
        float* shared = reinterpret_cast<float*>(shared_memory());
        if (thread_index() == 0) *shared = 5;  // one warp writes at once, the other reads 100 shuffles later
        if (!racy) barrier();
        for (int i = 0; i < 100; ++i) shuffle_xor(i, 1);
        if (thread_index() == 32) output[0] = *shared;
      });
    });
  };
  CHECK(relay(true));
  CHECK(!relay(false));
}

// Rounds of: every thread leaves a number in shared memory and takes another thread's.
template <class Barrier>
std::vector<float> pass_around(uint64_t seed, int partner, const Barrier& before, const Barrier& after) {
  std::vector<float> output(128);
  emulate({1}, 128, 128 * 4, seed, [&] {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = thread_index();
    for (int round = 0; round < 4; ++round) {
      shared[i] = static_cast<float>(1000 * round + i);
      before();
      output[i] += shared[i ^ partner];
      after();
    }
  });
  return output;
}

void missing_barriers() {
  using Barrier = std::function<void()>;
  const Barrier none = [] {}, block = [] { barrier(); }, warp = [] { warp_barrier(); };
  const auto depends = [&](int partner, const Barrier& before, const Barrier& after) {
    return order_dependent(std::vector<float>(), kSeeds, [&](std::vector<float>& output, uint64_t seed) {
      output = pass_around(seed, partner, before, after);
    });
  };
  context = "a missing barrier";
  CHECK(any_nan(pass_around(0, 127, none, block)));  // read before it was written
  CHECK(depends(127, none, block));
  CHECK(depends(127, block, none));                 // written again before it was read
  CHECK(any_nan(pass_around(0, 127, warp, warp)));  // a barrier of the warp is none of the block
  CHECK(!depends(127, block, block));
  CHECK(!any_nan(pass_around(0, 127, block, block)));
  CHECK_EQ(pass_around(0, 127, block, block)[0], 6000.0f + 4 * 127);

  context = "a missing warp barrier";
  CHECK(any_nan(pass_around(0, 31, none, warp)));
  CHECK(depends(31, none, warp));
  CHECK(depends(31, warp, none));
  CHECK(!depends(31, warp, warp));
}

enum class Defect { kNone, kNoWait, kWaitTooFew, kNoBarrier, kNoBarrierBehind, kNoCommit, kStrayCopy };

// C = A·B with A of 16 × 8·steps and B of 8·steps × 32, each warp 8 columns, the steps copied ahead in two
// buffers.
AB_DEVICE void multiply_pipelined(Defect defect, int steps, const float* a, const float* b, float* c) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const int i = thread_index(), g = lane_index() / 4, t = lane_index() % 4, first = 8 * warp_index();
  const auto start = [&](int step) {
    float* buffer = shared + step % 2 * 384;  // A's 16 × 8, then B's 8 × 32
    copy_async_4(buffer + i, a + i / 8 * 8 * steps + 8 * step + i % 8, true);
    if (i < 64) copy_async_16(buffer + 128 + 4 * i, b + 8 * step * 32 + 4 * i, true);
    if (defect != Defect::kNoCommit) copy_async_commit();
  };
  float sum[4] = {};
  start(0);
  AB_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) start(step + 1);
    if (step + 1 == steps) {
      copy_async_wait<0>();
    } else if (defect == Defect::kWaitTooFew) {
      copy_async_wait<2>();
    } else if (defect != Defect::kNoWait) {
      copy_async_wait<1>();
    }
    if (defect != Defect::kNoBarrier) barrier();
    const float* buffer = shared + step % 2 * 384;
    const uint32_t a_part[4] = {to_tf32(buffer[g * 8 + t]), to_tf32(buffer[(g + 8) * 8 + t]),
                                to_tf32(buffer[g * 8 + t + 4]), to_tf32(buffer[(g + 8) * 8 + t + 4])};
    const uint32_t b_part[2] = {to_tf32(buffer[128 + t * 32 + first + g]),
                                to_tf32(buffer[128 + (t + 4) * 32 + first + g])};
    mma_tf32(sum, a_part, b_part, sum);
    if (defect != Defect::kNoBarrierBehind) barrier();
  }
  if (defect == Defect::kStrayCopy && i == 77) copy_async_4(shared + i, a, true);
  for (int j = 0; j < 4; ++j) c[(g + j / 2 * 8) * 32 + first + 2 * t + j % 2] = sum[j];
}

void pipelines() {
  const int steps = 6;
  alignas(16) float a[16 * 8 * steps], b[8 * steps * 32];
  std::mt19937 random(5);
  for (float& value : a) value = static_cast<float>(static_cast<int>(random() % 9) - 4);
  for (float& value : b) value = static_cast<float>(static_cast<int>(random() % 9) - 4);
  std::vector<float> exact(16 * 32);
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 8 * steps; ++k) {
      for (int column = 0; column < 32; ++column)
        exact[row * 32 + column] += a[row * 8 * steps + k] * b[k * 32 + column];
    }
  }
  const auto run = [&](Defect defect, uint64_t seed) {
    std::vector<float> c(16 * 32, -1);
    emulate({1}, 128, 2 * 384 * 4, seed, [&] { multiply_pipelined(defect, steps, a, b, c.data()); });
    return c;
  };
  context = "a pipeline";
  for (uint64_t seed = 0; seed < kSeeds; ++seed) CHECK(run(Defect::kNone, seed) == exact);
  context = "a missing wait";
  for (uint64_t seed = 0; seed < 3; ++seed) {
    CHECK(any_nan(run(Defect::kNoWait, seed)));  // none but the last step's, too late for the others
    CHECK(any_nan(run(Defect::kWaitTooFew, seed)));
  }
  context = "a wait after the read";
  {
    alignas(16) float source[4] = {1, 2, 3, 4};
    std::vector<float> got(32), right(32);
    const auto one = [&](bool wait, std::vector<float>& output) {
      emulate({1}, 32, 32 * 16, 0, [&] {
        float* own = reinterpret_cast<float*>(shared_memory()) + 4 * thread_index();
        copy_async_16(own, source, true);
        copy_async_commit();
        if (wait) copy_async_wait<0>();
        output[thread_index()] = own[2];
        copy_async_wait<0>();
      });
    };
    one(false, got);
    one(true, right);
    for (int i = 0; i < 32; ++i) CHECK(std::isnan(got[i]) && right[i] == 3);
  }
  context = "a missing barrier in a pipeline";
  for (const Defect defect : {Defect::kNoBarrier, Defect::kNoBarrierBehind}) {
    bool caught = false;
    for (uint64_t seed = 0; seed < kSeeds && !caught; ++seed) caught = run(defect, seed) != exact;
    CHECK(caught);
  }
  context = "copies never waited for";
  const auto error = [&](Defect defect) {
    std::vector<float> c(16 * 32);
    return error_of(128, 2 * 384 * 4, [&] { multiply_pipelined(defect, steps, a, b, c.data()); });
  };
  CHECK_EQ(error(Defect::kNone), "");
  check_says(error(Defect::kNoCommit), {"no copy_async_wait covered"});
  check_says(error(Defect::kStrayCopy), {"block (0, 0, 0), thread 77", "no copy_async_wait covered"});
}

void divergence() {
  context = "a barrier in divergent code";
  check_says(error_of(128, 0,
                      [] {
                        if (thread_index() < 64) barrier();
                      }),
             {"block (0, 0, 0), thread ", "waits at barrier (emulator_test.cc:", "of its block",
              "the end of the kernel"});
  check_says(error_of(32, 0,
                      [] {
                        if (block_y() == 1 && thread_index() % 2) barrier();
                      },
                      {1, 2, 1}),
             {"block (0, 1, 0)", "waits at barrier", "of its warp"});
  check_says(error_of(64, 0,
                      [] {
                        if (thread_index() == 40) return;  // ended before a barrier
                        barrier();
                      }),
             {"waits at barrier", "thread 40 of its warp is at the end of the kernel"});
  check_says(error_of(64, 0,
                      [] {
                        if (warp_index() == 0) {
                          barrier();
                        } else {
                          barrier();  // another one
                        }
                      }),
             {"waits at barrier", "is at barrier"});
  check_says(error_of(64, 0,
                      [] {
                        if (warp_index() == 0) {
                          barrier();
                        } else {
                          any_in_block(true);
                        }
                      }),
             {"barrier", "any_in_block"});
  check_says(error_of(64, 0,
                      [] {
                        for (int i = 0; i < 3 + warp_index(); ++i) barrier();
                      }),
             {"waits at barrier", "the end of the kernel"});
  CHECK_EQ(error_of(64, 0,
                    [] {
                      for (int i = 0; i < 3; ++i) barrier();
                      if (block_x() == 1) barrier();  // the same for all of a block
                    },
                    {2}),
           "");

  context = "a warp collective that half the warp reaches";
  const auto half = [] { return lane_index() < 16; };
  check_says(error_of(64, 0,
                      [&] {
                        if (half()) shuffle_xor(1.0f, 1);
                      }),
             {"waits at shuffle (emulator_test.cc:", "of its warp is at the end of the kernel"});
  check_says(error_of(32, 0,
                      [&] {
                        if (half()) warp_barrier();
                        barrier();
                      }),
             {"warp_barrier", "waits at", "barrier"});
  check_says(error_of(32, 0,
                      [&] {
                        if (half()) {
                          any_in_warp(true);
                        } else {
                          ballot(true);
                        }
                      }),
             {"any_in_warp", "ballot"});
  check_says(error_of(32, 0,
                      [&] {
                        if (half()) return;
                        float d[4] = {};
                        const uint32_t a[4] = {}, b[2] = {};
                        mma_bf16(d, a, b, d);
                      }),
             {"waits at mma_bf16", "the end of the kernel"});
  check_says(error_of(32, 0,
                      [&] {
                        float d[4] = {};
                        const uint32_t a[4] = {}, b[2] = {};
                        if (half()) {
                          mma_bf16(d, a, b, d);
                        } else {
                          mma_tf32(d, a, b, d);
                        }
                      }),
             {"mma_bf16", "mma_tf32"});
  check_says(error_of(32, 16,
                      [&] {
                        uint32_t words[4];
                        if (half()) load_matrices(words, shared_memory());
                      }),
             {"waits at load_matrices (", "the end of the kernel"});
  check_says(error_of(32, 16,
                      [&] {
                        uint32_t words[4];
                        if (half()) {
                          load_matrices(words, shared_memory());
                        } else {
                          load_matrices_transposed(words, shared_memory());
                        }
                      }),
             {"load_matrices (", "load_matrices_transposed ("});
  check_says(error_of(32, 0,
                      [] {
                        for (int i = 0; i <= lane_index() / 31; ++i)
                          shuffle(i, 0);  // one lane goes round twice
                      }),
             {"thread 31: waits at shuffle", "the end of the kernel"});
  CHECK_EQ(error_of(64, 0,
                    [&] {
                      const float all = shuffle_xor(1.0f, 1);
                      if (warp_index() == 1) shuffle(all, 3);  // the same for all of a warp
                      if (half()) return;
                    }),
           "");
}

// A shared index beyond the end, in a process of its own: AddressSanitizer ends it.
void overruns() {
  context = "an overrun of shared memory";
  const auto kernel = [](int beyond) {
    emulate({1}, 64, 63 * 4, 0, [=] {
      volatile float* shared = reinterpret_cast<float*>(shared_memory());
      if (thread_index() < 63 + beyond) shared[thread_index()] = 1;
    });
  };
#if defined(AB_ASAN)
  for (const int beyond : {0, 1}) {
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      if (!freopen("/dev/null", "w", stderr)) _exit(3);
      kernel(beyond);
      _exit(0);
    }
    CHECK(child > 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(WIFEXITED(status) && WEXITSTATUS(status) == 0, beyond == 0);
    CHECK(!(WIFEXITED(status) && WEXITSTATUS(status) == 3));
  }
#else
  kernel(0);
  printf("emulator_test: overruns by index are caught under AddressSanitizer only: skipped\n");
#endif
  // Asynchronous copies are checked in any build.
  alignas(16) float global[4] = {};
  const auto copy = [&](int byte, bool wide) {
    return error_of(32, 64, [=, &global] {
      if (thread_index() != 3) return;
      if (wide) {
        copy_async_16(shared_memory() + byte, global, true);
      } else {
        copy_async_4(shared_memory() + byte, global, true);
      }
      copy_async_commit();
      copy_async_wait<0>();
    });
  };
  CHECK_EQ(copy(48, true), "");
  CHECK_EQ(copy(60, false), "");
  check_says(copy(64, true), {"thread 3", "to byte 64 of 64"});
  check_says(copy(-4, false), {"to byte -4 of 64"});
  check_says(copy(40, true), {"not aligned"});
}

// ---- errors and limits
// -----------------------------------------------------------------------------------------------

// An exception of one thread ends the launch; what the stacks of the others hold is let go of, and the next
// runs.
void exceptions() {
  context = "exceptions";
  const auto held = std::make_shared<int>(0);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    std::string got;
    try {
      emulate({3}, 96, 0, seed, [&] {
        const std::shared_ptr<int> own = held;
        const std::string text(100, 'x');
        barrier();
        if (block_x() == 1 && thread_index() == 50) throw std::out_of_range("thread " + text.substr(98));
        warp_barrier();
        barrier();
      });
    } catch (const std::out_of_range& error) {
      got = error.what();
    }
    CHECK_EQ(got, "thread xx");
    CHECK_EQ(held.use_count(), 1);
  }
  check_says(error_of(64, 0,
                      [&] {
                        const std::shared_ptr<int> own = held;
                        if (thread_index() == 9) return;
                        barrier();
                      }),
             {"thread 9"});
  CHECK_EQ(held.use_count(), 1);
  CHECK_EQ(error_of(64, 0, [] { barrier(); }), "");

  context = "limits";
  const auto nothing = [] {};
  check_says(error_of(48, 0, nothing), {"multiple of 32", "48"});
  check_says(error_of(2048, 0, nothing), {"2048"});
  check_says(error_of(32, 300000, nothing), {"300000 bytes"});
  check_says(error_of(32, 0, nothing, {0, 1, 1}), {"0 × 1 × 1"});
  check_says(error_of(32, 0, nothing, {1, 65536, 1}), {"can't be launched"});
  check_says(error_of(32, 0, [] { emulate({1}, 32, 0, 0, [] {}); }), {"inside a kernel"});
  CHECK_EQ(error_of(1024, 227 * 1024, [] { barrier(); }), "");
  std::string outside;
  try {
    barrier();
  } catch (const std::runtime_error& error) {
    outside = error.what();
  }
  check_says(outside, {"outside a kernel"});
}

// A seed decides everything.
void repeatable() {
  context = "repeatable";
  const auto order = [](uint64_t seed) {
    std::vector<int> visits;
    emulate({5}, 128, 0, seed, [&] {
      for (int i = 0; i < 10; ++i) {
        visits.push_back(block_x() * 128 + thread_index());
        if (i % 3 == 0) {
          barrier();
        } else {
          warp_barrier();
        }
      }
    });
    return visits;
  };
  CHECK(order(7) == order(7));
  CHECK(order(7) != order(8));
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  using namespace attention_bias::test;
  coordinates();
  shared_memory_of_a_block();
  exchange();
  conversions();
  vectors();
  matrices();
  async_copies();
  layouts();
  mma_products();
  races();
  missing_barriers();
  pipelines();
  divergence();
  overruns();
  exceptions();
  repeatable();
  return finish("emulator_test");
}
