//! The arithmetic of a warp's `mma_tile`: bf16 operands gathered from 32 lanes, f32 products and sums in ascending k.
//!
//! This is where an emulated GEMM spends its time, so it is written for the vectorizer: rows of B stay in L1, one row
//! of accumulators stays in vector registers. Products and sums are separate operations (no FMA), so the bits do not
//! depend on the host's instruction set.

const WARP: usize = 32;
/// The widest warp tile that a kernel may ask for: 16 * 8 rows, 8 * 16 columns.
const MAX_MT: usize = 8;
const MAX_NT: usize = 16;

/// `acc += a . b` for a tile of `mt` x `nt` m16n8k16 fragments; lane l's fragments are at index l.
///
/// # Safety
/// Each lane's pointers are valid for `4 mt nt`, `4 mt` and `2 nt` words, and no two lanes' accumulators overlap.
pub(super) unsafe fn mma(
    acc: &[*mut f32; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) -> Result<(), String> {
    if mt > MAX_MT || nt > MAX_NT {
        return Err(format!("mma_tile<{mt}, {nt}> is larger than the emulator's {MAX_MT} x {MAX_NT}"));
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was just detected; the pointers are the caller's promise.
        unsafe { mma_avx2(acc, a, b, mt, nt) };
        return Ok(());
    }
    // SAFETY: the pointers are the caller's promise.
    unsafe { mma_any(acc, a, b, mt, nt) };
    Ok(())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn mma_avx2(
    acc: &[*mut f32; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) {
    // SAFETY: the pointers are the caller's promise.
    unsafe { mma_any(acc, a, b, mt, nt) }
}

#[inline(always)]
unsafe fn mma_any(
    acc: &[*mut f32; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) {
    let mut b_rows = [0f32; 16 * MAX_NT * 8];
    let width = nt * 8;
    for (lane, &b) in b.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for j in 0..nt {
            for half in 0..2 {
                // SAFETY: 2 nt words per lane.
                let (lo, hi) = unpack(unsafe { *b.add(2 * j + half) });
                let k = 2 * t + 8 * half;
                b_rows[k * width + 8 * j + g] = lo;
                b_rows[(k + 1) * width + 8 * j + g] = hi;
            }
        }
    }
    for i in 0..mt {
        let mut a_tile = [[0f32; 16]; 16];
        for (lane, &a) in a.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            for part in 0..4 {
                // SAFETY: 4 mt words per lane.
                let (lo, hi) = unpack(unsafe { *a.add(4 * i + part) });
                let (row, k) = (g + 8 * (part & 1), 2 * t + 8 * (part >> 1));
                a_tile[row][k] = lo;
                a_tile[row][k + 1] = hi;
            }
        }
        for (row, a_row) in a_tile.iter().enumerate() {
            let lanes = &acc[row % 8 * 4..row % 8 * 4 + 4];
            let base = 4 * i * nt + 2 * (row / 8);
            // SAFETY: 4 mt nt words per lane; the four lanes of a row own disjoint columns.
            unsafe {
                match nt {
                    16 => row_product::<128>(lanes, base, a_row, &b_rows),
                    8 => row_product::<64>(lanes, base, a_row, &b_rows),
                    4 => row_product::<32>(lanes, base, a_row, &b_rows),
                    2 => row_product::<16>(lanes, base, a_row, &b_rows),
                    1 => row_product::<8>(lanes, base, a_row, &b_rows),
                    _ => {
                        // Odd widths go column tile by column tile.
                        for j in 0..nt {
                            let mut columns = [0f32; 16 * 8];
                            for k in 0..16 {
                                columns[k * 8..k * 8 + 8]
                                    .copy_from_slice(&b_rows[k * width + 8 * j..k * width + 8 * j + 8]);
                            }
                            row_product::<8>(lanes, base + 4 * j, a_row, &columns);
                        }
                    }
                }
            }
        }
    }
}

/// One row of accumulators: gathered from the four lanes that own it, multiplied, put back.
#[inline(always)]
unsafe fn row_product<const WIDTH: usize>(
    lanes: &[*mut f32],
    base: usize,
    a_row: &[f32; 16],
    b_rows: &[f32],
) {
    let mut c = [0f32; WIDTH];
    // SAFETY: see `mma_any`.
    unsafe {
        for j in 0..WIDTH / 8 {
            for t in 0..4 {
                let from = lanes[t].add(base + 4 * j);
                c[8 * j + 2 * t] = *from;
                c[8 * j + 2 * t + 1] = *from.add(1);
            }
        }
    }
    for (k, &x) in a_row.iter().enumerate() {
        let b_row = &b_rows[k * WIDTH..(k + 1) * WIDTH];
        for n in 0..WIDTH {
            c[n] += x * b_row[n];
        }
    }
    // SAFETY: see `mma_any`.
    unsafe {
        for j in 0..WIDTH / 8 {
            for t in 0..4 {
                let to = lanes[t].add(base + 4 * j);
                *to = c[8 * j + 2 * t];
                *to.add(1) = c[8 * j + 2 * t + 1];
            }
        }
    }
}

/// The two bf16 values of a register, low half first.
#[inline(always)]
fn unpack(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
}
