// float16 to float32, as fast as the processor does it. Both ways give the same bits.
#pragma once

#include <cstddef>

namespace damo {

using DecodeFloat16 = void (*)(const char* from, size_t n, float* to);

// For this processor.
DecodeFloat16 SelectDecodeFloat16();

}  // namespace damo
