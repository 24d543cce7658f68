//! The arithmetic of a warp's `mma_tile`: bf16 operands gathered from 32 lanes, f32 products and sums in ascending k. And of its
//! `mma_half_tile`: fp16 operands and accumulators; products are exact in f32, where they are summed, from the accumulator on, and
//! each sum of 16 is rounded to fp16 once.
//!
//! This is where an emulated GEMM spends its time, so it is written for the vectorizer: rows of B stay in L1, one row
//! of accumulators stays in vector registers. Products and sums are separate operations (no FMA), so the bits do not
//! depend on the host's instruction set.

use half::f16;

const WARP: usize = 32;
/// The widest warp tile that a kernel may ask for: 16 * 8 rows, 8 * 16 columns.
const MAX_MT: usize = 8;
const MAX_NT: usize = 16;

/// What a tile's operands and accumulators are.
pub(super) trait Numbers {
    /// An accumulator; a lane's lie one behind the other.
    type Acc: Copy;
    /// The two operands in a register, low half first.
    fn unpack(pair: u32) -> (f32, f32);
    /// Accumulators as f32 and back.
    fn read(acc: Self::Acc) -> f32;
    fn rounded(sum: f32) -> Self::Acc;
}

/// Operands in bf16, accumulators in f32.
pub(super) struct Bf16;

impl Numbers for Bf16 {
    type Acc = f32;

    #[inline(always)]
    fn unpack(pair: u32) -> (f32, f32) {
        (f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000))
    }

    #[inline(always)]
    fn read(acc: f32) -> f32 {
        acc
    }

    #[inline(always)]
    fn rounded(sum: f32) -> f32 {
        sum
    }
}

/// Everything in fp16.
pub(super) struct Half;

impl Numbers for Half {
    type Acc = f16;

    #[inline(always)]
    fn unpack(pair: u32) -> (f32, f32) {
        (Half::read(f16::from_bits(pair as u16)), Half::read(f16::from_bits((pair >> 16) as u16)))
    }

    /// [`f16::to_f32`], for the vectorizer.
    #[inline(always)]
    fn read(acc: f16) -> f32 {
        let (sign, magnitude) = (u32::from(acc.to_bits() & 0x8000) << 16, u32::from(acc.to_bits() & 0x7fff));
        // Exponents are 112 less; those of infinities and NaNs are the greatest in both.
        let finite = (f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000)).to_bits();
        let special = 0x7f80_0000 | magnitude << 13;
        f32::from_bits(sign | if magnitude >= 0x7c00 { special } else { finite })
    }

    /// [`f16::from_f32`], for the vectorizer: to nearest even.
    #[inline(always)]
    fn rounded(sum: f32) -> f16 {
        let (sign, magnitude) = ((sum.to_bits() >> 16 & 0x8000) as u16, sum.to_bits() & 0x7fff_ffff);
        // Of what is no normal number it is nonsense, which is not taken.
        let normal = magnitude.wrapping_sub(0x3800_0000).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
        // Below 2^-14 steps are 2^-24, which are those of f32 from 0.5 to 1.
        let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let bits = match magnitude {
            0x7f80_0001.. => 0x7fff,
            0x477f_f000.. => 0x7c00,
            0x3880_0000.. => normal,
            _ => small,
        };
        f16::from_bits(sign | bits as u16)
    }
}

/// `acc += a . b` for a tile of `mt` x `nt` m16n8k16 fragments; lane l's fragments are at index l.
///
/// # Safety
/// Each lane's pointers are valid for `4 mt nt` accumulators, `4 mt` and `2 nt` words, and no two lanes' accumulators overlap.
pub(super) unsafe fn mma<N: Numbers>(
    acc: &[*mut N::Acc; WARP],
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
        unsafe { mma_avx2::<N>(acc, a, b, mt, nt) };
        return Ok(());
    }
    // SAFETY: the pointers are the caller's promise.
    unsafe { mma_any::<N>(acc, a, b, mt, nt) };
    Ok(())
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn mma_avx2<N: Numbers>(
    acc: &[*mut N::Acc; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) {
    // SAFETY: the pointers are the caller's promise.
    unsafe { mma_any::<N>(acc, a, b, mt, nt) }
}

#[inline(always)]
unsafe fn mma_any<N: Numbers>(
    acc: &[*mut N::Acc; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) {
    // SAFETY: the pointers are the caller's promise.
    unsafe {
        match nt {
            0..=4 => mma_of_width::<N, 32>(acc, a, b, mt, nt),
            5..=8 => mma_of_width::<N, 64>(acc, a, b, mt, nt),
            _ => mma_of_width::<N, { 8 * MAX_NT }>(acc, a, b, mt, nt),
        }
    }
}

/// `8 nt` of `WIDTH` columns count, the others are zeros: narrower rows are slower.
#[inline(always)]
unsafe fn mma_of_width<N: Numbers, const WIDTH: usize>(
    acc: &[*mut N::Acc; WARP],
    a: &[*const u32; WARP],
    b: &[*const u32; WARP],
    mt: usize,
    nt: usize,
) {
    let mut b_rows = [[0f32; WIDTH]; 16];
    for (lane, &b) in b.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        for j in 0..nt {
            for half in 0..2 {
                // SAFETY: 2 nt words per lane.
                let (lo, hi) = N::unpack(unsafe { *b.add(2 * j + half) });
                let k = 2 * t + 8 * half;
                b_rows[k][8 * j + g] = lo;
                b_rows[k + 1][8 * j + g] = hi;
            }
        }
    }
    for i in 0..mt {
        let mut a_tile = [[0f32; 16]; 16];
        for (lane, &a) in a.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            for part in 0..4 {
                // SAFETY: 4 mt words per lane.
                let (lo, hi) = N::unpack(unsafe { *a.add(4 * i + part) });
                let (row, k) = (g + 8 * (part & 1), 2 * t + 8 * (part >> 1));
                a_tile[row][k] = lo;
                a_tile[row][k + 1] = hi;
            }
        }
        for (row, a_row) in a_tile.iter().enumerate() {
            let lanes = &acc[row % 8 * 4..row % 8 * 4 + 4];
            let base = 4 * i * nt + 2 * (row / 8);
            // SAFETY: 4 mt nt accumulators per lane; the four lanes of a row own disjoint columns.
            unsafe { row_product::<N, WIDTH>(lanes, base, nt, a_row, &b_rows) }
        }
    }
}

/// One row of accumulators: gathered from the four lanes that own it, multiplied, put back.
#[inline(always)]
unsafe fn row_product<N: Numbers, const WIDTH: usize>(
    lanes: &[*mut N::Acc],
    base: usize,
    nt: usize,
    a_row: &[f32; 16],
    b_rows: &[[f32; WIDTH]; 16],
) {
    let mut c = [0f32; WIDTH];
    // SAFETY: see `mma_any`.
    unsafe {
        for j in 0..nt {
            for t in 0..4 {
                let from = lanes[t].add(base + 4 * j);
                c[8 * j + 2 * t] = N::read(*from);
                c[8 * j + 2 * t + 1] = N::read(*from.add(1));
            }
        }
    }
    for (&x, b_row) in a_row.iter().zip(b_rows) {
        for n in 0..WIDTH {
            c[n] += x * b_row[n];
        }
    }
    // SAFETY: see `mma_any`.
    unsafe {
        for j in 0..nt {
            for t in 0..4 {
                let to = lanes[t].add(base + 4 * j);
                *to = N::rounded(c[8 * j + 2 * t]);
                *to.add(1) = N::rounded(c[8 * j + 2 * t + 1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `half`'s own conversions are the reference: all of fp16, and around every boundary between two of them.
    #[test]
    fn halves_are_read_and_rounded_as_ieee_says() {
        let same = |a: f16, b: f16| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let (got, want) = (Half::read(half), half.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}: {got}");
            // It and the middle to the next one, where there is one, and the floats beside them.
            let middle = half.to_f32() as f64
                + (f16::from_bits(bits.wrapping_add(1)).to_f32() as f64 - half.to_f32() as f64) / 2.0;
            for (near, step) in
                [half.to_f32(), middle as f32].into_iter().flat_map(|f| [-1, 0, 1].map(|step| (f, step)))
            {
                let f = f32::from_bits(near.to_bits().wrapping_add_signed(step));
                assert!(same(Half::rounded(f), f16::from_f32(f)), "{f:e}: {:?}", Half::rounded(f));
            }
        }
        for f in [65_519.99, 65_520.0, f32::MAX, f32::INFINITY, f32::NAN, 1e-30] {
            assert!(
                same(Half::rounded(f), f16::from_f32(f)) && same(Half::rounded(-f), f16::from_f32(-f)),
                "{f:e}"
            );
        }
    }
}
