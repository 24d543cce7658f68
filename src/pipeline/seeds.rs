//! Several pictures of one request.

use std::ops::ControlFlow;

use crate::{Error, Result};

use super::{Noise, OnProgress, Output, Pipeline, Request};

impl Pipeline {
    /// Draws a picture for each of `seeds`, one after the other, of a request that is otherwise the same, and gives each to
    /// `picture` as soon as it is there; that may say that it was the last. The prompt is encoded once, whatever the
    /// [prompt cache](super::PipelineBuilder::prompt_cache) holds (but for [dumps](Request::dump), which are of the encoders' own work), and
    /// each picture is byte for byte what [`Pipeline::generate`] draws with its seed. A deadline holds for each by itself.
    ///
    /// ```
    /// use std::ops::ControlFlow::Continue;
    /// # use schnell::{Model, Pipeline, Request, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::demo()?;
    /// let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(64)]).load()?;
    /// let mut pictures = Vec::new();
    /// pipeline.generate_seeds(&Request::new("a red circle"), 0..3, &mut |_| Continue(()), |output| {
    ///     pictures.push(output.rgb);
    ///     Continue(())
    /// })?;
    /// assert_eq!(pictures.len(), 3);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Pipeline::generate_with`]; pictures before it have been given. [`Error::Input`] for noise that is given, of which seeds
    /// make nothing else.
    pub fn generate_seeds(
        &mut self,
        request: &Request,
        seeds: impl IntoIterator<Item = u64>,
        progress: &mut OnProgress<'_>,
        mut picture: impl FnMut(Output) -> ControlFlow<()>,
    ) -> Result<()> {
        if let Noise::Given(_) = request.noise {
            return Err(Error::Input(
                "seeds of a request whose noise is given: use one or the other".to_string(),
            ));
        }
        let branches = if request.true_cfg() { 2 } else { 1 };
        let capacity = self.cache.grow(branches);
        let mut draw = |seed: u64| {
            let output = self.generate_with(&request.clone().seed(seed), progress)?;
            Ok(picture(output))
        };
        let drawn = seeds.into_iter().try_for_each(|seed| match draw(seed) {
            Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
            Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
            Err(error) => ControlFlow::Break(Err(error)),
        });
        self.cache.shrink(capacity);
        match drawn {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(result) => result,
        }
    }
}
