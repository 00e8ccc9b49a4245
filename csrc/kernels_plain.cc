#define DAMO_KERNELS_NAME "plain"
#define DAMO_KERNELS_SYMBOL kPlainKernels
#include "kernels_impl.h"
