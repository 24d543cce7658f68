//! What a worker says, a line of JSON each.

use schnell::device::Capability;
use serde::{Deserialize, Serialize};

use super::Part;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Finding {
    /// The first of every worker.
    Machine(Machine),
    /// An item, by its number in the list, begins.
    Begin(usize),
    Row(Row),
    Time(Time),
    UploadGbPerS(f64),
    Size(Size),
    Limit(Limit),
    /// The item is over.
    Done(usize),
}

impl Finding {
    /// Says it, at once: the worker may not live to say more.
    pub fn say(&self) {
        use std::io::Write as _;
        let mut out = std::io::stdout().lock();
        if let Ok(line) = serde_json::to_string(self) {
            // Who does not listen any more is not told.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    /// What a line says, if it is one of a worker's.
    pub fn parse(line: &str) -> Option<Finding> {
        serde_json::from_str(line).ok()
    }
}

/// The machine under test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Machine {
    pub gpu: String,
    pub arch: u32,
    pub num_sms: u32,
    pub total_bytes: u64,
    pub driver: String,
    /// Of a GPU, where the driver tells.
    pub pci_bus_id: Option<String>,
}

impl From<&Capability> for Machine {
    fn from(capability: &Capability) -> Self {
        Machine {
            gpu: capability.name.clone(),
            arch: capability.arch,
            num_sms: capability.num_sms,
            total_bytes: capability.total_bytes,
            driver: capability.driver.clone(),
            pci_bus_id: capability.pci_bus_id.clone(),
        }
    }
}

/// One line of the table: an output that was compared, or a fault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    pub part: Part,
    pub case: String,
    pub output: String,
    pub count: usize,
    /// `None` where nothing could be compared.
    pub worst: Option<f64>,
    pub allowed: f64,
    pub fault: Option<String>,
}

impl Row {
    /// What went wrong before there was anything to compare.
    pub fn fault(part: Part, case: &str, what: String) -> Row {
        Row {
            part,
            case: case.to_string(),
            output: "-".to_string(),
            count: 0,
            worst: None,
            allowed: 0.0,
            fault: Some(what),
        }
    }
}

/// A kernel at one of FLUX's shapes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Time {
    pub kernel: String,
    /// Of every repetition, ascending.
    pub ms: Vec<f64>,
    pub flops: f64,
    pub bytes: usize,
}

/// The pipeline at one size.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Size {
    pub side: usize,
    /// Of weights in pinned memory: 0 with everything resident.
    pub streamed_bytes: u64,
    pub plan_bytes: u64,
    /// Free memory that vanished while the pipeline was bound and ran.
    pub taken_bytes: u64,
    pub allocations: usize,
    pub load_seconds: f64,
    /// The same seed gave the same bytes.
    pub same_bytes: bool,
    /// The time of each stage, in the order of a run, of every picture; the first also warms the machine up.
    pub pictures: Vec<Vec<(String, f64)>>,
}

/// What one unit of the machine can do at most, as `benches/limits.cu` says it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Limit {
    pub name: String,
    pub value: f64,
    pub unit: String,
    /// 0 where it has no meaning, like the clock.
    pub per_clock: f64,
    pub per_clock_unit: String,
    pub sm_ghz: f64,
}
