// kept_rows.cuh: weights in few bits, as files hold them, for gemv, row by row.
#ifndef SCHNELL_KEPT_ROWS_CUH
#define SCHNELL_KEPT_ROWS_CUH

#include "../gemv.h"
#include "../kept.cuh"

namespace gemv {

// One behind the other (kept.cuh says what is in them): the plane of the lower bits [n, k LOW / 8], that of the upper ones
// [n, k HIGH / 8], words [n, k / 64] (of fp8 [n]), extras [n, k / 64 or k / 256]. Of 32 codes in a row number 4 u + part is (u, part).
//
// A lane has 32 codes of each of ROWS rows.
template <typename F, int ROWS, int CHUNK> struct KeptRows {
    static constexpr int V = 32, SLABS = CHUNK / (V * gpu::WARP);
    static_assert(SLABS == 1, "a lane has 32 codes of each row per chunk");
    static constexpr bool HAS_BOOK = false;
    static constexpr int GROUPS = V / F::GROUP;
    uint32_t low[ROWS][F::LOW], high[ROWS][F::HIGH == 2 ? 2 : 1];
    kept::Group groups[ROWS][GROUPS];

    // K is a multiple of 64, so a lane's codes lie inside together, or outside.
    GPU_METHOD void fetch(const gemv_params &p, int first_row, int k0) {
        const int k = k0 + gpu::lane_id() * V;
        const int64_t elements = (int64_t)p.n * p.k;
        const uint8_t *const high_plane = p.codes + elements / 8 * F::LOW, *const words = high_plane + elements / 8 * F::HIGH;
        const uint8_t *const extras = words + elements / 64 * 4;
        GPU_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const int n = first_row + r;
            const bool exists = n < p.n && k < p.k;
            const int64_t at = (int64_t)n * p.k + k;
            uint32_t word = 0, extra = 0;
            GPU_UNROLL
            for (int i = 0; i < F::LOW; ++i) low[r][i] = 0;
            GPU_UNROLL
            for (int i = 0; i < F::HIGH; ++i) high[r][i] = 0;
            if (exists) {
                load<F::LOW>(low[r], p.codes + at / 8 * F::LOW);
                if constexpr (F::HIGH > 0) load<F::HIGH>(high[r], high_plane + at / 8 * F::HIGH);
                word = reinterpret_cast<const uint32_t *>(words)[F::SCALES == kept::Scales::ROW ? n : at / 64];
                if constexpr (F::EXTRA == 4) extra = reinterpret_cast<const uint32_t *>(extras)[at / F::EXTRA_K];
                if constexpr (F::EXTRA == 2) extra = reinterpret_cast<const uint16_t *>(extras)[at / F::EXTRA_K];
            }
            GPU_UNROLL
            for (int i = 0; i < GROUPS; ++i) groups[r][i] = kept::group_of<F>(word, extra, k / V % 2 * GROUPS + i);
        }
    }

    template <int WORDS> GPU_METHOD static void load(uint32_t (&to)[WORDS], const uint8_t *from) {
        if constexpr (WORDS >= 4) {
            GPU_UNROLL
            for (int i = 0; i < WORDS / 4; ++i) {
                const uint4 v = reinterpret_cast<const uint4 *>(from)[i];
                to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
            }
        } else if constexpr (WORDS == 2) {
            const uint2 v = *reinterpret_cast<const uint2 *>(from);
            to[0] = v.x, to[1] = v.y;
        } else {
            to[0] = *reinterpret_cast<const uint32_t *>(from);
        }
    }

    // Calls accumulate(w, 0, u) with weights 4 u to 4 u + 3 of each row.
    //
    // Half of the codes after the other, each moved to where the first half was: unrolled, nvcc makes numbers of all codes of all rows
    // at once, and spills.
    template <typename Book, typename A> GPU_METHOD void multiply(const Book &, A accumulate) {
        constexpr int HALF = V / 4 / 2;
        GPU_NO_UNROLL
        for (int first = 0; first < V / 4; first += HALF) {
            GPU_UNROLL
            for (int u = 0; u < HALF; ++u) {
                float w[ROWS][4];
                GPU_UNROLL
                for (int r = 0; r < ROWS; ++r) dequantize(w[r], r, u);
                accumulate(w, 0, first + u);
            }
            GPU_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                GPU_UNROLL
                for (int i = 0; i < F::LOW / 2; ++i) low[r][i] = low[r][i + F::LOW / 2];
                high[r][0] = F::HIGH == 2 ? high[r][F::HIGH / 2] : high[r][0] >> HALF;
                groups[r][0] = groups[r][GROUPS - 1];
            }
        }
    }

    // The codes (u, 0) to (u, 3) of row r, to bf16, to f32. `r` and `u`, below 4, are known to the compiler.
    GPU_METHOD void dequantize(float (&w)[4], int r, int u) const {
        uint32_t upper = 0;
        if constexpr (F::HIGH > 0) upper = high[r][kept::word_of<F::HIGH>(u)];
        const uint32_t codes = kept::four_codes<F>(low[r][kept::word_of<F::LOW>(u)], upper, u);
        const kept::Group &group = groups[r][0];
        const uint32_t lo = gpu::pack_bf16x2(kept::weight<F>(codes, 0, group), kept::weight<F>(codes, 1, group));
        const uint32_t hi = gpu::pack_bf16x2(kept::weight<F>(codes, 2, group), kept::weight<F>(codes, 3, group));
        w[0] = gpu::bf16_lo(lo), w[1] = gpu::bf16_hi(lo), w[2] = gpu::bf16_lo(hi), w[3] = gpu::bf16_hi(hi);
    }
};

} // namespace gemv

#endif
