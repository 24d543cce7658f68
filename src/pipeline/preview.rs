//! Small pictures of what is being drawn, step by step, without the decoder: at each place of the latents a linear map of the channels
//! to red, green and blue.
//!
//! A step leaves latents x' = x + (σ' - σ) v of those before it, x, and its estimate of the clean ones is x' - σ' v. So what the
//! device leaves after each step is all that is needed, and is copied into pinned memory of its own, in turns, so that the host reads one
//! while the next is on its way: it looks at a step's latents once the next step is under way, when it would wait in any case.
//!
//! The matrix is a table for each VAE that is known, and not fitted while loading: a fit needs latents of pictures, which only the
//! transformer makes, and would cost pictures before the first. It is multiplied on the host: latents are small, and the device needs
//! neither a kernel nor memory for it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::VaeConfig;
use crate::device::{Device, HostBuffer, View};
use crate::image::to_rgb8;
use crate::program::STREAM;
use crate::{Error, Result, sampling};

use super::plan::ShapePlan;
use super::{Plan, Shape};

/// What a step takes for the picture in the end, a pixel for each place of the latents: for FLUX.1 an eighth of the
/// picture's sides. Colors are approximate, and whatever is smaller than 8 pixels is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preview {
    /// The step that it is an estimate of, from 0.
    pub step: usize,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// u8 `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

/// Latents of as many channels to colors, [-1, 1] each: `bias + Σ factor · channel`.
#[derive(Debug)]
pub(super) struct Colors {
    factors: &'static [[f32; 3]],
    bias: [f32; 3],
}

/// Of FLUX.1's VAE. Source of the numbers: ComfyUI, `comfy/latent_formats.py`, `Flux` (commit 040a3243), published as a fit to the decoder's
/// pictures.
const FLUX: Colors = Colors {
    factors: &[
        [-0.0346, 0.0244, 0.0681],
        [0.0034, 0.0210, 0.0687],
        [0.0275, -0.0668, -0.0433],
        [-0.0174, 0.0160, 0.0617],
        [0.0859, 0.0721, 0.0329],
        [0.0004, 0.0383, 0.0115],
        [0.0405, 0.0861, 0.0915],
        [-0.0236, -0.0185, -0.0259],
        [-0.0245, 0.0250, 0.1180],
        [0.1008, 0.0755, -0.0421],
        [-0.0515, 0.0201, 0.0011],
        [0.0428, -0.0012, -0.0036],
        [0.0817, 0.0765, 0.0749],
        [-0.1264, -0.0522, -0.1103],
        [-0.0280, -0.0881, -0.0499],
        [-0.1262, -0.0982, -0.0778],
    ],
    bias: [-0.0329, -0.0718, -0.0851],
};

/// Of the bundled model's VAE: least squares over 48 of its pictures (`models/demo/fit_preview.py`), which explain 0.78 of the variance of
/// others.
const DEMO: Colors = Colors {
    factors: &[
        [-0.0079, 0.0327, 0.0481],
        [-0.0279, 0.0803, 0.0562],
        [0.3466, 0.0614, 0.1436],
        [0.2560, 0.0999, -0.0742],
        [0.0520, 0.1052, -0.1762],
        [0.1669, 0.2410, 0.3543],
        [-0.0211, 0.1292, 0.0510],
        [0.0545, 0.0904, 0.0282],
        [0.0557, 0.0906, -0.0745],
        [-0.1194, 0.1079, 0.1272],
        [0.0044, 0.0499, 0.0844],
        [-0.0053, -0.0242, -0.0442],
        [0.1928, -0.1518, -0.1459],
        [-0.1064, 0.0031, 0.0066],
        [0.0749, -0.1980, 0.1433],
        [0.1834, 0.0482, 0.0194],
    ],
    bias: [0.1769, -0.0429, -0.1416],
};

impl Colors {
    /// Those that are known of a VAE, which its scale and shift tell apart: a VAE is trained once, and what it was scaled by is
    /// measured then.
    pub fn of(vae: &VaeConfig) -> Option<&'static Colors> {
        let known: [(&Colors, f32, f32); 2] =
            [(&FLUX, 0.3611, 0.1159), (&DEMO, 1.153_256_4, -0.000_806_773_5)];
        let is_near = |a: f32, b: f32| (a - b).abs() < 1e-5;
        let found = known.into_iter().find(|(colors, scaling, shift)| {
            colors.factors.len() == vae.latent_channels
                && is_near(*scaling, vae.scaling)
                && is_near(*shift, vae.shift)
        });
        found.map(|(colors, ..)| colors)
    }

    /// Of latents f32 `[channels, places]`.
    fn rgb(&self, latents: &[f32]) -> Vec<u8> {
        let places = latents.len() / self.factors.len();
        let mut rgb: Vec<f32> = self.bias.repeat(places);
        for (channel, factor) in latents.chunks_exact(places.max(1)).zip(self.factors) {
            for (pixel, value) in rgb.chunks_exact_mut(3).zip(channel) {
                for (color, factor) in pixel.iter_mut().zip(factor) {
                    *color += factor * value;
                }
            }
        }
        to_rgb8(&rgb)
    }
}

/// Of the pinned memory that the largest of these shapes takes.
pub(super) fn bytes(shapes: &[Arc<ShapePlan>]) -> u64 {
    2 * shapes.iter().map(|shape| shape.inputs.latents.bytes as u64).max().unwrap_or(0)
}

/// Pinned memory for latents, of two steps in turn.
#[derive(Debug)]
pub(super) struct Slots([HostBuffer; 2]);

impl Slots {
    /// For all of a plan's shapes, where it has previews.
    pub fn new(device: &Device, plan: &Plan) -> Result<Option<Slots>> {
        let bytes = bytes(&plan.shapes) / 2;
        plan.previews.then(|| Slots::with_bytes(device, bytes as usize)).transpose()
    }

    fn with_bytes(device: &Device, bytes: usize) -> Result<Slots> {
        Ok(Slots([device.allocate_host(bytes)?, device.allocate_host(bytes)?]))
    }

    /// Whether latents of so many bytes have no room.
    pub fn is_short_of(&self, bytes: usize) -> bool {
        bytes > self.0[0].num_bytes()
    }

    /// Makes room for them.
    pub fn fit(&mut self, device: &Device, bytes: usize) -> Result<()> {
        if self.is_short_of(bytes) {
            *self = Slots::with_bytes(device, bytes)?;
        }
        Ok(())
    }

    /// Of both.
    pub fn num_bytes(&self) -> u64 {
        self.0.iter().map(|slot| slot.num_bytes() as u64).sum()
    }
}

/// Who wants to see.
pub(super) struct Viewer<'a> {
    slots: &'a mut Slots,
    colors: &'static Colors,
    /// Of the latents.
    sides: [usize; 2],
    /// Packed latents before the step that comes next.
    before: Vec<f32>,
    /// Steps whose latents are on their way, and how much further than each went the clean picture is.
    waiting: VecDeque<(usize, f32)>,
    tell: &'a mut dyn FnMut(Preview),
}

impl<'a> Viewer<'a> {
    /// Of a run that begins with this packed noise.
    ///
    /// # Errors
    /// [`Error::Input`] of a pipeline that was loaded without previews.
    pub fn new(
        slots: Option<&'a mut Slots>,
        plan: &Plan,
        shape: &Shape,
        noise: Vec<f32>,
        tell: &'a mut dyn FnMut(Preview),
    ) -> Result<Viewer<'a>> {
        let slots = slots.ok_or_else(|| {
            Error::Input(
                "this pipeline was loaded without room for previews: load it with `previews`".to_string(),
            )
        })?;
        let (height, width) = shape.token_grid(plan.config());
        let colors = colors_of(&plan.config().vae)?;
        let waiting = VecDeque::with_capacity(2);
        Ok(Viewer { slots, colors, sides: [2 * height, 2 * width], before: noise, waiting, tell })
    }

    /// Enqueues the copy of what `step` leaves, behind which `ahead` of the way that it went remains to the clean picture.
    pub fn fetch(&mut self, device: &Device, step: usize, ahead: f32, latents: &View<u8>) -> Result<()> {
        device.copy_to_host(STREAM, &mut self.slots.0[step % 2], 0, latents)?;
        self.waiting.push_back((step, ahead));
        Ok(())
    }

    /// Shows the steps before `step` that were not shown; waits for their copies.
    pub fn show_before(&mut self, step: usize) -> Result<()> {
        while let Some(&(first, ahead)) = self.waiting.front().filter(|(first, _)| *first < step) {
            self.waiting.pop_front();
            self.show(first, ahead)?;
        }
        Ok(())
    }

    fn show(&mut self, step: usize, ahead: f32) -> Result<()> {
        let bytes = self.before.len() * size_of::<f32>();
        let after: &[f32] = bytemuck::cast_slice(&self.slots.0[step % 2].as_slice()[..bytes]);
        let clean: Vec<f32> =
            self.before.iter().zip(after).map(|(before, after)| after + ahead * (after - before)).collect();
        self.before.copy_from_slice(after);
        let [height, width] = self.sides;
        let channels = self.colors.factors.len();
        let rgb = self.colors.rgb(&sampling::unpack(&clean, channels, height, width)?);
        (self.tell)(Preview { step, width, height, rgb });
        Ok(())
    }
}

/// How much further than a step goes from `sigma` to `next` the clean picture is, at 0.
pub(super) fn ahead(sigma: f32, next: f32) -> f32 {
    let length = sigma - next;
    if length > 0.0 { next / length } else { 0.0 }
}

/// See [`Colors::of`].
///
/// # Errors
/// [`Error::Unsupported`] for another VAE.
pub(super) fn colors_of(vae: &VaeConfig) -> Result<&'static Colors> {
    Colors::of(vae).ok_or_else(|| {
        Error::Unsupported(format!(
            "previews of pictures by this VAE ({} channels, scaling {}, shift {}): colors are known of FLUX.1's and the bundled model's",
            vae.latent_channels, vae.scaling, vae.shift
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clean_picture_is_where_the_step_was_heading() {
        // Noise 2, clean -1: at sigma 0.75 and 0.25 latents are 1.25 and -0.25.
        let at = |sigma: f32| sigma * 2.0 - (1.0 - sigma);
        let clean = at(0.25) + ahead(0.75, 0.25) * (at(0.25) - at(0.75));
        assert_eq!((clean, ahead(0.25, 0.0), ahead(0.5, 0.5)), (-1.0, 0.0, 0.0));
    }

    #[test]
    fn channels_become_colors() {
        let colors = Colors { factors: &[[1.0, 0.0, -1.0], [0.0, 0.5, 0.0]], bias: [0.0, -1.0, 0.0] };
        assert_eq!(colors.rgb(&[1.0, 0.0, 2.0, 4.0]), [255, 128, 0, 128, 255, 128]);
        assert_eq!(colors.rgb(&[]), [0u8; 0]);
        assert_eq!((FLUX.factors.len(), DEMO.factors.len()), (16, 16));
    }
}
