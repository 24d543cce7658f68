//! `schnell.Pipeline`: a model on a device.

use std::ops::ControlFlow::{self, Break, Continue};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use schnell::{Device, Fetch, FetchProgress, Lora, Model, Precision, Progress, Quantize, Shape};

use crate::errors::{InputError, to_python};
use crate::image::Image;
use crate::output::Target;
use crate::request::Request;

/// A model on a device, in one allocation of `device_bytes`.
///
/// Calls may come from any thread; they draw one after the other, and other threads of Python go on meanwhile. What the arguments mean is in
/// `schnell/_schnell.pyi`, beside the package.
#[pyclass(frozen, module = "schnell")]
pub struct Pipeline {
    inner: Mutex<schnell::Pipeline>,
    // Where its weights are: what `recover` loads again.
    model: Model,
    device: Device,
    shape: Shape,
    arena_bytes: u64,
}

/// Asks Python whether to go on: signals first, as Ctrl-C, then the caller's function.
struct Listener<'a> {
    callback: Option<&'a Py<PyAny>>,
    raised: Option<PyErr>,
}

impl Listener<'_> {
    fn tell(&mut self, stage: &str, done: u64, total: u64) -> ControlFlow<()> {
        let said = Python::attach(|py| {
            py.check_signals()?;
            let Some(callback) = self.callback else { return Ok(true) };
            let answer = callback.bind(py).call1((stage, done, total))?;
            // None goes on; what is false stops.
            Ok(answer.is_none() || answer.is_truthy()?)
        });
        match said {
            Ok(true) => Continue(()),
            Ok(false) => Break(()),
            Err(raised) => {
                self.raised = Some(raised);
                Break(())
            }
        }
    }

    fn progress(&mut self, progress: Progress) -> ControlFlow<()> {
        match progress {
            Progress::Loading { done, total } => self.tell("loading", done, total),
            Progress::TextEncoding => self.tell("text_encoding", 0, 1),
            Progress::Step { index, total } => self.tell("step", index as u64, total as u64),
            Progress::Decoding => self.tell("decoding", 0, 1),
            Progress::Done => self.tell("done", 1, 1),
            _ => Continue(()),
        }
    }

    /// The result, or what Python raised meanwhile.
    fn result<T>(self, result: schnell::Result<T>) -> PyResult<T> {
        match self.raised {
            Some(raised) => Err(raised),
            None => result.map_err(to_python),
        }
    }
}

fn quantize_of(name: &str) -> PyResult<Quantize> {
    Ok(match name {
        "nf4" => Quantize::Nf4,
        "nf4-all" => Quantize::Nf4All,
        "keep" => Quantize::Keep,
        "none" | "bf16" => Quantize::None,
        _ => return Err(InputError::new_err(format!("quantize={name:?}: nf4, nf4-all, keep or none"))),
    })
}

fn precision_of(name: &str) -> PyResult<Precision> {
    Ok(match name {
        "full" => Precision::Full,
        "fast" => Precision::Fast,
        _ => return Err(InputError::new_err(format!("precision={name:?}: full or fast"))),
    })
}

/// The device of a name; nothing for the first GPU, or the emulator where there is none.
fn device_of(name: &str) -> PyResult<Device> {
    let emulator = || Device::emulator(Default::default());
    let cuda = |ordinal| Device::cuda(ordinal).map_err(to_python);
    match name {
        "auto" => match Device::cuda(0) {
            Ok(device) => Ok(device),
            Err(schnell::Error::Unsupported(_)) => Ok(emulator()),
            Err(other) => Err(to_python(other)),
        },
        "emulator" => Ok(emulator()),
        "cuda" => cuda(0),
        _ => match name.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => cuda(ordinal),
            None => Err(InputError::new_err(format!("device={name:?}: auto, cuda:N or emulator"))),
        },
    }
}

/// A folder or a file is opened, `demo` is the bundled model, and `org/name` one of the Hugging Face cache, which is fetched if `fetch` says so.
fn open(
    model: &str,
    cache_dir: Option<PathBuf>,
    fetch: bool,
    listener: &mut Listener<'_>,
) -> schnell::Result<Model> {
    if model == "demo" {
        return Model::demo();
    }
    let is_name = model.split('/').count() == 2 && !PathBuf::from(model).exists();
    if !(is_name && (fetch || cache_dir.is_some())) {
        return Model::open(model);
    }
    let mut source = Fetch::new(model);
    if let Some(folder) = cache_dir {
        source = source.cache(folder);
    }
    let folder = source.run_with(&mut |progress| match progress {
        FetchProgress::Bytes { done, total, .. } => listener.tell("fetching", done, total),
        _ => Continue(()),
    })?;
    Model::open_folder(&folder)
}

#[pymethods]
impl Pipeline {
    #[new]
    #[pyo3(signature = (model="demo", *, device="auto", width=None, height=None, steps=None, t5_length=None, true_cfg=false, quantize=None,
        precision="full", budget=None, host_budget=None, cache=None, cache_dir=None, fetch=false, loras=Vec::new(), lora_rank=None, prompt_cache=None,
        calibrate=None, graphs=true, float_output=true, progress=None))]
    #[expect(clippy::too_many_arguments, reason = "each is a keyword in Python")]
    fn new(
        py: Python<'_>,
        model: &str,
        device: &str,
        width: Option<usize>,
        height: Option<usize>,
        steps: Option<usize>,
        t5_length: Option<usize>,
        true_cfg: bool,
        quantize: Option<&str>,
        precision: &str,
        budget: Option<u64>,
        host_budget: Option<u64>,
        cache: Option<PathBuf>,
        cache_dir: Option<PathBuf>,
        fetch: bool,
        loras: Vec<(PathBuf, f32)>,
        lora_rank: Option<usize>,
        prompt_cache: Option<usize>,
        calibrate: Option<PathBuf>,
        graphs: bool,
        float_output: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Pipeline> {
        let (quantize, precision) = (quantize.map(quantize_of).transpose()?, precision_of(precision)?);
        let mut listener = Listener { callback: progress.as_ref(), raised: None };
        let device = device_of(device)?;
        let loaded = py.detach(|| -> schnell::Result<(schnell::Pipeline, Model)> {
            let mut model = open(model, cache_dir, fetch, &mut listener)?;
            if !loras.is_empty() {
                let loras = open_loras(&loras, model.config())?;
                model = model.with_loras(&loras)?;
            }
            if let Some(rank) = lora_rank {
                model = model.with_room_for_loras(rank)?;
            }
            let mut shape = model.shape(width.unwrap_or(512), height.unwrap_or(512));
            shape.steps = steps.unwrap_or(shape.steps);
            shape.t5_length = t5_length.unwrap_or(shape.t5_length);
            shape.true_cfg = true_cfg;
            let quantize = quantize.unwrap_or_else(|| Quantize::usual(model.config()));
            let mut builder = schnell::Pipeline::builder(&model)
                .warm_up([shape])
                .device(&device)
                .quantize(quantize)
                .precision(precision)
                .graphs(graphs);
            if float_output {
                builder = builder.f32_pixels();
            }
            if let Some(bytes) = budget {
                builder = builder.budget(bytes);
            }
            if let Some(bytes) = host_budget {
                builder = builder.host_budget(bytes);
            }
            if let Some(folder) = cache {
                builder = builder.cache(folder);
            }
            if let Some(prompts) = prompt_cache {
                builder = builder.prompt_cache(prompts);
            }
            if let Some(file) = calibrate {
                builder = builder.calibrate(file);
            }
            let pipeline = builder.load_with(&mut |progress| listener.progress(progress))?;
            Ok((pipeline, model))
        });
        let (pipeline, model) = listener.result(loaded)?;
        let (shape, arena_bytes) = (pipeline.plan().shape(), pipeline.plan().arena_bytes());
        Ok(Pipeline { inner: Mutex::new(pipeline), model, device, shape, arena_bytes })
    }

    #[pyo3(signature = (request, output=None, progress=None))]
    fn generate(
        &self,
        py: Python<'_>,
        request: &Request,
        output: Option<&Bound<'_, PyAny>>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Image> {
        let mut target = output.map(|object| Target::of(object, &self.device)).transpose()?;
        let mut listener = Listener { callback: progress.as_ref(), raised: None };
        let target = target.as_mut().map(Target::borrow);
        let drawn = py.detach(|| {
            // A panic under the lock would be a bug of the library's, and leaves what an error leaves.
            let mut pipeline = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let mut tell = |progress| listener.progress(progress);
            match target {
                Some(target) => pipeline.generate_into_with(&request.inner, target, &mut tell),
                None => pipeline.generate_with(&request.inner, &mut tell),
            }
        });
        Ok(Image { inner: listener.result(drawn)? })
    }

    fn set_loras(&self, py: Python<'_>, loras: Vec<(PathBuf, f32)>) -> PyResult<u64> {
        py.detach(|| {
            let mut pipeline = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let loras = open_loras(&loras, pipeline.plan().config())?;
            pipeline.set_loras(&loras)
        })
        .map_err(to_python)
    }

    /// Seconds that a picture is expected to take, where that is known.
    #[pyo3(signature = (request, again=false))]
    fn expected(&self, py: Python<'_>, request: &Request, again: bool) -> Option<f64> {
        py.detach(|| {
            let pipeline = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            pipeline.expected(&request.inner, again).map(|time| time.as_secs_f64())
        })
    }

    #[getter]
    fn device(&self) -> &str {
        &self.device.capability().name
    }

    #[getter]
    fn width(&self) -> usize {
        self.shape.width
    }

    #[getter]
    fn height(&self) -> usize {
        self.shape.height
    }

    #[getter]
    fn steps(&self) -> usize {
        self.shape.steps
    }

    #[getter]
    fn device_bytes(&self) -> u64 {
        self.arena_bytes
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.model.warnings().to_vec()
    }

    #[getter]
    fn is_poisoned(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).is_poisoned())
    }

    fn recover(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).recover(&self.model))
            .map_err(to_python)
    }

    fn __repr__(&self) -> String {
        let Shape { width, height, steps, .. } = self.shape;
        format!("<schnell.Pipeline {width} x {height}, {steps} steps, on {}>", self.device())
    }
}

fn open_loras(
    loras: &[(PathBuf, f32)],
    config: &schnell::PipelineConfig,
) -> schnell::Result<Vec<(Lora, f32)>> {
    loras.iter().map(|(path, strength)| Ok((Lora::open(path, config)?, *strength))).collect()
}
