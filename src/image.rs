//! From the VAE's numbers to a picture file.
//!
//! [`to_rgb8`] is the plain version of what the kernel does at the end of a generation; [`contact_sheet`] puts pictures
//! side by side; [`encode`] makes a file of one, with what made it; [`decode`] reads that back.

mod decode;
mod encode;
mod metadata;

pub use decode::{Picture, decode};
pub use encode::{ImageFormat, encode};

use crate::{Error, Result};

/// `values`, nominally in [-1, 1], as 8-bit: `round(255 * clamp(0.5 x + 0.5, 0, 1))`, ties to even. NaN becomes 0.
///
/// Source: diffusers `VaeImageProcessor.denormalize` and `numpy_to_pil`.
pub fn to_rgb8(values: &[f32]) -> Vec<u8> {
    values.iter().map(|x| (255.0 * (0.5 * x + 0.5).clamp(0.0, 1.0)).round_ties_even() as u8).collect()
}

/// A keyword and a text that a file carries beside its pixels.
pub type Note = (&'static str, String);

/// White pixels between the pictures of a contact sheet. models/demo/evaluate.py cuts sheets up and must know it, too.
const SHEET_GAP: usize = 4;
/// Sheets of more pixels than this are refused; 16 x 16 pictures of 1024 x 1024 fit.
const MAX_SHEET_PIXELS: usize = 1 << 29;

/// Width and height of a contact sheet of `count` pictures of `width` x `height` in rows of `columns`.
///
/// # Errors
/// [`Error::Input`] when there would be nothing on it, or more than half a billion pixels.
pub fn sheet_size(columns: usize, count: usize, width: usize, height: usize) -> Result<(usize, usize)> {
    let side =
        |num: usize, size: usize| num.checked_mul(size.checked_add(SHEET_GAP)?)?.checked_sub(SHEET_GAP);
    let empty = [columns, count, width, height].contains(&0);
    let sides = side(columns, width).zip(side(count.div_ceil(columns.max(1)), height));
    sides
        .filter(|&(w, h)| !empty && w.checked_mul(h).is_some_and(|pixels| pixels <= MAX_SHEET_PIXELS))
        .ok_or_else(|| {
            Error::Input(format!(
                "a contact sheet of {count} pictures of {width} x {height} in {columns} columns; expected some, and \
                 at most {MAX_SHEET_PIXELS} pixels in all"
            ))
        })
}

/// Pictures of one size (u8 `[height, width, 3]`) in rows of `columns`, white between them and where the last row ends
/// early. Returns the sheet's width, height and pixels.
///
/// # Errors
/// Those of [`sheet_size`]; [`Error::Input`] when a picture has another length.
pub fn contact_sheet(
    columns: usize,
    width: usize,
    height: usize,
    pictures: &[&[u8]],
) -> Result<(usize, usize, Vec<u8>)> {
    let (sheet_width, sheet_height) = sheet_size(columns, pictures.len(), width, height)?;
    if pictures.iter().any(|rgb| rgb.len() != 3 * width * height) {
        return Err(Error::Input(format!("a picture for a contact sheet is not {width} x {height}")));
    }
    let mut sheet = vec![255; 3 * sheet_width * sheet_height];
    for (i, rgb) in pictures.iter().enumerate() {
        let (left, top) = ((i % columns) * (width + SHEET_GAP), (i / columns) * (height + SHEET_GAP));
        for (y, row) in rgb.chunks(3 * width).enumerate() {
            let at = 3 * ((top + y) * sheet_width + left);
            sheet[at..at + row.len()].copy_from_slice(row);
        }
    }
    Ok((sheet_width, sheet_height, sheet))
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
    fn sheets_hold_their_pictures_in_reading_order() {
        let pictures: Vec<Vec<u8>> = (0..3).map(|i| vec![i; 3 * 2 * 5]).collect();
        let pictures: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
        let (width, height, rgb) = contact_sheet(2, 2, 5, &pictures).unwrap();
        assert_eq!((width, height, rgb.len()), (2 + 4 + 2, 5 + 4 + 5, 3 * 8 * 14));
        let at = |x: usize, y: usize| rgb[3 * (y * width + x)];
        assert_eq!([at(0, 0), at(1, 4), at(6, 0), at(7, 4), at(0, 9), at(1, 13)], [0, 0, 1, 1, 2, 2]);
        // The gaps, and the cell that stays empty.
        assert_eq!([at(2, 0), at(5, 2), at(0, 5), at(7, 8), at(6, 9), at(7, 13)], [255; 6]);
        for (columns, width, height) in
            [(0, 2, 5), (2, 3, 5), (2, 0, 5), (2, 2, 0), (usize::MAX, 2, 5), (1, 1 << 60, 5)]
        {
            let refused = contact_sheet(columns, width, height, &pictures);
            assert!(matches!(refused, Err(Error::Input(_))), "{columns} {width} {height}");
        }
        assert!(matches!(contact_sheet(2, 2, 5, &[]), Err(Error::Input(_))));
        assert!(sheet_size(16, 256, 1024, 1024).is_ok());
        assert!(matches!(sheet_size(16, 256, 8192, 8192), Err(Error::Input(_))));
    }
}
