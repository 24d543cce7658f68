// gemm_tile.cuh: one CTA tile of out^T = w . x^T, shared by nf4_gemm and bf16_gemm.
//
// Work    4 warps as 2 (features) x 2 (tokens), each 64 features x 64 tokens:
//                       tokens 0-63   tokens 64-127
//         feat   0-63     warp 0         warp 1          per warp 4 x 8 tiles m16n8k16, 128 accumulators a lane
//         feat 64-127     warp 2         warp 3
// Why ^T  the weight is the A operand, so its fragments can be made in registers (NF4 never touches smem as bf16), and
//         its rows may be permuted at will: fragment row g of m16 tile i is feature 8g + 2i, row g + 8 is feature
//         8g + 2i + 1. A lane then owns 8 adjacent features of a token: 16-byte stores, RoPE pairs within a lane, and
//         bias, gate and norm weights loaded once.
// Parts   gemm_rows.cuh: shared memory; operands/: x, and w in each of its formats; gemm_split.cuh: which tile a CTA has;
//         gemm_arithmetic.cuh: a k-step; gemm_low_rank.cuh: what a LoRA adds; gemm_epilogues.cuh: what becomes of the tile.
// Source  fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16".
#ifndef SCHNELL_GEMM_TILE_CUH
#define SCHNELL_GEMM_TILE_CUH

#include "gemm_low_rank.cuh"
#include "gemm_split.cuh"

namespace gemm {

// What the epilogue wants, which the main loop has no register to keep.
struct Behind {
    TileBias bias;
    RowSums<WholeCta> sums;
    Slice<WholeCta> slice;

    // The next commit is the bias's.
    GPU_METHOD void fetch(const gemm_problem &q, const Slice<WholeCta> &own, int thread) {
        if (thread == 0) slice = own;
        bias.fetch(q, own.n0, thread);
    }
};

template <typename Weights, int STAGES, typename How> struct Stages : How::Storage, Weights::Tables {
    struct Stage {
        XStage x;
        typename Weights::Stage w;
    } stage[STAGES];
};

// `Behind` has a place of its own, and comes with the first k-step: a slice has one at least, so a barrier lies between the write and the
// reads.
template <typename Weights, int STAGES, typename How, bool IN_STAGE = Weights::FILLS_SHARED>
struct SharedStorage : Stages<Weights, STAGES, How> {
    Behind behind;

    GPU_METHOD Behind &behind_loop(int) { return behind; }
};

// Where weights fill what two CTAs have of an SM of 100 KB to the byte, it lies in the stage that the last k-steps leave free, and comes
// ahead of the last one. That takes registers in the loop.
template <typename Weights, int STAGES, typename How> struct SharedStorage<Weights, STAGES, How, true> : Stages<Weights, STAGES, How> {
    static_assert(sizeof(Behind) <= sizeof(XStage), "it lies in one");

    GPU_METHOD Behind &behind_loop(int num_k) { return reinterpret_cast<Behind &>(this->stage[num_k % STAGES].x); }
};

// Adds the product's k-steps that the loaders have before them, `num_k` of them.
template <typename How, typename Weights, int STAGES, typename Inputs>
GPU_FN void multiply(Accumulators &acc, SharedStorage<Weights, STAGES, How> &smem, const gemm_params &p, Inputs inputs,
                     typename Weights::Loader weight_loader, int num_k, int warp_n, int warp_m) {
    // Called for kb = 0, 1, 2, ..: the loaders step along.
    auto fetch_to_shared = [&](int kb) {
        if (kb < num_k) {
            inputs.fetch(smem.stage[kb % STAGES].x.chunk);
            weight_loader.fetch(smem.stage[kb % STAGES].w);
        } else if (Weights::FILLS_SHARED && kb == num_k) {
            // Which tile it is, is worked out again, from registers of the hardware.
            int k_begin, k_end;
            const Slice<WholeCta> slice(p, gpu::cta_x_reread(), k_begin, k_end);
            smem.behind_loop(num_k).fetch(p.problem[slice.z], slice, gpu::thread_x_reread());
        }
        gpu::cp_async_commit(); // empty groups too, so that "all but the last STAGES - 2" stays true at the end
    };

    // prologue
    Weights::fill(smem);
    GPU_UNROLL
    for (int kb = 0; kb < STAGES - 1; ++kb) fetch_to_shared(kb);

    // mainloop
    GPU_NO_UNROLL
    for (int kb = 0; kb < num_k; ++kb) {
        gpu::cp_async_wait<STAGES - 2>();
        gpu::sync_cta(); // stage kb has landed for everyone, and everyone has left the stage that is fetched next
        fetch_to_shared(kb + STAGES - 1);
        auto &stage = smem.stage[kb % STAGES];
        How::multiply(acc, stage.x, stage.w, smem, warp_n, warp_m);
    }
    if (Weights::FILLS_SHARED) {
        gpu::cp_async_wait<0>();
        gpu::sync_cta(); // what is for behind the loop has landed for everyone
    }
}

// This CTA's tile, or its slice of one.
template <typename Weights, int STAGES, int K_MULTIPLE, typename Set, typename How = Arithmetic<Weights>>
GPU_FN void run_problem(const gemm_params &p) {
    auto &smem = gpu::shared<SharedStorage<Weights, STAGES, How>>();
    Accumulators acc;
    Behind *behind;
    {
        const int warp_n = warp_feature(gpu::thread_x()), warp_m = warp_token(gpu::thread_x());
        int k_begin, k_end;
        const Slice<WholeCta> slice(p, gpu::cta_x(), k_begin, k_end);
        const gemm_problem &q = p.problem[slice.z];
        for_each(acc, [](float) { return 0.0f; });
        if (p.low_rank[slice.z].num_parts > 0 && k_begin == 0) {
            add_low_rank(acc, smem.stage, p.low_rank[slice.z], q.m, slice.n0, slice.m0);
            How::start(acc, q, slice.m0);
            gpu::sync_cta(); // everyone has left the stage
        }
        TokenLoader<K_MULTIPLE> inputs(q, slice.m0);
        typename Weights::Loader weight_loader(q, slice.n0);
        inputs.skip(k_begin);
        weight_loader.skip(k_begin);
        behind = &smem.behind_loop(k_end - k_begin);
        if (!Weights::FILLS_SHARED) behind->fetch(q, slice, gpu::thread_x());
        How::fetch(smem, q, slice.m0);
        multiply<How, Weights, STAGES>(acc, smem, p, inputs, weight_loader, k_end - k_begin, warp_n, warp_m);
    }
    Slice<WholeCta> &slice = behind->slice;
    WholeCta team;
    if (slice.number >= 0 && !add_slices(acc, p, slice, team)) return;
    const int thread = gpu::thread_x_anew(), warp_n = warp_feature(thread), warp_m = warp_token(thread);
    How::finish(acc, smem, warp_m);
    finish<Set>(acc, p.problem[slice.z], behind->bias, behind->sums, team, slice.n0, slice.m0, warp_n, warp_m);
}

} // namespace gemm

#endif