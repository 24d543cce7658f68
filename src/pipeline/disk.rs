//! Weights that neither the device nor pinned memory has room for: a thread reads them from the cache's file, run after run in the
//! order in which the operations of the run copy them, as far ahead as its ring of pinned slots is long.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::device::ring::{Filler, Ring};
use crate::device::{Device, StreamId, View};
use crate::weights::packed::PackedFile;
use crate::{Error, Result};

/// Slots of the ring, of a piece of the file each.
pub(super) const SLOTS: usize = 4;

/// The reader, and the device's half of its ring.
#[derive(Debug)]
pub(super) struct Disk {
    file: Arc<PackedFile>,
    ring: Ring,
    /// Units of a run, in order.
    orders: Option<Sender<Arc<[usize]>>>,
    /// How each run went.
    ends: Receiver<Result<()>>,
    thread: Option<JoinHandle<()>>,
    is_running: bool,
}

impl Disk {
    /// Starts the thread; pieces of `file` have at most `piece` bytes.
    pub fn new(device: &Device, file: PackedFile, piece: usize) -> Result<Disk> {
        let file = Arc::new(file);
        let (ring, filler) = device.ring(piece, SLOTS)?;
        let ((orders, ordered), (ended, ends)) = (channel(), channel());
        let of_thread = file.clone();
        let thread = std::thread::Builder::new().name("weights from disk".to_string());
        let thread = thread
            .spawn(move || serve(&of_thread, filler, &ordered, &ended))
            .map_err(|e| Error::no_thread(&e))?;
        Ok(Disk { file, ring, orders: Some(orders), ends, thread: Some(thread), is_running: false })
    }

    /// Of the ring.
    pub fn pinned_bytes(&self) -> u64 {
        self.ring.num_bytes() as u64
    }

    /// A run begins that will copy these units.
    pub fn begin(&mut self, units: &Arc<[usize]>) -> Result<()> {
        self.end()?;
        self.ring.restart();
        let sent = self.orders.as_ref().map(|orders| orders.send(units.clone()));
        self.is_running = true;
        sent.and_then(std::result::Result::ok).ok_or_else(gone)
    }

    /// Enqueues the copy of the next unit, whose bytes need not be there yet.
    pub fn copy_to_device(&mut self, stream: StreamId, unit: usize, to: &View<u8>) -> Result<()> {
        for index in 0..self.file.num_pieces(unit) {
            let piece = self.file.piece(unit, index);
            self.ring.copy_to_device(stream, &to.slice(piece.start, piece.len())?)?;
        }
        Ok(())
    }

    /// Whether reading has failed, so that all that follows is for nothing.
    pub fn has_failed(&self) -> bool {
        self.is_running && self.ring.is_over()
    }

    /// The run is over: what the thread has read for it has been copied, or does not matter any more.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Weights`] when reading failed: the run has computed with something else.
    pub fn end(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_running) {
            return Ok(());
        }
        self.ring.end();
        self.ends.recv().map_err(|_| gone())?
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.ring.end();
        self.orders = None;
        // It has nothing to say that anybody would still hear.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn gone() -> Error {
    Error::Internal("the thread that reads weights is gone".to_string())
}

/// The thread.
fn serve(file: &PackedFile, mut filler: Filler, orders: &Receiver<Arc<[usize]>>, ends: &Sender<Result<()>>) {
    for units in orders {
        let result = read(file, &mut filler, &units);
        if let Err(error) = &result {
            // What the device waits for will not come.
            filler.give_up();
            if matches!(error, Error::Weights { .. }) {
                file.remove();
            }
        }
        if ends.send(result).is_err() {
            return;
        }
    }
}

/// All pieces of `units`, or as many as are wanted.
fn read(file: &PackedFile, filler: &mut Filler, units: &[usize]) -> Result<()> {
    for &unit in units {
        for index in 0..file.num_pieces(unit) {
            if !filler.fill(|slot| file.read(unit, index, slot))? {
                return Ok(());
            }
        }
    }
    Ok(())
}
