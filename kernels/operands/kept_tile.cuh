// kept_tile.cuh: weights in few bits, as files hold them, as the A operand of a GEMM tile, dequantized in registers.
#ifndef SCHNELL_KEPT_TILE_CUH
#define SCHNELL_KEPT_TILE_CUH

#include "../gemm_rows.cuh"
#include "../kept.cuh"

namespace gemm {

// Panels of 64 features, one behind the other, each of three parts (kept.cuh says what is in them):
//     codes   per k-step of 64 the plane of the lower bits, then that of the upper ones; a plane has, for each of four m16 tiles i and
//             each of its words, a word of every lane (of 8 bits two, which are neighbors). With f = n % 64, kk = k % 64 a code is in
//             tile i = f % 8 / 2, lane 4 (f / 8) + kk % 8 / 2, u = 2 (kk / 16) + kk % 2, part = 2 (kk % 16 / 8) + f % 2
//     words   per k-step 64 of them (of fp8, 64 for all)
//     extras  per 64 or 256 k, 64 of them
// A k-step of two panels; extras are none, or so many bytes a row.
template <int CODE_CHUNKS, int EXTRA> struct KeptStage {
    uint4 codes[CODE_CHUNKS];
    uint4 words[BLOCK_N * 4 / 16];
    uint4 extras[BLOCK_N * EXTRA / 16];
};
template <int CODE_CHUNKS> struct KeptStage<CODE_CHUNKS, 0> {
    uint4 codes[CODE_CHUNKS];
    uint4 words[BLOCK_N * 4 / 16];
};

template <typename F> struct KeptWeights {
    static constexpr int LOW_BYTES = WARP_N * BLOCK_K / 8 * F::LOW, TILE_BYTES = WARP_N * BLOCK_K / 8 * F::BITS;
    static constexpr int TILE_CHUNKS = TILE_BYTES / 16, EXTRA = F::EXTRA;

    using Stage = KeptStage<2 * TILE_CHUNKS, EXTRA>;
    static constexpr bool FILLS_SHARED = F::LOW == 8; // gemm_tile.cuh
    struct Tables {};
    GPU_METHOD static void fill(Tables &) {}

    struct Loader {
        static constexpr int ROUNDS = gpu::ceil_div(2 * TILE_CHUNKS, THREADS);
        static constexpr int WORD_CHUNKS = WARP_N * 4 / 16, EXTRA_CHUNKS = WARP_N * EXTRA / 16; // of a panel
        static constexpr int EXTRA_STEPS = F::EXTRA_K / BLOCK_K;
        static_assert(2 * (WORD_CHUNKS + EXTRA_CHUNKS) <= THREADS, "a thread fetches one chunk of scales at most");
        const uint4 *codes;     // of the first panel, in the next k-step
        const uint4 *scales;    // this thread's chunk of words or extras, in k-step 0
        int64_t panel;          // chunks from panel to panel
        int step;
        bool has_second;

        GPU_METHOD Loader(const gemm_problem &q, int n0) : step(0) {
            const int steps = q.k / BLOCK_K;
            const int64_t words = (int64_t)steps * TILE_CHUNKS;
            const int64_t extras = words + (F::SCALES == kept::Scales::ROW ? 1 : steps) * WORD_CHUNKS;
            panel = extras + (EXTRA == 0 ? 0 : steps / EXTRA_STEPS * EXTRA_CHUNKS);
            has_second = n0 + WARP_N < gpu::ceil_div(q.n, WARP_N) * WARP_N;
            codes = static_cast<const uint4 *>(q.w) + n0 / WARP_N * panel;
            // Threads 0 to 31 fetch words of both panels, those behind them extras.
            const int t = gpu::thread_x();
            const bool is_word = t < 2 * WORD_CHUNKS;
            const int of_panel = is_word ? WORD_CHUNKS : gpu::max(EXTRA_CHUNKS, 1), at = is_word ? t : t - 2 * WORD_CHUNKS;
            scales = codes + (is_word ? words : extras) + at % of_panel + at / of_panel * (has_second ? panel : 0);
        }

        GPU_METHOD void fetch(Stage &stage) {
            GPU_UNROLL
            for (int r = 0; r < ROUNDS; ++r) {
                const int t = gpu::thread_x() + r * THREADS;
                if (2 * TILE_CHUNKS % THREADS != 0 && t >= 2 * TILE_CHUNKS) break;
                const bool second = t >= TILE_CHUNKS;
                const uint4 *const from = codes + (second ? t - TILE_CHUNKS + (has_second ? panel : 0) : t);
                gpu::cp_async<16>(&stage.codes[t], from, second && !has_second ? 0 : 16);
            }
            codes += TILE_CHUNKS;
            const int t = gpu::thread_x();
            if (t < 2 * WORD_CHUNKS) {
                const int at = F::SCALES == kept::Scales::ROW ? 0 : step * WORD_CHUNKS;
                gpu::cp_async<16>(&stage.words[t], scales + at, t >= WORD_CHUNKS && !has_second ? 0 : 16);
            } else if constexpr (EXTRA != 0) {
                const int at = t - 2 * WORD_CHUNKS;
                if (at < 2 * EXTRA_CHUNKS) {
                    gpu::cp_async<16>(&stage.extras[at], scales + step / EXTRA_STEPS * EXTRA_CHUNKS,
                                      at >= EXTRA_CHUNKS && !has_second ? 0 : 16);
                }
            }
            ++step;
        }

        // Leaves out the first k-steps.
        GPU_METHOD void skip(int steps) {
            codes += (int64_t)steps * TILE_CHUNKS;
            step += steps;
        }
    };

    // Of the lane's features and the k16 step at hand. What is worked out for one step serves the next, of the same group.
    mutable kept::Group groups[MT][2];

    GPU_METHOD KeptWeights(const Stage &, const Tables &, int) {}

    GPU_METHOD void load_groups(const Stage &stage, int warp_n, int group) const {
        const int feature = warp_n + gpu::lane_id() / 4 * 8;
        uint32_t words[8], extras[8] = {};
        copy(words, &stage.words[feature / 4]);
        if constexpr (EXTRA == 4) copy(extras, &stage.extras[feature / 4]);
        if constexpr (EXTRA == 2) {
            const uint4 pairs = stage.extras[feature / 8];
            const uint32_t halves[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
            GPU_UNROLL
            for (int f = 0; f < 8; ++f) extras[f] = f % 2 == 0 ? halves[f / 2] : halves[f / 2] >> 16;
        }
        GPU_UNROLL
        for (int f = 0; f < 8; ++f) groups[f / 2][f % 2] = kept::group_of<F>(words[f], extras[f], group);
    }

    GPU_METHOD static void copy(uint32_t (&to)[8], const uint4 *from) {
        const uint4 lo = from[0], hi = from[1];
        to[0] = lo.x, to[1] = lo.y, to[2] = lo.z, to[3] = lo.w, to[4] = hi.x, to[5] = hi.y, to[6] = hi.z, to[7] = hi.w;
    }

    GPU_METHOD void fragments(uint32_t (&a)[MT][4], const Stage &stage, const Tables &, int warp_n, int k16) const {
        constexpr int STEPS = F::GROUP / 16;
        if (k16 % STEPS == 0) load_groups(stage, warp_n, k16 / STEPS);
        const int lane = gpu::lane_id(), u = 2 * k16;
        const char *const tile = reinterpret_cast<const char *>(stage.codes + warp_n / WARP_N * TILE_CHUNKS);
        GPU_UNROLL
        for (int i = 0; i < MT; ++i) {
            uint32_t even, odd, high = 0;
            if constexpr (F::LOW == 8) {
                const uint2 both = reinterpret_cast<const uint2 *>(tile)[(i * 4 + k16) * gpu::WARP + lane];
                even = both.x, odd = both.y;
            } else {
                even = odd = reinterpret_cast<const uint32_t *>(tile)[(i * F::LOW + kept::word_of<F::LOW>(u)) * gpu::WARP + lane];
            }
            if constexpr (F::HIGH > 0) {
                const uint32_t *const plane = reinterpret_cast<const uint32_t *>(tile + LOW_BYTES);
                high = plane[(i * F::HIGH + kept::word_of<F::HIGH>(u)) * gpu::WARP + lane];
            }
            even = kept::four_codes<F>(even, high, u), odd = kept::four_codes<F>(odd, high, u + 1);
            GPU_UNROLL
            for (int part = 0; part < 4; ++part) {
                const kept::Group &group = groups[i][part % 2];
                a[i][part] = gpu::pack_bf16x2(kept::weight<F>(even, part, group), kept::weight<F>(odd, part, group));
            }
        }
    }
};

} // namespace gemm

#endif
