// to_rgb.h: contract of to_rgb.cu.
#ifndef SCHNELL_TO_RGB_H
#define SCHNELL_TO_RGB_H
#include "abi.h"

#define TO_RGB_THREADS 256
#define TO_RGB_SMEM_BYTES 0

typedef struct to_rgb_params {
    DEV(const float) x;      // [pixels, pitch], channels 0..3 are red, green, blue in [-1, 1]
    DEV(uint8_t) out;        // u8 or f32, as the entry says: [pixels, 3], planar [3, pixels]
    int64_t pixels;
    int64_t pitch;           // elements, at least 3
} to_rgb_params;

#endif
