#define DAMO_KERNELS_NAME "plain"
#define DAMO_KERNELS_SYMBOL kPlainKernels
#include "kernels/kernels_impl.h"
