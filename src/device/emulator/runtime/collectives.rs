//! What the threads of a warp or a CTA do together: barriers, shuffles, loads of matrices and their products.

use std::ffi::c_void;

use super::{Cta, Site, State, Thread, WARP, fail, give_way, sanitizer, tile};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Collective {
    SyncWarp,
    Shuffle { mask: u32 },
    LoadMatrix { tiles: u32, trans: bool },
    Mma { mt: u32, nt: u32 },
    MmaHalf { mt: u32, nt: u32 },
}

/// One lane's operands of the collective it waits in.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub out: *mut c_void,
    pub a: *const c_void,
    pub b: *const c_void,
}

const NO_OPERANDS: Operands =
    Operands { out: std::ptr::null_mut(), a: std::ptr::null(), b: std::ptr::null() };

pub(super) struct Warp {
    /// Lanes that may run.
    pub ready: u32,
    /// Lanes that have not returned from the kernel.
    pub live: u32,
    /// Lanes waiting in the current collective.
    pub arrived: u32,
    pub collective: Collective,
    pub site: Site,
    pub operands: [Operands; WARP],
    /// Names of the orderings that one `sync_warp` and the next make.
    pub synced: [u8; 2],
    pub num_synced: usize,
}

impl Warp {
    /// With all of its lanes ready.
    pub fn new() -> Warp {
        Warp {
            ready: u32::MAX,
            live: u32::MAX,
            arrived: 0,
            collective: Collective::SyncWarp,
            site: Site::NOWHERE,
            operands: [NO_OPERANDS; WARP],
            synced: [0; 2],
            num_synced: 0,
        }
    }
}

pub(super) unsafe extern "C" fn sync_cta(thread: *mut Thread, site: *const Site) {
    // SAFETY: the kernel passes its own thread and a live site; one fiber runs at a time.
    unsafe {
        let cta = &mut *(*thread).cta;
        let synced = &raw const cta.synced[cta.num_synced % 2];
        sanitizer::release(synced);
        cta.barrier_arrived += 1;
        if cta.barrier_arrived == cta.live {
            cta.barrier_arrived = 0;
            cta.num_synced += 1;
            cta.recorder.converge_all();
            let me = (*thread).thread as usize;
            for (w, warp) in cta.warps.iter_mut().enumerate() {
                if warp.arrived != 0 {
                    let what =
                        format!("a CTA barrier completed while warp {w} waits in {:?}", warp.collective);
                    return fail(thread, *site, what);
                }
                warp.ready = warp.live;
            }
            cta.warps[me / WARP].ready &= !(1 << (me % WARP));
            sanitizer::acquire(synced);
            return;
        }
        (*thread).state = State::AtCta(*site);
        give_way(thread);
        sanitizer::acquire(synced);
    }
}

/// The rendezvous. `run` is called once, by the last arriver, with every lane's operands.
///
/// # Safety
/// `thread` is the running fiber's own, `site` is alive, and the operands are valid for `collective` until it resolves.
// Inlined, as all on the way to a switch of stacks: the processor foresees no return from a frame of the stack it came to.
#[inline(always)]
unsafe fn rendezvous(
    thread: *mut Thread,
    site: *const Site,
    collective: Collective,
    operands: Operands,
    run: impl FnOnce(&Cta, &[Operands; WARP]) -> Result<(), String>,
) {
    // SAFETY: as above; `cta` is only touched by the running fiber.
    unsafe {
        let me = (*thread).thread as usize;
        let cta: *mut Cta = (*thread).cta;
        let warp = &mut (&mut (*cta).warps)[me / WARP];
        let lane = me % WARP;
        if warp.arrived == 0 {
            warp.collective = collective;
            warp.site = *site;
        } else if warp.collective != collective || warp.site != *site {
            let what = format!(
                "{collective:?} while other lanes of the warp wait in {:?} at {}",
                warp.collective, warp.site
            );
            return fail(thread, *site, what);
        }
        warp.operands[lane] = operands;
        warp.arrived |= 1 << lane;
        if warp.arrived != u32::MAX {
            (*thread).state = State::AtWarp(collective, *site);
            give_way(thread);
            return;
        }
        warp.arrived = 0;
        warp.ready = !(1 << lane);
        (*cta).recorder.converge(me / WARP);
        let operands: *const [Operands; WARP] = &warp.operands;
        if let Err(what) = run(&*cta, &*operands) {
            fail(thread, *site, what);
        }
    }
}

pub(super) unsafe extern "C" fn sync_warp(thread: *mut Thread, site: *const Site) {
    // SAFETY: the kernel passes its own thread and a live site; the collective has no operands.
    unsafe {
        let warp = &raw mut (&mut (*(*thread).cta).warps)[(*thread).thread as usize / WARP];
        let synced = &raw const (*warp).synced[(*warp).num_synced % 2];
        sanitizer::release(synced);
        rendezvous(thread, site, Collective::SyncWarp, NO_OPERANDS, |_, _| {
            (*warp).num_synced += 1;
            Ok(())
        });
        sanitizer::acquire(synced);
    }
}

pub(super) unsafe extern "C" fn shfl_xor(thread: *mut Thread, value: *mut u32, mask: u32, site: *const Site) {
    let operands = Operands { out: value.cast(), ..NO_OPERANDS };
    // SAFETY: `value` is a local of the calling lane, alive until it resumes.
    unsafe {
        rendezvous(thread, site, Collective::Shuffle { mask }, operands, |_, lanes| {
            let before = lanes.map(|o| *o.out.cast::<u32>());
            for (lane, o) in lanes.iter().enumerate() {
                *o.out.cast::<u32>() = before[(lane ^ mask as usize) % WARP];
            }
            Ok(())
        })
    }
}

pub(super) unsafe extern "C" fn ldmatrix(
    thread: *mut Thread,
    frag: *mut u32,
    rows: *const *const u8,
    tiles: u32,
    trans: u32,
    site: *const Site,
) {
    let collective = Collective::LoadMatrix { tiles, trans: trans != 0 };
    let operands = Operands { out: frag.cast(), a: rows.cast(), b: std::ptr::null() };
    // SAFETY: `frag` holds 4 words and `rows` one pointer per tile, both locals of the calling lane; every row
    // address is checked before it is read.
    unsafe {
        for tile in 0..tiles as usize {
            sanitizer::reads(*rows.add(tile), 16);
        }
        rendezvous(thread, site, collective, operands, |cta, lanes| {
            for tile in 0..tiles as usize {
                let rows = lanes.map(|o| *o.a.cast::<*const u8>().add(tile));
                for (lane, &row) in rows.iter().enumerate() {
                    if row as usize % 16 != 0 {
                        return Err(format!("ldmatrix row of lane {lane} at {row:p} is not 16-byte aligned"));
                    }
                    if !cta.smem_holds(row, 16) {
                        return Err(format!(
                            "ldmatrix row of lane {lane} at {row:p} is outside shared memory"
                        ));
                    }
                }
                // By lane, the words of the four matrices.
                let mut words = [[0u32; 4]; WARP];
                for (at, &row) in rows.iter().enumerate() {
                    let (matrix, r) = (at / 8, at % 8);
                    if trans == 0 {
                        let row = *row.cast::<[u32; 4]>();
                        for t in 0..4 {
                            words[4 * r + t][matrix] = row[t];
                        }
                    } else {
                        let row = *row.cast::<[u16; 8]>();
                        for g in 0..8 {
                            words[4 * g + r / 2][matrix] |= u32::from(row[g]) << (16 * (r % 2));
                        }
                    }
                }
                for (o, words) in lanes.iter().zip(words) {
                    *o.out.cast::<[u32; 4]>().add(tile) = words;
                }
            }
            Ok(())
        })
    }
}

/// # Safety
/// As [`rendezvous`]; the operands are locals of the calling lane, with `4 mt nt` accumulators, `4 mt` and `2 nt` words.
#[inline(always)]
unsafe fn multiply<N: tile::Numbers>(
    thread: *mut Thread,
    site: *const Site,
    collective: Collective,
    [mt, nt]: [u32; 2],
    operands: Operands,
) {
    // SAFETY: the caller's promise.
    unsafe {
        rendezvous(thread, site, collective, operands, |_, lanes| {
            let acc = lanes.map(|o| o.out.cast::<N::Acc>());
            let a = lanes.map(|o| o.a.cast::<u32>());
            let b = lanes.map(|o| o.b.cast::<u32>());
            tile::mma::<N>(&acc, &a, &b, mt as usize, nt as usize)
        })
    }
}

pub(super) unsafe extern "C" fn mma(
    thread: *mut Thread,
    acc: *mut f32,
    a: *const u32,
    b: *const u32,
    mt: u32,
    nt: u32,
    site: *const Site,
) {
    let operands = Operands { out: acc.cast(), a: a.cast(), b: b.cast() };
    // SAFETY: `acc`, `a` and `b` are locals of the calling lane with 4 mt nt, 4 mt and 2 nt words.
    unsafe { multiply::<tile::Bf16>(thread, site, Collective::Mma { mt, nt }, [mt, nt], operands) }
}

pub(super) unsafe extern "C" fn mma_half(
    thread: *mut Thread,
    acc: *mut u32,
    a: *const u32,
    b: *const u32,
    mt: u32,
    nt: u32,
    site: *const Site,
) {
    let operands = Operands { out: acc.cast(), a: a.cast(), b: b.cast() };
    // SAFETY: `acc`, `a` and `b` are locals of the calling lane with 2 mt nt words of two accumulators, 4 mt and 2 nt words.
    unsafe { multiply::<tile::Half>(thread, site, Collective::MmaHalf { mt, nt }, [mt, nt], operands) }
}
