// conv2d.h: contract of conv2d.cu.
#ifndef SCHNELL_CONV2D_H
#define SCHNELL_CONV2D_H
#include "gemm.h"

#define CONV2D_THREADS 128
#define CONV2D_BLOCK_N 128          // output channels per CTA
#define CONV2D_TILE_HEIGHT 8        // pixels per CTA: of the output, or of the input where that is enlarged
#define CONV2D_TILE_WIDTH 16
#define CONV2D_BLOCK_C 32           // input channels between two barriers
#define CONV2D_SMEM_BYTES 49792
#define CONV2D_ENLARGE_SMEM_BYTES 37376
#define CONV2D_NARROW_OUT_CHANNELS 8
#define CONV2D_NARROW_SMEM_BYTES 34048

typedef struct conv2d_params {
    DEV(const bf16_bits) x;         // [height, width, channels], 16-byte aligned pixels
    DEV(const bf16_bits) weight;    // [out_channels, phases, channels / 32 rounded up, taps, 32], zeros where there is no channel
    DEV(const float) bias;          // [out_channels] or null
    DEV(const bf16_bits) residual;  // [out pixels, out_channels] at out_pitch, added; may be out; or null
    DEV(void) out;                  // [out pixels, out_channels]: bf16, of conv2d_narrow f32
    DEV(const float) norm;          // [2, channels], scale and shift of every channel, SiLU follows; or null. Not enlarging
    int64_t out_pitch;              // elements from pixel to pixel
    int32_t x_pitch;                // chunks of 8 channels from pixel to pixel
    int32_t weight_pitch;           // chunks of 8 from output channel to output channel
    int32_t height, width;          // of x
    int32_t channels, out_channels; // `channels` is a multiple of 8 where there is a norm
} conv2d_params;

#endif
