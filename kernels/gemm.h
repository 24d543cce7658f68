// gemm.h: what nf4_gemm and bf16_gemm have in common: the CTA tile, the problem and its epilogues. conv2d has the same tile.
//
// out^T[N, M] = w[N, K] . x[M, K]^T: features (N) are the tensor core's rows, tokens or pixels (M) its columns.
#ifndef SCHNELL_GEMM_H
#define SCHNELL_GEMM_H
#include "abi.h"

#define GEMM_BLOCK_N 128    // features per CTA: one FLUX head, so that its RMSNorm stays inside
#define GEMM_BLOCK_M 128    // tokens per CTA
#define GEMM_BLOCK_K 64     // one NF4 quant block
#define GEMM_THREADS 128    // 2 x 2 warps of 64 features x 64 tokens
#define GEMM_MAX_SEGMENTS 4
#define GEMM_MAX_PROBLEMS 2 // FLUX's img and txt in one launch

// What becomes of a column range of the output. `y` is acc + bias, after the activation.
#define GEMM_STORE_BF16 0   // out = y
#define GEMM_STORE_F32 1    // out = y
#define GEMM_ADD_F32 2      // out += gate * y, the f32 residual stream; aux: gate f32 [n], or null for 1
#define GEMM_ADD_BF16 3     // out = y + aux, aux: bf16 [m, out_pitch]; may be out itself
#define GEMM_MUL_BF16 4     // out = y * aux, likewise
#define GEMM_NORM_ROPE 5    // per 128 features: RMSNorm with weights aux f32 [128], then RoPE; out bf16

#define GEMM_ACT_NONE 0
#define GEMM_ACT_GELU_TANH 1
#define GEMM_ACT_GELU_ERF 2
#define GEMM_ACT_QUICK_GELU 3

// What an entry point compiles, as bits 1 << kind and 1 << activation. A launch takes the set that has all of its segments'.
#define GEMM_STORE_KINDS (1 << GEMM_STORE_BF16) // bf16 results
#define GEMM_STORE_ACTS (1 << GEMM_ACT_NONE | 1 << GEMM_ACT_GELU_TANH | 1 << GEMM_ACT_GELU_ERF | 1 << GEMM_ACT_QUICK_GELU)
#define GEMM_RESIDUAL_KINDS (1 << GEMM_STORE_F32 | 1 << GEMM_ADD_F32) // the f32 stream and f32 results
#define GEMM_RESIDUAL_ACTS (1 << GEMM_ACT_NONE)
#define GEMM_COMBINE_KINDS (1 << GEMM_ADD_BF16 | 1 << GEMM_MUL_BF16) // with another bf16 matrix
#define GEMM_COMBINE_ACTS (1 << GEMM_ACT_NONE)
#define GEMM_HEADS_KINDS (1 << GEMM_NORM_ROPE | 1 << GEMM_STORE_BF16) // FLUX's q, k, v and the MLP beside them
#define GEMM_HEADS_ACTS (1 << GEMM_ACT_NONE | 1 << GEMM_ACT_GELU_TANH)

typedef struct gemm_segment {
    DEV(void) out;             // column 0 is feature n_begin; 16-byte aligned
    DEV(const void) aux;
    int64_t out_pitch;         // elements from one token to the next
    int32_t n_begin, n_end;    // multiples of 8 (n_end may be the problem's n); of 128 for GEMM_NORM_ROPE
    int32_t kind, act;
} gemm_segment;

// What is added to the sums of a problem before its epilogues: t . up^T, the second half of a product of low rank (LoRA). The
// features of `num_parts` matrices, one behind the other, have columns of t of their own.
typedef struct gemm_low_rank {
    DEV(const bf16_bits) t;    // [m, t_pitch], 16-byte aligned rows: those of part i begin at column i * rank
    DEV(const bf16_bits) up;   // [n, rank], 16-byte aligned
    int64_t t_pitch;
    int32_t rank;              // a multiple of 8
    int32_t num_parts;         // 0: nothing is added
    int32_t end[GEMM_MAX_SEGMENTS]; // one past the last feature of each part
} gemm_low_rank;

typedef struct gemm_problem {
    DEV(const bf16_bits) x;    // [m, x_pitch], 16-byte aligned rows; nf4_half_gemm: fp16, within 256
    DEV(const float) x_scale;  // nf4_half_gemm: [m], by which the rows of x are multiplied in the end
    DEV(const void) w;         // nf4_gemm: fragment order; kept: panels (kept_gemm.h); others: bf16 [n, w_pitch], 16-byte aligned rows
    DEV(const float) absmax;   // nf4_gemm: [k / 64, n rounded up to 64]
    DEV(const float) bias;     // [n] or null
    DEV(const float) rope_cos; // [m, 64], for GEMM_NORM_ROPE
    DEV(const float) rope_sin;
    int64_t x_pitch, w_pitch;
    int32_t m, n, k, num_segments;
    float norm_eps;
    int32_t reserved;
    gemm_segment segment[GEMM_MAX_SEGMENTS];
} gemm_problem;

// Tiles are numbered problem by problem, and in each tokens first. The first `num_whole` have a CTA each; those behind them
// are split along k into `num_slices`, each with a CTA (gemm_split.cuh).
typedef struct gemm_params {
    gemm_problem problem[GEMM_MAX_PROBLEMS];   // of 256 bytes each: the second's fields are a shift away
    gemm_low_rank low_rank[GEMM_MAX_PROBLEMS]; // each problem's
    DEV(float) partials;       // [split tiles, num_slices, GEMM_BLOCK_N * GEMM_BLOCK_M], or null when nothing is split
    DEV(uint32_t) arrivals;    // [split tiles]: slices that have been multiplied; 0 before and after a launch
    int32_t num_whole, num_slices;
} gemm_params;

#endif
