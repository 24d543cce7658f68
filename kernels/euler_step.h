// euler_step.h: contract of euler_step.cu.
#ifndef SCHNELL_EULER_STEP_H
#define SCHNELL_EULER_STEP_H
#include "abi.h"

#define EULER_STEP_THREADS 256
#define EULER_STEP_SMEM_BYTES 0

typedef struct euler_step_params {
    DEV(float) latents;            // [count], updated in place
    DEV(const float) velocity;     // [count]
    DEV(const float) negative;     // [count], the negative prompt's velocity, or null
    DEV(bf16_bits) latents_bf16;   // [count], the updated latents as the next step's GEMM reads them
    DEV(const float) dt;           // [steps]: sigma[k + 1] - sigma[k], negative
    DEV(const int32_t) step;       // [1]: k
    DEV(const float) true_cfg_scale; // [1], with `negative`: v = negative + true_cfg_scale * (velocity - negative)
    int64_t count;
} euler_step_params;

#endif
