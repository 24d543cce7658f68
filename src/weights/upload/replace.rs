//! LoRAs in the place of others, among weights that are loaded.

use half::bf16;

use super::{Chunk, Destination, STAGING_BYTES};
use crate::device::{Device, HostBuffer, StreamId};
use crate::memory::arena::Slot;
use crate::models::layers::Weight;
use crate::program::{Home, HomePlace};
use crate::weights::adapters::{self, Half, Strengths};
use crate::weights::target::Target;
use crate::{Error, Result};

/// The weights that LoRAs fill.
fn halves(weights: &[Weight]) -> impl Iterator<Item = &Weight> {
    weights.iter().filter(|weight| Half::told(&weight.needed.name).is_some())
}

/// Whether LoRAs lie where they can be replaced.
///
/// # Errors
/// [`Error::Unsupported`] where some stay on disk.
pub(crate) fn check_replaceable(destination: &Destination<'_>, weights: &[Weight]) -> Result<()> {
    for weight in halves(weights) {
        if destination.home(&weight.target)?.place == HomePlace::Disk {
            return Err(Error::Unsupported(
                "LoRAs cannot be changed where streamed weights stay on disk: allow more pinned memory, or load the model anew with them"
                    .to_string(),
            ));
        }
    }
    Ok(())
}

/// Writes what `loras` say to where loading has put what others said; how many bytes. The device must be idle.
///
/// # Errors
/// [`Error::Weights`] and [`Error::Io`] from the files, in the middle.
pub(crate) fn replace_loras(
    device: &Device,
    destination: &mut Destination<'_>,
    weights: &[Weight],
    loras: Strengths<'_>,
) -> Result<u64> {
    let mut host = device.allocate_host(STAGING_BYTES)?;
    let mut bytes = 0;
    for weight in halves(weights) {
        let Target::Bf16 { slot, pitch } = weight.target else {
            return Err(Error::Internal(format!("{} is not kept in bf16", weight.needed.name)));
        };
        let home = destination.home(&weight.target)?;
        let tensor = adapters::tensor(loras, weight.part, &weight.needed)?;
        for chunk in Chunk::all(weight.target, &tensor, home, host.num_bytes())? {
            chunk.read(host.as_mut_slice())?;
            let part = slot.part(chunk.first_row * pitch, chunk.shape.rows * pitch);
            put(device, destination, home, &part, &host)?;
            bytes += 2 * part.len() as u64;
        }
    }
    Ok(bytes)
}

/// What begins `host`, to `slot`, which is among all weights.
fn put(
    device: &Device,
    destination: &mut Destination<'_>,
    home: &Home,
    slot: &Slot<bf16>,
    host: &HostBuffer,
) -> Result<()> {
    let begin = home.unit.image.start;
    match (home.place, &mut destination.pinned) {
        (HomePlace::Arena(at), _) => {
            let view = destination.arena.view(&slot.moved(begin, at))?;
            device.copy_to_device(StreamId::Copy, &view, host, 0)?;
            device.synchronize(StreamId::Copy)
        }
        (HomePlace::Pinned(at), Some(pinned)) => {
            let (to, len) = (at + slot.offset() - begin, 2 * slot.len());
            pinned.as_mut_slice()[to..to + len].copy_from_slice(&host.as_slice()[..len]);
            Ok(())
        }
        _ => Err(Error::Internal("weights that are nowhere".to_string())),
    }
}
