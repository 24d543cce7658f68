// gemm_epilogues.cuh: what becomes of a GEMM tile's accumulators: + bias, then per range of columns an activation and a
// way to memory.
//
// An entry point compiles one set of them (gemm.h lists the sets): all of them at once are 16,000 instructions.
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

GPU_FN void store_bf16x8(bf16_bits *out, const float (&y)[8], int count, bool vector) {
    if (vector) {
        const uint4 words = {gpu::pack_bf16x2(y[0], y[1]), gpu::pack_bf16x2(y[2], y[3]), gpu::pack_bf16x2(y[4], y[5]),
                             gpu::pack_bf16x2(y[6], y[7])};
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
GPU_FN void update_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, bool vector, Load load,
                          Store store) {
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
GPU_FN void update_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, Load load,
                          Store store) {
    if (s.n_end - feature >= 8 && s.out_pitch % 8 == 0) {
        update_tokens<TOKENS_AHEAD>(acc, q, s, feature, token0, true, load, store);
    } else {
        update_tokens<1>(acc, q, s, feature, token0, false, load, store);
    }
}
template <typename Store>
GPU_FN void store_tokens(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, Store store) {
    const bool vector = s.n_end - feature >= 8 && s.out_pitch % 8 == 0;
    auto nothing = [](float (&)[8], int64_t, int, bool) {};
    auto only_y = [&](float (&)[8], float (&y)[8], int64_t at, int count, bool vector) { store(y, at, count, vector); };
    update_tokens<1>(acc, q, s, feature, token0, vector, nothing, only_y);
}

// gelu_erf on the way to memory, where a token that has been stored leaves its registers to the next one, the others for all
// values beforehand: the other way round either of them spills.
template <typename Set>
GPU_FN void store_activated(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    auto store = [&](float (&y)[8], int64_t at, int count, bool vector) {
        store_bf16x8(static_cast<bf16_bits *>(s.out) + at, y, count, vector);
    };
    if (Set::activates(GEMM_ACT_GELU_ERF) && s.act == GEMM_ACT_GELU_ERF) {
        store_tokens(acc, q, s, feature, token0, [&](float (&y)[8], int64_t at, int count, bool vector) {
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) y[c] = gpu::gelu_erf(y[c]);
            store(y, at, count, vector);
        });
        return;
    }
    if (Set::activates(GEMM_ACT_GELU_TANH) && s.act == GEMM_ACT_GELU_TANH) {
        for_each(acc, [](float x) { return gpu::gelu_tanh(x); });
    } else if (Set::activates(GEMM_ACT_QUICK_GELU) && s.act == GEMM_ACT_QUICK_GELU) {
        for_each(acc, [](float x) { return gpu::quick_gelu(x); });
    }
    store_tokens(acc, q, s, feature, token0, store);
}

GPU_FN void add_f32(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    float gate[8];
    GPU_UNROLL
    for (int c = 0; c < 8; ++c) {
        const bool inside = s.aux && feature + c < s.n_end;
        gate[c] = inside ? static_cast<const float *>(s.aux)[feature + c - s.n_begin] : 1.0f;
    }
    float *const out = static_cast<float *>(s.out);
    update_tokens(
        acc, q, s, feature, token0, [&](float (&x)[8], int64_t at, int count, bool vector) { load_f32x8(x, out + at, count, vector); },
        [&](float (&x)[8], float (&y)[8], int64_t at, int count, bool vector) {
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) x[c] += gate[c] * y[c];
            store_f32x8(out + at, x, count, vector);
        });
}

// Sums with, or products by, another bf16 matrix.
GPU_FN void combine_bf16(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0, bool adds) {
    update_tokens(
        acc, q, s, feature, token0,
        [&](float (&x)[8], int64_t at, int count, bool vector) {
            load_bf16x8(x, static_cast<const bf16_bits *>(s.aux) + at, count, vector);
        },
        [&](float (&x)[8], float (&y)[8], int64_t at, int count, bool vector) {
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) x[c] = adds ? x[c] + y[c] : x[c] * y[c];
            store_bf16x8(static_cast<bf16_bits *>(s.out) + at, x, count, vector);
        });
}

template <typename Set>
GPU_FN void store_segment(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, int feature, int token0) {
    if (Set::has(GEMM_STORE_BF16) && s.kind == GEMM_STORE_BF16) {
        store_activated<Set>(acc, q, s, feature, token0);
    } else if (Set::has(GEMM_STORE_F32) && s.kind == GEMM_STORE_F32) {
        store_tokens(acc, q, s, feature, token0, [&](float (&y)[8], int64_t at, int count, bool vector) {
            store_f32x8(static_cast<float *>(s.out) + at, y, count, vector);
        });
    } else if (Set::has(GEMM_ADD_F32) && s.kind == GEMM_ADD_F32) {
        add_f32(acc, q, s, feature, token0);
    } else if (Set::has(GEMM_MUL_BF16) && (s.kind == GEMM_ADD_BF16 || s.kind == GEMM_MUL_BF16)) {
        combine_bf16(acc, q, s, feature, token0, s.kind == GEMM_ADD_BF16);
    } else if (Set::has(GEMM_ADD_BF16) && s.kind == GEMM_ADD_BF16) {
        combine_bf16(acc, q, s, feature, token0, true);
    }
}

// Sums of squares per token, one row per feature half of the tile.
struct RowSums {
    float sum[BLOCK_N / WARP_N][BLOCK_M];
};

static_assert(THREADS == BLOCK_M, "a thread finishes the sums of one token");

// RMSNorm over the tile's 128 features and RoPE over their pairs. The whole CTA is one head: all threads come here.
GPU_FN void store_norm_rope(Accumulators &acc, const gemm_problem &q, const gemm_segment &s, RowSums &sums, int n0, int m0, int warp_n,
                            int warp_m) {
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

// All of it, for the tile at (n0, m0) and this warp's part of it at (warp_n, warp_m).
template <typename Set>
GPU_FN void finish(Accumulators &acc, const gemm_problem &q, RowSums &sums, int n0, int m0, int warp_n, int warp_m) {
    const int feature = n0 + warp_n + gpu::lane_id() / 4 * 8;
    add_bias(acc, q, feature);
    GPU_NO_UNROLL
    for (int i = 0; i < q.num_segments; ++i) {
        const gemm_segment &s = q.segment[i];
        if (Set::has(GEMM_NORM_ROPE) && s.kind == GEMM_NORM_ROPE) {
            if (n0 >= s.n_begin && n0 < s.n_end) store_norm_rope(acc, q, s, sums, n0, m0, warp_n, warp_m);
        } else if (feature >= s.n_begin && feature < s.n_end) {
            store_segment<Set>(acc, q, s, feature, m0 + warp_m);
        }
    }
}

} // namespace gemm

#endif
