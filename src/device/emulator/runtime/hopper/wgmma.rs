//! The product engine of each warpgroup: bf16 operands from shared memory (A also from registers), f32 accumulators.
//!
//! A product is issued when all 128 threads have called it, and carried out then or at the wait that covers it, as
//! `AsyncCopies` says; products of one warpgroup keep their order. From the issue to that wait, whatever the mode, the
//! engine keeps the values of the registers it was given, which hold [`POISON`] meanwhile: who reads them computes NaN, who
//! writes them is found at the wait, and so is a register whose variable has gone.
//!
//! Sums are f32 in ascending k, products and sums separately, as in the emulator's `tile.rs`: `wgmma/arithmetic.rs`.
//! What an operand in shared memory is says `wgmma/tile.rs`.

mod arithmetic;
mod tile;

use std::ops::Range;

use super::super::{AsyncCopies, Cta, Fiber, Site, State, Thread, fail, give_way, sanitizer};
use super::Hopper;
use arithmetic::{multiply_add, row_of};
use tile::Tile;

pub(super) const THREADS: usize = 128;
const M: usize = 64;
const K: usize = 16;
const MAX_N: usize = 256;
/// Words of A per thread.
const A_WORDS: usize = 4;

/// A NaN as f32, and a pair of NaN as bf16. Signalling, so that arithmetic changes it.
const POISON: u32 = 0x7f93_7fc9;

/// Groups of products that are told apart for ThreadSanitizer; more are never in flight.
const GROUPS: usize = 16;

/// What a warpgroup's threads do together; they must agree in all of it.
#[derive(Clone, Copy, PartialEq)]
pub(in super::super) enum Collective {
    Multiply { n: usize, a_in_registers: bool, a: u64, b: u64, accumulate: bool, group: u32 },
    Wait { pending: u32, group: u32 },
}

impl std::fmt::Display for Collective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Collective::Multiply { n, .. } => write!(f, "wgmma m64n{n}k16"),
            Collective::Wait { pending, .. } => write!(f, "wgmma_wait<{pending}>"),
        }
    }
}

/// One thread's registers.
#[derive(Clone, Copy)]
struct Operands {
    acc: *mut u32,
    a: *mut u32,
}

/// Registers that the engine has, of all threads.
struct Held {
    id: u32,
    /// Per thread.
    registers: Vec<*mut u32>,
    /// Per thread.
    num_words: usize,
    /// Thread by thread.
    values: Vec<u32>,
    /// Of the last product that uses them.
    last_group: u32,
    site: Site,
}

struct Product {
    n: usize,
    acc: u32,
    a: Result<Tile, u32>,
    b: Tile,
    accumulate: bool,
    group: u32,
    is_done: bool,
    site: Site,
}

/// What registers held at the last `wgmma_fence` that named them.
struct Named {
    at: *const u32,
    values: Vec<u32>,
    site: Site,
}

pub(in super::super) struct Warpgroup {
    arrived: u128,
    collective: Collective,
    site: Site,
    operands: [Operands; THREADS],
    /// How many groups each thread has committed.
    num_committed: [u32; THREADS],
    /// How many groups the waits of each thread have covered; later waits need not look at them.
    num_awaited: [u32; THREADS],
    named: Vec<Vec<Named>>,
    products: Vec<Product>,
    held: Vec<Held>,
    num_held: u32,
    /// Rows of K values, and K rows of n values.
    a: Vec<f32>,
    b: Vec<f32>,
    /// For ThreadSanitizer: the engine, and the names of the orderings that issue and completion make.
    fiber: Fiber,
    issued: u8,
    done: [u8; GROUPS],
}

impl Warpgroup {
    fn new() -> Warpgroup {
        Warpgroup {
            arrived: 0,
            collective: Collective::Wait { pending: 0, group: 0 },
            site: Site::NOWHERE,
            operands: [Operands { acc: std::ptr::null_mut(), a: std::ptr::null_mut() }; THREADS],
            num_committed: [0; THREADS],
            num_awaited: [0; THREADS],
            named: (0..THREADS).map(|_| Vec::new()).collect(),
            products: Vec::new(),
            held: Vec::new(),
            num_held: 0,
            a: vec![0.0; M * K],
            b: vec![0.0; K * MAX_N],
            fiber: Fiber::NONE,
            issued: 0,
            done: [0; GROUPS],
        }
    }

    pub fn reset(&mut self) {
        self.arrived = 0;
        self.num_committed = [0; THREADS];
        self.num_awaited = [0; THREADS];
        self.named.iter_mut().for_each(Vec::clear);
        self.products.clear();
        self.held.clear();
    }

    pub fn destroy(&mut self) {
        self.fiber.destroy();
    }

    /// Why no thread may return now.
    pub fn needs_its_threads(&self) -> Option<String> {
        if self.arrived != 0 {
            return Some(format!("waits in {} at {}", self.collective, self.site));
        }
        self.products.first().map(|product| format!("has the wgmma issued at {} in flight", product.site))
    }

    /// Where the product was issued that may still read these bytes of shared memory.
    pub fn reader_of(&self, bytes: Range<usize>) -> Option<Site> {
        let reads = |tile: &Tile| tile.rows().start < bytes.end && bytes.start < tile.rows().end;
        let reader = |product: &&Product| reads(&product.b) || product.a.as_ref().is_ok_and(reads);
        self.products.iter().find(reader).map(|product| product.site)
    }
}

impl Held {
    /// # Safety
    /// The registers' variables may be gone, but not the stacks they were on.
    unsafe fn check(&self, first_thread: usize) -> Result<(), String> {
        for (lane, &registers) in self.registers.iter().enumerate() {
            for i in 0..self.num_words {
                // SAFETY: the caller's promise.
                if unsafe { *registers.add(i) } != POISON {
                    return Err(format!(
                        "thread {} touched register {i} of {} of the wgmma in flight since {}",
                        first_thread + lane,
                        self.num_words,
                        self.site
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Warpgroup {
    /// The registers that all threads pass, if the engine has them already.
    fn find_held(
        &self,
        registers: impl Fn(usize) -> *mut u32,
        num_words: usize,
    ) -> Result<Option<usize>, String> {
        let overlaps = |held: &Held, lane: usize| {
            let (mine, theirs) = (registers(lane) as usize, held.registers[lane] as usize);
            mine < theirs + 4 * held.num_words && theirs < mine + 4 * num_words
        };
        let Some(i) = self.held.iter().position(|held| (0..THREADS).any(|lane| overlaps(held, lane))) else {
            return Ok(None);
        };
        let held = &self.held[i];
        if held.num_words != num_words || (0..THREADS).any(|lane| held.registers[lane] != registers(lane)) {
            return Err(format!("registers overlap those of the wgmma in flight since {}", held.site));
        }
        Ok(Some(i))
    }

    /// Takes registers from the threads; the identity of what was taken.
    ///
    /// # Safety
    /// Each thread's registers are `num_words` words of a live variable.
    unsafe fn hold(
        &mut self,
        first_thread: usize,
        registers: impl Fn(usize) -> *mut u32,
        num_words: usize,
        group: u32,
        site: Site,
    ) -> Result<u32, String> {
        if let Some(i) = self.find_held(&registers, num_words)? {
            let held = &mut self.held[i];
            held.last_group = group;
            // SAFETY: the caller's promise.
            unsafe { held.check(first_thread)? };
            return Ok(held.id);
        }
        let mut values = Vec::with_capacity(THREADS * num_words);
        for lane in 0..THREADS {
            let at = registers(lane);
            self.check_named(lane, at, num_words)
                .map_err(|e| format!("thread {}: {e}", first_thread + lane))?;
            for i in 0..num_words {
                // SAFETY: the caller's promise.
                unsafe {
                    values.push(*at.add(i));
                    *at.add(i) = POISON;
                }
            }
        }
        self.num_held += 1;
        let registers = (0..THREADS).map(registers).collect();
        self.held.push(Held { id: self.num_held, registers, num_words, values, last_group: group, site });
        Ok(self.num_held)
    }

    /// The registers are what they were at a `wgmma_fence` that named them.
    fn check_named(&self, lane: usize, at: *const u32, num_words: usize) -> Result<(), String> {
        let (begin, end) = (at as usize, at as usize + 4 * num_words);
        let covers = |named: &&Named| {
            let from = named.at as usize;
            from <= begin && end <= from + 4 * named.values.len()
        };
        let Some(named) = self.named[lane].iter().rev().find(covers) else {
            return Err("wgmma uses registers that no wgmma_fence has named".to_string());
        };
        let first = (begin - named.at as usize) / 4;
        for i in 0..num_words {
            // SAFETY: the registers that the thread passes to the product.
            if unsafe { *at.add(i) } != named.values[first + i] {
                return Err(format!("register {i} was written after the wgmma_fence at {}", named.site));
            }
        }
        Ok(())
    }

    /// The engine has left these values, which need no fence before the next product.
    fn note_values(named: &mut [Named], at: *const u32, values: &[u32]) {
        for entry in named {
            for (i, &value) in values.iter().enumerate() {
                let word = (at as usize + 4 * i).wrapping_sub(entry.at as usize) / 4;
                if let Some(slot) = entry.values.get_mut(word) {
                    *slot = value;
                }
            }
        }
    }

    fn carry_out(&mut self, which: usize, smem: &[u8]) {
        let product = &mut self.products[which];
        product.is_done = true;
        let n = product.n;
        let (a_rows, b_rows) = (&mut self.a, &mut self.b);
        match &product.a {
            Ok(tile) => tile.for_each(smem, |row, k, value| a_rows[row * K + k] = value),
            Err(id) => {
                let Some(held) = self.held.iter().find(|held| held.id == *id) else { return };
                for (i, &pair) in held.values.iter().enumerate() {
                    let (thread, register) = (i / A_WORDS, i % A_WORDS);
                    let row = row_of(thread, register % 2);
                    let k = 2 * (thread % 4) + 8 * (register / 2);
                    a_rows[row * K + k] = f32::from_bits(pair << 16);
                    a_rows[row * K + k + 1] = f32::from_bits(pair & 0xffff_0000);
                }
            }
        }
        product.b.for_each(smem, |column, k, value| b_rows[k * n + column] = value);
        let (id, accumulate) = (product.acc, product.accumulate);
        let Some(held) = self.held.iter_mut().find(|held| held.id == id) else { return };
        let acc: &mut [f32] = bytemuck::cast_slice_mut(&mut held.values);
        if !accumulate {
            acc.fill(0.0);
        }
        multiply_add(acc, a_rows, b_rows, n);
    }

    /// Carries out what the wait covers and gives registers back.
    ///
    /// # Safety
    /// The stacks of the warpgroup's threads are alive.
    unsafe fn complete(
        &mut self,
        first_thread: usize,
        pending: u32,
        committed: u32,
        smem: &[u8],
    ) -> Result<(), String> {
        let due = |group: u32| group < committed && committed - group > pending;
        for i in 0..self.products.len() {
            if due(self.products[i].group) && !self.products[i].is_done {
                self.carry_out(i, smem);
            }
        }
        self.products.retain(|product| !due(product.group));
        let mut i = 0;
        while i < self.held.len() {
            if !due(self.held[i].last_group) {
                i += 1;
                continue;
            }
            let held = self.held.remove(i);
            // SAFETY: the caller's promise. Registers that are still as the engine left them belong to a variable
            // that is still there, or to nobody.
            unsafe {
                held.check(first_thread)?;
                for (lane, &at) in held.registers.iter().enumerate() {
                    let values = &held.values[lane * held.num_words..][..held.num_words];
                    for (i, &value) in values.iter().enumerate() {
                        *at.add(i) = value;
                    }
                    Warpgroup::note_values(&mut self.named[lane], at, values);
                }
            }
        }
        Ok(())
    }
}

impl Cta {
    /// The warpgroup of a thread. All are made at once: sanitizers know parts of them by address.
    fn warpgroup(&mut self, thread: usize) -> Result<&mut Warpgroup, String> {
        let num_threads = self.warps.len() * super::super::WARP;
        if num_threads % THREADS != 0 {
            return Err(format!("a CTA of {num_threads} threads is not made of whole warpgroups"));
        }
        let groups = &mut self.hopper.warpgroups;
        if groups.len() < num_threads / THREADS {
            groups.resize_with(num_threads / THREADS, Warpgroup::new);
        }
        Ok(&mut groups[thread / THREADS])
    }
}

/// The rendezvous of a warpgroup. `run` is called once, by the last arriver.
///
/// # Safety
/// `thread` is the running fiber's own, `site` is alive, and the operands are valid for `collective` until it resolves.
unsafe fn rendezvous(
    thread: *mut Thread,
    site: *const Site,
    collective: Collective,
    operands: Operands,
    run: impl FnOnce(&mut Cta) -> Result<(), String>,
) {
    // SAFETY: as above; one fiber runs at a time.
    unsafe {
        let me = (*thread).thread as usize;
        let cta: *mut Cta = (*thread).cta;
        let group = match (&mut *cta).warpgroup(me) {
            Ok(group) => group,
            Err(what) => return fail(thread, *site, what),
        };
        if group.arrived == 0 {
            group.collective = collective;
            group.site = *site;
        } else if group.collective != collective || group.site != *site {
            let what = format!(
                "{collective} while others of the warpgroup wait in {} at {}, or with other operands",
                group.collective, group.site
            );
            return fail(thread, *site, what);
        }
        group.operands[me % THREADS] = operands;
        group.arrived |= 1 << (me % THREADS);
        if group.arrived != u128::MAX {
            (*thread).state = State::AtWarpgroup(collective, *site);
            give_way(thread);
            return;
        }
        group.arrived = 0;
        let first = me - me % THREADS;
        for other in (first..first + THREADS).filter(|other| *other != me) {
            (&mut *cta).wake(other);
        }
        if let Err(what) = run(&mut *cta) {
            fail(thread, *site, what);
        }
    }
}

pub(super) unsafe extern "C" fn name(
    thread: *mut Thread,
    registers: *const u32,
    num_words: u32,
    site: *const Site,
) {
    // SAFETY: the kernel passes its own thread, a live site and `num_words` words of a local variable.
    unsafe {
        let me = (*thread).thread as usize;
        let group = match (*(*thread).cta).warpgroup(me) {
            Ok(group) => group,
            Err(what) => return fail(thread, *site, what),
        };
        let named = &mut group.named[me % THREADS];
        let (begin, end) = (registers as usize, registers as usize + 4 * num_words as usize);
        named.retain(|old| {
            let from = old.at as usize;
            from < begin || end < from + 4 * old.values.len()
        });
        let values = (0..num_words as usize).map(|i| *registers.add(i)).collect();
        named.push(Named { at: registers, values, site: *site });
    }
}

pub(super) unsafe extern "C" fn multiply(
    thread: *mut Thread,
    acc: *mut u32,
    n: u32,
    a_registers: *mut u32,
    a: u64,
    b: u64,
    accumulate: u32,
    site: *const Site,
) {
    // SAFETY: `acc` and `a_registers` (where not null) are locals of the calling thread of n / 2 and 4 words.
    unsafe {
        let (me, n) = ((*thread).thread as usize, n as usize);
        let group = match (*(*thread).cta).warpgroup(me) {
            Ok(group) => group,
            Err(what) => return fail(thread, *site, what),
        };
        let collective = Collective::Multiply {
            n,
            a_in_registers: !a_registers.is_null(),
            a,
            b,
            accumulate: accumulate != 0,
            group: group.num_committed[me % THREADS],
        };
        sanitizer::release(&raw const group.issued);
        let operands = Operands { acc, a: a_registers };
        rendezvous(thread, site, collective, operands, |cta| issue(cta, &*thread, collective, *site));
    }
}

/// All threads have called: checks the operands, takes the registers, and carries the product out or leaves it for later.
///
/// # Safety
/// The warpgroup's operands are valid for the product.
unsafe fn issue(cta: &mut Cta, thread: &Thread, what: Collective, site: Site) -> Result<(), String> {
    let Collective::Multiply { n, a_in_registers, a, b, accumulate, group } = what else { return Ok(()) };
    let now = match cta.async_copies {
        AsyncCopies::Eager => true,
        AsyncCopies::Lazy => false,
        AsyncCopies::Random => cta.rng.next() & 1 == 0,
    };
    let first_thread = thread.thread as usize / THREADS * THREADS;
    cta.picture();
    // SAFETY: shared memory holds `smem_bytes` bytes.
    let smem = unsafe { std::slice::from_raw_parts(cta.index.smem.cast::<u8>(), cta.smem_bytes) };
    let Hopper { picture, warpgroups, .. } = &mut cta.hopper;
    let engine = &mut warpgroups[first_thread / THREADS];
    let operand = |name: &str, descriptor, num_rows| {
        let tile = Tile::decode(descriptor, num_rows, smem.len());
        let tile = tile.and_then(|tile| tile.check(smem, picture).map(|_| tile));
        tile.map_err(|e| format!("{name}: {e}"))
    };
    let b = operand("B", b, n)?;
    let operands = engine.operands;
    let a = if a_in_registers {
        // SAFETY: the caller's promise.
        Err(unsafe { engine.hold(first_thread, |lane| operands[lane].a, A_WORDS, group, site)? })
    } else {
        Ok(operand("A", a, M)?)
    };
    // SAFETY: the caller's promise.
    let acc = unsafe { engine.hold(first_thread, |lane| operands[lane].acc, n / 2, group, site)? };
    engine.note(thread, smem, &a, &b, group);
    engine.products.push(Product { n, acc, a, b, accumulate, group, is_done: false, site });
    if now {
        for i in 0..engine.products.len() {
            if !engine.products[i].is_done {
                engine.carry_out(i, smem);
            }
        }
    }
    Ok(())
}

impl Warpgroup {
    /// Tells ThreadSanitizer of what the engine reads, at any time after the issue.
    fn note(&mut self, thread: &Thread, smem: &[u8], a: &Result<Tile, u32>, b: &Tile, group: u32) {
        if !thread.fiber.exists() {
            return;
        }
        if !self.fiber.exists() {
            self.fiber = Fiber::create();
        }
        self.fiber.switch_to();
        sanitizer::acquire(&raw const self.issued);
        for tile in a.iter().chain([b]) {
            for (_, _, at) in tile.chunks() {
                sanitizer::reads(smem[at..].as_ptr(), 16);
            }
        }
        sanitizer::release(&raw const self.done[group as usize % GROUPS]);
        thread.fiber.switch_to();
    }
}

pub(super) unsafe extern "C" fn commit(thread: *mut Thread) {
    // SAFETY: the kernel passes its own thread; without whole warpgroups there is nothing to commit.
    unsafe {
        let me = (*thread).thread as usize;
        if let Ok(group) = (*(*thread).cta).warpgroup(me) {
            group.num_committed[me % THREADS] += 1;
        }
    }
}

pub(super) unsafe extern "C" fn wait(thread: *mut Thread, pending: u32, site: *const Site) {
    // SAFETY: the kernel passes its own thread and a live site; one fiber runs at a time.
    unsafe {
        let me = (*thread).thread as usize;
        let cta: *mut Cta = (*thread).cta;
        let committed = match (&mut *cta).warpgroup(me) {
            Ok(group) => group.num_committed[me % THREADS],
            Err(what) => return fail(thread, *site, what),
        };
        let collective = Collective::Wait { pending, group: committed };
        let nothing = Operands { acc: std::ptr::null_mut(), a: std::ptr::null_mut() };
        rendezvous(thread, site, collective, nothing, |cta| {
            let smem = std::slice::from_raw_parts(cta.index.smem.cast::<u8>(), cta.smem_bytes);
            let first_thread = me - me % THREADS;
            cta.hopper.warpgroups[me / THREADS].complete(first_thread, pending, committed, smem)
        });
        let group = &mut (&mut (*cta).hopper.warpgroups)[me / THREADS];
        let due = committed.saturating_sub(pending);
        for done in (group.num_awaited[me % THREADS]..due).rev().take(GROUPS) {
            sanitizer::acquire(&raw const group.done[done as usize % GROUPS]);
        }
        group.num_awaited[me % THREADS] = group.num_awaited[me % THREADS].max(due);
    }
}
