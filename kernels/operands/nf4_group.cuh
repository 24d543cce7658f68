// nf4_group.cuh: NF4 weights as a warpgroup's A operand, dequantized in registers; nf4_tile.cuh for Hopper.
#ifndef SCHNELL_NF4_GROUP_CUH
#define SCHNELL_NF4_GROUP_CUH

#include "../gemm_sm90.h"
#include "../gpu_sm90.cuh"
#include "nf4_tile.cuh"

namespace gemm {

struct Nf4Group {
    using Stage = Nf4Weights::Stage;
    using Tables = Nf4Weights::Tables;
    static constexpr int TILE_CHUNKS = WARP_N * BLOCK_K / 2 / 16; // of 64 features x 64 k
    static_assert(TILE_CHUNKS == gpu::WARPGROUP, "a thread has one");

    GPU_METHOD static void fill(Tables &tables) { gpu::fill(tables.book, GEMM_SM90_THREADS); }

    // Of the tile whose first feature is n0, k-step by k-step; one thread's.
    struct Source {
        const uint4 *codes;    // of the first 64 features, in the next k-step
        const float *absmax;
        int64_t tile_pitch;    // chunks from 64 features to the next
        int absmax_pitch;      // features of a k-step
        int num_features;      // that there are, in whole 64

        GPU_METHOD Source(const gemm_problem &q, int n0, int step) {
            absmax_pitch = gpu::ceil_div(q.n, WARP_N) * WARP_N;
            num_features = absmax_pitch - n0 < BLOCK_N ? WARP_N : BLOCK_N;
            tile_pitch = (int64_t)(q.k / BLOCK_K) * TILE_CHUNKS;
            codes = static_cast<const uint4 *>(q.w) + n0 / WARP_N * tile_pitch + (int64_t)step * TILE_CHUNKS;
            absmax = q.absmax + n0 + (int64_t)step * absmax_pitch;
        }

        GPU_METHOD int num_bytes() const { return num_features * (BLOCK_K / 2 + (int)sizeof(float)); }

        // Copies the next k-step. Where there is no second half of the tile, it keeps what it had: nobody stores what comes of it.
        GPU_METHOD void copy(Stage &stage, gpu::mbarrier *barrier) {
            gpu::bulk_load(stage.codes, codes, TILE_CHUNKS * 16, barrier);
            if (num_features == BLOCK_N) gpu::bulk_load(stage.codes + TILE_CHUNKS, codes + tile_pitch, TILE_CHUNKS * 16, barrier);
            gpu::bulk_load(stage.absmax, absmax, num_features * (int)sizeof(float), barrier);
            codes += TILE_CHUNKS;
            absmax += absmax_pitch;
        }
    };

    // This thread's share of a k-step: of warpgroup `half`'s 64 features, m16 tile `tile`, which is its warp.
    GPU_METHOD static void fragments(uint32_t (&a)[BLOCK_K / 16][4], const Stage &stage, const Tables &tables, int half, int tile) {
        const int lane = gpu::lane_id();
        const uint4 codes = stage.codes[half * TILE_CHUNKS + tile * gpu::WARP + lane];
        const float2 absmax = *reinterpret_cast<const float2 *>(&stage.absmax[half * WARP_N + feature_of(tile, lane / 4)]);
        const uint32_t words[BLOCK_K / 16] = {codes.x, codes.y, codes.z, codes.w};
        GPU_UNROLL
        for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
            GPU_UNROLL
            for (int part = 0; part < 4; ++part)
                a[k16][part] = Nf4Weights::dequantize(tables, words[k16], 8 * part, part % 2 ? absmax.y : absmax.x);
        }
    }
};

} // namespace gemm

#endif
