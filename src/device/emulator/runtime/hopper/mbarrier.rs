//! Barriers in shared memory that count arrivals and bytes.
//!
//! All of a barrier's state is in its eight bytes, as on a GPU, so that what a kernel stores over it shows. The encoding
//! is this file's own; a mark tells a barrier from other bytes.
//!
//! For ThreadSanitizer an arrival is a release and the end of a wait is an acquire, on one name per parity; to initialize
//! is to write, to arrive and to wait is to read. A copy's engine arrives like a thread.

use super::super::{Cta, Site, State, Thread, fail, give_way, sanitizer};

const MARK: u64 = 0xb5;
/// More arrivals than any CTA has threads.
const MAX_COUNT: u32 = (1 << 12) - 1;
/// PTX ISA, "tx-count operation of mbarrier object".
const MAX_BYTES: i64 = (1 << 20) - 1;

/// What the scheduler must know of all barriers of a CTA.
#[derive(Default)]
pub(in super::super) struct Barriers {
    /// Initialized by a thread that has not fenced since: `(thread, offset, place)`.
    fresh: Vec<(u32, usize, Site)>,
    /// `(thread, offset)`.
    waiting: Vec<(usize, usize)>,
}

impl Barriers {
    pub fn reset(&mut self) {
        self.fresh.clear();
        self.waiting.clear();
    }

    /// The thread has fenced.
    pub fn publish(&mut self, thread: u32) {
        self.fresh.retain(|&(by, _, _)| by != thread);
    }
}

/// For what a thread waits.
#[derive(Clone, Copy, PartialEq)]
pub(in super::super) struct Wait {
    offset: usize,
    parity: u32,
    site: Site,
}

impl Wait {
    /// In words, for a deadlock.
    pub fn describe(&self, cta: &Cta) -> String {
        let Wait { offset, parity, site } = self;
        let state = match Barrier::at(cta, *offset) {
            Ok(barrier) => barrier.to_string(),
            Err(what) => what,
        };
        format!("mbarrier at shared memory + {offset}, parity {parity}, at {site} ({state})")
    }
}

#[derive(Clone, Copy)]
struct Barrier {
    phase: u8,
    count: u32,
    /// Arrivals that the phase still waits for.
    pending: u32,
    /// Bytes that the phase still waits for; negative when they came before they were announced.
    bytes: i32,
}

impl std::fmt::Display for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Barrier { phase, count, pending, bytes } = self;
        write!(f, "phase {phase} lacks {pending} of {count} arrivals and {bytes} bytes")
    }
}

impl Barrier {
    /// Reads the barrier at an offset that was checked.
    fn at(cta: &Cta, offset: usize) -> Result<Barrier, String> {
        // SAFETY: `place` has checked that eight aligned bytes of shared memory are there.
        let word = unsafe { *cta.index.smem.cast::<u8>().add(offset).cast::<u64>() };
        if word & 0xff != MARK {
            return Err(format!("there is no initialized mbarrier at shared memory + {offset}"));
        }
        let field = |at: u32, bits: u32| (word >> at) as u32 & ((1 << bits) - 1);
        let bytes = (field(40, 24) << 8) as i32 >> 8;
        Ok(Barrier { phase: field(8, 8) as u8, count: field(16, 12), pending: field(28, 12), bytes })
    }

    fn store(&self, cta: &Cta, offset: usize) {
        let bytes = (self.bytes as u32 & 0xff_ffff) as u64;
        let counts = (self.count as u64) << 16 | (self.pending as u64) << 28;
        let word = MARK | (self.phase as u64) << 8 | counts | bytes << 40;
        // SAFETY: as in `at`.
        unsafe { *cta.index.smem.cast::<u8>().add(offset).cast::<u64>() = word };
    }

    fn parity(&self) -> u32 {
        self.phase as u32 & 1
    }
}

/// The name of the orderings that phases of this parity make.
fn name(cta: &Cta, offset: usize, parity: u32) -> *const u8 {
    // SAFETY: an address within the barrier.
    unsafe { cta.index.smem.cast::<u8>().add(offset + parity as usize) }
}

/// The barrier's offset, if there can be one.
pub(super) fn place(cta: &Cta, barrier: *const u8) -> Result<usize, String> {
    if barrier as usize % 8 != 0 || !cta.smem_holds(barrier, 8) {
        return Err(format!("an mbarrier at {barrier:p}, which is not eight aligned bytes of shared memory"));
    }
    Ok(cta.smem_offset(barrier))
}

/// The barrier is initialized, for engines as well. The parity of its phase.
pub(super) fn check_for_copy(cta: &Cta, offset: usize) -> Result<u32, String> {
    let barrier = Barrier::at(cta, offset)?;
    if let Some((thread, _, site)) = cta.hopper.barriers.fresh.iter().find(|(_, at, _)| *at == offset) {
        return Err(format!(
            "the mbarrier at shared memory + {offset} was initialized by thread {thread} at {site}, which has not called \
             fence_mbarrier_init since"
        ));
    }
    Ok(barrier.parity())
}

/// Announces `expected` bytes, takes off `completed` ones and `arrivals`.
fn update(cta: &mut Cta, offset: usize, arrivals: u32, expected: u32, completed: u32) -> Result<(), String> {
    let mut barrier = Barrier::at(cta, offset)?;
    if barrier.pending < arrivals {
        return Err(format!("one arrival too many at the mbarrier at shared memory + {offset}: {barrier}"));
    }
    let bytes = barrier.bytes as i64 + expected as i64 - completed as i64;
    if bytes.abs() > MAX_BYTES {
        return Err(format!("the mbarrier at shared memory + {offset} cannot count {bytes} bytes"));
    }
    barrier.bytes = bytes as i32;
    barrier.pending -= arrivals;
    if barrier.pending == 0 && barrier.bytes < 0 {
        return Err(format!(
            "{} bytes more than announced came to the mbarrier at shared memory + {offset}",
            -barrier.bytes
        ));
    }
    if barrier.pending == 0 && barrier.bytes == 0 {
        barrier.phase = barrier.phase.wrapping_add(1);
        barrier.pending = barrier.count;
        let mut waiting = std::mem::take(&mut cta.hopper.barriers.waiting);
        waiting.retain(|&(thread, at)| {
            if at == offset {
                cta.wake(thread);
            }
            at != offset
        });
        cta.hopper.barriers.waiting = waiting;
    }
    barrier.store(cta, offset);
    Ok(())
}

/// So many bytes of a copy are there.
pub(super) fn complete(cta: &mut Cta, offset: usize, num_bytes: u32) -> Result<(), String> {
    update(cta, offset, 0, 0, num_bytes)
}

/// The running fiber is a copy's engine, and will complete in the phase of this parity.
pub(super) fn note_completion(cta: &Cta, offset: usize, parity: u32) {
    sanitizer::reads(name(cta, offset, 0), 8);
    sanitizer::release(name(cta, offset, parity));
}

pub(super) unsafe extern "C" fn init(
    thread: *mut Thread,
    barrier: *mut u8,
    num_arrivals: u32,
    site: *const Site,
) {
    // SAFETY: the kernel passes its own thread and a live site; one fiber runs at a time.
    unsafe {
        let cta = &mut *(*thread).cta;
        let offset = match place(cta, barrier) {
            Ok(offset) => offset,
            Err(what) => return fail(thread, *site, what),
        };
        if num_arrivals == 0 || num_arrivals > MAX_COUNT {
            let what = format!("an mbarrier for {num_arrivals} arrivals: 1 to {MAX_COUNT} can be counted");
            return fail(thread, *site, what);
        }
        if Barrier::at(cta, offset).is_ok() {
            let what = format!("the mbarrier at shared memory + {offset} is initialized already");
            return fail(thread, *site, what);
        }
        sanitizer::writes(barrier, 8);
        let state = Barrier { phase: 0, count: num_arrivals, pending: num_arrivals, bytes: 0 };
        state.store(cta, offset);
        cta.hopper.barriers.fresh.push(((*thread).thread, offset, *site));
    }
}

pub(super) unsafe extern "C" fn fence_init(thread: *mut Thread) {
    // SAFETY: the kernel passes its own thread; one fiber runs at a time.
    unsafe {
        let cta = &mut *(*thread).cta;
        cta.hopper.barriers.publish((*thread).thread);
    }
}

pub(super) unsafe extern "C" fn arrive(
    thread: *mut Thread,
    barrier: *mut u8,
    num_bytes: u32,
    site: *const Site,
) {
    // SAFETY: as in `init`.
    unsafe {
        let cta = &mut *(*thread).cta;
        let arrived = place(cta, barrier).and_then(|offset| {
            let parity = Barrier::at(cta, offset)?.parity();
            sanitizer::reads(barrier, 8);
            sanitizer::release(name(cta, offset, parity));
            update(cta, offset, 1, num_bytes, 0)
        });
        if let Err(what) = arrived {
            fail(thread, *site, what);
        }
    }
}

pub(super) unsafe extern "C" fn wait(thread: *mut Thread, barrier: *mut u8, parity: u32, site: *const Site) {
    // SAFETY: as in `init`.
    unsafe {
        let cta: *mut Cta = (*thread).cta;
        let offset = match place(&*cta, barrier) {
            Ok(offset) if parity < 2 => offset,
            Ok(_) => return fail(thread, *site, format!("parity {parity} is neither 0 nor 1")),
            Err(what) => return fail(thread, *site, what),
        };
        sanitizer::reads(barrier, 8);
        let mut began: Option<u8> = None;
        loop {
            let state = match Barrier::at(&*cta, offset) {
                Ok(state) => state,
                Err(what) => return fail(thread, *site, what),
            };
            if state.parity() != parity {
                break;
            }
            // A GPU's thread might look too late as well, and wait for a phase that never comes.
            if began.is_some_and(|phase| phase != state.phase) {
                let what = format!(
                    "the mbarrier at shared memory + {offset} went through two phases while this thread waited for one: \
                     more arrivals than its count of {}",
                    state.count
                );
                return fail(thread, *site, what);
            }
            began = Some(state.phase);
            (*thread).state = State::AtMbarrier(Wait { offset, parity, site: *site });
            (&mut *cta).hopper.barriers.waiting.push(((*thread).thread as usize, offset));
            give_way(thread);
        }
        sanitizer::acquire(name(&*cta, offset, parity));
    }
}
