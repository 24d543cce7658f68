// emulator.cpp: the variables through which host-compiled kernels reach the emulator's runtime (gpu.cuh section 3).
#include "gpu_sm90.cuh"

extern "C" {
const emu_runtime *schnell_emu_runtime;
const emu_hopper *schnell_emu_hopper;
thread_local emu_thread *schnell_emu_self __attribute__((tls_model("initial-exec")));

// Set once, before the first launch.
void schnell_emu_set_runtime(const emu_runtime *runtime) { schnell_emu_runtime = runtime; }
void schnell_emu_set_hopper(const emu_hopper *hopper) { schnell_emu_hopper = hopper; }

// Set by the scheduler before it resumes a fiber on this OS thread.
void schnell_emu_set_self(emu_thread *self) { schnell_emu_self = self; }
emu_thread *schnell_emu_get_self() { return schnell_emu_self; }
}
