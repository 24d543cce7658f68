// conv2d.h: contract of conv2d.cu.
#ifndef SCHNELL_CONV2D_H
#define SCHNELL_CONV2D_H
#include "gemm.h"

#define CONV2D_STAGES 2
#define CONV2D_SMEM_BYTES 66576

typedef struct conv2d_params {
    gemm_problem gemm;      // x: bf16 NHWC map; m = out pixels, n = out channels, k = taps * channels rounded up to 8
    int32_t in_height, in_width;
    int32_t out_width;      // in_width, or twice that with upsampling
    int32_t channels;       // of the input; x_pitch is its pixel pitch
    int32_t kernel;         // 3 (pad 1) or 1
    int32_t upsample;       // 1: the input is read as if enlarged twofold, nearest neighbor
} conv2d_params;

#endif
