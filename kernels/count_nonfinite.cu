// count_nonfinite: counter[index] += how many of x[0 .. count] are NaN or infinite     f32 in
//
// Work    16 elements per thread, a warp's lanes side by side; one integer atomic per warp, and none where all is well.
// Bound   memory: 4 bytes per element.
#include "count_nonfinite.h"
#include "gpu.cuh"

GPU_KERNEL(count_nonfinite_f32, count_nonfinite_params, COUNT_NONFINITE_THREADS, 1) {
    const int64_t first = (int64_t)gpu::cta_x() * (COUNT_NONFINITE_THREADS * COUNT_NONFINITE_PER_THREAD) + gpu::thread_x();
    uint32_t found = 0;
    GPU_UNROLL
    for (int i = 0; i < COUNT_NONFINITE_PER_THREAD; ++i) {
        const int64_t at = first + i * COUNT_NONFINITE_THREADS;
        if (at < p.count) found += gpu::is_finite(p.x[at]) ? 0u : 1u;
    }
    GPU_UNROLL
    for (int mask = gpu::WARP / 2; mask > 0; mask /= 2) found += gpu::shfl_xor(found, mask);
    if (gpu::lane_id() == 0 && found != 0) gpu::atomic_add(p.counter + (p.index ? p.index[0] : 0), found);
}
