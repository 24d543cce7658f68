// row.cuh: one f32 row in the hands of one warp, for the kernels that need it more than once (norms).
//
// With VECS > 0 the row lives in registers, VECS float4 per lane, and is read from memory once; that takes a width that
// is a multiple of 4 and at most 128 VECS, and 16-byte aligned rows. With VECS = 0 every pass reads it again, one
// float per lane: any width, any alignment.
#ifndef SCHNELL_ROW_CUH
#define SCHNELL_ROW_CUH

#include "gpu.cuh"

namespace gpu {

template <int VECS> struct Row {
    const float *x;
    int width;
    float4 cached[VECS > 0 ? VECS : 1];
};

template <int VECS> GPU_FN void load_row(Row<VECS> &row, const float *x, int width) {
    row.x = x;
    row.width = width;
    if constexpr (VECS > 0) {
        GPU_UNROLL
        for (int i = 0; i < VECS; ++i) {
            const int column = (i * WARP + lane_id()) * 4;
            row.cached[i] = column < width ? *reinterpret_cast<const float4 *>(x + column) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        }
    }
}

// Calls f(column, values) for this lane's share of the row, in rising columns; values is a float[4] or a float[1].
template <int VECS, typename F> GPU_FN void for_each(const Row<VECS> &row, F f) {
    if constexpr (VECS > 0) {
        GPU_UNROLL
        for (int i = 0; i < VECS; ++i) {
            const int column = (i * WARP + lane_id()) * 4;
            const float values[4] = {row.cached[i].x, row.cached[i].y, row.cached[i].z, row.cached[i].w};
            if (column < row.width) f(column, values);
        }
    } else {
        for (int column = lane_id(); column < row.width; column += WARP) {
            const float values[1] = {row.x[column]};
            f(column, values);
        }
    }
}

// N consecutive floats, one access each way.
template <int N> GPU_FN void load_floats(float (&to)[N], const float *from) {
    static_assert(N == 1 || N == 4, "a float or a float4");
    if constexpr (N == 4) {
        const float4 v = *reinterpret_cast<const float4 *>(from);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
        to[0] = *from;
    }
}
template <int N> GPU_FN void store_floats(float *to, const float (&from)[N]) {
    if constexpr (N == 4) {
        *reinterpret_cast<float4 *>(to) = float4{from[0], from[1], from[2], from[3]};
    } else {
        *to = from[0];
    }
}
template <int N> GPU_FN void store_bf16(bf16_bits *to, const float (&from)[N]) {
    if constexpr (N == 4) {
        *reinterpret_cast<uint2 *>(to) = uint2{pack_bf16x2(from[0], from[1]), pack_bf16x2(from[2], from[3])};
    } else {
        *to = float_to_bf16(from[0]);
    }
}

} // namespace gpu

#endif
