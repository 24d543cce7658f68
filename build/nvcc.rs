//! The GPU half of the build: finds nvcc, compiles each `kernels/*.cu` into one fatbin, and writes down what ptxas says
//! about registers, stack and spills.
//!
//! Compiling takes minutes, so results are cached beside the build, a folder for each kernel file as it was: `inputs` is all
//! that they depend on (the compiler's version, the flags, which are in this file, the source and what it includes), and
//! `<arch>.cubin` is each target's machine code for those who read it (scripts/machine_code/toolkit.py).

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The oldest CUDA that knows all of [`CUBINS`].
const OLDEST: (u32, u32) = (12, 8);
/// Machine code, by compute capability. 8.0's does not run on 9.0 and later, so each family has its own.
const CUBINS: [u32; 5] = [80, 86, 89, 90, 120];
/// For everything that is not in the list: the driver compiles it at load.
const PTX: u32 = 80;
/// Files whose stem ends like this use Hopper's own instructions and are compiled for it alone, never as PTX.
const HOPPER_ONLY: &str = "_sm90";
const HOPPER: &str = "90a";
const FLAGS: [&str; 5] = ["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v"];

/// Writes `<stem>.fatbin` per kernel file and `ptxas.tsv` into cargo's `OUT_DIR`; empty ones where there is no nvcc.
pub fn compile(kernels: &[PathBuf]) {
    let out = &PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let nvcc = match Nvcc::find() {
        Ok(nvcc) => nvcc,
        Err(why) => {
            if let Some(why) = why {
                println!(
                    "cargo::warning=no CUDA kernels in this build: {why}. The emulator works; for a GPU run scripts/get-nvcc"
                );
            }
            println!("cargo::rustc-env=SCHNELL_NVCC_VERSION=");
            for kernel in kernels {
                write(&out.join(stem(kernel)).with_extension("fatbin"), b"");
            }
            write(&out.join("ptxas.tsv"), b"");
            return;
        }
    };
    println!("cargo::rerun-if-changed={}", nvcc.path.display());
    println!("cargo::rustc-cfg=schnell_nvcc");
    println!("cargo::rustc-env=SCHNELL_NVCC_VERSION={}.{}", nvcc.version.0, nvcc.version.1);

    // <target>/<profile>/build/<package>/out
    let cache = out.ancestors().nth(4).unwrap_or(out).join("nvcc-cache");
    std::fs::create_dir_all(&cache).expect("the target folder is writable");
    let num_jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(2).max(2);
    let queue = Mutex::new(kernels.iter().collect::<VecDeque<_>>());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..num_jobs.min(kernels.len()) {
            scope.spawn(|| {
                loop {
                    let Some(kernel) = queue.lock().unwrap().pop_front() else { return };
                    if let Err(what) = nvcc.compile(kernel, &cache, out) {
                        failures.lock().unwrap().push(what);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    if !failures.is_empty() {
        // Cargo shows a failed build script's output; this is the part to read.
        eprintln!("{}", failures.join("\n"));
        std::process::exit(1);
    }
    let mut table =
        String::from("stem\tentry\tarch\tregisters\tstatic_smem\tstack\tspill_stores\tspill_loads\n");
    for kernel in kernels {
        let log = std::fs::read_to_string(out.join(stem(kernel)).with_extension("ptxas")).unwrap_or_default();
        for usage in parse_ptxas(&log) {
            let _ = writeln!(
                table,
                "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
                stem(kernel),
                usage.entry,
                usage.arch,
                usage.registers,
                usage.static_smem,
                usage.stack,
                usage.spill_stores,
                usage.spill_loads
            );
        }
    }
    write(&out.join("ptxas.tsv"), table.as_bytes());
}

struct Nvcc {
    path: PathBuf,
    version: (u32, u32),
    /// All of `nvcc --version`, for the cache's hash.
    version_text: String,
}

impl Nvcc {
    /// `$NVCC` (set but empty: none), `$CUDA_HOME/bin`, `$PATH`, then `.cuda/`, which `scripts/get-nvcc` makes. The
    /// first that is new enough. `Err(None)` when none is wanted.
    fn find() -> Result<Nvcc, Option<String>> {
        if let Some(named) = std::env::var_os("NVCC") {
            if named.is_empty() {
                return Err(None);
            }
            // Who names a compiler wants that one or an error.
            return Ok(Nvcc::at(PathBuf::from(&named)).unwrap_or_else(|why| {
                eprintln!("NVCC: {why}");
                std::process::exit(1)
            }));
        }
        let home = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates = home.into_iter().chain(std::env::split_paths(&path)).chain(own_folders());
        let mut why = "there is no nvcc in CUDA_HOME, PATH or .cuda".to_string();
        for folder in candidates {
            let path = folder.join("nvcc");
            if path.is_file() {
                match Nvcc::at(path) {
                    Ok(nvcc) => return Ok(nvcc),
                    Err(unfit) => why = unfit,
                }
            }
        }
        Err(Some(why))
    }

    fn at(path: PathBuf) -> Result<Nvcc, String> {
        let shown = path.display();
        let output = Command::new(&path)
            .arg("--version")
            .output()
            .map_err(|e| format!("{shown} does not run: {e}"))?;
        let version_text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = version_text
            .split("release ")
            .nth(1)
            .and_then(|rest| rest.split(',').next())
            .and_then(|release| release.split_once('.'))
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| format!("{shown} --version names no release"))?;
        if version < OLDEST {
            let ((major, minor), (want_major, want_minor)) = (version, OLDEST);
            return Err(format!("{shown} is {major}.{minor}, older than {want_major}.{want_minor}"));
        }
        Ok(Nvcc { path, version, version_text })
    }

    fn flags(&self, stem: &str) -> Vec<String> {
        let mut flags: Vec<String> = FLAGS.iter().map(|flag| flag.to_string()).collect();
        if stem.ends_with(HOPPER_ONLY) {
            flags.push(format!("-gencode=arch=compute_{HOPPER},code=sm_{HOPPER}"));
        } else {
            flags.extend(CUBINS.map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
            flags.push(format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
        }
        flags
    }

    /// Puts `<stem>.fatbin` and `<stem>.ptxas` into `out`, from the cache if they are there.
    fn compile(&self, kernel: &Path, cache: &Path, out: &Path) -> Result<(), String> {
        let stem = stem(kernel);
        let inputs = self.inputs(kernel);
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        let folder = cache.join(format!("{stem}-{:016x}", hasher.finish()));
        if !folder.is_dir() {
            let unfinished = folder.with_extension(std::process::id().to_string());
            let done = self.fill(&unfinished, kernel, &inputs);
            // Another build's may have come first.
            if done.is_err() || std::fs::rename(&unfinished, &folder).is_err() {
                let _ = std::fs::remove_dir_all(&unfinished);
            }
            done?;
        }
        let text = std::fs::read_to_string(folder.join("ptxas")).expect("the cache is whole");
        for line in text.lines().filter(|line| line.contains("warning")) {
            println!("cargo::warning={line}");
        }
        // Said as an aside, of code several times slower than it looks: wgmma that ptxas had to serialize.
        if let Some(line) = text.lines().find(|line| line.contains("Performance Loss")) {
            return Err(format!("{}: {line}", kernel.display()));
        }
        for kind in ["fatbin", "ptxas"] {
            std::fs::copy(folder.join(kind), out.join(&stem).with_extension(kind))
                .expect("OUT_DIR is writable");
        }
        Ok(())
    }

    /// All that a kernel file's machine code depends on.
    fn inputs(&self, kernel: &Path) -> String {
        let mut text = format!("{}{}", self.version_text, include_str!("nvcc.rs"));
        for file in with_includes(kernel) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(text, "{name}\n{}", std::fs::read_to_string(&file).unwrap_or_default());
        }
        text
    }

    /// Makes a folder of the cache.
    fn fill(&self, folder: &Path, kernel: &Path, inputs: &str) -> Result<(), String> {
        let stem = stem(kernel);
        std::fs::create_dir_all(folder).expect("the cache is writable");
        let output = Command::new(&self.path)
            .args(self.flags(&stem))
            .arg("--keep")
            .arg("--keep-dir")
            .arg(folder)
            .arg("-o")
            .arg(folder.join("fatbin"))
            .arg(kernel)
            .output()
            .map_err(|e| format!("{} does not run: {e}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let said: Vec<&str> = text.lines().filter(|line| !is_info(line)).collect();
            return Err(format!("nvcc refuses {}:\n{}", kernel.display(), said.join("\n")));
        }
        // Of what nvcc keeps: `<stem>.compute_86.cubin`, `<stem>.compute_80.sm_80.cubin` where the PTX is kept, too, and `<stem>.cubin`
        // of a single target.
        for entry in std::fs::read_dir(folder).expect("the cache is readable").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let done = match name.strip_suffix(".cubin") {
                Some(kept) => {
                    let arch = kept.strip_prefix(&stem).and_then(|rest| rest.rsplit_once('_'));
                    let arch = arch.map_or(HOPPER, |(_, arch)| arch);
                    std::fs::rename(&path, folder.join(format!("{arch}.cubin")))
                }
                None if name == "fatbin" => Ok(()),
                None => std::fs::remove_file(&path),
            };
            done.expect("the cache is writable");
        }
        write(&folder.join("ptxas"), text.as_bytes());
        write(&folder.join("inputs"), inputs.as_bytes());
        Ok(())
    }
}

/// Where `scripts/get-nvcc` puts the compiler: `.cuda/lib/python*/site-packages/nvidia/cu*/bin`.
fn own_folders() -> Vec<PathBuf> {
    let children = |folder: PathBuf| {
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
    };
    let mut folders: Vec<PathBuf> = children(PathBuf::from(".cuda/lib"))
        .flat_map(|python| children(python.join("site-packages/nvidia")))
        .map(|toolkit| toolkit.join("bin"))
        .collect();
    folders.sort();
    folders
}

/// The file and every `#include "..."` it reaches in its folder.
fn with_includes(file: &Path) -> BTreeSet<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![file.to_path_buf()];
    while let Some(file) = todo.pop() {
        let Ok(file) = file.canonicalize() else { continue };
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let folder = file.parent().unwrap_or(Path::new(""));
        let included =
            text.lines().filter_map(|line| line.trim_start().strip_prefix("#include")?.split('"').nth(1));
        todo.extend(included.map(|name| folder.join(name)).filter(|path| !seen.contains(path)));
        seen.insert(file);
    }
    seen
}

/// What one entry point takes on one architecture.
#[derive(Default)]
struct Usage {
    entry: String,
    arch: String,
    registers: u32,
    static_smem: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

/// Reads `ptxas -v`: an entry's line, then one "Function properties" per function compiled for it, then its registers.
fn parse_ptxas(log: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let mut quoted = rest.split('\'');
            let entry = quoted.next().unwrap_or_default().to_string();
            let arch = quoted.nth(1).unwrap_or_default().trim_start_matches("sm_").to_string();
            usages.push(Usage { entry, arch, ..Usage::default() });
        }
        let Some(usage) = usages.last_mut() else { continue };
        for (unit, field) in [
            (" bytes stack frame", &mut usage.stack),
            (" bytes spill stores", &mut usage.spill_stores),
            (" bytes spill loads", &mut usage.spill_loads),
            (" registers", &mut usage.registers),
            (" bytes smem", &mut usage.static_smem),
        ] {
            let number = line.split(unit).next().filter(|before| before.len() < line.len());
            let number = number.and_then(|before| before.rsplit([' ', ',']).next()?.parse::<u32>().ok());
            *field = number.map_or(*field, |number| number.max(*field));
        }
    }
    usages
}

fn is_info(line: &str) -> bool {
    line.starts_with("ptxas info") || line.contains("bytes stack frame")
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
}
