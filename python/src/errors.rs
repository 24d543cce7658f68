//! The library's kinds of errors as Python's exceptions.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyFileNotFoundError, PyOSError};
use pyo3::prelude::*;

create_exception!(
    schnell,
    Error,
    PyException,
    "What `schnell` refuses or fails at; its kinds are the classes below."
);
create_exception!(schnell, InputError, Error, "A value, a size or a prompt that cannot be; says what can.");
create_exception!(
    schnell,
    WeightsError,
    Error,
    "A model's file that is broken or does not fit; `path` says which."
);
create_exception!(
    schnell,
    CapacityError,
    Error,
    "Memory does not suffice; `needed_bytes` and `available_bytes` say by how much."
);
create_exception!(schnell, UnsupportedError, Error, "What this build or this machine cannot do.");
create_exception!(schnell, DeviceError, Error, "The GPU or its driver failed; `operation` says at what.");
create_exception!(
    schnell,
    PoisonedError,
    Error,
    "The device failed so that nothing on it can be trusted; `Pipeline.recover` opens it again and loads anew."
);
create_exception!(schnell, Stopped, Error, "The progress callback said stop.");
create_exception!(
    schnell,
    DeadlineError,
    Error,
    "The picture would be late; `needed_s` is what it would take, `deadline_s` what it was given."
);
create_exception!(
    schnell,
    NotFiniteError,
    Error,
    "Numbers inside the networks are not finite; `place` says where."
);
create_exception!(schnell, MismatchError, Error, "Two results that should agree do not.");
create_exception!(schnell, NetworkError, Error, "A model could not be fetched.");
create_exception!(schnell, InternalError, Error, "A bug in `schnell`; please report it.");

/// As Python sees it. Files that are not there, or not readable, are Python's own errors.
pub fn to_python(error: schnell::Error) -> PyErr {
    use schnell::Error as E;
    let said = error.to_string();
    match error {
        E::Input(_) => InputError::new_err(said),
        E::Weights { path, .. } => with(WeightsError::new_err(said), [("path", path.into_os_string())]),
        E::Capacity { needed_bytes, available_bytes, .. } => with(
            CapacityError::new_err(said),
            [("needed_bytes", needed_bytes), ("available_bytes", available_bytes)],
        ),
        E::Unsupported(_) => UnsupportedError::new_err(said),
        E::Device { operation, .. } => with(DeviceError::new_err(said), [("operation", operation)]),
        E::Poisoned { .. } => PoisonedError::new_err(said),
        E::Stopped => Stopped::new_err(said),
        E::Deadline { needed, deadline, .. } => with(
            DeadlineError::new_err(said),
            [("needed_s", needed.as_secs_f64()), ("deadline_s", deadline.as_secs_f64())],
        ),
        E::NotFinite { place, .. } => with(NotFiniteError::new_err(said), [("place", place)]),
        E::Mismatch(_) => MismatchError::new_err(said),
        E::Network(_) => NetworkError::new_err(said),
        E::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            PyFileNotFoundError::new_err(said)
        }
        E::Io { .. } => PyOSError::new_err(said),
        _ => InternalError::new_err(said),
    }
}

/// With attributes, so that programs need not read sentences.
fn with<T, const N: usize>(error: PyErr, attributes: [(&str, T); N]) -> PyErr
where
    T: for<'py> IntoPyObject<'py>,
{
    Python::attach(|py| {
        for (name, value) in attributes {
            if let Err(other) = error.value(py).setattr(name, value) {
                return other;
            }
        }
        error
    })
}

/// Their classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    for class in [
        py.get_type::<Error>(),
        py.get_type::<InputError>(),
        py.get_type::<WeightsError>(),
        py.get_type::<CapacityError>(),
        py.get_type::<UnsupportedError>(),
        py.get_type::<DeviceError>(),
        py.get_type::<PoisonedError>(),
        py.get_type::<Stopped>(),
        py.get_type::<DeadlineError>(),
        py.get_type::<NotFiniteError>(),
        py.get_type::<MismatchError>(),
        py.get_type::<NetworkError>(),
        py.get_type::<InternalError>(),
    ] {
        module.add(class.name()?, class)?;
    }
    Ok(())
}
