// gemm_epilogues.cuh: what becomes of a GEMM tile's accumulators: + bias, then per range of columns an activation and a
// way to memory.
//
// An entry point compiles one set of them (gemm.h lists the sets): all of them at once are 16,000 instructions.
//
// Bound   latencies of the memory, 700 to 800 clocks each by the model, beside 128 accumulators that leave room for 64 registers of
//         operands: all residuals of a lane in bf16, half of those in f32, cos and sin of 8 tokens. The bias came with a k-step.
// Tried   two tokens' operands at a time: 9,000 clocks a tile. A ring of single tokens: as slow where they share a scoreboard (sm_120).
//         cos and sin of 12 tokens at once: spills. By groups of four: under 4,000 (benches/WORKLOG.md).
#ifndef SCHNELL_GEMM_EPILOGUES_CUH
#define SCHNELL_GEMM_EPILOGUES_CUH

#include "gemm_rows.cuh"

namespace gemm {

// Bits 1 << GEMM_STORE_BF16, .. and 1 << GEMM_ACT_NONE, ..: what there is code for.
template <uint32_t KINDS, uint32_t ACTS> struct Epilogues {
    GPU_METHOD static constexpr bool has(int kind) { return KINDS >> kind & 1; }
    GPU_METHOD static constexpr bool activates(int act) { return ACTS >> act & 1; }
};
using Store = Epilogues<GEMM_STORE_KINDS, GEMM_STORE_ACTS>;
using Residual = Epilogues<GEMM_RESIDUAL_KINDS, GEMM_RESIDUAL_ACTS>;
using Combine = Epilogues<GEMM_COMBINE_KINDS, GEMM_COMBINE_ACTS>;
using Heads = Epilogues<GEMM_HEADS_KINDS, GEMM_HEADS_ACTS>;

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

// Of a tile's features, fetched with its first k-step, or before its last: a latency of the memory less where everything waits for it.
struct TileBias {
    float value[BLOCK_N];

    // The next commit is its group's. Zeros where there is no feature, or no bias.
    GPU_METHOD void fetch(const gemm_problem &q, int n0, int thread) {
        static_assert(THREADS == BLOCK_N, "a thread fetches one");
        const int feature = n0 + thread;
        const bool exists = q.bias && feature < q.n;
        gpu::cp_async<4>(&value[thread], exists ? q.bias + feature : q.bias, exists ? 4 : 0);
    }
};

// Of this lane's features.
using Bias = float[8];

GPU_FN void add_bias(Accumulators &acc, const Bias &bias) {
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            element(acc, c, j, 0) += bias[c];
            element(acc, c, j, 1) += bias[c];
        }
    }
}

GPU_FN void store_bf16x8(bf16_bits *out, const float (&y)[8]) {
    const uint4 words = {gpu::pack_bf16x2(y[0], y[1]), gpu::pack_bf16x2(y[2], y[3]), gpu::pack_bf16x2(y[4], y[5]),
                         gpu::pack_bf16x2(y[6], y[7])};
    gpu::store_vector(reinterpret_cast<uint4 *>(out), words);
}

GPU_FN void unpack_bf16x8(float (&y)[8], const uint4 &v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    GPU_UNROLL
    for (int c = 0; c < 4; ++c) y[2 * c] = gpu::bf16_lo(words[c]), y[2 * c + 1] = gpu::bf16_hi(words[c]);
}

GPU_FN void load_f32x8(float (&y)[8], const float *in) {
    const float4 lo = reinterpret_cast<const float4 *>(in)[0], hi = reinterpret_cast<const float4 *>(in)[1];
    y[0] = lo.x, y[1] = lo.y, y[2] = lo.z, y[3] = lo.w, y[4] = hi.x, y[5] = hi.y, y[6] = hi.z, y[7] = hi.w;
}

// A lane has 16 tokens of its warp's 64; here they are counted from its first.
constexpr int TOKENS_EACH = 2 * NT;
GPU_FN int first_token() { return gpu::lane_id() % 4 * 2; }
GPU_CONSTEXPR int token_offset(int i) { return i / 2 * 8 + i % 2; }
GPU_FN void take_token(float (&y)[8], Accumulators &acc, const Bias &bias, int i) {
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) y[c] = element(acc, c, i / 2, i % 2) + bias[c];
}

// A way to memory: what it needs of a token's 8 features (load), what becomes of them (store), and the same for less than 8 or
// where 16 bytes are not aligned (store_some). Elements are counted from out and aux. Operands are asked for GROUP tokens at a time,
// and those of AHEAD tokens are on their way at once: nothing moves a load before a store that precedes it, and a load at a time is a
// latency of the memory at a time. (So is a ring of single tokens, where ptxas has them share a scoreboard.)
struct StoreBf16 {
    struct Operand {};
    static constexpr int GROUP = TOKENS_EACH, AHEAD = TOKENS_EACH;
    bf16_bits *out;

    GPU_METHOD StoreBf16(const gemm_segment &s, int) : out(static_cast<bf16_bits *>(s.out)) {}
    GPU_METHOD Operand load(int64_t) const { return {}; }
    GPU_METHOD void store(int64_t at, const Operand &, const float (&y)[8]) const { store_bf16x8(out + at, y); }
    GPU_METHOD void store_some(int64_t at, const float (&y)[8], int count) const {
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) {
            if (c < count) out[at + c] = gpu::float_to_bf16(y[c]);
        }
    }
};

struct StoreF32 {
    struct Operand {};
    static constexpr int GROUP = TOKENS_EACH, AHEAD = TOKENS_EACH;
    float *out;

    GPU_METHOD StoreF32(const gemm_segment &s, int) : out(static_cast<float *>(s.out)) {}
    GPU_METHOD Operand load(int64_t) const { return {}; }
    GPU_METHOD void store(int64_t at, const Operand &, const float (&y)[8]) const {
        gpu::store_vector(reinterpret_cast<float4 *>(out + at), float4{y[0], y[1], y[2], y[3]});
        gpu::store_vector(reinterpret_cast<float4 *>(out + at) + 1, float4{y[4], y[5], y[6], y[7]});
    }
    GPU_METHOD void store_some(int64_t at, const float (&y)[8], int count) const {
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) {
            if (c < count) out[at + c] = y[c];
        }
    }
};

struct AddF32 : StoreF32 {
    struct Operand {
        float4 lo, hi;
    };
    static constexpr int GROUP = 4, AHEAD = 2 * GROUP; // all 16 are more than there are registers
    float gate[8];

    GPU_METHOD AddF32(const gemm_segment &s, int feature) : StoreF32(s, feature) {
        const float *gates = static_cast<const float *>(s.aux);
        const int count = gates ? s.n_end - feature : 0;
        if (gates) gates += feature - s.n_begin;
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) gate[c] = c < count ? gates[c] : 1.0f;
    }
    GPU_METHOD Operand load(int64_t at) const {
        const float4 *const old = reinterpret_cast<const float4 *>(out + at);
        return {old[0], old[1]};
    }
    GPU_METHOD void store(int64_t at, const Operand &old, const float (&y)[8]) const {
        float sum[8] = {old.lo.x, old.lo.y, old.lo.z, old.lo.w, old.hi.x, old.hi.y, old.hi.z, old.hi.w};
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) sum[c] += gate[c] * y[c];
        StoreF32::store(at, {}, sum);
    }
    GPU_METHOD void store_some(int64_t at, const float (&y)[8], int count) const {
        float sum[8];
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) sum[c] = c < count ? out[at + c] : 0.0f;
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) sum[c] += gate[c] * y[c];
        StoreF32::store_some(at, sum, count);
    }
};

// Sums with, or products by, another bf16 matrix.
template <bool ADDS> struct CombineBf16 : StoreBf16 {
    using Operand = uint4;
    const bf16_bits *aux;

    GPU_METHOD CombineBf16(const gemm_segment &s, int feature) : StoreBf16(s, feature), aux(static_cast<const bf16_bits *>(s.aux)) {}
    GPU_METHOD static void combine(float (&x)[8], const float (&y)[8]) {
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) x[c] = ADDS ? x[c] + y[c] : x[c] * y[c];
    }
    GPU_METHOD Operand load(int64_t at) const { return *reinterpret_cast<const uint4 *>(aux + at); }
    GPU_METHOD void store(int64_t at, const Operand &other, const float (&y)[8]) const {
        float x[8];
        unpack_bf16x8(x, other);
        combine(x, y);
        store_bf16x8(out + at, x);
    }
    GPU_METHOD void store_some(int64_t at, const float (&y)[8], int count) const {
        float x[8];
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) x[c] = c < count ? gpu::bf16_to_float(aux[at + c]) : 0.0f;
        combine(x, y);
        StoreBf16::store_some(at, x, count);
    }
};

// This lane's 8 features of every token that it owns.
template <typename Way>
GPU_FN void store_tokens(Accumulators &acc, const Bias &bias, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    const Way way(s, feature);
    const int count = s.n_end - feature, token = token0 + first_token(), tokens_left = q.m - token;
    const int64_t pitch = s.out_pitch, at = token * pitch + feature - s.n_begin;
    float y[8];
    if (count >= 8 && pitch % 8 == 0) {
        typename Way::Operand operands[Way::AHEAD];
        auto load = [&](int first) {
            GPU_UNROLL
            for (int i = first; i < first + Way::GROUP; ++i) {
                if (token_offset(i) < tokens_left) operands[i % Way::AHEAD] = way.load(at + token_offset(i) * pitch);
            }
        };
        GPU_UNROLL
        for (int i = 0; i < Way::AHEAD; i += Way::GROUP) load(i);
        GPU_UNROLL
        for (int first = 0; first < TOKENS_EACH; first += Way::GROUP) {
            GPU_UNROLL
            for (int i = first; i < first + Way::GROUP; ++i) {
                take_token(y, acc, bias, i);
                if (token_offset(i) < tokens_left) way.store(at + token_offset(i) * pitch, operands[i % Way::AHEAD], y);
            }
            if (first + Way::AHEAD < TOKENS_EACH) load(first + Way::AHEAD);
        }
        return;
    }
    GPU_UNROLL
    for (int i = 0; i < TOKENS_EACH; ++i) {
        take_token(y, acc, bias, i);
        if (token_offset(i) < tokens_left) way.store_some(at + token_offset(i) * pitch, y, count);
    }
}

// Activations are applied to all values before the first is stored: nvcc interleaves what no store stands between.
template <typename Set>
GPU_FN void store_activated(Accumulators &acc, const Bias &bias, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    add_bias(acc, bias);
    if (Set::activates(GEMM_ACT_GELU_TANH) && s.act == GEMM_ACT_GELU_TANH) {
        for_each(acc, [](float x) { return gpu::gelu_tanh(x); });
    } else if (Set::activates(GEMM_ACT_QUICK_GELU) && s.act == GEMM_ACT_QUICK_GELU) {
        for_each(acc, [](float x) { return gpu::quick_gelu(x); });
    } else if (Set::activates(GEMM_ACT_GELU_ERF) && s.act == GEMM_ACT_GELU_ERF) {
        for_each(acc, [](float x) { return gpu::gelu_erf(x); });
    }
    const Bias none = {};
    store_tokens<StoreBf16>(acc, none, q, s, feature, token0);
}

template <typename Set>
GPU_FN void store_segment(Accumulators &acc, const Bias &bias, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    if (Set::has(GEMM_STORE_BF16) && s.kind == GEMM_STORE_BF16) {
        store_activated<Set>(acc, bias, q, s, feature, token0);
    } else if (Set::has(GEMM_STORE_F32) && s.kind == GEMM_STORE_F32) {
        store_tokens<StoreF32>(acc, bias, q, s, feature, token0);
    } else if (Set::has(GEMM_ADD_F32) && s.kind == GEMM_ADD_F32) {
        store_tokens<AddF32>(acc, bias, q, s, feature, token0);
    } else if (Set::has(GEMM_ADD_BF16) && s.kind == GEMM_ADD_BF16) {
        store_tokens<CombineBf16<true>>(acc, bias, q, s, feature, token0);
    } else if (Set::has(GEMM_MUL_BF16) && s.kind == GEMM_MUL_BF16) {
        store_tokens<CombineBf16<false>>(acc, bias, q, s, feature, token0);
    }
}

// The threads that have a tile: how many tokens that is, which of them this one is, and where they meet.
struct WholeCta {
    static constexpr int NUM_THREADS = THREADS, TOKENS = BLOCK_M;
    GPU_METHOD static int thread() { return gpu::thread_x(); }
    GPU_METHOD static void meet() { gpu::sync_cta(); }
};

// Sums of squares per token, one row per feature half of the tile.
template <typename Team> struct RowSums {
    static_assert(Team::NUM_THREADS == Team::TOKENS, "a thread finishes the sums of one token");
    float sum[BLOCK_N / WARP_N][Team::TOKENS];
};

// Sums over the lanes of a warp that have the same tokens, which differ in lane / 4. Of HALF * 2 tokens a lane goes on with half and
// its neighbor with the others, until it has the sums of two: `first` and the next. The order of the additions is a butterfly's.
template <int HALF = TOKENS_EACH / 2> GPU_FN void sum_tokens(float (&sum)[TOKENS_EACH], int &first) {
    constexpr int MASK = HALF * 2;
    const bool upper = gpu::lane_id() & MASK;
    GPU_UNROLL
    for (int i = 0; i < HALF; ++i) {
        const float low = sum[i], high = sum[i + HALF];
        sum[i] = gpu::add_exact(upper ? high : low, gpu::shfl_xor(upper ? low : high, MASK));
    }
    first += upper ? HALF : 0;
    if constexpr (HALF > 2) sum_tokens<HALF / 2>(sum, first);
}
static_assert(TOKENS_EACH == 16, "as many halves as lane / 4 has bits, then a pair of tokens");

// RMSNorm over the tile's 128 features and RoPE over their pairs. The whole tile is one head: all threads come here.
template <typename Team>
GPU_FN void store_norm_rope(Accumulators &acc, const Bias &bias, const gemm_problem &q, const gemm_segment &s, RowSums<Team> &sums,
                            Team &team, int n0, int m0, int warp_n, int warp_m) {
    const int group = gpu::lane_id() / 4, row = warp_m + first_token(), token = m0 + row, tokens_left = q.m - token;
    const int64_t rope_at = (int64_t)token * (BLOCK_N / 2) + (warp_n + group * 8) / 2;
    const float *const rope_cos = q.rope_cos + rope_at, *const rope_sin = q.rope_sin + rope_at;
    constexpr int GROUP = 4, AHEAD = 2 * GROUP; // tokens whose cos and sin are asked for together, and that may be on their way
    float4 cos[AHEAD], sin[AHEAD];
    auto load = [&](int first) {
        GPU_UNROLL
        for (int i = first; i < first + GROUP; ++i) {
            if (token_offset(i) < tokens_left) {
                cos[i % AHEAD] = *reinterpret_cast<const float4 *>(rope_cos + token_offset(i) * (BLOCK_N / 2));
                sin[i % AHEAD] = *reinterpret_cast<const float4 *>(rope_sin + token_offset(i) * (BLOCK_N / 2));
            }
        }
    };
    float weight[8];
    load_f32x8(weight, static_cast<const float *>(s.aux) + warp_n + group * 8);
    load(0);
    add_bias(acc, bias);
    float squares[TOKENS_EACH];
    GPU_UNROLL
    for (int i = 0; i < TOKENS_EACH; ++i) {
        squares[i] = 0.0f;
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) squares[i] += element(acc, c, i / 2, i % 2) * element(acc, c, i / 2, i % 2);
    }
    int first = 0;
    sum_tokens(squares, first);
    load(GROUP);
    *reinterpret_cast<float2 *>(&sums.sum[warp_n / WARP_N][row + token_offset(first)]) = float2{squares[0], squares[1]};
    team.meet();
    // Once per token, not in each of its lanes: the exact root and reciprocal are long.
    float &own = sums.sum[0][team.thread()];
    own = gpu::rsqrt_exact((own + sums.sum[1][team.thread()]) * (1.0f / BLOCK_N) + q.norm_eps);
    team.meet();
    GPU_UNROLL
    for (int i = 0; i < TOKENS_EACH; ++i) {
        const float rms = sums.sum[0][row + token_offset(i)];
        GPU_UNROLL
        for (int c = 0; c < 8; ++c) element(acc, c, i / 2, i % 2) = element(acc, c, i / 2, i % 2) * rms * weight[c];
    }
    const int64_t pitch = s.out_pitch;
    bf16_bits *const out = static_cast<bf16_bits *>(s.out) + token * pitch + n0 - s.n_begin + warp_n + group * 8;
    auto rotate = [&](int i) {
        const float4 &c4 = cos[i % AHEAD], &s4 = sin[i % AHEAD];
        const float cosines[4] = {c4.x, c4.y, c4.z, c4.w}, sines[4] = {s4.x, s4.y, s4.z, s4.w};
        float y[8];
        GPU_UNROLL
        for (int pair = 0; pair < 4; ++pair) {
            const float even = element(acc, 2 * pair, i / 2, i % 2), odd = element(acc, 2 * pair + 1, i / 2, i % 2);
            y[2 * pair] = even * cosines[pair] - odd * sines[pair];
            y[2 * pair + 1] = even * sines[pair] + odd * cosines[pair];
        }
        if (token_offset(i) < tokens_left) store_bf16x8(out + token_offset(i) * pitch, y);
    };
    GPU_UNROLL
    for (int first = 0; first < TOKENS_EACH; first += GROUP) {
        GPU_UNROLL
        for (int i = first; i < first + GROUP; ++i) rotate(i);
        if (first + AHEAD < TOKENS_EACH) load(first + AHEAD);
    }
}

// All of it, for the tile at (n0, m0) and this warp's part of it at (warp_n, warp_m).
template <typename Set, typename Team>
GPU_FN void finish(Accumulators &acc, const gemm_problem &q, const TileBias &tile_bias, RowSums<Team> &sums, Team &team, int n0, int m0,
                   int warp_n, int warp_m) {
    const int feature = n0 + warp_n + gpu::lane_id() / 4 * 8;
    Bias bias;
    load_f32x8(bias, tile_bias.value + feature - n0);
    // Segments cover the columns from 0 to n.
    int i = 0;
    if (Set::has(GEMM_NORM_ROPE)) {
        GPU_NO_UNROLL
        while (n0 >= q.segment[i].n_end) ++i; // by the tile: around shuffles lanes must not seem to part
        if (q.segment[i].kind == GEMM_NORM_ROPE) {
            store_norm_rope(acc, bias, q, q.segment[i], sums, team, n0, m0, warp_n, warp_m);
            return;
        }
    }
    if (feature >= q.n) return;
    GPU_NO_UNROLL
    while (feature >= q.segment[i].n_end) ++i;
    store_segment<Set>(acc, bias, q, q.segment[i], feature, m0 + warp_m);
}

} // namespace gemm

#endif
