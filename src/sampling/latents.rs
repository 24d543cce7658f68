//! Latents as an image, `[channels, height, width]`, and as tokens, `[(height/2) (width/2), 4 channels]`: a token is
//! a square of 2x2 latent pixels, its channel `4 c + 2 dy + dx`. Tokens go row by row.

use crate::{Error, Result};

/// Image to tokens.
///
/// # Errors
/// [`Error::Input`] when height or width is odd or `latents` has another length.
pub fn pack(latents: &[f32], channels: usize, height: usize, width: usize) -> Result<Vec<f32>> {
    check(latents.len(), channels, height, width)?;
    let mut tokens = vec![0.0; latents.len()];
    for_each_pair(channels, height, width, |token, pixel| tokens[token] = latents[pixel]);
    Ok(tokens)
}

/// Tokens to image: the inverse of [`pack`]; all sizes are those of the image.
///
/// # Errors
/// As [`pack`].
pub fn unpack(tokens: &[f32], channels: usize, height: usize, width: usize) -> Result<Vec<f32>> {
    check(tokens.len(), channels, height, width)?;
    let mut latents = vec![0.0; tokens.len()];
    for_each_pair(channels, height, width, |token, pixel| latents[pixel] = tokens[token]);
    Ok(latents)
}

fn check(len: usize, channels: usize, height: usize, width: usize) -> Result<()> {
    let expected = channels.checked_mul(height).and_then(|n| n.checked_mul(width));
    if !height.is_multiple_of(2) || !width.is_multiple_of(2) || expected != Some(len) {
        return Err(Error::Input(format!(
            "{len} latents as {channels} channels of {height} x {width}: expected even sides and their product"
        )));
    }
    Ok(())
}

/// Calls `visit(index in tokens, index in image)` for every element.
fn for_each_pair(channels: usize, height: usize, width: usize, mut visit: impl FnMut(usize, usize)) {
    for c in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let token = (y / 2) * (width / 2) + x / 2;
                let channel = 4 * c + 2 * (y % 2) + x % 2;
                visit(token * 4 * channels + channel, (c * height + y) * width + x);
            }
        }
    }
}
