// nf4.cuh: the NF4 code book and its thresholds, as kernels have them; src/weights/nf4.rs owns the numbers and tests these.
//
// Values are float32 bit patterns. Code c means nf4_code(c) * absmax; a weight w becomes the number of thresholds
// strictly below w / absmax, so a value on a threshold takes the lower code. Thresholds are the float32 midpoints of
// neighboring codes.
// Source: QLoRA (arXiv:2305.14314), appendix E; bitsandbytes' `create_normal_map` and its CPU quantizer.
#ifndef SCHNELL_NF4_CUH
#define SCHNELL_NF4_CUH

#include "gpu.cuh"

#define NF4_BLOCK 64  // weights per absmax, consecutive in a row

// X(bits) for the codes 0..15, ascending: -1 .. 1, code 7 is zero.
// clang-format off: a table
#define NF4_CODES(X)                                                    \
    X(0xbf800000u) X(0xbf3239b1u) X(0xbf066b30u) X(0xbeca32a0u)         \
    X(0xbe91a24du) X(0xbe3d353fu) X(0xbdba7871u) X(0x00000000u)         \
    X(0x3da2faffu) X(0x3e24cae3u) X(0x3e7c04ddu) X(0x3ead033au)         \
    X(0x3ee1a4b8u) X(0x3f1007abu) X(0x3f3913b3u) X(0x3f800000u)

// X(bits) for the 15 thresholds, ascending: the one above code 0, above code 1, ...
#define NF4_THRESHOLDS(X)                                               \
    X(0xbf591cd8u) X(0xbf1c5270u) X(0xbeeb8480u) X(0xbeadea76u)         \
    X(0xbe703cecu) X(0xbe0d38bcu) X(0xbd3a7871u) X(0x3d22faffu)         \
    X(0x3df64862u) X(0x3e5067e0u) X(0x3e9582d4u) X(0x3ec753f9u)         \
    X(0x3f006d04u) X(0x3f248dafu) X(0x3f5c89dau)
// clang-format on

namespace gpu {

// The value of a code (0..15). From memory: fill a table with it, look weights up there.
GPU_FN float nf4_code(int code) {
#define NF4_ENTRY(bits) bits,
    static constexpr uint32_t codes[16] = {NF4_CODES(NF4_ENTRY)};
#undef NF4_ENTRY
    return bits_to_float(codes[code]);
}

// The code of a normalized weight (in [-1, 1]; what is not a number becomes 0).
GPU_FN uint32_t nf4_nearest(float x) {
    uint32_t code = 0;
#define NF4_ENTRY(bits) code += x > bits_to_float(bits) ? 1u : 0u;
    NF4_THRESHOLDS(NF4_ENTRY)
#undef NF4_ENTRY
    return code;
}

// The book in shared memory, once per bank: lane l reads entry c at [c][l], so 32 lanes with 32 different codes never
// conflict. A shuffle or a PRMT chain would do the same on a GPU; this also costs the emulator no rendezvous.
struct Nf4Book {
    float value[16][WARP];
};

// Called by all threads of a CTA; a barrier must follow before the first lookup.
GPU_FN void fill(Nf4Book &book, int threads) {
    for (int i = thread_x(); i < 16 * WARP; i += threads) book.value[i / WARP][i % WARP] = nf4_code(i / WARP);
}

// This lane's copy of the entry whose code is bits `bit` to `bit` + 3 of `word`: book.value[word >> bit & 15][lane_id()].
// As a byte offset: moved to where its row begins, a code is one shift, one LOP3 and the load. From an index nvcc makes an
// addition more per weight, on the pipe that NF4's loop waits for.
GPU_FN float lookup(const Nf4Book &book, uint32_t word, int bit) {
    constexpr int ROW_BIT = 7;
    static_assert(sizeof(book.value[0]) == 1 << ROW_BIT, "a row of the book is 128 bytes");
    const uint32_t row = bit < ROW_BIT ? word << (ROW_BIT - bit) : word >> (bit - ROW_BIT);
    const uint32_t offset = (row & 15u << ROW_BIT) | (uint32_t)lane_id_register() * 4;
    return *reinterpret_cast<const float *>(reinterpret_cast<const char *>(&book) + offset);
}

} // namespace gpu

#endif
