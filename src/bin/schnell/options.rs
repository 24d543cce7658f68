//! Flags that several subcommands share, and what they mean in the library's terms.

use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::terminal::say;
use clap::{Args, ValueEnum};
use schnell::{
    Device, Error, Lora, Model, ModelFolder, PipelineConfig, Plan, Precision, Quantize, Result, Shape,
    human_bytes,
};

/// Which files the model is in.
#[derive(Args)]
pub struct ModelOptions {
    /// Model folder in the diffusers layout, org/name of one in the Hugging Face cache, a checkpoint in one file (safetensors or
    /// GGUF), or `demo` for the bundled one [default: demo, or what --transformer names]
    #[arg(long, value_name = "DIR|HF-ID|FILE|demo")]
    pub model: Option<String>,
    /// A file with the transformer, or a folder of its own as in the diffusers layout, in place of --model's; without --model, tokenizers and configs come from FLUX.1-schnell or -dev
    /// in the Hugging Face cache
    #[arg(long, value_name = "FILE|DIR")]
    pub transformer: Option<PathBuf>,
    /// A file with the VAE, or its folder, in place of --model's
    #[arg(long, value_name = "FILE|DIR")]
    pub vae: Option<PathBuf>,
    /// A file with the CLIP text encoder, or its folder, in place of --model's
    #[arg(long, value_name = "FILE|DIR")]
    pub clip: Option<PathBuf>,
    /// A file with the T5 encoder, or its folder, in place of --model's
    #[arg(long, value_name = "FILE|DIR")]
    pub t5: Option<PathBuf>,
    /// A LoRA in a safetensors file, and how strongly it counts: style.safetensors:0.8; as often as there are LoRAs [default strength: 1]
    #[arg(long, value_name = "FILE[:STRENGTH]", value_parser = parse_lora)]
    pub lora: Vec<(PathBuf, f32)>,
}

/// How much memory may be used.
#[derive(Args)]
pub struct BudgetOptions {
    /// Device memory that may be used at most, such as 6.5GiB or 900MiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub budget: Option<u64>,
    /// Pinned host memory that may be used at most; streamed weights that it has no room for are read from --cache each time
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub host_budget: Option<u64>,
}

/// What decides the plan.
#[derive(Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub model: ModelOptions,
    /// How Linear layers of the transformer and T5 are kept [default: keep where their files hold them in fp8 or in types of GGUF, else nf4]
    #[arg(long, value_enum)]
    pub quantize: Option<QuantizeOption>,
    /// How the transformer is computed
    #[arg(long, value_enum, default_value_t = PrecisionOption::Full)]
    pub precision: PrecisionOption,
    /// Image width in pixels, a multiple of 16 [default: 1024, bundled model: 128]
    #[arg(long)]
    pub width: Option<usize>,
    /// Image height in pixels, a multiple of 16 [default: 1024, bundled model: 128]
    #[arg(long)]
    pub height: Option<usize>,
    /// Denoising steps [default: 4, models with a guidance embedder: 28]
    #[arg(long)]
    pub steps: Option<usize>,
    /// T5 tokens, padding included [default: 256, models with a guidance embedder: 512; less if the tokenizer allows less]
    #[arg(long, value_name = "N")]
    pub t5_length: Option<usize>,
    #[command(flatten)]
    pub budgets: BudgetOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum QuantizeOption {
    /// As the files have them, where they hold any in few bits: NF4, fp8 and GGUF's types stay, the rest is bf16
    Keep,
    /// 4 bits a weight, as bitsandbytes does it; what a file holds wide beside NF4, and T5's `wo`, stay wide
    Nf4,
    /// 4 bits a weight, all of them
    Nf4All,
    /// bf16
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum PrecisionOption {
    /// bf16 with f32 accumulation
    Full,
    /// fp16 with fp16 accumulation within quant blocks: other pictures, faster on GeForce (RTX 30, 40, 50) alone
    Fast,
}

impl ModelOptions {
    pub fn is_demo(&self) -> bool {
        match &self.model {
            Some(model) => model == "demo",
            None => !self.transformer.as_ref().is_some_and(|file| file.is_file()),
        }
    }

    /// The configs of `folder`; of a file in place of the transformer it is said what its tensors make of it.
    pub fn config(&self, folder: &ModelFolder) -> Result<PipelineConfig> {
        let config = folder.config()?;
        let file = self.model.as_ref().map(PathBuf::from).into_iter().chain(self.transformer.clone());
        if let Some(file) = file.rev().find(|path| path.is_file()) {
            say(format_args!("{}: {}", file.display(), config.flux.in_words()));
        }
        let loras = self.loras(&config)?;
        for warning in loras.iter().flat_map(|(lora, _)| lora.warnings()) {
            say(format_args!("warning: {warning}"));
        }
        Ok(config.with_loras(&loras))
    }

    /// Those of --lora, for a model of this config.
    fn loras(&self, config: &PipelineConfig) -> Result<Vec<(Lora, f32)>> {
        let open = |(path, strength): &(PathBuf, f32)| Ok((Lora::open(path, config)?, *strength));
        self.lora.iter().map(open).collect()
    }

    /// The model in `folder`, with what --lora names.
    pub fn model(&self, folder: &ModelFolder) -> Result<Model> {
        let model = Model::open_folder(folder)?;
        let loras = self.loras(model.config())?;
        model.with_loras(&loras)
    }

    /// What is read beside the model's folder.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let ModelOptions { transformer, vae, clip, t5, lora, .. } = self;
        let model = self.model.as_deref().map(Path::new);
        let parts =
            [transformer, vae, clip, t5].into_iter().flatten().chain(lora.iter().map(|(path, _)| path));
        model.into_iter().chain(parts.map(PathBuf::as_path))
    }

    /// The model's folder, and the files in place of its parts.
    pub fn folder(&self) -> Result<ModelFolder> {
        let ModelOptions { vae, clip, t5, .. } = self;
        let (model, transformer) = match (&self.model, &self.transformer) {
            // It is the model.
            (None, Some(file)) if !self.is_demo() => (file.as_path(), None),
            (model, file) => (Path::new(model.as_deref().unwrap_or("demo")), file.as_ref()),
        };
        let mut folder = if self.is_demo() { ModelFolder::demo() } else { ModelFolder::find(model) }?;
        if let Some(file) = transformer {
            folder = folder.transformer(file)?;
        }
        if let Some(file) = vae {
            folder = folder.vae(file)?;
        }
        if let Some(file) = clip {
            folder = folder.clip(file)?;
        }
        if let Some(file) = t5 {
            folder = folder.t5(file)?;
        }
        Ok(folder)
    }
}

impl BudgetOptions {
    /// `plan` within the budgets that there are; the refusals' advice is in the command's words.
    pub fn within_budget(&self, mut plan: Plan) -> Result<Plan> {
        let with_advice = |error, advice: &str| match error {
            Error::Capacity { what, needed_bytes, available_bytes, .. } => {
                Error::Capacity { what, needed_bytes, available_bytes, advice: advice.to_string() }
            }
            other => other,
        };
        if let Some(budget) = self.budget {
            let advice = "raise --budget, or ask for a smaller image; `schnell plan` lists every region";
            plan = plan.within(budget).map_err(|error| with_advice(error, advice))?;
        }
        if let Some(budget) = self.host_budget {
            let advice = "raise --host-budget";
            plan = plan.within_host(budget).map_err(|error| with_advice(error, advice))?;
        }
        Ok(plan)
    }
}

/// Weights that stay on disk need a folder there.
pub fn check_disk(plan: &Plan, cache: Option<&Path>) -> Result<()> {
    let on_disk = plan.traffic().on_disk;
    match on_disk > 0 && cache.is_none() {
        true => Err(Error::Input(format!(
            "--host-budget leaves {} of weights on disk: name a folder to read them from with --cache, or raise it",
            human_bytes(on_disk)
        ))),
        false => Ok(()),
    }
}

impl PlanOptions {
    /// That of the flags.
    pub fn shape(&self, config: &PipelineConfig, true_cfg: bool) -> Shape {
        let side = if self.model.is_demo() { 128 } else { 1024 };
        let shape = Shape::new(self.width.unwrap_or(side), self.height.unwrap_or(side))
            .steps(self.steps.unwrap_or(config.steps))
            .t5_length(self.t5_length.unwrap_or(config.t5_length));
        if true_cfg { shape.true_cfg() } else { shape }
    }

    fn quantize(&self, config: &PipelineConfig) -> Quantize {
        match self.quantize {
            None => Quantize::usual(config),
            Some(QuantizeOption::Keep) => Quantize::Keep,
            Some(QuantizeOption::Nf4) => Quantize::Nf4,
            Some(QuantizeOption::Nf4All) => Quantize::Nf4All,
            Some(QuantizeOption::None) => Quantize::None,
        }
    }

    /// For all that these say, without a budget.
    pub fn plan(&self, config: &PipelineConfig, true_cfg: bool) -> Result<Plan> {
        self.plan_for(config, self.shape(config, true_cfg))
    }

    /// As [`PlanOptions::plan`], of another shape.
    pub fn plan_for(&self, config: &PipelineConfig, shape: Shape) -> Result<Plan> {
        let precision = match self.precision {
            PrecisionOption::Full => Precision::Full,
            PrecisionOption::Fast => Precision::Fast,
        };
        let plan = Plan::new(config, shape, self.quantize(config))?;
        if precision == Precision::Fast && plan.nf4_bytes().0 == 0 {
            say(
                "warning: --precision fast has no effect: no Linear of the transformer is in NF4; see --quantize",
            );
        }
        plan.with_precision(precision)
    }
}

/// `FILE` or `FILE:0.8`.
fn parse_lora(text: &str) -> Result<(PathBuf, f32), String> {
    // A file's name may hold a colon, too.
    let split = text.rsplit_once(':').filter(|(path, strength)| !path.is_empty() && !strength.contains('/'));
    match split.map(|(path, strength)| (path, strength.parse::<f32>())) {
        Some((path, Ok(strength))) if strength.is_finite() => Ok((path.into(), strength)),
        Some((_, strength)) if !Path::new(text).exists() => {
            let why = strength.err().map_or("not finite".to_string(), |error| error.to_string());
            Err(format!("what follows the colon is no strength such as 0.8: {why}"))
        }
        _ => Ok((text.into(), 1.0)),
    }
}

/// `6.5GiB`, `900MiB`, `7GB`, `5000000000`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..split].parse().map_err(|_| format!("`{text}` is no number of bytes; try 6.5GiB"))?;
    let unit: f64 = match text[split..].trim() {
        "" | "B" => 1.0,
        "KiB" | "K" => 1024.0,
        "MiB" | "M" => 1024.0 * 1024.0,
        "GiB" | "G" => 1024.0 * 1024.0 * 1024.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        other => return Err(format!("`{other}` is no unit; use KiB, MiB, GiB, KB, MB or GB")),
    };
    let bytes = number * unit;
    if !(1.0..1e15).contains(&bytes) {
        return Err(format!("{text} is not a sensible amount of memory"));
    }
    Ok(bytes as u64)
}

/// `12s`, `1.5s`, `800ms`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; use 12s or 800ms");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| wrong())? * unit;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// A number, or the wish for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    Number(u64),
    Random,
}

impl Seed {
    /// The number; another one at each call for a wish.
    pub fn number(self) -> u64 {
        match self {
            Seed::Number(seed) => seed,
            // As many bits as count.
            Seed::Random => std::hash::RandomState::new().hash_one(()) >> 32,
        }
    }
}

impl std::str::FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Seed::Random),
            _ => text
                .parse()
                .map(Seed::Number)
                .map_err(|_| format!("`{text}` is no seed; use a number from 0 to {}, or random", u64::MAX)),
        }
    }
}

/// `auto`, `cuda:N` or `emulator`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceOption {
    Auto,
    Cuda(usize),
    Emulator,
}

impl std::str::FromStr for DeviceOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceOption::Auto),
            "emulator" => Ok(DeviceOption::Emulator),
            "cuda" => Ok(DeviceOption::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(DeviceOption::Cuda)
                .ok_or_else(|| format!("`{text}` is no device; use auto, cuda:N or emulator")),
        }
    }
}

impl DeviceOption {
    /// Opens the device, and refuses the emulator for work that it would not finish. Also what the user should know
    /// about the choice.
    pub fn open(self, plan: &Plan, num_pictures: usize) -> Result<(Device, Option<String>)> {
        match self {
            DeviceOption::Cuda(ordinal) => Ok((Device::cuda(ordinal)?, None)),
            DeviceOption::Emulator => plan.emulator(num_pictures, None),
            DeviceOption::Auto => plan.first_device(num_pictures),
        }
    }

    /// Opens the device, for whatever work. Where `auto` finds no GPU it is the emulator, and why there is none.
    pub fn bare(self) -> Result<(Device, Option<Error>)> {
        match self {
            DeviceOption::Cuda(ordinal) => Ok((Device::cuda(ordinal)?, None)),
            DeviceOption::Emulator => Ok((emulator()?, None)),
            DeviceOption::Auto => match Device::cuda(0) {
                Err(why @ Error::Unsupported(_)) => match emulator() {
                    Ok(emulator) => Ok((emulator, Some(why))),
                    Err(_) => Err(why),
                },
                opened => Ok((opened?, None)),
            },
        }
    }
}

#[cfg(feature = "emulator")]
fn emulator() -> Result<Device> {
    Ok(Device::emulator(Default::default()))
}

#[cfg(not(feature = "emulator"))]
fn emulator() -> Result<Device> {
    Err(Error::Unsupported("schnell was built without the feature `emulator`".to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_parse() {
        assert_eq!(parse_bytes("6.5GiB").unwrap(), 6_979_321_856);
        assert_eq!(parse_bytes("7GB").unwrap(), 7_000_000_000);
        assert_eq!(parse_bytes("900 MiB").unwrap(), 943_718_400);
        assert_eq!(parse_bytes("12345").unwrap(), 12345);
        for (bad, why) in [
            ("", "is no number of bytes"),
            ("GiB", "is no number of bytes"),
            ("1.2.3GiB", "is no number of bytes"),
            ("5 apples", "`apples` is no unit"),
            ("-1GiB", "is no number of bytes"),
            ("0", "is not a sensible amount"),
        ] {
            assert!(parse_bytes(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn devices_parse() {
        assert_eq!("cuda:3".parse(), Ok(DeviceOption::Cuda(3)));
        assert_eq!("auto".parse(), Ok(DeviceOption::Auto));
        assert_eq!("emulator".parse(), Ok(DeviceOption::Emulator));
        for bad in ["cuda:x", "gpu"] {
            let Err(said) = bad.parse::<DeviceOption>() else { panic!("{bad} is a device") };
            assert!(said.contains(&format!("`{bad}` is no device")), "{said}");
        }
    }
}
