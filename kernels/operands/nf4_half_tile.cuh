// nf4_half_tile.cuh: NF4 weights as the A operand of a GEMM tile in fp16, not multiplied by their absmax yet.
//
// A code's value lies in [-1, 1], so fp16(code) is what is multiplied, and the sum of a quant block, which has one absmax per
// feature, takes it in f32 (gemm_half.cuh). That is nearer to code * absmax than bf16(code * absmax) is: fp16 has three bits more.
//
// The 16 values are a high and a low byte each, in registers: a byte permutation picks four bytes out of eight by the codes' lower
// three bits, from both halves of the book, a third one chooses between the halves by the codes' upper bit, and two more put the
// bytes together. No shared memory, whose port has the x tile to serve four times (gemm_half.cuh).
#ifndef SCHNELL_NF4_HALF_TILE_CUH
#define SCHNELL_NF4_HALF_TILE_CUH

#include "nf4_tile.cuh"

namespace gemm {

// fp16 of the code's value, rounded to nearest even.
GPU_CONSTEXPR uint32_t half_of_code(int code) {
#define NF4_ENTRY(bits) bits,
    constexpr uint32_t codes[16] = {NF4_CODES(NF4_ENTRY)};
#undef NF4_ENTRY
    const uint32_t magnitude = codes[code] & 0x7fffffffu;
    // None is below fp16's normal range but zero itself.
    return magnitude == 0 ? 0 : (codes[code] >> 16 & 0x8000u) | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
}

// Four bytes of the book: of codes `first` to `first` + 3, the high ones or the low ones.
GPU_CONSTEXPR uint32_t book_bytes(int first, bool high) {
    uint32_t bytes = 0;
    for (int i = 0; i < 4; ++i) bytes |= (half_of_code(first + i) >> (high ? 8 : 0) & 0xffu) << 8 * i;
    return bytes;
}

// Codes and absmax as Nf4Weights has them in shared memory.
struct Nf4HalfWeights {
    using Stage = Nf4Weights::Stage;
    using Loader = Nf4Weights::Loader;
    static constexpr bool FILLS_SHARED = false; // gemm_tile.cuh
    struct Tables {};

    GPU_METHOD static void fill(Tables &) {}

    // Where nvcc masks the thread's number anew at every use within the loop, it is kept; elsewhere it would be a register too many.
    GPU_METHOD static int lane() {
#if __CUDA_ARCH__ >= 1200
        return gpu::lane_id_register();
#else
        return gpu::lane_id();
#endif
    }

    // Codes of the warp's m16 tile i, this lane's share of a whole k-step.
    GPU_METHOD static uint4 codes(const Stage &stage, int warp_n, int i) { return stage.codes[(warp_n / 16 + i) * gpu::WARP + lane()]; }

    // Of its rows g and g + 8.
    GPU_METHOD static float2 absmax(const Stage &stage, int warp_n, int i) {
        return *reinterpret_cast<const float2 *>(&stage.absmax[warp_n + lane() / 4 * 8 + i * 2]);
    }

    // Four codes, the lower half of `low` without their upper bits, to two pairs; `halves` chooses: by each nibble the byte of the
    // same number (code below 8) or 4 more.
    GPU_METHOD static void look_up(uint32_t (&pair)[2], uint32_t low, uint32_t halves) {
        constexpr uint32_t high[4] = {book_bytes(0, true), book_bytes(4, true), book_bytes(8, true), book_bytes(12, true)};
        constexpr uint32_t rest[4] = {book_bytes(0, false), book_bytes(4, false), book_bytes(8, false), book_bytes(12, false)};
        const uint32_t highs =
            gpu::permute_bytes(gpu::permute_bytes(high[0], high[1], low), gpu::permute_bytes(high[2], high[3], low), halves);
        const uint32_t rests =
            gpu::permute_bytes(gpu::permute_bytes(rest[0], rest[1], low), gpu::permute_bytes(rest[2], rest[3], low), halves);
        pair[0] = gpu::permute_bytes(rests, highs, 0x4051); // the even element is the upper nibble
        pair[1] = gpu::permute_bytes(rests, highs, 0x6273);
    }

    // The A fragment of a k16 step, whose codes are `word`.
    GPU_METHOD static void fragment(uint32_t (&a)[4], uint32_t word) {
        const uint32_t low = word & 0x77777777u, halves = (word >> 1 & 0x44444444u) | 0x32103210u;
        uint32_t pair[2];
        look_up(pair, low, halves);
        a[0] = pair[0], a[1] = pair[1];
        look_up(pair, low >> 16, halves >> 16);
        a[2] = pair[0], a[3] = pair[1];
    }
};

} // namespace gemm

#endif
