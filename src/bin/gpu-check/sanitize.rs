//! NVIDIA's compute-sanitizer over this very binary: what only the real machine can say of the kernels' memory accesses.
//!
//! `scripts/gpu-check pack` puts the tool beside the binary; else it is looked for where CUDA is usually installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use schnell::{Error, Result};

use super::finding::{Finding, Row};
use super::{Arguments, Part};

/// What a tool looks for, and what it needs to be told.
pub(super) const TOOLS: [(&str, &[&str], &[&str]); 4] = [
    // Room around every allocation, so that an access past its end does not fall into the next.
    ("memcheck", &["--padding", "64"], &[]),
    ("racecheck", &["--racecheck-report", "all"], &[]),
    ("synccheck", &[], &[]),
    ("initcheck", &[], &["--unfilled"]),
];
/// What compute-sanitizer exits with when it has found something.
const FOUND: i32 = 99;

/// One tool over a worker of its own. The full report goes to `<out>/compute-sanitizer-<tool>.txt`.
pub(super) fn run(tool: usize, arguments: &Arguments) -> Result<Row> {
    let (name, options, more) = TOOLS[tool];
    let binary = std::env::current_exe().map_err(Error::io("find", "gpu-check"))?;
    let program = find(&binary)?;
    let output = Command::new(&program)
        .args(["--tool", name, "--error-exitcode", &FOUND.to_string()])
        .args(options)
        .arg(&binary)
        .args(["probe", "kernels", "--small", "--work-from", "0"])
        .args(["--device", &arguments.device, "--only", &arguments.only])
        .args(more)
        .output()
        .map_err(Error::io("run", &program))?;
    let report = [output.stdout, output.stderr].concat();
    let path = arguments.out.join(format!("compute-sanitizer-{name}.txt"));
    std::fs::create_dir_all(&arguments.out).map_err(Error::io("create", &arguments.out))?;
    std::fs::write(&path, &report).map_err(Error::io("write", &path))?;
    Ok(row(name, &String::from_utf8_lossy(&report), output.status.code(), &path))
}

fn row(tool: &str, report: &str, code: Option<i32>, path: &Path) -> Row {
    let rows: Vec<Row> = report.lines().filter_map(compared).collect();
    let differs = rows.iter().find_map(|row| Some(format!("{}: {}", row.case, row.fault.as_ref()?)));
    let found = errors(report);
    let fault = match (found, code) {
        (Some(0), Some(0)) if rows.is_empty() => Some(format!("nothing ran: {}", path.display())),
        (Some(0), Some(0)) => differs.map(|what| format!("under it, {what}")),
        (Some(0), code) => Some(format!("gpu-check itself ended with {code:?}: {}", path.display())),
        (Some(_), _) => Some(format!("{}: {}", first_finding(report), path.display())),
        // The tool did not get as far as a summary: it was refused, or cannot work here.
        (None, code) => Some(format!("not run (exit code {code:?}): {}", first_finding(report))),
    };
    Row {
        part: Part::Sanitize,
        case: tool.to_string(),
        output: "errors".to_string(),
        count: rows.len(),
        worst: found.map(|n| n as f64),
        allowed: 0.0,
        fault,
    }
}

/// An output that the worker compared.
fn compared(line: &str) -> Option<Row> {
    match Finding::parse(line)? {
        Finding::Row(row) => Some(row),
        _ => None,
    }
}

/// The number in `ERROR SUMMARY: 2 errors`, or in `RACECHECK SUMMARY: 3 hazards displayed (...)`.
fn errors(report: &str) -> Option<usize> {
    let line = report.lines().rev().find(|line| line.contains("SUMMARY:"))?;
    line.split("SUMMARY:").nth(1)?.split_whitespace().next()?.parse().ok()
}

fn first_finding(report: &str) -> String {
    let finding = |line: &&str| line.starts_with("=========") && line.contains(": ") || line.contains("rror");
    let line = report.lines().filter(|line| !line.contains("SUMMARY")).find(finding);
    line.or_else(|| report.lines().last()).unwrap_or("no output").trim_matches(['=', ' ']).to_string()
}

fn find(binary: &Path) -> Result<PathBuf> {
    const NAME: &str = "compute-sanitizer";
    let beside = binary.parent().unwrap_or(Path::new(".")).join(NAME);
    let mut places = vec![beside];
    places.extend(std::env::var_os("CUDA_HOME").map(PathBuf::from));
    places.push(PathBuf::from("/usr/local/cuda"));
    let mut candidates: Vec<PathBuf> = places
        .iter()
        .flat_map(|place| [place.join(NAME), place.join("bin").join(NAME), place.join(NAME).join(NAME)])
        .collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates.extend(std::env::split_paths(&path).map(|folder| folder.join(NAME)));
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| {
        Error::Unsupported(
            "compute-sanitizer is neither beside gpu-check nor in CUDA_HOME, /usr/local/cuda or PATH; \
             'scripts/gpu-check pack' puts it beside"
                .to_string(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_all_tools_are_read() {
        assert_eq!(errors("=====\n========= ERROR SUMMARY: 0 errors\n"), Some(0));
        assert_eq!(errors("========= ERROR SUMMARY: 12 errors\n========= \n"), Some(12));
        let hazards = "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n";
        assert_eq!(errors(hazards), Some(3));
        assert_eq!(errors("========= Error: Failed to launch\n"), None);
    }

    #[test]
    fn a_clean_report_alone_is_no_fault() {
        let fault = |report: &str, code| super::row("memcheck", report, Some(code), Path::new("x.txt")).fault;
        let clean = "========= ERROR SUMMARY: 0 errors";
        let mut row = Row::fault(Part::Probe, "probe_echo", "byte 0 is 0x01".to_string());
        let said = |row: &Row| serde_json::to_string(&Finding::Row(row.clone())).unwrap() + "\n" + clean;
        assert!(fault(&said(&row), 0).unwrap().contains("byte 0 is 0x01"));
        row.fault = None;
        assert_eq!(fault(&said(&row), 0), None);
        assert!(fault(clean, 0).unwrap().contains("nothing ran"));
        assert!(fault(&said(&row), 6).is_some());
        let wild = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error";
        assert!(fault(wild, FOUND).is_some());
        let refused = fault("========= Error: the debugger interface is not allowed", 255).unwrap();
        assert!(refused.contains("not allowed"), "{refused}");
        assert!(fault("", 1).is_some());
    }
}
