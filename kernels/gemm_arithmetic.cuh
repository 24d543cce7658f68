// gemm_arithmetic.cuh: one k-step of a GEMM tile, from shared memory into a warp's accumulators.
#ifndef SCHNELL_GEMM_ARITHMETIC_CUH
#define SCHNELL_GEMM_ARITHMETIC_CUH

#include "gemm_epilogues.cuh"
#include "operands/tokens.cuh"

namespace gemm {

// Where in the tile a warp's features and tokens begin.
GPU_FN int warp_feature(int thread) { return thread / gpu::WARP / 2 * WARP_N; }
GPU_FN int warp_token(int thread) { return thread / gpu::WARP % 2 * WARP_M; }

// How a k-step is multiplied, and what else of a tile is fetched with its first one. This: bf16 and f32 accumulators;
// gemm_half.cuh has another.
template <typename Weights> struct Arithmetic {
    struct Storage {};

    GPU_METHOD static void fetch(Storage &, const gemm_problem &, int) {}

    // What a LoRA has added before the first k-step, in the units of the accumulators.
    GPU_METHOD static void start(Accumulators &, const gemm_problem &, int) {}

    GPU_METHOD static void multiply(Accumulators &acc, const XStage &x, const typename Weights::Stage &w,
                                    const typename Weights::Tables &tables, int warp_n, int warp_m) {
        const Weights weights(w, tables, warp_n);
        GPU_UNROLL
        for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
            uint32_t a[MT][4], b[NT][2];
            weights.fragments(a, w, tables, warp_n, k16);
            load_x_fragments(b, x, warp_m, k16);
            gpu::mma_tile<MT, NT>(acc, a, b);
        }
    }

    GPU_METHOD static void finish(Accumulators &, const Storage &, int) {}
};

} // namespace gemm

#endif
