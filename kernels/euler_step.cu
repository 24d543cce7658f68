// euler_step: x += dt * v, in f32, and a bf16 copy of the result; v may be guided by a negative prompt's velocity.
//
// Work    one thread per element; latents are a few hundred KiB, so launch time is all there is.
//         Which step it is, how long it is and how strong the guidance lie in device memory: a launch serves every step.
// Bound   memory: 14 bytes per element.
// Source  flow-matching Euler step of diffusers' FlowMatchEulerDiscreteScheduler: prev = sample + dt * model_output.
#include "euler_step.h"
#include "gpu.cuh"

GPU_KERNEL(euler_step_f32, euler_step_params, EULER_STEP_THREADS, 1) {
    const int64_t i = (int64_t)gpu::cta_x() * EULER_STEP_THREADS + gpu::thread_x();
    if (i >= p.count) return;
    float v = p.velocity[i];
    if (p.negative) {
        const float n = p.negative[i];
        v = gpu::add_exact(n, gpu::mul_exact(p.true_cfg_scale[0], v - n));
    }
    // Two roundings, as the reference makes them: no fused multiply-add.
    const float x = gpu::add_exact(p.latents[i], gpu::mul_exact(p.dt[p.step[0]], v));
    p.latents[i] = x;
    p.latents_bf16[i] = gpu::float_to_bf16(x);
}
