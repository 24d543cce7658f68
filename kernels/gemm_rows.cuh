// gemm_rows.cuh: rows of bf16 on their way from memory to a stage of a GEMM tile, and where they lie there.
//
// Layout  smem rows of 64 bf16 = 8 chunks of 16 bytes, chunk c of row r at c ^ (r & 7): cp.async writes and ldmatrix
//         reads touch every bank once.
#ifndef SCHNELL_GEMM_ROWS_CUH
#define SCHNELL_GEMM_ROWS_CUH

#include "gemm.h"
#include "gpu.cuh"

namespace gemm {

constexpr int BLOCK_N = GEMM_BLOCK_N, BLOCK_M = GEMM_BLOCK_M, BLOCK_K = GEMM_BLOCK_K, THREADS = GEMM_THREADS;
constexpr int WARP_N = 64, WARP_M = 64;
constexpr int MT = WARP_N / 16, NT = WARP_M / 8;
constexpr int CHUNKS = BLOCK_K / 8;  // 16-byte chunks of a smem row
static_assert(BLOCK_N == 2 * WARP_N && BLOCK_M == 2 * WARP_M && THREADS == 4 * gpu::WARP, "2 x 2 warps cover the tile");
static_assert(CHUNKS == 8, "the swizzle permutes 8 chunks");

// Two things follow that spare address arithmetic: 16 rows on is 16 * CHUNKS places on, and for chunks 0 and 1
// swizzle(row, 2 * k16 + chunk) is swizzle(row, chunk) ^ 2 * k16.
GPU_FN int swizzle(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

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

// The feature of a warp's 64 that fragment row r of m16 tile i stands for.
GPU_FN int feature_of(int i, int r) { return 8 * (r % 8) + 2 * i + r / 8; }

// The features of the tile's rows own_row() + 16 i: i is the m16 tile, 4 to a warp.
struct FragmentOrder {
    GPU_METHOD static int first() { return feature_of(0, own_row()); }
    GPU_METHOD static constexpr int offset(int i) { return i / MT * WARP_N + i % MT * 2; }
};
static_assert(ROWS_APART == 16, "FragmentOrder steps from m16 tile to m16 tile");

// A bf16 (or fp16) [rows, k] matrix, k-step by k-step; k is a multiple of K_MULTIPLE: of 8 at least, no chunk is cut; of BLOCK_K, all
// steps that are asked for are whole, and nothing is kept to know that by. What stays the same from step to step is
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
        const uint32_t rows = K_MULTIPLE % BLOCK_K == 0 || k_left > 0 ? exists : 0;
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

    // Leaves out the first k-steps.
    GPU_METHOD void skip(int steps) {
        src += (int64_t)steps * CHUNKS;
        k_left -= steps * BLOCK_K;
    }

    GPU_METHOD const uint4 *row(int i) const { return src + (uint64_t)pitch * Order::offset(i); }
};

} // namespace gemm

#endif
