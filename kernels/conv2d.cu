// conv2d: NHWC convolution as an implicit GEMM, 3x3 (pad 1) or 1x1, + bias, + residual    bf16 in, f32 accumulate
//
// Work    m is an output pixel, n an output channel, k = tap * channels + channel: the loader gathers, per 16-byte
//         chunk, 8 channels of the pixel that the tap points at; outside the map cp.async fills zeros. Nothing like an
//         im2col buffer exists.
// Fold    nearest-neighbour upsampling by two is a shift of the gathered coordinates, never a map.
// Bound   compute: k = 9 * 512 at most, every input chunk is used by 128 channels.
#include "conv2d.h"
#include "gemm_tile.cuh"

static_assert(sizeof(gemm::SharedStorage<gemm::Bf16Weights<8>, CONV2D_STAGES>) == CONV2D_SMEM_BYTES, "the header tells the host how much to ask for");

namespace {

struct PixelLoader {
    const conv2d_params &p;
    int m0;
    int k; // of this thread's chunk in the next k-step

    GPU_METHOD PixelLoader(const conv2d_params &params, int m_begin) : p(params), m0(m_begin), k(gemm::own_chunk() * 8) {}

    GPU_METHOD void fetch(uint4 *stage) {
        const int padded = (p.channels + 7) / 8 * 8;
        const int tap = k / padded, channel = k - tap * padded;
        const int dy = tap / p.kernel - p.kernel / 2, dx = tap % p.kernel - p.kernel / 2;
        const int bytes = k < p.gemm.k ? gpu::min(gpu::max(p.channels - channel, 0) * 2, 16) : 0;
        const int height = p.in_height << p.upsample, width = p.out_width;
        GPU_UNROLL
        for (int i = 0; i < gemm::ROWS_EACH; ++i) {
            const int m = m0 + gemm::own_row() + i * gemm::ROWS_APART;
            const int y = m / width + dy, x = m % width + dx;
            const bool inside = m < p.gemm.m && y >= 0 && y < height && x >= 0 && x < width && bytes > 0;
            const int64_t pixel = (int64_t)(y >> p.upsample) * p.in_width + (x >> p.upsample);
            const bf16_bits *src = inside ? p.gemm.x + pixel * p.gemm.x_pitch + channel : p.gemm.x;
            gpu::cp_async<16>(&stage[gemm::own_place(i)], src, inside ? bytes : 0);
        }
        k += gemm::BLOCK_K;
    }
};

} // namespace

GPU_KERNEL(conv2d_bf16_sm80, conv2d_params, GEMM_THREADS, 1) {
    const int m0 = gpu::cta_x() * gemm::BLOCK_M, n0 = gpu::cta_y() * gemm::BLOCK_N;
    gemm::run_tile<gemm::Bf16Weights<8>, CONV2D_STAGES>(p.gemm, PixelLoader(p, m0), n0, m0);
}
