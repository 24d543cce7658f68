// attention: out = softmax(q . k^T * softmax_scale + bias) . v per head, flash style    bf16 in, f32 softmax
//
// Work    one CTA per 64 queries and head; a warp owns 16 queries and walks over all keys in tiles:
//             S = Q K^T (mma) -> running max and sum -> P = exp2(S - max) as bf16, in registers -> O += P V (mma)
//         The accumulator layout of S is the A operand layout of the next mma, so P never leaves the registers.
//         At head width 512 (the VAE) two warps share 16 queries: both compute S, each owns half of O's columns;
//         a whole row of O would be 256 registers.
// Layout  smem rows of one token, chunk c (8 bf16) of row r at c ^ (r & 7): conflict-free for ldmatrix, plain (Q, K)
//         and transposed (V).
// Bound   compute: 4 L^2 d flop per head against 2 L d elements; no L x L matrix exists anywhere.
// Source  FlashAttention-2 (arXiv:2307.08691), algorithm 1; T5's additive bias and CLIP's causal mask folded in.
#include "attention.h"
#include "gpu.cuh"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;

template <int D, int BLOCK_KV, int STAGES, int D_WARPS> struct Attention {
    static constexpr int ROW_WARPS = ATTENTION_BLOCK_Q / 16;
    static constexpr int THREADS = ROW_WARPS * D_WARPS * gpu::WARP;
    static constexpr int CHUNKS = D / 8;
    static constexpr int NT_S = BLOCK_KV / 8;           // n8 tiles of S
    static constexpr int D_OWN = D / D_WARPS;           // columns of O per warp
    static constexpr int NT_O = D_OWN / 8;
    static constexpr int NT_STEP = NT_O < 8 ? NT_O : 8; // n8 tiles of O per mma_tile: bounds the live fragments
    static constexpr bool Q_IN_REGISTERS = D <= 128;
    static_assert(CHUNKS >= 8, "the swizzle permutes 8 chunks");
    static_assert(BLOCK_KV % 16 == 0, "P is multiplied in steps of 16 keys");

    struct SharedStorage {
        uint4 q[ATTENTION_BLOCK_Q * CHUNKS];
        uint4 k[STAGES][BLOCK_KV * CHUNKS];
        uint4 v[STAGES][BLOCK_KV * CHUNKS];
    };

    GPU_METHOD static int swizzle(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

    template <int ROWS>
    GPU_METHOD static void fetch(uint4 (&tile)[ROWS * CHUNKS], const bf16_bits *base, int64_t pitch, int row0, int rows, int head_dim) {
        GPU_UNROLL
        for (int i = 0; i < gpu::ceil_div(ROWS * CHUNKS, THREADS); ++i) {
            const int at = i * THREADS + gpu::thread_x();
            if (ROWS * CHUNKS % THREADS != 0 && at >= ROWS * CHUNKS) break;
            const int row = at / CHUNKS, chunk = at % CHUNKS;
            const bool inside = row0 + row < rows && chunk * 8 < head_dim;
            const bf16_bits *src = inside ? base + (int64_t)(row0 + row) * pitch + chunk * 8 : base;
            gpu::cp_async<16>(&tile[swizzle(row, chunk)], src, inside ? 16 : 0);
        }
    }

    // The A operand: 16 rows from `row`, columns 16 k16 .. + 16.
    GPU_METHOD static void load_q(uint32_t (&a)[1][4], const SharedStorage &smem, int row, int k16) {
        const int lane = gpu::lane_id();
        const void *const address[1] = {&smem.q[swizzle(row + lane % 16, 2 * k16 + lane / 16)]};
        gpu::ldmatrix_x4_tile<1>(a, address);
    }

    GPU_METHOD static void run(const attention_params &p) {
        auto &smem = gpu::shared<SharedStorage>();
        const int head = gpu::cta_y(), q0 = gpu::cta_x() * ATTENTION_BLOCK_Q;
        const int lane = gpu::lane_id(), g = lane / 4, t = lane % 4;
        const int warp_row = gpu::warp_id() / D_WARPS * 16;
        const int warp_column = gpu::warp_id() % D_WARPS * D_OWN;
        const bf16_bits *q = p.q + (int64_t)head * p.q_head_stride;
        const bf16_bits *k = p.k + (int64_t)head * p.k_head_stride;
        const bf16_bits *v = p.v + (int64_t)head * p.v_head_stride;
        // Keys past the last query of this CTA are masked for all of it.
        const int keys = p.causal ? gpu::min(p.kv_len, q0 + ATTENTION_BLOCK_Q) : p.kv_len;
        const int num_tiles = gpu::ceil_div(keys, BLOCK_KV);

        auto fetch_to_shared = [&](int tile) {
            if (tile < num_tiles) {
                fetch<BLOCK_KV>(smem.k[tile % STAGES], k, p.k_pitch, tile * BLOCK_KV, p.kv_len, p.head_dim);
                fetch<BLOCK_KV>(smem.v[tile % STAGES], v, p.v_pitch, tile * BLOCK_KV, p.kv_len, p.head_dim);
            }
            gpu::cp_async_commit();
        };

        // prologue
        fetch<ATTENTION_BLOCK_Q>(smem.q, q, p.q_pitch, q0, p.q_len, p.head_dim);
        GPU_UNROLL
        for (int tile = 0; tile < STAGES; ++tile) fetch_to_shared(tile); // Q travels in the first group

        float out[NT_O / NT_STEP][1][NT_STEP][4];
        GPU_UNROLL
        for (int part = 0; part < NT_O / NT_STEP; ++part) {
            GPU_UNROLL
            for (int j = 0; j < NT_STEP; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) out[part][0][j][e] = 0.0f;
            }
        }
        const float minus_infinity = gpu::bits_to_float(0xff800000u);
        float row_max[2] = {minus_infinity, minus_infinity}, row_sum[2] = {0.0f, 0.0f};
        uint32_t q_frag[Q_IN_REGISTERS ? D / 16 : 1][1][4];

        GPU_NO_UNROLL
        for (int tile = 0; tile < num_tiles; ++tile) {
            gpu::cp_async_wait<STAGES - 1>();
            gpu::sync_cta(); // the tile has landed for everyone
            if (Q_IN_REGISTERS && tile == 0) {
                GPU_UNROLL
                for (int k16 = 0; k16 < D / 16; ++k16) load_q(q_frag[Q_IN_REGISTERS ? k16 : 0], smem, warp_row, k16);
            }

            // S = Q K^T
            float s[1][NT_S][4];
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
                for (int j = 0; j < NT_S / 2; ++j) {
                    rows[j] = &smem.k[tile % STAGES][swizzle(16 * j + lane / 16 * 8 + lane % 8, 2 * k16 + lane / 8 % 2)];
                }
                uint32_t frag[NT_S / 2][4], b[NT_S][2];
                gpu::ldmatrix_x4_tile<NT_S / 2>(frag, rows);
                GPU_UNROLL
                for (int j = 0; j < NT_S; ++j) b[j][0] = frag[j / 2][j % 2 * 2], b[j][1] = frag[j / 2][j % 2 * 2 + 1];
                gpu::mma_tile<1, NT_S>(s, q_frag[Q_IN_REGISTERS ? k16 : 0], b);
            }

            // scale, bias, mask; this lane holds rows g and g + 8, columns 8 j + 2 t + {0, 1}
            float tile_max[2] = {minus_infinity, minus_infinity};
            GPU_UNROLL
            for (int j = 0; j < NT_S; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) {
                    const int query = q0 + warp_row + g + e / 2 * 8;
                    const int key = tile * BLOCK_KV + 8 * j + 2 * t + e % 2;
                    float x = s[0][j][e] * p.softmax_scale;
                    const bool inside = key < p.kv_len && (!p.causal || key <= query);
                    if (p.bias && inside && query < p.q_len) {
                        x += p.bias[(int64_t)head * (2 * p.bias_len - 1) + key - query + p.bias_len - 1];
                    }
                    x = inside ? x * LOG2_E : minus_infinity;
                    s[0][j][e] = x;
                    tile_max[e / 2] = gpu::max(tile_max[e / 2], x);
                }
            }

            // The running maximum is finite from the first tile on: key 0 is never masked.
            GPU_UNROLL
            for (int r = 0; r < 2; ++r) {
                const float fresh = gpu::max(row_max[r], gpu::warp_max<4>(tile_max[r]));
                const float decay = gpu::exp2_approx(row_max[r] - fresh);
                row_max[r] = fresh;
                row_sum[r] *= decay;
                GPU_UNROLL
                for (int part = 0; part < NT_O / NT_STEP; ++part) {
                    GPU_UNROLL
                    for (int j = 0; j < NT_STEP; ++j) {
                        out[part][0][j][2 * r] *= decay;
                        out[part][0][j][2 * r + 1] *= decay;
                    }
                }
            }
            GPU_UNROLL
            for (int j = 0; j < NT_S; ++j) {
                GPU_UNROLL
                for (int e = 0; e < 4; ++e) {
                    s[0][j][e] = gpu::exp2_approx(s[0][j][e] - row_max[e / 2]);
                    row_sum[e / 2] += s[0][j][e];
                }
            }

            // O += P V
            GPU_UNROLL
            for (int k16 = 0; k16 < BLOCK_KV / 16; ++k16) {
                const uint32_t a[1][4] = {{gpu::pack_bf16x2(s[0][2 * k16][0], s[0][2 * k16][1]),
                                           gpu::pack_bf16x2(s[0][2 * k16][2], s[0][2 * k16][3]),
                                           gpu::pack_bf16x2(s[0][2 * k16 + 1][0], s[0][2 * k16 + 1][1]),
                                           gpu::pack_bf16x2(s[0][2 * k16 + 1][2], s[0][2 * k16 + 1][3])}};
                GPU_UNROLL
                for (int part = 0; part < NT_O / NT_STEP; ++part) {
                    const void *rows[NT_STEP / 2];
                    GPU_UNROLL
                    for (int j = 0; j < NT_STEP / 2; ++j) {
                        const int chunk = (warp_column + part * NT_STEP * 8) / 8 + 2 * j + lane / 16;
                        rows[j] = &smem.v[tile % STAGES][swizzle(16 * k16 + lane % 16, chunk)];
                    }
                    uint32_t frag[NT_STEP / 2][4], b[NT_STEP][2];
                    gpu::ldmatrix_x4_trans_tile<NT_STEP / 2>(frag, rows);
                    GPU_UNROLL
                    for (int j = 0; j < NT_STEP; ++j) b[j][0] = frag[j / 2][j % 2 * 2], b[j][1] = frag[j / 2][j % 2 * 2 + 1];
                    gpu::mma_tile<1, NT_STEP>(out[part], a, b);
                }
            }

            gpu::sync_cta(); // everyone has left the stage that is fetched next
            fetch_to_shared(tile + STAGES);
        }

        // epilogue
        GPU_UNROLL
        for (int r = 0; r < 2; ++r) {
            const float inverse = 1.0f / gpu::warp_sum<4>(row_sum[r]);
            const int query = q0 + warp_row + g + 8 * r;
            if (query < p.q_len) {
                bf16_bits *row = p.out + query * p.out_pitch + (int64_t)head * p.out_head_stride;
                GPU_UNROLL
                for (int part = 0; part < NT_O / NT_STEP; ++part) {
                    GPU_UNROLL
                    for (int j = 0; j < NT_STEP; ++j) {
                        const int column = warp_column + (part * NT_STEP + j) * 8 + 2 * t;
                        if (column < p.head_dim) {
                            *reinterpret_cast<uint32_t *>(row + column) =
                                gpu::pack_bf16x2(out[part][0][j][2 * r] * inverse, out[part][0][j][2 * r + 1] * inverse);
                        }
                    }
                }
            }
        }
    }
};

// Keys per tile and slots are what fits 99 KB with all of Q resident; two slots where the tile leaves room.
using D64 = Attention<64, 64, 2, 1>;
using D128 = Attention<128, 64, 2, 1>;
using D256 = Attention<256, 32, 1, 1>;
using D512 = Attention<512, 16, 1, 2>;

static_assert(sizeof(D64::SharedStorage) == ATTENTION_D64_SMEM_BYTES && D64::THREADS == ATTENTION_D64_THREADS, "header");
static_assert(sizeof(D128::SharedStorage) == ATTENTION_D128_SMEM_BYTES && D128::THREADS == ATTENTION_D128_THREADS, "header");
static_assert(sizeof(D256::SharedStorage) == ATTENTION_D256_SMEM_BYTES && D256::THREADS == ATTENTION_D256_THREADS, "header");
static_assert(sizeof(D512::SharedStorage) == ATTENTION_D512_SMEM_BYTES && D512::THREADS == ATTENTION_D512_THREADS, "header");

} // namespace

GPU_KERNEL(attention_d64_bf16_sm80, attention_params, ATTENTION_D64_THREADS, 2) { D64::run(p); }
GPU_KERNEL(attention_d128_bf16_sm80, attention_params, ATTENTION_D128_THREADS, 1) { D128::run(p); }
GPU_KERNEL(attention_d256_bf16_sm80, attention_params, ATTENTION_D256_THREADS, 1) { D256::run(p); }
GPU_KERNEL(attention_d512_bf16_sm80, attention_params, ATTENTION_D512_THREADS, 1) { D512::run(p); }
