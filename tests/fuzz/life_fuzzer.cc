// The life of a table's rows in a checkpoint, whatever its bytes are, is refused or read as what they stand for, and
// goes on.
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/status.h"
#include "fuzz_input.h"
#include "life/life_bytes.h"
#include "life/table_life.h"

namespace {

using damo::fuzz::Require;

// Updates at which nothing is updated.
void GoOn(damo::TableLife* life, uint32_t iter) {
  for (uint32_t i = 0; i < 3 && iter < UINT32_MAX; ++i) {
    const uint64_t before = life->rows();
    life->PassTime(i * 9e2);
    life->BeginStep(++iter, i * 100, i * 1e3);
    life->EndStep();
    Require(life->rows() <= before && life->ladder().highest() <= iter);
    damo::DecodeLife(life->Serialize());
  }
}

}  // namespace

// The first bytes are options, the others what is on disk.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  damo::fuzz::Input input(data, size);
  damo::LifeOptions options;
  options.credit = static_cast<uint32_t>(input.UpTo(20));
  options.max_rows = 1 + input.UpTo(200);
  options.keep_rows = 1 + input.UpTo(200) % options.max_rows;
  options.within_steps = static_cast<uint32_t>(input.UpTo(200));
  options.idle = {{.steps = 1 + static_cast<uint32_t>(input.UpTo(200))}, {.seconds = 1 + 1.0 * input.UpTo(200)}};
  const std::string bytes = input.Rest();
  try {
    const damo::LifeState state = damo::DecodeLife(bytes);
    Require(damo::EncodeLife(state) == bytes);
    damo::TableLife life(bytes, options);
    GoOn(&life, state.iter);
  } catch (const damo::Error& error) {
    Require(error.code() == damo::ErrorCode::kCorruption);
  }
  return 0;
}
