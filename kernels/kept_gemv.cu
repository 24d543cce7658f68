// kept_gemv: gemv with weights in few bits, as files hold them                      f32 x, kept w, f32 out; m <= 8
//
// Work    as gemv, whose loop it is. A lane has 32 codes of a row and their scales.
// Layout  operands/kept_rows.cuh; what codes mean: kept.cuh.
// Bound   memory, all of it weights: k bits / 8 bytes a row and the scales, read once.
#include "gemv.cuh"
#include "operands/kept_rows.cuh"

#define KEPT_GEMV(entry, form, rows) \
    GPU_KERNEL(entry, gemv_params, GEMV_THREADS, 2) { gemv::run<rows, gemv::KeptRows<kept::form, gemv::ROWS, gemv::CHUNK>>(p); }
KEPT_GEMV(gemv_q8_0_m1, Q8_0, 1)
KEPT_GEMV(gemv_q8_0_m4, Q8_0, 4)
KEPT_GEMV(gemv_q8_0_m8, Q8_0, 8)
KEPT_GEMV(gemv_f8_e4m3_m1, F8_E4M3, 1)
KEPT_GEMV(gemv_f8_e4m3_m4, F8_E4M3, 4)
KEPT_GEMV(gemv_f8_e4m3_m8, F8_E4M3, 8)
KEPT_GEMV(gemv_f8_e5m2_m1, F8_E5M2, 1)
KEPT_GEMV(gemv_f8_e5m2_m4, F8_E5M2, 4)
KEPT_GEMV(gemv_f8_e5m2_m8, F8_E5M2, 8)
KEPT_GEMV(gemv_q6_k_m1, Q6_K, 1)
KEPT_GEMV(gemv_q6_k_m4, Q6_K, 4)
KEPT_GEMV(gemv_q6_k_m8, Q6_K, 8)
KEPT_GEMV(gemv_q5_k_m1, Q5_K, 1)
KEPT_GEMV(gemv_q5_k_m4, Q5_K, 4)
KEPT_GEMV(gemv_q5_k_m8, Q5_K, 8)
KEPT_GEMV(gemv_q5_0_m1, Q5_0, 1)
KEPT_GEMV(gemv_q5_0_m4, Q5_0, 4)
KEPT_GEMV(gemv_q5_0_m8, Q5_0, 8)
KEPT_GEMV(gemv_q5_1_m1, Q5_1, 1)
KEPT_GEMV(gemv_q5_1_m4, Q5_1, 4)
KEPT_GEMV(gemv_q5_1_m8, Q5_1, 8)
KEPT_GEMV(gemv_q4_k_m1, Q4_K, 1)
KEPT_GEMV(gemv_q4_k_m4, Q4_K, 4)
KEPT_GEMV(gemv_q4_k_m8, Q4_K, 8)
KEPT_GEMV(gemv_q4_0_m1, Q4_0, 1)
KEPT_GEMV(gemv_q4_0_m4, Q4_0, 4)
KEPT_GEMV(gemv_q4_0_m8, Q4_0, 8)
KEPT_GEMV(gemv_q4_1_m1, Q4_1, 1)
KEPT_GEMV(gemv_q4_1_m4, Q4_1, 4)
KEPT_GEMV(gemv_q4_1_m8, Q4_1, 8)
KEPT_GEMV(gemv_q3_k_m1, Q3_K, 1)
KEPT_GEMV(gemv_q3_k_m4, Q3_K, 4)
KEPT_GEMV(gemv_q3_k_m8, Q3_K, 8)
KEPT_GEMV(gemv_q2_k_m1, Q2_K, 1)
KEPT_GEMV(gemv_q2_k_m4, Q2_K, 4)
KEPT_GEMV(gemv_q2_k_m8, Q2_K, 8)
