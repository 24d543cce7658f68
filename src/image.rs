//! From the VAE's numbers to a picture file.
//!
//! [`to_rgb8`] is the plain version of what the kernel does at the end of a generation; [`write_png`] saves it.

use std::path::Path;

use crate::{Error, Result};

/// `values`, nominally in [-1, 1], as 8-bit: `round(255 * clamp(0.5 x + 0.5, 0, 1))`, ties to even. NaN becomes 0.
///
/// Source: diffusers `VaeImageProcessor.denormalize` and `numpy_to_pil`.
pub fn to_rgb8(values: &[f32]) -> Vec<u8> {
    values.iter().map(|x| (255.0 * (0.5 * x + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8).collect()
}

/// Writes an 8-bit RGB picture, `rgb` being `[height, width, 3]`, with `notes` (keyword, text) kept in the file.
///
/// # Errors
/// [`Error::Input`] when `rgb` has another length or a size is 0 or a keyword is not 1 to 79 Latin-1 characters;
/// [`Error::Io`] when the file cannot be written.
pub fn write_png(path: &Path, width: u32, height: u32, rgb: &[u8], notes: &[(&str, &str)]) -> Result<()> {
    let expected = u128::from(width) * u128::from(height) * 3;
    if expected == 0 || rgb.len() as u128 != expected {
        return Err(Error::Input(format!(
            "a picture of {width} x {height} with {} bytes: expected {expected} and no empty side",
            rgb.len()
        )));
    }
    let bytes = encode(width, height, rgb, notes)
        .map_err(|e| Error::Input(format!("{} cannot be encoded: {e}", path.display())))?;
    write_whole(path, &bytes)
}

/// Writes a file under another name first, then renames it: whoever looks sees the old file, or all of the new one.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written; nothing is left behind.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = Path::new(&partial);
    let written = std::fs::write(partial, bytes).and_then(|()| std::fs::rename(partial, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(partial);
        Error::Io { action: "write", path: path.to_path_buf(), source }
    })
}

fn encode(
    width: u32,
    height: u32,
    rgb: &[u8],
    notes: &[(&str, &str)],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in notes {
        // iTXt, since prompts are Unicode.
        encoder.add_itxt_chunk(keyword.to_string(), text.to_string())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_to_the_nearest_even() {
        let x = |level: f32| 2.0 * (level / 255.0) - 1.0;
        assert_eq!(to_rgb8(&[-1.0, 1.0, 0.0, x(3.0), x(3.4), x(3.6)]), [0, 255, 128, 3, 3, 4]);
        assert_eq!(to_rgb8(&[-7.0, 7.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY]), [0, 255, 0, 255, 0]);
    }

    #[test]
    fn pngs_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let rgb: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 4) as u8).collect();
        write_png(&path, 5, 4, &rgb, &[("prompt", "山 café")]).unwrap();
        let decoder = png::Decoder::new(std::io::Cursor::new(std::fs::read(&path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; rgb.len()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, rgb);
        let info = reader.info();
        assert_eq!((info.width, info.height, info.color_type), (5, 4, png::ColorType::Rgb));
        assert_eq!(info.utf8_text[0].get_text().unwrap(), "山 café");
    }

    #[test]
    fn bad_pictures_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        for (width, height, bytes) in [(0, 4, 0), (4, 4, 47), (u32::MAX, u32::MAX, 3)] {
            assert!(matches!(write_png(&path, width, height, &vec![0; bytes], &[]), Err(Error::Input(_))));
        }
        let note = [("", "no keyword")];
        assert!(matches!(write_png(&path, 1, 1, &[0; 3], &note), Err(Error::Input(_))));
        let nowhere = dir.path().join("no/x.png");
        assert!(matches!(write_png(&nowhere, 1, 1, &[0; 3], &[]), Err(Error::Io { .. })));
    }
}
