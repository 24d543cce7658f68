// gemm_tile.cuh: one CTA tile of out^T = w . x^T, shared by nf4_gemm, bf16_gemm and conv2d.
//
// Work    4 warps as 2 (features) x 2 (tokens), each 64 features x 64 tokens:
//                       tokens 0-63   tokens 64-127
//         feat   0-63     warp 0         warp 1          per warp 4 x 8 tiles m16n8k16, 128 accumulators a lane
//         feat 64-127     warp 2         warp 3
// Why ^T  the weight is the A operand, so its fragments can be made in registers (NF4 never touches smem as bf16), and
//         its rows may be permuted at will: fragment row g of m16 tile i is feature 8g + 2i, row g + 8 is feature
//         8g + 2i + 1. A lane then owns 8 adjacent features of a token: 16-byte stores, RoPE pairs within a lane, and
//         bias, gate and norm weights loaded once.
// Layout  smem rows of 64 bf16 = 8 chunks of 16 bytes, chunk c of row r at c ^ (r & 7): cp.async writes and ldmatrix
//         reads touch every bank once.
// Source  fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16".
#ifndef SCHNELL_GEMM_TILE_CUH
#define SCHNELL_GEMM_TILE_CUH

#include "gemm.h"
#include "gpu.cuh"
#include "nf4.cuh"

namespace gemm {

constexpr int BLOCK_N = GEMM_BLOCK_N, BLOCK_M = GEMM_BLOCK_M, BLOCK_K = GEMM_BLOCK_K, THREADS = GEMM_THREADS;
constexpr int WARP_N = 64, WARP_M = 64;
constexpr int MT = WARP_N / 16, NT = WARP_M / 8;
constexpr int CHUNKS = BLOCK_K / 8;  // 16-byte chunks of a smem row
static_assert(BLOCK_N == 2 * WARP_N && BLOCK_M == 2 * WARP_M && THREADS == 4 * gpu::WARP, "2 x 2 warps cover the tile");
static_assert(CHUNKS == 8, "the swizzle permutes 8 chunks");
static_assert(BLOCK_K == NF4_BLOCK, "a k-step has one absmax per feature");

// Two things follow that spare address arithmetic: 16 rows on is 16 * CHUNKS places on, and for chunks 0 and 1
// swizzle(row, 2 * k16 + chunk) is swizzle(row, chunk) ^ 2 * k16.
GPU_FN int swizzle(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

// ---------------------------------------------------------------------------------------- rows of gmem to smem

// A thread copies the same chunk of 8 rows in every k-step: chunk t % 8 of the tile's rows t / 8 + 16 i.
constexpr int ROWS_APART = THREADS / CHUNKS, ROWS_EACH = BLOCK_M / ROWS_APART;
static_assert(BLOCK_M == BLOCK_N && ROWS_EACH == 8, "tiles of w and x are dealt to the threads alike");

GPU_FN int own_row() { return gpu::thread_x() / CHUNKS; }
GPU_FN int own_chunk() { return gpu::thread_x() % CHUNKS; }
// Place in a stage of the chunk of row i; the swizzle repeats every 8 rows.
GPU_FN int own_place(int i) { return swizzle(own_row(), own_chunk()) + i * ROWS_APART * CHUNKS; }

// Which row of the matrix the tile's row own_row() + 16 i is: first() + offset(i), offset(i) known to the compiler.
struct InOrder {
    GPU_METHOD static int first() { return own_row(); }
    GPU_METHOD static constexpr int offset(int i) { return i * ROWS_APART; }
};

// A bf16 [rows, k] matrix, k-step by k-step; k is a multiple of K_MULTIPLE. What stays the same from step to step is
// worked out once: in the loop the mere reading of a problem's field is a chain of constant loads, since blockIdx.z picks
// the problem.
template <typename Order, int K_MULTIPLE> struct RowLoader {
    const uint4 *src;     // this thread's chunk of its first row, in the next k-step
    uint32_t pitch;       // chunks from row to row
    int k_left;           // elements of a row from there on
    uint32_t exists;      // bit i: the matrix has a row i

    GPU_METHOD RowLoader(const bf16_bits *matrix, int64_t row_pitch, int row0, int num_rows, int k)
        : src(reinterpret_cast<const uint4 *>(matrix + (row0 + Order::first()) * row_pitch) + own_chunk()),
          pitch((uint32_t)(row_pitch / 8)), k_left(k - own_chunk() * 8), exists(0) {
        GPU_UNROLL
        for (int i = 0; i < ROWS_EACH; ++i) exists |= (row0 + Order::first() + Order::offset(i) < num_rows ? 1u : 0u) << i;
    }

    GPU_METHOD void fetch(uint4 *stage) {
        const uint32_t rows = k_left > 0 ? exists : 0;
        if (K_MULTIPLE % 8 == 0 || k_left >= 8) {
            GPU_UNROLL
            for (int i = 0; i < ROWS_EACH; ++i) gpu::cp_async16_or_zeros(&stage[own_place(i)], row(i), rows & 1u << i);
        } else { // a row's last chunk
            GPU_UNROLL
            for (int i = 0; i < ROWS_EACH; ++i) gpu::cp_async<16>(&stage[own_place(i)], row(i), rows & 1u << i ? k_left * 2 : 0);
        }
        src += CHUNKS;
        k_left -= BLOCK_K;
    }

    GPU_METHOD const uint4 *row(int i) const { return src + (uint64_t)pitch * Order::offset(i); }
};

// ---------------------------------------------------------------------------------------- x: the B operand

struct XStage {
    uint4 chunk[BLOCK_M * CHUNKS];
};

// A plain [m, k] matrix of tokens.
template <int K_MULTIPLE> struct TokenLoader : RowLoader<InOrder, K_MULTIPLE> {
    GPU_METHOD TokenLoader(const gemm_problem &q, int m0)
        : RowLoader<InOrder, K_MULTIPLE>(q.x, q.x_pitch, m0, q.m, q.k) {}
};

// b[2 j + {0, 1}]: the 16 k of step k16 for this warp's tokens.
GPU_FN void load_x_fragments(uint32_t (&b)[NT][2], const XStage &stage, int warp_m, int k16) {
    const int lane = gpu::lane_id();
    const int place = swizzle(warp_m + lane / 16 * 8 + lane % 8, lane / 8 % 2) ^ 2 * k16;
    const void *rows[NT / 2];
    GPU_UNROLL
    for (int j = 0; j < NT / 2; ++j) rows[j] = &stage.chunk[place + 16 * j * CHUNKS];
    uint32_t frag[NT / 2][4];
    gpu::ldmatrix_x4_tile<NT / 2>(frag, rows);
    GPU_UNROLL
    for (int j = 0; j < NT / 2; ++j) {
        b[2 * j][0] = frag[j][0];
        b[2 * j][1] = frag[j][1];
        b[2 * j + 1][0] = frag[j][2];
        b[2 * j + 1][1] = frag[j][3];
    }
}

// ---------------------------------------------------------------------------------------- w: the A operand

// The feature of a warp's 64 that fragment row r of m16 tile i stands for.
GPU_FN int feature_of(int i, int r) { return 8 * (r % 8) + 2 * i + r / 8; }

// The features of the tile's rows own_row() + 16 i: i is the m16 tile, 4 to a warp.
struct FragmentOrder {
    GPU_METHOD static int first() { return feature_of(0, own_row()); }
    GPU_METHOD static constexpr int offset(int i) { return i / MT * WARP_N + i % MT * 2; }
};
static_assert(ROWS_APART == 16, "FragmentOrder steps from m16 tile to m16 tile");

// bf16 [n, k], rows in fragment order in smem; k is a multiple of K_MULTIPLE.
template <int K_MULTIPLE> struct Bf16Weights {
    struct Stage {
        uint4 chunk[BLOCK_N * CHUNKS];
    };
    struct Tables {
        uint4 none;
    };

    GPU_METHOD static void fill(Tables &) {}

    struct Loader {
        RowLoader<FragmentOrder, K_MULTIPLE> rows;

        GPU_METHOD Loader(const gemm_problem &q, int n0)
            : rows(static_cast<const bf16_bits *>(q.w), q.w_pitch, n0, q.n, q.k) {}

        GPU_METHOD void fetch(Stage &stage) { rows.fetch(stage.chunk); }
    };

    GPU_METHOD Bf16Weights(const Stage &, const Tables &, int) {}

    GPU_METHOD void fragments(uint32_t (&a)[MT][4], const Stage &stage, const Tables &, int warp_n, int k16) const {
        const int lane = gpu::lane_id();
        const int place = swizzle(warp_n + lane % 16, lane / 16) ^ 2 * k16;
        const void *rows[MT];
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) rows[i] = &stage.chunk[place + 16 * i * CHUNKS];
        gpu::ldmatrix_x4_tile<MT>(a, rows);
    }
};

// NF4 in fragment order (weights/layout: see nf4_quantize.h): a lane's 16 bytes of an m16 x k64 piece hold, per k16
// step, the code pairs of a0a1, a2a3, a4a5, a6a7, the even element in the high nibble.
struct Nf4Weights {
    struct Stage {
        uint4 codes[BLOCK_N / 16 * gpu::WARP];
        float absmax[BLOCK_N];
    };
    struct Tables {
        gpu::Nf4Book book;
    };

    GPU_METHOD static void fill(Tables &tables) { gpu::fill(tables.book, THREADS); }

    struct Loader {
        static constexpr int TILE_CHUNKS = WARP_N * BLOCK_K / 2 / 16; // of 64 features x 64 k
        static_assert(TILE_CHUNKS == THREADS && BLOCK_N == 2 * WARP_N, "one chunk a thread and tile, two tiles");
        const uint4 *codes;    // this thread's chunk of the first tile, in the next k-step
        const float *absmax;
        int64_t tile_pitch;    // chunks from tile to tile
        int absmax_pitch;      // features of a k-step
        bool has_second, has_absmax;

        GPU_METHOD Loader(const gemm_problem &q, int n0) {
            const int n_padded = gpu::ceil_div(q.n, WARP_N) * WARP_N, n = n0 + gpu::thread_x() * 4;
            tile_pitch = (int64_t)(q.k / BLOCK_K) * TILE_CHUNKS;
            codes = static_cast<const uint4 *>(q.w) + n0 / WARP_N * tile_pitch + gpu::thread_x();
            absmax = q.absmax + n;
            absmax_pitch = n_padded;
            has_second = n0 + WARP_N < n_padded;
            has_absmax = n < n_padded;
        }

        GPU_METHOD void fetch(Stage &stage) {
            gpu::cp_async<16>(&stage.codes[gpu::thread_x()], codes, 16);
            gpu::cp_async<16>(&stage.codes[TILE_CHUNKS + gpu::thread_x()], codes + tile_pitch, has_second ? 16 : 0);
            codes += TILE_CHUNKS;
            if (gpu::thread_x() < BLOCK_N / 4) {
                gpu::cp_async<16>(&stage.absmax[gpu::thread_x() * 4], absmax, has_absmax ? 16 : 0);
                absmax += absmax_pitch;
            }
        }
    };

    uint4 codes[MT];
    float absmax[MT][2];

    // Takes this lane's share of a whole k-step into registers.
    GPU_METHOD Nf4Weights(const Stage &stage, const Tables &, int warp_n) {
        const int lane = gpu::lane_id();
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) codes[i] = stage.codes[(warp_n / 16 + i) * gpu::WARP + lane];
        const float4 *scales = reinterpret_cast<const float4 *>(&stage.absmax[warp_n + lane / 4 * 8]);
        const float4 lo = scales[0], hi = scales[1];
        absmax[0][0] = lo.x, absmax[0][1] = lo.y, absmax[1][0] = lo.z, absmax[1][1] = lo.w;
        absmax[2][0] = hi.x, absmax[2][1] = hi.y, absmax[3][0] = hi.z, absmax[3][1] = hi.w;
    }

    // bf16(code * absmax), one rounding: bit-equal to dequantising the whole matrix first. The codes are bits `bit` to
    // `bit` + 7 of `word`.
    GPU_METHOD static uint32_t dequantise(const Tables &tables, uint32_t word, int bit, float absmax) {
        const float even = gpu::mul_exact(gpu::lookup(tables.book, word, bit + 4), absmax);
        const float odd = gpu::mul_exact(gpu::lookup(tables.book, word, bit), absmax);
        return gpu::pack_bf16x2(even, odd);
    }

    GPU_METHOD void fragments(uint32_t (&a)[MT][4], const Stage &, const Tables &tables, int, int k16) const {
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) {
            const uint32_t word = k16 == 0 ? codes[i].x : k16 == 1 ? codes[i].y : k16 == 2 ? codes[i].z : codes[i].w;
            GPU_UNROLL
            for (int part = 0; part < 4; ++part) a[i][part] = dequantise(tables, word, 8 * part, absmax[i][part % 2]);
        }
    }
};

// ---------------------------------------------------------------------------------------- epilogue

using Accumulators = float[MT][NT][4];

// Feature 8 g + c of this lane, token 8 j + 2 t + e of this warp.
GPU_FN float &element(Accumulators &acc, int c, int j, int e) { return acc[c / 2][j][c % 2 * 2 + e]; }

template <typename F> GPU_FN void for_each(Accumulators &acc, F f) {
    GPU_UNROLL
    for (int i = 0; i < MT; ++i) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            GPU_UNROLL
            for (int v = 0; v < 4; ++v) acc[i][j][v] = f(acc[i][j][v]);
        }
    }
}

GPU_FN void add_bias(Accumulators &acc, const gemm_problem &q, int feature) {
    if (!q.bias) return;
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) {
        const float bias = feature + c < q.n ? q.bias[feature + c] : 0.0f;
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            element(acc, c, j, 0) += bias;
            element(acc, c, j, 1) += bias;
        }
    }
}

GPU_FN void activate(Accumulators &acc, int act) {
    switch (act) {
    case GEMM_ACT_GELU_TANH: for_each(acc, [](float x) { return gpu::gelu_tanh(x); }); break;
    case GEMM_ACT_GELU_ERF: for_each(acc, [](float x) { return gpu::gelu_erf(x); }); break;
    case GEMM_ACT_QUICK_GELU: for_each(acc, [](float x) { return gpu::quick_gelu(x); }); break;
    case GEMM_ACT_SILU: for_each(acc, [](float x) { return gpu::silu(x); }); break;
    }
}

GPU_FN void store_bf16x8(bf16_bits *out, const float (&y)[8], int count, bool vector) {
    if (vector) {
        const uint4 words = {gpu::pack_bf16x2(y[0], y[1]), gpu::pack_bf16x2(y[2], y[3]),
                             gpu::pack_bf16x2(y[4], y[5]), gpu::pack_bf16x2(y[6], y[7])};
        gpu::store_vector(reinterpret_cast<uint4 *>(out), words);
        return;
    }
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) {
        if (c < count) out[c] = gpu::float_to_bf16(y[c]);
    }
}

GPU_FN void load_bf16x8(float (&y)[8], const bf16_bits *in, int count, bool vector) {
    if (vector) {
        const uint4 v = *reinterpret_cast<const uint4 *>(in);
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
        GPU_UNROLL
        for (int c = 0; c < 4; ++c) y[2 * c] = gpu::bf16_lo(words[c]), y[2 * c + 1] = gpu::bf16_hi(words[c]);
        return;
    }
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) y[c] = c < count ? gpu::bf16_to_float(in[c]) : 0.0f;
}

GPU_FN void store_f32x8(float *out, const float (&y)[8], int count, bool vector) {
    if (vector) {
        gpu::store_vector(reinterpret_cast<float4 *>(out), float4{y[0], y[1], y[2], y[3]});
        gpu::store_vector(reinterpret_cast<float4 *>(out) + 1, float4{y[4], y[5], y[6], y[7]});
        return;
    }
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) {
        if (c < count) out[c] = y[c];
    }
}

GPU_FN void load_f32x8(float (&y)[8], const float *in, int count, bool vector) {
    if (vector) {
        const float4 lo = reinterpret_cast<const float4 *>(in)[0], hi = reinterpret_cast<const float4 *>(in)[1];
        y[0] = lo.x, y[1] = lo.y, y[2] = lo.z, y[3] = lo.w, y[4] = hi.x, y[5] = hi.y, y[6] = hi.z, y[7] = hi.w;
        return;
    }
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) y[c] = c < count ? in[c] : 0.0f;
}

// A lane has 16 tokens of its warp's 64; here they are counted from its first.
constexpr int TOKENS_EACH = 2 * NT;
GPU_FN int first_token() { return gpu::lane_id() % 4 * 2; }
GPU_CONSTEXPR int token_offset(int i) { return i / 2 * 8 + i % 2; }
GPU_FN void take_token(float (&y)[8], Accumulators &acc, int i) {
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) y[c] = element(acc, c, i / 2, i % 2);
}

// Operands of so many tokens are on their way at once: nothing moves a load before the store that precedes it, and one load
// at a time is one latency of the memory at a time. Four would spill on sm_80 and sm_120.
constexpr int TOKENS_AHEAD = 2;

// Writes this lane's 8 features of every token it owns: load(x, offset, count, vector), and when AHEAD tokens are loaded
// store(x, y, offset, count, vector), each with the element offset token * pitch + feature - n_begin.
template <int AHEAD, typename Load, typename Store>
GPU_FN void update_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, bool vector, Load load, Store store) {
    const int count = s.n_end - feature, token = token0 + first_token();
    const int64_t at = token * s.out_pitch + feature - s.n_begin;
    GPU_UNROLL
    for (int first = 0; first < TOKENS_EACH; first += AHEAD) {
        float x[AHEAD][8];
        GPU_UNROLL
        for (int i = 0; i < AHEAD; ++i) {
            const int offset = token_offset(first + i);
            if (token + offset < q.m) load(x[i], at + offset * s.out_pitch, count, vector);
        }
        GPU_UNROLL
        for (int i = 0; i < AHEAD; ++i) {
            const int offset = token_offset(first + i);
            if (token + offset < q.m) {
                float y[8];
                take_token(y, acc, first + i);
                store(x[i], y, at + offset * s.out_pitch, count, vector);
            }
        }
    }
}
template <typename Load, typename Store>
GPU_FN void update_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, Load load, Store store) {
    if (s.n_end - feature >= 8 && s.out_pitch % 8 == 0) {
        update_tokens<TOKENS_AHEAD>(acc, q, s, feature, token0, true, load, store);
    } else {
        update_tokens<1>(acc, q, s, feature, token0, false, load, store);
    }
}
template <typename Store> GPU_FN void store_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, Store store) {
    const bool vector = s.n_end - feature >= 8 && s.out_pitch % 8 == 0;
    auto nothing = [](float (&)[8], int64_t, int, bool) {};
    auto only_y = [&](float (&)[8], float (&y)[8], int64_t at, int count, bool vector) { store(y, at, count, vector); };
    update_tokens<1>(acc, q, s, feature, token0, vector, nothing, only_y);
}

GPU_FN void store_segment(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    switch (s.kind) {
    case GEMM_STORE_BF16:
        store_tokens(acc, q, s, feature, token0, [&](float (&y)[8], int64_t at, int count, bool vector) {
            store_bf16x8(static_cast<bf16_bits *>(s.out) + at, y, count, vector);
        });
        break;
    case GEMM_STORE_F32:
        store_tokens(acc, q, s, feature, token0, [&](float (&y)[8], int64_t at, int count, bool vector) {
            store_f32x8(static_cast<float *>(s.out) + at, y, count, vector);
        });
        break;
    case GEMM_ADD_F32: {
        float gate[8];
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) {
            const bool inside = s.aux && feature + c < s.n_end;
            gate[c] = inside ? static_cast<const float *>(s.aux)[feature + c - s.n_begin] : 1.0f;
        }
        float *const out = static_cast<float *>(s.out);
        update_tokens(
            acc, q, s, feature, token0,
            [&](float (&x)[8], int64_t at, int count, bool vector) { load_f32x8(x, out + at, count, vector); },
            [&](float (&x)[8], float (&y)[8], int64_t at, int count, bool vector) {
                GPU_UNROLL
                for (int c = 0; c < 8; ++c) x[c] += gate[c] * y[c];
                store_f32x8(out + at, x, count, vector);
            });
        break;
    }
    case GEMM_ADD_BF16:
    case GEMM_MUL_BF16:
        update_tokens(
            acc, q, s, feature, token0,
            [&](float (&x)[8], int64_t at, int count, bool vector) {
                load_bf16x8(x, static_cast<const bf16_bits *>(s.aux) + at, count, vector);
            },
            [&](float (&x)[8], float (&y)[8], int64_t at, int count, bool vector) {
                GPU_UNROLL
                for (int c = 0; c < 8; ++c) x[c] = s.kind == GEMM_ADD_BF16 ? x[c] + y[c] : x[c] * y[c];
                store_bf16x8(static_cast<bf16_bits *>(s.out) + at, x, count, vector);
            });
        break;
    }
}

// Sums of squares per token, one row per feature half of the tile.
struct RowSums {
    float sum[BLOCK_N / WARP_N][BLOCK_M];
};

static_assert(THREADS == BLOCK_M, "a thread finishes the sums of one token");

// RMSNorm over the tile's 128 features and RoPE over their pairs. The whole CTA is one head: all threads come here.
GPU_FN void store_norm_rope(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, RowSums &sums, int n0, int m0, int warp_n, int warp_m) {
    const int lane = gpu::lane_id(), group = lane / 4, pair_token = lane % 4 * 2;
    GPU_UNROLL
    for (int j = 0; j < NT; ++j) {
        GPU_UNROLL
        for (int e = 0; e < 2; ++e) {
            float sum = 0.0f;
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) sum += element(acc, c, j, e) * element(acc, c, j, e);
            // Lanes of one token differ in lane / 4.
            GPU_UNROLL
            for (int mask = 16; mask >= 4; mask /= 2) sum = gpu::add_exact(sum, gpu::shfl_xor(sum, mask));
            if (group == 0) sums.sum[warp_n / WARP_N][warp_m + 8 * j + pair_token + e] = sum;
        }
    }
    gpu::sync_cta();
    // Once per token, not in each of its lanes: the exact root and reciprocal are long.
    float &own = sums.sum[0][gpu::thread_x()];
    own = gpu::rsqrt_exact((own + sums.sum[1][gpu::thread_x()]) * (1.0f / BLOCK_N) + q.norm_eps);
    gpu::sync_cta();
    float weight[8];
    load_f32x8(weight, static_cast<const float *>(s.aux) + warp_n + group * 8, 8, true);
    const int row = warp_m + first_token(), token = m0 + row;
    const int64_t rope = (int64_t)token * (BLOCK_N / 2) + (warp_n + group * 8) / 2;
    const float *const rope_cos = q.rope_cos + rope, *const rope_sin = q.rope_sin + rope;
    bf16_bits *const out = static_cast<bf16_bits *>(s.out) + token * s.out_pitch + n0 - s.n_begin + warp_n + group * 8;
    GPU_UNROLL
    for (int first = 0; first < TOKENS_EACH; first += TOKENS_AHEAD) {
        float4 cos[TOKENS_AHEAD], sin[TOKENS_AHEAD];
        GPU_UNROLL
        for (int i = 0; i < TOKENS_AHEAD; ++i) {
            const int offset = token_offset(first + i);
            if (token + offset < q.m) {
                cos[i] = *reinterpret_cast<const float4 *>(rope_cos + offset * (BLOCK_N / 2));
                sin[i] = *reinterpret_cast<const float4 *>(rope_sin + offset * (BLOCK_N / 2));
            }
        }
        GPU_UNROLL
        for (int i = 0; i < TOKENS_AHEAD; ++i) {
            const int offset = token_offset(first + i);
            if (token + offset < q.m) {
                const float rms = sums.sum[0][row + offset];
                const float cosines[4] = {cos[i].x, cos[i].y, cos[i].z, cos[i].w};
                const float sines[4] = {sin[i].x, sin[i].y, sin[i].z, sin[i].w};
                float x[8], y[8];
                take_token(x, acc, first + i);
                GPU_UNROLL
                for (int pair = 0; pair < 4; ++pair) {
                    const float even = x[2 * pair] * rms * weight[2 * pair];
                    const float odd = x[2 * pair + 1] * rms * weight[2 * pair + 1];
                    y[2 * pair] = even * cosines[pair] - odd * sines[pair];
                    y[2 * pair + 1] = even * sines[pair] + odd * cosines[pair];
                }
                store_bf16x8(out + offset * s.out_pitch, y, 8, true);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------- the tile

template <typename Weights, int STAGES> struct SharedStorage {
    struct Stage {
        XStage x;
        typename Weights::Stage w;
    } stage[STAGES];
    typename Weights::Tables tables;
    RowSums sums;
};

// `inputs` fetches the k-steps of x one after the other.
template <typename Weights, int STAGES, typename Inputs>
GPU_FN void run_tile(const gemm_problem &q, Inputs inputs, int n0, int m0) {
    auto &smem = gpu::shared<SharedStorage<Weights, STAGES>>();
    const int warp_n = gpu::warp_id() / 2 * WARP_N, warp_m = gpu::warp_id() % 2 * WARP_M;
    const int num_k = gpu::ceil_div(q.k, BLOCK_K);

    typename Weights::Loader weight_loader(q, n0);

    // Called for kb = 0, 1, 2, ..: the loaders step along.
    auto fetch_to_shared = [&](int kb) {
        if (kb < num_k) {
            inputs.fetch(smem.stage[kb % STAGES].x.chunk);
            weight_loader.fetch(smem.stage[kb % STAGES].w);
        }
        gpu::cp_async_commit(); // empty groups too, so that "all but the last STAGES - 2" stays true at the end
    };

    Accumulators acc;
    for_each(acc, [](float) { return 0.0f; });

    // prologue
    Weights::fill(smem.tables);
    GPU_UNROLL
    for (int kb = 0; kb < STAGES - 1; ++kb) fetch_to_shared(kb);

    // mainloop
    GPU_NO_UNROLL
    for (int kb = 0; kb < num_k; ++kb) {
        gpu::cp_async_wait<STAGES - 2>();
        gpu::sync_cta(); // stage kb has landed for everyone, and everyone has left the stage that is fetched next
        fetch_to_shared(kb + STAGES - 1);
        auto &stage = smem.stage[kb % STAGES];
        const Weights weights(stage.w, smem.tables, warp_n);
        GPU_UNROLL
        for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
            uint32_t a[MT][4], b[NT][2];
            weights.fragments(a, stage.w, smem.tables, warp_n, k16);
            load_x_fragments(b, stage.x, warp_m, k16);
            gpu::mma_tile<MT, NT>(acc, a, b);
        }
    }

    // epilogue
    const int feature = n0 + warp_n + gpu::lane_id() / 4 * 8;
    add_bias(acc, q, feature);
    GPU_NO_UNROLL
    for (int i = 0; i < q.num_segments; ++i) {
        const gemm_segment &s = q.segment[i];
        if (s.kind == GEMM_NORM_ROPE) {
            if (n0 >= s.n_begin && n0 < s.n_end) store_norm_rope(acc, q, s, smem.sums, n0, m0, warp_n, warp_m);
        } else if (feature >= s.n_begin && feature < s.n_end) {
            activate(acc, s.act);
            store_segment(acc, q, s, feature, m0 + warp_m);
        }
    }
}

} // namespace gemm

#endif
