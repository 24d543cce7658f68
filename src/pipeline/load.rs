//! Binding: the one allocation, the weights, and what turns prompts into inputs.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Result;
use crate::device::Device;
use crate::memory::arena::Arena;
use crate::models::flux::{clip, t5};
use crate::program::{HomePlace, STREAM};
use crate::text::tokenizer::{ClipTokenizer, T5Tokenizer, Tokens};
use crate::weights::Part;
use crate::weights::packed::Packed;
use crate::weights::upload::{Destination, EmbeddingTable, load};

use super::cache::PromptCache;
use super::disk::Disk;
use super::plan::ShapePlan;
use super::preview::Slots;
use super::run::Bound;
use super::times::Times;
use super::{Model, ModelFolder, OnProgress, Pipeline, Plan, Progress, Shape};

/// A prompt as the two encoders see it.
#[derive(Debug)]
pub(super) struct Prompt {
    pub clip: Tokens,
    pub t5: Tokens,
}

/// What turns prompts into the encoders' inputs, on the host.
#[derive(Debug)]
pub(super) struct TextInput {
    /// The tables' files are read as long as this lives.
    _folder: ModelFolder,
    clip_tokenizer: Arc<ClipTokenizer>,
    t5_tokenizer: Arc<T5Tokenizer>,
    pub clip_embeddings: EmbeddingTable,
    /// f32 `[positions, width]`.
    pub clip_positions: Vec<f32>,
    pub t5_embeddings: EmbeddingTable,
    /// f32 `[buckets, heads]`.
    pub t5_bias_by_bucket: Vec<f32>,
}

impl TextInput {
    fn open(model: &Model) -> Result<TextInput> {
        let source = &model.source;
        Ok(TextInput {
            _folder: model.folder.clone(),
            clip_tokenizer: model.clip_tokenizer.clone(),
            t5_tokenizer: model.t5_tokenizer.clone(),
            clip_embeddings: EmbeddingTable::new(source.tensor(Part::Clip, clip::TOKENS)?),
            clip_positions: source.tensor(Part::Clip, clip::POSITIONS)?.read_f32()?,
            t5_embeddings: EmbeddingTable::new(source.tensor(Part::T5, t5::TOKENS)?),
            t5_bias_by_bucket: source.tensor(Part::T5, t5::BIAS)?.read_f32()?,
        })
    }

    pub fn encode(&self, plan: &Plan, shape: &Shape, for_clip: &str, for_t5: &str) -> Result<Prompt> {
        Ok(Prompt {
            clip: self.clip_tokenizer.encode(for_clip, plan.config().clip.positions)?,
            t5: self.t5_tokenizer.encode(for_t5, shape.t5_length)?,
        })
    }
}

/// What bytes are between regions that belong to none, if a test wants some: as a number it is small, and none of the bits are alike.
pub(super) const GUARD: u8 = 0xa5;

/// What a pipeline is bound with, beside its plan.
#[derive(Clone, Debug)]
pub(super) struct Binding {
    /// Whether there is room for dumps.
    pub dumps: bool,
    /// How many are remembered.
    pub prompts: usize,
    /// Of packed weights.
    pub cache: Option<PathBuf>,
    /// Whether launches become graphs.
    pub graphs: bool,
}

impl Pipeline {
    /// See [`PipelineBuilder::load_with`](super::PipelineBuilder::load_with).
    pub(super) fn bind(
        model: &Model,
        plan: Plan,
        device: &Device,
        binding: Binding,
        progress: &mut OnProgress<'_>,
    ) -> Result<Pipeline> {
        let Binding { dumps, prompts, ref cache, graphs } = binding;
        // Whoever lost it has nothing there any more.
        device.revive()?;
        let _entered = device.enter()?;
        let ShapePlan { staging, unit_in_the_making, placed, .. } = &*plan.shapes[0];
        let weights = &plan.weights.list;
        let packed =
            cache.as_ref().map(|dir| Packed::of(dir, &model.source, weights, &placed.homes, staging));
        let packed = packed.transpose()?;
        let free = device.free_bytes()?;
        let arena = Arena::new(plan.arena_bytes() as usize, device);
        let arena = arena.map_err(|error| plan.with_fitting_budget(error))?;
        // The shape that is asked for if none is named comes last: it is the last to go.
        let bound =
            plan.shapes.iter().rev().map(|shape| Bound::new(shape.clone(), &plan, device, &arena, graphs));
        let bound = bound.collect::<Result<Vec<_>>>()?;
        let host = device.allocate_host(plan.buffer_bytes())?;
        let previews = Slots::new(device, &plan)?;
        let dump_bytes = plan.shapes.iter().map(|shape| shape.dump_bytes()).max().unwrap_or(0);
        let dump_host = dumps.then(|| device.allocate_host(dump_bytes)).transpose()?;
        let mut pinned = match plan.pinned_weights() {
            0 => None,
            bytes => Some(device.allocate_host(bytes as usize)?),
        };
        let mut destination = Destination {
            arena: &arena,
            homes: &placed.homes,
            unit_in_the_making: *unit_in_the_making,
            pinned: pinned.as_mut(),
        };
        let file = load(
            device,
            &mut destination,
            staging,
            &model.source,
            weights,
            packed.as_ref(),
            &mut |done, total| progress(Progress::Loading { done, total }),
        )?;
        for guard in placed.guards.iter().cloned() {
            device.fill(STREAM, &arena.bytes(guard.start, guard.len())?, GUARD)?;
        }
        let needs_disk = placed.homes.iter().any(|home| home.place == HomePlace::Disk);
        let disk = file.filter(|_| needs_disk);
        let disk = disk.map(|file| Disk::new(device, file, staging.slot_bytes())).transpose()?;
        let overhead = (!device.capability().is_emulator).then(|| device.free_bytes()).transpose()?;
        let overhead = overhead.map(|left| free.saturating_sub(left).saturating_sub(plan.arena_bytes()));
        let (text, digest) = (TextInput::open(model)?, model.digest()?);
        device.check_alive()?;
        let device = device.clone();
        let cache = PromptCache::new(prompts);
        Ok(Pipeline {
            device,
            plan,
            arena,
            bound,
            pinned,
            disk,
            host,
            filled: None,
            dump_host,
            previews,
            text,
            overhead,
            cache,
            digest,
            loras: model.loras(),
            loras_in_use: model.loras.clone(),
            times: Times::default(),
            binding,
            poisoned: None,
        })
    }
}
