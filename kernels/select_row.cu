// select_row: out = table[index, :]     f32; the index lies in device memory
//
// Work    one thread per element. What changes from step to step or from request to request, as the row of the modulations
//         or of CLIP's end token does, is looked up where the device is, so that launches stay as they are.
// Bound   memory: 8 bytes per element.
#include "select_row.h"
#include "gpu.cuh"

GPU_KERNEL(select_row_f32, select_row_params, SELECT_ROW_THREADS, 1) {
    const int64_t i = (int64_t)gpu::cta_x() * SELECT_ROW_THREADS + gpu::thread_x();
    if (i >= p.width) return;
    const int row = gpu::min(gpu::max(p.index[0], 0), p.rows - 1);
    p.out[i] = p.table[row * p.pitch + i];
}
