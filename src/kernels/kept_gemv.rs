//! The entry points of [`gemv`](super::gemv) for weights in the few bits that their file has them in; `kernels/kept_gemv.cu`.

use super::kept::Format;
use super::kernel;
use crate::abi;
use crate::device::Kernel;

macro_rules! kept {
    ($($format:ident: $m1:ident $m1_entry:ident, $m4:ident $m4_entry:ident, $m8:ident $m8_entry:ident;)*) => {
        $(
            kernel!(#[doc = "1 row."]
                $m1, "kept_gemv", $m1_entry, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M1);
            kernel!(#[doc = "Up to 4 rows."]
                $m4, "kept_gemv", $m4_entry, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M4);
            kernel!(#[doc = "Up to 8 rows."]
                $m8, "kept_gemv", $m8_entry, abi::GEMV_THREADS, abi::GEMV_SMEM_BYTES_M8);
        )*

        /// Of one format, for 1 row, 4 and 8.
        pub fn entries(format: Format) -> [&'static Kernel; 3] {
            match format {
                $(Format::$format => [&$m1, &$m4, &$m8],)*
            }
        }
    };
}

kept! {
    Q8_0: Q8_0_M1 gemv_q8_0_m1, Q8_0_M4 gemv_q8_0_m4, Q8_0_M8 gemv_q8_0_m8;
    F8E4M3: F8_E4M3_M1 gemv_f8_e4m3_m1, F8_E4M3_M4 gemv_f8_e4m3_m4, F8_E4M3_M8 gemv_f8_e4m3_m8;
    F8E5M2: F8_E5M2_M1 gemv_f8_e5m2_m1, F8_E5M2_M4 gemv_f8_e5m2_m4, F8_E5M2_M8 gemv_f8_e5m2_m8;
    Q6K: Q6_K_M1 gemv_q6_k_m1, Q6_K_M4 gemv_q6_k_m4, Q6_K_M8 gemv_q6_k_m8;
    Q5K: Q5_K_M1 gemv_q5_k_m1, Q5_K_M4 gemv_q5_k_m4, Q5_K_M8 gemv_q5_k_m8;
    Q5_0: Q5_0_M1 gemv_q5_0_m1, Q5_0_M4 gemv_q5_0_m4, Q5_0_M8 gemv_q5_0_m8;
    Q5_1: Q5_1_M1 gemv_q5_1_m1, Q5_1_M4 gemv_q5_1_m4, Q5_1_M8 gemv_q5_1_m8;
    Q4K: Q4_K_M1 gemv_q4_k_m1, Q4_K_M4 gemv_q4_k_m4, Q4_K_M8 gemv_q4_k_m8;
    Q4_0: Q4_0_M1 gemv_q4_0_m1, Q4_0_M4 gemv_q4_0_m4, Q4_0_M8 gemv_q4_0_m8;
    Q4_1: Q4_1_M1 gemv_q4_1_m1, Q4_1_M4 gemv_q4_1_m4, Q4_1_M8 gemv_q4_1_m8;
    Q3K: Q3_K_M1 gemv_q3_k_m1, Q3_K_M4 gemv_q3_k_m4, Q3_K_M8 gemv_q3_k_m8;
    Q2K: Q2_K_M1 gemv_q2_k_m1, Q2_K_M4 gemv_q2_k_m4, Q2_K_M8 gemv_q2_k_m8;
}

/// The entry for `m` rows.
pub fn entry(format: Format, m: usize) -> &'static Kernel {
    let [m1, m4, m8] = entries(format);
    match m {
        1 => m1,
        2..=4 => m4,
        _ => m8,
    }
}
