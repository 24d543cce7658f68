//! What a caller's object offers to be drawn into.
//!
//! # Safety
//! A buffer of Python's is exported as long as the picture is drawn, so that it stays where it is; that nobody else writes to it meanwhile
//! is the caller's part, as with any function that fills an array. So is what `__cuda_array_interface__` and DLPack say of a pointer.

use dlpark::ffi::{DLDataType, DLDeviceType};
use dlpark::python::{ImportedDlpack, from_dlpack};
use dlpark::{DlpackFlags, TensorRef};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use schnell::{Device, DeviceBuffer, OutputBuffer, Pixels};

use crate::errors::{InputError, to_python};

/// A writable object, and what its shape says its pixels are.
pub enum Target {
    U8(PyBuffer<u8>, Pixels),
    F32(PyBuffer<f32>, Pixels),
    /// With what owns the memory, where that is ours to let go.
    Device {
        buffer: DeviceBuffer,
        pixels: Pixels,
        _owner: Option<ImportedDlpack>,
    },
    /// Memory of the host that is neither.
    Host(Host, Pixels),
}

/// So many bytes of somebody else's, who keeps them while this is there.
pub struct Host {
    address: *mut u8,
    bytes: usize,
    _owner: ImportedDlpack,
}

impl Target {
    /// Of an object with `__cuda_array_interface__`, of one with Python's buffers, itself or by its `numpy()`, as tensors of torch on the CPU
    /// have it, or of one with `__dlpack__`.
    pub fn of(object: &Bound<'_, PyAny>, device: &Device) -> PyResult<Target> {
        // Of tensors on the CPU torch says AttributeError, or TypeError.
        if let Ok(interface) = object.getattr("__cuda_array_interface__") {
            return Target::on_device(&interface, device);
        }
        if let Some(target) = Target::on_host(object)? {
            return Ok(target);
        }
        let array = match object.getattr("numpy") {
            Ok(numpy) => Target::on_host(&numpy.call0()?)?,
            Err(_) => None,
        };
        if let Some(target) = array {
            return Ok(target);
        }
        match object.hasattr("__dlpack__")? {
            true => Target::imported(object, device),
            false => Err(InputError::new_err(
                "output: neither a buffer of uint8 or float32, such as a numpy array, nor has it __cuda_array_interface__ or __dlpack__",
            )),
        }
    }

    fn imported(object: &Bound<'_, PyAny>, device: &Device) -> PyResult<Target> {
        let wrong = |why: String| InputError::new_err(format!("output: its __dlpack__: {why}"));
        let owner =
            from_dlpack(object.as_borrowed(), None, None).map_err(|error| wrong(error.to_string()))?;
        let flags = owner.flags();
        let view = owner.validate().map_err(|error| wrong(error.to_string()))?;
        if flags.contains(DlpackFlags::READ_ONLY) {
            return Err(InputError::new_err("output: it is read-only"));
        }
        if flags.contains(DlpackFlags::IS_COPIED) {
            return Err(wrong("it gives a copy, which nobody would see".to_string()));
        }
        let is_f32 = match view.dtype() {
            DLDataType::F32 => true,
            DLDataType::U8 => false,
            other => return Err(wrong(format!("elements are {other:?}; uint8 or float32 are written"))),
        };
        if !view.is_compact().map_err(|error| wrong(error.to_string()))? {
            return Err(not_contiguous());
        }
        let shape: Result<Vec<usize>, _> = view.shape().iter().map(|&len| usize::try_from(len)).collect();
        let pixels =
            pixels_of(&shape.map_err(|_| wrong("a side of its shape is negative".to_string()))?, is_f32)?;
        let (address, bytes) = (address(&view), view.num_bytes());
        match view.device().device_type {
            DLDeviceType::CPU | DLDeviceType::CUDAHOST if !is_f32 || address.addr() % 4 == 0 => {
                Ok(Target::Host(Host { address, bytes, _owner: owner }, pixels))
            }
            DLDeviceType::CUDA | DLDeviceType::CUDAMANAGED => {
                // SAFETY: the tensor says that so many bytes are there, and they stay while `owner` is; that they are the caller's own is its
                // promise to us.
                let buffer = unsafe { DeviceBuffer::from_raw(device, address.addr() as u64, bytes) };
                Ok(Target::Device { buffer: buffer.map_err(to_python)?, pixels, _owner: Some(owner) })
            }
            other => Err(wrong(format!(
                "a tensor of device type {}; the host's or a CUDA device's is written",
                other.0
            ))),
        }
    }

    fn on_host(object: &Bound<'_, PyAny>) -> PyResult<Option<Target>> {
        if let Ok(buffer) = PyBuffer::<u8>::get(object) {
            let pixels = check_host(&buffer, false)?;
            return Ok(Some(Target::U8(buffer, pixels)));
        }
        if let Ok(buffer) = PyBuffer::<f32>::get(object) {
            let pixels = check_host(&buffer, true)?;
            return Ok(Some(Target::F32(buffer, pixels)));
        }
        Ok(None)
    }

    fn on_device(interface: &Bound<'_, PyAny>, device: &Device) -> PyResult<Target> {
        let interface = interface.cast::<PyDict>()?;
        let get = |name: &str| {
            interface.get_item(name)?.ok_or_else(|| {
                InputError::new_err(format!("output: its __cuda_array_interface__ has no {name}"))
            })
        };
        let (address, read_only): (u64, bool) = get("data")?.extract()?;
        let shape: Vec<usize> = get("shape")?.extract()?;
        let (is_f32, width) = match get("typestr")?.extract::<String>()?.as_str() {
            "<f4" | "=f4" => (true, 4),
            "|u1" => (false, 1),
            other => {
                return Err(InputError::new_err(format!(
                    "output: elements are {other}; |u1 or <f4 are written"
                )));
            }
        };
        let strides = interface.get_item("strides")?.filter(|strides| !strides.is_none());
        if let Some(strides) = strides {
            let strides: Vec<usize> = strides.cast::<PyTuple>()?.extract()?;
            let mut next = width;
            for (&stride, &len) in strides.iter().zip(&shape).rev() {
                if len > 1 && stride != next {
                    return Err(not_contiguous());
                }
                next *= len;
            }
        }
        if read_only {
            return Err(InputError::new_err("output: it is read-only"));
        }
        let bytes = shape.iter().try_fold(width, |bytes, &len| bytes.checked_mul(len));
        let bytes =
            bytes.ok_or_else(|| InputError::new_err("output: its shape is larger than any memory"))?;
        // SAFETY: the interface says that so many bytes are there; that they stay and are the caller's own is its promise to us.
        let buffer = unsafe { DeviceBuffer::from_raw(device, address, bytes) }.map_err(to_python)?;
        Ok(Target::Device { buffer, pixels: pixels_of(&shape, is_f32)?, _owner: None })
    }

    /// For the library.
    pub fn borrow(&mut self) -> OutputBuffer<'_> {
        match self {
            Target::U8(buffer, Pixels::U8Chw) => OutputBuffer::U8Chw(slice(buffer)),
            Target::U8(buffer, _) => OutputBuffer::U8Hwc(slice(buffer)),
            Target::F32(buffer, Pixels::F32Chw) => OutputBuffer::F32Chw(slice(buffer)),
            Target::F32(buffer, _) => OutputBuffer::F32Hwc(slice(buffer)),
            Target::Device { buffer, pixels, .. } => OutputBuffer::Device(buffer, *pixels),
            Target::Host(host, Pixels::U8Chw) => OutputBuffer::U8Chw(host.slice()),
            Target::Host(host, Pixels::F32Hwc) => OutputBuffer::F32Hwc(host.slice()),
            Target::Host(host, Pixels::F32Chw) => OutputBuffer::F32Chw(host.slice()),
            Target::Host(host, _) => OutputBuffer::U8Hwc(host.slice()),
        }
    }
}

impl Host {
    /// All of it, as numbers of the kind that it was checked to hold.
    fn slice<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: so many bytes are there as long as the owner is, writable, aligned and of elements of T (`Target::imported`); see the
        // module.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast::<T>(), self.bytes / size_of::<T>()) }
    }
}

/// Of its first element.
fn address(tensor: &TensorRef<'_>) -> *mut u8 {
    tensor.data_ptr().cast::<u8>().cast_mut().wrapping_add(tensor.byte_offset() as usize)
}

fn not_contiguous() -> PyErr {
    InputError::new_err("output: its elements do not lie one behind the other; pass a contiguous array")
}

fn check_host<T: Element>(buffer: &PyBuffer<T>, is_f32: bool) -> PyResult<Pixels> {
    if buffer.readonly() {
        return Err(InputError::new_err("output: it is read-only"));
    }
    if !buffer.is_c_contiguous() {
        return Err(not_contiguous());
    }
    pixels_of(buffer.shape(), is_f32)
}

/// `[height, width, 3]` or `[3, height, width]`, with ones before it or without; anything flat is the former.
fn pixels_of(shape: &[usize], is_f32: bool) -> PyResult<Pixels> {
    let ones = shape.len().saturating_sub(3);
    let planar = match &shape[ones..] {
        [_, _, 3] | [_] if shape[..ones].iter().all(|&n| n == 1) => false,
        [3, _, _] if shape[..ones].iter().all(|&n| n == 1) => true,
        _ => {
            return Err(InputError::new_err(format!(
                "output: its shape is {shape:?}; [height, width, 3] or [3, height, width] is drawn"
            )));
        }
    };
    Ok(match (is_f32, planar) {
        (false, false) => Pixels::U8Hwc,
        (false, true) => Pixels::U8Chw,
        (true, false) => Pixels::F32Hwc,
        (true, true) => Pixels::F32Chw,
    })
}

fn slice<T: Element>(buffer: &mut PyBuffer<T>) -> &mut [T] {
    // SAFETY: the buffer is writable and C-contiguous (`check_host`), of elements of T (`PyBuffer::get`), and exported while it is
    // borrowed here; see the module.
    unsafe { std::slice::from_raw_parts_mut(buffer.buf_ptr().cast::<T>(), buffer.item_count()) }
}
