//! What the kernels' memory accesses cost, and who wrote what: `scripts/sanitize accesses`.
//!
//! In that build g++ calls a function before every load and store of a kernel (`kernels/accesses.cpp`, which also tells of
//! `ldmatrix` and `cp.async`). An address in the CTA's shared memory or in the launch's memory is recorded under the
//! instruction that made the access; others are locals, parameters and constants, which a GPU has elsewhere.
//!
//! **Warps.** Lanes run one after the other here, a GPU runs them together. Until a warp meets in a collective, a barrier or
//! its end, each lane's accesses are kept in a list; then the lists are played back as a warp would have gone through the
//! code: of the lanes' next instructions the one with the lowest address runs, for all lanes that are at it. So lanes that
//! left a loop wait for those still in it, and the i-th turn of one lane meets the i-th turn of another, also in nested
//! loops. Code that the compiler laid out against its order, and an inner loop's last access when nothing follows it in the
//! outer loop, may be grouped wrongly where lanes diverge; where they do not, grouping is exact.
//!
//! **Wavefronts** of shared memory: 32 banks of 4 bytes, each of which gives one word per wavefront to any number of lanes.
//! 8-byte accesses go by half-warps, 16-byte ones, and each 8 x 8 matrix of `ldmatrix`, by 8 lanes. The least possible is
//! one per part that has an active lane. **Sectors** of global memory are 32 bytes; the least possible is what the distinct
//! bytes of the warp would fill. Caches are not modeled.
//!
//! **Width.** gpu.cuh's vectors (`uint4`, ...) are moved as a whole, as nvcc does; adjacent scalars are not merged, which
//! nvcc sometimes does (and sometimes takes a vector apart): what it really made of a line is in the SASS alone.
//!
//! # Safety
//! The hook runs on the fiber whose access it records, and has the CTA's `Recorder` for itself: nothing in this file gives
//! way to another fiber. It looks at no address.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use super::runtime::{self, Launch, Thread, WARP};
use super::{Span, library, lock};

/// Whether the kernels tell of their accesses (`scripts/sanitize accesses`).
pub fn records_accesses() -> bool {
    library::tells_of_accesses()
}

const BANKS: usize = 32;
const WORD_BYTES: usize = 4;
const SECTOR_BYTES: usize = 32;
/// The widest access of a lane.
const WIDEST_BYTES: usize = 16;

/// Accesses of one lane, or stores of a CTA, that are kept at most. Only a kernel that hangs makes more: it shall end by the
/// error that says so, not by lack of memory.
const MOST: usize = 1 << 22;

/// What was accessed, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessKind {
    /// A load from device memory.
    GlobalRead,
    /// A store or an atomic operation to device memory.
    GlobalWrite,
    /// A load from shared memory.
    SharedRead,
    /// A store to shared memory.
    SharedWrite,
    /// `ldmatrix`: of shared memory.
    LoadMatrix,
    /// What a `cp.async` reads; of device memory.
    CopyFrom,
    /// What a `cp.async` writes; to shared memory.
    CopyTo,
}

impl AccessKind {
    /// Whether it costs wavefronts; others cost sectors.
    pub fn is_shared(self) -> bool {
        !matches!(self, AccessKind::GlobalRead | AccessKind::GlobalWrite | AccessKind::CopyFrom)
    }
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            AccessKind::GlobalRead => "global read",
            AccessKind::GlobalWrite => "global write",
            AccessKind::SharedRead => "shared read",
            AccessKind::SharedWrite => "shared write",
            AccessKind::LoadMatrix => "ldmatrix",
            AccessKind::CopyFrom => "cp.async from",
            AccessKind::CopyTo => "cp.async to",
        })
    }
}

/// What the accesses of one source line cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineAccesses {
    /// The entry point.
    pub kernel: &'static str,
    /// Of the source, without its folder; of the innermost function that is not in gpu.cuh.
    pub file: String,
    /// In `file`, from 1.
    pub line: u32,
    /// What was accessed.
    pub kind: AccessKind,
    /// What a lane accessed at once, at most.
    pub bytes: u32,
    /// By a warp, or what is left of it where lanes diverge.
    pub executions: u64,
    /// Wavefronts of shared memory, or sectors of device memory.
    pub cost: u64,
    /// The least that these lanes and bytes could have cost.
    pub least: u64,
}

/// What an emulator's launches cost, by kernel, line and kind, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
    /// All lines with accesses to shared or device memory.
    pub lines: Vec<LineAccesses>,
}

/// Counts of one instruction.
#[derive(Clone, Copy, Default)]
struct Tally {
    bytes: u32,
    executions: u64,
    cost: u64,
    least: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.bytes = self.bytes.max(other.bytes);
        self.executions += other.executions;
        self.cost += other.cost;
        self.least += other.least;
    }
}

/// An access of one lane.
#[derive(Clone, Copy)]
struct Access {
    pc: usize,
    address: usize,
    bytes: u32,
    kind: AccessKind,
}

/// Who wrote a granule last; `launch` counts from 1, 0 is nobody.
#[derive(Clone, Copy, Default)]
struct Writer {
    launch: u32,
    cta: u32,
    thread: u32,
    /// Index into [`Book::pcs`].
    pc: u32,
}

/// Bytes that have one [`Writer`].
const GRANULE_BYTES: usize = 2;
const PAGE_GRANULES: usize = 2048;
const PAGE_BYTES: usize = PAGE_GRANULES * GRANULE_BYTES;

/// A store to device memory, on its way to the page that it concerns.
struct Write {
    address: usize,
    bytes: u32,
    thread: u32,
    pc: usize,
}

/// What an emulator keeps of its launches.
pub(super) struct Records {
    count: bool,
    writers: bool,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    tallies: HashMap<(&'static str, usize, AccessKind), Tally>,
    /// Names and grids.
    launches: Vec<(&'static str, [u32; 3])>,
    pcs: Vec<usize>,
    pc_indices: HashMap<usize, u32>,
    pages: HashMap<usize, Box<[Writer; PAGE_GRANULES]>>,
}

impl Records {
    /// `None` where nothing is asked for, or nothing can be had.
    pub fn new(count: bool, writers: bool) -> Option<Arc<Records>> {
        let wanted = records_accesses() && (count || writers);
        wanted.then(|| Arc::new(Records { count, writers, book: Mutex::default() }))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// From here on writes are this launch's.
    pub fn begin_launch(&self, kernel: &'static str, grid: [u32; 3]) {
        self.book().launches.push((kernel, grid));
    }

    /// The host wrote here, or nobody any more.
    pub fn forget(&self, address: u64, bytes: usize) {
        let book = &mut *self.book();
        for (page, granules) in pieces(address as usize, bytes) {
            if let Some(writers) = book.pages.get_mut(&page) {
                writers[granules].fill(Writer::default());
            }
        }
    }

    /// What was counted so far; `None` where only writers are kept.
    pub fn counts(&self) -> Option<AccessCounts> {
        let mut lines = BTreeMap::<_, Tally>::new();
        for (&(kernel, pc, kind), tally) in &self.book().tallies {
            let (file, line) = place(pc);
            lines.entry((kernel, file, line, kind)).or_default().add(tally);
        }
        let lines = lines.into_iter().map(|((kernel, file, line, kind), tally)| {
            let Tally { bytes, executions, cost, least } = tally;
            LineAccesses { kernel, file, line, kind, bytes, executions, cost, least }
        });
        self.count.then(|| AccessCounts { lines: lines.collect() })
    }

    /// In words; `None` where writers are not kept.
    pub fn last_writer(&self, address: u64) -> Option<String> {
        if !self.writers {
            return None;
        }
        let book = self.book();
        let (page, granule) = (address as usize / PAGE_BYTES, address as usize % PAGE_BYTES / GRANULE_BYTES);
        let writer = book.pages.get(&page).map_or(Writer::default(), |writers| writers[granule]);
        if writer.launch == 0 {
            return Some("no kernel wrote it".to_string());
        }
        let (kernel, [nx, ny, _]) = book.launches[writer.launch as usize - 1];
        let cta = [writer.cta % nx, writer.cta / nx % ny, writer.cta / nx / ny];
        let (file, line) = place(book.pcs[writer.pc as usize]);
        Some(format!(
            "last written by kernel {kernel} (launch {}), CTA {cta:?}, thread {} at {file}:{line}",
            writer.launch, writer.thread
        ))
    }
}

/// The pages of these bytes, and the granules of each.
fn pieces(address: usize, bytes: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (first, end) = (address / GRANULE_BYTES, (address + bytes).div_ceil(GRANULE_BYTES));
    (first / PAGE_GRANULES..end.div_ceil(PAGE_GRANULES)).map(move |page| {
        let base = page * PAGE_GRANULES;
        (page, first.max(base) - base..end.min(base + PAGE_GRANULES) - base)
    })
}

/// `file` and `line` of the call that returns to `pc`.
fn place(pc: usize) -> (String, u32) {
    static KNOWN: LazyLock<Mutex<HashMap<usize, (String, u32)>>> = LazyLock::new(Mutex::default);
    let mut known = lock(&KNOWN);
    let resolve = || {
        // Innermost first; gpu.cuh's functions are how a kernel says something, not where.
        let mut frames = Vec::new();
        backtrace::resolve(pc as *mut c_void, |symbol| {
            if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                frames.push((file.file_name().unwrap_or_default().to_string_lossy().into_owned(), line));
            }
        });
        let own = frames.iter().find(|(file, _)| file != "gpu.cuh").or(frames.first());
        own.cloned().unwrap_or(("unknown place".to_string(), 0))
    };
    known.entry(pc).or_insert_with(resolve).clone()
}

/// What a CTA's worker notes of its accesses.
#[derive(Default)]
pub(super) struct Recorder {
    records: Option<Arc<Records>>,
    kernel: &'static str,
    /// Of the CTA in the grid.
    cta: u32,
    smem: Range<usize>,
    footprint: Vec<Span>,
    /// By thread, since its warp last met.
    lanes: Vec<Vec<Access>>,
    tallies: HashMap<(usize, AccessKind), Tally>,
    writes: Vec<Write>,
}

impl Recorder {
    /// A CTA begins.
    pub fn start(&mut self, launch: &Launch<'_>, cta: [u32; 3], smem: Range<usize>) {
        self.records = launch.records.cloned();
        if self.records.is_none() {
            return;
        }
        self.kernel = launch.name;
        self.cta = (cta[2] * launch.grid[1] + cta[1]) * launch.grid[0] + cta[0];
        self.smem = smem;
        self.footprint.clear();
        self.footprint.extend_from_slice(launch.footprint);
        self.lanes.iter_mut().for_each(Vec::clear);
        self.lanes.resize_with(self.lanes.len().max(launch.threads as usize), Vec::new);
        self.tallies.clear();
        self.writes.clear();
    }

    /// All lanes of the warp are at one place.
    pub fn converge(&mut self, warp: usize) {
        if self.records.is_some() {
            play_back(&mut self.lanes[warp * WARP..(warp + 1) * WARP], &mut self.tallies);
        }
    }

    /// All warps are.
    pub fn converge_all(&mut self) {
        for warp in 0..self.lanes.len() / WARP {
            self.converge(warp);
        }
    }

    /// The CTA has ended well.
    pub fn finish(&mut self) {
        self.converge_all();
        let Some(records) = self.records.take() else { return };
        let book = &mut *records.book();
        for ((pc, kind), tally) in self.tallies.drain() {
            book.tallies.entry((self.kernel, pc, kind)).or_default().add(&tally);
        }
        let launch = book.launches.len() as u32;
        for write in self.writes.drain(..) {
            let pc = match book.pc_indices.entry(write.pc) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    book.pcs.push(write.pc);
                    *new.insert(book.pcs.len() as u32 - 1)
                }
            };
            let writer = Writer { launch, cta: self.cta, thread: write.thread, pc };
            for (page, granules) in pieces(write.address, write.bytes as usize) {
                let nobody = || Box::new([Writer::default(); PAGE_GRANULES]);
                book.pages.entry(page).or_insert_with(nobody)[granules].fill(writer);
            }
        }
    }

    fn note(&mut self, thread: usize, how: How, address: usize, bytes: u32, pc: usize) {
        let Some(records) = &self.records else { return };
        let kind = if self.smem.contains(&address) {
            match how {
                How::READ => AccessKind::SharedRead,
                How::WRITE => AccessKind::SharedWrite,
                How::LOAD_MATRIX => AccessKind::LoadMatrix,
                How::COPY_TO => AccessKind::CopyTo,
                _ => return,
            }
        } else {
            let at = address as u64;
            if !self.footprint.iter().any(|s| at >= s.address && at < s.address + s.bytes as u64) {
                return;
            }
            match how {
                How::READ => AccessKind::GlobalRead,
                How::WRITE => AccessKind::GlobalWrite,
                How::COPY_FROM => AccessKind::CopyFrom,
                _ => return,
            }
        };
        if records.writers && kind == AccessKind::GlobalWrite && self.writes.len() < MOST {
            self.writes.push(Write { address, bytes, thread: thread as u32, pc });
        }
        if records.count && self.lanes[thread].len() < MOST {
            let mut at = address;
            while at < address + bytes as usize {
                let piece = (address + bytes as usize - at).min(WIDEST_BYTES);
                self.lanes[thread].push(Access { pc, address: at, bytes: piece as u32, kind });
                at += piece;
            }
        }
    }
}

/// Empties the lists of a warp's lanes; see the module's text.
fn play_back(lanes: &mut [Vec<Access>], tallies: &mut HashMap<(usize, AccessKind), Tally>) {
    let mut next = [0; WARP];
    let mut group: Vec<(usize, Access)> = Vec::with_capacity(WARP);
    loop {
        let heads =
            || lanes.iter().enumerate().filter_map(|(lane, list)| Some((lane, *list.get(next[lane])?)));
        let Some(lowest) = heads().map(|(_, access)| (access.pc, access.kind)).min() else { break };
        group.clear();
        group.extend(heads().filter(|(_, access)| (access.pc, access.kind) == lowest));
        for (lane, _) in &group {
            next[*lane] += 1;
        }
        let (cost, least) = if lowest.1.is_shared() { wavefronts(&group) } else { sectors(&group) };
        let bytes = group.iter().map(|(_, access)| access.bytes).max().unwrap_or(0);
        let tally = Tally { bytes, executions: 1, cost, least };
        tallies.entry(lowest).or_default().add(&tally);
    }
    lanes.iter_mut().for_each(Vec::clear);
}

/// Of one access of a warp, and the least possible.
fn wavefronts(group: &[(usize, Access)]) -> (u64, u64) {
    let widest = group.iter().map(|(_, access)| access.bytes as usize).max().unwrap_or(WORD_BYTES);
    let lanes_at_once = BANKS * WORD_BYTES / widest.next_power_of_two().clamp(WORD_BYTES, WIDEST_BYTES);
    let (mut cost, mut least) = (0, 0);
    let mut words = Vec::with_capacity(BANKS);
    for part in group.chunk_by(|(a, _), (b, _)| a / lanes_at_once == b / lanes_at_once) {
        words.clear();
        for (_, access) in part {
            let end = (access.address + access.bytes as usize).div_ceil(WORD_BYTES);
            words.extend(access.address / WORD_BYTES..end);
        }
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; BANKS];
        for word in &words {
            banks[word % BANKS] += 1;
        }
        cost += banks.iter().max().copied().unwrap_or(0);
        least += 1;
    }
    (cost, least)
}

/// Of one access of a warp, and the least possible.
fn sectors(group: &[(usize, Access)]) -> (u64, u64) {
    let span = |access: &Access| (access.address, access.address + access.bytes as usize);
    let mut spans: Vec<(usize, usize)> = group.iter().map(|(_, access)| span(access)).collect();
    spans.sort_unstable();
    // Up to here bytes and sectors have been counted.
    let (mut bytes_end, mut sectors_end) = (0, 0);
    let (mut bytes, mut sectors) = (0, 0);
    for (start, end) in spans {
        bytes += end.saturating_sub(bytes_end.max(start));
        bytes_end = bytes_end.max(end);
        let (first, behind) = (start / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES));
        sectors += behind.saturating_sub(sectors_end.max(first));
        sectors_end = sectors_end.max(behind);
    }
    (sectors as u64, bytes.div_ceil(SECTOR_BYTES) as u64)
}

/// `how` of kernels/accesses.cpp.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct How(u32);

impl How {
    const READ: How = How(0);
    const WRITE: How = How(1);
    const COPY_FROM: How = How(2);
    const COPY_TO: How = How(3);
    const LOAD_MATRIX: How = How(4);
}

/// Has the kernels tell of their accesses, where they can; after the runtime has been installed.
pub(super) fn install() {
    library::install_accesses(on_access);
}

/// An access by the running thread, about to be made.
unsafe extern "C" fn on_access(thread: *mut Thread, how: How, address: usize, bytes: u32, pc: usize) {
    // SAFETY: the caller passes the running thread; the recorder is only used here and by primitives, of which none runs.
    let (recorder, thread) = unsafe { runtime::recorder(thread) };
    recorder.note(thread, how, address, bytes, pc);
}
