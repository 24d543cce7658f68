// gemv: out[m, n] = act_out(sum_k act_in(x[m, k]) w[n, k] + bias[n]) + add[m, n]     f32 x, bf16 or NF4 w, f32 out; m <= 8
//
// Work    a warp owns 4 weight rows and reads 16 bytes per lane of each at a time; x, activated once per CTA, waits in
//         shared memory and is read once for the 4 rows:
//             chunk of 1024 k: | weights -> registers | x -> act_in -> smem | barrier | multiply | barrier |
// Layout  a lane's 16 bytes are V = 8 (bf16) or 32 (NF4) consecutive weights, so lanes want x at a stride of V floats.
//         smem therefore holds x by float4 j of a lane's V: at 32 j + (lane ^ (32 / V) j), free of bank conflicts both
//         ways: the 8 lanes that store together have 32 / V neighbors of the lane index and V / 4 of j.
// Bound   memory, all of it weights: at m = 1 2 (0.5625 with NF4) bytes per multiply-add.
// Source  NF4 weights become bf16(code * absmax) before they are multiplied, as in the GEMM. The code table lies in
//         shared memory once per bank: lanes look up different codes at the same time.
#include "gemv.cuh"
#include "operands/bf16_rows.cuh"
#include "operands/nf4_rows.cuh"

template <int M> GPU_FN void run_bf16(const gemv_params &p) { gemv::run<M, gemv::Bf16Rows<gemv::ROWS, gemv::CHUNK>>(p); }
template <int M> GPU_FN void run_nf4(const gemv_params &p) { gemv::run<M, gemv::Nf4Rows<gemv::ROWS, gemv::CHUNK>>(p); }

GPU_KERNEL(gemv_bf16_m1, gemv_params, GEMV_THREADS, 2) { run_bf16<1>(p); }
GPU_KERNEL(gemv_bf16_m2, gemv_params, GEMV_THREADS, 2) { run_bf16<2>(p); }
GPU_KERNEL(gemv_bf16_m4, gemv_params, GEMV_THREADS, 2) { run_bf16<4>(p); }
GPU_KERNEL(gemv_bf16_m8, gemv_params, GEMV_THREADS, 2) { run_bf16<8>(p); }
GPU_KERNEL(gemv_nf4_m1, gemv_params, GEMV_THREADS, 2) { run_nf4<1>(p); }
GPU_KERNEL(gemv_nf4_m2, gemv_params, GEMV_THREADS, 2) { run_nf4<2>(p); }
GPU_KERNEL(gemv_nf4_m4, gemv_params, GEMV_THREADS, 2) { run_nf4<4>(p); }
GPU_KERNEL(gemv_nf4_m8, gemv_params, GEMV_THREADS, 2) { run_nf4<8>(p); }
