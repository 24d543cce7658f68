//! Sums of products as the engine makes them, in the layout of its accumulators.

use super::{K, M};

/// The row of the warpgroup's tile that a thread's registers hold: PTX ISA, "Register Fragments for wgmma.mma_async".
pub(super) fn row_of(thread: usize, upper: usize) -> usize {
    16 * (thread / 32) + thread % 32 / 4 + 8 * upper
}

pub(super) fn multiply_add(acc: &mut [f32], a: &[f32], b: &[f32], n: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was just detected.
        return unsafe { multiply_add_avx2(acc, a, b, n) };
    }
    multiply_add_any(acc, a, b, n);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_add_avx2(acc: &mut [f32], a: &[f32], b: &[f32], n: usize) {
    multiply_add_any(acc, a, b, n)
}

#[inline(always)]
fn multiply_add_any(acc: &mut [f32], a: &[f32], b: &[f32], n: usize) {
    for row in 0..M {
        let a_row = &a[row * K..][..K];
        match n {
            256 => row_product::<256>(acc, row, a_row, b),
            128 => row_product::<128>(acc, row, a_row, b),
            _ => row_product::<64>(acc, row, a_row, b),
        }
    }
}

/// One row of accumulators: gathered from the four threads that own it, multiplied, put back.
#[inline(always)]
fn row_product<const N: usize>(acc: &mut [f32], row: usize, a_row: &[f32], b: &[f32]) {
    let (first, upper) = (row / 16 * 32 + row % 8 * 4, row % 16 / 8);
    let place = |column: usize| (first + column % 8 / 2) * (N / 2) + column / 8 * 4 + 2 * upper + column % 2;
    let mut c = [0f32; N];
    for (column, c) in c.iter_mut().enumerate() {
        *c = acc[place(column)];
    }
    for (k, &x) in a_row.iter().enumerate() {
        let b_row = &b[k * N..][..N];
        for column in 0..N {
            c[column] += x * b_row[column];
        }
    }
    for (column, c) in c.iter().enumerate() {
        acc[place(column)] = *c;
    }
}
