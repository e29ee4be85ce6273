// A fuzz target without libFuzzer: runs the files of a corpus in the order of their names, then inputs that
// are random damage of these, for some seconds. Where nothing is instrumented it runs fifty times as many
// inputs.
//
//   fuzz_kernels [-seed=N] [-seconds=N] [-keep=FOLDER] [-failures=N] FILE_OR_FOLDER...
//
// Prints the number of inputs; ends with 1 after `failures` (default 1) of them failed, each printed with its
// bytes in hexadecimal digits and kept in FOLDER. An input that ends the process is kept likewise.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "fuzz.h"

namespace attention_bias::fuzz {
namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kLongest = 512;

std::string keep_folder = ".";
char fatal_path[4096];
const Bytes* running = nullptr;

void keep_and_end(int signal_number) {
  const int file = open(fatal_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  if (file >= 0 && running && write(file, running->data(), running->size()) >= 0) {
    constexpr char kText[] = "the process ended; its input is kept as crash-fatal\n";
    if (write(STDERR_FILENO, kText, sizeof kText - 1) < 0) _exit(1);
  }
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

// False where the input fails.
bool passes(const Bytes& input, const std::string& name) {
  running = &input;
  std::string what;
  try {
    run_input(input.data(), input.size());
    return true;
  } catch (const std::exception& exception) {
    what = exception.what();
  }
  std::string hex;
  for (const uint8_t byte : input) {
    char digits[3];
    snprintf(digits, sizeof digits, "%02x", byte);
    hex += digits;
  }
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (const uint8_t byte : input) hash = (hash ^ byte) * 1099511628211u;
  char file[32];
  snprintf(file, sizeof file, "/crash-%016llx", static_cast<unsigned long long>(hash));
  const std::string path = keep_folder + file;
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  fprintf(stderr, "failed: %s\n  input %s, kept as %s\n  hex %s\n", what.c_str(), name.c_str(), path.c_str(),
          hex.c_str());
  return false;
}

size_t below(std::mt19937_64& engine, size_t end) { return end == 0 ? 0 : engine() % end; }

Bytes damaged(const std::vector<Bytes>& corpus, std::mt19937_64& engine) {
  Bytes input = corpus.empty() ? Bytes() : corpus[below(engine, corpus.size())];
  for (size_t left = 1 + below(engine, 6); left > 0; --left) {
    const size_t at = below(engine, input.size() + 1);
    const auto place = input.begin() + static_cast<std::ptrdiff_t>(at);
    switch (below(engine, 7)) {
      case 0:
        if (at < input.size()) *place = static_cast<uint8_t>(engine());
        break;
      case 1:
        if (at < input.size()) *place ^= static_cast<uint8_t>(1u << below(engine, 8));
        break;
      case 2:
        input.insert(place, static_cast<uint8_t>(engine()));
        break;
      case 3:
        if (at < input.size()) input.erase(place);
        break;
      case 4:
        input.resize(at);
        break;
      case 5:
        for (size_t count = 1 + below(engine, 24); count > 0; --count) {
          input.push_back(static_cast<uint8_t>(engine()));
        }
        break;
      case 6: {  // the rest of another
        if (corpus.empty()) break;
        const Bytes& other = corpus[below(engine, corpus.size())];
        input.resize(at);
        input.insert(input.end(),
                     other.begin() + static_cast<std::ptrdiff_t>(below(engine, other.size() + 1)),
                     other.end());
        break;
      }
    }
  }
  if (input.size() > kLongest) input.resize(kLongest);
  return input;
}

int run(int count, char** arguments) {
  uint64_t seed = 1;
  double seconds = 0;
  int allowed = 1;
  std::vector<std::string> files;
  const auto option = [](const std::string& text, const std::string& name, std::string* value) {
    if (text.compare(0, name.size(), name) != 0) return false;
    *value = text.substr(name.size());
    return true;
  };
  for (int i = 1; i < count; ++i) {
    std::string value;
    if (option(arguments[i], "-seed=", &value)) {
      seed = std::stoull(value);
    } else if (option(arguments[i], "-seconds=", &value)) {
      seconds = std::stod(value);
    } else if (option(arguments[i], "-failures=", &value)) {
      allowed = std::stoi(value);
    } else if (option(arguments[i], "-keep=", &value)) {
      keep_folder = value;
    } else if (std::filesystem::is_directory(arguments[i])) {
      for (const auto& entry : std::filesystem::directory_iterator(arguments[i]))
        files.push_back(entry.path());
    } else {
      files.push_back(arguments[i]);
    }
  }
  std::sort(files.begin(), files.end());
  snprintf(fatal_path, sizeof fatal_path, "%s/crash-fatal", keep_folder.c_str());
  for (const int fatal : {SIGSEGV, SIGABRT, SIGFPE, SIGILL, SIGBUS}) signal(fatal, keep_and_end);

  int failures = 0;
  std::vector<Bytes> corpus;
  for (const std::string& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("can't open " + path);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (!passes(corpus.back(), path) && ++failures >= allowed) break;
  }
  std::mt19937_64 engine(seed);
  uint64_t inputs = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (failures < allowed && std::chrono::steady_clock::now() < end) {
    const Bytes input = damaged(corpus, engine);
    const std::string name = "seed " + std::to_string(seed) + ", number " + std::to_string(inputs++);
    if (!passes(input, name)) ++failures;
  }
  printf("%zu inputs of the corpus and %llu at random (seed %llu): %d failed\n", corpus.size(),
         static_cast<unsigned long long>(inputs), static_cast<unsigned long long>(seed), failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace attention_bias::fuzz

int main(int count, char** arguments) {
  try {
    return attention_bias::fuzz::run(count, arguments);
  } catch (const std::exception& exception) {
    fprintf(stderr, "%s\n", exception.what());
    return 2;
  }
}
