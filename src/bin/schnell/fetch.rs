//! `schnell fetch`: a model from the Hugging Face hub, or what is missing of it.

use std::io::IsTerminal;
use std::ops::ControlFlow;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use schnell::{Error, Fetch, FetchProgress, Result, human_bytes};

use crate::terminal::{print, say};
use crate::{signals, terminal};

/// Files that the loader reads, into the cache of the Hugging Face tools; `--model` finds them there, without a network.
/// HF_TOKEN (or `hf auth login`) gets in where a model is gated; HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and the proxy
/// variables mean what they mean to the tools.
#[derive(clap::Args)]
pub struct Args {
    /// The model on the hub, such as black-forest-labs/FLUX.1-schnell
    #[arg(value_name = "ORG/NAME")]
    model: String,
    /// A branch, a tag or a commit; `--model ORG/NAME@REVISION` finds it
    #[arg(long, default_value = "main")]
    revision: String,
    /// Compare files that are here already with their digests, too
    #[arg(long)]
    verify: bool,
    /// Fetch no weights: what a checkpoint in one file lacks to be a model
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Print what would be fetched, and fetch nothing but small files
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    /// Tokenizers, configs, the scheduler and indices: some MB
    Tokenizers,
}

pub fn run(args: &Args) -> Result<()> {
    let mut fetch = Fetch::new(&args.model).revision(&args.revision);
    if args.verify {
        fetch = fetch.verify();
    }
    if let Some(Only::Tokenizers) = args.only {
        fetch = fetch.without_weights();
    }
    // Below the line of progress, which stays.
    let line = if std::io::stderr().is_terminal() { "\n" } else { "" };
    signals::say_before_the_end(format!(
        "{line}interrupted; what has arrived is kept: `schnell fetch {}{}` goes on from there",
        args.model,
        if args.only.is_some() { " --only tokenizers" } else { "" }
    ));
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let (mut table, mut is_listed) = (String::new(), false);
    // A log gets a line per file.
    let (is_log, mut last) = (!std::io::stderr().is_terminal(), String::new());
    let done = fetch.run_with(&mut |progress| {
        match progress {
            FetchProgress::Needs { path, bytes, here } => {
                let state = match here {
                    0 => "",
                    here if here == bytes => "  here",
                    _ => "  begun",
                };
                table += &format!("{:>10}  {path}{state}\n", human_bytes(bytes));
            }
            FetchProgress::Listed { commit, bytes, missing } => {
                is_listed = true;
                let all = format!(
                    "{} at {commit}: {} to fetch of {}",
                    args.model,
                    human_bytes(missing),
                    human_bytes(bytes)
                );
                if args.dry_run {
                    table += &format!("{all}\n");
                    return ControlFlow::Break(());
                }
                if missing > 0 {
                    say(table.trim_end());
                }
                say(all);
                begin(&bar, bytes, bytes - missing);
            }
            FetchProgress::Bytes { path, done, total } if total > 0 => {
                if is_log && done < total && last != path {
                    path.clone_into(&mut last);
                    say(format_args!("fetching {path}"));
                }
                bar.set_message(terminal::shortened(path));
                bar.set_position(done);
            }
            FetchProgress::Note(text) => bar.suspend(|| say(text)),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    match done {
        Err(Error::Stopped) if args.dry_run && is_listed => print(&table),
        Err(error) => Err(error),
        Ok(folder) => {
            let at = if args.revision == "main" { String::new() } else { format!("@{}", args.revision) };
            match args.only {
                None => say(format_args!("all there; use it with --model {}{at}", args.model)),
                Some(Only::Tokenizers) => say(format_args!(
                    "all there; use it with --model {}{at} --transformer FILE, and --t5, --clip and --vae",
                    args.model
                )),
            }
            print(&format!("{}\n", folder.path().display()))
        }
    }
}

/// The line of progress, of which `here` is no merit of this run.
fn begin(bar: &ProgressBar, total: u64, here: u64) {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_length(total);
    bar.set_position(here);
    bar.reset_eta();
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_draw_target(ProgressDrawTarget::stderr());
}
