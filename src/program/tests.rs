//! Properties of the passes.
