#include "emulator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(AB_ASAN)
#include <sanitizer/common_interface_defs.h>
// For the scheduler's hot paths, most of a test's time; what kernels touch stays watched.
#define AB_UNSANITIZED __attribute__((no_sanitize("address"), no_sanitize("undefined")))
#define AB_SWITCHES
#elif defined(AB_TSAN)
#define AB_UNSANITIZED __attribute__((no_sanitize("thread")))
// ThreadSanitizer is not told of fibres: those of a host thread take turns, so that they are one thread to
// it, and a report's stack may name frames of another. What switches for good must not count as a frame that
// never ends.
#define AB_SWITCHES __attribute__((noinline, no_sanitize("thread")))
#else
#define AB_UNSANITIZED
#define AB_SWITCHES
#endif

// ---- the switch between stacks
// ---------------------------------------------------------------------------------------
// ab_emulator_switch(save, load) pushes the registers that a call preserves, leaves its stack pointer in
// *save, and takes up the stack at `load`, which an earlier switch left or prepare_stack made. ucontext would
// do, but its switch is two system calls, and a kernel makes millions. AB_EMULATOR_UCONTEXT chooses it
// anyway, so that it can be tested.

#if defined(__x86_64__) && !defined(AB_EMULATOR_UCONTEXT)
#define AB_ASSEMBLY_SWITCH 1
#define AB_SWITCH_CODE                                         \
  "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n"   \
  "  pushq %r14\n  pushq %r15\n  movq %rsp, (%rdi)\n"          \
  "  movq %rsi, %rsp\n  popq %r15\n  popq %r14\n  popq %r13\n" \
  "  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
#elif defined(__aarch64__) && !defined(AB_EMULATOR_UCONTEXT)
#define AB_ASSEMBLY_SWITCH 1
#define AB_SWITCH_CODE                                       \
  "  sub sp, sp, #160\n"                                     \
  "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n"    \
  "  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"   \
  "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"   \
  "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"    \
  "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n" \
  "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"             \
  "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n"    \
  "  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"   \
  "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"   \
  "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"    \
  "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n" \
  "  add sp, sp, #160\n  ret\n"
#else
#include <ucontext.h>
#endif

#if defined(AB_ASSEMBLY_SWITCH)
extern "C" void ab_emulator_switch(void** save, void* load);
#if defined(__APPLE__)
asm(".text\n.globl _ab_emulator_switch\n.p2align 4\n_ab_emulator_switch:\n" AB_SWITCH_CODE);
#else
asm(".text\n.globl ab_emulator_switch\n.type ab_emulator_switch, %function\n.p2align 4\n"
    "ab_emulator_switch:\n" AB_SWITCH_CODE ".size ab_emulator_switch, . - ab_emulator_switch\n");
#endif
#endif

namespace attention_bias::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;  // of the largest device we build for
#if defined(AB_ASAN) || defined(AB_TSAN)
constexpr size_t kStackBytes = 512 * 1024;  // redzones make frames large; pages never touched cost nothing
#else
constexpr size_t kStackBytes = 256 * 1024;
#endif

// splitmix64: small, and any seed will do.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

 private:
  uint64_t state_;
};

// A stack, and where it stopped.
struct Context {
#if defined(AB_ASSEMBLY_SWITCH)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;  // lowest byte; of the host thread's own stack, known to ASan only
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // ASan's
};

struct Copy {
  char* shared;
  const void* global;
  uint32_t bytes;
  bool valid;
};

// A thread of the block.
struct Fibre : Thread {
  Context context;
  Collective at = Collective::kNone;  // where it waits
  Site site;
  bool started = false;
  std::vector<Copy> copies;    // in order of issue
  std::vector<size_t> groups;  // committed and not waited for: the index in `copies` where each ends
};

struct Warp {
  int position = 0;              // lanes of this phase that have run
  uint32_t a = 1, b = 0, c = 0;  // the phase's order: (position · a + b) mod 32 xor c
};

// Unwinds the stacks of a block that failed, so that nothing they hold leaks.
struct Cancelled {};

const char* name(Collective collective) {
  switch (collective) {
    case Collective::kNone:
      return "nothing";
    case Collective::kEnd:
      return "the end of the kernel";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kAnyInBlock:
      return "any_in_block";
    case Collective::kWarpBarrier:
      return "warp_barrier";
    case Collective::kShuffle:
      return "shuffle";
    case Collective::kAnyInWarp:
      return "any_in_warp";
    case Collective::kBallot:
      return "ballot";
    case Collective::kMmaTf32:
      return "mma_tf32";
    case Collective::kMmaBf16:
      return "mma_bf16";
    case Collective::kLoadMatrices:
      return "load_matrices";
    case Collective::kLoadMatricesTransposed:
      return "load_matrices_transposed";
  }
  return "";
}

bool of_block(Collective collective) {
  return collective == Collective::kBarrier || collective == Collective::kAnyInBlock;
}

AB_UNSANITIZED bool same_place(const Fibre& x, const Fibre& y) {
  if (x.at != y.at || x.site.line != y.site.line) return false;
  return x.site.file == y.site.file || std::strcmp(x.site.file, y.site.file) == 0;
}

std::string place(const Fibre& fibre) {
  if (fibre.at == Collective::kEnd) return "the end of the kernel";
  const char* slash = std::strrchr(fibre.site.file, '/');
  return std::string(name(fibre.at)) + " (" + (slash ? slash + 1 : fibre.site.file) + ":" +
         std::to_string(fibre.site.line) + ")";
}

void enter_fibre();

// Runs launches, one after another; a host thread has one, so its stacks serve launch after launch.
class Machine {
 public:
  ~Machine() {
    for (const Stacks& stacks : stacks_) munmap(stacks.memory, stacks.bytes);
  }

  Emulation run(const Launch& launch, uint64_t seed, const std::function<void()>& kernel);
  void run_thread();
  [[noreturn]] void leave();
  void meet(Collective collective, Site site);
  [[noreturn]] void fail(const std::string& what);
  void arrived();

  Launch launch;
  Fibre* running = nullptr;
  int64_t async_copies = 0;

 private:
  struct Stacks {
    char* memory;
    size_t bytes;
  };

  void add_fibres(int count);
  void run_block();
  void prepare(Fibre& fibre);
  Fibre* next();
  bool close_phase();
  bool close_block();
  void begin_phase(int warp);
  void release_warps();
  void choose_warp();
  void complete(Collective collective, Fibre* const* lanes);
  void multiply(bool bf16, Fibre* const* lanes);
  void exchange_matrices(bool transposed, Fibre* const* lanes);
  void disagree(const Fibre& x, const Fibre& y);
  void switch_to(Context& from, Context& to, bool for_good);
  void cancel();
  std::string where(const Fibre& fibre) const;

  std::vector<Stacks> stacks_;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<Fibre*> threads_;  // of this block: fibres_ in order of their index
  std::vector<Warp> warps_;
  std::vector<int> runnable_;  // warps not at a barrier and not ended
  const std::function<void()>* kernel_ = nullptr;
  Random random_{0};
  Context host_;
  int warp_ = 0;       // whose phase it is
  int64_t burst_ = 0;  // phases that it may still run before another's turn
  bool cancelling_ = false;
  bool leaving_host_ = false;
  std::string error_;             // a defect that the scheduler found
  std::exception_ptr exception_;  // what a thread threw
  Emulation counts_;
};

__thread Machine* machine = nullptr;

Machine& of_this_thread() {
  static thread_local Machine own;
  return own;
}

// ---- stacks
// ----------------------------------------------------------------------------------------------------------

void Machine::add_fibres(int count) {
  const int first = static_cast<int>(fibres_.size());
  if (count <= first) return;
  // One page without access below each stack turns an overflow into a fault.
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t pitch = kStackBytes + page;
  const size_t bytes = pitch * static_cast<size_t>(count - first);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stacks_.push_back({static_cast<char*>(memory), bytes});
  for (int i = first; i < count; ++i) {
    char* low = stacks_.back().memory + pitch * static_cast<size_t>(i - first);
    if (mprotect(low, page, PROT_NONE) != 0) throw std::bad_alloc();
    auto fibre = std::make_unique<Fibre>();
    fibre->index = i;
    fibre->context.stack = low + page;
    // Stacks a power of two apart would share a few sets of the caches: they begin at different lines.
    fibre->context.stack_bytes = kStackBytes - static_cast<size_t>(i % 64) * 17 * 64;
    fibres_.push_back(std::move(fibre));
  }
}

void Machine::prepare(Fibre& fibre) {
  fibre.at = Collective::kNone;
  fibre.started = false;
  fibre.copies.clear();
  fibre.groups.clear();
  Context& context = fibre.context;
  context.fake_stack = nullptr;
#if defined(AB_ASSEMBLY_SWITCH)
  // What a switch would have left: zeroes in the registers, and enter_fibre to return to.
  char* top = context.stack + context.stack_bytes;
  void (*const entry)() = enter_fibre;
#if defined(__x86_64__)
  char* pointer = top - 64;  // six registers, the address, and the zero that ends a walk up the stack
  std::memset(pointer, 0, 64);
  std::memcpy(pointer + 48, &entry, sizeof entry);
#else
  char* pointer = top - 160;
  std::memset(pointer, 0, 160);
  std::memcpy(pointer + 88, &entry, sizeof entry);  // x30
#endif
  context.stack_pointer = pointer;
#else
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = context.stack;
  context.context.uc_stack.ss_size = context.stack_bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, enter_fibre, 0);
#endif
}

// Returns when someone switches back to `from`, never if `for_good`.
AB_SWITCHES void Machine::switch_to(Context& from, Context& to, bool for_good) {
  leaving_host_ = &from == &host_;
#if defined(AB_ASAN)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#else
  (void)for_good;
#endif
#if defined(AB_ASSEMBLY_SWITCH)
  ab_emulator_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(AB_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first frame of every fibre. It never returns, so it keeps nothing that a sanitizer would mark on the
// stack.
#if defined(AB_ASAN)
__attribute__((no_sanitize("address")))
#elif defined(AB_TSAN)
__attribute__((no_sanitize("thread")))
#endif
void enter_fibre() {
  machine->arrived();
  machine->run_thread();
  machine->leave();
}

void Machine::arrived() {
#if defined(AB_ASAN)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (leaving_host_) {
    host_.stack = static_cast<char*>(const_cast<void*>(bottom));
    host_.stack_bytes = bytes;
  }
#endif
}

// ---- threads
// ---------------------------------------------------------------------------------------------------------

void Machine::run_thread() {
  Fibre& fibre = *running;
  fibre.started = true;
  try {
    (*kernel_)();
    if (!fibre.copies.empty()) fail("ends with asynchronous copies that no copy_async_wait covered");
  } catch (const Cancelled&) {
  } catch (...) {
    if (!exception_) exception_ = std::current_exception();
  }
  fibre.at = Collective::kEnd;
  fibre.site = {};
}

AB_SWITCHES void Machine::leave() {
  Context& own = running->context;
  Fibre* then = cancelling_ || exception_ ? nullptr : next();
  running = then;
  switch_to(own, then ? then->context : host_, true);
  std::abort();  // an ended fibre is never resumed
}

void Machine::meet(Collective collective, Site site) {
  Fibre& fibre = *running;
  if (cancelling_) throw Cancelled();
  fibre.at = collective;
  fibre.site = site;
  Fibre* then = next();
  if (then == &fibre) return;
  running = then;
  switch_to(fibre.context, then ? then->context : host_, false);
  if (cancelling_) throw Cancelled();
}

std::string Machine::where(const Fibre& fibre) const {
  const Grid& b = launch.block;
  return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) +
         "), thread " + std::to_string(fibre.index);
}

void Machine::fail(const std::string& what) { throw std::runtime_error(where(*running) + ": " + what); }

void Machine::disagree(const Fibre& x, const Fibre& y) {
  // The one that reached a collective is named first; the kernel's end is what the other missed it for.
  const bool swap = x.at == Collective::kEnd;
  const Fibre& one = swap ? y : x;
  const Fibre& other = swap ? x : y;
  error_ = where(one) + ": waits at " + place(one) + ", but thread " + std::to_string(other.index) + " of " +
           (one.index / kLanes == other.index / kLanes ? "its warp" : "its block") + " is at " + place(other);
}

// ---- the order of things
// ---------------------------------------------------------------------------------------------

void Machine::begin_phase(int warp) {
  const uint64_t bits = random_.next();
  warps_[warp].position = 0;
  warps_[warp].a = static_cast<uint32_t>(bits) | 1;
  warps_[warp].b = static_cast<uint32_t>(bits >> 32);
  warps_[warp].c = static_cast<uint32_t>(bits >> 59);
}

void Machine::release_warps() {
  runnable_.clear();
  for (int warp = 0; warp < static_cast<int>(warps_.size()); ++warp) {
    runnable_.push_back(warp);
    begin_phase(warp);
  }
}

// A warp runs for 1 to 512 phases before another gets its turn: some run far ahead, some in step.
void Machine::choose_warp() {
  warp_ = runnable_[random_.below(static_cast<int64_t>(runnable_.size()))];
  burst_ = int64_t{1} << random_.below(10);
}

// The thread that runs after this one; none when the block has ended or error_ says why it can't go on.
AB_UNSANITIZED Fibre* Machine::next() {
  Warp* warp = &warps_[warp_];
  if (warp->position == kLanes) {
    if (!close_phase()) return nullptr;
    warp = &warps_[warp_];
  }
  const uint32_t lane = ((static_cast<uint32_t>(warp->position) * warp->a + warp->b) % kLanes) ^ warp->c;
  ++warp->position;
  return threads_[static_cast<size_t>(warp_) * kLanes + lane];
}

// All lanes of the warp have run to where they wait, which must be one place.
AB_UNSANITIZED bool Machine::close_phase() {
  Fibre* const* lanes = &threads_[static_cast<size_t>(warp_) * kLanes];
  for (int lane = 1; lane < kLanes; ++lane) {
    if (same_place(*lanes[0], *lanes[lane])) continue;
    disagree(*lanes[0], *lanes[lane]);
    return false;
  }
  const Collective at = lanes[0]->at;
  if (at == Collective::kEnd || of_block(at)) {
    for (size_t i = 0; i < runnable_.size(); ++i) {
      if (runnable_[i] != warp_) continue;
      runnable_[i] = runnable_.back();
      runnable_.pop_back();
      break;
    }
    if (runnable_.empty() && !close_block()) return false;
    choose_warp();
    return true;
  }
  ++counts_.warp_collectives;
  complete(at, lanes);
  begin_phase(warp_);
  if (--burst_ <= 0) choose_warp();
  return true;
}

// No warp can run: all threads wait at one barrier, which opens, or all have ended.
bool Machine::close_block() {
  for (size_t i = kLanes; i < threads_.size(); i += kLanes) {
    if (same_place(*threads_[0], *threads_[i])) continue;
    disagree(*threads_[0], *threads_[i]);
    return false;
  }
  const Collective at = threads_[0]->at;
  if (at == Collective::kEnd) return false;
  ++counts_.block_barriers;
  if (at == Collective::kAnyInBlock) {
    uint32_t any = 0;
    for (const Fibre* thread : threads_) any |= thread->value;
    for (Fibre* thread : threads_) thread->value = any;
  }
  release_warps();
  return true;
}

// ---- what warps do together
// ------------------------------------------------------------------------------------------

void Machine::complete(Collective collective, Fibre* const* lanes) {
  switch (collective) {
    case Collective::kShuffle: {
      uint32_t values[kLanes];
      for (int i = 0; i < kLanes; ++i) values[i] = lanes[i]->value;
      for (int i = 0; i < kLanes; ++i) lanes[i]->value = values[lanes[i]->source_lane];
      return;
    }
    case Collective::kAnyInWarp:
    case Collective::kBallot: {
      uint32_t bits = 0;
      for (int i = 0; i < kLanes; ++i) bits |= lanes[i]->value << i;
      if (collective == Collective::kAnyInWarp) bits = bits != 0;
      for (int i = 0; i < kLanes; ++i) lanes[i]->value = bits;
      return;
    }
    case Collective::kMmaTf32:
    case Collective::kMmaBf16:
      multiply(collective == Collective::kMmaBf16, lanes);
      return;
    case Collective::kLoadMatrices:
    case Collective::kLoadMatricesTransposed:
      exchange_matrices(collective == Collective::kLoadMatricesTransposed, lanes);
      return;
    default:
      return;
  }
}

AB_UNSANITIZED float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The layout of fragments is in native/cuda/device.cuh. Products of these types are exact in float64. Most of
// the time of a test goes here, and the indices are ours: sanitizers would only slow it down.
AB_UNSANITIZED void Machine::multiply(bool bf16, Fibre* const* lanes) {
  ++counts_.mma;
  double a[16][16], b[16][8], sum[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fibre& from = *lanes[lane];
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8;
      if (bf16) {
        a[row][2 * t + i / 2 * 8] = as_float(from.a[i] << 16);
        a[row][2 * t + i / 2 * 8 + 1] = as_float(from.a[i] & 0xffff0000u);
      } else {
        a[row][t + i / 2 * 4] = as_float(from.a[i] & 0xffffe000u);
      }
      sum[g + i / 2 * 8][2 * t + i % 2] = from.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      if (bf16) {
        b[2 * t + i * 8][g] = as_float(from.b[i] << 16);
        b[2 * t + i * 8 + 1][g] = as_float(from.b[i] & 0xffff0000u);
      } else {
        b[t + i * 4][g] = as_float(from.b[i] & 0xffffe000u);
      }
    }
  }
  const int depth = bf16 ? 16 : 8;
  for (int row = 0; row < 16; ++row) {
    double products[8] = {};  // C comes last, so that a sum of small products is not lost against it
    for (int k = 0; k < depth; ++k) {
      for (int column = 0; column < 8; ++column) products[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) sum[row][column] += products[column];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    float* d = lanes[lane]->d;
    for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sum[g + i / 2 * 8][2 * t + i % 2]);
  }
}

// Lane 8·m + r brought row r of matrix m, 8 × 8 of 16 bits.
AB_UNSANITIZED void Machine::exchange_matrices(bool transposed, Fibre* const* lanes) {
  uint32_t rows[kLanes][4];
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) rows[lane][i] = lanes[lane]->words[i];
  }
  const auto element = [&](int matrix, int row, int column) {
    return rows[8 * matrix + row][column / 2] >> 16 * (column % 2) & 0xffff;
  };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int m = 0; m < 4; ++m) {
      lanes[lane]->words[m] =
          transposed ? element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16 : rows[8 * m + g][t];
    }
  }
}

// ---- launches
// --------------------------------------------------------------------------------------------------------

void Machine::cancel() {
  cancelling_ = true;
  for (Fibre* thread : threads_) {
    if (!thread->started || thread->at == Collective::kEnd) continue;
    running = thread;
    switch_to(host_, thread->context, false);
  }
  cancelling_ = false;
  running = nullptr;
}

void Machine::run_block() {
  // No more than asked for, so that AddressSanitizer sees the first byte beyond; the device aligns it
  // likewise.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, launch.shared_bytes) != 0) throw std::bad_alloc();
  const std::unique_ptr<void, void (*)(void*)> owner(memory, std::free);
  if (launch.shared_bytes > 0) std::memset(memory, 0xff, launch.shared_bytes);
  launch.shared = static_cast<char*>(memory);

  for (Fibre* thread : threads_) prepare(*thread);
  release_warps();
  choose_warp();
  running = next();
  switch_to(host_, running->context, false);

  if (exception_ || !error_.empty()) {
    cancel();
    const std::exception_ptr exception = std::exchange(exception_, nullptr);
    const std::string error = std::exchange(error_, "");
    if (exception) std::rethrow_exception(exception);
    throw std::runtime_error(error);
  }
  ++counts_.blocks;
}

Emulation Machine::run(const Launch& l, uint64_t seed, const std::function<void()>& kernel) {
  launch = l;
  kernel_ = &kernel;
  random_ = Random(seed);
  counts_ = {};
  async_copies = 0;
  add_fibres(l.block_threads);
  threads_.clear();
  for (int i = 0; i < l.block_threads; ++i) threads_.push_back(fibres_[static_cast<size_t>(i)].get());
  warps_.resize(static_cast<size_t>(l.block_threads / kLanes));

  std::vector<int64_t> order(static_cast<size_t>(int64_t{1} * l.grid.x * l.grid.y * l.grid.z));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[random_.below(static_cast<int64_t>(i))]);
  for (const int64_t i : order) {
    launch.block.x = static_cast<int>(i % l.grid.x);
    launch.block.y = static_cast<int>(i / l.grid.x % l.grid.y);
    launch.block.z = static_cast<int>(i / l.grid.x / l.grid.y);
    run_block();
  }
  counts_.async_copies = async_copies;
  return counts_;
}

}  // namespace

Emulation emulate(Grid grid, int block_threads, size_t shared_bytes, uint64_t seed,
                  const std::function<void()>& kernel) {
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("emulate: a grid of " + std::to_string(grid.x) + " × " + std::to_string(grid.y) +
                             " × " + std::to_string(grid.z) + " can't be launched");
  }
  if (block_threads < kLanes || block_threads > kMaxThreads || block_threads % kLanes != 0) {
    throw std::runtime_error("emulate: expected 32 to 1024 threads, a multiple of 32, but received " +
                             std::to_string(block_threads));
  }
  if (shared_bytes > kMaxSharedBytes) {
    throw std::runtime_error("emulate: " + std::to_string(shared_bytes) +
                             " bytes of shared memory are more than any device has");
  }
  if (machine) throw std::runtime_error("emulate: called inside a kernel");
  struct Entered {
    Entered() { machine = &of_this_thread(); }
    ~Entered() { machine = nullptr; }
  } entered;
  Launch launch;
  launch.grid = grid;
  launch.block_threads = block_threads;
  launch.shared_bytes = shared_bytes;
  return machine->run(launch, seed, kernel);
}

Thread& self() {
  if (!machine) throw std::runtime_error("a function of the device called outside a kernel");
  return *machine->running;
}

const Launch& launch() {
  if (!machine) throw std::runtime_error("a function of the device called outside a kernel");
  return machine->launch;
}

void meet(Collective collective, Site site) {
  self();
  machine->meet(collective, site);
}

void check_aligned_16(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 == 0) return;
  self();
  machine->fail("an access of 16 bytes at an address not aligned to 16");
}

void check_matrix_row(const void* address) {
  check_aligned_16(address);
  self();
  const char* row = static_cast<const char*>(address);
  const Launch& l = machine->launch;
  if (row < l.shared || row + 16 > l.shared + l.shared_bytes) {
    machine->fail("a row of a matrix at byte " + std::to_string(row - l.shared) + " of " +
                  std::to_string(l.shared_bytes) + " bytes of shared memory");
  }
}

void copy_async(void* shared, const void* global, size_t bytes, bool valid) {
  self();
  char* to = static_cast<char*>(shared);
  const Launch& l = machine->launch;
  if (to < l.shared || to + bytes > l.shared + l.shared_bytes) {
    machine->fail("an asynchronous copy to byte " + std::to_string(to - l.shared) + " of " +
                  std::to_string(l.shared_bytes) + " bytes of shared memory");
  }
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    machine->fail("an asynchronous copy of " + std::to_string(bytes) + " bytes not aligned to them");
  }
  std::memset(to, 0xff, bytes);
  machine->running->copies.push_back({to, global, static_cast<uint32_t>(bytes), valid});
  ++machine->async_copies;
}

void copy_async_commit() {
  self();
  Fibre& fibre = *machine->running;
  fibre.groups.push_back(fibre.copies.size());
}

void copy_async_wait(int groups) {
  self();
  Fibre& fibre = *machine->running;
  if (fibre.groups.size() <= static_cast<size_t>(groups)) return;
  const size_t done = fibre.groups.size() - static_cast<size_t>(groups);
  const size_t end = fibre.groups[done - 1];
  for (size_t i = 0; i < end; ++i) {
    const Copy& copy = fibre.copies[i];
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      std::memset(copy.shared, 0, copy.bytes);
    }
  }
  fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + static_cast<std::ptrdiff_t>(end));
  fibre.groups.erase(fibre.groups.begin(), fibre.groups.begin() + static_cast<std::ptrdiff_t>(done));
  for (size_t& group : fibre.groups) group -= end;
}

}  // namespace attention_bias::emulator
