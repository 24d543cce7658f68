// gemv.cuh: a Linear over few rows, whatever its weights are stored as; gemv.cu says how, and has entries.
#ifndef SCHNELL_GEMV_CUH
#define SCHNELL_GEMV_CUH

#include "gemv.h"
#include "nf4.cuh"

namespace gemv {

constexpr int WARPS = GEMV_THREADS / gpu::WARP;
constexpr int ROWS = GEMV_ROWS / WARPS;
constexpr int CHUNK = 1024;              // k per barrier
constexpr int CHUNK_VECTORS = CHUNK / 4;

static_assert(ROWS * WARPS == GEMV_ROWS, "warps own whole rows");
static_assert(CHUNK / 4 == GEMV_THREADS, "a thread stages one float4 per row of x");

template <int M> struct SharedStorage {
    union {
        float4 x[M][CHUNK_VECTORS];
        float partial[WARPS][gpu::WARP][ROWS * M + 1];  // odd pitch: lanes write and read without bank conflicts
    };
    gpu::Nf4Book book;
};
static_assert(sizeof(SharedStorage<1>) == GEMV_SMEM_BYTES_M1, "the launch must provide exactly this");
static_assert(sizeof(SharedStorage<2>) == GEMV_SMEM_BYTES_M2, "the launch must provide exactly this");
static_assert(sizeof(SharedStorage<4>) == GEMV_SMEM_BYTES_M4, "the launch must provide exactly this");
static_assert(sizeof(SharedStorage<8>) == GEMV_SMEM_BYTES_M8, "the launch must provide exactly this");
static_assert(ROWS * GEMV_MAX_M <= gpu::WARP, "one lane finishes one result");

// With an exact quotient: silu's is short enough to be computed for all of a thread's values at once, and m = 4 would spill.
GPU_FN float activate(float v, int act) { return act == GEMV_SILU ? v / (1.0f + gpu::exp_exact(-v)) : v; }

// x[m, k .. k + 4], activated; zero outside.
GPU_FN float4 load_x(const gemv_params &p, int m, int k) {
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (m >= p.m) return v;
    const float *const x = p.x + m * p.pitch + k;
    if (p.x_vectors && k + 4 <= p.k) {
        v = *reinterpret_cast<const float4 *>(x);
    } else {
        if (k < p.k) v.x = x[0];
        if (k + 1 < p.k) v.y = x[1];
        if (k + 2 < p.k) v.z = x[2];
        if (k + 3 < p.k) v.w = x[3];
    }
    // silu(0) is 0, so the padding stays zero.
    return float4{activate(v.x, p.act_in), activate(v.y, p.act_in), activate(v.z, p.act_in), activate(v.w, p.act_in)};
}

// What a LoRA adds to a sum. One lane after the other 16 bytes: little beside the weights, of which it is rank / k.
GPU_FN float low_rank(const gemv_params &p, int m, int n) {
    const float4 *t = reinterpret_cast<const float4 *>(p.low_t + m * p.low_rank);
    const uint4 *up = reinterpret_cast<const uint4 *>(p.low_up + (int64_t)n * p.low_rank);
    float sum = 0.0f;
    GPU_NO_UNROLL
    for (int k = 0; k < p.low_rank; k += 8, ++up, t += 2) {
        const uint4 w = *up;
        const float4 lo = t[0], hi = t[1];
        sum += lo.x * gpu::bf16_lo(w.x) + lo.y * gpu::bf16_hi(w.x) + lo.z * gpu::bf16_lo(w.y) + lo.w * gpu::bf16_hi(w.y) +
               hi.x * gpu::bf16_lo(w.z) + hi.y * gpu::bf16_hi(w.z) + hi.z * gpu::bf16_lo(w.w) + hi.w * gpu::bf16_hi(w.w);
    }
    return sum;
}

template <int M, typename Weights> GPU_FN void run(const gemv_params &p) {
    constexpr int V = Weights::V;            // weights in a lane's 16 bytes
    constexpr int SLAB = V * gpu::WARP;      // k that a warp reads at once
    constexpr int SLAB_VECTORS = SLAB / 4;   // float4 of smem per slab and row of x

    SharedStorage<M> &smem = gpu::shared<SharedStorage<M>>();
    const int lane = gpu::lane_id();
    const int first_row = gpu::cta_x() * GEMV_ROWS + gpu::warp_id() * ROWS;

    if constexpr (Weights::HAS_BOOK) gpu::fill(smem.book, GEMV_THREADS);

    // The place in its slab of float4 j of a lane's V.
    auto place = [](int j, int of_lane) { return j * gpu::WARP + (of_lane ^ j * (32 / V)); };

    float acc[M][ROWS] = {};
    Weights weights;
    auto stage_x = [&](int k0) {
        const int k = gpu::thread_x() * 4;  // within the chunk
        const int at = k / SLAB * SLAB_VECTORS + place(k % V / 4, k % SLAB / V);
        GPU_UNROLL
        for (int m = 0; m < M; ++m) smem.x[m][at] = load_x(p, m, k0 + k);
    };
    // Four weights of each row by float4 j of a lane's V in that slab of x, for all rows of x.
    auto accumulate = [&](const float (&w)[ROWS][4], int slab, int j) {
        const int at = slab * SLAB_VECTORS + place(j, lane);
        GPU_UNROLL
        for (int m = 0; m < M; ++m) {
            const float4 x = smem.x[m][at];
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) acc[m][r] += x.x * w[r][0] + x.y * w[r][1] + x.z * w[r][2] + x.w * w[r][3];
        }
    };
    GPU_NO_UNROLL
    for (int k0 = 0; k0 < p.k; k0 += CHUNK) {
        weights.fetch(p, first_row, k0);  // in flight while x is staged
        gpu::sync_cta();    // the last chunk's x has been read
        stage_x(k0);
        gpu::sync_cta();
        weights.multiply(smem.book, accumulate);
    }

    // Lanes' sums to the lane that finishes a result: through shared memory, one step instead of 5 shuffles each.
    gpu::sync_cta();
    float (&partial)[gpu::WARP][ROWS * M + 1] = smem.partial[gpu::warp_id()];
    GPU_UNROLL
    for (int m = 0; m < M; ++m) {
        GPU_UNROLL
        for (int r = 0; r < ROWS; ++r) partial[lane][m * ROWS + r] = acc[m][r];
    }
    gpu::sync_warp();
    const int m = lane / ROWS, n = first_row + lane % ROWS;
    if (lane < M * ROWS && m < p.m && n < p.n) {
        float sum = 0.0f;
        for (int i = 0; i < gpu::WARP; ++i) sum += partial[i][lane];
        if (p.low_t) sum += low_rank(p, m, n);
        if (p.bias) sum += p.bias[n];
        sum = activate(sum, p.act_out);
        if (p.add) sum += p.add[m * p.add_pitch + n];
        p.out[m * p.out_pitch + n] = sum;
    }
}

} // namespace gemv

#endif
