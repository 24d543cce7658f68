//! What made a picture, as JPEG and WebP keep it: all of it as XMP, prompt and program as EXIF, too, which more programs show.
//!
//! In XMP every note is a property of our own namespace by its keyword; the prompt is also `dc:description`.

use exif::experimental::Writer;
use exif::{Field, In, Tag, Value};

use super::Note;
use crate::{Error, Result};

/// Where properties have the meaning that [`Output::notes`](crate::Output::notes) gives them.
const NAMESPACE: &str = "urn:schnell:picture:1#";

/// EXIF and XMP.
pub(super) struct Metadata {
    /// A TIFF file without pixels.
    pub exif: Vec<u8>,
    /// UTF-8.
    pub xmp: Vec<u8>,
}

/// Of notes, if there are any.
pub(super) fn of(notes: &[Note]) -> Result<Option<Metadata>> {
    if notes.is_empty() {
        return Ok(None);
    }
    Ok(Some(Metadata { exif: exif(notes)?, xmp: xmp(notes)?.into_bytes() }))
}

fn find<'a>(notes: &'a [Note], keyword: &str) -> Option<&'a str> {
    notes.iter().find(|(known, _)| *known == keyword).map(|(_, text)| text.as_str())
}

fn exif(notes: &[Note]) -> Result<Vec<u8>> {
    let fields: Vec<Field> = [("prompt", Tag::ImageDescription), ("Software", Tag::Software)]
        .into_iter()
        .filter_map(|(keyword, tag)| {
            // It ends with a NUL there.
            let text = find(notes, keyword)?.replace('\0', "\u{fffd}");
            Some(Field { tag, ifd_num: In::PRIMARY, value: Value::Ascii(vec![text.into_bytes()]) })
        })
        .collect();
    let mut writer = Writer::new();
    fields.iter().for_each(|field| writer.push_field(field));
    let mut bytes = std::io::Cursor::new(Vec::new());
    match fields.is_empty() {
        true => Ok(Vec::new()),
        false => writer
            .write(&mut bytes, true)
            .map(|()| bytes.into_inner())
            .map_err(|e| Error::Input(format!("the picture's metadata cannot be encoded: {e}"))),
    }
}

fn xmp(notes: &[Note]) -> Result<String> {
    let mut properties = String::new();
    if let Some(prompt) = find(notes, "prompt") {
        properties += &format!(
            "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">{}</rdf:li></rdf:Alt></dc:description>\n",
            escaped(prompt)
        );
    }
    if let Some(software) = find(notes, "Software") {
        properties += &format!("<xmp:CreatorTool>{}</xmp:CreatorTool>\n", escaped(software));
    }
    for (keyword, text) in notes {
        let is_name = keyword.starts_with(|c: char| c.is_ascii_alphabetic())
            && keyword.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            return Err(Error::Input(format!(
                "the picture cannot be encoded: keyword `{keyword}`; expected letters, digits and _"
            )));
        }
        properties += &format!("<schnell:{keyword}>{}</schnell:{keyword}>\n", escaped(text));
    }
    Ok(format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n\
         <rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n\
         <rdf:Description rdf:about=\"\" xmlns:dc=\"http://purl.org/dc/elements/1.1/\" \
         xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\" xmlns:schnell=\"{NAMESPACE}\">\n\
         {properties}</rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>\n<?xpacket end=\"r\"?>"
    ))
}

/// Bytes of XMP, and elements in it, that are looked at: far more than any picture of ours has.
const MAX_XMP_BYTES: usize = 16 << 20;
const MAX_XMP_NODES: u32 = 1 << 16;

/// The notes of XMP, in its order: elements and attributes in our namespace, whatever else is there and whoever wrote it.
///
/// # Errors
/// [`Error::Input`] for what is no XML, or more of it than a picture has.
pub(super) fn read(xmp: &[u8]) -> Result<Vec<(String, String)>> {
    let bad = |what: String| Error::Input(format!("the picture's XMP cannot be read: {what}"));
    if xmp.len() > MAX_XMP_BYTES {
        return Err(bad(format!("{} bytes; expected at most {MAX_XMP_BYTES}", xmp.len())));
    }
    let text = std::str::from_utf8(xmp).map_err(|e| bad(e.to_string()))?;
    let options = roxmltree::ParsingOptions { nodes_limit: MAX_XMP_NODES, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(text, options).map_err(|e| bad(e.to_string()))?;
    let mut notes = Vec::new();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let of_node = node.attributes().filter(|attribute| attribute.namespace() == Some(NAMESPACE));
        notes.extend(of_node.map(|attribute| (attribute.name().to_string(), attribute.value().to_string())));
        if node.tag_name().namespace() == Some(NAMESPACE) {
            notes.push((node.tag_name().name().to_string(), node.text().unwrap_or_default().to_string()));
        }
    }
    Ok(notes)
}

/// As text of an XML element; what XML has no way to say becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\r' => out += "&#13;",
            '\t' | '\n' => out.push(c),
            '\0'..' ' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
