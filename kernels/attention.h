// attention.h: contract of attention.cu.
#ifndef SCHNELL_ATTENTION_H
#define SCHNELL_ATTENTION_H
#include "abi.h"

#define ATTENTION_BLOCK_Q 64 // query rows per CTA: 16 per warp

// One entry per padded head width. Smaller heads are zero-filled up to it in shared memory.
#define ATTENTION_D64_THREADS 128
#define ATTENTION_D64_SMEM_BYTES 40960
#define ATTENTION_D128_THREADS 128
#define ATTENTION_D128_SMEM_BYTES 81920
#define ATTENTION_D256_THREADS 128
#define ATTENTION_D256_SMEM_BYTES 65536
#define ATTENTION_D512_THREADS 256
#define ATTENTION_D512_SMEM_BYTES 98304

typedef struct attention_params {
    DEV(const bf16_bits) q;    // element (token, head, d) at token * q_pitch + head * q_head_stride + d
    DEV(const bf16_bits) k;
    DEV(const bf16_bits) v;
    DEV(bf16_bits) out;
    DEV(const float) bias;     // [heads, 2 * bias_len - 1], added at [head, key - query + bias_len - 1]; or null
    int64_t q_pitch, k_pitch, v_pitch, out_pitch;
    int32_t q_head_stride, k_head_stride, v_head_stride, out_head_stride;
    int32_t q_len, kv_len;
    int32_t head_dim;          // a multiple of 8
    int32_t bias_len;
    int32_t causal;            // 1: key <= query only
    float softmax_scale;
} attention_params;

#endif
