// count_nonfinite.h: contract of count_nonfinite.cu.
#ifndef SCHNELL_COUNT_NONFINITE_H
#define SCHNELL_COUNT_NONFINITE_H
#include "abi.h"

#define COUNT_NONFINITE_THREADS 256
#define COUNT_NONFINITE_PER_THREAD 16
#define COUNT_NONFINITE_SMEM_BYTES 0

typedef struct count_nonfinite_params {
    DEV(const float) x;        // [count]
    DEV(uint32_t) counter;     // [index + 1], of which the last is added to
    DEV(const int32_t) index;  // [1], or null for 0
    int64_t count;
} count_nonfinite_params;

#endif
