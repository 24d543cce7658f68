// next_step.h: contract of next_step.cu.
#ifndef SCHNELL_NEXT_STEP_H
#define SCHNELL_NEXT_STEP_H
#include "abi.h"

#define NEXT_STEP_THREADS 32
#define NEXT_STEP_SMEM_BYTES 0

typedef struct next_step_params {
    DEV(int32_t) step;         // [1], one more
} next_step_params;

#endif
