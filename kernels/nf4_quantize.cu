// nf4_quantize: codes and absmax of NF4 quant blocks, bit-equal to bitsandbytes     f32, bf16 or NF4 in
//
// Work    one warp per quant block of 64 weights, a lane per pair of neighbors, whose two codes share a byte.
// Layout  rows: byte (n, k / 2), even k in the high nibble; absmax (n, k / 64).
//         fragments: what a lane of the tensor-core GEMM reads with one 16-byte load. Features come in tiles of 64,
//         f = n % 64; lane 4 (f / 8) + t holds, for its i-th m16 tile with i = (f % 8) / 2, of the four k16 steps of a
//         64-block, four bytes each: A-fragment rows g and g + 8 (h = f % 2) by k = 2t.. and 2t + 8.. (q):
//             byte = ((n / 64 * K / 64 + k / 64) * 4 + i) * 512 + lane * 16 + k16 * 4 + 2 q + h
//         so features 8 g + 2 i and 8 g + 2 i + 1 are rows g and g + 8 of tile i. absmax: (k / 64, n), n padded to 64.
//         The padding is not written here. Codes that are there already are put where they belong, with their absmax.
// Bound   memory: 4.6 bytes per weight from f32. Single bytes are stored, 32 a warp; loading a model is the only use.
// Source  bitsandbytes 0.50 CPU quantizer: absmax, its reciprocal, product, thresholds strictly below. Two details of
//         that path: the reciprocal is rounded before the product, and an all-zero block has code 7 throughout.
#include "nf4_quantize.h"
#include "nf4.cuh"

static_assert(NF4_QUANTIZE_THREADS == NF4_QUANTIZE_BLOCKS * gpu::WARP, "one warp per quant block");
static_assert(NF4_BLOCK == 2 * gpu::WARP, "one pair of weights per lane");

GPU_FN int64_t fragment_offset(int64_t n, int64_t k, int64_t num_k_blocks) {
    const int f = (int)(n % 64), kk = (int)(k % 64);
    const int g = f / 8, i = f % 8 / 2, h = f % 2;
    const int k16 = kk / 16, t = kk % 8 / 2, q = kk % 16 / 8;
    return ((n / 64 * num_k_blocks + k / 64) * 4 + i) * 512 + (4 * g + t) * 16 + k16 * 4 + q * 2 + h;
}

GPU_KERNEL(nf4_quantize, nf4_quantize_params, NF4_QUANTIZE_THREADS, 1) {
    const int64_t block = (int64_t)gpu::cta_x() * NF4_QUANTIZE_BLOCKS + gpu::warp_id();
    const int64_t num_k_blocks = p.k / NF4_BLOCK;
    if (block >= p.rows * num_k_blocks) return;  // the whole warp; there is no barrier
    const int64_t row = block / num_k_blocks, k_block = block - row * num_k_blocks;
    const int64_t k = k_block * NF4_BLOCK + 2 * gpu::lane_id();

    const int64_t n = p.first_row + row;
    const int64_t to = p.fragments ? fragment_offset(n, k, num_k_blocks) : (n * p.k + k) / 2;
    const int64_t absmax_to = p.fragments ? k_block * p.padded_rows + n : n * num_k_blocks + k_block;
    if (p.src_codes) {
        p.codes[to] = p.src_codes[(row * p.pitch + k) / 2];
        if (gpu::lane_id() == 0) p.absmax[absmax_to] = p.src_absmax[block];
        return;
    }

    float even, odd;
    if (p.src_bf16) {
        even = gpu::bf16_to_float(p.src_bf16[row * p.pitch + k]);
        odd = gpu::bf16_to_float(p.src_bf16[row * p.pitch + k + 1]);
    } else {
        even = p.src_f32[row * p.pitch + k];
        odd = p.src_f32[row * p.pitch + k + 1];
    }
    // No code is left for them. One atomic per weight: there are none in a sound file.
    const uint32_t nonfinite = (gpu::is_finite(even) ? 0u : 1u) + (gpu::is_finite(odd) ? 0u : 1u);
    if (nonfinite != 0) gpu::atomic_add(p.nonfinite, nonfinite);
    const float even_abs = even < 0.0f ? -even : even, odd_abs = odd < 0.0f ? -odd : odd;
    const float absmax = gpu::warp_max(gpu::max(even_abs, odd_abs));
    const float inverse = absmax > 0.0f ? gpu::reciprocal_exact(absmax) : 0.0f;
    const uint32_t byte = gpu::nf4_nearest(gpu::mul_exact(even, inverse)) << 4 | gpu::nf4_nearest(gpu::mul_exact(odd, inverse));

    p.codes[to] = (uint8_t)byte;
    if (gpu::lane_id() == 0) p.absmax[absmax_to] = absmax;
}
