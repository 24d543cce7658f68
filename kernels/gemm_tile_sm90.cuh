// gemm_tile_sm90.cuh: one CTA tile of out^T = w . x^T by Hopper's warpgroup products; gemm_tile.cuh for all others.
//
// Work    warpgroup 0 fetches, one thread of it; 1 and 2 multiply 64 features x 256 tokens each, m64n256k16, 128 accumulators a thread.
//         Per k-step of 64 a ring's stage takes a box of x and the weights; `full` and `empty` barriers hand it back and forth:
//             fetches      x0 w0 | x1 w1 | x2 w2 | x3 w3 |        x4 w4 | ..
//             multiplies         w0 -> registers, x0 . w0 | w1 -> registers, x1 . w1 | ..
//         Each warpgroup dequantizes one step while its products of the one before run; where its loop turns it waits for all of
//         them, and the other keeps the tensor cores busy.
// Why ^T  as in gemm_tile.cuh; and wgmma takes A, the weight, from registers.
// After   warp w of a warpgroup has m16 tile w of all tokens. Through shared memory the four exchange them for all tiles of 64 tokens
//         each, a warp's part of the tile of gemm_tile.cuh: the epilogues are the same.
// LoRA    k-steps of its own ahead of the first, its weight read by the threads that multiply; out of no ring, since few ask for it.
// Bound   compute. 36.5 bytes per clock and SM come from L2, of which an H200 was measured to give 38 (benches/WORKLOG.md): a cluster
//         that shares x would halve that.
// Source  ours; the division of work is CUTLASS's "warp-specialized" kernels'. Fragments: PTX ISA, "Register Fragments for
//         wgmma.mma_async.m64nNk16".
#ifndef SCHNELL_GEMM_TILE_SM90_CUH
#define SCHNELL_GEMM_TILE_SM90_CUH

#include "gemm_sm90.h"
#include "gemm_split.cuh"
#include "gpu_sm90.cuh"

namespace gemm {

constexpr int CONSUMERS = 2; // warpgroups
constexpr int WARPS_EACH = gpu::WARPGROUP / gpu::WARP;
static_assert(GEMM_SM90_THREADS == (1 + CONSUMERS) * gpu::WARPGROUP, "a producer and the consumers");
static_assert(BLOCK_N == CONSUMERS * WARP_N && GEMM_SM90_BLOCK_M == WARPS_EACH * WARP_M, "their parts of the tile");

// The warpgroups that multiply.
struct Consumers {
    static constexpr int NUM_THREADS = CONSUMERS * gpu::WARPGROUP, TOKENS = GEMM_SM90_BLOCK_M;
    gpu::mbarrier *barrier;
    int parity;

    GPU_METHOD static int thread() { return gpu::thread_x() - gpu::WARPGROUP; }
    GPU_METHOD void meet() {
        gpu::mbarrier_arrive(barrier);
        gpu::mbarrier_wait(barrier, parity);
        parity ^= 1;
    }
};

struct XBox {
    unsigned char bytes[GEMM_SM90_BLOCK_M * BLOCK_K * 2];
};

// Where the warps of a warpgroup exchange their tiles: a lane's four values of m16 tile i and eight tokens j.
struct Exchange {
    float4 value[MT][GEMM_SM90_BLOCK_M / 8][gpu::WARP];
};

template <typename Weights, int STAGES> struct GroupStorage : Weights::Tables {
    alignas(1024) XBox x[STAGES]; // the exchange, when all is multiplied
    typename Weights::Stage w[STAGES];
    TileBias bias;
    RowSums<Consumers> sums;
    Slice<Consumers> slice;
    gpu::mbarrier full[STAGES], empty[STAGES], met;

    GPU_METHOD Exchange &exchange(int consumer) { return reinterpret_cast<Exchange *>(x)[consumer]; }
    static_assert(sizeof(XBox[STAGES]) >= sizeof(Exchange[CONSUMERS]), "the stages have room for it");
};

// The k-steps of a LoRA that the tile takes: f(part, its first feature, one past its last, k).
template <typename F> GPU_FN void for_each_low_rank(const gemm_low_rank &low, int n0, F f) {
    int begin = 0;
    GPU_NO_UNROLL
    for (int part = 0; part < low.num_parts; ++part) {
        const int end = low.end[part];
        if (begin < n0 + BLOCK_N && n0 < end) {
            GPU_NO_UNROLL
            for (int k = 0; k < low.rank; k += BLOCK_K) f(part, begin, end, k);
        }
        begin = end;
    }
}

// This thread's fragments of the LoRA's weight: rows of m16 tile `tile` of the 64 features from `first` on, BLOCK_K values from k on.
GPU_FN void low_rank_fragments(uint32_t (&a)[BLOCK_K / 16][4], const gemm_low_rank &low, int first, int tile, int begin, int end, int k) {
    const int feature = first + feature_of(tile, gpu::lane_id() / 4), column = k + gpu::lane_id() % 4 * 2;
    GPU_UNROLL
    for (int i = 0; i < BLOCK_K / 4; ++i) {
        const int row = feature + i % 2, at = column + i / 4 * 16 + i / 2 % 2 * 8;
        const bool exists = begin <= row && row < end && at < low.rank;
        a[i / 4][i % 4] = exists ? *reinterpret_cast<const uint32_t *>(low.up + (int64_t)row * low.rank + at) : 0;
    }
}

// Asks for all that the consumers multiply, in their order; one thread's.
template <typename Weights, int STAGES>
GPU_FN void fetch_all(GroupStorage<Weights, STAGES> &smem, const gemm_sm90_params &p, const Slice<Consumers> &slice, int k_begin,
                      int k_end) {
    const gemm_problem &q = p.gemm.problem[slice.z];
    int step = 0;
    // Waits for the stage of the next step. Its first turn waits for nobody: the phase before the first counts as over.
    const auto claim = [&](int num_bytes) {
        const int stage = step % STAGES;
        gpu::mbarrier_wait(&smem.empty[stage], (step / STAGES + 1) & 1);
        gpu::mbarrier_arrive_expect_tx(&smem.full[stage], (int)sizeof(XBox) + num_bytes);
        ++step;
        return stage;
    };
    const gemm_low_rank &low = p.gemm.low_rank[slice.z];
    if (k_begin == 0) {
        for_each_low_rank(low, slice.n0, [&](int part, int, int, int k) {
            const int stage = claim(0);
            gpu::tma_load_2d(&smem.x[stage], &p.t[slice.z], part * low.rank + k, slice.m0, &smem.full[stage]);
        });
    }
    typename Weights::Source weights(q, slice.n0, k_begin);
    GPU_NO_UNROLL
    for (int kb = k_begin; kb < k_end; ++kb) {
        const int stage = claim(weights.num_bytes());
        gpu::tma_load_2d(&smem.x[stage], &p.x[slice.z], kb * BLOCK_K, slice.m0, &smem.full[stage]);
        weights.copy(smem.w[stage], &smem.full[stage]);
    }
}

// Accumulators of a warpgroup's m64n256.
using GroupAccumulators = float[GEMM_SM90_BLOCK_M / 2];
using GroupFragments = uint32_t[BLOCK_K / 16][4];

// Multiplies all of it.
template <typename Weights, int STAGES>
GPU_FN void multiply_all(GroupAccumulators &acc, GroupStorage<Weights, STAGES> &smem, const gemm_low_rank &low, int n0, int k_begin,
                         int k_end, int consumer, int tile) {
    int step = 0;
    const auto wait_for = [&](int of_step) { gpu::mbarrier_wait(&smem.full[of_step % STAGES], of_step / STAGES & 1); };
    // Every warp says that it has read the stage.
    const auto release = [&](int of_step) {
        if (gpu::lane_id() == 0) gpu::mbarrier_arrive(&smem.empty[of_step % STAGES]);
    };
    // Accumulators are named only while they are the threads'.
    const auto issue = [&](GroupFragments &a, int of_step, bool is_idle) {
        const uint64_t x = gpu::smem_descriptor(&smem.x[of_step % STAGES]);
        if (is_idle) gpu::wgmma_fence(acc);
        gpu::wgmma_fence(a);
        GPU_UNROLL
        for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) gpu::wgmma_m64k16<GEMM_SM90_BLOCK_M>(acc, a[k16], gpu::next_k16(x, k16), true);
        gpu::wgmma_commit();
    };
    // A step that nothing overlaps.
    const auto multiply_alone = [&](GroupFragments &a) {
        issue(a, step, true);
        gpu::wgmma_wait<0>(acc, a);
        release(step++);
    };
    // Two sets of registers for A, as the products of the step before read theirs until the wait. Nothing is in flight where the loop
    // turns: there ptxas moves accumulators about, and does not look whether the engine has them (scripts/check-sass does).
    GroupFragments even = {}, odd = {};
    if (k_begin == 0) {
        for_each_low_rank(low, n0, [&](int, int begin, int end, int k) {
            low_rank_fragments(even, low, n0 + consumer * WARP_N, tile, begin, end, k);
            wait_for(step);
            multiply_alone(even);
        });
    }
    const auto dequantize = [&](GroupFragments &a, int of_step) {
        wait_for(of_step);
        Weights::fragments(a, smem.w[of_step % STAGES], smem, consumer, tile);
    };
    const int end = step + k_end - k_begin;
    if ((k_end - k_begin) % 2) {
        dequantize(even, step);
        multiply_alone(even);
    }
    GPU_NO_UNROLL
    for (; step < end; step += 2) {
        dequantize(even, step);
        issue(even, step, true);
        dequantize(odd, step + 1);
        issue(odd, step + 1, false);
        gpu::wgmma_wait<1>(even);
        release(step);
        gpu::wgmma_wait<0>(acc, odd);
        release(step + 1);
    }
}

// From m16 tile `warp` of all tokens to all tiles of this warp's 64 tokens.
GPU_FN void exchange_tiles(Accumulators &out, const GroupAccumulators &acc, Exchange &smem, Consumers &team, int warp) {
    const int lane = gpu::lane_id();
    team.meet(); // nobody multiplies any more
    GPU_UNROLL
    for (int j = 0; j < GEMM_SM90_BLOCK_M / 8; ++j)
        smem.value[warp][j][lane] = float4{acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]};
    team.meet();
    GPU_UNROLL
    for (int i = 0; i < MT; ++i) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            const float4 v = smem.value[i][warp * NT + j][lane];
            out[i][j][0] = v.x, out[i][j][1] = v.y, out[i][j][2] = v.z, out[i][j][3] = v.w;
        }
    }
}

// This CTA's tile, or its slice of one.
template <typename Weights, int STAGES, typename Set> GPU_FN void run_problem_sm90(const gemm_sm90_params &p) {
    auto &smem = gpu::shared<GroupStorage<Weights, STAGES>>();
    int k_begin, k_end;
    const Slice<Consumers> slice(p.gemm, gpu::cta_x(), k_begin, k_end);
    if (gpu::thread_x() == 0) {
        for (int i = 0; i < STAGES; ++i) {
            gpu::mbarrier_init(&smem.full[i], 1);
            gpu::mbarrier_init(&smem.empty[i], CONSUMERS * WARPS_EACH);
        }
        gpu::mbarrier_init(&smem.met, Consumers::NUM_THREADS);
        gpu::fence_mbarrier_init();
        smem.slice = slice;
    }
    Weights::fill(smem);
    gpu::sync_cta();
    if (gpu::warpgroup_id() == 0) {
        gpu::release_registers<24>();
        if (gpu::thread_x() == 0) fetch_all(smem, p, slice, k_begin, k_end);
        return;
    }
    gpu::claim_registers<240>();
    const gemm_problem &q = p.gemm.problem[slice.z];
    Consumers team{&smem.met, 0};
    const int consumer = gpu::warpgroup_id() - 1, warp = gpu::warp_id() % WARPS_EACH;
    // Seen by all when the products are through.
    if (consumer == 0) {
        const int feature = slice.n0 + team.thread();
        smem.bias.value[team.thread()] = q.bias && feature < q.n ? q.bias[feature] : 0.0f;
    }
    Accumulators acc;
    {
        GroupAccumulators sums;
        GPU_UNROLL
        for (float &sum : sums) sum = 0.0f;
        multiply_all(sums, smem, p.gemm.low_rank[slice.z], slice.n0, k_begin, k_end, consumer, warp);
        exchange_tiles(acc, sums, smem.exchange(consumer), team, warp);
    }
    if (slice.number >= 0 && !add_slices(acc, p.gemm, smem.slice, team)) return;
    finish<Set>(acc, q, smem.bias, smem.sums, team, slice.n0, slice.m0, consumer * WARP_N, warp * WARP_M);
}

} // namespace gemm

#endif
