//! By what a picture is recognized, and how it is drawn again: a [`Receipt`] is kept among the notes of its file, a [`Recipe`] is
//! made of those notes.
//!
//! Equal receipts mean equal bytes. The other way round only hashes tell: another release, or another card, may draw the same.

use sha2::{Digest, Sha256};

use crate::device::Capability;
use crate::image::{Note, Picture};
use crate::sampling::{NoiseKind, TimeRounding};
use crate::{Error, Result};

use super::{Noise, Plan, Precision, Quantize, Request, Shape};

/// What drew a picture, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// SHA-256, in hex, of the last latents: f32 `[image tokens, channels]`, little-endian. One; of a contact sheet one for each
    /// picture, in reading order.
    pub latents: Vec<String>,
    /// SHA-256, in hex, of the pixels: u8 `[height, width, 3]`, before a file that does not keep them all.
    pub pixels: String,
    /// [`Model::digest`](super::Model::digest).
    pub model: String,
    /// LoRAs beside it, as [`Model::loras`](super::Model::loras) says them; none: empty.
    pub loras: String,
    /// How Linear layers were kept.
    pub weights: Quantize,
    /// How the transformer was computed.
    pub precision: Precision,
    /// What the plan was made for: `sm_90, 132 SMs`, or `emulator of sm_80, 28 SMs`.
    pub machine: String,
    /// Tells the sources of kernels apart, 64 bits in hex.
    pub kernels: String,
    /// `schnell 0.1.0`.
    pub software: String,
}

/// In lower case.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of which kind it is: all that a plan, and so the bytes of a picture, depend on.
pub(super) fn machine(capability: &Capability) -> String {
    let emulator = if capability.is_emulator { "emulator of " } else { "" };
    format!("{emulator}sm_{}, {} SMs", capability.arch, capability.num_sms)
}

impl Receipt {
    /// Of what a generation has left on the host.
    pub(super) fn new(plan: &Plan, [digest, loras]: [&str; 2], latents: &[u8], rgb: &[u8]) -> Receipt {
        Receipt {
            latents: vec![sha256(latents)],
            pixels: sha256(rgb),
            model: digest.to_string(),
            loras: loras.to_string(),
            weights: plan.quantize(),
            precision: plan.precision(),
            machine: machine(&plan.capability),
            kernels: env!("SCHNELL_KERNELS").to_string(),
            software: concat!("schnell ", env!("CARGO_PKG_VERSION")).to_string(),
        }
    }

    /// Of a contact sheet, whose pixels are `rgb`, of pictures by one pipeline with these receipts; none without any.
    pub fn of_sheet<'a>(each: impl IntoIterator<Item = &'a Receipt>, rgb: &[u8]) -> Option<Receipt> {
        let mut each = each.into_iter();
        let mut sheet = each.next()?.clone();
        sheet.latents.extend(each.flat_map(|receipt| receipt.latents.iter().cloned()));
        sheet.pixels = sha256(rgb);
        Some(sheet)
    }

    /// What is kept of it in a picture's file, under these keywords.
    pub(super) fn notes(&self) -> Vec<Note> {
        let mut notes = vec![("weights", self.weights.to_string())];
        if self.precision != Precision::Full {
            notes.push(("precision", self.precision.to_string()));
        }
        if !self.loras.is_empty() {
            notes.push(("loras", self.loras.clone()));
        }
        notes.extend([
            ("model", self.model.clone()),
            ("machine", self.machine.clone()),
            ("kernels", self.kernels.clone()),
            ("latents", self.latents.join("\n")),
            ("pixels", self.pixels.clone()),
            ("Software", self.software.clone()),
        ]);
        notes
    }

    /// Whether both are of the same picture by the same model, to the bit, whatever drew it.
    pub fn is_same_picture(&self, other: &Receipt) -> bool {
        (&self.latents, &self.pixels, &self.model) == (&other.latents, &other.pixels, &other.model)
    }

    /// Whether `rgb`, u8 `[height, width, 3]`, are the pixels that it is of.
    pub fn is_of(&self, rgb: &[u8]) -> bool {
        sha256(rgb) == self.pixels
    }

    /// In what they differ, a line each: `pixels: 1f... there, 2e... here`.
    pub fn differences(&self, here: &Receipt) -> Vec<String> {
        let fields = |receipt: &Receipt| -> Vec<(String, String)> {
            let (weights, precision) = (receipt.weights.to_string(), receipt.precision.to_string());
            let mut fields = vec![
                ("model".to_string(), receipt.model.clone()),
                ("LoRAs".to_string(), receipt.loras.clone()),
                ("weights".to_string(), weights),
                ("precision".to_string(), precision),
                ("machine".to_string(), receipt.machine.clone()),
                ("kernels".to_string(), receipt.kernels.clone()),
                ("version".to_string(), receipt.software.clone()),
                ("pixels".to_string(), receipt.pixels.clone()),
                ("pictures".to_string(), receipt.latents.len().to_string()),
            ];
            let which = |i: usize| match receipt.latents.len() {
                1 => "latents".to_string(),
                _ => format!("latents of picture {}", i + 1),
            };
            fields.extend(receipt.latents.iter().enumerate().map(|(i, hash)| (which(i), hash.clone())));
            fields
        };
        let (there, here) = (fields(self), fields(here));
        let pairs = there.iter().zip(&here).filter(|((_, there), (_, here))| there != here);
        pairs.map(|((what, there), (_, here))| format!("{what}: {there} there, {here} here")).collect()
    }
}

/// What draws a picture again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recipe {
    /// One; of a contact sheet one for each picture, in reading order. All are of one size, and of as many steps and tokens.
    pub requests: Vec<Request>,
    /// Of a contact sheet.
    pub columns: Option<usize>,
    /// That of all requests.
    pub shape: Shape,
    /// What the picture says it is. Model, [`Receipt::loras`], [`Receipt::weights`] and [`Receipt::precision`] are what a pipeline has to be loaded with.
    pub receipt: Receipt,
}

/// Pictures of the largest contact sheet.
const MAX_PICTURES: usize = 256;

impl Recipe {
    /// Of the notes in a picture's file.
    ///
    /// ```
    /// use schnell::{ImageFormat, Model, Pipeline, Recipe, Request, Shape};
    /// # fn main() -> schnell::Result<()> {
    /// let model = Model::demo()?;
    /// let mut pipeline = Pipeline::builder(&model).warm_up([Shape::square(64).steps(1)]).load()?;
    /// let file = pipeline.generate(&Request::new("a red circle").seed(7))?.encode(ImageFormat::Png)?;
    ///
    /// let recipe = Recipe::of(&schnell::image::decode(&file)?)?;
    /// let again = pipeline.generate(&recipe.requests[0])?;
    /// assert!(recipe.receipt.is_same_picture(&again.receipt));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] saying which note is missing, or is not what this release writes, and for a picture of noise that was
    /// given, which no file holds.
    pub fn of(picture: &Picture) -> Result<Recipe> {
        let notes = Notes(&picture.notes);
        if notes.find("latents")?.is_none() || notes.find("pixels")?.is_none() {
            return Err(Error::Input(
                "the picture has no receipt: it was written without metadata, by an older release, or by another program"
                    .to_string(),
            ));
        }
        let noise = match notes.need("noise")? {
            "given" => {
                return Err(Error::Input(
                    "the picture's noise was given in a file, which the picture does not hold; draw it with --noise FILE, and \
                     compare"
                        .to_string(),
                ));
            }
            kind => kind.parse::<NoiseKind>().map_err(|_| notes.bad("noise", kind))?,
        };
        let size = notes.need("size")?;
        let sides = size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let (width, height) = sides.ok_or_else(|| notes.bad("size", size))?;
        let mut request = Request::new("")
            .allow_empty_prompt()
            .noise(Noise::Seeded(noise))
            .size(width, height)
            .steps(notes.number("steps")?)
            .t5_length(notes.number("t5_length")?);
        request.estimate_after = match notes.find("estimate_after")? {
            Some(_) => Some(notes.number("estimate_after")?),
            None => None,
        };
        request.prompt_2 = notes.find("prompt_2")?.map(str::to_string);
        request.guidance = notes.finite("guidance")?;
        request.negative_prompt = notes.find("negative_prompt")?.map(str::to_string);
        request.true_cfg_scale = notes.finite("true_cfg_scale")?.unwrap_or(1.0);
        request.timesteps = match notes.find("timesteps")? {
            None => TimeRounding::Exact,
            Some("bf16") => TimeRounding::Bf16,
            Some(other) => return Err(notes.bad("timesteps", other)),
        };
        let receipt = notes.receipt()?;
        let columns = notes.find("grid")?.map(|text| {
            let cells = text.split_once('x').and_then(|(c, r)| Some((c.parse().ok()?, r.parse().ok()?)));
            cells.filter(|&(c, r): &(usize, usize)| c > 0 && c.checked_mul(r) == Some(receipt.latents.len()))
        });
        let columns = match columns {
            Some(None) => return Err(notes.bad("grid", notes.need("grid")?)),
            Some(Some((columns, _))) => Some(columns),
            None => None,
        };
        let shape = request.shape(Shape::default());
        let (prompt, seed) = (notes.need("prompt")?, notes.need("seed")?);
        let requests = match columns {
            None => vec![(prompt.to_string(), seed)],
            Some(_) => cells(prompt, seed, receipt.latents.len())
                .ok_or_else(|| Error::Input("the sheet's prompts and seeds are not one each".to_string()))?,
        };
        let requests = requests.into_iter().map(|(prompt, seed)| {
            let seed = seed.parse().map_err(|_| notes.bad("seed", seed))?;
            Ok(Request { prompt, ..request.clone().seed(seed) })
        });
        Ok(Recipe { requests: requests.collect::<Result<_>>()?, columns, shape, receipt })
    }
}

/// Prompts and seeds of a sheet's pictures, which its notes have line by line. A prompt of several lines is that of all pictures.
fn cells<'a>(prompts: &str, seeds: &'a str, count: usize) -> Option<Vec<(String, &'a str)>> {
    let (lines, seeds) = (prompts.split('\n').collect::<Vec<_>>(), seeds.split('\n').collect::<Vec<_>>());
    if seeds.len() != count || lines.len() % count != 0 {
        return None;
    }
    let prompts = lines.chunks(lines.len() / count).map(|lines| lines.join("\n"));
    Some(prompts.zip(seeds).collect())
}

/// Those of a file.
struct Notes<'a>(&'a [(String, String)]);

impl<'a> Notes<'a> {
    fn find(&self, keyword: &str) -> Result<Option<&'a str>> {
        let mut found = self.0.iter().filter(|(known, _)| known == keyword).map(|(_, text)| text.as_str());
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(Error::Input(format!("the picture has the note `{keyword}` twice"))),
        }
    }

    fn need(&self, keyword: &str) -> Result<&'a str> {
        let missing = || Error::Input(format!("the picture has no note `{keyword}`"));
        self.find(keyword)?.ok_or_else(missing)
    }

    fn bad(&self, keyword: &str, text: &str) -> Error {
        Error::Input(format!("the picture's note `{keyword}` is `{text}`, which this release does not write"))
    }

    fn number(&self, keyword: &str) -> Result<usize> {
        let text = self.need(keyword)?;
        text.parse().map_err(|_| self.bad(keyword, text))
    }

    fn finite(&self, keyword: &str) -> Result<Option<f32>> {
        let Some(text) = self.find(keyword)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number: &f32| number.is_finite());
        number.map(Some).ok_or_else(|| self.bad(keyword, text))
    }

    fn receipt(&self) -> Result<Receipt> {
        let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (latents, pixels) = (self.need("latents")?, self.need("pixels")?);
        let each: Vec<String> = latents.split('\n').take(MAX_PICTURES + 1).map(str::to_string).collect();
        if each.len() > MAX_PICTURES || !each.iter().all(|hash| is_hash(hash)) {
            return Err(self.bad("latents", latents));
        }
        if !is_hash(pixels) {
            return Err(self.bad("pixels", pixels));
        }
        let kinds = [Quantize::Nf4, Quantize::Keep, Quantize::Nf4All, Quantize::None];
        let weights = self.need("weights")?;
        let precision = self.find("precision")?.unwrap_or("full");
        let precisions = [Precision::Full, Precision::Fast];
        let text = |keyword| self.need(keyword).map(str::to_string);
        Ok(Receipt {
            latents: each,
            pixels: pixels.to_string(),
            model: text("model")?,
            loras: self.find("loras")?.unwrap_or_default().to_string(),
            weights: (kinds.into_iter().find(|kind| kind.to_string() == weights))
                .ok_or_else(|| self.bad("weights", weights))?,
            precision: (precisions.into_iter().find(|known| known.to_string() == precision))
                .ok_or_else(|| self.bad("precision", precision))?,
            machine: text("machine")?,
            kernels: text("kernels")?,
            software: text("Software")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn picture(change: impl FnOnce(&mut Vec<(String, String)>)) -> Picture {
        let notes = [
            ("prompt", "a\nb"),
            ("seed", "18446744073709551615"),
            ("noise", "bf16"),
            ("size", "64x128"),
            ("negative_prompt", ""),
            ("true_cfg_scale", "2.5"),
            ("guidance", "3.5"),
            ("timesteps", "bf16"),
            ("steps", "2"),
            ("t5_length", "16"),
            ("estimate_after", "1"),
            ("weights", "nf4-all"),
            ("precision", "fast"),
            ("model", "0123456789abcdef"),
            ("loras", "style.safetensors:0.5 1a2b3c4d"),
            ("machine", "sm_90, 132 SMs"),
            ("kernels", "0"),
            ("latents", HASH),
            ("pixels", HASH),
            ("Software", "schnell 0.1.0"),
            ("Comment", "someone else's"),
        ];
        let mut notes = notes.map(|(keyword, text)| (keyword.to_string(), text.to_string())).to_vec();
        change(&mut notes);
        Picture { width: 64, height: 128, rgb: None, notes }
    }

    fn set(keyword: &str, text: &str) -> Picture {
        picture(|notes| {
            notes.retain(|(known, _)| known != keyword);
            notes.push((keyword.to_string(), text.to_string()));
        })
    }

    #[test]
    fn notes_become_the_request_that_they_are_of() {
        let recipe = Recipe::of(&picture(|_| ())).unwrap();
        let [request] = &recipe.requests[..] else { panic!("{recipe:?}") };
        assert_eq!((request.prompt.as_str(), request.seed), ("a\nb", u64::MAX));
        assert!(matches!(request.noise, Noise::Seeded(NoiseKind::Bf16)));
        assert_eq!((request.size, request.steps, request.t5_length), (Some((64, 128)), Some(2), Some(16)));
        assert_eq!((request.negative_prompt.as_deref(), request.true_cfg_scale), (Some(""), 2.5));
        assert_eq!((request.guidance, request.timesteps), (Some(3.5), TimeRounding::Bf16));
        assert_eq!((recipe.receipt.weights, recipe.receipt.precision), (Quantize::Nf4All, Precision::Fast));
        assert_eq!((recipe.columns, request.estimate_after), (None, Some(1)));
    }

    #[test]
    fn a_sheet_has_a_request_a_picture() {
        let sheet = |prompts: &str, seeds: &str| {
            let hashes = [HASH; 4].join("\n");
            Recipe::of(&picture(|notes| {
                notes.retain(|(known, _)| !["prompt", "seed", "latents"].contains(&known.as_str()));
                for (keyword, text) in
                    [("prompt", prompts), ("seed", seeds), ("latents", &hashes), ("grid", "2x2")]
                {
                    notes.push((keyword.to_string(), text.to_string()));
                }
            }))
        };
        let of = |recipe: Recipe| -> Vec<(String, u64)> {
            recipe.requests.into_iter().map(|request| (request.prompt, request.seed)).collect()
        };
        let each = sheet("a\nb\na\nb", "0\n0\n1\n1").unwrap();
        assert_eq!(each.columns, Some(2));
        assert_eq!(of(each), [("a", 0), ("b", 0), ("a", 1), ("b", 1)].map(|(p, s)| (p.to_string(), s)));
        let long = sheet("a\nb\na\nb\na\nb\na\nb", "0\n1\n2\n3").unwrap();
        assert_eq!(of(long), [0, 1, 2, 3].map(|seed| ("a\nb".to_string(), seed)));
        for (prompts, seeds) in
            [("a\nb\nc", "0\n0\n1\n1"), ("a\na\na\na", "0\n1\n2"), ("a\na\na\na", "0\n1\n2\nx")]
        {
            assert!(matches!(sheet(prompts, seeds), Err(Error::Input(_))), "{prompts:?} {seeds:?}");
        }
    }

    #[test]
    fn what_cannot_be_drawn_again_is_refused() {
        let refused = |picture: Picture| match Recipe::of(&picture) {
            Err(Error::Input(text)) => text,
            other => panic!("{other:?}"),
        };
        for keyword in ["latents", "pixels"] {
            let without = picture(|notes| notes.retain(|(known, _)| known != keyword));
            assert!(refused(without).contains("no receipt"), "{keyword}");
        }
        for keyword in [
            "prompt",
            "seed",
            "noise",
            "size",
            "steps",
            "t5_length",
            "weights",
            "model",
            "machine",
            "kernels",
        ] {
            let without = picture(|notes| notes.retain(|(known, _)| known != keyword));
            assert!(refused(without).contains(&format!("no note `{keyword}`")), "{keyword}");
            let twice = picture(|notes| {
                let again = notes.iter().find(|(known, _)| known == keyword).cloned();
                notes.extend(again);
            });
            assert!(refused(twice).contains(&format!("`{keyword}` twice")), "{keyword}");
        }
        assert!(refused(set("noise", "given")).contains("noise was given"));
        for (keyword, text) in [
            ("noise", "pink"),
            ("size", "64"),
            ("steps", "-1"),
            ("estimate_after", "one"),
            ("seed", "7a"),
            ("guidance", "NaN"),
            ("true_cfg_scale", "inf"),
            ("timesteps", "f16"),
            ("weights", "int8"),
            ("precision", "half"),
            ("pixels", "12"),
            ("latents", "12"),
            ("grid", "3x3"),
            ("grid", "0x0"),
        ] {
            let told = refused(set(keyword, text));
            assert!(told.contains(&format!("`{keyword}` is `{text}`")), "{told}");
        }
        let many = vec![HASH; MAX_PICTURES + 1].join("\n");
        assert!(refused(set("latents", &many)).contains("`latents`"));
    }

    #[test]
    fn receipts_differ_in_what_is_said() {
        let there = Recipe::of(&picture(|_| ())).unwrap().receipt;
        assert!(there.is_same_picture(&there) && there.differences(&there).is_empty());
        let elsewhere = Receipt { machine: "sm_86, 28 SMs".to_string(), ..there.clone() };
        assert!(there.is_same_picture(&elsewhere));
        assert_eq!(there.differences(&elsewhere), ["machine: sm_90, 132 SMs there, sm_86, 28 SMs here"]);
        let flipped = HASH.replacen('0', "1", 1);
        for other in [
            Receipt { latents: vec![flipped.clone()], ..there.clone() },
            Receipt { pixels: flipped.clone(), ..there.clone() },
            Receipt { model: "1".to_string(), ..there.clone() },
            Receipt { latents: vec![HASH.to_string(); 2], ..there.clone() },
        ] {
            assert!(!there.is_same_picture(&other) && there.differences(&other).len() == 1, "{other:?}");
        }
        assert!(!there.is_of(b"") && Receipt { pixels: sha256(b""), ..there }.is_of(b""));
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
