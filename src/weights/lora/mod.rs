//! LoRA files: low-rank changes of a model's matrices, read into the names that the networks use.
//!
//! `W x` becomes `W x + strength * scale * up (down x)`: `down` is `[rank, k]`, `up` is `[n, rank]`, and `scale` is `alpha / rank`,
//! or 1 where the file says no alpha. [`Lora::open`] finds for each pair of factors the matrix that it changes. It reads headers and
//! alphas; the factors are read by whoever loads them.
//!
//! | names | whose | read |
//! |---|---|---|
//! | `transformer.P.lora_A.weight`, `text_encoder.P.lora_A.weight` | diffusers, PEFT | yes; alphas from tensors or the metadata |
//! | `text_encoder.P.to_q_lora.down.weight`, `P.lora_linear_layer.down.weight` | diffusers, of CLIP, before PEFT | yes |
//! | `lora_unet_B.lora_down.weight`, `lora_te1_C.lora_down.weight`, `.alpha` | kohya's sd-scripts | yes |
//! | `lora_transformer_P.lora_down.weight`, `lycoris_P.lora_down.weight` | OneTrainer, SimpleTuner | yes |
//! | `diffusion_model.B.lora_A.weight`, `text_encoders.clip_l.transformer.C.lora_A.weight` | ComfyUI, ai-toolkit | yes |
//! | `base_model.model.B.lora_A.weight` | fal, and PEFT's own files | yes |
//! | `B.processor.qkv_lora1.down.weight`, `qkv_lora2`, `proj_lora1`, `proj_lora2`, `qkv_lora`, `proj_lora` | XLabs | yes |
//! | `lora_te2_`, `lora_te3_`, `text_encoders.t5xxl.`, `text_encoder_2.` | of T5 | left out with a warning, as diffusers does |
//! | others beside `transformer.`, `lora_unet_` beside `lora_transformer_` | the same change twice | left out with a warning, as diffusers does |
//! | `.diff`, `.diff_b`, `lora_B.bias` | changes of full rank, and of biases | refused, unless they are zero |
//! | `lokr_`, `hada_`, `dora_scale`, `oft_`, norms beside `img_in` of 128 channels | LoKr, LoHa, DoRA, OFT, control LoRAs | refused |
//!
//! `P` is a module's path as diffusers calls it, `B` as Black Forest Labs do, `C` CLIP's, with `.` or with `_`. All of a prefix's
//! modules are looked up under all names. A fused module changes several matrices: they share `down`, and each has
//! its rows of `up`, those that [`super::layouts::bfl`] says; of `final_layer.adaLN_modulation.1`, whose halves change places, the rows of
//! `up` do. (diffusers' converter of control LoRAs moves those of `down`, too, which is another product; and its converter of
//! kohya's files forgets the alphas of `final_layer`.)
//!
//! Source: diffusers `lora_conversion_utils.py`, `lora_pipeline.py`, `peft_utils.py`; ComfyUI `lora.py`.

mod alpha;
mod file;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::alpha::Settings;
use self::names::{Key, Kind, Target, Targets};
use super::layouts::{self, Cut};
use super::{Component, Dtype, Part, TensorInfo};
use crate::config::PipelineConfig;
use crate::error::shown;
use crate::{Error, Result};

pub use self::file::LoraFile;

/// The largest rank that is read. Published LoRAs have 1 to 256.
pub const MOST_RANK: usize = 512;

/// Names that a message lists.
const MOST_LISTED: usize = 3;

/// Of each factor.
const DIGESTED_BYTES: u64 = 1024;

/// Bytes of a tensor that are looked at at once.
const PIECE_BYTES: usize = 1 << 20;

/// A LoRA file: low-rank changes of a model's matrices.
///
/// ```no_run
/// # fn main() -> schnell::Result<()> {
/// let model = schnell::Model::open("FLUX.1-schnell")?;
/// let lora = schnell::Lora::open("lora.safetensors", model.config())?;
/// println!("{}", lora.file());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Lora {
    path: PathBuf,
    file: LoraFile,
    factors: Vec<Factor>,
    warnings: Vec<String>,
    digest: String,
}

/// See [`Lora::digest`].
fn digest(factors: &[Factor]) -> Result<String> {
    let mut hash = Sha256::new();
    for factor in factors {
        hash.update(format!("{} {} {:08x}\n", factor.part, factor.target, factor.scale.to_bits()));
        for tensor in [&factor.down, &factor.up] {
            let mut bytes = vec![0; tensor.bytes.min(DIGESTED_BYTES) as usize];
            tensor.read_at(0, &mut bytes)?;
            hash.update(format!("{:?}\n", tensor.shape));
            hash.update(&bytes);
        }
    }
    Ok(hash.finalize()[..4].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A change of one matrix: `W x` becomes `W x + strength * scale * up (down x)`. A LoRA has at most one of a matrix.
#[derive(Clone, Debug)]
pub struct Factor {
    /// The transformer or CLIP.
    pub part: Part,
    /// The matrix `[n, k]` without `.weight`, in the names of [`super::Needed`]: `transformer_blocks.0.attn.to_q`.
    pub target: String,
    /// `[rank, k]`, of F32, BF16 or F16; of a fused module the same for each of its matrices.
    pub down: TensorInfo,
    /// `[n, rank]`, of F32, BF16 or F16.
    pub up: TensorInfo,
    /// `alpha / rank`; 1 where there is no alpha.
    pub scale: f32,
}

impl Lora {
    /// Opens the safetensors file `path` and finds for each of its factors the matrix of the model `config` that it changes. Factors
    /// of matrices that this model does not have are left out with a warning; so is what [`Lora::warnings`] says.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Weights`] when it is malformed, is no LoRA, changes nothing of this model, or has a
    /// factor without its other half, of a shape that does not fit, of a rank of 0 or above 512, or an alpha that is
    /// no finite number; [`Error::Unsupported`] for changes of another kind: see the module's table.
    pub fn open(path: impl AsRef<Path>, config: &PipelineConfig) -> Result<Lora> {
        Lora::of(&Component::file(path.as_ref())?, config)
    }

    /// The LoRA in an opened file.
    pub(crate) fn of(component: &Component, config: &PipelineConfig) -> Result<Lora> {
        let path = component.path();
        let Some(file) = LoraFile::of(component).filter(|_| component.gguf_version().is_none()) else {
            return Err(no_lora(component));
        };
        let targets = Targets::of(config)?;
        let mut reader = Reader { path, targets, settings: Settings::of(component)?, warnings: Vec::new() };
        let keys = reader.keys(component);
        reader.refuse_other_kinds(&keys)?;
        let modules = reader.modules(&keys)?;
        let matched = reader.matched(&modules, &file)?;
        let factors = reader.factors(&matched)?;
        let warnings = component.warnings().iter().cloned().chain(reader.warnings).collect();
        let digest = digest(&factors)?;
        Ok(Lora { path: path.to_path_buf(), file, factors, warnings, digest })
    }

    /// Tells LoRAs apart: the first 32 bits, in hex, of a SHA-256 over what they change and each factor's shape, scale and first bytes.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is, by its names.
    pub fn file(&self) -> &LoraFile {
        &self.file
    }

    /// Its changes, in the order in which the networks ask for the matrices.
    #[doc(hidden)]
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// What a person should know: what of the file is left out, and why.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The tensors of one module.
#[derive(Default)]
struct Module<'a> {
    /// As the first of them has it.
    key: Option<Key<'a>>,
    down: Option<&'a TensorInfo>,
    up: Option<&'a TensorInfo>,
    alpha: Option<&'a TensorInfo>,
}

/// A module that the model has.
struct Matched<'a> {
    key: Key<'a>,
    down: &'a TensorInfo,
    up: &'a TensorInfo,
    alpha: Option<&'a TensorInfo>,
}

type Modules<'a> = BTreeMap<(Part, String), Module<'a>>;

struct Reader<'a> {
    path: &'a Path,
    targets: Targets,
    settings: Settings,
    warnings: Vec<String>,
}

impl<'a> Reader<'a> {
    fn warn(&mut self, what: &str) {
        self.warnings.push(format!("{}: {what}", shown(&self.path.to_string_lossy())));
    }

    fn wrong(&self, what: String) -> Error {
        Error::weights(self.path, what)
    }

    fn unsupported(&self, info: &TensorInfo, what: &str) -> Error {
        Error::Unsupported(format!("{}: tensor {} {what}", self.path.display(), info.name))
    }

    /// All tensors that count, by name.
    fn keys(&mut self, component: &'a Component) -> Vec<(Key<'a>, &'a TensorInfo)> {
        let mut keys: Vec<_> = component.iter().map(|info| (Key::of(&info.name), info)).collect();
        keys.sort_unstable_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        let has = |prefix: &str| keys.iter().any(|(key, _)| key.prefix == prefix && key.kind == Kind::Down);
        // Of two copies, the one under diffusers' names counts.
        let is_twice = match (has("transformer."), has("lora_transformer_"), has("lora_unet_")) {
            (true, ..) => |key: &Key<'_>| {
                let is_other = key.part == Part::Transformer && key.prefix != "transformer.";
                key.prefix.starts_with("lora_") || (is_other && key.kind.is_of_pair())
            },
            (false, true, true) => |key: &Key<'_>| key.prefix == "lora_unet_",
            _ => |_: &Key<'_>| false,
        };
        let (twice, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, _)| is_twice(key));
        let (of_t5, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, _)| key.part == Part::T5);
        let names = |keys: &[(Key<'_>, &TensorInfo)]| listed(keys.iter().map(|(_, info)| &info.name[..]));
        if !twice.is_empty() {
            let what = "a second copy under other names, and left out, as in diffusers";
            self.warn(&format!("{} of its tensors are {what}: {}", twice.len(), names(&twice)));
        }
        if !of_t5.is_empty() {
            let what = "of T5, which LoRAs are not applied to (nor in diffusers), and left out";
            self.warn(&format!("{} of its tensors are {what}: {}", of_t5.len(), names(&of_t5)));
        }
        keys
    }

    /// Refuses a file with changes that are no LoRA's. What is zero, or of modules that the model does not have, changes nothing.
    fn refuse_other_kinds(&mut self, keys: &[(Key<'a>, &'a TensorInfo)]) -> Result<()> {
        let (mut zero, mut unknown) = (Vec::new(), Vec::new());
        for (key, info) in keys {
            let is_there = self.targets.find(key).is_some();
            match key.kind {
                Kind::Other(kind) => return Err(unsupported(self.path, kind, &info.name)),
                Kind::Own if key.module.ends_with("_norm") && is_there => {
                    return Err(unsupported(self.path, "control LoRA", &info.name));
                }
                Kind::Own if is_there => {
                    let what = "stands in place of the model's own: only pairs of factors are supported";
                    return Err(self.unsupported(info, what));
                }
                Kind::Added if is_there && !is_zero(info)? => {
                    let what = "changes a bias or a whole tensor: only pairs of factors are supported; extract a \
                                LoRA without it";
                    return Err(self.unsupported(info, what));
                }
                Kind::Added if is_there => zero.push(&info.name[..]),
                Kind::Added | Kind::Own | Kind::Unknown => unknown.push(&info.name[..]),
                Kind::Down | Kind::Up | Kind::Alpha => {}
            }
        }
        if !zero.is_empty() {
            let names = listed(zero.iter().copied());
            self.warn(&format!("{} of its tensors are zero and change nothing: {names}", zero.len()));
        }
        if !unknown.is_empty() {
            let names = listed(unknown.iter().copied());
            self.warn(&format!("{} of its tensors are not known and left out: {names}", unknown.len()));
        }
        Ok(())
    }

    /// The factors and alphas by module.
    fn modules(&mut self, keys: &[(Key<'a>, &'a TensorInfo)]) -> Result<Modules<'a>> {
        let mut modules = Modules::new();
        for (key, info) in keys.iter().filter(|(key, _)| key.kind.is_of_pair()) {
            let module = modules.entry((key.part, key.plain())).or_default();
            module.key.get_or_insert(*key);
            let place = match key.kind {
                Kind::Down => &mut module.down,
                Kind::Up => &mut module.up,
                _ => &mut module.alpha,
            };
            if let Some(other) = place.replace(info) {
                let what =
                    format!("tensors {} and {} are of one module: expected one", other.name, info.name);
                return Err(self.wrong(what));
            }
        }
        Ok(modules)
    }

    /// What there is of each module that the model has; the rest is said.
    fn matched(&mut self, modules: &Modules<'a>, file: &LoraFile) -> Result<Vec<Matched<'a>>> {
        let (mut matched, mut elsewhere, mut lone) = (Vec::new(), Vec::new(), Vec::new());
        for ((part, _), module) in modules {
            let Some(key) = module.key else { continue };
            let (down, up) = match (module.down, module.up) {
                (Some(down), Some(up)) => (down, up),
                (None, None) => {
                    lone.extend(module.alpha.map(|alpha| &alpha.name[..]));
                    continue;
                }
                (Some(one), None) => {
                    return Err(
                        self.wrong(format!("tensor {} has no counterpart up from the rank", one.name))
                    );
                }
                (None, Some(one)) => {
                    return Err(
                        self.wrong(format!("tensor {} has no counterpart down to the rank", one.name))
                    );
                }
            };
            match self.targets.find(&key) {
                None => elsewhere.push((*part, &down.name[..])),
                Some([]) if is_zero(up)? || is_zero(down)? => lone.push(&down.name[..]),
                Some([]) => {
                    let what =
                        "changes a table of embeddings or a norm: only changes of Linears are supported";
                    return Err(self.unsupported(down, what));
                }
                Some(_) => matched.push(Matched { key, down, up, alpha: module.alpha }),
            }
        }
        // CLIP is that of many families: a LoRA of another's must not load for it alone.
        let is_of_transformer = |part: Part| part == Part::Transformer;
        let has_one = matched.iter().any(|module: &Matched<'_>| is_of_transformer(module.key.part));
        let lacks_one = elsewhere.iter().any(|(part, _)| is_of_transformer(*part));
        if matched.is_empty() || (lacks_one && !has_one) {
            return Err(self.of_another_model(&elsewhere, file));
        }
        if !elsewhere.is_empty() {
            let names = listed(elsewhere.iter().map(|(_, name)| *name));
            let is_guidance = elsewhere.iter().any(|(_, name)| name.contains("guidance"));
            let hint = "; it was made for a model with a guidance embedder, as FLUX.1-dev";
            let hint = if is_guidance { hint } else { "" };
            let what = "of its changes are of matrices that this model does not have, and left out";
            self.warn(&format!("{} {what}: {names}{hint}", elsewhere.len()));
        }
        if !lone.is_empty() {
            let names = listed(lone.iter().copied());
            self.warn(&format!("{} of its tensors are without effect and left out: {names}", lone.len()));
        }
        Ok(matched)
    }

    fn factors(&self, matched: &[Matched<'_>]) -> Result<Vec<Factor>> {
        let mut factors = Vec::new();
        for module in matched {
            self.add_factors(module, &mut factors)?;
        }
        factors.sort_by_key(|(target, _)| *target);
        for pair in factors.windows(2) {
            let [(one, first), (other, second)] = pair else { continue };
            if one == other {
                let (first, second) = (&first.down.name, &second.down.name);
                let target = &self.targets.list[*one].name;
                let what = format!("tensors {first} and {second} both change {target}: expected one change");
                return Err(self.wrong(what));
            }
        }
        Ok(factors.into_iter().map(|(_, factor)| factor).collect())
    }

    /// A file none of whose changes are this model's, or none of the transformer's.
    fn of_another_model(&self, elsewhere: &[(Part, &str)], file: &LoraFile) -> Error {
        let has = |text: &str| elsewhere.iter().any(|(_, name)| name.contains(text));
        let family = [
            ("input_blocks", "Stable Diffusion"),
            ("down_blocks", "Stable Diffusion"),
            ("output_blocks", "Stable Diffusion"),
            ("double_stream_modulation", "FLUX.2"),
            ("cross_attn", "Wan"),
        ];
        let looks = family.iter().find(|(text, _)| has(text));
        let looks = looks.map_or(String::new(), |(_, family)| format!(" (it looks like one for {family})"));
        if elsewhere.is_empty() {
            let why = self.warnings.first().map_or(String::new(), |why| format!(": {why}"));
            return self.wrong(format!("this is {file}, which changes nothing of this model{why}"));
        }
        let names = listed(elsewhere.iter().map(|(_, name)| *name));
        self.wrong(format!(
            "this is {file}{looks}, and this model has none of the matrices that it changes: {names}"
        ))
    }

    /// What the factors of one module are to each of its targets.
    fn add_factors(&self, module: &Matched<'_>, factors: &mut Vec<(usize, Factor)>) -> Result<()> {
        let (down, up) = (matrix(module.down)?, matrix(module.up)?);
        let rank = down.shape[0];
        if rank == 0 || rank > MOST_RANK {
            let what = format!("tensor {} has rank {rank}: expected 1 to {MOST_RANK}", down.name);
            return Err(self.wrong(what));
        }
        let scale = self.scale(&module.key, module.alpha, rank)?;
        for (index, cut) in self.targets.find(&module.key).unwrap_or_default() {
            let Target { part, name, n, k } = &self.targets.list[*index];
            if down.shape[1] == 2 * k && name == "x_embedder" {
                return Err(unsupported(self.path, "control LoRA", &down.name));
            }
            let Some((unit, rows)) = cut.sizes(*n) else {
                return Err(Error::Internal(format!("{name}: {n} rows of {} are cut unevenly", up.name)));
            };
            for (factor, expected) in [(&down, [rank, *k]), (&up, [rows, rank])] {
                if factor.shape != expected {
                    let TensorInfo { name: factor, shape, .. } = factor;
                    let what =
                        format!("tensor {factor} has shape {shape:?}: expected {expected:?} for {name}");
                    return Err(self.wrong(what));
                }
            }
            let up = match *cut == Cut::WHOLE {
                true => up.clone(),
                false => up.cut(cut.rows(unit))?,
            };
            let factor = Factor { part: *part, target: name.clone(), down: down.clone(), up, scale };
            factors.push((*index, factor));
        }
        Ok(())
    }

    /// What the product is multiplied with.
    fn scale(&self, key: &Key<'_>, alpha: Option<&TensorInfo>, rank: usize) -> Result<f32> {
        let said = self.settings.scale(key.prefix, key.module, rank);
        let Some(alpha) = alpha else { return self.finite(said.unwrap_or(1.0), key) };
        let scale = alpha::of_tensor(alpha)? / rank as f64;
        if said.is_some_and(|said| said != scale) {
            let what = format!("tensor {} and the file's settings say two alphas of one module", alpha.name);
            return Err(self.wrong(what));
        }
        self.finite(scale, key)
    }

    fn finite(&self, scale: f64, key: &Key<'_>) -> Result<f32> {
        let narrow = scale as f32;
        if narrow.is_finite() {
            return Ok(narrow);
        }
        Err(self.wrong(format!("{}: its alpha over its rank is {scale}, beyond f32", key.module)))
    }
}

/// A factor as a matrix: that of a 1x1 convolution is one.
fn matrix(info: &TensorInfo) -> Result<TensorInfo> {
    let wrong = |what: String| Error::weights(info.file.path(), format!("tensor {} {what}", info.name));
    if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
        return Err(wrong(format!("has dtype {}: expected F32, BF16 or F16", info.dtype)));
    }
    match info.shape[..] {
        [rows, columns] | [rows, columns, 1, 1] => {
            Ok(TensorInfo { shape: vec![rows, columns], ..info.clone() })
        }
        _ => Err(wrong(format!("has shape {:?}: expected a matrix", info.shape))),
    }
}

/// Whether all bytes are zero.
fn is_zero(info: &TensorInfo) -> Result<bool> {
    let mut piece = vec![0; PIECE_BYTES.min(info.bytes as usize)];
    let mut at = 0;
    while at < info.bytes {
        let len = (info.bytes - at).min(piece.len() as u64) as usize;
        info.read_at(at, &mut piece[..len])?;
        if piece[..len].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}

/// The first of these names, and how many more there are.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MOST_LISTED);
    let first: Vec<String> = names.take(MOST_LISTED).map(shown).collect();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", first.join(", "))
}

/// The refusal of a relative, by the tensor that tells it.
fn unsupported(path: &Path, kind: &str, tensor: &str) -> Error {
    let why = match kind {
        "LoKr" => "its changes are Kronecker products",
        "LoHa" => "its changes are products of two LoRAs, number by number",
        "DoRA" => "it sets how long the rows of the changed matrices are",
        "OFT" => "its changes are rotations",
        "control LoRA" => "it needs a picture beside the prompt, more channels, and norms of its own",
        _ => "its changes are no pairs of matrices",
    };
    let path = path.display();
    Error::Unsupported(format!(
        "{path}: tensor {tensor}: {kind} is not supported, since {why}; use a plain LoRA"
    ))
}

/// The refusal of a file without factors.
fn no_lora(component: &Component) -> Error {
    let found = layouts::recognize(|name| component.get(name).is_some());
    let parts: Vec<String> = found.iter().map(|found| found.part.to_string()).collect();
    let what = match (component.gguf_version(), &parts[..]) {
        (Some(_), _) => "this is a GGUF file: LoRAs are read from safetensors".to_string(),
        (None, []) => {
            "this is no LoRA: it has no pairs of factors, such as `.lora_A.weight` and `.lora_B.weight`"
                .to_string()
        }
        (None, parts) => {
            let flags: Vec<String> = parts.iter().map(|part| format!("--{part}")).collect();
            format!("this is no LoRA, but a model's {}: name it with {}", parts.join(", "), flags.join(" "))
        }
    };
    Error::weights(component.path(), what)
}
