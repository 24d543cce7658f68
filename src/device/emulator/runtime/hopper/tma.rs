//! The CTA's copy engine: boxes of matrices, and plain ranges, from device memory to shared memory.
//!
//! A copy is carried out at its issue, or later as `AsyncCopies` says; until then its target holds NaN patterns. Copies
//! overtake each other: late ones come last issued first, random ones in any order.

use super::super::{AsyncCopies, Cta, Fiber, Site, Thread, fail, sanitizer};
use super::mbarrier;
use crate::abi;

/// Eight rows of 128 bytes: after so many the pattern of the swizzle begins anew.
const SWIZZLE_BYTES: usize = 1024;

/// The emulator's encoding of [`abi::tensor_map`].
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Map {
    pub mark: u64,
    /// Of the matrix, in device memory.
    pub address: u64,
    /// Bytes of a row that belong to the matrix.
    pub row_bytes: u64,
    pub num_rows: u64,
    pub pitch_bytes: u64,
    pub element_bytes: u64,
    pub box_row_bytes: u64,
    pub box_num_rows: u64,
    /// 0 or 1.
    pub swizzled: u64,
    pub unused: [u64; 7],
}

impl Map {
    pub const MARK: u64 = 0x7363_686e_656c_6c54;

    pub fn empty() -> Map {
        Map { mark: Map::MARK, ..bytemuck::Zeroable::zeroed() }
    }

    pub fn encode(self) -> abi::tensor_map {
        abi::tensor_map { opaque: bytemuck::cast(self) }
    }

    fn box_bytes(&self) -> usize {
        (self.box_row_bytes * self.box_num_rows) as usize
    }
}

#[derive(Clone, Copy)]
enum Source {
    /// At byte `x` of row `y`.
    Box {
        map: Map,
        x: i64,
        y: i64,
    },
    Range(*const u8),
}

#[derive(Clone, Copy)]
struct Copy {
    /// In shared memory.
    dst: usize,
    bytes: usize,
    source: Source,
    barrier: usize,
    site: Site,
}

/// Of one CTA.
#[derive(Default)]
pub(in super::super) struct Engine {
    pending: Vec<Copy>,
    /// For ThreadSanitizer: the engine, and the name of the orderings that issues make.
    fiber: Fiber,
    issued: u8,
}

impl Engine {
    pub fn reset(&mut self) {
        self.pending.clear();
    }

    pub fn destroy(&mut self) {
        self.fiber.destroy();
    }

    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn who_is_left(&self) -> String {
        self.pending.first().map_or(String::new(), |copy| format!("the copy issued at {}", copy.site))
    }
}

impl Copy {
    /// Rows, and bytes of each.
    fn shape(&self) -> (usize, usize) {
        match &self.source {
            Source::Range(_) => (1, self.bytes),
            Source::Box { map, .. } => (map.box_num_rows as usize, map.box_row_bytes as usize),
        }
    }

    /// What of a row, from byte `from` to byte `to` of it, is inside the matrix: its address, its place in the row, its
    /// length.
    fn inside(&self, row: usize, from: usize, to: usize) -> Option<(*const u8, usize, usize)> {
        match &self.source {
            Source::Range(src) => Some((src.wrapping_add(from), from, to - from)),
            Source::Box { map, x, y } => {
                let y = y + row as i64;
                let begin = (x + from as i64).max(0);
                let end = (x + to as i64).min(map.row_bytes as i64);
                let src = map.address as i64 + y * map.pitch_bytes as i64 + begin;
                let is_inside = y >= 0 && y < map.num_rows as i64 && begin < end;
                is_inside.then_some((src as *const u8, (begin - x) as usize, (end - begin) as usize))
            }
        }
    }

    fn rows_inside(&self) -> impl Iterator<Item = (*const u8, usize)> {
        let (num_rows, row_bytes) = self.shape();
        (0..num_rows)
            .filter_map(move |row| self.inside(row, 0, row_bytes).map(|(src, _, bytes)| (src, bytes)))
    }

    fn perform(&self, cta: &mut Cta) {
        let (num_rows, row_bytes) = self.shape();
        let swizzled = matches!(&self.source, Source::Box { map, .. } if map.swizzled != 0);
        for row in 0..num_rows {
            for from in (0..row_bytes).step_by(16) {
                let mut bytes = [0u8; 16];
                if let Some((src, at, len)) = self.inside(row, from, from + 16) {
                    for i in 0..len {
                        // SAFETY: `issue` has checked what is inside against the launch's memory.
                        bytes[at - from + i] = unsafe { *src.add(i) };
                    }
                }
                let mut at = self.dst + row * row_bytes + from;
                if swizzled {
                    at ^= (at >> 7 & 7) << 4;
                }
                cta.picture()[at..at + 16].copy_from_slice(&bytes);
                // SAFETY: `issue` has checked the target; the swizzle stays within its rows of 128 aligned bytes.
                unsafe { *cta.index.smem.cast::<u8>().add(at).cast::<[u8; 16]>() = bytes };
            }
        }
    }

    /// Tells ThreadSanitizer of the copy as one that the engine makes, at any time after its issue.
    fn note(&self, cta: &mut Cta, thread: &Thread, parity: u32) {
        if !thread.fiber.exists() {
            return;
        }
        if !cta.hopper.copies.fiber.exists() {
            cta.hopper.copies.fiber = Fiber::create();
        }
        let engine = &cta.hopper.copies;
        sanitizer::release(&raw const engine.issued);
        engine.fiber.switch_to();
        sanitizer::acquire(&raw const engine.issued);
        for (src, bytes) in self.rows_inside() {
            sanitizer::reads(src, bytes);
        }
        // SAFETY: an address within shared memory.
        sanitizer::writes(unsafe { cta.index.smem.cast::<u8>().add(self.dst) }, self.bytes);
        mbarrier::note_completion(cta, self.barrier, parity);
        thread.fiber.switch_to();
    }
}

impl Cta {
    /// Carries out one of the pending copies, of which there is one at least.
    pub(super) fn complete_a_copy(&mut self) {
        let pending = &mut self.hopper.copies.pending;
        let which = match self.async_copies {
            AsyncCopies::Random => self.rng.below(pending.len()),
            _ => pending.len() - 1,
        };
        let copy = pending.remove(which);
        copy.perform(self);
        if let Err(what) = mbarrier::complete(self, copy.barrier, copy.bytes as u32) {
            self.fail(format!("the copy issued at {}: {what}", copy.site));
        }
    }
}

/// Checks and issues a copy to shared memory whose address is a multiple of `alignment`.
///
/// # Safety
/// `thread` is the running fiber's own.
unsafe fn issue(
    thread: *mut Thread,
    dst: *mut u8,
    alignment: usize,
    bytes: usize,
    source: Source,
    barrier: *mut u8,
    site: Site,
) -> Result<(), String> {
    // SAFETY: one fiber runs at a time.
    let cta = unsafe { &mut *(*thread).cta };
    if !cta.smem_holds(dst, bytes) {
        return Err(format!("a copy writes {bytes} bytes at {dst:p}, outside shared memory"));
    }
    let at = cta.smem_offset(dst);
    if at % alignment != 0 {
        return Err(format!("a copy to shared memory + {at}, which is not a multiple of {alignment}"));
    }
    let barrier = mbarrier::place(cta, barrier)?;
    let parity = mbarrier::check_for_copy(cta, barrier)?;
    let copy = Copy { dst: at, bytes, source, barrier, site };
    for (src, bytes) in copy.rows_inside() {
        if !cta.footprint_holds(src, bytes) {
            return Err(format!("a copy reads {bytes} bytes at {src:p}, outside the memory of this launch"));
        }
    }
    for group in &cta.hopper.warpgroups {
        if let Some(reader) = group.reader_of(at..at + bytes) {
            return Err(format!(
                "a copy overwrites shared memory + {at}..{}, which the wgmma in flight at {reader} reads",
                at + bytes
            ));
        }
    }
    // SAFETY: the kernel's own thread.
    copy.note(cta, unsafe { &*thread }, parity);
    let eager = match cta.async_copies {
        AsyncCopies::Eager => true,
        AsyncCopies::Lazy => false,
        AsyncCopies::Random => cta.rng.next() & 1 == 0,
    };
    if eager {
        copy.perform(cta);
        return mbarrier::complete(cta, barrier, bytes as u32);
    }
    cta.picture()[at..at + bytes].fill(0xff);
    // SAFETY: checked above.
    unsafe { std::ptr::write_bytes(dst, 0xff, bytes) };
    cta.hopper.copies.pending.push(copy);
    Ok(())
}

pub(super) unsafe extern "C" fn load_2d(
    thread: *mut Thread,
    dst: *mut u8,
    map: *const Map,
    x: i32,
    y: i32,
    barrier: *mut u8,
    site: *const Site,
) {
    // SAFETY: the kernel passes its own thread, a live site, and the 128 bytes of a `tensor_map` of its params struct,
    // whose mark tells whether this machine has made it.
    unsafe {
        if map as usize % 64 != 0 {
            return fail(thread, *site, format!("a tensor map at {map:p}, which is not a multiple of 64"));
        }
        let map = *map;
        if map.mark != Map::MARK {
            return fail(thread, *site, "what was passed is no tensor map of this machine".to_string());
        }
        let x_bytes = x as i64 * map.element_bytes as i64;
        // An illegal instruction on an H200.
        if x_bytes % 16 != 0 {
            let what = format!(
                "a copy of a box at column {x}: byte {x_bytes} of a row, which is not a multiple of 16"
            );
            return fail(thread, *site, what);
        }
        let alignment = if map.swizzled != 0 { SWIZZLE_BYTES } else { 128 };
        let source = Source::Box { map, x: x_bytes, y: y as i64 };
        if let Err(what) = issue(thread, dst, alignment, map.box_bytes(), source, barrier, *site) {
            fail(thread, *site, what);
        }
    }
}

pub(super) unsafe extern "C" fn bulk_load(
    thread: *mut Thread,
    dst: *mut u8,
    src: *const u8,
    num_bytes: u32,
    barrier: *mut u8,
    site: *const Site,
) {
    // SAFETY: the kernel passes its own thread and a live site; `issue` checks the addresses.
    unsafe {
        if src as usize % 16 != 0 || num_bytes % 16 != 0 || num_bytes == 0 {
            let what = format!("a copy of {num_bytes} bytes from {src:p}: both must be multiples of 16");
            return fail(thread, *site, what);
        }
        let source = Source::Range(src);
        if let Err(what) = issue(thread, dst, 16, num_bytes as usize, source, barrier, *site) {
            fail(thread, *site, what);
        }
    }
}
