//! How a program is written: networks ask for buffers and launch kernels as if they ran, on a device that only writes down.
//!
//! It is cheap, so it happens twice: on a [`fresh`](Recorder::fresh) tape, to learn what is read and written when; and, once
//! every buffer has a place, on a [`placed`](Recorder::placed) one, so that the params of every launch hold real addresses.
//! Nothing is relocated or patched.

use std::sync::Arc;

use crate::device::{Capability, Device, Footprint, Span, StreamId, Tape, TapedLaunch, View, Work};
use crate::{Error, Result};

use super::op::{Buffer, Kept, Kind, Op, Program, Stage, Touch, What, When};
use super::place::ALIGNMENT;

/// What a network launches on; the passes decide where it really runs.
pub(crate) const STREAM: StreamId = StreamId::Compute;

/// Bytes of the pinned buffer that a program sends from or fetches to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostRange {
    pub start: usize,
    pub bytes: usize,
}

/// A program in the making.
pub(crate) struct Recorder {
    tape: Arc<Tape>,
    device: Device,
    is_placed: bool,
    program: Program,
    host_bytes: usize,
    stage: Option<Stage>,
    /// See [`Recorder::workspace`]; of this stage.
    workspace: Option<(View<f32>, View<u32>)>,
}

impl Recorder {
    /// To learn what there is: every buffer has addresses of its own.
    pub fn fresh(capability: &Capability) -> Recorder {
        Recorder::on(Tape::fresh(capability.clone()), false)
    }

    /// To learn the launches: the buffers get `addresses` of `device`, in the order in which they are asked for.
    pub fn placed(device: &Device, addresses: Vec<u64>) -> Recorder {
        Recorder::on(Tape::placed(device, addresses), true)
    }

    fn on(tape: Arc<Tape>, is_placed: bool) -> Recorder {
        let device = Device::tape(tape.clone());
        Recorder {
            tape,
            device,
            is_placed,
            program: Program::default(),
            host_bytes: 0,
            stage: None,
            workspace: None,
        }
    }

    /// What kernels are launched on, on [`STREAM`].
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Room for `len` elements.
    pub fn buffer<T>(&mut self, name: &str, len: usize) -> Result<View<T>> {
        self.allocate(name, len, Kind::Work)
    }

    /// Room for `len` elements that are there before the first operation and stay.
    pub fn resident<T>(&mut self, name: &str, len: usize, kind: Kind) -> Result<(usize, View<T>)> {
        let view = self.allocate(name, len, kind)?;
        Ok((self.program.buffers.len() - 1, view))
    }

    fn allocate<T>(&mut self, name: &str, len: usize, kind: Kind) -> Result<View<T>> {
        let bytes = len.checked_mul(size_of::<T>());
        let bytes =
            bytes.ok_or_else(|| Error::Unsupported(format!("{name}: {len} elements are too many")))?;
        self.program.buffers.push(Buffer { name: name.to_string(), bytes, kind });
        self.device.allocate(bytes)?.view(0, len)
    }

    /// What follows is the stage `name`, carried out `repeats` times.
    pub fn stage(&mut self, name: &'static str, repeats: usize) -> Result<()> {
        self.stage_when(When::Always, name, repeats)
    }

    /// The same in runs that are such.
    pub fn stage_when(&mut self, when: When, name: &'static str, repeats: usize) -> Result<()> {
        self.end_stage()?;
        let start = self.program.ops.len();
        self.stage = Some(Stage { name, ops: start..start, repeats, when, begun: None, kept: Vec::new() });
        Ok(())
    }

    /// As [`Recorder::stage`], but that in runs that are `begun` the stage before was the first of the `repeats` turns.
    pub fn stage_begun(&mut self, begun: When, name: &'static str, repeats: usize) -> Result<()> {
        self.stage(name, repeats)?;
        if let Some(stage) = &mut self.stage {
            stage.begun = Some(begun);
        }
        Ok(())
    }

    fn end_stage(&mut self) -> Result<()> {
        self.collect()?;
        self.workspace = None;
        if let Some(mut stage) = self.stage.take() {
            stage.ops.end = self.program.ops.len();
            self.program.stages.push(stage);
        }
        Ok(())
    }

    /// Moves what was launched from the tape to the program.
    fn collect(&mut self) -> Result<()> {
        for TapedLaunch { config, params, work } in self.tape.take() {
            let touches = self.touches(&work)?;
            let what = What::Launch { config, params };
            self.program.ops.push(Op { what, stream: STREAM, touches, work });
        }
        Ok(())
    }

    /// Which parts of which buffers; nothing on a placed tape, whose buffers share bytes.
    fn touches(&self, work: &Work) -> Result<Vec<Touch>> {
        if self.is_placed {
            return Ok(Vec::new());
        }
        let touch = |span: &Span| {
            let (buffer, start) = self
                .tape
                .allocation_of(span.address)
                .ok_or_else(|| Error::Internal(format!("a launch touches {span:?}, which is no buffer's")))?;
            Ok(Touch { buffer, start: start as usize, rows: span.rows, mode: span.mode })
        };
        work.spans.iter().map(touch).collect()
    }

    /// A copy or fill of one view.
    fn transfer(&mut self, what: What, work: Work) -> Result<()> {
        self.collect()?;
        let touches = self.touches(&work)?;
        self.program.ops.push(Op { what, stream: STREAM, touches, work });
        Ok(())
    }

    fn host_range(&mut self, bytes: usize) -> HostRange {
        let start = self.host_bytes;
        self.host_bytes += bytes.next_multiple_of(ALIGNMENT);
        HostRange { start, bytes }
    }

    /// Copies from the pinned buffer to all of `view`; the caller fills the returned bytes before every run.
    pub fn send<T>(&mut self, view: &View<T>) -> Result<HostRange> {
        let range = self.host_range(view.num_bytes());
        let mut footprint = Footprint::new(&self.device);
        footprint.writes(view)?;
        let work = footprint.into_work();
        self.transfer(What::Send { host: range.start }, work)?;
        Ok(range)
    }

    /// Copies all of `view` to the pinned buffer, for the caller to read after every run.
    pub fn fetch<T>(&mut self, view: &View<T>) -> Result<HostRange> {
        let range = self.host_range(view.num_bytes());
        self.fetch_to(range, view)?;
        Ok(range)
    }

    /// The same to bytes that something is sent from in other runs.
    pub fn fetch_to<T>(&mut self, range: HostRange, view: &View<T>) -> Result<()> {
        let mut footprint = Footprint::new(&self.device);
        footprint.reads(view)?;
        let work = footprint.into_work();
        self.transfer(What::Fetch { host: range.start }, work)
    }

    /// Sets every byte of `view`.
    pub fn fill<T>(&mut self, view: &View<T>, value: u8) -> Result<()> {
        let mut footprint = Footprint::new(&self.device);
        footprint.writes(view)?;
        let work = footprint.into_work();
        self.transfer(What::Fill { value }, work)
    }

    /// Memory for products whose tiles are split: numbers that hold nothing between launches, and zeros that each launch leaves as
    /// zeros. A stage's launches share both; the zeros are set in each turn of it, so that a run that came to an end in the middle of
    /// one leaves nothing behind for the next.
    pub fn workspace(&mut self, numbers: usize, zeros: usize) -> Result<(View<f32>, View<u32>)> {
        let (had_numbers, had_zeros) = self.workspace.as_ref().map_or((0, 0), |(n, z)| (n.len(), z.len()));
        if had_numbers < numbers || had_zeros < zeros {
            let (most, most_zeros) = (numbers.max(had_numbers), zeros.max(had_zeros));
            let views = (self.buffer("gemm.partials", most)?, self.buffer("gemm.arrivals", most_zeros)?);
            self.fill(&views.1, 0)?;
            self.workspace = Some(views);
        }
        self.workspace.clone().ok_or_else(|| Error::Internal("a workspace of nothing".to_string()))
    }

    /// `view` can be looked at when the stage ends, under `name`.
    pub fn keep_f32(&mut self, name: String, view: &View<f32>, shape: &[usize]) -> Result<()> {
        self.keep(name, view, false, shape)
    }

    /// As [`Recorder::keep_f32`].
    pub fn keep_bf16(&mut self, name: String, view: &View<half::bf16>, shape: &[usize]) -> Result<()> {
        self.keep(name, view, true, shape)
    }

    fn keep<T>(&mut self, name: String, view: &View<T>, is_bf16: bool, shape: &[usize]) -> Result<()> {
        let mut footprint = Footprint::new(&self.device);
        footprint.reads(view)?;
        let touches = self.touches(&footprint.into_work())?;
        if let (Some(stage), Some(&touch)) = (&mut self.stage, touches.first()) {
            stage.kept.push(Kept { name, touch, is_bf16, shape: shape.to_vec() });
        }
        Ok(())
    }

    /// The program, and the size of its pinned buffer.
    pub fn finish(mut self) -> Result<(Program, usize)> {
        self.end_stage()?;
        Ok((self.program, self.host_bytes))
    }
}
