//! What every primitive of `kernels/gpu.cuh` does, as words in memory: the net under the emulator.
//!
//! A [`Primitive`] is one of them, or some of a kind, with its inputs. `tests/probe.rs` compares the emulator's words with what the
//! PTX ISA says; `gpu-check probe` compares a GPU's with the emulator's. A [`Fault`] is what a kernel must not do.

use super::{check_len, kernel, to_i32};
use crate::abi;
use crate::device::{Config, Device, Footprint, Kernel, StreamId, View};
use crate::{Error, Result};

const THREADS: usize = abi::PROBE_THREADS as usize;
const GRID: [u32; 3] = [3, 2, 2];
const COUNTING_CTAS: u32 = 12;

macro_rules! probe {
    ($($name:ident = $entry:ident),* $(,)?) => {
        $(kernel!(
            /// See [`Primitive`] or [`Fault`].
            $name, "probe", $entry, abi::PROBE_THREADS, abi::PROBE_SMEM_BYTES
        );)*
    };
}

probe!(
    ECHO = probe_echo,
    INDEX = probe_index,
    COUNT = probe_count,
    WARP = probe_warp,
    CP_ASYNC = probe_cp_async,
    PIPELINE = probe_pipeline,
    LDMATRIX = probe_ldmatrix,
    MMA_1X1 = probe_mma_1x1,
    MMA_1X3 = probe_mma_1x3,
    MMA_2X4 = probe_mma_2x4,
    MMA_4X8 = probe_mma_4x8,
    MMA_HALF_1X8 = probe_mma_half_1x8,
    MMA_HALF_2X3 = probe_mma_half_2x3,
    MATH = probe_math,
    DEADLOCK = probe_fault_deadlock,
    DIVERGENT = probe_fault_divergent,
    EARLY_EXIT = probe_fault_early_exit,
    FAR_SOURCE = probe_fault_far_source,
    FAR_TARGET = probe_fault_far_target,
    MISALIGNED = probe_fault_misaligned,
    NO_WAIT = probe_fault_no_wait,
    WILD_STORE = probe_fault_wild_store,
    NULL = probe_fault_null,
    DIVIDE = probe_fault_divide,
    LARGE_LOCALS = probe_fault_large_locals,
    ENDLESS = probe_fault_endless,
    RACE = probe_fault_race,
    ACCESSES = probe_accesses,
);

/// One family of primitives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// Each field of a params struct, as the kernel received it.
    Echo,
    /// Thread, lane, warp and CTA indices over a grid in three dimensions; `sync_cta`; `atomic_add`.
    Index,
    /// `atomic_count`: what one CTA has written, another reads.
    Count,
    /// `shfl_xor`, `warp_sum`, `warp_max`, `sync_warp`.
    Warp,
    /// `cp_async` of 4, 8 and 16 bytes, with every number of valid bytes.
    CpAsync,
    /// Rings of 2 to 5 slots: `cp_async_wait` of 0 to 3.
    Pipeline,
    /// `ldmatrix_x4_tile` and its transposed twin.
    LdMatrix,
    /// `mma_tile` of so many fragments of 16 rows and of 8 columns.
    Mma(usize, usize),
    /// `mma_half_tile`, likewise; its accumulators, then those of its first step from zero.
    MmaHalf(usize, usize),
    /// Arithmetic: the first [`Primitive::EXACT_MATH_WORDS`] words of an element are exact, the others approximate.
    Math,
}

impl Primitive {
    /// All of them.
    pub const ALL: [Primitive; 14] = [
        Primitive::Echo,
        Primitive::Index,
        Primitive::Count,
        Primitive::Warp,
        Primitive::CpAsync,
        Primitive::Pipeline,
        Primitive::LdMatrix,
        Primitive::Mma(1, 1),
        Primitive::Mma(1, 3),
        Primitive::Mma(2, 4),
        Primitive::Mma(4, 8),
        Primitive::MmaHalf(1, 8),
        Primitive::MmaHalf(2, 3),
        Primitive::Math,
    ];

    /// How many of an element's `PROBE_MATH_WORDS` words are the same bits on every machine.
    pub const EXACT_MATH_WORDS: usize = 16;

    /// The entry point, which is the primitive's name, too.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a size of `mma_tile` or `mma_half_tile` that has no entry.
    pub fn kernel(self) -> Result<&'static Kernel> {
        Ok(match self {
            Primitive::Echo => &ECHO,
            Primitive::Index => &INDEX,
            Primitive::Count => &COUNT,
            Primitive::Warp => &WARP,
            Primitive::CpAsync => &CP_ASYNC,
            Primitive::Pipeline => &PIPELINE,
            Primitive::LdMatrix => &LDMATRIX,
            Primitive::Mma(1, 1) => &MMA_1X1,
            Primitive::Mma(1, 3) => &MMA_1X3,
            Primitive::Mma(2, 4) => &MMA_2X4,
            Primitive::Mma(4, 8) => &MMA_4X8,
            Primitive::MmaHalf(1, 8) => &MMA_HALF_1X8,
            Primitive::MmaHalf(2, 3) => &MMA_HALF_2X3,
            Primitive::Mma(mt, nt) | Primitive::MmaHalf(mt, nt) => {
                return Err(Error::Unsupported(format!("probe: no entry for mma {mt} x {nt}")));
            }
            Primitive::Math => &MATH,
        })
    }

    /// The size of the grid that [`Primitive::launch`] uses; `num_inputs` words are given.
    pub fn grid(self, num_inputs: usize) -> [u32; 3] {
        match self {
            Primitive::Index => GRID,
            Primitive::Count => [COUNTING_CTAS, 1, 1],
            Primitive::Math => [(num_inputs / 3).div_ceil(THREADS) as u32, 1, 1],
            _ => [1, 1, 1],
        }
    }

    /// How many words the primitive reads; `Math` reads any number of threes.
    pub fn num_inputs(self) -> Option<usize> {
        match self {
            Primitive::Echo | Primitive::Index | Primitive::Count => Some(0),
            Primitive::Warp => Some(2 * THREADS),
            Primitive::CpAsync => Some(abi::PROBE_COPY_CASES as usize * THREADS * 4),
            Primitive::Pipeline => Some(abi::PROBE_PIPELINE_GROUPS as usize * THREADS * 4),
            Primitive::LdMatrix => Some(abi::PROBE_LDMATRIX_TILES as usize * 32 * 4),
            Primitive::Mma(mt, nt) => {
                let per_lane = abi::PROBE_MMA_STEPS as usize * (4 * mt + 2 * nt) + 4 * mt * nt;
                Some(per_lane * THREADS)
            }
            Primitive::MmaHalf(mt, nt) => {
                let per_lane = abi::PROBE_MMA_STEPS as usize * (4 * mt + 2 * nt) + 2 * mt * nt;
                Some(per_lane * THREADS)
            }
            Primitive::Math => None,
        }
    }

    /// How many words the primitive writes.
    pub fn num_outputs(self, num_inputs: usize) -> usize {
        match self {
            Primitive::Echo => abi::PROBE_ECHO_WORDS as usize,
            Primitive::Index => {
                1 + GRID.iter().product::<u32>() as usize * THREADS * abi::PROBE_INDEX_WORDS as usize
            }
            Primitive::Count => 1 + (COUNTING_CTAS as usize + 1) * THREADS,
            Primitive::Warp => THREADS * abi::PROBE_WARP_WORDS as usize,
            Primitive::CpAsync => abi::PROBE_COPY_CASES as usize * THREADS * 4,
            Primitive::Pipeline => {
                (abi::PROBE_PIPELINE_RINGS * abi::PROBE_PIPELINE_GROUPS) as usize * THREADS * 4
            }
            Primitive::LdMatrix => THREADS * abi::PROBE_LDMATRIX_TILES as usize * 4,
            Primitive::Mma(mt, nt) | Primitive::MmaHalf(mt, nt) => 4 * mt * nt * THREADS,
            Primitive::Math => num_inputs / 3 * abi::PROBE_MATH_WORDS as usize,
        }
    }

    /// Enqueues the primitive.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is too short.
    pub fn launch(
        self,
        device: &Device,
        stream: StreamId,
        input: &View<u32>,
        output: &View<u32>,
    ) -> Result<()> {
        let kernel = self.kernel()?;
        check_len(kernel.name, "input", input, self.num_inputs().unwrap_or(0))?;
        check_len(kernel.name, "output", output, self.num_outputs(input.len()))?;
        let grid = self.grid(input.len());
        let mut footprint = Footprint::new(device);
        if self == Primitive::Echo {
            let first_words = footprint.updates(output)?;
            let last_words = first_words + 4 * abi::PROBE_ECHO_WORDS as u64 / 2;
            let params = abi::probe_echo_params { first_words, last_words, ..echo() };
            // SAFETY: params is this entry's generated type; the kernel writes PROBE_ECHO_WORDS words, checked above.
            return unsafe { device.launch(stream, Config { kernel, grid }, &params, &footprint) };
        }
        let params = params(input, output, grid[1], &mut footprint)?;
        // SAFETY: the kernel reads `num_inputs` and writes `num_outputs` words, both checked above; `input` is a whole
        // number of 16-byte vectors from a 256-byte aligned allocation wherever cp.async reads it.
        unsafe { device.launch(stream, Config { kernel, grid }, &params, &footprint) }
    }
}

fn params(
    input: &View<u32>,
    output: &View<u32>,
    num_ctas_y: u32,
    footprint: &mut Footprint<'_>,
) -> Result<abi::probe_params> {
    Ok(abi::probe_params {
        input: footprint.reads(input)?,
        output: footprint.updates(output)?,
        num_input_words: to_i32("probe", "input words", input.len())?,
        num_ctas_y: num_ctas_y as i32,
    })
}

/// A different value in every field: two that were swapped would show.
fn echo() -> abi::probe_echo_params {
    abi::probe_echo_params {
        first_words: 0,
        last_words: 0,
        a_i64: -0x0102_0304_0506_0708,
        a_u64: 0xf1f2_f3f4_f5f6_f7f8,
        a_i32: -0x1121_3141,
        a_u32: 0xe1d1_c1b1,
        a_f32: -1234.5,
        an_array: [71, -72, 73],
        a_bf16: 0x3f81,
        a_i16: -321,
        a_u8: 0x9c,
        a_i8: -99,
        a_u16: 0xabcd,
    }
}

/// What a kernel must not do. The emulator names each; there is no GPU code for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Half a warp waits at a CTA barrier, the other half for its warp.
    Deadlock,
    /// Two halves of a warp in different collectives.
    Divergent,
    /// A thread returns while the others wait at a barrier.
    EarlyExit,
    /// cp.async from outside device memory.
    FarSource,
    /// cp.async to outside shared memory.
    FarTarget,
    /// cp.async of 16 bytes from an address that is not a multiple of 16.
    Misaligned,
    /// Reads what a cp.async has not delivered: correct on a lucky day.
    NoWait,
    /// A store far outside all memory.
    WildStore,
    /// A load from null.
    Null,
    /// An integer divided by zero.
    Divide,
    /// More locals than a fiber's stack has room for.
    LargeLocals,
    /// A loop that waits for what nobody will do.
    Endless,
    /// The last writer wins: no error, but a result that tells one schedule from another.
    Race,
}

impl Fault {
    /// Enqueues the fault over `num_ctas` CTAs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a GPU; [`Error::Internal`] when a view is too short.
    pub fn launch(self, device: &Device, num_ctas: u32, input: &View<u32>, output: &View<u32>) -> Result<()> {
        if !device.capability().is_emulator {
            return Err(Error::Unsupported("probe: faults are for the emulator".to_string()));
        }
        let kernel = match self {
            Fault::Deadlock => &DEADLOCK,
            Fault::Divergent => &DIVERGENT,
            Fault::EarlyExit => &EARLY_EXIT,
            Fault::FarSource => &FAR_SOURCE,
            Fault::FarTarget => &FAR_TARGET,
            Fault::Misaligned => &MISALIGNED,
            Fault::NoWait => &NO_WAIT,
            Fault::WildStore => &WILD_STORE,
            Fault::Null => &NULL,
            Fault::Divide => &DIVIDE,
            Fault::LargeLocals => &LARGE_LOCALS,
            Fault::Endless => &ENDLESS,
            Fault::Race => &RACE,
        };
        check_len(kernel.name, "input", input, THREADS + 4)?;
        check_len(kernel.name, "output", output, THREADS.max(1 + num_ctas as usize))?;
        let mut footprint = Footprint::new(device);
        let params = params(input, output, 1, &mut footprint)?;
        // SAFETY: plain loads and stores stay within the words checked above, but for those that the emulator turns into
        // errors: of pages that no process has. Wild addresses otherwise go to primitives only, which check them.
        unsafe {
            device.launch(StreamId::Compute, Config { kernel, grid: [num_ctas, 1, 1] }, &params, &footprint)
        }
    }
}

/// Enqueues one CTA of accesses whose cost is known. There is no GPU code for it.
///
/// # Errors
/// [`Error::Unsupported`] on a GPU; [`Error::Internal`] when a view is too short.
pub fn launch_accesses(device: &Device, input: &View<u32>, output: &View<u32>) -> Result<()> {
    if !device.capability().is_emulator {
        return Err(Error::Unsupported("probe: counted accesses are for the emulator".to_string()));
    }
    check_len("probe_accesses", "input", input, 8 * 32)?;
    check_len("probe_accesses", "output", output, THREADS + 1)?;
    let mut footprint = Footprint::new(device);
    let params = params(input, output, 1, &mut footprint)?;
    // SAFETY: params is this entry's generated type; the kernel reads 8 words per lane and writes one per thread and one
    // more, checked above; vectors are read from the start of a view, which allocations align.
    unsafe {
        device.launch(StreamId::Compute, Config { kernel: &ACCESSES, grid: [1, 1, 1] }, &params, &footprint)
    }
}
