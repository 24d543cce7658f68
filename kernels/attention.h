// attention.h: contract of attention.cu.
#ifndef SCHNELL_ATTENTION_H
#define SCHNELL_ATTENTION_H
#include "abi.h"

#define ATTENTION_BLOCK_Q 64 // query rows per CTA: 16 per warp

// Two entries per padded head width, without and with a position bias. Smaller heads are zero-filled up to the width in
// shared memory. *_BLOCK_KV: keys per tile.
#define ATTENTION_D64_BLOCK_KV 64
#define ATTENTION_D64_THREADS 128
#define ATTENTION_D64_SMEM_BYTES 24576
#define ATTENTION_D64_BIAS_SMEM_BYTES 25088
#define ATTENTION_D128_BLOCK_KV 64
#define ATTENTION_D128_THREADS 128
#define ATTENTION_D128_SMEM_BYTES 49152
#define ATTENTION_D128_BIAS_SMEM_BYTES 49664
#define ATTENTION_D256_BLOCK_KV 32
#define ATTENTION_D256_THREADS 128
#define ATTENTION_D256_SMEM_BYTES 65536
#define ATTENTION_D256_BIAS_SMEM_BYTES 65920
#define ATTENTION_D512_BLOCK_KV 16
#define ATTENTION_D512_THREADS 256
#define ATTENTION_D512_SMEM_BYTES 98304
#define ATTENTION_D512_BIAS_SMEM_BYTES 98624

typedef struct attention_params {
    DEV(const bf16_bits) q;    // element (token, head, d) at token * q_pitch + head * q_head_stride + d
    DEV(const bf16_bits) k;
    DEV(const bf16_bits) v;
    DEV(bf16_bits) out;
    DEV(const float) bias;     // [heads, 2 * bias_len - 1], added at [head, key - query + bias_len - 1]; *_bias entries only
    int64_t q_pitch, k_pitch, v_pitch, out_pitch;
    int32_t q_head_stride, k_head_stride, v_head_stride, out_head_stride;
    int32_t q_len, kv_len;
    int32_t head_dim;          // a multiple of 8
    int32_t bias_len;          // at least q_len and kv_len
    int32_t causal;            // 1: key <= query only
    float softmax_scale;       // positive
} attention_params;

#endif
