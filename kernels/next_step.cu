// next_step: step += 1     the number of the denoising step, in device memory
//
// Work    one thread. Every step's launches are the same; this is how they come to do another step's work.
#include "next_step.h"
#include "gpu.cuh"

GPU_KERNEL(next_step, next_step_params, NEXT_STEP_THREADS, 1) {
    if (gpu::thread_x() == 0) p.step[0] += 1;
}
