//! What every primitive of `kernels/gpu_sm90.cuh` does, as words in memory: [`super::probe`] for Hopper.
//!
//! `tests/probe_sm90.rs` compares the emulator's words with what the PTX ISA says; `gpu-check probe` compares a Hopper
//! GPU's with the emulator's. A [`Fault`] is what a kernel must not do.

use super::{check_len, kernel, to_i32};
use crate::abi;
use crate::device::{Config, Device, Footprint, Kernel, NO_MAP, StreamId, TensorElement, TensorTile, View};
use crate::{Error, Result};

const THREADS: usize = abi::PROBE_SM90_THREADS as usize;
const M: usize = abi::PROBE_SM90_M as usize;
const BLOCK_K: usize = abi::PROBE_SM90_BLOCK_K as usize;
const K: usize = BLOCK_K * abi::PROBE_SM90_K_BLOCKS as usize;
const COPY_ROWS: usize = abi::PROBE_SM90_COPY_ROWS as usize;
const COPY_PITCH_BYTES: usize = abi::PROBE_SM90_COPY_PITCH_BYTES as usize;
const BOX_BYTES: usize = (abi::PROBE_SM90_BOX_ROWS * abi::PROBE_SM90_BOX_ROW_BYTES) as usize;

macro_rules! probe {
    ($($name:ident = $entry:ident),* $(,)?) => {
        $(kernel!(
            /// See [`Primitive`] or [`Fault`].
            $name, "probe_sm90", $entry, abi::PROBE_SM90_THREADS, abi::PROBE_SM90_SMEM_BYTES
        );)*
    };
}

probe!(
    BARRIERS = probe_sm90_barriers,
    COPIES = probe_sm90_copies,
    SS_N64 = probe_sm90_ss_n64,
    SS_N128 = probe_sm90_ss_n128,
    SS_N256 = probe_sm90_ss_n256,
    RS_N64 = probe_sm90_rs_n64,
    RS_N128 = probe_sm90_rs_n128,
    RS_N256 = probe_sm90_rs_n256,
    STORED = probe_sm90_stored,
    FAULT = probe_sm90_fault,
);

/// One family of primitives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Primitive {
    /// mbarriers: many phases, all threads and some.
    Barriers,
    /// `tma_load_2d` of bf16 and of bytes, with and without swizzle, inside, across edges and outside; `bulk_load`.
    Copies,
    /// `wgmma_m64k16` of this width, A from shared memory, in the mainloop of a GEMM.
    Shared(usize),
    /// The same, A from registers.
    Registers(usize),
    /// The same of operands that threads have stored.
    Stored,
}

/// So many columns has a product of stored operands.
const STORED_N: usize = 64;

impl Primitive {
    /// All of them.
    pub const ALL: [Primitive; 9] = [
        Primitive::Barriers,
        Primitive::Copies,
        Primitive::Shared(64),
        Primitive::Shared(128),
        Primitive::Shared(256),
        Primitive::Registers(64),
        Primitive::Registers(128),
        Primitive::Registers(256),
        Primitive::Stored,
    ];

    /// The entry point, whose name is the primitive's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a width that has no entry.
    pub fn kernel(self) -> Result<&'static Kernel> {
        Ok(match self {
            Primitive::Barriers => &BARRIERS,
            Primitive::Copies => &COPIES,
            Primitive::Shared(64) => &SS_N64,
            Primitive::Shared(128) => &SS_N128,
            Primitive::Shared(256) => &SS_N256,
            Primitive::Registers(64) => &RS_N64,
            Primitive::Registers(128) => &RS_N128,
            Primitive::Registers(256) => &RS_N256,
            Primitive::Stored => &STORED,
            Primitive::Shared(n) | Primitive::Registers(n) => {
                return Err(Error::Unsupported(format!("probe_sm90: no entry for a width of {n}")));
            }
        })
    }

    /// Columns of the product; 0 of a primitive that multiplies nothing.
    pub fn num_columns(self) -> usize {
        match self {
            Primitive::Barriers | Primitive::Copies => 0,
            Primitive::Shared(n) | Primitive::Registers(n) => n,
            Primitive::Stored => STORED_N,
        }
    }

    /// How many words the primitive reads. `Copies`: the matrix, then x and y of each box. Products: A, then B, bf16 pairs
    /// along k; `Stored`: that per round, of 64 values of k each.
    pub fn num_inputs(self) -> usize {
        match self {
            Primitive::Barriers => THREADS,
            Primitive::Copies => COPY_ROWS * COPY_PITCH_BYTES / 4 + 2 * abi::PROBE_SM90_BOXES as usize,
            Primitive::Shared(n) | Primitive::Registers(n) => (M + n) * K / 2,
            Primitive::Stored => abi::PROBE_SM90_STORED_ROUNDS as usize * (M + STORED_N) * BLOCK_K / 2,
        }
    }

    /// How many words the primitive writes. `Copies`: each target as it lies in shared memory. Products: per consumer and
    /// register, the 128 threads' words.
    pub fn num_outputs(self) -> usize {
        match self {
            Primitive::Barriers => {
                (abi::PROBE_SM90_BARRIER_ROUNDS * abi::PROBE_SM90_BARRIER_WORDS) as usize * THREADS
            }
            Primitive::Copies => {
                let num_copies = abi::PROBE_SM90_MAPS * abi::PROBE_SM90_BOXES + abi::PROBE_SM90_RANGES;
                num_copies as usize * BOX_BYTES / 4
            }
            _ => M * self.num_columns(),
        }
    }

    /// The maps that the primitive's kernel uses, over `input`.
    fn maps(self, input: &View<u32>, footprint: &mut Footprint<'_>) -> Result<[abi::tensor_map; 4]> {
        let mut maps = [NO_MAP; 4];
        match self {
            Primitive::Copies => {
                let matrix = input.slice(0, COPY_ROWS * COPY_PITCH_BYTES / 4)?;
                let kinds = [TensorElement::Bf16, TensorElement::U8].map(|e| [(e, true), (e, false)]);
                for (map, (element, swizzled)) in maps.iter_mut().zip(kinds.concat()) {
                    let (width, element_bytes) = match element {
                        TensorElement::Bf16 => (abi::PROBE_SM90_COPY_WIDTH_BF16, 2),
                        TensorElement::U8 => (abi::PROBE_SM90_COPY_WIDTH_U8, 1),
                    };
                    let tile = TensorTile {
                        element,
                        width: width as usize,
                        num_rows: COPY_ROWS,
                        pitch_bytes: COPY_PITCH_BYTES,
                        box_width: abi::PROBE_SM90_BOX_ROW_BYTES as usize / element_bytes,
                        box_num_rows: abi::PROBE_SM90_BOX_ROWS as usize,
                        swizzled,
                    };
                    *map = footprint.tensor_map(&matrix, &tile)?;
                }
            }
            Primitive::Shared(n) | Primitive::Registers(n) => {
                let a = input.slice(0, M * K / 2)?;
                let b = input.slice(M * K / 2, n * K / 2)?;
                for (map, (view, num_rows)) in maps.iter_mut().zip([(a, M), (b, n)]) {
                    let tile = TensorTile {
                        element: TensorElement::Bf16,
                        width: K,
                        num_rows,
                        pitch_bytes: 2 * K,
                        box_width: BLOCK_K,
                        box_num_rows: num_rows,
                        swizzled: true,
                    };
                    *map = footprint.tensor_map(&view, &tile)?;
                }
            }
            Primitive::Barriers | Primitive::Stored => {}
        }
        Ok(maps)
    }

    /// Enqueues the primitive.
    ///
    /// # Errors
    /// [`Error::Internal`] when a view is too short, [`Error::Unsupported`] where there is no Hopper GPU.
    pub fn launch(
        self,
        device: &Device,
        stream: StreamId,
        input: &View<u32>,
        output: &View<u32>,
    ) -> Result<()> {
        let kernel = self.kernel()?;
        check_arch(device)?;
        check_len(kernel.name, "input", input, self.num_inputs())?;
        check_len(kernel.name, "output", output, self.num_outputs())?;
        let mut footprint = Footprint::new(device);
        let maps = self.maps(input, &mut footprint)?;
        let params = params(maps, input, output, 0, &mut footprint)?;
        // SAFETY: the kernel reads `num_inputs` and writes `num_outputs` words, checked above; the maps are of parts of
        // `input`, whose copies stop at their matrices' ends.
        unsafe { device.launch(stream, Config { kernel, grid: [1, 1, 1] }, &params, &footprint) }
    }
}

/// A machine that has these primitives: others have no code for them.
fn check_arch(device: &Device) -> Result<()> {
    match device.capability().arch {
        arch if arch / 10 == 9 => Ok(()),
        arch => Err(Error::Unsupported(format!("probe_sm90: compute capability 9.0 is needed, not {arch}"))),
    }
}

fn params(
    maps: [abi::tensor_map; 4],
    input: &View<u32>,
    output: &View<u32>,
    fault: i32,
    footprint: &mut Footprint<'_>,
) -> Result<abi::probe_sm90_params> {
    Ok(abi::probe_sm90_params {
        maps,
        input: footprint.reads(input)?,
        output: footprint.updates(output)?,
        num_input_words: to_i32("probe_sm90", "input words", input.len())?,
        fault,
        unused: [0; 10],
    })
}

/// What a kernel must not do. The emulator names each; there is no GPU code for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// Arrives at bytes that are no barrier.
    Uninitialized = abi::PROBE_SM90_FAULT_UNINITIALIZED,
    /// A copy reports to a barrier whose initialization was not fenced.
    NoInitFence = abi::PROBE_SM90_FAULT_NO_INIT_FENCE,
    /// Two arrivals at a barrier for one that still lacks bytes.
    OverArrival = abi::PROBE_SM90_FAULT_OVER_ARRIVAL,
    /// Two phases go by before a thread that waits for the first has looked.
    LateForAPhase = abi::PROBE_SM90_FAULT_LATE_FOR_A_PHASE,
    /// Announces more bytes than come.
    TooManyBytesExpected = abi::PROBE_SM90_FAULT_TOO_MANY_BYTES_EXPECTED,
    /// Announces fewer bytes than come.
    TooFewBytesExpected = abi::PROBE_SM90_FAULT_TOO_FEW_BYTES_EXPECTED,
    /// Reads what a copy has not delivered: correct on a lucky day.
    NoCopyWait = abi::PROBE_SM90_FAULT_NO_COPY_WAIT,
    /// Overwrites an operand by a copy before the products that read it are over.
    EarlyRelease = abi::PROBE_SM90_FAULT_EARLY_RELEASE,
    /// Copies from outside device memory.
    FarCopy = abi::PROBE_SM90_FAULT_FAR_COPY,
    /// Copies swizzled rows to where the swizzle does not begin.
    MisalignedCopy = abi::PROBE_SM90_FAULT_MISALIGNED_COPY,
    /// Copies a box whose rows begin at 14 bytes.
    MisalignedColumn = abi::PROBE_SM90_FAULT_MISALIGNED_COLUMN,
    /// Returns with a copy on its way.
    CopyLeft = abi::PROBE_SM90_FAULT_COPY_LEFT,
    /// Multiplies what threads have stored and not fenced.
    NoProxyFence = abi::PROBE_SM90_FAULT_NO_PROXY_FENCE,
    /// The same with a fence of one thread, before the others have stored.
    OneProxyFence = abi::PROBE_SM90_FAULT_ONE_PROXY_FENCE,
    /// Multiplies into registers that no `wgmma_fence` has named.
    NoWgmmaFence = abi::PROBE_SM90_FAULT_NO_WGMMA_FENCE,
    /// Writes an accumulator between the fence and the product.
    LateWrite = abi::PROBE_SM90_FAULT_LATE_WRITE,
    /// Reads accumulators before the wait: NaN.
    NoWgmmaWait = abi::PROBE_SM90_FAULT_NO_WGMMA_WAIT,
    /// Waits for a product that it has not committed.
    NoCommit = abi::PROBE_SM90_FAULT_NO_COMMIT,
    /// Scales accumulators before the wait.
    AccTouched = abi::PROBE_SM90_FAULT_ACC_TOUCHED,
    /// Refills A's registers before the wait.
    ATouched = abi::PROBE_SM90_FAULT_A_TOUCHED,
    /// Returns without a wait.
    ReturnInFlight = abi::PROBE_SM90_FAULT_RETURN_IN_FLIGHT,
    /// One warp of a warpgroup multiplies something else.
    Divergent = abi::PROBE_SM90_FAULT_DIVERGENT,
    /// A tile that does not begin where the swizzle does.
    BadDescriptor = abi::PROBE_SM90_FAULT_BAD_DESCRIPTOR,
}

impl Fault {
    /// Words that a fault may write.
    pub const NUM_OUTPUTS: usize = THREADS;

    /// Enqueues the fault.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a GPU; [`Error::Internal`] when a view is too short.
    pub fn launch(self, device: &Device, input: &View<u32>, output: &View<u32>) -> Result<()> {
        if !device.capability().is_emulator {
            return Err(Error::Unsupported("probe_sm90: faults are for the emulator".to_string()));
        }
        check_len(FAULT.name, "input", input, Primitive::Copies.num_inputs())?;
        check_len(FAULT.name, "output", output, Fault::NUM_OUTPUTS)?;
        let mut footprint = Footprint::new(device);
        let maps = Primitive::Copies.maps(input, &mut footprint)?;
        let params = params(maps, input, output, self as i32, &mut footprint)?;
        // SAFETY: plain loads and stores stay within the words checked above; the wild addresses go to primitives only,
        // which the emulator checks before it touches them.
        unsafe {
            device.launch(StreamId::Compute, Config { kernel: &FAULT, grid: [1, 1, 1] }, &params, &footprint)
        }
    }
}
