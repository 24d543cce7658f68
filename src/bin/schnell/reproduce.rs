//! `schnell reproduce`: the settings in a picture's file, run again, and the hashes compared.

use std::path::{Path, PathBuf};

use schnell::files::{self, Kind};
use schnell::image::{self, Picture};
use schnell::{Error, Model, Output, Pipeline, Plan, Receipt, Recipe, Result};

use crate::generate::Bars;
use crate::options::{BudgetOptions, DeviceOption, ModelOptions, check_disk};
use crate::terminal::say;

#[derive(clap::Args)]
pub struct Args {
    /// The picture: a PNG, JPEG or WebP that `schnell generate` has written
    #[arg(value_name = "FILE")]
    picture: PathBuf,
    #[command(flatten)]
    model: ModelOptions,
    #[command(flatten)]
    budgets: BudgetOptions,
    /// The folder of --cache, as for `schnell generate`
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// auto, cuda:N or emulator
    #[arg(long, default_value = "auto")]
    device: DeviceOption,
}

/// Whether the same picture was drawn.
pub fn run(args: &Args) -> Result<bool> {
    let name = args.picture.display();
    let (picture, recipe) = read(&args.picture)?;
    let there = &recipe.receipt;
    if picture.rgb.as_ref().is_some_and(|rgb| !there.is_of(rgb)) {
        say(format_args!("{name}: differs: its pixels are not those that its receipt is of"));
        return Ok(false);
    }
    let folder = args.model.folder()?;
    args.model.config(&folder)?; // says what there is to be said of the files
    let model = args.model.model(&folder)?;
    for warning in model.warnings() {
        say(format_args!("warning: {warning}"));
    }
    let digest = model.digest()?;
    if digest != there.model {
        say(format_args!(
            "{name}: differs: model: {} there, {digest} here; name its model with --model",
            there.model
        ));
        return Ok(false);
    }
    if model.loras() != there.loras {
        let name_them = |loras: &str| if loras.is_empty() { "none".to_string() } else { loras.to_string() };
        say(format_args!(
            "{name}: differs: LoRAs: {} there, {} here; name its LoRAs with --lora",
            name_them(&there.loras),
            name_them(&model.loras())
        ));
        return Ok(false);
    }
    let plan = plan(args, &model, &recipe)?;
    let (device, note) = args.device.open(&plan, recipe.requests.len())?;
    if let Some(note) = note {
        say(note);
    }
    let bar = Bars::default();
    let mut builder = Pipeline::builder(&model).with_plan(plan.on(device.capability())?).device(&device);
    if let Some(cache) = &args.cache {
        builder = builder.cache(cache);
    }
    let mut pipeline = builder.load_with(&mut |progress| bar.show(progress, ""))?;
    let count = recipe.requests.len();
    let mut outputs = Vec::with_capacity(count);
    for (i, request) in recipe.requests.iter().enumerate() {
        let which = if count == 1 { String::new() } else { format!("{} of {count}: ", i + 1) };
        outputs.push(pipeline.generate_with(request, &mut |progress| bar.show(progress, &which))?);
    }
    bar.clear();
    let here = receipt(&recipe, &outputs)?;
    let differences = there.differences(&here);
    if there.is_same_picture(&here) {
        say(format_args!("{name}: the same, to the bit"));
        differences.iter().for_each(|line| say(format_args!("  though {line}")));
        return Ok(true);
    }
    say(format_args!("{name}: differs"));
    differences.iter().for_each(|line| say(format_args!("  {line}")));
    Ok(false)
}

/// The file, and what its notes say.
fn read(path: &Path) -> Result<(Picture, Recipe)> {
    let file = files::read(path, Kind::Picture)?;
    let read = image::decode(&file).and_then(|picture| Ok((Recipe::of(&picture)?, picture)));
    let (recipe, picture) = read.map_err(|error| match error {
        Error::Input(text) => Error::Input(format!("{}: {text}", path.display())),
        other => other,
    })?;
    Ok((picture, recipe))
}

/// For what the picture was drawn with, within this run's budgets.
fn plan(args: &Args, model: &Model, recipe: &Recipe) -> Result<Plan> {
    let plan = Plan::new(model.config(), recipe.shape, recipe.receipt.weights)?;
    let plan = args.budgets.within_budget(plan.with_precision(recipe.receipt.precision)?)?;
    check_disk(&plan, args.cache.as_deref())?;
    Ok(plan)
}

/// Of what has been drawn now.
fn receipt(recipe: &Recipe, outputs: &[Output]) -> Result<Receipt> {
    let first = &outputs[0];
    let Some(columns) = recipe.columns else { return Ok(first.receipt.clone()) };
    let pictures: Vec<&[u8]> = outputs.iter().map(|output| output.rgb.as_slice()).collect();
    let (_, _, rgb) = image::contact_sheet(columns, first.width, first.height, &pictures)?;
    let sheet = Receipt::of_sheet(outputs.iter().map(|output| &output.receipt), &rgb);
    Ok(sheet.unwrap_or_else(|| first.receipt.clone()))
}
