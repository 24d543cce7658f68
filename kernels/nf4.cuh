// nf4.cuh: the NF4 code book, once.
//
// Source  QLoRA (arXiv:2305.14314), appendix E; the float32 bit patterns are those of bitsandbytes.
#ifndef SCHNELL_NF4_CUH
#define SCHNELL_NF4_CUH

#include "gpu.cuh"

namespace nf4 {

constexpr int BLOCK = 64;  // weights that share one absmax
constexpr int CODES = 16;

// Value of code 0..15. A switch, not an array: it compiles to immediates, and no kernel needs local memory for it.
GPU_FN float code_value(int code) {
    uint32_t bits = 0;
    switch (code) {
    case 0: bits = 0xbf800000u; break;
    case 1: bits = 0xbf3239b1u; break;
    case 2: bits = 0xbf066b30u; break;
    case 3: bits = 0xbeca32a0u; break;
    case 4: bits = 0xbe91a24du; break;
    case 5: bits = 0xbe3d353fu; break;
    case 6: bits = 0xbdba7871u; break;
    case 7: bits = 0x00000000u; break;
    case 8: bits = 0x3da2faffu; break;
    case 9: bits = 0x3e24cae3u; break;
    case 10: bits = 0x3e7c04ddu; break;
    case 11: bits = 0x3ead033au; break;
    case 12: bits = 0x3ee1a4b8u; break;
    case 13: bits = 0x3f1007abu; break;
    case 14: bits = 0x3f3913b3u; break;
    case 15: bits = 0x3f800000u; break;
    }
    return gpu::bits_to_float(bits);
}

// The book in shared memory, once per bank: lane l reads entry c at [c][l], so 32 lanes with 32 different codes never
// conflict. A shuffle or a PRMT chain would do the same on a GPU; this also costs the emulator no rendezvous.
struct Book {
    float value[CODES][gpu::WARP];
};

// Called by all threads of a CTA; a barrier must follow before the first lookup.
GPU_FN void fill(Book &book, int threads) {
    for (int i = gpu::thread_x(); i < CODES * gpu::WARP; i += threads) book.value[i / gpu::WARP][i % gpu::WARP] = code_value(i / gpu::WARP);
}

} // namespace nf4

#endif
