//! What an error means, by its text: ours, whose wording [`crate::Error`] and its makers have, and the CUDA driver's, by name.

/// What is known of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The variant of [`crate::Error`], or the driver's name for it.
    pub what: String,
    /// The code with which the command ends; nothing for an error of the driver's, which has that of what it befell.
    pub exit_code: Option<u8>,
    /// Who or what is at fault.
    pub means: String,
    /// What to do.
    pub advice: String,
}

/// All of a text that is known: the driver's errors first, which are the causes; then the first of ours. Nothing of a text that
/// is unknown.
pub fn diagnose(text: &str) -> Vec<Diagnosis> {
    let text = text.trim().to_lowercase();
    // As the command shows it, whether or not it was copied so.
    let text = format!("error: {}", text.strip_prefix("error: ").unwrap_or(&text));
    let mut found = of_the_driver(&text);
    let ours = ENTRIES.iter().find(|entry| {
        entry.says.iter().any(|parts| parts.split("..").all(|part| !part.is_empty() && text.contains(part)))
    });
    found.extend(ours.map(|entry| Diagnosis {
        what: format!("Error::{}", entry.variant),
        exit_code: EXIT_CODES.iter().find(|(variant, _)| *variant == entry.variant).map(|(_, code)| *code),
        means: entry.means.to_string(),
        advice: entry.advice.to_string(),
    }));
    found
}

/// Names as the driver has them, with or without what precedes them, and those of the runtime that other programs show.
fn of_the_driver(text: &str) -> Vec<Diagnosis> {
    let mut found: Vec<Diagnosis> = Vec::new();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    #[cfg(feature = "cuda")]
    for known in crate::device::cuda::advice::known() {
        let name = known.name.to_lowercase();
        let bare = name.trim_start_matches("cuda_error_");
        // `assert` and `no_device` alone may be any program's words.
        let is_named = words.iter().any(|word| *word == name || bare.contains('_') && *word == bare);
        let is_said = RUNTIME
            .iter()
            .any(|(of, phrases)| *of == known.name && phrases.iter().any(|say| text.contains(say)));
        if is_named || is_said {
            add(&mut found, &known.name, &known.advice);
        }
    }
    if RUNTIME_INSUFFICIENT.iter().any(|say| text.contains(say)) {
        let advice = "the driver is older than the CUDA that a program was built with: install a newer driver (580 or newer for CUDA 13), \
                      or build with an older nvcc (12.8 or newer); `schnell doctor` shows both versions";
        add(&mut found, "cudaErrorInsufficientDriver", advice);
    }
    if found.is_empty()
        && let Some(word) =
            words.iter().find(|word| word.starts_with("cuda_error_") || word.starts_with("cudaerror"))
    {
        let advice = "nothing is known of this one here: look for it in the documentation of the CUDA driver API, under CUresult";
        add(&mut found, &word.to_uppercase(), advice);
    }
    found
}

/// One error, with all advice that there is for it.
fn add(found: &mut Vec<Diagnosis>, name: &str, advice: &str) {
    match found.iter_mut().find(|known| known.what == name) {
        Some(known) if known.advice.contains(advice) => {}
        Some(known) => known.advice = format!("{}; or {advice}", known.advice),
        None => found.push(Diagnosis {
            what: name.to_string(),
            exit_code: None,
            means: "an error of the CUDA driver".to_string(),
            advice: advice.to_string(),
        }),
    }
}

const RUNTIME_INSUFFICIENT: [&str; 3] =
    ["cudaerrorinsufficientdriver", "driver version is insufficient", "insufficient driver"];

/// What the driver's and the runtime's errors are called elsewhere.
#[cfg(feature = "cuda")]
const RUNTIME: [(&str, &[&str]); 8] = [
    (
        "CUDA_ERROR_OUT_OF_MEMORY",
        &["cudaerrormemoryallocation", "cuda out of memory", "cuda error: out of memory"],
    ),
    ("CUDA_ERROR_NO_DEVICE", &["cudaerrornodevice", "no cuda-capable device"]),
    (
        "CUDA_ERROR_NO_BINARY_FOR_GPU",
        &["cudaerrornokernelimagefordevice", "no kernel image is available", "no binary for gpu"],
    ),
    ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", &["cudaerrorunsupportedptxversion", "unsupported toolchain"]),
    ("CUDA_ERROR_ILLEGAL_ADDRESS", &["cudaerrorillegaladdress", "illegal memory access"]),
    ("CUDA_ERROR_LAUNCH_FAILED", &["cudaerrorlaunchfailure", "unspecified launch failure"]),
    (
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        &["driver/library version mismatch", "unsupported display driver / cuda driver combination"],
    ),
    ("CUDA_ERROR_ECC_UNCORRECTABLE", &["uncorrectable ecc error"]),
];

/// As of [`crate::Error::exit_code`]; a test compares.
const EXIT_CODES: [(&str, u8); 13] = [
    ("Input", 2),
    ("Weights", 3),
    ("NotFinite", 3),
    ("Capacity", 4),
    ("Unsupported", 5),
    ("Device", 6),
    ("Io", 7),
    ("Internal", 8),
    ("Stopped", 9),
    ("Mismatch", 10),
    ("Network", 11),
    ("Deadline", 12),
    ("Poisoned", 13),
];

struct Entry {
    variant: &'static str,
    /// One of these is in the text, in lower case; `..` stands between parts that all are.
    says: &'static [&'static str],
    means: &'static str,
    advice: &'static str,
}

const fn entry(
    variant: &'static str,
    says: &'static [&'static str],
    means: &'static str,
    advice: &'static str,
) -> Entry {
    Entry { variant, says, means, advice }
}

/// The first that fits counts: special ones before general ones.
const ENTRIES: [Entry; 31] = [
    entry(
        "Internal",
        &["a fault of schnell that deserves a report"],
        "the program contradicts itself: a fault of its own, not of the request, the files or the machine",
        "report it with the whole text, the command and what `schnell doctor --json` prints; another size or budget may get by it",
    ),
    entry(
        "NotFinite",
        &["numbers of..are not finite"],
        "NaN or infinity where the text says it was computed first: a picture made of it would be black",
        "check the weights' files against their source (`schnell fetch --verify`); with files that others have quantized or merged try \
         the original ones; with --precision fast try full; if the digest is right, report it",
    ),
    entry(
        "Mismatch",
        &["outputs differ by more than allowed", "has been written"],
        "a machine computes something else than the emulator does",
        "run `schnell doctor` for the kernels that differ; a GPU that is overclocked or too hot does this, and so does a fault of \
         a kernel, which deserves a report",
    ),
    entry(
        "Unsupported",
        &[
            "no nvidia driver on this machine",
            "has no function cu..older than 12.0",
            "the cuda toolkit's stub",
        ],
        "the driver's library (libcuda.so.1) is missing, too old, or hidden by another",
        "install NVIDIA's driver, release 525 or newer (580 for kernels compiled by nvcc 13); in a container start it with the NVIDIA \
         runtime (--gpus all); without a GPU use --device emulator",
    ),
    entry(
        "Unsupported",
        &["shows no usable gpu", "there is no gpu cuda:"],
        "the driver is there, but not the GPU that was asked for",
        "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES, which renumbers and hides GPUs; choose another with --device cuda:N",
    ),
    entry(
        "Unsupported",
        &["has compute capability..8.0 (ampere)"],
        "the GPU is older than Ampere, and lacks the instructions that the kernels are made of",
        "use another GPU (RTX 30 or newer, A100, L4, ...), or --device emulator for small pictures",
    ),
    entry(
        "Unsupported",
        &["knows cuda..but the kernels were compiled by nvcc"],
        "the driver is older than the compiler of the kernels",
        "install the newer driver that the text names, or build with an nvcc no newer than the driver's CUDA",
    ),
    entry(
        "Unsupported",
        &["this build has no cuda kernels", "built without the feature `cuda`"],
        "the program was built without a CUDA compiler, so that it runs on the emulator alone",
        "run scripts/get-nvcc (or set NVCC or CUDA_HOME) and build again, with the feature cuda, which is a default",
    ),
    entry(
        "Unsupported",
        &["kernels/..does not run on"],
        "the build has no machine code for this GPU that this driver takes",
        "the text says which of the two to renew: the driver, or the build by an nvcc that knows the GPU",
    ),
    entry(
        "Unsupported",
        &["on the emulator..would take about", "would take about..on the emulator"],
        "the emulator would not finish this in a sensible time, so that it is not begun",
        "use a GPU; on the emulator the bundled model and small pictures of few steps (`--width 128 --height 128`)",
    ),
    entry(
        "Network",
        &[
            "is there a network",
            "has arrived twice with another digest",
            "no secure connection",
            "what has arrived is kept",
            "redirect",
            "which is not expected",
            "is not what a hub sends",
            "cannot be asked",
        ],
        "the hub could not be reached, or what came is not what it promised",
        "try again later: what has arrived is kept; behind a proxy set HTTPS_PROXY, elsewhere look at the clock and HF_ENDPOINT; what is \
         in the cache works without a network (HF_HUB_OFFLINE=1)",
    ),
    entry(
        "Capacity",
        &["a thread ("],
        "the system gives this process no further thread, mostly for lack of memory or by a limit",
        "free host memory, or raise the limits of memory and threads (ulimit -v, -u, cgroups)",
    ),
    entry(
        "Capacity",
        &["pinned host"],
        "host memory that a GPU can copy from is short, or capped by --host-budget",
        "raise --host-budget, or keep it and name a folder with --cache to read weights from; free host memory, or raise the container's \
         limit of it",
    ),
    entry(
        "Capacity",
        &["the arena on", "the device allocation", "a context..more memory", "streamed needs"],
        "device memory is short, or capped by --budget",
        "end other programs on the GPU (nvidia-smi lists them); give less to this one with --budget, which streams weights and draws the \
         same picture; `schnell plan` says the least that a size takes; or ask for a smaller picture",
    ),
    entry(
        "Capacity",
        &["needs..bytes, but..are available", "needs more memory than"],
        "more memory or room on a disk is needed than there is or than a budget allows; nothing was begun",
        "do what the text ends with; `schnell plan` lists what a picture takes, byte by byte, and --budget caps it",
    ),
    entry(
        "Poisoned",
        &["is lost (..recover", "is lost (..restart"],
        "the machine failed earlier in a way that leaves nothing on it to be trusted; the text between parentheses was the first sign. Nothing \
         is computed until it has been opened again",
        "in a program call Pipeline::recover, or drop every pipeline of this device and load again; where that fails, or it comes back, \
         restart the process, and look at nvidia-smi and the system's log (dmesg, Xid) for the GPU",
    ),
    entry(
        "Device",
        &["failed on cuda:"],
        "the driver refused or failed an operation, and says why at the end of the text",
        "read the driver's error there; if the process goes on failing, restart it; look at nvidia-smi and the system's log (dmesg, Xid) \
         for a GPU that has fallen off, and run `schnell doctor`",
    ),
    entry(
        "Device",
        &["failed on emulator", "failed on"],
        "the machine failed an operation",
        "on the emulator it is a fault of a kernel, which deserves a report with the whole text",
    ),
    entry(
        "Deadline",
        &["the picture would take..and shall take"],
        "the picture would come later than --deadline allows, by what pictures of its size took on this machine, or by what was seen of \
         it; no picture was drawn",
        "allow more time, fewer steps or a smaller picture, or say with --late what shall be drawn instead; is another program on the \
         card, `schnell bench latency` says how long pictures take now",
    ),
    entry(
        "Stopped",
        &["error: stopped", "stopped by whoever", "generation was stopped"],
        "whoever was told of the progress asked to stop; nothing is wrong, and the pipeline can be used again",
        "ask again if it was not meant",
    ),
    entry(
        "Io",
        &["no space left", "are more than the..that are free"],
        "the disk is full",
        "free room on it, or name another folder with --output or --cache; what was there before is whole",
    ),
    entry(
        "Io",
        &["permission denied"],
        "the system does not allow it to read or write that file",
        "look at the owner and rights of the file and its folder, and at read-only mounts",
    ),
    entry(
        "Io",
        &[
            "cannot read",
            "cannot write",
            "cannot create",
            "cannot remove",
            "cannot find",
            "cannot run",
            "no such file or directory",
        ],
        "a file cannot be read or written; the text ends with the system's reason",
        "look whether the path is right, and whether disk and file are well",
    ),
    entry(
        "Input",
        &["the prompt is empty"],
        "there is no word in the prompt",
        "say what to draw, or pass --allow-empty-prompt if that is meant",
    ),
    entry(
        "Input",
        &["is not a multiple of", "steps; it takes", "a t5 length of"],
        "a size or number that no picture can have",
        "take one that the text names",
    ),
    entry(
        "Input",
        &["in the hugging face cache"],
        "the model is not in the Hugging Face tools' cache of this user, or not whole",
        "get it with `schnell fetch ORG/NAME`, or name a folder with --model; HF_HOME and HF_HUB_CACHE say where the cache is",
    ),
    entry(
        "Weights",
        &[
            "malformed",
            "is missing",
            "damaged",
            "has no tensor",
            "names shard",
            "no weights: expected",
            "git lfs",
            "there is no transformer",
            "there is no t5",
            "there is no clip",
            "there is no vae",
            "no _class_name",
            "component",
            "tensor",
        ],
        "a model's file is missing, damaged, or not what its config says; nothing was loaded",
        "`schnell inspect` says what a file is; get it again, `schnell fetch --verify` compares digests; a download by git needs \
         `git lfs pull`",
    ),
    entry(
        "Unsupported",
        &[
            "is not supported",
            "are not supported",
            "is supported",
            "are read: use",
            "exceeds 2^31",
            "must be a multiple of",
            "must be multiples of",
        ],
        "the model or file is of a kind that there is no code for",
        "the text says what is; `schnell inspect` says of a file whether it loads, and README lists what is read",
    ),
    entry(
        "Weights",
        &[
            ".safetensors:",
            ".gguf:",
            ".json:",
            "transformer:",
            "text_encoder:",
            "text_encoder_2:",
            "vae:",
            "tokenizer:",
            "tokenizer_2:",
        ],
        "something is wrong with that file or folder of the model",
        "do what the text ends with; `schnell inspect` says what a file is",
    ),
    entry(
        "Unsupported",
        &["needs a gpu", "compute capability", "shared memory per cta", "built without"],
        "the machine or the build cannot do that",
        "`schnell doctor` says what machine and build have",
    ),
    entry(
        "Input",
        &[
            "; use",
            "; name",
            "expected",
            "it takes",
            "error: invalid value",
            "error: the argument",
            "error: unexpected argument",
            "error: the following required",
            "error: --",
        ],
        "a flag, number or file that was asked for cannot be; nothing was begun",
        "the text says what is expected; `schnell COMMAND --help` lists all flags",
    ),
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Error;

    /// An error of each variant as it is made somewhere; the compiler misses a variant here.
    fn name(error: &Error) -> &'static str {
        match error {
            Error::Input(_) => "Input",
            Error::Weights { .. } => "Weights",
            Error::Capacity { .. } => "Capacity",
            Error::Unsupported(_) => "Unsupported",
            Error::Device { .. } => "Device",
            Error::Stopped => "Stopped",
            Error::NotFinite { .. } => "NotFinite",
            Error::Deadline { .. } => "Deadline",
            Error::Poisoned { .. } => "Poisoned",
            Error::Mismatch(_) => "Mismatch",
            Error::Internal(_) => "Internal",
            Error::Io { .. } => "Io",
            Error::Network(_) => "Network",
        }
    }

    fn samples() -> Vec<Error> {
        let device = |device: &str, reason: &str| Error::Device {
            device: device.to_string(),
            operation: "launch kernel x".to_string(),
            reason: reason.to_string(),
        };
        let capacity = |what: &str, bytes| Error::Capacity {
            what: what.to_string(),
            needed_bytes: bytes,
            available_bytes: bytes / 2,
            advice: "choose a smaller image".to_string(),
        };
        vec![
            Error::Input(
                "width 17 is not a multiple of 16 between 16 and 8192; the nearest are 16 and 32".to_string(),
            ),
            Error::Input("`green` is no seed; use a number from 0 to 9, or random".to_string()),
            Error::weights("vae/diffusion_pytorch_model.safetensors", "tensor x has shape [1], expected [2]"),
            Error::weights("text_encoder/config.json", "hidden_size is absent"),
            capacity("the arena on a GPU", 8),
            capacity("a 64 x 64 image with nf4 weights, streamed", 8),
            capacity("a context", 0),
            capacity("pinned host memory, with all streamed weights on disk,", 8),
            capacity("FOLDER", 8),
            Error::no_thread(&std::io::Error::other("os")),
            Error::Unsupported("this build has no CUDA kernels, because there was no nvcc".to_string()),
            Error::Unsupported(
                "a.gguf: an image-to-image model is not supported: a text model is".to_string(),
            ),
            device("cuda:0", "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"),
            device("emulator", "thread 3 reads outside"),
            crate::device::lost::poisoned(
                "cuda:0",
                "kernel x failed: CUDA_ERROR_ASSERT",
                crate::device::lost::RECOVER,
            ),
            crate::device::lost::poisoned(
                "cuda:0",
                "finish a stream: 999",
                crate::device::lost::STILL_BROKEN,
            ),
            crate::device::lost::poisoned(
                "emulator",
                "kernel x: thread 3 reads outside",
                crate::device::lost::IN_USE,
            ),
            Error::Stopped,
            Error::Deadline {
                when: "before it was begun".to_string(),
                needed: Duration::from_millis(900),
                deadline: Duration::from_millis(800),
            },
            Error::NotFinite { place: "the latents of step 0".to_string(), count: 3 },
            crate::check::mismatch(2),
            Error::Internal("a plan that its own check refuses".to_string()),
            Error::io("write", "out.png")(std::io::ErrorKind::PermissionDenied.into()),
            Error::Network(
                "file: timed out; is there a network, or does it need a proxy (HTTPS_PROXY)?".to_string(),
            ),
        ]
    }

    #[test]
    fn every_variant_is_known_by_its_words() {
        let mut seen = std::collections::BTreeSet::new();
        for error in samples() {
            let text = format!("error: {error}");
            let found = diagnose(&text);
            let ours = found.last().unwrap_or_else(|| panic!("unknown: {text}"));
            assert_eq!(ours.what, format!("Error::{}", name(&error)), "{text}");
            assert_eq!(ours.exit_code, Some(error.exit_code()), "{text}");
            seen.insert(name(&error));
        }
        // All that `exit_code` tells apart.
        let all: std::collections::BTreeSet<&str> = EXIT_CODES.iter().map(|(variant, _)| *variant).collect();
        assert_eq!(seen, all);
        let of_entries: std::collections::BTreeSet<&str> =
            ENTRIES.iter().map(|entry| entry.variant).collect();
        assert_eq!(of_entries, all);
    }

    #[test]
    fn texts_are_matched_in_lower_case() {
        for entry in &ENTRIES {
            assert!(!entry.means.is_empty() && !entry.advice.is_empty());
            for say in entry.says {
                assert_eq!(*say, say.to_lowercase(), "it would never be found");
            }
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn the_drivers_errors_are_known_with_and_without_their_prefix() {
        for (text, name, says) in [
            (
                "x failed on cuda:0: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
                "CUDA_ERROR_OUT_OF_MEMORY",
                "nvidia-smi",
            ),
            ("NO_BINARY_FOR_GPU", "CUDA_ERROR_NO_BINARY_FOR_GPU", "build again"),
            (
                "CUDA driver version is insufficient for CUDA runtime version",
                "cudaErrorInsufficientDriver",
                "580",
            ),
            ("CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_ILLEGAL_ADDRESS", "restart the process"),
            (
                "no kernel image is available for execution on the device",
                "CUDA_ERROR_NO_BINARY_FOR_GPU",
                "build again",
            ),
            ("CUDA_ERROR_MPS_SERVER_NOT_READY", "CUDA_ERROR_MPS_SERVER_NOT_READY", "documentation"),
        ] {
            let found = diagnose(text);
            assert_eq!(found.first().map(|first| &first.what[..]), Some(name), "{text}");
            assert!(found[0].advice.contains(says), "{}", found[0].advice);
        }
    }

    #[test]
    fn what_is_unknown_is_said_to_be() {
        for text in ["", "segmentation fault", "it does not work", "the picture is ugly"] {
            assert_eq!(diagnose(text), [], "{text}");
        }
    }
}
