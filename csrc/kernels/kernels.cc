#include "kernels/kernels.h"

#include <vector>

#include "base/status.h"

namespace damo {

extern const Kernels kPlainKernels;
#ifdef DAMO_HAVE_AVX2
extern const Kernels kAvx2Kernels;
#endif
#ifdef DAMO_HAVE_AVX512
extern const Kernels kAvx512Kernels;
#endif

namespace {

// Widest first.
std::vector<const Kernels*> SupportedKernels() {
  std::vector<const Kernels*> supported;
#ifdef DAMO_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    supported.push_back(&kAvx512Kernels);
  }
#endif
#ifdef DAMO_HAVE_AVX2
  if (__builtin_cpu_supports("avx2")) supported.push_back(&kAvx2Kernels);
#endif
  supported.push_back(&kPlainKernels);
  return supported;
}

}  // namespace

std::vector<std::string> SupportedInstructionSets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : SupportedKernels()) names.emplace_back(kernels->name);
  return names;
}

const Kernels& SelectKernels(const std::string& instruction_set) {
  const std::vector<const Kernels*> supported = SupportedKernels();
  if (instruction_set == "auto") return *supported.front();
  std::string names = "auto";
  for (const Kernels* kernels : supported) {
    if (instruction_set == kernels->name) return *kernels;
    names += std::string(", ") + kernels->name;
  }
  throw Error(ErrorCode::kInvalidArgument,
              "instruction_set must be one of " + names + " on this machine, got \"" + instruction_set + "\"");
}

}  // namespace damo
