// Runs a fuzz target without libFuzzer: over the files of a folder, as they are and changed at random, and over random
// bytes. The inputs are the same in each run.
//
//   record_fuzzer CORPUS RUNS
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

std::vector<Input> ReadCorpus(const std::string& folder) {
  std::set<std::filesystem::path> paths;  // in an order that a folder does not have
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.insert(entry.path());
  std::vector<Input> inputs;
  for (const std::filesystem::path& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

Input RandomInput(std::mt19937_64* random) {
  Input input((*random)() % 64);
  for (uint8_t& byte : input) byte = static_cast<uint8_t>((*random)());
  return input;
}

// With some bytes changed, and cut off or gone on with.
Input Changed(Input input, std::mt19937_64* random) {
  for (uint64_t changes = (*random)() % 4; changes > 0 && !input.empty(); --changes) {
    input[(*random)() % input.size()] = static_cast<uint8_t>((*random)());
  }
  input.resize((*random)() % (input.size() + 4));
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CORPUS RUNS\n", argv[0]);
    return 2;
  }
  const std::vector<Input> corpus = ReadCorpus(argv[1]);
  for (const Input& input : corpus) LLVMFuzzerTestOneInput(input.data(), input.size());
  std::mt19937_64 random(1);
  for (long run = std::atol(argv[2]); run > 0; --run) {
    const bool fresh = corpus.empty() || run % 2 == 0;
    const Input input = fresh ? RandomInput(&random) : Changed(corpus[random() % corpus.size()], &random);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  return 0;
}
