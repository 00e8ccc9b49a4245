#define DAMO_KERNELS_NAME "avx2"
#define DAMO_KERNELS_SYMBOL kAvx2Kernels
#include "kernels/kernels_impl.h"
