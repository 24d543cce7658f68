//! Tensors of a run's stages, read back one at a time for comparison with other implementations.

use half::bf16;

use crate::Result;
use crate::device::{Device, HostBuffer, View};
use crate::models::flux::{BRANCHES, IMAGE};
use crate::program::STREAM;
use crate::program::op::Kept;

use super::load::Prompt;
use super::{Dump, DumpValues};

/// What is kept of a run's stages.
pub(super) struct Dumps {
    pub on: bool,
    pub all: Vec<Dump>,
}

impl Dumps {
    /// What there is before the device does anything.
    pub fn before(&mut self, prompts: &[Prompt], noise: Vec<f32>, sigmas: &[f32], packed: [usize; 2]) {
        if !self.on {
            return;
        }
        let mut push = |stage: String, shape: Vec<usize>, values: DumpValues| {
            self.all.push(Dump { stage, shape, values });
        };
        for (prefix, prompt) in BRANCHES.iter().zip(prompts) {
            for (name, ids) in [("tokens_clip", &prompt.clip.ids), ("tokens_t5", &prompt.t5.ids)] {
                push(format!("{prefix}{name}"), vec![1, ids.len()], DumpValues::Ids(ids.clone()));
            }
        }
        push("noise".to_string(), vec![1, packed[0], packed[1]], DumpValues::F32(noise));
        push("sigmas".to_string(), vec![sigmas.len()], DumpValues::F32(sigmas.to_vec()));
    }

    /// What a stage has left, at its end; waits for it.
    pub fn keep(
        &mut self,
        device: &Device,
        host: &mut HostBuffer,
        stage: &str,
        turn: usize,
        kept: &Kept,
        view: &View<u8>,
    ) -> Result<()> {
        device.copy_to_host(STREAM, host, 0, view)?;
        device.synchronize(STREAM)?;
        let bytes = &host.as_slice()[..view.num_bytes()];
        let mut values: Vec<f32> = match kept.is_bf16 {
            true => bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|v| v.to_f32()).collect(),
            false => bytemuck::cast_slice(bytes).to_vec(),
        };
        let mut shape = kept.shape.clone();
        if let ([height, width, 3], IMAGE) = (&shape[..], kept.name.as_str()) {
            // [h, w, 3] to [1, 3, h, w]
            let (height, width) = (*height, *width);
            values = (0..3).flat_map(|c| values.chunks(3).map(move |pixel| pixel[c])).collect();
            shape = vec![1, 3, height, width];
        }
        let name = match stage {
            "step" => format!("{}_{turn}", kept.name),
            _ => kept.name.clone(),
        };
        self.all.push(Dump { stage: name, shape, values: DumpValues::F32(values) });
        Ok(())
    }
}
