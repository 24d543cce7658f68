// attention: out = softmax(q . k^T * softmax_scale + bias) . v per head, flash style    bf16 in, f32 softmax
//
// Work    one CTA per 64 queries and head; a warp owns 16 queries and walks over all keys in tiles:
//             S = Q K^T (mma) -> running max and sum -> P = exp2(S - max) as bf16, in registers -> O += P V (mma)
//         The accumulator layout of S is the A operand layout of the next mma, so P never leaves the registers.
//         Tiles whose every key counts for every query come first and test nothing. Those that need a mask, of keys past
//         the end or after the query (CLIP), are few and last: the same code, compiled a second time.
//         At head width 512 (the VAE) two warps share 16 queries: both compute S, each owns half of O's columns;
//         a whole row of O would be 256 registers.
// Layout  smem rows of one token, chunk c (8 bf16) of row r at c ^ (r & 7): conflict-free for ldmatrix, plain (Q, K)
//         and transposed (V). K and V have one slot each, and each is fetched while the other is multiplied:
//             K  | multiplied |  K of the next tile arrives  | multiplied | ...
//             V  |  arrives   | multiplied |                 |  arrives   | ...
//         So two CTAs of width 128 fit the 100 KB of an sm_86, and one multiplies while the other does its softmax.
//         O leaves through Q's place, in 16 bytes a lane.
// Bound   compute: 4 L^2 d flop per head against 2 L d elements; no L x L matrix exists anywhere.
// Source  FlashAttention-2 (arXiv:2307.08691), algorithm 1; T5's additive bias and CLIP's causal mask folded in.
// Tried   24 heads of 128, H200, bf16, 4352 tokens: K and V in two slots each, mask and bias asked for at every score
//         1.72 ms; this 0.74 ms; this with 8 warps and 128 queries per CTA 0.79 ms.
#include "attention.h"
#include "gpu.cuh"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;

struct Unmasked {
    static constexpr bool MASKED = false;
};
struct Masked {
    static constexpr bool MASKED = true;
};

// What a *_bias entry has in shared memory besides: the bias of each difference key - query of one tile.
template <int LEN> struct BiasRow {
    float bias[LEN];
};
template <> struct BiasRow<0> {};

template <int D, int BLOCK_KV, int D_WARPS, bool BIAS> struct Attention {
    static constexpr int BLOCK_Q = ATTENTION_BLOCK_Q;
    static constexpr int THREADS = BLOCK_Q / 16 * D_WARPS * gpu::WARP;
    static constexpr int CHUNKS = D / 8;
    static constexpr int ROWS_AT_ONCE = THREADS / CHUNKS; // rows that the CTA fetches with one cp.async per thread
    static constexpr int NT_S = BLOCK_KV / 8;             // n8 tiles of S
    static constexpr int D_OWN = D / D_WARPS;             // columns of O per warp
    static constexpr int NT_O = D_OWN / 8;
    static constexpr int NT_STEP = NT_O < 8 ? NT_O : 8;   // n8 tiles of O per mma_tile: bounds the live fragments
    static constexpr int PARTS = NT_O / NT_STEP;
    static constexpr bool Q_IN_REGISTERS = D <= 128;
    static constexpr int BIAS_ROW = BLOCK_Q + BLOCK_KV;   // differences in a tile: one less
    static_assert(CHUNKS >= 8, "the swizzle permutes 8 chunks");
    static_assert(BLOCK_KV % 16 == 0, "P is multiplied in steps of 16 keys");
    static_assert(THREADS % CHUNKS == 0 && BLOCK_KV % ROWS_AT_ONCE == 0, "a thread fetches the same chunk of every row");
    static_assert(BIAS_ROW <= THREADS, "a thread fetches one bias");

    using Scores = float[1][NT_S][4];                     // lane: rows g and g + 8, keys 8 j + 2 t + {0, 1}
    using Output = float[PARTS][1][NT_STEP][4];

    struct SharedStorage : BiasRow<BIAS ? BIAS_ROW : 0> {
        uint4 q[BLOCK_Q * CHUNKS]; // and O in the end
        uint4 k[BLOCK_KV * CHUNKS];
        uint4 v[BLOCK_KV * CHUNKS];
    };

    GPU_METHOD static int swizzle(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

    // This thread's part of the next ROWS tokens; `from` is its chunk of the first, `step` elements apart, and moves on.
    template <int ROWS, bool ALL_INSIDE>
    GPU_METHOD static void fetch(uint4 (&tile)[ROWS * CHUNKS], const bf16_bits *&from, int64_t step, int chunk_bytes, int rows) {
        const int row = gpu::thread_x() / CHUNKS, chunk = gpu::thread_x() % CHUNKS;
        GPU_UNROLL
        for (int i = 0; i < ROWS; i += ROWS_AT_ONCE) {
            gpu::cp_async<16>(&tile[swizzle(row + i, chunk)], from, ALL_INSIDE || row + i < rows ? chunk_bytes : 0);
            from += step;
        }
    }

    // The A operand: 16 rows from `row`, columns 16 k16 .. + 16.
    GPU_METHOD static void load_q(uint32_t (&a)[1][4], const SharedStorage &smem, int row, int k16) {
        const int lane = gpu::lane_id();
        const void *const address[1] = {&smem.q[swizzle(row + lane % 16, 2 * k16 + lane / 16)]};
        gpu::ldmatrix_x4_tile<1>(a, address);
    }

    template <int NT> GPU_METHOD static void to_b(uint32_t (&b)[NT][2], const uint32_t (&frag)[NT / 2][4]) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) b[j][0] = frag[j / 2][j % 2 * 2], b[j][1] = frag[j / 2][j % 2 * 2 + 1];
    }

    // S = Q K^T
    template <int FRAGS>
    GPU_METHOD static void multiply_keys(Scores &s, const SharedStorage &smem, uint32_t (&q_frag)[FRAGS][1][4], int warp_row) {
        const int lane = gpu::lane_id();
        GPU_UNROLL
        for (int j = 0; j < NT_S; ++j) {
            GPU_UNROLL
            for (int e = 0; e < 4; ++e) s[0][j][e] = 0.0f;
        }
        GPU_UNROLL_BY(Q_IN_REGISTERS ? D / 16 : 2) // wide heads: full unrolling costs registers that O needs
        for (int k16 = 0; k16 < D / 16; ++k16) {
            if (!Q_IN_REGISTERS) load_q(q_frag[0], smem, warp_row, k16);
            const void *rows[NT_S / 2];
            GPU_UNROLL
            for (int j = 0; j < NT_S / 2; ++j) { rows[j] = &smem.k[swizzle(16 * j + lane / 16 * 8 + lane % 8, 2 * k16 + lane / 8 % 2)]; }
            uint32_t frag[NT_S / 2][4], b[NT_S][2];
            gpu::ldmatrix_x4_tile<NT_S / 2>(frag, rows);
            to_b<NT_S>(b, frag);
            gpu::mma_tile<1, NT_S>(s, q_frag[Q_IN_REGISTERS ? k16 : 0], b);
        }
    }

    // O += P V
    GPU_METHOD static void multiply_values(Output &out, const Scores &probabilities, const SharedStorage &smem, int warp_column) {
        const int lane = gpu::lane_id();
        GPU_UNROLL
        for (int k16 = 0; k16 < BLOCK_KV / 16; ++k16) {
            const float (&left)[4] = probabilities[0][2 * k16], (&right)[4] = probabilities[0][2 * k16 + 1];
            const uint32_t a[1][4] = {{gpu::pack_bf16x2(left[0], left[1]), gpu::pack_bf16x2(left[2], left[3]),
                                       gpu::pack_bf16x2(right[0], right[1]), gpu::pack_bf16x2(right[2], right[3])}};
            GPU_UNROLL
            for (int part = 0; part < PARTS; ++part) {
                const void *rows[NT_STEP / 2];
                GPU_UNROLL
                for (int j = 0; j < NT_STEP / 2; ++j) {
                    const int chunk = warp_column / 8 + part * NT_STEP + 2 * j + lane / 16;
                    rows[j] = &smem.v[swizzle(16 * k16 + lane % 16, chunk)];
                }
                uint32_t frag[NT_STEP / 2][4], b[NT_STEP][2];
                gpu::ldmatrix_x4_trans_tile<NT_STEP / 2>(frag, rows);
                to_b<NT_STEP>(b, frag);
                gpu::mma_tile<1, NT_STEP>(out[part], a, b);
            }
        }
    }

    // Rows of the warp's own columns, by way of Q's place, which nobody reads any more.
    GPU_METHOD static void store(const attention_params &p, SharedStorage &smem, const Output &out, const float (&inverse)[2], int head,
                                 int q0, int warp_row, int warp_column) {
        const int lane = gpu::lane_id(), g = lane / 4, t = lane % 4;
        GPU_UNROLL
        for (int n8 = 0; n8 < NT_O; ++n8) {
            const float (&o)[4] = out[n8 / NT_STEP][0][n8 % NT_STEP];
            GPU_UNROLL
            for (int r = 0; r < 2; ++r) {
                uint4 &chunk = smem.q[swizzle(warp_row + g + 8 * r, warp_column / 8 + n8)];
                reinterpret_cast<uint32_t *>(&chunk)[t] = gpu::pack_bf16x2(o[2 * r] * inverse[r], o[2 * r + 1] * inverse[r]);
            }
        }
        gpu::sync_warp(); // each lane's words have become the warp's rows
        bf16_bits *to = p.out + (int64_t)head * p.out_head_stride;
        GPU_UNROLL
        for (int i = 0; i < 16 * NT_O / gpu::WARP; ++i) {
            const int row = warp_row + (i * gpu::WARP + lane) / NT_O, chunk = warp_column / 8 + (i * gpu::WARP + lane) % NT_O;
            if (q0 + row < p.q_len && chunk * 8 < p.head_dim) {
                gpu::store_vector(reinterpret_cast<uint4 *>(to + (q0 + row) * p.out_pitch + chunk * 8), smem.q[swizzle(row, chunk)]);
            }
        }
    }

    GPU_METHOD static void run(const attention_params &p) {
        auto &smem = gpu::shared<SharedStorage>();
        const int head = gpu::cta_y(), q0 = gpu::cta_x() * BLOCK_Q;
        const int lane = gpu::lane_id(), g = lane / 4, t = lane % 4;
        const int warp_row = gpu::warp_id() / D_WARPS * 16;
        const int warp_column = gpu::warp_id() % D_WARPS * D_OWN;

        // Keys past the last query of this CTA are masked for all of it.
        const int keys = p.causal ? gpu::min(p.kv_len, q0 + BLOCK_Q) : p.kv_len;
        const int num_tiles = gpu::ceil_div(keys, BLOCK_KV);
        const int num_unmasked = (p.causal ? gpu::min(p.kv_len, q0) : p.kv_len) / BLOCK_KV;

        const int row = gpu::thread_x() / CHUNKS, chunk = gpu::thread_x() % CHUNKS;
        const int chunk_bytes = chunk * 8 < p.head_dim ? 16 : 0;
        const bf16_bits *q = p.q + (int64_t)head * p.q_head_stride + (q0 + row) * p.q_pitch + chunk * 8;
        const bf16_bits *k = p.k + (int64_t)head * p.k_head_stride + row * p.k_pitch + chunk * 8;
        const bf16_bits *v = p.v + (int64_t)head * p.v_head_stride + row * p.v_pitch + chunk * 8;

        auto fetch_keys = [&](int tile, auto kind) {
            if (!kind.MASKED && tile < num_unmasked) {
                fetch<BLOCK_KV, true>(smem.k, k, p.k_pitch * ROWS_AT_ONCE, chunk_bytes, 0);
            } else if (tile < num_tiles) {
                fetch<BLOCK_KV, false>(smem.k, k, p.k_pitch * ROWS_AT_ONCE, chunk_bytes, p.kv_len - tile * BLOCK_KV);
            }
            if constexpr (BIAS) {
                // Differences from -(BLOCK_Q - 1) to BLOCK_KV - 1, seen from this tile's corner. Those outside the table
                // belong to queries or keys past the end.
                const int at = tile * BLOCK_KV - q0 - (BLOCK_Q - 1) + gpu::thread_x() + p.bias_len - 1;
                const bool inside = at >= 0 && at < 2 * p.bias_len - 1;
                const float *from = inside ? p.bias + (int64_t)head * (2 * p.bias_len - 1) + at : p.bias;
                if (tile < num_tiles && gpu::thread_x() < BIAS_ROW) { gpu::cp_async<4>(&smem.bias[gpu::thread_x()], from, inside ? 4 : 0); }
            }
            gpu::cp_async_commit();
        };
        auto fetch_values = [&](int tile, auto kind) {
            fetch<BLOCK_KV, !kind.MASKED>(smem.v, v, p.v_pitch * ROWS_AT_ONCE, chunk_bytes, p.kv_len - tile * BLOCK_KV);
            gpu::cp_async_commit();
        };

        // prologue
        fetch<BLOCK_Q, false>(smem.q, q, p.q_pitch * ROWS_AT_ONCE, chunk_bytes, p.q_len - q0);
        fetch_keys(0, Unmasked());
        gpu::cp_async_wait<0>();
        gpu::sync_cta(); // Q has landed for everyone
        uint32_t q_frag[Q_IN_REGISTERS ? D / 16 : 1][1][4];
        if (Q_IN_REGISTERS) {
            GPU_UNROLL
            for (int k16 = 0; k16 < D / 16; ++k16) load_q(q_frag[Q_IN_REGISTERS ? k16 : 0], smem, warp_row, k16);
        }

        Output out;
        GPU_UNROLL
        for (int part = 0; part < PARTS; ++part) {
            GPU_UNROLL
            for (int j = 0; j < NT_STEP; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) out[part][0][j][e] = 0.0f;
            }
        }
        // Of the scores as they come from the product, or with a bias scaled by `scale` and summed.
        const float minus_infinity = gpu::bits_to_float(0xff800000u);
        const float scale = p.softmax_scale * LOG2_E, max_scale = BIAS ? 1.0f : scale;
        float row_max[2] = {minus_infinity, minus_infinity}, row_sum[2] = {0.0f, 0.0f};

        auto attend_to_tile = [&](int tile, auto kind) {
            gpu::cp_async_wait<0>();
            gpu::sync_cta(); // the keys have landed for everyone, and everyone has left the values of the tile before
            fetch_values(tile, kind);
            Scores s;
            multiply_keys(s, smem, q_frag, warp_row);

            float new_max[2] = {row_max[0], row_max[1]};
            GPU_UNROLL
            for (int j = 0; j < NT_S; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) {
                    const int query = warp_row + g + e / 2 * 8, key = 8 * j + 2 * t + e % 2;
                    if constexpr (BIAS) { s[0][j][e] = gpu::fma_exact(s[0][j][e], scale, smem.bias[key - query + BLOCK_Q - 1] * LOG2_E); }
                    if (kind.MASKED) {
                        const int visible = p.causal ? gpu::min(p.kv_len, q0 + query + 1) : p.kv_len;
                        if (tile * BLOCK_KV + key >= visible) s[0][j][e] = minus_infinity;
                    }
                    new_max[e / 2] = gpu::max_number(new_max[e / 2], s[0][j][e]);
                }
            }
            gpu::cp_async_wait<0>();
            gpu::sync_cta(); // the values have landed for everyone, and everyone has left the keys
            fetch_keys(tile + 1, kind);

            float subtract[2];
            GPU_UNROLL
            for (int r = 0; r < 2; ++r) {
                new_max[r] = gpu::max_number(new_max[r], gpu::shfl_xor(new_max[r], 2));
                new_max[r] = gpu::max_number(new_max[r], gpu::shfl_xor(new_max[r], 1));
                // Where a bias has masked all so far: exp2(-inf - 0), not of (-inf) - (-inf).
                const float finite = new_max[r] == minus_infinity ? 0.0f : new_max[r];
                const float decay = gpu::exp2_approx((row_max[r] - finite) * max_scale);
                subtract[r] = finite * max_scale;
                row_max[r] = new_max[r];
                row_sum[r] *= decay;
                GPU_UNROLL
                for (int part = 0; part < PARTS; ++part) {
                    GPU_UNROLL
                    for (int j = 0; j < NT_STEP; ++j) out[part][0][j][2 * r] *= decay, out[part][0][j][2 * r + 1] *= decay;
                }
            }
            GPU_UNROLL
            for (int j = 0; j < NT_S; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) {
                    s[0][j][e] = gpu::exp2_approx(gpu::fma_exact(s[0][j][e], max_scale, -subtract[e / 2]));
                    row_sum[e / 2] += s[0][j][e];
                }
            }
            multiply_values(out, s, smem, warp_column);
        };

        // mainloop
        int tile = 0;
        GPU_NO_UNROLL
        for (; tile < num_unmasked; ++tile) attend_to_tile(tile, Unmasked());
        GPU_NO_UNROLL
        for (; tile < num_tiles; ++tile) attend_to_tile(tile, Masked());

        // epilogue
        float inverse[2];
        GPU_UNROLL
        for (int r = 0; r < 2; ++r) {
            const float sum = gpu::warp_sum<4>(row_sum[r]);
            inverse[r] = sum == 0.0f ? 0.0f : gpu::reciprocal_exact(sum); // 0: a bias has masked every key
        }
        store(p, smem, out, inverse, head, q0, warp_row, warp_column);
    }
};

// Keys per tile are what fits 99 KB with all of Q resident.
template <bool BIAS> using D64 = Attention<64, ATTENTION_D64_BLOCK_KV, 1, BIAS>;
template <bool BIAS> using D128 = Attention<128, ATTENTION_D128_BLOCK_KV, 1, BIAS>;
template <bool BIAS> using D256 = Attention<256, ATTENTION_D256_BLOCK_KV, 1, BIAS>;
template <bool BIAS> using D512 = Attention<512, ATTENTION_D512_BLOCK_KV, 2, BIAS>;

template <typename Kernel> constexpr bool matches(int threads, size_t smem_bytes) {
    return Kernel::THREADS == threads && sizeof(typename Kernel::SharedStorage) == smem_bytes;
}
static_assert(matches<D64<false>>(ATTENTION_D64_THREADS, ATTENTION_D64_SMEM_BYTES), "header");
static_assert(matches<D64<true>>(ATTENTION_D64_THREADS, ATTENTION_D64_BIAS_SMEM_BYTES), "header");
static_assert(matches<D128<false>>(ATTENTION_D128_THREADS, ATTENTION_D128_SMEM_BYTES), "header");
static_assert(matches<D128<true>>(ATTENTION_D128_THREADS, ATTENTION_D128_BIAS_SMEM_BYTES), "header");
static_assert(matches<D256<false>>(ATTENTION_D256_THREADS, ATTENTION_D256_SMEM_BYTES), "header");
static_assert(matches<D256<true>>(ATTENTION_D256_THREADS, ATTENTION_D256_BIAS_SMEM_BYTES), "header");
static_assert(matches<D512<false>>(ATTENTION_D512_THREADS, ATTENTION_D512_SMEM_BYTES), "header");
static_assert(matches<D512<true>>(ATTENTION_D512_THREADS, ATTENTION_D512_BIAS_SMEM_BYTES), "header");

} // namespace

GPU_KERNEL(attention_d64_bf16_sm80, attention_params, ATTENTION_D64_THREADS, 3) { D64<false>::run(p); }
GPU_KERNEL(attention_d64_bias_bf16_sm80, attention_params, ATTENTION_D64_THREADS, 3) { D64<true>::run(p); }
GPU_KERNEL(attention_d128_bf16_sm80, attention_params, ATTENTION_D128_THREADS, 2) { D128<false>::run(p); }
GPU_KERNEL(attention_d128_bias_bf16_sm80, attention_params, ATTENTION_D128_THREADS, 2) { D128<true>::run(p); }
GPU_KERNEL(attention_d256_bf16_sm80, attention_params, ATTENTION_D256_THREADS, 1) { D256<false>::run(p); }
GPU_KERNEL(attention_d256_bias_bf16_sm80, attention_params, ATTENTION_D256_THREADS, 1) { D256<true>::run(p); }
GPU_KERNEL(attention_d512_bf16_sm80, attention_params, ATTENTION_D512_THREADS, 1) { D512<false>::run(p); }
GPU_KERNEL(attention_d512_bias_bf16_sm80, attention_params, ATTENTION_D512_THREADS, 1) { D512<true>::run(p); }
