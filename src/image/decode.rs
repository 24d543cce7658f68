//! A picture's file, read back: what made it, and its pixels where the file keeps every one.

use std::io::Cursor;

use super::{MAX_SHEET_PIXELS, metadata};
use crate::{Error, Result};

/// What [`decode`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Picture {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// u8 `[height, width, 3]`; nothing where the file does not keep every pixel in 8 bits a color, as no JPEG does.
    pub rgb: Option<Vec<u8>>,
    /// Keywords with their texts, as [`Output::notes`](crate::Output::notes) has them, in the order of the file.
    pub notes: Vec<(String, String)>,
}

/// Reads a PNG, JPEG or WebP as [`encode`](super::encode) writes it, whatever other notes are in it.
///
/// # Errors
/// [`Error::Input`] for another kind of file, a damaged one, or more than half a billion pixels.
pub fn decode(file: &[u8]) -> Result<Picture> {
    let picture = match file {
        [0x89, b'P', b'N', b'G', ..] => png(file).map_err(|e| e.to_string()),
        [0xff, 0xd8, ..] => jpeg(file).map_err(|e| e.to_string()),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            webp(file).map_err(|e| e.to_string())
        }
        _ => return Err(Error::Input("neither a PNG nor a JPEG nor a WebP".to_string())),
    };
    let (picture, xmp) = picture.map_err(|e| Error::Input(format!("the picture cannot be read: {e}")))?;
    match xmp {
        Some(xmp) => Ok(Picture { notes: metadata::read(&xmp)?, ..picture }),
        None => Ok(picture),
    }
}

/// Without notes, and the XMP that they are in, if they are in such.
type Read<E> = Result<(Picture, Option<Vec<u8>>), E>;

fn too_large(width: usize, height: usize) -> Option<String> {
    let fits = width.checked_mul(height).is_some_and(|pixels| pixels <= MAX_SHEET_PIXELS);
    (!fits).then(|| format!("{width} x {height}; expected at most {MAX_SHEET_PIXELS} pixels"))
}

fn png(file: &[u8]) -> Read<Box<dyn std::error::Error>> {
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info()?;
    let info = reader.info();
    let (width, height) = (info.width as usize, info.height as usize);
    if let Some(why) = too_large(width, height) {
        return Err(why.into());
    }
    let is_plain = info.color_type == png::ColorType::Rgb && info.bit_depth == png::BitDepth::Eight;
    let texts = info.utf8_text.iter().map(|text| Ok((text.keyword.clone(), text.get_text()?)));
    let notes = texts.collect::<Result<Vec<_>, png::DecodingError>>()?;
    let rgb = match is_plain {
        true => {
            let mut rgb = vec![0; 3 * width * height];
            reader.next_frame(&mut rgb)?;
            reader.finish()?;
            Some(rgb)
        }
        false => None,
    };
    Ok((Picture { width, height, rgb, notes }, None))
}

fn jpeg(file: &[u8]) -> Read<Box<dyn std::error::Error>> {
    let mut decoder = jpeg_decoder::Decoder::new(file);
    decoder.read_info()?;
    let info = decoder.info().ok_or("it has no size")?;
    let (width, height) = (usize::from(info.width), usize::from(info.height));
    let xmp = decoder.xmp_data().map(<[u8]>::to_vec);
    Ok((Picture { width, height, rgb: None, notes: Vec::new() }, xmp))
}

fn webp(file: &[u8]) -> Read<Box<dyn std::error::Error>> {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(file))?;
    decoder.set_memory_limit(3 * MAX_SHEET_PIXELS);
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    if let Some(why) = too_large(width, height) {
        return Err(why.into());
    }
    let xmp = decoder.xmp_metadata()?;
    let is_plain = !decoder.is_lossy() && !decoder.has_alpha() && !decoder.is_animated();
    let rgb = match is_plain {
        true => {
            let mut rgb = vec![0; 3 * width * height];
            decoder.read_image(&mut rgb)?;
            Some(rgb)
        }
        false => None,
    };
    Ok((Picture { width, height, rgb, notes: Vec::new() }, xmp))
}

#[cfg(test)]
mod tests {
    use super::super::{ImageFormat, Note, encode};
    use super::*;

    const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

    fn rgb() -> Vec<u8> {
        (0..24 * 40 * 3).map(|i| (i * 7 % 251) as u8).collect()
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let notes: Vec<Note> = vec![
            ("prompt", "山 <café> & \"x\"\r\n]]> &amp; \ta".to_string()),
            ("negative_prompt", String::new()),
            ("seed", "7\n8".to_string()),
        ];
        for format in FORMATS {
            let read = decode(&encode(format, 40, 24, &rgb(), &notes).unwrap()).unwrap();
            assert_eq!((read.width, read.height), (40, 24));
            let expected: Vec<_> = notes.iter().map(|(k, text)| (k.to_string(), text.clone())).collect();
            assert_eq!(read.notes, expected, "{format:?}");
            let exact = (format != ImageFormat::Jpeg).then(rgb);
            assert!(read.rgb == exact, "{format:?}");
            let bare = decode(&encode(format, 40, 24, &rgb(), &[]).unwrap()).unwrap();
            assert_eq!(bare.notes, []);
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let refused = |file: &[u8]| match decode(file) {
            Err(Error::Input(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refused(b"").contains("neither a PNG"));
        assert!(refused(b"GIF89a").contains("neither a PNG"));
        let notes = [("prompt", "a".to_string())];
        for format in FORMATS {
            let file = encode(format, 40, 24, &rgb(), &notes).unwrap();
            // Of a JPEG only what comes before the pixels is read.
            let ends = if format == ImageFormat::Jpeg { 0..100 } else { 12..file.len() - 12 };
            for end in ends.step_by(7) {
                assert!(!refused(&file[..end]).is_empty(), "{format:?} {end}");
            }
        }
        // A PNG that says it has a billion pixels a side.
        let mut file = encode(ImageFormat::Png, 40, 24, &rgb(), &[]).unwrap();
        file[16..20].copy_from_slice(&1_000_000_000_u32.to_be_bytes());
        file[20..24].copy_from_slice(&1_000_000_000_u32.to_be_bytes());
        let crc = crc32fast::hash(&file[12..29]);
        file[29..33].copy_from_slice(&crc.to_be_bytes());
        assert!(!refused(&file).is_empty());
    }
}
