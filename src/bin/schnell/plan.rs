//! `schnell plan`: every region, byte by byte, from config files alone.

use schnell::{Plan, Result};

use crate::options::PlanOptions;
use crate::terminal;

/// Config files suffice: the weights need not be there.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: PlanOptions,
    /// Plan for a negative prompt
    #[arg(long)]
    true_cfg: bool,
    /// Print every operation, too: kernel, grid, multiply-adds, what it reads (<) and writes (>)
    #[arg(long)]
    launches: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let config = args.options.folder()?.config()?;
    let plan = Plan::new(&config, args.options.shape(&config, args.true_cfg), args.options.quantize())?;
    let plan = args.options.within_budget(plan)?;
    terminal::print(&plan.to_string())?;
    if args.launches {
        terminal::print(&format!("\n{}", plan.launches()))?;
    }
    Ok(())
}
