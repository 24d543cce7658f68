// gpu.cuh: every primitive that a kernel may use, twice: as PTX for a GPU, and as a call into the emulator.
//
// Kernels contain no PTX, no `__CUDA_ARCH__` and no `<<<>>>`; they include this file and nothing else of CUDA. What only
// Hopper has is in gpu_sm90.cuh.
// Compiled by nvcc the primitives are inline assembly (section 2); compiled by a plain C++ compiler they call the
// emulator's runtime in src/device/emulator (section 3). Both sections offer the same names with the same meaning:
//
//   index      thread_x thread_x_anew thread_x_reread lane_id lane_id_register warp_id cta_x cta_x_reread cta_y cta_z num_ctas_x
//   sync       sync_cta sync_warp
//   warp       shfl_xor (f32, u32)
//   async      cp_async<BYTES>(dst, src, valid_bytes) cp_async16_or_zeros(dst, src, exists) cp_async_commit
//              cp_async_wait<N>
//   tiles      ldmatrix_x4_tile<N> ldmatrix_x4_trans_tile<N> mma_tile<MT, NT>   (bf16 m16n8k16, f32 accumulate)
//              mma_half_tile<MT, NT>   (fp16 m16n8k16, fp16 accumulate)
//   math       exp2_approx divide_approx rsqrt_exact tanh_exact exp_exact fma_exact round_even max_number
//   bits       permute_bytes half_lo half_hi pack_half2
//   memory     shared<T>() store_vector store_shared_if atomic_add atomic_count
//
// The tile forms exist for the emulator's sake: on the GPU they unroll to single instructions (identical SASS), on a
// CPU one rendezvous of the warp's fibers serves the whole tile.
#ifndef SCHNELL_GPU_CUH
#define SCHNELL_GPU_CUH

#include "abi.h"

// ---------------------------------------------------------------------------------------------- 1. shared by both

#ifdef __CUDACC__
#define GPU_FN static __device__ __forceinline__      // a free function of a kernel
#define GPU_METHOD __device__ __forceinline__         // a member function; static ones say so themselves
#define GPU_CONSTEXPR constexpr __host__ __device__   // for constants as well
#define GPU_UNROLL _Pragma("unroll")
#define GPU_NO_UNROLL _Pragma("unroll 1")
#define GPU_PRAGMA(text) _Pragma(#text)
#define GPU_UNROLL_BY(n) GPU_PRAGMA(unroll(n))
#else
#include <math.h>
#include <string.h>
#ifdef SCHNELL_ACCESSES
#define GPU_FN static inline __attribute__((unused, always_inline)) // an instruction of its own for every call
#else
#define GPU_FN static inline __attribute__((unused))
#endif
#define GPU_METHOD inline
#define GPU_CONSTEXPR constexpr
#define GPU_UNROLL
#define GPU_NO_UNROLL
#define GPU_UNROLL_BY(n)
#ifdef SCHNELL_ACCESSES
// nvcc moves a vector with one instruction; g++ takes plain structs apart, and each part would count as an access.
// clang-format off: what they share is seen best side by side
#define EMU_VECTOR(name, bytes)                                                                          \
    typedef uint32_t whole __attribute__((vector_size(bytes), may_alias));                               \
    name() = default;                                                                                    \
    name(const name &from) { *(whole *)this = *(const whole *)&from; }                                   \
    name &operator=(const name &from) { *(whole *)this = *(const whole *)&from; return *this; }
#define EMU_VECTOR2(name, T) EMU_VECTOR(name, 8) name(T a, T b) : x(a), y(b) {}
#define EMU_VECTOR4(name, T) EMU_VECTOR(name, 16) name(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
#else
#define EMU_VECTOR2(name, T)
#define EMU_VECTOR4(name, T)
#endif
struct alignas(8) uint2 { uint32_t x, y; EMU_VECTOR2(uint2, uint32_t) };
struct alignas(16) uint4 { uint32_t x, y, z, w; EMU_VECTOR4(uint4, uint32_t) };
struct alignas(8) float2 { float x, y; EMU_VECTOR2(float2, float) };
struct alignas(16) float4 { float x, y, z, w; EMU_VECTOR4(float4, float) };
// clang-format on
#endif

namespace gpu {

constexpr int WARP = 32;

template <typename T> GPU_FN T min(T a, T b) { return a < b ? a : b; }
template <typename T> GPU_FN T max(T a, T b) { return a > b ? a : b; }
GPU_FN float max_number(float a, float b) { return fmaxf(a, b); } // of a NaN and a number the number: one instruction, not two

GPU_CONSTEXPR int ceil_div(int a, int b) { return (a + b - 1) / b; }

} // namespace gpu

#ifdef __CUDACC__
// ---------------------------------------------------------------------------------------------- 2. the GPU

// One kernel entry: a params struct by value, its CTA size, and how many CTAs an SM should hold at least.
#define GPU_KERNEL(name, Params, threads, min_ctas) \
    extern "C" __global__ void __launch_bounds__(threads, min_ctas) name(const __grid_constant__ Params p)

namespace gpu {

GPU_FN int thread_x() { return threadIdx.x; }
// The same, read anew: nvcc spills, for sm_120, what follows from thread_x() and is wanted behind a loop without a register to spare.
// Elsewhere it does not, and a main loop scheduled otherwise was slower by the model.
GPU_FN int thread_x_anew() {
#if __CUDA_ARCH__ >= 1200
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
#else
    return threadIdx.x;
#endif
}
// Read anew on every GPU, for code that is seldom run behind such a loop, which shall keep nothing for it.
GPU_FN int thread_x_reread() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}
GPU_FN int lane_id() { return threadIdx.x & 31; }
// The same from a register of its own: from the thread's number nvcc masks it anew at every use within some loops.
GPU_FN int lane_id_register() {
    int lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
GPU_FN int warp_id() { return threadIdx.x >> 5; }
GPU_FN int cta_x() { return blockIdx.x; }
// As thread_x_reread().
GPU_FN int cta_x_reread() {
    int cta;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(cta));
    return cta;
}
GPU_FN int cta_y() { return blockIdx.y; }
GPU_FN int cta_z() { return blockIdx.z; }
GPU_FN int num_ctas_x() { return gridDim.x; }

template <typename T> GPU_FN T &shared() {
    extern __shared__ __align__(1024) unsigned char smem_base[];
    return *reinterpret_cast<T *>(smem_base);
}

GPU_FN void sync_cta() { __syncthreads(); }
GPU_FN void sync_warp() { __syncwarp(); }
GPU_FN float shfl_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
GPU_FN uint32_t shfl_xor(uint32_t v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

GPU_FN uint32_t smem_address(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies `valid_bytes` (0..BYTES) from gmem to smem and fills the rest of BYTES with zeros. Both addresses must be
// BYTES-aligned even where nothing is read.
template <int BYTES> GPU_FN void cp_async(void *dst, const void *src, int valid_bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(dst)), "l"(src), "r"(valid_bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(smem_address(dst)), "l"(src), "n"(BYTES), "r"(valid_bytes)
                     : "memory");
    }
}
// Copies 16 bytes, or fills them with zeros where `exists` is 0: a bit tested and the copy, where `valid_bytes` chosen
// between 16 and 0 is computed.
GPU_FN void cp_async16_or_zeros(void *dst, const void *src, uint32_t exists) {
    asm volatile(
        "{ .reg .pred absent; setp.eq.u32 absent, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, absent; }" ::"r"(smem_address(dst)),
        "l"(src), "r"(exists)
        : "memory");
}
GPU_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> GPU_FN void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Lane l passes in `row` the smem address of row l % 8 of matrix l / 8 (16 aligned bytes each).
// frag[i] then holds, of matrix i, the bf16 pair (row lane / 4, columns 2 (lane % 4) + {0, 1}).
GPU_FN void ldmatrix_x4(uint32_t (&frag)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(frag[0]), "=r"(frag[1]), "=r"(frag[2]), "=r"(frag[3])
                 : "r"(smem_address(row))
                 : "memory");
}
// As above with every 8 x 8 matrix transposed: the pair (rows 2 (lane % 4) + {0, 1}, column lane / 4).
GPU_FN void ldmatrix_x4_trans(uint32_t (&frag)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(frag[0]), "=r"(frag[1]), "=r"(frag[2]), "=r"(frag[3])
                 : "r"(smem_address(row))
                 : "memory");
}
template <int N> GPU_FN void ldmatrix_x4_tile(uint32_t (&frag)[N][4], const void *const (&row)[N]) {
    GPU_UNROLL
    for (int n = 0; n < N; ++n) ldmatrix_x4(frag[n], row[n]);
}
template <int N> GPU_FN void ldmatrix_x4_trans_tile(uint32_t (&frag)[N][4], const void *const (&row)[N]) {
    GPU_UNROLL
    for (int n = 0; n < N; ++n) ldmatrix_x4_trans(frag[n], row[n]);
}

GPU_FN void mma_bf16_16816(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// acc[16 MT x 8 NT] += A[16 MT x 16] . B[16 x 8 NT]. With g = lane / 4, t = lane % 4, an m16 tile's lane holds
//   a: (g, 2t..) (g + 8, 2t..) (g, 2t + 8..) (g + 8, 2t + 8..)   b: (2t.., g) (2t + 8.., g)   acc: (g, 2t..) (g + 8, 2t..)
template <int MT, int NT> GPU_FN void mma_tile(float (&acc)[MT][NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
    GPU_UNROLL
    for (int i = 0; i < MT; ++i) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) mma_bf16_16816(acc[i][j], a[i], b[j]);
    }
}

GPU_FN void mma_half_16816(uint32_t (&acc)[2], const uint32_t (&a)[4], const uint32_t (&b)[2], const uint32_t (&from)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};"
                 : "=r"(acc[0]), "=r"(acc[1])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(from[0]), "r"(from[1]));
}
// As mma_tile with everything in fp16: operands, and accumulators by pairs, (g, 2t..) in one register and (g + 8, 2t..) in the other.
// With FROM_ZERO the accumulators are what is multiplied alone, whatever they were. Products are exact and summed in f32 at least
// (in an order of the machine's own), and each sum of 16 with the accumulator is rounded to fp16 once: what is published of the
// hardware. The emulator adds in ascending k.
template <int MT, int NT, bool FROM_ZERO = false>
GPU_FN void mma_half_tile(uint32_t (&acc)[MT][NT][2], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
    GPU_UNROLL
    for (int i = 0; i < MT; ++i) {
        GPU_UNROLL
        for (int j = 0; j < NT; ++j) {
            const uint32_t from[2] = {FROM_ZERO ? 0u : acc[i][j][0], FROM_ZERO ? 0u : acc[i][j][1]};
            mma_half_16816(acc[i][j], a[i], b[j], from);
        }
    }
}

// Four of the bytes a (0 to 3) and b (4 to 7), by the four lower nibbles of the selector. A nibble with its upper bit set gives the
// sign of the byte that its other bits name, eight times.
GPU_FN uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}

GPU_FN float bits_to_float(uint32_t u) { return __uint_as_float(u); }
GPU_FN uint32_t float_to_bits(float f) { return __float_as_uint(f); }
GPU_FN float fma_exact(float a, float b, float c) { return __fmaf_rn(a, b, c); }
GPU_FN float mul_exact(float a, float b) { return __fmul_rn(a, b); }
GPU_FN float add_exact(float a, float b) { return __fadd_rn(a, b); }
GPU_FN float reciprocal_exact(float a) { return __frcp_rn(a); }
GPU_FN float round_even(float a) { return rintf(a); }
GPU_FN float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// a times the reciprocal of b, for b from 1 up to 2^126, and infinity. The exact quotient is a branch and ten times as many
// instructions, which ptxas does not interleave with the next quotient's.
GPU_FN float divide_approx(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
GPU_FN float rsqrt_exact(float x) { return __frcp_rn(__fsqrt_rn(x)); }
GPU_FN float exp_exact(float x) { return expf(x); }
GPU_FN float tanh_exact(float x) { return tanhf(x); }

// Two floats to a bf16 pair, each rounded to nearest even; `lo` in the low half.
GPU_FN uint32_t pack_bf16x2(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
// The same to an fp16 pair; what is larger than 65,504 becomes infinite.
GPU_FN uint32_t pack_half2(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}
GPU_FN float half_lo(uint32_t pair) {
    float f;
    asm("{ .reg .f16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, lo; }" : "=f"(f) : "r"(pair));
    return f;
}
GPU_FN float half_hi(uint32_t pair) {
    float f;
    asm("{ .reg .f16 lo, hi; mov.b32 {lo, hi}, %1; cvt.f32.f16 %0, hi; }" : "=f"(f) : "r"(pair));
    return f;
}
// 16 bytes of gmem by one instruction. Of an assignment nvcc makes four where the address is also stored to by parts, on another
// path: each lane's 4 x 4 bytes, each time a part of every sector.
GPU_FN void store_vector(uint4 *to, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
GPU_FN void store_vector(float4 *to, float4 v) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
// To shared memory under a predicate. Behind an `if`, nvcc puts all that the value is made of there, too.
GPU_FN void store_shared_if(bool applies, uint4 *to, uint4 v) {
    asm volatile(
        "{ .reg .pred applies; setp.ne.u32 applies, %0, 0; @applies st.shared.v4.u32 [%1], {%2, %3, %4, %5}; }" ::"r"((uint32_t)applies),
        "r"(smem_address(to)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
        : "memory");
}
GPU_FN void atomic_add(uint32_t *p, uint32_t v) { atomicAdd(p, v); }
// Counts *p up, from n - 1 to 0 again, and returns what it was. Who counts sees what was written before every earlier count,
// by the threads that counted and by those that had met them at a barrier (release and acquire, of the whole GPU).
GPU_FN uint32_t atomic_count(uint32_t *p, uint32_t n) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(n - 1) : "memory");
    return before;
}

} // namespace gpu

#else
// ---------------------------------------------------------------------------------------------- 3. the emulator

// The contract with src/device/emulator/runtime.rs; the two must be changed together.
extern "C" {
struct emu_cta {
    uint32_t cta[3];       // this CTA's place in the grid
    uint32_t num_ctas[3];  // the grid
    void *smem;            // its dynamic shared memory, 1024-byte aligned
};
struct emu_thread {
    const emu_cta *cta;
    uint32_t thread;       // 0 .. CTA size
};
// Where a primitive was called: the emulator names it in errors and compares it across a warp. A constructor, because
// the builtins mean the place of the call only as default arguments of a function, not inside an initializer list.
struct emu_site {
    const char *file;
    int line;
    constexpr emu_site(const char *f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};
// What the runtime offers. `self` is the calling thread.
struct emu_runtime {
    void (*sync_cta)(emu_thread *self, const emu_site *);
    void (*sync_warp)(emu_thread *self, const emu_site *);
    void (*shfl_xor)(emu_thread *self, uint32_t *value, uint32_t mask, const emu_site *);
    void (*cp_async)(emu_thread *self, void *dst, const void *src, uint32_t bytes, uint32_t valid_bytes, const emu_site *);
    void (*cp_async_commit)(emu_thread *self);
    void (*cp_async_wait)(emu_thread *self, uint32_t pending, const emu_site *);
    void (*ldmatrix)(emu_thread *self, uint32_t *frag, const void *const *rows, uint32_t tiles, uint32_t trans, const emu_site *);
    void (*mma)(emu_thread *self, float *acc, const uint32_t *a, const uint32_t *b, uint32_t mt, uint32_t nt, const emu_site *);
    void (*mma_half)(emu_thread *self, uint32_t *acc, const uint32_t *a, const uint32_t *b, uint32_t mt, uint32_t nt, const emu_site *);
};
extern const emu_runtime *schnell_emu_runtime;
extern thread_local emu_thread *schnell_emu_self __attribute__((tls_model("initial-exec")));
}

#define GPU_KERNEL(name, Params, threads, min_ctas)                                                 \
    static void name##_body(const Params &p);                                                       \
    extern "C" void name(const void *params) { name##_body(*static_cast<const Params *>(params)); } \
    static void name##_body(const Params &p)

// A primitive's last parameter, filled in at the place of the call.
#define EMU_SITE const emu_site &site = emu_site()

namespace gpu {

GPU_FN int thread_x() { return (int)schnell_emu_self->thread; }
GPU_FN int thread_x_anew() { return thread_x(); }
GPU_FN int thread_x_reread() { return thread_x(); }
GPU_FN int lane_id() { return thread_x() & 31; }
GPU_FN int lane_id_register() { return lane_id(); }
GPU_FN int warp_id() { return thread_x() >> 5; }
GPU_FN int cta_x() { return (int)schnell_emu_self->cta->cta[0]; }
GPU_FN int cta_x_reread() { return cta_x(); }
GPU_FN int cta_y() { return (int)schnell_emu_self->cta->cta[1]; }
GPU_FN int cta_z() { return (int)schnell_emu_self->cta->cta[2]; }
GPU_FN int num_ctas_x() { return (int)schnell_emu_self->cta->num_ctas[0]; }

template <typename T> GPU_FN T &shared() { return *static_cast<T *>(schnell_emu_self->cta->smem); }

GPU_FN void sync_cta(EMU_SITE) { schnell_emu_runtime->sync_cta(schnell_emu_self, &site); }
GPU_FN void sync_warp(EMU_SITE) { schnell_emu_runtime->sync_warp(schnell_emu_self, &site); }
GPU_FN uint32_t shfl_xor(uint32_t v, int mask, EMU_SITE) {
    schnell_emu_runtime->shfl_xor(schnell_emu_self, &v, (uint32_t)mask, &site);
    return v;
}
GPU_FN float shfl_xor(float v, int mask, EMU_SITE) {
    uint32_t u;
    memcpy(&u, &v, 4);
    schnell_emu_runtime->shfl_xor(schnell_emu_self, &u, (uint32_t)mask, &site);
    memcpy(&v, &u, 4);
    return v;
}

template <int BYTES> GPU_FN void cp_async(void *dst, const void *src, int valid_bytes, EMU_SITE) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    schnell_emu_runtime->cp_async(schnell_emu_self, dst, src, BYTES, (uint32_t)valid_bytes, &site);
}
GPU_FN void cp_async16_or_zeros(void *dst, const void *src, uint32_t exists, EMU_SITE) {
    schnell_emu_runtime->cp_async(schnell_emu_self, dst, src, 16, exists != 0 ? 16 : 0, &site);
}
GPU_FN void cp_async_commit() { schnell_emu_runtime->cp_async_commit(schnell_emu_self); }
template <int N> GPU_FN void cp_async_wait(EMU_SITE) { schnell_emu_runtime->cp_async_wait(schnell_emu_self, N, &site); }

template <int N> GPU_FN void ldmatrix_x4_tile(uint32_t (&frag)[N][4], const void *const (&row)[N], EMU_SITE) {
    schnell_emu_runtime->ldmatrix(schnell_emu_self, &frag[0][0], row, N, 0, &site);
}
template <int N> GPU_FN void ldmatrix_x4_trans_tile(uint32_t (&frag)[N][4], const void *const (&row)[N], EMU_SITE) {
    schnell_emu_runtime->ldmatrix(schnell_emu_self, &frag[0][0], row, N, 1, &site);
}
template <int MT, int NT> GPU_FN void mma_tile(float (&acc)[MT][NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2], EMU_SITE) {
    schnell_emu_runtime->mma(schnell_emu_self, &acc[0][0][0], &a[0][0], &b[0][0], MT, NT, &site);
}
template <int MT, int NT, bool FROM_ZERO = false>
GPU_FN void mma_half_tile(uint32_t (&acc)[MT][NT][2], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2], EMU_SITE) {
    if (FROM_ZERO) memset(acc, 0, sizeof acc);
    schnell_emu_runtime->mma_half(schnell_emu_self, &acc[0][0][0], &a[0][0], &b[0][0], MT, NT, &site);
}

GPU_FN uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = selector >> (4 * i), byte = (uint32_t)(bytes >> (nibble & 7u) * 8) & 0xffu;
        d |= (nibble & 8u ? (byte & 0x80u ? 0xffu : 0u) : byte) << (8 * i);
    }
    return d;
}

GPU_FN float bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
GPU_FN uint32_t float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
GPU_FN float fma_exact(float a, float b, float c) { return fmaf(a, b, c); }
GPU_FN float mul_exact(float a, float b) { return a * b; }
GPU_FN float add_exact(float a, float b) { return a + b; }
GPU_FN float reciprocal_exact(float a) { return 1.0f / a; }
GPU_FN float round_even(float a) { return rintf(a); }
GPU_FN float exp2_approx(float x) { return exp2f(x); }
GPU_FN float divide_approx(float a, float b) { return a / b; }
GPU_FN float rsqrt_exact(float x) { return 1.0f / sqrtf(x); }
GPU_FN float exp_exact(float x) { return expf(x); }
GPU_FN float tanh_exact(float x) { return tanhf(x); }

GPU_FN uint32_t bf16_round(float f) {
    uint32_t u = float_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffu; // the canonical NaN, as the GPU's conversion gives
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}
GPU_FN uint32_t pack_bf16x2(float lo, float hi) { return bf16_round(lo) | bf16_round(hi) << 16; }
GPU_FN uint32_t half_round(float f) {
    const uint32_t u = float_to_bits(f), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu; // the canonical NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; // from half a step above 65,504 on
    if (magnitude >= 0x38800000u) return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Below 2^-14 fp16's steps are 2^-24, which are those of floats from 0.5 to 1.
    return sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u);
}
GPU_FN uint32_t pack_half2(float lo, float hi) { return half_round(lo) | half_round(hi) << 16; }
GPU_FN float half_to_float(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}
GPU_FN float half_lo(uint32_t pair) { return half_to_float(pair & 0xffffu); }
GPU_FN float half_hi(uint32_t pair) { return half_to_float(pair >> 16); }
GPU_FN void store_vector(uint4 *to, uint4 v) { *to = v; }
GPU_FN void store_vector(float4 *to, float4 v) { *to = v; }
GPU_FN void store_shared_if(bool applies, uint4 *to, uint4 v) {
    if (applies) *to = v;
}
GPU_FN void atomic_add(uint32_t *p, uint32_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
GPU_FN uint32_t atomic_count(uint32_t *p, uint32_t n) {
    uint32_t before = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &before, before >= n - 1 ? 0 : before + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {}
    return before;
}

} // namespace gpu
#endif

// ---------------------------------------------------------------------------------------------- 4. built on the above

namespace gpu {

GPU_FN float bf16_to_float(bf16_bits b) { return bits_to_float((uint32_t)b << 16); }
GPU_FN float bf16_lo(uint32_t pair) { return bits_to_float(pair << 16); }
GPU_FN float bf16_hi(uint32_t pair) { return bits_to_float(pair & 0xffff0000u); }
GPU_FN bf16_bits float_to_bf16(float f) { return (bf16_bits)(pack_bf16x2(f, 0.0f) & 0xffffu); }

// The sum, or the maximum, over the lanes of a warp that differ in the bits of `LANES - 1`; every lane gets it.
// The tree is fixed, so the bits do not depend on who arrives first.
template <int LANES = 32> GPU_FN float warp_sum(float v) {
    GPU_UNROLL
    for (int mask = LANES / 2; mask > 0; mask /= 2) v = add_exact(v, shfl_xor(v, mask));
    return v;
}
template <int LANES = 32> GPU_FN float warp_max(float v) {
    GPU_UNROLL
    for (int mask = LANES / 2; mask > 0; mask /= 2) v = max(v, shfl_xor(v, mask));
    return v;
}

// exp(x), within 2^-22 and 1e-7 |x| of it, of two instructions: expf is eight.
GPU_FN float exp_approx(float x) { return exp2_approx(x * 1.4426950408889634f); }
// Below -87 the divisor passes 2^126, and a GPU may make 0 of a result of some 1e-36.
GPU_FN float silu(float x) { return divide_approx(x, 1.0f + exp_approx(-x)); }
GPU_FN bool is_finite(float f) { return (float_to_bits(f) & 0x7f800000u) != 0x7f800000u; }
GPU_FN float quick_gelu(float x) { return divide_approx(x, 1.0f + exp_approx(-1.702f * x)); }
// 0.5 x (1 + tanh u) = x sigmoid(2 u): no tanh, whose expansion cost the GEMM's epilogue registers it did not have.
GPU_FN float gelu_tanh(float x) { return divide_approx(x, 1.0f + exp_approx(-1.5957691216057308f * (x + 0.044715f * x * x * x))); }
// 0.5 x (1 + erf(x / sqrt(2))) = max(x, 0) - |x| F(-|x|), where F is the normal distribution: 2 to the power of a polynomial, which was
// fitted to log2 F on 0 to 6 (ours; weighted least squares until the largest error is least) and falls ever faster beyond. Within
// 3.4e-6 of the result's size and 4.7e-7; erff is four times as many instructions.
GPU_FN float gelu_erf(float x) {
    const float t = x < 0.0f ? -x : x;
    float log2_f = -1.5429502e-06f;
    log2_f = fma_exact(log2_f, t, 5.6941106e-05f);
    log2_f = fma_exact(log2_f, t, -9.0174552e-04f);
    log2_f = fma_exact(log2_f, t, 8.4212506e-03f);
    log2_f = fma_exact(log2_f, t, -5.3829104e-02f);
    log2_f = fma_exact(log2_f, t, -4.5855606e-01f);
    log2_f = fma_exact(log2_f, t, -1.1512278f);
    log2_f = fma_exact(log2_f, t, -9.9999619e-01f);
    return fma_exact(-t, exp2_approx(log2_f), x < 0.0f ? 0.0f : x);
}

} // namespace gpu

#endif
