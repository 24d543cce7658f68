//! What is kept of a run: a table for people and JSON for scripts, written anew after every item.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schnell::{Error, Result};
use serde_json::json;

use super::finding::{Finding, Limit, Machine, Row, Size, Time};
use super::{Arguments, COMMIT, NVCC};

/// nvidia-smi takes longer than most items.
const CLOCKS_EVERY: Duration = Duration::from_secs(20);

pub(super) struct Record {
    device: String,
    out: PathBuf,
    date: String,
    started: Instant,
    num_items: usize,
    num_done: usize,
    machine: Option<Machine>,
    clocks: Option<String>,
    clocks_read: Option<Instant>,
    rows: Vec<Row>,
    times: Vec<Time>,
    upload_gb_per_s: Option<f64>,
    sizes: Vec<Size>,
    limits: Vec<Limit>,
}

impl Record {
    pub fn new(arguments: &Arguments, num_items: usize) -> Record {
        Record {
            device: arguments.device.clone(),
            out: arguments.out.clone(),
            date: today(),
            started: Instant::now(),
            num_items,
            num_done: 0,
            machine: None,
            clocks: None,
            clocks_read: None,
            rows: Vec::new(),
            times: Vec::new(),
            upload_gb_per_s: None,
            sizes: Vec::new(),
            limits: Vec::new(),
        }
    }

    /// Keeps it, prints what is a line of a table, and writes the files at the end of an item.
    pub fn take(&mut self, finding: Finding) -> Result<()> {
        match finding {
            Finding::Machine(machine) => {
                if self.machine.is_none() {
                    self.machine = Some(machine);
                    print!("{}\n{HEADER}", self.title());
                }
            }
            Finding::Begin(_) => {}
            Finding::Row(row) => {
                print!("{}", row_text(&row));
                self.rows.push(row);
            }
            Finding::Time(time) => {
                if self.times.is_empty() {
                    print!("{TIMES_HEADER}");
                }
                print!("{}", time_text(&time));
                self.times.push(time);
            }
            Finding::UploadGbPerS(rate) => self.upload_gb_per_s = Some(rate),
            Finding::Size(size) => {
                print!("{}", size.text());
                self.rows.extend(size.faults());
                self.sizes.push(size);
            }
            Finding::Limit(limit) => {
                print!("{}", limit_text(&limit));
                self.limits.push(limit);
            }
            Finding::Done(_) => {
                self.num_done += 1;
                let is_last = self.num_done == self.num_items;
                if is_last || self.clocks_read.is_none_or(|then| then.elapsed() > CLOCKS_EVERY) {
                    self.clocks = self.machine.as_ref().and_then(clocks).or(self.clocks.take());
                    self.clocks_read = Some(Instant::now());
                }
                self.write()?;
            }
        }
        Ok(())
    }

    pub fn num_faults(&self) -> usize {
        self.rows.iter().filter(|row| row.fault.is_some()).count()
    }

    fn title(&self) -> String {
        let mut text = format!("gpu-check {}  ", self.date);
        if let Some(machine) = &self.machine {
            let _ = write!(
                text,
                "{} (compute capability {}.{}, {} SMs, {} MiB), driver {}, ",
                machine.gpu,
                machine.arch / 10,
                machine.arch % 10,
                machine.num_sms,
                machine.total_bytes >> 20,
                machine.driver,
            );
        }
        let _ = writeln!(text, "nvcc {}, commit {COMMIT}", if NVCC.is_empty() { "none" } else { NVCC });
        text
    }

    /// The whole table.
    fn text(&self) -> String {
        let mut text = self.title() + "\n" + HEADER;
        text.extend(self.rows.iter().map(row_text));
        if !self.times.is_empty() {
            text += TIMES_HEADER;
            text.extend(self.times.iter().map(time_text));
        }
        text.extend(self.sizes.iter().map(Size::text));
        if !self.limits.is_empty() {
            text.push('\n');
            text.extend(self.limits.iter().map(limit_text));
        }
        text + &self.ending()
    }

    /// What comes last, faults included: who reads the end of a long output sees them.
    pub fn ending(&self) -> String {
        let mut text = String::new();
        if let Some(rate) = self.upload_gb_per_s {
            let _ = writeln!(text, "\nuploads from pinned memory: {rate:.1} GB/s");
        }
        let clocks = self.clocks.as_deref().unwrap_or("not read");
        let _ = writeln!(text, "\nclocks, temperature, power when last read: {clocks}");
        if self.num_faults() > 0 {
            let _ = writeln!(text, "\nfaults:");
            text.extend(self.rows.iter().filter(|row| row.fault.is_some()).map(row_text));
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let (outputs, faults) = (self.rows.len(), self.num_faults());
        let _ = write!(text, "\n{outputs} outputs, {faults} faults, {seconds:.1} s");
        if self.num_done < self.num_items {
            let _ = write!(text, "; not finished: {} of {} items", self.num_done, self.num_items);
        }
        text + "\n"
    }

    fn json(&self) -> serde_json::Value {
        let times = (!self.times.is_empty() || self.upload_gb_per_s.is_some())
            .then(|| json!({"kernels": self.times, "upload_gb_per_s": self.upload_gb_per_s}));
        json!({
            "date": self.date,
            "device": self.device,
            "machine": self.machine,
            "clocks": self.clocks,
            "nvcc": NVCC,
            "commit": COMMIT,
            "seconds": self.started.elapsed().as_secs_f64(),
            "finished": self.num_done == self.num_items,
            "num_faults": self.num_faults(),
            "outputs": self.rows,
            "times": times,
            "full": self.sizes,
            "limits": self.limits,
        })
    }

    /// Writes both files, and returns their paths.
    pub fn write(&self) -> Result<Vec<PathBuf>> {
        let gpu = self.machine.as_ref().map_or("unknown", |machine| &machine.gpu).to_lowercase();
        let gpu: String = gpu.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        std::fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        let mut paths = Vec::new();
        for (ending, content) in [("json", format!("{:#}\n", self.json())), ("txt", self.text())] {
            let path = self.out.join(format!("{}-{gpu}.{ending}", self.date));
            std::fs::write(&path, content).map_err(Error::io("write", &path))?;
            paths.push(path);
        }
        Ok(paths)
    }
}

const HEADER: &str =
    "part     case                     output             count     worst   allowed  verdict\n";

fn row_text(row: &Row) -> String {
    format!(
        "{:8} {:24} {:14} {:>9} {:>9} {:>9}  {}\n",
        format!("{:?}", row.part).to_lowercase(),
        row.case,
        row.output,
        row.count,
        row.worst.map_or("-".to_string(), short),
        short(row.allowed),
        row.fault.as_deref().unwrap_or("ok"),
    )
}

const TIMES_HEADER: &str =
    "\nkernel, alone, cold caches          median ms      least       most   TFLOP/s      GB/s\n";

fn time_text(time: &Time) -> String {
    let (median, last) = (time.ms[time.ms.len() / 2], time.ms.len() - 1);
    format!(
        "{:34} {median:>10.4} {:>10.4} {:>10.4} {:>9.1} {:>9.0}\n",
        time.kernel,
        time.ms[0],
        time.ms[last],
        time.flops / median / 1e9,
        time.bytes as f64 / median / 1e6,
    )
}

fn limit_text(limit: &Limit) -> String {
    let per_clock = match limit.per_clock > 0.0 {
        true => format!("{:>10.2} {:<12} at {:.3} GHz", limit.per_clock, limit.per_clock_unit, limit.sm_ghz),
        false => String::new(),
    };
    format!("{:44} {:>10.2} {:<8} {per_clock}", limit.name, limit.value, limit.unit).trim_end().to_string()
        + "\n"
}

/// A count as a count, a fraction as a power of ten.
fn short(number: f64) -> String {
    if number.is_nan() {
        "-".to_string()
    } else if number.fract() == 0.0 {
        format!("{number}")
    } else {
        format!("{number:.1e}")
    }
}

const CLOCKS: &str = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw";

/// As nvidia-smi reads them now, just after the work; `None` without it or without a GPU.
fn clocks(machine: &Machine) -> Option<String> {
    let output = ask_for_clocks(machine)?.output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_string();
    (output.status.success() && !line.is_empty()).then(|| format!("{line} ({CLOCKS})"))
}

/// By the place on the bus: nvidia-smi counts GPUs in another order than CUDA, and does not know CUDA_VISIBLE_DEVICES.
fn ask_for_clocks(machine: &Machine) -> Option<Command> {
    let mut command = Command::new("nvidia-smi");
    command.args(["-i", machine.pci_bus_id.as_deref()?, "--format=csv,noheader"]);
    command.arg(format!("--query-gpu={CLOCKS}"));
    Some(command)
}

/// Year, month and day in UTC: days since 1970 to the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms").
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let day = (seconds / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cuda:0` may be any GPU to nvidia-smi.
    #[test]
    fn nvidia_smi_is_asked_about_the_gpu_under_test() {
        let machine = |pci_bus_id: Option<&str>| Machine {
            gpu: "a GPU".to_string(),
            arch: 90,
            num_sms: 132,
            total_bytes: 1 << 36,
            driver: "13.0".to_string(),
            pci_bus_id: pci_bus_id.map(str::to_string),
        };
        let command = ask_for_clocks(&machine(Some("0000:41:00.0"))).unwrap();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments[..2], ["-i", "0000:41:00.0"]);
        assert!(ask_for_clocks(&machine(None)).is_none(), "the emulator has no clocks");
    }
}
