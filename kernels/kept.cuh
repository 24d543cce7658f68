// kept.cuh: weights that stay in the few bits that their file has them in: what codes and scales mean, for gemm and gemv.
//
// Every type is codes of 8, 6, 5, 4, 3 or 2 bits, q, and numbers of groups of neighbors in a row:
//
//     w = scale * (q - ZERO) + offset      in f32, then rounded to bf16
//
//     type           bits  ZERO  scale of                        offset            beside the codes, per row
//     Q8_0              8   128  32: d                           none              f16 d per 32
//     Q6_K              6    32  16: d * (S - 128)               none              u8 S per 16, f16 d per 256
//     Q5_K              5     0  32: d * S                       -(dmin * M)       u8 S and M per 32, f16 d and dmin per 256
//     Q5_0              5    16  32: d                           none              f16 d per 32
//     Q5_1              5     0  32: d                           m                 f16 d and m per 32
//     Q4_K Q4_0 Q4_1    4        as the three above, with ZERO 8 for Q4_0
//     Q3_K              3     4  16: d * (S - 128)               none              u8 S per 16, f16 d per 256
//     Q2_K              2     0  16: d * S                       -(dmin * M)       S and M in a u8 per 16, f16 d and dmin per 256
//     F8_E4M3 F8_E5M2   8     -  the row: an f32 of its own      none              f32; the codes are numbers already
//
// Exact    bit-equal to what the package `gguf` makes of a file, rounded to bf16: a product of f16 (11 bits) with S (8 bits at
//          most) and q (5 bits and a sign) has no more than 24 bits, so that it is not rounded, and the sum with the offset is, once,
//          multiplied and added by one instruction or by two. An fp8 number times its scale is rounded once.
// Layout   32 codes of a lane are words of up to two planes: of the lower bits (8, 4 or 2 of them: LOW) and of those above (HIGH). Byte
//          `part` of a plane's words has 8 fields in a row, u = 0 to 7, of the codes (u, part): four codes are a shift and a mask of a
//          word, and come as the bytes of one. Which weights those are is the business of tile and rows.
// Source   types: ggml, `ggml-common.h`, and ggml-quants.c for the order of operations; fp8: arXiv:2209.05433. Layout: ours.
#ifndef SCHNELL_KEPT_CUH
#define SCHNELL_KEPT_CUH

#include "gpu.cuh"

namespace kept {

enum class Scales {
    HALVES,      // word of 64 k: two f16 d
    HALVES_MIN,  // the same, and another word: two f16 m
    RUNS32,      // word: S0 S1 M0 M1; of 256 k a word: f16 d, dmin
    RUNS16,      // word: S0 S1 S2 S3; of 256 k an f16: d
    RUNS16_MIN,  // word: four times S in the low nibble and M in the high one; of 256 k a word: f16 d, dmin
    ROW,         // f32 of the whole row; codes are fp8, and ZERO is by how much they are moved
};

template <int BITS_, Scales SCALES_, int ZERO_ = 0> struct Form {
    static constexpr int BITS = BITS_, ZERO = ZERO_;
    static constexpr Scales SCALES = SCALES_;
    static constexpr int LOW = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2, HIGH = BITS - LOW;
    static_assert(HIGH >= 0 && HIGH <= 2, "a plane has 1, 2, 4 or 8 bits of a code");
    static constexpr bool HAS_OFFSET = SCALES == Scales::HALVES_MIN || SCALES == Scales::RUNS32 || SCALES == Scales::RUNS16_MIN;
    static constexpr int GROUP = SCALES == Scales::RUNS16 || SCALES == Scales::RUNS16_MIN ? 16 : 32;
    // What there is beside the word of 64 k: bytes, for how many k.
    static constexpr int EXTRA = SCALES == Scales::HALVES || SCALES == Scales::ROW ? 0 : SCALES == Scales::RUNS16 ? 2 : 4;
    static constexpr int EXTRA_K = SCALES == Scales::HALVES_MIN ? 64 : 256;
};

using Q8_0 = Form<8, Scales::HALVES, 128>;
using F8_E4M3 = Form<8, Scales::ROW, 4>;
using F8_E5M2 = Form<8, Scales::ROW, 3>;
using Q6_K = Form<6, Scales::RUNS16, 32>;
using Q5_K = Form<5, Scales::RUNS32>;
using Q5_0 = Form<5, Scales::HALVES, 16>;
using Q5_1 = Form<5, Scales::HALVES_MIN>;
using Q4_K = Form<4, Scales::RUNS32>;
using Q4_0 = Form<4, Scales::HALVES, 8>;
using Q4_1 = Form<4, Scales::HALVES_MIN>;
using Q3_K = Form<3, Scales::RUNS16, 4>;
using Q2_K = Form<2, Scales::RUNS16_MIN>;

// The word of a plane of `BITS` bits that has the codes (u, ..), and their first bit in each byte.
template <int BITS> GPU_CONSTEXPR int word_of(int u) { return u * BITS / 8; }
template <int BITS> GPU_CONSTEXPR int bit_of(int u) { return u * BITS % 8; }
template <int BITS> GPU_CONSTEXPR uint32_t fields(int bit) { return ((1u << BITS) - 1u) * 0x01010101u << bit; }

// The codes (u, 0) to (u, 3) as bytes, of the words that have them. `u` is known to the compiler.
template <typename F> GPU_FN uint32_t four_codes(uint32_t low, uint32_t high, int u) {
    if constexpr (F::LOW == 8) return low;
    uint32_t codes = low >> bit_of<F::LOW>(u) & fields<F::LOW>(0);
    if constexpr (F::HIGH > 0) {
        const int from = bit_of<F::HIGH>(u), to = F::LOW;
        codes |= (from < to ? high << (to - from) : high >> (from - to)) & fields<F::HIGH>(to);
    }
    return codes;
}

// Byte `i` of a word as a number: below the bits of 2^23 it counts ones.
GPU_FN float byte_minus(uint32_t word, int i, int zero) {
    constexpr uint32_t TWO_23 = 0x4b000000u;
    return gpu::add_exact(gpu::bits_to_float(gpu::permute_bytes(word, TWO_23, 0x7440u | (uint32_t)i)), -(8388608.0f + (float)zero));
}

// A number that is a byte of fp8, times 2^-120 (E4M3, `shift` 4) or 2^-112 (E5M2, 3): its exponent and mantissa as f32's.
// The scale has that power of two. Subnormal numbers are subnormal here, too, and exact.
GPU_FN float fp8_to_float(uint32_t word, int i, int shift) {
    const uint32_t top = gpu::permute_bytes(word, 0u, 0x0444u | (uint32_t)i << 12);
    return gpu::bits_to_float((uint32_t)((int32_t)top >> shift) & (0x80000000u | 0x7f000000u >> shift));
}

// Scale and offset of the weights that share them.
struct Group {
    float scale, offset;
};

// Of group `i` of the 64 k whose word and extra these are; `i` counts in groups of F::GROUP.
template <typename F> GPU_FN Group group_of(uint32_t word, uint32_t extra, int i) {
    Group group = {0.0f, 0.0f};
    if constexpr (F::SCALES == Scales::HALVES || F::SCALES == Scales::HALVES_MIN) {
        group.scale = i == 0 ? gpu::half_lo(word) : gpu::half_hi(word);
        if constexpr (F::HAS_OFFSET) group.offset = i == 0 ? gpu::half_lo(extra) : gpu::half_hi(extra);
    } else if constexpr (F::SCALES == Scales::RUNS32) {
        group.scale = gpu::half_lo(extra) * byte_minus(word, i, 0);
        group.offset = -gpu::half_hi(extra) * byte_minus(word, 2 + i, 0);
    } else if constexpr (F::SCALES == Scales::RUNS16) {
        group.scale = gpu::half_lo(extra) * byte_minus(word, i, 128);
    } else if constexpr (F::SCALES == Scales::RUNS16_MIN) {
        group.scale = gpu::half_lo(extra) * byte_minus(word & 0x0f0f0f0fu, i, 0);
        group.offset = -gpu::half_hi(extra) * byte_minus(word >> 4 & 0x0f0f0f0fu, i, 0);
    } else {
        group.scale = gpu::bits_to_float(word);
    }
    return group;
}

// The weight whose code is byte `i` of `codes`.
template <typename F> GPU_FN float weight(uint32_t codes, int i, const Group &group) {
    if constexpr (F::SCALES == Scales::ROW) return gpu::mul_exact(fp8_to_float(codes, i, F::ZERO), group.scale);
    const float q = byte_minus(codes, i, F::ZERO);
    if constexpr (F::HAS_OFFSET) return group.scale * q + group.offset;
    return group.scale * q;
}

} // namespace kept

#endif
