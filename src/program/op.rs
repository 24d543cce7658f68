//! The list: buffers, operations on them, and the stages that divide them.

use std::ops::Range;

use crate::device::{Config, Mode, Params, Rows, StreamId, Work};

/// See the module's text of [`super`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub buffers: Vec<Buffer>,
    pub ops: Vec<Op>,
    pub stages: Vec<Stage>,
}

/// Some device memory, whose place is for a pass to decide.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    /// `flux.double.3`, `vae.map`, ...: not unique; buffers of one name are printed together.
    pub name: String,
    pub bytes: usize,
    pub kind: Kind,
}

/// When a buffer gets its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the model's files, before the first operation; never written again.
    Weight(Tier),
    /// Used while weights are loaded, and not after.
    Load,
    /// By operations.
    Work,
    /// By operations: weights that are copied from pinned memory whenever they are needed.
    Streamed,
    /// It is a part of buffer `of`, from byte `start` on, and operations touch that one.
    Part { of: usize, start: usize },
}

impl Kind {
    /// Weights that have a place of their own.
    pub fn is_resident(self) -> bool {
        matches!(self, Kind::Weight(_))
    }

    /// Whether operations fill it.
    pub fn is_work(self) -> bool {
        matches!(self, Kind::Work | Kind::Streamed)
    }
}

/// In which order weights leave the device when they do not all fit: what is needed least often goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Of the text encoders: once a prompt.
    Encoder,
    /// Once a prompt and schedule.
    Modulation,
    /// Once a step.
    Block,
    /// Stays: small, or needed all the time.
    Fixed,
}

impl Tier {
    /// As they leave, one by one.
    pub const ONE_BY_ONE: [Tier; 3] = [Tier::Encoder, Tier::Modulation, Tier::Block];
    /// The same where blocks have to leave at all: their copies may hide behind a step's kernels however many they are, those of
    /// the others have little to hide behind.
    pub const BLOCKS_FIRST: [Tier; 3] = [Tier::Block, Tier::Encoder, Tier::Modulation];
}

/// One thing to enqueue.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub what: What,
    pub stream: StreamId,
    pub touches: Vec<Touch>,
    /// As the machine wants it: addresses, which only a program recorded against an arena has.
    pub work: Work,
}

impl Op {
    /// Read and written, each once.
    pub fn bytes(&self) -> u64 {
        self.touches.iter().map(|touch| touch.rows.num as u64 * touch.rows.bytes as u64).sum()
    }
}

/// See [`Op`].
#[derive(Clone, Debug)]
pub(crate) enum What {
    Launch {
        config: Config,
        params: Params,
    },
    /// From byte `host` of the pinned buffer into the one touch.
    Send {
        host: usize,
    },
    /// The one touch, to byte `host` of the pinned buffer.
    Fetch {
        host: usize,
    },
    /// Every byte of the one touch.
    Fill {
        value: u8,
    },
    /// Streamed weights into the one touch.
    Upload {
        from: Origin,
    },
    /// For tests of the passes, to which it does not matter.
    #[cfg(test)]
    Nothing,
}

/// Where streamed weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From this byte on of those in pinned memory.
    Pinned(usize),
    /// The cache's file has them: this unit, among all.
    Disk(usize),
}

/// What an operation does to a part of a buffer: `rows`, from byte `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub buffer: usize,
    pub start: usize,
    pub rows: Rows,
    pub mode: Mode,
}

impl Touch {
    pub fn reads(&self) -> bool {
        self.mode != Mode::Write
    }

    pub fn writes(&self) -> bool {
        self.mode != Mode::Read
    }

    /// From the first byte to one past the last.
    pub fn hull(&self) -> Range<usize> {
        let Rows { num, pitch, bytes } = self.rows;
        if num == 0 || bytes == 0 {
            return self.start..self.start;
        }
        self.start..self.start + (num - 1) * pitch + bytes
    }
}

/// The operations between two points that users know of, repeated `repeats` times.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// `clip`, `t5`, `modulation`, `step`, `vae`, `copy`.
    pub name: &'static str,
    pub ops: Range<usize>,
    pub repeats: usize,
    pub when: When,
    /// In runs that are such, the first turn is another stage's, which stands before this one.
    pub begun: Option<When>,
    /// What can be looked at when it ends.
    pub kept: Vec<Kept>,
}

impl Stage {
    /// The turns that it takes in such a run.
    pub fn turns(&self, run: Run) -> Range<usize> {
        match self.when.is_in(run) {
            true => usize::from(self.begun.is_some_and(|when| when.is_in(run)))..self.repeats,
            false => 0..0,
        }
    }

    /// What its turn is called in timings and predictions: `clip`, `step 3`.
    pub fn label(&self, turn: usize) -> String {
        match self.name {
            "step" => format!("step {turn}"),
            name => name.to_string(),
        }
    }
}

/// Runs differ in what the host has of runs before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Nothing.
    Fresh,
    /// What the text encoders gave for its prompts.
    Encoded,
    /// That, and the modulation vectors of its steps.
    Modulated,
}

impl Run {
    pub const ALL: [Run; 3] = [Run::Fresh, Run::Encoded, Run::Modulated];
}

/// In which runs a stage takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// It encodes prompts.
    Encoding,
    /// It sends what encoding gave before.
    Encoded,
    /// It computes modulation vectors.
    Modulating,
    /// It sends what that gave before.
    Modulated,
}

impl When {
    /// Whether a stage of this kind takes place in such a run.
    pub fn is_in(self, run: Run) -> bool {
        match self {
            When::Always => true,
            When::Encoding => run == Run::Fresh,
            When::Encoded => run != Run::Fresh,
            When::Modulating => run != Run::Modulated,
            When::Modulated => run == Run::Modulated,
        }
    }
}

/// A tensor that can be read back at the end of a stage.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    /// `clip_pooled`, `neg_noise_pred`, ...; in a repeated stage the turn's number follows.
    pub name: String,
    pub touch: Touch,
    pub is_bf16: bool,
    pub shape: Vec<usize>,
}

impl Program {
    /// Operations in the order of a `run`, with a repeated stage's twice: what holds between two turns holds between all.
    pub fn unrolled(&self, run: Run) -> Vec<usize> {
        let turns = |stage: &Stage| std::iter::repeat_n(stage.ops.clone(), stage.turns(run).len().min(2));
        self.stages.iter().flat_map(turns).flatten().collect()
    }

    /// Runs that differ in their stages.
    pub fn runs(&self) -> Vec<Run> {
        let turns =
            |run: Run| -> Vec<Range<usize>> { self.stages.iter().map(|stage| stage.turns(run)).collect() };
        let mut runs: Vec<Run> = Run::ALL.to_vec();
        runs.dedup_by_key(|run| turns(*run));
        runs
    }
}
