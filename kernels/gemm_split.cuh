// gemm_split.cuh: which tile, and which of its k-steps, a CTA multiplies; and how the slices of a split tile become one.
//
// Work    as many CTAs run at once as the GPU has slots. What is left over for the last wave would leave most of them empty,
//         so the host splits those tiles along k (src/kernels/gemm/split.rs says how many, into how many slices):
//
//             slot 0 | tile 0 | tile 4 | tile 8, k slice 0    9 tiles on 4 slots: the last one in 4 slices,
//             slot 1 | tile 1 | tile 5 | tile 8, k slice 1    whose sums the CTA that comes last adds,
//             slot 2 | tile 2 | tile 6 | tile 8, k slice 2    slice 0 first whoever that is: the bits do not
//             slot 3 | tile 3 | tile 7 | tile 8, k slice 3    depend on who it is
//
// Layout  partials: per split tile and slice all lanes' accumulators, m16n8 tile by tile, so that a warp's 16-byte
//         accesses are consecutive.
// Source  ours; CUTLASS splits so, and lets the slices wait for each other where here the last one does all the adding.
#ifndef SCHNELL_GEMM_SPLIT_CUH
#define SCHNELL_GEMM_SPLIT_CUH

#include "gemm_epilogues.cuh"

namespace gemm {

// What a CTA is to multiply: k-steps of the tile at (n0, m0) of problem z.
template <typename Team> struct Slice {
    int z, n0, m0;
    int number;             // among the slices of all split tiles; below 0 for a whole tile
    uint32_t num_before;    // slices of the tile that were multiplied before this one

    // Of CTA `cta`.
    GPU_METHOD Slice(const gemm_params &p, int cta, int &k_begin, int &k_end) : number(cta - p.num_whole), num_before(0) {
        int tile = cta, slice = 0, num_slices = 1;
        if (number >= 0) {
            num_slices = p.num_slices;
            slice = number % num_slices;
            tile = p.num_whole + number / num_slices;
        }
        const int num_first = num_tiles(p.problem[0]);
        z = tile >= num_first;
        tile -= z ? num_first : 0;
        const gemm_problem &q = p.problem[z];
        const int num_m = gpu::ceil_div(q.m, Team::TOKENS), num_k = gpu::ceil_div(q.k, BLOCK_K);
        n0 = tile / num_m * BLOCK_N;
        m0 = tile % num_m * Team::TOKENS;
        k_begin = num_k * slice / num_slices;
        k_end = num_k * (slice + 1) / num_slices;
    }

    GPU_METHOD static int num_tiles(const gemm_problem &q) { return gpu::ceil_div(q.m, Team::TOKENS) * gpu::ceil_div(q.n, BLOCK_N); }

    static constexpr int PARTIALS = BLOCK_N * Team::TOKENS / 4; // 16-byte pieces of a slice
    static_assert(PARTIALS == MT * NT * Team::NUM_THREADS, "a lane has one piece of every m16n8 tile");
};

// Puts this slice's sums where the others of its tile find them. True for the CTA that comes last, which then has the sums of
// all of them, added in the order of k.
template <typename Team> GPU_FN bool add_slices(Accumulators &acc, const gemm_params &p, Slice<Team> &smem, Team &team) {
    constexpr int PARTIALS = Slice<Team>::PARTIALS, THREADS = Team::NUM_THREADS;
    const int split = smem.number / p.num_slices;
    float4 *const own = reinterpret_cast<float4 *>(p.partials) + (uint32_t)(smem.number * PARTIALS + team.thread());
    GPU_UNROLL
    for (int i = 0; i < MT; ++i) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            gpu::store_vector(own + (i * NT + j) * THREADS, float4{acc[i][j][0], acc[i][j][1], acc[i][j][2], acc[i][j][3]});
        }
    }
    team.meet(); // everyone has stored
    if (team.thread() == 0) smem.num_before = gpu::atomic_count(p.arrivals + split, (uint32_t)p.num_slices);
    team.meet();
    if (smem.num_before != (uint32_t)p.num_slices - 1) return false;

    for_each(acc, [](float) { return 0.0f; });
    const float4 *slice = reinterpret_cast<const float4 *>(p.partials) + (uint32_t)(split * p.num_slices * PARTIALS + team.thread());
    GPU_NO_UNROLL
    for (int s = 0; s < p.num_slices; ++s) {
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) {
            float4 sum[NT];
            GPU_UNROLL
            for (int j = 0; j < NT; ++j) sum[j] = slice[(i * NT + j) * THREADS];
            GPU_UNROLL
            for (int j = 0; j < NT; ++j) {
                acc[i][j][0] += sum[j].x, acc[i][j][1] += sum[j].y, acc[i][j][2] += sum[j].z, acc[i][j][3] += sum[j].w;
            }
        }
        slice += PARTIALS;
    }
    return true;
}

} // namespace gemm

#endif
