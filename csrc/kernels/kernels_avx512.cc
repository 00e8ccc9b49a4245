#define DAMO_KERNELS_NAME "avx512"
#define DAMO_KERNELS_SYMBOL kAvx512Kernels
#include "kernels/kernels_impl.h"
