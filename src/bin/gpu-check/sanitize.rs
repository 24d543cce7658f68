//! NVIDIA's compute-sanitizer over this very binary: what only the real machine can say of the kernels' memory accesses.
//!
//! `scripts/gpu-check pack` puts the tool beside the binary; else it is looked for where CUDA is usually installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use schnell::{Error, Result};

use super::{Part, Row};

/// What a tool looks for, and what it needs to be told.
const TOOLS: [(&str, &[&str], &[&str]); 4] = [
    // Room around every allocation, so that an access past its end does not fall into the next.
    ("memcheck", &["--padding", "64"], &[]),
    ("racecheck", &["--racecheck-report", "all"], &[]),
    ("synccheck", &[], &[]),
    ("initcheck", &[], &["--unfilled"]),
];
/// What compute-sanitizer exits with when it has found something.
const FOUND: i32 = 99;

/// One row per tool. The full reports go to `<out>/compute-sanitizer-<tool>.txt`.
pub(super) fn run(device: &str, only: &str, out: &Path) -> Result<Vec<Row>> {
    if !device.starts_with("cuda") {
        return Err(Error::Unsupported(
            "compute-sanitizer watches a GPU; for the emulator there is scripts/sanitize".to_string(),
        ));
    }
    let binary = std::env::current_exe().map_err(Error::io("find", Path::new("gpu-check")))?;
    let tool = find(&binary)?;
    std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
    TOOLS
        .iter()
        .map(|(name, options, arguments)| {
            let output = Command::new(&tool)
                .args(["--tool", name, "--error-exitcode", &FOUND.to_string()])
                .args(*options)
                .arg(&binary)
                .args(["probe", "kernels", "--small", "--device", device, "--only", only])
                .args(*arguments)
                .arg("--out")
                .arg(out.join(format!("under-{name}")))
                .output()
                .map_err(Error::io("run", &tool))?;
            let report = [output.stdout, output.stderr].concat();
            let path = out.join(format!("compute-sanitizer-{name}.txt"));
            std::fs::write(&path, &report).map_err(Error::io("write", &path))?;
            let report = String::from_utf8_lossy(&report);
            Ok(row(name, &report, output.status.code(), &path))
        })
        .collect()
}

fn row(tool: &str, report: &str, code: Option<i32>, path: &Path) -> Row {
    let found = errors(report);
    let fault = match (found, code) {
        (Some(0), Some(0)) => None,
        (Some(0), _) => Some(format!("gpu-check itself failed under it: {}", path.display())),
        (Some(_), _) => Some(format!("{}: {}", first_finding(report), path.display())),
        // The tool did not get as far as a summary: it was refused, or cannot work here.
        (None, code) => Some(format!("not run (exit code {code:?}): {}", first_finding(report))),
    };
    Row {
        part: Part::Sanitize,
        case: tool.to_string(),
        output: "errors".to_string(),
        count: launches(report),
        worst: found.map_or(f64::NAN, |n| n as f64),
        allowed: 0.0,
        fault,
    }
}

/// The number in `ERROR SUMMARY: 2 errors`, or in `RACECHECK SUMMARY: 3 hazards displayed (...)`.
fn errors(report: &str) -> Option<usize> {
    let line = report.lines().rev().find(|line| line.contains("SUMMARY:"))?;
    line.split("SUMMARY:").nth(1)?.split_whitespace().next()?.parse().ok()
}

/// How many outputs the run under the tool compared, from its own table.
fn launches(report: &str) -> usize {
    let line = report.lines().rev().find(|line| line.contains(" outputs, "));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
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
        assert_eq!(
            launches("probe x\n\n130 outputs, 0 faults, 4.5 s\n========= ERROR SUMMARY: 0 errors"),
            130
        );
    }

    #[test]
    fn a_clean_report_alone_is_no_fault() {
        let fault = |report: &str, code| row("memcheck", report, Some(code), Path::new("x.txt")).fault;
        assert_eq!(fault("9 outputs, 0 faults\n========= ERROR SUMMARY: 0 errors", 0), None);
        assert!(fault("========= ERROR SUMMARY: 0 errors", 6).is_some());
        let wild = "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error";
        assert!(fault(wild, FOUND).is_some());
        let refused = fault("========= Error: the debugger interface is not allowed", 255).unwrap();
        assert!(refused.contains("not allowed"), "{refused}");
        assert!(fault("", 1).is_some());
    }
}
