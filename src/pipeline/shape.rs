//! The size of a picture, and what else decides that of all buffers.

use crate::config::PipelineConfig;
use crate::{Error, Result};

/// Longest side of an image in pixels: position tables and 32-bit pixel counts stay far from their limits.
pub const MAX_SIDE: usize = 8192;
/// Most steps of one generation.
pub const MAX_STEPS: usize = 1000;
/// Longest T5 prompt in tokens.
pub const MAX_T5_LENGTH: usize = 512;

/// What decides the sizes of all buffers.
///
/// ```
/// let shape = schnell::Shape::new(768, 512).steps(2);
/// assert_eq!((shape.width, shape.height, shape.steps, shape.t5_length), (768, 512, 2, 256));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "check"), non_exhaustive)]
pub struct Shape {
    /// Pixels; a multiple of 16.
    pub width: usize,
    /// Pixels; a multiple of 16.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// T5 tokens, padding included.
    pub t5_length: usize,
    /// Whether a negative prompt takes part: a second pass of everything but the VAE.
    pub true_cfg: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { width: 1024, height: 1024, steps: 4, t5_length: 256, true_cfg: false }
    }
}

impl Shape {
    /// Of this size in pixels, 4 steps and 256 T5 tokens, as schnell is meant to be used;
    /// [`Model::shape`](crate::pipeline::Model::shape) has the steps and tokens of any model.
    pub fn new(width: usize, height: usize) -> Shape {
        Shape { width, height, ..Shape::default() }
    }

    /// As [`Shape::new`], of equal sides.
    pub fn square(side: usize) -> Shape {
        Shape::new(side, side)
    }

    /// Sets the denoising steps.
    pub fn steps(self, steps: usize) -> Shape {
        Shape { steps, ..self }
    }

    /// Sets the T5 tokens, padding included.
    pub fn t5_length(self, t5_length: usize) -> Shape {
        Shape { t5_length, ..self }
    }

    /// Makes room for a negative prompt.
    pub fn true_cfg(self) -> Shape {
        Shape { true_cfg: true, ..self }
    }

    /// Refuses what no plan can be made for.
    ///
    /// # Errors
    /// [`Error::Input`] naming the number and its range.
    #[doc(hidden)]
    pub fn check(&self, config: &PipelineConfig) -> Result<()> {
        let multiple = 2 * config.vae.pixels_per_latent();
        for (what, side) in [("width", self.width), ("height", self.height)] {
            if side == 0 || side % multiple != 0 || side > MAX_SIDE {
                return Err(Error::Input(format!(
                    "{what} {side} is not a multiple of {multiple} between {multiple} and {MAX_SIDE}; the nearest are \
                     {} and {}",
                    (side / multiple * multiple).clamp(multiple, MAX_SIDE),
                    (side / multiple * multiple).saturating_add(multiple).clamp(multiple, MAX_SIDE)
                )));
            }
        }
        if self.steps == 0 || self.steps > MAX_STEPS {
            return Err(Error::Input(format!("{} steps; it takes 1 to {MAX_STEPS}", self.steps)));
        }
        if self.t5_length == 0 || self.t5_length > MAX_T5_LENGTH {
            return Err(Error::Input(format!(
                "a T5 length of {}; it takes 1 to {MAX_T5_LENGTH}",
                self.t5_length
            )));
        }
        Ok(())
    }

    /// Passes: 1, or 2 with a negative prompt.
    #[doc(hidden)]
    pub fn branches(&self) -> usize {
        1 + self.true_cfg as usize
    }

    /// Height and width in image tokens.
    #[doc(hidden)]
    pub fn token_grid(&self, config: &PipelineConfig) -> (usize, usize) {
        let pixels = 2 * config.vae.pixels_per_latent();
        (self.height / pixels, self.width / pixels)
    }

    /// Image tokens.
    pub fn image_tokens(&self, config: &PipelineConfig) -> usize {
        let (height, width) = self.token_grid(config);
        height * width
    }
}
