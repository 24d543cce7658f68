//! Reading ahead: threads fill pinned buffers while the device takes what is in others.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::device::HostBuffer;
use crate::{Error, Result};

/// Pinned buffers: some are read into, one is copied from, and one is to be delivered next.
pub(super) const BUFFERS: usize = 4;

/// Readers at most: one keeps up with a disk's cache, several are faster on disks that answer many at once.
const READERS: usize = BUFFERS - 1;

/// What a reader is given, and gives back.
struct Piece<J, R> {
    number: usize,
    job: J,
    buffer: HostBuffer,
    /// Of reading it.
    result: Result<R>,
}

/// Carries out `jobs`: `read` on threads, several at a time, into one of `buffers` each; `deliver` here, in the jobs' order. A buffer
/// is read into again when no copy is in flight from it. Ends with the first error in that order.
///
/// # Errors
/// Those of `read` and `deliver`.
pub(super) fn in_order<J: Send, R: Send>(
    buffers: Vec<HostBuffer>,
    jobs: impl Iterator<Item = J>,
    read: impl Fn(&mut J, &mut [u8]) -> Result<R> + Sync,
    deliver: impl FnMut(J, R, &mut HostBuffer) -> Result<()>,
) -> Result<Vec<HostBuffer>> {
    let is_over = AtomicBool::new(false);
    let (give, taken) = channel::<(usize, J, HostBuffer)>();
    let (done, filled) = channel();
    let taken = Mutex::new(taken);
    let reader = |done: Sender<Piece<J, R>>| {
        loop {
            // Whoever waits for a job holds the lock: there is nothing to do for the others either.
            let next = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, mut job, mut buffer)) = next else { return };
            let result = match is_over.load(Ordering::Relaxed) {
                true => Err(Error::Stopped),
                // Were the thread to end here, what it has would be waited for.
                false => catch_unwind(AssertUnwindSafe(|| read(&mut job, buffer.as_mut_slice())))
                    .unwrap_or_else(|_| {
                        Err(Error::Internal("a thread that reads weights panicked".to_string()))
                    }),
            };
            if done.send(Piece { number, job, buffer, result }).is_err() {
                return;
            }
        }
    };
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(READERS);
    std::thread::scope(|scope| {
        for i in 0..readers {
            let (reader, done) = (&reader, done.clone());
            match std::thread::Builder::new().spawn_scoped(scope, move || reader(done)) {
                Ok(_) => {}
                Err(e) if i == 0 => return Err(Error::no_thread(&e)),
                // Fewer do, too.
                Err(_) => break,
            }
        }
        drop(done);
        let mut buffers = VecDeque::from(buffers);
        let result = carry_out(&mut buffers, jobs, &give, &filled, deliver);
        // The readers end; what they still have comes back, since memory goes where it came from: on this thread.
        is_over.store(true, Ordering::Relaxed);
        drop(give);
        buffers.extend(filled.iter().map(|piece| piece.buffer));
        result.map(|()| buffers.into())
    })
}

fn carry_out<J, R>(
    buffers: &mut VecDeque<HostBuffer>,
    mut jobs: impl Iterator<Item = J>,
    give: &Sender<(usize, J, HostBuffer)>,
    filled: &Receiver<Piece<J, R>>,
    mut deliver: impl FnMut(J, R, &mut HostBuffer) -> Result<()>,
) -> Result<()> {
    let gone = || Error::Internal("a thread that reads weights is gone".to_string());
    let mut arrived: Vec<Piece<J, R>> = Vec::new();
    let (mut given, mut delivered, mut is_last) = (0, 0, false);
    loop {
        // The last one stays here: from it a copy has just begun.
        while !is_last && (buffers.len() > 1 || given == delivered) {
            let Some(job) = jobs.next() else {
                is_last = true;
                break;
            };
            let Some(mut buffer) = buffers.pop_front() else { return Err(gone()) };
            // Waits for copies on this thread, which is the device's.
            buffer.as_mut_slice();
            give.send((given, job, buffer)).map_err(|_| gone())?;
            given += 1;
        }
        if delivered == given {
            return Ok(());
        }
        let at = loop {
            match arrived.iter().position(|piece| piece.number == delivered) {
                Some(at) => break at,
                None => arrived.push(filled.recv().map_err(|_| gone())?),
            }
        };
        let Piece { job, mut buffer, result, .. } = arrived.swap_remove(at);
        let result = result.and_then(|read| deliver(job, read, &mut buffer));
        buffers.push_back(buffer);
        if result.is_err() {
            buffers.extend(arrived.into_iter().map(|piece| piece.buffer));
            return result;
        }
        delivered += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::device::{Device, EmulatorOptions};

    fn buffers(device: &Device) -> Vec<HostBuffer> {
        (0..BUFFERS).map(|_| device.allocate_host(8).unwrap()).collect()
    }

    /// Whatever takes how long, they come in order, with what was read for them.
    #[test]
    fn jobs_are_delivered_in_order() {
        let device = Device::emulator(EmulatorOptions::default());
        for jobs in [0, 1, 2, BUFFERS, 50] {
            let mut delivered = Vec::new();
            let read = |job: &mut u64, buffer: &mut [u8]| {
                std::thread::sleep(Duration::from_micros(*job * 7919 % 500));
                buffer.copy_from_slice(&job.to_le_bytes());
                Ok(*job)
            };
            let back = in_order(buffers(&device), 0..jobs as u64, read, |job, read, buffer| {
                assert_eq!((job, buffer.as_slice()), (read, &job.to_le_bytes()[..]));
                delivered.push(job);
                Ok(())
            });
            assert_eq!(back.unwrap().len(), BUFFERS);
            assert_eq!(delivered, (0..jobs as u64).collect::<Vec<_>>());
        }
    }

    /// The first error in the jobs' order ends it, though a later one came earlier.
    #[test]
    fn the_first_error_ends_it() {
        let device = Device::emulator(EmulatorOptions::default());
        let read = |job: &mut u64, _: &mut [u8]| match *job {
            5 => {
                std::thread::sleep(Duration::from_millis(20));
                Err(Error::Input("five".to_string()))
            }
            6 => Err(Error::Input("six".to_string())),
            _ => Ok(()),
        };
        let mut delivered = 0;
        let error = in_order(buffers(&device), 0..100u64, read, |_, (), _| {
            delivered += 1;
            Ok(())
        });
        assert!(matches!(error, Err(Error::Input(what)) if what == "five"));
        assert_eq!(delivered, 5);
        let panics = |job: &mut u64, _: &mut [u8]| {
            assert_ne!(*job, 4);
            Ok(())
        };
        let panics = in_order(buffers(&device), 0..9u64, panics, |_, (), _| Ok(()));
        assert!(matches!(panics, Err(Error::Internal(_))));
        let stopped = in_order(
            buffers(&device),
            0..100u64,
            |_, _| Ok(()),
            |job, (), _| match job {
                3 => Err(Error::Stopped),
                _ => Ok(()),
            },
        );
        assert!(matches!(stopped, Err(Error::Stopped)));
    }
}
