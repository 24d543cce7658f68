//! The OS threads that run CTAs. They live as long as the emulator: starting one per launch would cost more than the
//! small launches themselves.
//!
//! # Safety
//! A [`Launch`] borrows its parameters from the caller of [`Pool::run`], which returns only when every worker that takes
//! part has let go of it, and the others do not look into it; that is what makes sending its raw pointers sound.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::runtime::{Cta, Failure, Launch, Rng};
use super::{Order, faults, sanitizer};

/// How often the pool looks whether its workers get on. Ticks are counted, not time: a machine that slept does not
/// make a kernel hang.
const TICK: Duration = Duration::from_millis(100);

/// A launch on its way through the workers.
struct Task {
    launch: Launch<'static>,
    num_ctas: usize,
    next: AtomicUsize,
    failed: AtomicBool,
    error: Mutex<Option<(usize, Failure)>>,
}

// SAFETY: the pointers in `launch` are only read, and outlive the task (module text).
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

#[derive(Default)]
struct Board {
    /// Counts launches, so that a worker sees each exactly once.
    generation: u64,
    task: Option<Arc<Task>>,
    /// Workers that have not finished the current task.
    busy: usize,
    shutdown: bool,
}

/// What a worker shows of its doings. Apart from the other workers' in memory: each writes here every few nanoseconds.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Progress {
    /// Counts the turns that CUDA threads took.
    turns: AtomicU64,
    /// The kernel is to be ended.
    pub interrupted: AtomicBool,
}

impl Progress {
    /// Counts one turn; called by its worker alone, and so no atomic addition, which would be a tenth of all time.
    pub fn turn(&self) {
        self.turns.store(self.turns.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

struct Shared {
    progress: Vec<Progress>,
    /// Ticks without a turn after which a kernel hangs; `None` where it may not be interrupted.
    patience: Option<u32>,
    board: Mutex<Board>,
    work: Condvar,
    done: Condvar,
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Why there is none.
    without_workers: Option<Failure>,
}

impl Pool {
    pub fn new(threads: usize, patience: Option<Duration>) -> Self {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            progress: (0..threads).map(|_| Progress::default()).collect(),
            patience: patience.map(|patience| patience.div_duration_f32(TICK) as u32),
            board: Mutex::new(Board::default()),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let (mut workers, mut without_workers) = (Vec::with_capacity(threads), None);
        for worker in 0..threads {
            let shared = shared.clone();
            match std::thread::Builder::new().spawn(move || work(&shared, worker)) {
                Ok(started) => workers.push(started),
                // Fewer do it, too.
                Err(why) => {
                    without_workers = workers.is_empty().then(|| Failure::no_room("a thread", why));
                    break;
                }
            }
        }
        Pool { shared, workers, without_workers }
    }

    /// Runs every CTA of the launch; the error is that of the lowest CTA that failed.
    pub fn run(&self, launch: &Launch<'_>) -> Result<(), Failure> {
        if let Some(why) = &self.without_workers {
            return Err(why.clone());
        }
        let num_ctas = launch.grid.iter().map(|&n| n as usize).product();
        // SAFETY: only the lifetime changes; this function does not return before the workers that use it are done.
        let launch = unsafe { std::mem::transmute::<Launch<'_>, Launch<'static>>(*launch) };
        let task = Arc::new(Task {
            launch,
            num_ctas,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        });
        sanitizer::release(Arc::as_ptr(&task));
        let mut board = lock(&self.shared.board);
        board.generation += 1;
        board.busy = self.workers.len().min(num_ctas);
        board.task = Some(task.clone());
        self.shared.work.notify_all();
        let mut watch: Vec<(u64, u32)> = vec![(0, 0); self.workers.len()];
        while board.busy > 0 {
            let (woken, wait) = self.shared.done.wait_timeout(board, TICK).unwrap_or_else(|e| e.into_inner());
            board = woken;
            if wait.timed_out() {
                self.interrupt_hanging(&mut watch);
            }
        }
        board.task = None;
        drop(board);
        sanitizer::acquire(Arc::as_ptr(&task));
        match lock(&task.error).take() {
            Some((_, what)) => Err(what),
            None => Ok(()),
        }
    }

    /// `watch` has, by worker, its turns at the last tick, and the ticks since there was a new one.
    fn interrupt_hanging(&self, watch: &mut [(u64, u32)]) {
        for ((seen, ticks), (worker, progress)) in
            watch.iter_mut().zip(self.workers.iter().zip(&self.shared.progress))
        {
            let turns = progress.turns.load(Ordering::Relaxed);
            *ticks = if turns == *seen { *ticks + 1 } else { 0 };
            *seen = turns;
            let hangs = self.shared.patience.is_some_and(|patience| *ticks > patience);
            progress.interrupted.store(hangs, Ordering::Relaxed);
            if hangs {
                faults::interrupt(worker);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.board).shutdown = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// CTAs that no worker has, with their fibers, for the next emulator of this process: making hundreds of fibers takes
/// longer than a small launch, and under ThreadSanitizer a quarter of a second.
static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

struct Idle(Box<Cta>);

// SAFETY: no fiber of an idle CTA is inside a kernel; each is suspended in the loop of `runtime/fiber.rs`, which looks its
// thread up anew when it is resumed.
unsafe impl Send for Idle {}

/// A worker's life. Of a launch with fewer CTAs than there are workers only the first take part: the fibers that the others
/// would make are not needed, and cost all of ThreadSanitizer's clocks.
fn work(shared: &Shared, worker: usize) {
    let mut cta = None;
    let mut seen = 0;
    while let Some(task) = next_task(shared, &mut seen) {
        if worker >= task.num_ctas {
            continue;
        }
        let cta = cta.get_or_insert_with(|| lock(&IDLE).pop().map_or_else(Cta::new, |idle| idle.0));
        sanitizer::acquire(Arc::as_ptr(&task));
        run_some(cta, &task, &shared.progress[worker]);
        sanitizer::release(Arc::as_ptr(&task));
        drop(task);
        let mut board = lock(&shared.board);
        board.busy -= 1;
        if board.busy == 0 {
            shared.done.notify_all();
        }
    }
    lock(&IDLE).extend(cta.map(Idle));
}

/// Waits for the launch after the one that was `seen`; `None` when there will be no more.
fn next_task(shared: &Shared, seen: &mut u64) -> Option<Arc<Task>> {
    let mut board = lock(&shared.board);
    loop {
        if board.shutdown {
            return None;
        }
        if board.generation != *seen
            && let Some(task) = &board.task
        {
            *seen = board.generation;
            return Some(task.clone());
        }
        board = shared.work.wait(board).unwrap_or_else(|e| e.into_inner());
    }
}

/// Takes CTAs off the launch until none is left.
fn run_some(cta: &mut Cta, task: &Task, progress: &Progress) {
    let [nx, ny, _] = task.launch.grid.map(|n| n as usize);
    loop {
        let turn = task.next.fetch_add(1, Ordering::Relaxed);
        if turn >= task.num_ctas || task.failed.load(Ordering::Relaxed) {
            return;
        }
        let at = match task.launch.order {
            Order::InOrder => turn,
            // An affine walk with a stride coprime to the count visits every CTA once, in an order that the seed picks.
            Order::Random => {
                let n = task.num_ctas;
                let mut rng = Rng(task.launch.seed);
                let start = rng.below(n);
                let mut stride = 1 + rng.below(n);
                while gcd(stride, n) != 1 {
                    stride += 1;
                }
                ((start as u128 + turn as u128 * stride as u128) % n as u128) as usize
            }
        };
        let index = [at % nx, at / nx % ny, at / nx / ny].map(|i| i as u32);
        if let Err(what) = cta.run(&task.launch, index, progress) {
            task.failed.store(true, Ordering::Relaxed);
            let mut error = lock(&task.error);
            if error.as_ref().is_none_or(|(first, _)| at < *first) {
                *error = Some((at, what));
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
