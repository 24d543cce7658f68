// conv2d: NHWC convolution as an implicit GEMM, 3x3 (pad 1) or 1x1, + bias, + residual    bf16 in, f32 accumulate
//
// Work    m is an output pixel, n an output channel, k = tap * channels + channel: the loader gathers, per 16-byte
//         chunk, 8 channels of the pixel that the tap points at; outside the map cp.async fills zeros. Nothing like an
//         im2col buffer exists.
// Fold    nearest-neighbor upsampling by two is a shift of the gathered coordinates, never a map.
// Bound   compute: k = 9 * 512 at most, every input chunk is used by 128 channels.
#include "conv2d.h"
#include "gemm_tile.cuh"
#include "operands/bf16_tile.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Bf16Weights<8>, CONV2D_STAGES>) == CONV2D_SMEM_BYTES,
              "the header tells the host how much to ask for");

namespace {

// Gathers k-step by k-step, without a division: a thread's rows are output pixels, and where a tap points from them is
// kept and moved on when the taps' channels are through.
//
// Upsampled, output pixel (y, x) reads input (y / 2, x / 2). One to the right of an even x is still the same input, one to
// the right of an odd x the next: going from tap to tap, the odd rows and the even ones move in turns.
struct PixelLoader {
    const conv2d_params &p;
    const uint4 *src;              // the map, from this thread's channels in the next k-step on
    int pixel[gemm::ROWS_EACH];    // the tap's input pixels, in chunks of 8 channels from the map's first
    int pitch;                     // chunks from pixel to pixel
    int channel, padded;           // in the next k-step; channels of a tap, padding included
    int dy, dx;                    // the tap
    uint32_t edges;                // bits i, i + 8, i + 16, i + 24: row i is a pixel at the top, bottom, left, right
    uint32_t traits;               // bits i, i + 8, i + 16: its y is odd, its x is odd, it exists
    uint32_t inside;               // bit i: the tap points into the map

    GPU_METHOD PixelLoader(const conv2d_params &params, int m0)
        : p(params), src(reinterpret_cast<const uint4 *>(params.gemm.x) + gemm::own_chunk()), pitch((int)(params.gemm.x_pitch / 8)),
          channel(gemm::own_chunk() * 8), padded((params.channels + 7) / 8 * 8), dy(-(params.kernel / 2)), dx(dy), edges(0), traits(0) {
        GPU_UNROLL
        for (int i = 0; i < gemm::ROWS_EACH; ++i) {
            const int m = m0 + gemm::own_row() + i * gemm::ROWS_APART;
            const int y = m / p.out_width, x = m - y * p.out_width;
            edges |= (y == 0 ? 1u : 0u) << i | (y + 1 == p.in_height << p.upsample ? 1u : 0u) << (i + 8);
            edges |= (x == 0 ? 1u : 0u) << (i + 16) | (x + 1 == p.out_width ? 1u : 0u) << (i + 24);
            traits |= (y & 1u) << i | (x & 1u) << (i + 8) | (m < p.gemm.m ? 1u : 0u) << (i + 16);
            pixel[i] = (((y + dy) >> p.upsample) * p.in_width + ((x + dx) >> p.upsample)) * pitch;
        }
        look();
        settle();
    }

    GPU_METHOD void fetch(uint4 *stage) {
        const int num_channels = p.channels - channel; // of the tap, from this chunk on
        if (num_channels >= 8) {
            GPU_UNROLL
            for (int i = 0; i < gemm::ROWS_EACH; ++i) {
                gpu::cp_async16_or_zeros(&stage[gemm::own_place(i)], src + pixel[i], inside & 1u << i);
            }
        } else { // its last chunk
            GPU_UNROLL
            for (int i = 0; i < gemm::ROWS_EACH; ++i) {
                gpu::cp_async<16>(&stage[gemm::own_place(i)], src + pixel[i], inside & 1u << i ? num_channels * 2 : 0);
            }
        }
        channel += gemm::BLOCK_K;
        src += gemm::CHUNKS;
        settle();
    }

    // Once per step where channels are a multiple of 64; a step may also have several taps.
    GPU_METHOD void settle() {
        while (channel >= padded) {
            channel -= padded;
            src -= padded / 8;
            next_tap();
        }
    }

    // After the last tap there is nothing inside.
    GPU_METHOD void next_tap() {
        const int reach = p.kernel / 2;
        const bool wraps = dx == reach;
        if (p.upsample) {
            GPU_UNROLL
            for (int i = 0; i < gemm::ROWS_EACH; ++i) {
                const bool down = wraps && (int)(traits >> i & 1) == dy + 1;
                const bool across = !wraps && (int)(traits >> (i + 8) & 1) == dx + 1;
                pixel[i] += (down ? p.in_width : 0) * pitch + (across ? pitch : 0) - (wraps && reach ? pitch : 0);
            }
        } else {
            const int step = (wraps ? p.in_width - 2 * reach : 1) * pitch;
            GPU_UNROLL
            for (int i = 0; i < gemm::ROWS_EACH; ++i) pixel[i] += step;
        }
        dx = wraps ? -reach : dx + 1;
        dy += wraps;
        look();
    }

    GPU_METHOD void look() {
        const uint32_t above = dy < 0 ? edges : dy > 0 ? edges >> 8 : 0;
        const uint32_t beside = dx < 0 ? edges >> 16 : dx > 0 ? edges >> 24 : 0;
        inside = dy <= p.kernel / 2 ? traits >> 16 & ~(above | beside) : 0;
    }
};

} // namespace

GPU_KERNEL(conv2d_bf16_sm80, conv2d_params, GEMM_THREADS, 1) {
    const int m0 = gpu::cta_x() * gemm::BLOCK_M, n0 = gpu::cta_y() * gemm::BLOCK_N;
    gemm::run_tile<gemm::Bf16Weights<8>, CONV2D_STAGES, gemm::Map>(p.gemm, PixelLoader(p, m0), n0, m0);
}
