// scale_rows: x[r, :] = fp16(x[r, :] / scale[r]), in place, scale[r] a power of two    bf16 to fp16
//
// Work    one CTA per row, which holds it in registers between the maximum and the conversion; a row wider than that is read twice.
// Numbers the row's largest value comes to lie from 128 to below 256, whatever it was. bf16 has 8 bits, fp16 11, and the division is
//         exact, so nothing is lost of what is above 2^-22 of the largest; below, fp16's steps are 2^-32 of it. Rows of zeros stay
//         zeros. What is not finite makes its row's scale a power of two like any other and stays what it is.
// Bound   memory: 4 bytes per element.
// Source  ours.
#include "scale_rows.h"
#include "gpu.cuh"

namespace {

constexpr int WARPS = SCALE_ROWS_THREADS / gpu::WARP;
constexpr int CHUNKS_AT_ONCE = SCALE_ROWS_THREADS; // of 8 numbers, 16 bytes

struct SharedStorage {
    uint32_t most[WARPS];
};
static_assert(sizeof(SharedStorage) == SCALE_ROWS_SMEM_BYTES, "the header tells the host how much to ask for");

// Of two pairs' magnitudes, as bits: they rise with the numbers, infinities and NaNs highest.
GPU_FN uint32_t largest(uint32_t most, uint32_t pair) { return gpu::max(most, gpu::max(pair & 0x7fffu, pair >> 16 & 0x7fffu)); }
GPU_FN uint32_t largest(uint32_t most, const uint4 &v) { return largest(largest(largest(largest(most, v.x), v.y), v.z), v.w); }

GPU_FN uint32_t scaled(uint32_t pair, float by) { return gpu::pack_half2(gpu::bf16_lo(pair) * by, gpu::bf16_hi(pair) * by); }
GPU_FN uint4 scaled(const uint4 &v, float by) { return uint4{scaled(v.x, by), scaled(v.y, by), scaled(v.z, by), scaled(v.w, by)}; }

// CHUNKS > 0: so many of a thread's stay in registers; 0: any number, read again.
template <int CHUNKS> GPU_FN void scale_row(const scale_rows_params &p) {
    auto &smem = gpu::shared<SharedStorage>();
    const int row = gpu::cta_x(), num_chunks = p.width / 8;
    uint4 *const x = reinterpret_cast<uint4 *>(p.x + row * p.pitch) + gpu::thread_x();
    const auto is_inside = [&](int i) { return i * CHUNKS_AT_ONCE + gpu::thread_x() < num_chunks; };

    uint4 kept[CHUNKS > 0 ? CHUNKS : 1];
    uint32_t most = 0;
    if constexpr (CHUNKS > 0) {
        GPU_UNROLL
        for (int i = 0; i < CHUNKS; ++i) kept[i] = is_inside(i) ? x[i * CHUNKS_AT_ONCE] : uint4{0u, 0u, 0u, 0u};
        GPU_UNROLL
        for (int i = 0; i < CHUNKS; ++i) most = largest(most, kept[i]);
    } else {
        for (int i = 0; is_inside(i); ++i) {
            const uint4 chunk = x[i * CHUNKS_AT_ONCE];
            most = largest(most, chunk);
        }
    }
    GPU_UNROLL
    for (int mask = gpu::WARP / 2; mask > 0; mask /= 2) most = gpu::max(most, gpu::shfl_xor(most, mask));
    if (gpu::lane_id() == 0) smem.most[gpu::warp_id()] = most;
    gpu::sync_cta();
    GPU_UNROLL
    for (int warp = 0; warp < WARPS; ++warp) most = gpu::max(most, smem.most[warp]);

    // 2^(7 - e) for a largest number from 2^e on: itself and its inverse stay within f32's normal numbers.
    const uint32_t exponent = gpu::min(gpu::max(most >> 7, 8u), 254u);
    const float by = gpu::bits_to_float((261u - exponent) << 23);
    if (gpu::thread_x() == 0) p.scale[row] = gpu::bits_to_float((exponent - 7u) << 23);
    if constexpr (CHUNKS > 0) {
        GPU_UNROLL
        for (int i = 0; i < CHUNKS; ++i) {
            if (is_inside(i)) x[i * CHUNKS_AT_ONCE] = scaled(kept[i], by);
        }
    } else {
        for (int i = 0; is_inside(i); ++i) {
            const uint4 chunk = x[i * CHUNKS_AT_ONCE];
            x[i * CHUNKS_AT_ONCE] = scaled(chunk, by);
        }
    }
}

} // namespace

GPU_KERNEL(scale_rows_wide, scale_rows_params, SCALE_ROWS_THREADS, 4) { scale_row<SCALE_ROWS_WIDE_WIDTH / 8 / CHUNKS_AT_ONCE>(p); }
GPU_KERNEL(scale_rows_any, scale_rows_params, SCALE_ROWS_THREADS, 4) { scale_row<0>(p); }
