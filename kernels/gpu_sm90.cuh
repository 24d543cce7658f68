// gpu_sm90.cuh: what only Hopper has, as PTX for sm_90a and as calls into the emulator, like gpu.cuh; for the files
// whose stem ends in `_sm90`, which are compiled for sm_90a alone.
//
//   barriers   mbarrier_init fence_mbarrier_init mbarrier_arrive mbarrier_arrive_expect_tx mbarrier_wait
//   copies     tma_load_2d(dst, map, x, y, barrier) bulk_load(dst, src, bytes, barrier) fence_proxy_async
//   products   smem_descriptor wgmma_fence(registers...) wgmma_m64k16<N> wgmma_commit wgmma_wait<PENDING>(registers...)
//   registers  release_registers<N> claim_registers<N>
//
// Two engines work beside the threads, and both see shared memory through the "async proxy":
//   - A copy's bytes may be read, and given to wgmma, by whoever has waited for its mbarrier.
//   - What threads store themselves is seen by wgmma only after the storing threads' fence_proxy_async() and then a
//     barrier. The emulator takes a picture of shared memory at every such fence; wgmma that meets other bytes fails.
//   - From wgmma_m64k16 to the wgmma_wait that covers it, its accumulators and A registers belong to the engine: they may
//     be neither read nor written, and must not go out of scope. The emulator fills them with NaN and looks whether they
//     were touched. Several products may use the same registers meanwhile.
//     nvcc does not know: it moves accumulators between registers as it likes, above all where a loop turns. What it has made
//     of a kernel is looked through by scripts/check-sass; a loop that leaves nothing in flight is safe.
//   - Registers that were written, or never used by wgmma before, must be named in a wgmma_fence() afterwards; the names
//     also keep nvcc from moving the writes past it. The emulator compares.
#ifndef SCHNELL_GPU_SM90_CUH
#define SCHNELL_GPU_SM90_CUH

#include "gpu.cuh"

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "gpu_sm90.cuh is for kernels/*_sm90.cu, which are compiled for sm_90a alone"
#endif

// ---------------------------------------------------------------------------------------------- 1. shared by both

namespace gpu {

constexpr int WARPGROUP = 128;

// Eight bytes of shared memory that count arrivals and bytes, and then turn to the next phase. Opaque on both sides.
struct alignas(8) mbarrier {
    uint64_t opaque;
};

GPU_FN int warpgroup_id() { return thread_x() / WARPGROUP; }

// How wgmma is told of bf16 operands in shared memory: rows of 128 bytes (64 values of k), row after row, swizzled, which
// is what tma_load_2d with 128-byte swizzle leaves. PTX ISA, "Matrix Descriptor Format": bits 0-13 the address / 16, 16-29
// the leading offset (not used with swizzle; 1), 32-45 the distance of 8 rows / 16, 62-63 the swizzle (1: 128 bytes).
GPU_CONSTEXPR uint64_t swizzled_descriptor(uint32_t address) {
    return (uint64_t)((address & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
// The same tile, 16 values of k further on: 32 bytes.
GPU_CONSTEXPR uint64_t next_k16(uint64_t descriptor, int steps) { return descriptor + (uint64_t)(steps * (32 >> 4)); }

// Where a byte of a tile with 128-byte rows lies when swizzled: the 16-byte column is XORed with the row modulo 8.
GPU_CONSTEXPR int swizzle_128(int offset) { return offset ^ ((offset >> 7 & 7) << 4); }

} // namespace gpu

#ifdef __CUDACC__
// ---------------------------------------------------------------------------------------------- 2. the GPU

namespace gpu {

// One thread initializes, fences, and then the CTA meets at a barrier before anybody uses it.
GPU_FN void mbarrier_init(mbarrier *barrier, int num_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(num_arrivals) : "memory");
}
GPU_FN void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
GPU_FN void mbarrier_arrive(mbarrier *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}
// Arrives, and makes the phase wait for so many bytes of copies as well.
GPU_FN void mbarrier_arrive_expect_tx(mbarrier *barrier, int num_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(num_bytes) : "memory");
}
// Waits until the phase of this parity is over; phases count from 0.
GPU_FN void mbarrier_wait(mbarrier *barrier, int parity) {
    uint32_t is_over;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(is_over)
                     : "r"(smem_address(barrier)), "r"(parity)
                     : "memory");
    } while (!is_over);
}

// What this thread stored to shared memory, and what happened before, becomes visible to wgmma and copies.
GPU_FN void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies the map's box at column x, row y to 128-byte aligned shared memory (1024 with swizzle); what lies outside the
// tensor is zero. Rows of the box must begin at a multiple of 16 bytes, outside the tensor, too: any other x is an illegal
// instruction (seen on an H200; the PTX ISA is silent). Issued by one thread; counts as the whole box's bytes at `barrier`.
GPU_FN void tma_load_2d(void *dst, const tensor_map *map, int x, int y, mbarrier *barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(smem_address(dst)),
        "l"(map), "r"(x), "r"(y), "r"(smem_address(barrier))
        : "memory");
}
// Copies a multiple of 16 bytes between 16-byte aligned addresses.
GPU_FN void bulk_load(void *dst, const void *src, int num_bytes, mbarrier *barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem_address(dst)),
                 "l"(__cvta_generic_to_global(src)), "r"(num_bytes), "r"(smem_address(barrier))
                 : "memory");
}

GPU_FN uint64_t smem_descriptor(const void *tile) { return swizzled_descriptor(smem_address(tile)); }

// Keeps the compiler from moving accesses to registers across this place.
GPU_FN void pin(float &r) { asm volatile("" : "+f"(r)::"memory"); }
GPU_FN void pin(uint32_t &r) { asm volatile("" : "+r"(r)::"memory"); }
template <typename T, int N> GPU_FN void pin(T (&registers)[N]) {
    GPU_UNROLL
    for (int i = 0; i < N; ++i) pin(registers[i]);
}
template <typename... Registers> GPU_FN void wgmma_fence(Registers &...registers) {
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
GPU_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING, typename... Registers> GPU_FN void wgmma_wait(Registers &...registers) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
    (pin(registers), ...);
}

// acc[64 x N] (+)= A[64 x 16] . B[N x 16]^T by a warpgroup; without `accumulate` the accumulators' old values do not count.
// Register i of thread t holds row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2. A in
// registers: fragments of mma.m16n8k16, warp w of the group holding rows 16 w to 16 w + 15.
template <int N, typename A> GPU_FN void wgmma_m64k16(float (&acc)[N / 2], A &&a, uint64_t b, bool accumulate);

// Operand lists: ten names, and eight accumulators, at a time.
#define GPU_TEN(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define GPU_ACC8(i)                                                                                                           \
    "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), "+f"(acc[i + 5]), "+f"(acc[i + 6]), \
        "+f"(acc[i + 7])
#define GPU_ACC32(i) GPU_ACC8(i), GPU_ACC8(i + 8), GPU_ACC8(i + 16), GPU_ACC8(i + 24)
// The names after the accumulators' are a, b, accumulate, or a0 a1 a2 a3, b, accumulate. Scales of A and B are 1; both
// operands are K-major.
#define GPU_WGMMA(N, ACC_NAMES, ACCS, A, B, P, R0, R1, R2, R3, RB, RP)                                                                \
    GPU_FN void wgmma(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {                                                 \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                                                 \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" ACC_NAMES "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}"  \
                     : ACCS                                                                                                           \
                     : "l"(a), "l"(b), "r"((int)accumulate));                                                                         \
    }                                                                                                                                 \
    GPU_FN void wgmma(float (&acc)[N / 2], uint32_t (&a)[4], uint64_t b, bool accumulate) {                                           \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #RP ", 0;\n"                                                                \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" ACC_NAMES "}, {%" #R0 ", %" #R1 ", %" #R2 ", %" #R3 \
                     "}, %" #RB ", p, 1, 1, 0;\n}"                                                                                    \
                     : ACCS                                                                                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate));                                     \
    }
#define GPU_NAMES30 GPU_TEN() ", " GPU_TEN(1) ", " GPU_TEN(2)
#define GPU_NAMES60 GPU_NAMES30 ", " GPU_TEN(3) ", " GPU_TEN(4) ", " GPU_TEN(5)
#define GPU_NAMES120 GPU_NAMES60 ", " GPU_TEN(6) ", " GPU_TEN(7) ", " GPU_TEN(8) ", " GPU_TEN(9) ", " GPU_TEN(10) ", " GPU_TEN(11)
#define GPU_ACC64(i) GPU_ACC32(i), GPU_ACC32(i + 32)
#define GPU_COMMA ,
GPU_WGMMA(64, GPU_NAMES30 ", %30, %31", GPU_ACC32(0), 32, 33, 34, 32, 33, 34, 35, 36, 37)
GPU_WGMMA(128, GPU_NAMES60 ", %60, %61, %62, %63", GPU_ACC64(0), 64, 65, 66, 64, 65, 66, 67, 68, 69)
GPU_WGMMA(256, GPU_NAMES120 ", %120, %121, %122, %123, %124, %125, %126, %127", GPU_ACC64(0) GPU_COMMA GPU_ACC64(64), 128, 129, 130, 128,
          129, 130, 131, 132, 133)
template <int N, typename A> GPU_FN void wgmma_m64k16(float (&acc)[N / 2], A &&a, uint64_t b, bool accumulate) {
    wgmma(acc, a, b, accumulate);
}
#undef GPU_WGMMA
#undef GPU_COMMA
#undef GPU_ACC64
#undef GPU_NAMES120
#undef GPU_NAMES60
#undef GPU_NAMES30
#undef GPU_ACC32
#undef GPU_ACC8
#undef GPU_TEN

// How many registers each thread of the warpgroup keeps from here on: a producer gives away what consumers claim. The CTA's
// total must suffice, or the claim waits for ever.
template <int N> GPU_FN void release_registers() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes 24, 32, .. 256");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> GPU_FN void claim_registers() {
    static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes 24, 32, .. 256");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

} // namespace gpu

#else
// ---------------------------------------------------------------------------------------------- 3. the emulator

// The contract with src/device/emulator/runtime/hopper.rs; the two must be changed together.
extern "C" {
struct emu_hopper {
    void (*mbarrier_init)(emu_thread *self, void *barrier, uint32_t num_arrivals, const emu_site *);
    void (*fence_mbarrier_init)(emu_thread *self);
    void (*mbarrier_arrive)(emu_thread *self, void *barrier, uint32_t num_bytes, const emu_site *);
    void (*mbarrier_wait)(emu_thread *self, void *barrier, uint32_t parity, const emu_site *);
    void (*fence_proxy_async)(emu_thread *self);
    void (*tma_load_2d)(emu_thread *self, void *dst, const void *map, int32_t x, int32_t y, void *barrier, const emu_site *);
    void (*bulk_load)(emu_thread *self, void *dst, const void *src, uint32_t num_bytes, void *barrier, const emu_site *);
    void (*wgmma_name)(emu_thread *self, const void *registers, uint32_t num_words, const emu_site *);
    // `a_registers` is null when A is in shared memory.
    void (*wgmma)(emu_thread *self, float *acc, uint32_t n, uint32_t *a_registers, uint64_t a, uint64_t b, uint32_t accumulate,
                  const emu_site *);
    void (*wgmma_commit)(emu_thread *self);
    void (*wgmma_wait)(emu_thread *self, uint32_t pending, const emu_site *);
};
extern const emu_hopper *schnell_emu_hopper;
}

namespace gpu {

GPU_FN void mbarrier_init(mbarrier *barrier, int num_arrivals, EMU_SITE) {
    schnell_emu_hopper->mbarrier_init(schnell_emu_self, barrier, (uint32_t)num_arrivals, &site);
}
GPU_FN void fence_mbarrier_init() { schnell_emu_hopper->fence_mbarrier_init(schnell_emu_self); }
GPU_FN void mbarrier_arrive(mbarrier *barrier, EMU_SITE) { schnell_emu_hopper->mbarrier_arrive(schnell_emu_self, barrier, 0, &site); }
GPU_FN void mbarrier_arrive_expect_tx(mbarrier *barrier, int num_bytes, EMU_SITE) {
    schnell_emu_hopper->mbarrier_arrive(schnell_emu_self, barrier, (uint32_t)num_bytes, &site);
}
GPU_FN void mbarrier_wait(mbarrier *barrier, int parity, EMU_SITE) {
    schnell_emu_hopper->mbarrier_wait(schnell_emu_self, barrier, (uint32_t)parity, &site);
}
GPU_FN void fence_proxy_async() { schnell_emu_hopper->fence_proxy_async(schnell_emu_self); }
GPU_FN void tma_load_2d(void *dst, const tensor_map *map, int x, int y, mbarrier *barrier, EMU_SITE) {
    schnell_emu_hopper->tma_load_2d(schnell_emu_self, dst, map, x, y, barrier, &site);
}
GPU_FN void bulk_load(void *dst, const void *src, int num_bytes, mbarrier *barrier, EMU_SITE) {
    schnell_emu_hopper->bulk_load(schnell_emu_self, dst, src, (uint32_t)num_bytes, barrier, &site);
}

GPU_FN uint64_t smem_descriptor(const void *tile) {
    return swizzled_descriptor((uint32_t)((const char *)tile - (const char *)schnell_emu_self->cta->smem));
}

// A parameter behind a pack has no default, hence one overload per number of names.
template <typename A> GPU_FN void wgmma_name(A &a, const emu_site &site) {
    schnell_emu_hopper->wgmma_name(schnell_emu_self, &a, sizeof(A) / 4, &site);
}
template <typename A> GPU_FN void wgmma_fence(A &a, EMU_SITE) { wgmma_name(a, site); }
template <typename A, typename B> GPU_FN void wgmma_fence(A &a, B &b, EMU_SITE) {
    wgmma_name(a, site);
    wgmma_name(b, site);
}
template <typename A, typename B, typename C> GPU_FN void wgmma_fence(A &a, B &b, C &c, EMU_SITE) {
    wgmma_name(a, site);
    wgmma_name(b, site);
    wgmma_name(c, site);
}
GPU_FN void wgmma_commit() { schnell_emu_hopper->wgmma_commit(schnell_emu_self); }
template <int PENDING> GPU_FN void wgmma_wait(EMU_SITE) { schnell_emu_hopper->wgmma_wait(schnell_emu_self, PENDING, &site); }
template <int PENDING, typename A> GPU_FN void wgmma_wait(A &, EMU_SITE) { wgmma_wait<PENDING>(site); }
template <int PENDING, typename A, typename B> GPU_FN void wgmma_wait(A &, B &, EMU_SITE) { wgmma_wait<PENDING>(site); }

template <int N> GPU_FN void wgmma_m64k16(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate, EMU_SITE) {
    static_assert(N == 64 || N == 128 || N == 256, "the widths that section 2 has");
    schnell_emu_hopper->wgmma(schnell_emu_self, acc, N, nullptr, a, b, accumulate, &site);
}
template <int N> GPU_FN void wgmma_m64k16(float (&acc)[N / 2], uint32_t (&a)[4], uint64_t b, bool accumulate, EMU_SITE) {
    static_assert(N == 64 || N == 128 || N == 256, "the widths that section 2 has");
    schnell_emu_hopper->wgmma(schnell_emu_self, acc, N, a, 0, b, accumulate, &site);
}

template <int N> GPU_FN void release_registers() {}
template <int N> GPU_FN void claim_registers() {}

} // namespace gpu
#endif

#endif
