// gemv: out[m, n] = act_out(sum_k act_in(x[m, k]) w[n, k] + bias[n]) + add[m, n]     f32 x, bf16 or NF4 w, f32 out; m <= 8
//
// Work    a warp owns 4 weight rows and reads 16 bytes per lane of each at a time; x, activated once per CTA, waits in
//         shared memory and is read once for the 4 rows:
//             chunk of 1024 k: | weights -> registers | x -> act_in -> smem | barrier | multiply | barrier |
// Layout  a lane's 16 bytes are V = 8 (bf16) or 32 (NF4) consecutive weights, so lanes want x at a stride of V floats.
//         smem therefore holds x by float4 j of a lane's V: at 32 j + (lane ^ (32 / V) j), free of bank conflicts both
//         ways: the 8 lanes that store together have 32 / V neighbors of the lane index and V / 4 of j.
// Bound   memory, all of it weights: at m = 1 2 (0.5625 with NF4) bytes per multiply-add.
// Source  NF4 weights become bf16(code * absmax) before they are multiplied, as in the GEMM. The code table lies in
//         shared memory once per bank: lanes look up different codes at the same time.
#include "gemv.h"
#include "nf4.cuh"

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

// 8 bf16 weights from k on; zero outside.
GPU_FN uint4 load_bf16_weights(const gemv_params &p, int n, int k) {
    uint4 v = {0u, 0u, 0u, 0u};
    if (n >= p.n || k >= p.k) return v;
    const bf16_bits *const w = p.weight + n * p.weight_pitch + k;
    if (p.weight_vectors && k + 8 <= p.k) return *reinterpret_cast<const uint4 *>(w);
    const int valid = p.k - k;
    v.x = w[0] | (valid > 1 ? (uint32_t)w[1] << 16 : 0u);
    v.y = (valid > 2 ? w[2] : 0u) | (valid > 3 ? (uint32_t)w[3] << 16 : 0u);
    v.z = (valid > 4 ? w[4] : 0u) | (valid > 5 ? (uint32_t)w[5] << 16 : 0u);
    v.w = (valid > 6 ? w[6] : 0u) | (valid > 7 ? (uint32_t)w[7] << 16 : 0u);
    return v;
}

// 32 codes from k on; K is a multiple of 64, so they lie inside together, or outside.
GPU_FN uint4 load_codes(const gemv_params &p, int n, int k) {
    if (n >= p.n || k >= p.k) return uint4{0u, 0u, 0u, 0u};
    return *reinterpret_cast<const uint4 *>(p.codes + ((int64_t)n * p.k + k) / 2);
}
GPU_FN float load_absmax(const gemv_params &p, int n, int k) {
    return n < p.n && k < p.k ? p.absmax[(int64_t)n * (p.k / NF4_BLOCK) + k / NF4_BLOCK] : 0.0f;
}

template <int M, bool NF4> GPU_FN void gemv(const gemv_params &p) {
    constexpr int V = NF4 ? 32 : 8;          // weights in a lane's 16 bytes
    constexpr int SLAB = V * gpu::WARP;      // k that a warp reads at once
    constexpr int SLABS = CHUNK / SLAB;
    constexpr int SLAB_VECTORS = SLAB / 4;   // float4 of smem per slab and row of x
    static_assert(!NF4 || SLABS == 1, "a lane has one absmax and 32 codes of each row per chunk");

    SharedStorage<M> &smem = gpu::shared<SharedStorage<M>>();
    const int lane = gpu::lane_id();
    const int first_row = gpu::cta_x() * GEMV_ROWS + gpu::warp_id() * ROWS;

    if constexpr (NF4) {
        gpu::fill(smem.book, GEMV_THREADS);
    }

    // The place in its slab of float4 j of a lane's V.
    auto place = [](int j, int of_lane) { return j * gpu::WARP + (of_lane ^ j * (32 / V)); };

    float acc[M][ROWS] = {};
    uint4 weights[SLABS][ROWS];
    float absmax[ROWS];

    auto fetch_weights = [&](int k0) {
        GPU_UNROLL
        for (int slab = 0; slab < SLABS; ++slab) {
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int k = k0 + slab * SLAB + lane * V;
                if constexpr (NF4) {
                    weights[slab][r] = load_codes(p, first_row + r, k);
                    absmax[r] = load_absmax(p, first_row + r, k);
                } else {
                    weights[slab][r] = load_bf16_weights(p, first_row + r, k);
                }
            }
        }
    };
    auto stage_x = [&](int k0) {
        const int k = gpu::thread_x() * 4;  // within the chunk
        const int at = k / SLAB * SLAB_VECTORS + place(k % V / 4, k % SLAB / V);
        GPU_UNROLL
        for (int m = 0; m < M; ++m) smem.x[m][at] = load_x(p, m, k0 + k);
    };
    // Four codes, in the low 16 bits, to four weights.
    auto dequantize = [&](float (&w)[4], uint32_t four, float block_absmax) {
        auto value = [&](int shift) { return smem.book.value[four >> shift & 15][lane] * block_absmax; };
        const uint32_t lo = gpu::pack_bf16x2(value(4), value(0)), hi = gpu::pack_bf16x2(value(12), value(8));
        w[0] = gpu::bf16_lo(lo), w[1] = gpu::bf16_hi(lo), w[2] = gpu::bf16_lo(hi), w[3] = gpu::bf16_hi(hi);
    };
    // Four weights of each row by the float4 of x at `at`, for all rows of x.
    auto accumulate = [&](const float (&w)[ROWS][4], int at) {
        GPU_UNROLL
        for (int m = 0; m < M; ++m) {
            const float4 x = smem.x[m][at];
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) acc[m][r] += x.x * w[r][0] + x.y * w[r][1] + x.z * w[r][2] + x.w * w[r][3];
        }
    };
    auto multiply = [&]() {
        float w[ROWS][4];
        if constexpr (NF4) {
            // One word of 8 codes after the other, each moved to .x in turn: unrolled, nvcc looks up all 32 codes of
            // all rows at once and needs 254 registers (or, held to 128, spills on sm_90 and sm_120).
            GPU_NO_UNROLL
            for (int word = 0; word < 4; ++word) {
                GPU_UNROLL
                for (int half = 0; half < 2; ++half) {
                    GPU_UNROLL
                    for (int r = 0; r < ROWS; ++r) dequantize(w[r], weights[0][r].x >> (16 * half), absmax[r]);
                    accumulate(w, place(2 * word + half, lane));
                }
                GPU_UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    weights[0][r] = uint4{weights[0][r].y, weights[0][r].z, weights[0][r].w, 0u};
                }
            }
        } else {
            GPU_UNROLL
            for (int slab = 0; slab < SLABS; ++slab) {
                GPU_UNROLL
                for (int j = 0; j < 2; ++j) {
                    GPU_UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        const uint4 &bytes = weights[slab][r];
                        const uint32_t lo = j == 0 ? bytes.x : bytes.z, hi = j == 0 ? bytes.y : bytes.w;
                        w[r][0] = gpu::bf16_lo(lo), w[r][1] = gpu::bf16_hi(lo), w[r][2] = gpu::bf16_lo(hi), w[r][3] = gpu::bf16_hi(hi);
                    }
                    accumulate(w, slab * SLAB_VECTORS + place(j, lane));
                }
            }
        }
    };

    GPU_NO_UNROLL
    for (int k0 = 0; k0 < p.k; k0 += CHUNK) {
        fetch_weights(k0);  // in flight while x is staged
        gpu::sync_cta();    // the last chunk's x has been read
        stage_x(k0);
        gpu::sync_cta();
        multiply();
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
        if (p.bias) sum += p.bias[n];
        sum = activate(sum, p.act_out);
        if (p.add) sum += p.add[m * p.add_pitch + n];
        p.out[m * p.out_pitch + n] = sum;
    }
}

GPU_KERNEL(gemv_bf16_m1, gemv_params, GEMV_THREADS, 2) { gemv<1, false>(p); }
GPU_KERNEL(gemv_bf16_m2, gemv_params, GEMV_THREADS, 2) { gemv<2, false>(p); }
GPU_KERNEL(gemv_bf16_m4, gemv_params, GEMV_THREADS, 2) { gemv<4, false>(p); }
GPU_KERNEL(gemv_bf16_m8, gemv_params, GEMV_THREADS, 2) { gemv<8, false>(p); }
GPU_KERNEL(gemv_nf4_m1, gemv_params, GEMV_THREADS, 2) { gemv<1, true>(p); }
GPU_KERNEL(gemv_nf4_m2, gemv_params, GEMV_THREADS, 2) { gemv<2, true>(p); }
GPU_KERNEL(gemv_nf4_m4, gemv_params, GEMV_THREADS, 2) { gemv<4, true>(p); }
GPU_KERNEL(gemv_nf4_m8, gemv_params, GEMV_THREADS, 2) { gemv<8, true>(p); }
