//! The files that a picture can be.

use std::path::Path;

use super::{Note, metadata};
use crate::{Error, Result};

/// Of JPEG, with all of the color kept: differences that nobody sees.
const JPEG_QUALITY: u8 = 95;
/// What stands before XMP in a JPEG's segment, of which the whole has 16 bits for its length.
const JPEG_XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const JPEG_SEGMENT_BYTES: usize = 65_533;

/// What kind of file a picture becomes. All carry the same notes, and the same picture gives the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Every pixel as it is; notes as iTXt.
    Png,
    /// Pixels at quality 95; notes as XMP and EXIF, 64 KB of them at most.
    Jpeg,
    /// Every pixel as it is; notes as XMP and EXIF.
    WebP,
}

impl ImageFormat {
    /// By the ending of a name: `.png`, `.jpg`, `.jpeg` or `.webp`, in any case.
    pub fn of(path: impl AsRef<Path>) -> Option<ImageFormat> {
        let ending = path.as_ref().extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "png" => Some(ImageFormat::Png),
            "jpg" | "jpeg" => Some(ImageFormat::Jpeg),
            "webp" => Some(ImageFormat::WebP),
            _ => None,
        }
    }

    /// Refuses a picture of a size that such a file cannot have, or with more in its notes.
    ///
    /// # Errors
    /// [`Error::Input`] saying which could.
    #[doc(hidden)]
    pub fn check(self, width: usize, height: usize, notes: &[Note]) -> Result<()> {
        let (name, longest) = match self {
            ImageFormat::Png => ("PNG", u32::MAX as usize >> 1),
            ImageFormat::Jpeg => ("JPEG", 65_535),
            ImageFormat::WebP => ("WebP", 16_384),
        };
        if width.max(height) > longest {
            return Err(Error::Input(format!(
                "{width} x {height} pixels are too many for a {name}, which has at most {longest} a side; use a PNG"
            )));
        }
        match metadata::of(notes)? {
            Some(metadata) if self == ImageFormat::Jpeg => room(metadata.xmp.len()),
            _ => Ok(()),
        }
    }
}

fn room(xmp_bytes: usize) -> Result<()> {
    let most = JPEG_SEGMENT_BYTES - JPEG_XMP.len();
    match xmp_bytes <= most {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "{xmp_bytes} bytes of notes (prompts, seeds and settings) do not fit into a JPEG, which has room for {most}; use \
             a PNG or a WebP, or leave them out"
        ))),
    }
}

/// The file of an 8-bit RGB picture, `rgb` being `[height, width, 3]`, with `notes` kept in it.
///
/// # Errors
/// [`Error::Input`] when `rgb` has another length, a side is 0 or too long for the format, a keyword is none (in PNG 1 to 79
/// Latin-1 characters, otherwise ASCII letters, digits and `_`), or the notes do not fit.
pub fn encode(
    format: ImageFormat,
    width: usize,
    height: usize,
    rgb: &[u8],
    notes: &[Note],
) -> Result<Vec<u8>> {
    let expected = width.checked_mul(height).and_then(|pixels| pixels.checked_mul(3));
    if rgb.is_empty() || expected != Some(rgb.len()) {
        return Err(Error::Input(format!(
            "a picture of {width} x {height} with {} bytes: expected 3 a pixel, and no empty side",
            rgb.len()
        )));
    }
    match format {
        ImageFormat::Png => format.check(width, height, &[])?,
        _ => format.check(width, height, notes)?,
    }
    let encoded = match format {
        ImageFormat::Png => png(width as u32, height as u32, rgb, notes).map_err(|e| e.to_string()),
        ImageFormat::Jpeg => {
            let notes = metadata::of(notes)?;
            jpeg(width as u16, height as u16, rgb, notes).map_err(|e| e.to_string())
        }
        ImageFormat::WebP => {
            let notes = metadata::of(notes)?;
            webp(width as u32, height as u32, rgb, notes).map_err(|e| e.to_string())
        }
    };
    encoded.map_err(|e| Error::Input(format!("the picture cannot be encoded: {e}")))
}

fn png(width: u32, height: u32, rgb: &[u8], notes: &[Note]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in notes {
        // iTXt, since prompts are Unicode.
        encoder.add_itxt_chunk(keyword.to_string(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()?;
    Ok(bytes)
}

fn jpeg(
    width: u16,
    height: u16,
    rgb: &[u8],
    notes: Option<metadata::Metadata>,
) -> Result<Vec<u8>, jpeg_encoder::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, JPEG_QUALITY);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.set_optimized_huffman_tables(true);
    if let Some(notes) = notes {
        if !notes.exif.is_empty() {
            encoder.add_exif_metadata(&notes.exif)?;
        }
        encoder.add_app_segment(1, [JPEG_XMP, &notes.xmp].concat())?;
    }
    encoder.encode(rgb, width, height, jpeg_encoder::ColorType::Rgb)?;
    Ok(bytes)
}

fn webp(
    width: u32,
    height: u32,
    rgb: &[u8],
    notes: Option<metadata::Metadata>,
) -> Result<Vec<u8>, image_webp::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
    if let Some(notes) = notes {
        if !notes.exif.is_empty() {
            encoder.set_exif_metadata(notes.exif);
        }
        encoder.set_xmp_metadata(notes.xmp);
    }
    encoder.encode(rgb, width, height, image_webp::ColorType::Rgb8)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> Vec<Note> {
        let prompt = "山 <café> & \u{1}\r\n\"x\"".to_string();
        vec![("prompt", prompt), ("seed", "7".to_string()), ("Software", "schnell 0".to_string())]
    }

    /// 40 x 24, smooth.
    fn picture() -> Vec<u8> {
        (0..24).flat_map(|y| (0..40).flat_map(move |x| [6 * x as u8, 10 * y as u8, 90])).collect()
    }

    fn check_metadata(exif: &[u8], xmp: &[u8]) {
        let exif = exif::Reader::new().read_raw(exif.to_vec()).unwrap();
        let field = |tag| match &exif.get_field(tag, exif::In::PRIMARY).unwrap().value {
            exif::Value::Ascii(texts) => String::from_utf8(texts.concat()).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(field(exif::Tag::ImageDescription), notes()[0].1);
        assert_eq!(field(exif::Tag::Software), "schnell 0");
        let xmp = std::str::from_utf8(xmp).unwrap();
        let prompt = "山 &lt;café&gt; &amp; \u{fffd}&#13;\n\"x\"";
        for part in [
            format!("<rdf:li xml:lang=\"x-default\">{prompt}</rdf:li>"),
            format!("<schnell:prompt>{prompt}</schnell:prompt>"),
            "<schnell:seed>7</schnell:seed>".to_string(),
            "<xmp:CreatorTool>schnell 0</xmp:CreatorTool>".to_string(),
        ] {
            assert!(xmp.contains(&part), "{part} is not in {xmp}");
        }
    }

    #[test]
    fn pngs_read_back() {
        let bytes = encode(ImageFormat::Png, 40, 24, &picture(), &notes()).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; picture().len()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, picture());
        let info = reader.info();
        assert_eq!((info.width, info.height, info.color_type), (40, 24, png::ColorType::Rgb));
        assert_eq!(info.utf8_text[0].get_text().unwrap(), notes()[0].1);
    }

    #[test]
    fn webps_read_back() {
        let bytes = encode(ImageFormat::WebP, 40, 24, &picture(), &notes()).unwrap();
        let mut decoder = image_webp::WebPDecoder::new(std::io::Cursor::new(&bytes)).unwrap();
        assert_eq!(decoder.dimensions(), (40, 24));
        let mut pixels = vec![0; picture().len()];
        decoder.read_image(&mut pixels).unwrap();
        assert_eq!(pixels, picture());
        check_metadata(&decoder.exif_metadata().unwrap().unwrap(), &decoder.xmp_metadata().unwrap().unwrap());
        let plain = encode(ImageFormat::WebP, 40, 24, &picture(), &[]).unwrap();
        assert!(plain.len() < bytes.len() - 500);
    }

    #[test]
    fn jpegs_read_back_but_for_what_nobody_sees() {
        let bytes = encode(ImageFormat::Jpeg, 40, 24, &picture(), &notes()).unwrap();
        assert_eq!(bytes, encode(ImageFormat::Jpeg, 40, 24, &picture(), &notes()).unwrap());
        let mut decoder = jpeg_decoder::Decoder::new(&bytes[..]);
        let pixels = decoder.decode().unwrap();
        let info = decoder.info().unwrap();
        assert_eq!((info.width, info.height, pixels.len()), (40, 24, picture().len()));
        let worst = pixels.iter().zip(picture()).map(|(a, b)| a.abs_diff(b)).max().unwrap();
        assert!(worst <= 6, "{worst} of 255");
        check_metadata(decoder.exif_data().unwrap(), decoder.xmp_data().unwrap());
    }

    #[test]
    fn what_no_file_can_be_is_refused() {
        let refused = |format, width, height, bytes, notes: &[Note]| {
            let got = encode(format, width, height, &vec![0; bytes], notes);
            let Err(Error::Input(text)) = got else { panic!("{format:?} {width} x {height}: {got:?}") };
            text
        };
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            for (width, height, bytes) in [(0, 4, 0), (4, 4, 47), (usize::MAX, usize::MAX, 3)] {
                refused(format, width, height, bytes, &[]);
            }
            refused(format, 1, 1, 3, &[("", "no keyword".to_string())]);
        }
        assert!(refused(ImageFormat::Jpeg, 65_536, 1, 3 << 16, &[]).contains("65535"));
        assert!(refused(ImageFormat::WebP, 1, 16_385, 3 * 16_385, &[]).contains("16384"));
        let long = [("prompt", "x".repeat(33_000))];
        assert!(refused(ImageFormat::Jpeg, 1, 1, 3, &long).contains("PNG"));
        encode(ImageFormat::WebP, 1, 1, &[0; 3], &long).unwrap();
    }

    #[test]
    fn the_ending_decides() {
        for (name, format) in [
            ("a.png", Some(ImageFormat::Png)),
            ("a.JPG", Some(ImageFormat::Jpeg)),
            ("b/a.b.jpeg", Some(ImageFormat::Jpeg)),
            ("a.webp", Some(ImageFormat::WebP)),
            ("a.gif", None),
            ("png", None),
            (".png", None),
        ] {
            assert_eq!(ImageFormat::of(name), format, "{name}");
        }
    }
}
