//! Pixels as the caller wants them: bytes or floats, pixel by pixel or color by color, in memory of the host or of the device.
//!
//! Bytes are always fetched, since the receipt has their hash. Floats for the host are fetched where the pipeline was loaded with
//! room for them; what a device buffer gets is written by the conversion's kernel itself, behind everything else.

use crate::device::{Device, DeviceBuffer, Kernel, View};
use crate::kernels::to_rgb::{self, RgbOut, ToRgb};
use crate::program::STREAM;
use crate::{Error, Result};

use super::Shape;

/// Red, green, blue.
const COLORS: usize = 3;

/// What a picture's pixels are, and in which order they lie, without gaps.
///
/// Floats are the decoder's own, `clamp(x / 2 + 1 / 2, 0, 1)` as diffusers has it with `output_type="pt"`; bytes are
/// `round(255 · float)`, ties to even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pixels {
    /// u8 `[height, width, 3]`, as in picture files.
    #[default]
    U8Hwc,
    /// u8 `[3, height, width]`.
    U8Chw,
    /// f32 `[height, width, 3]`, in [0, 1].
    F32Hwc,
    /// f32 `[3, height, width]`, in [0, 1].
    F32Chw,
}

impl Pixels {
    /// Bytes of a picture. Nothing for more than can be counted.
    pub fn num_bytes(self, width: usize, height: usize) -> Option<usize> {
        width.checked_mul(height)?.checked_mul(self.bytes_per_pixel())
    }

    fn bytes_per_pixel(self) -> usize {
        if self.is_f32() { COLORS * size_of::<f32>() } else { COLORS }
    }

    fn is_f32(self) -> bool {
        matches!(self, Pixels::F32Hwc | Pixels::F32Chw)
    }

    /// What makes them.
    fn kernel(self) -> &'static Kernel {
        match self {
            Pixels::U8Hwc => &to_rgb::TO_RGB,
            Pixels::U8Chw => &to_rgb::TO_RGB_PLANAR,
            Pixels::F32Hwc => &to_rgb::TO_RGB_F32,
            Pixels::F32Chw => &to_rgb::TO_RGB_F32_PLANAR,
        }
    }
}

/// Memory of the caller's that [`Pipeline::generate_into`](super::Pipeline::generate_into) draws into, exactly as large as the picture.
/// Slices may be of pinned memory or any other. A `&mut [u8]` becomes one by `into`, as [`Pixels::U8Hwc`].
#[derive(Debug)]
#[non_exhaustive]
pub enum OutputBuffer<'a> {
    /// For [`Pixels::U8Hwc`].
    U8Hwc(&'a mut [u8]),
    /// For [`Pixels::U8Chw`].
    U8Chw(&'a mut [u8]),
    /// For [`Pixels::F32Hwc`]; takes a pipeline with [`PipelineBuilder::f32_pixels`](super::PipelineBuilder::f32_pixels).
    F32Hwc(&'a mut [f32]),
    /// For [`Pixels::F32Chw`]; the same.
    F32Chw(&'a mut [f32]),
    /// Any pixels, in memory of the pipeline's own device, aligned to their elements. They are written on the pipeline's stream, and are there
    /// when the call returns, which has then waited for that stream: work that is enqueued on any stream afterwards sees them. Work that
    /// was enqueued before and reads the buffer must have ended: nothing here waits for streams of others.
    Device(&'a mut DeviceBuffer, Pixels),
}

impl<'a> From<&'a mut [u8]> for OutputBuffer<'a> {
    fn from(rgb: &'a mut [u8]) -> OutputBuffer<'a> {
        OutputBuffer::U8Hwc(rgb)
    }
}

impl<'a> From<&'a mut Vec<u8>> for OutputBuffer<'a> {
    fn from(rgb: &'a mut Vec<u8>) -> OutputBuffer<'a> {
        OutputBuffer::U8Hwc(rgb)
    }
}

impl OutputBuffer<'_> {
    /// What it is for.
    pub fn pixels(&self) -> Pixels {
        match self {
            OutputBuffer::U8Hwc(_) => Pixels::U8Hwc,
            OutputBuffer::U8Chw(_) => Pixels::U8Chw,
            OutputBuffer::F32Hwc(_) => Pixels::F32Hwc,
            OutputBuffer::F32Chw(_) => Pixels::F32Chw,
            OutputBuffer::Device(_, pixels) => *pixels,
        }
    }

    fn num_bytes(&self) -> usize {
        match self {
            OutputBuffer::U8Hwc(rgb) | OutputBuffer::U8Chw(rgb) => rgb.len(),
            OutputBuffer::F32Hwc(rgb) | OutputBuffer::F32Chw(rgb) => size_of_val(&**rgb),
            OutputBuffer::Device(buffer, _) => buffer.num_bytes(),
        }
    }

    /// Refuses what a picture of this shape does not fit, or a pipeline cannot fill that has room for `floats` or not.
    pub(super) fn check(&self, shape: &Shape, device: &Device, floats: bool) -> Result<()> {
        let Shape { width, height, .. } = *shape;
        let pixels = self.pixels();
        if pixels.num_bytes(width, height) != Some(self.num_bytes()) {
            return Err(Error::Input(format!(
                "a buffer of {} bytes for a {width} x {height} picture; it takes {} bytes a pixel",
                self.num_bytes(),
                pixels.bytes_per_pixel()
            )));
        }
        match self {
            OutputBuffer::Device(buffer, _) if !buffer.device().is_same(device) => {
                let (mine, other) = (&device.capability().name, &buffer.device().capability().name);
                Err(Error::Input(format!("a buffer of another device, {other}, for a pipeline on {mine}")))
            }
            OutputBuffer::Device(buffer, _)
                if pixels.is_f32() && !buffer.address().is_multiple_of(align_of::<f32>() as u64) =>
            {
                Err(Error::Input(format!("floats at {:#x}: they begin at a multiple of 4", buffer.address())))
            }
            // Here and not in the run, so that the driver loads nothing in its middle.
            OutputBuffer::Device(..) => device.prepare(pixels.kernel()),
            _ if pixels.is_f32() && !floats => {
                let advice = "load it with `f32_pixels`, or take bytes";
                Err(Error::Input(format!("this pipeline was loaded without room for floats: {advice}")))
            }
            _ => Ok(()),
        }
    }
}

/// Where a picture goes.
pub(super) enum Destination<'a> {
    /// Bytes that are made room for.
    Own(&'a mut Vec<u8>),
    Buffer(OutputBuffer<'a>),
}

impl Destination<'_> {
    /// See [`OutputBuffer::check`].
    pub fn check(&self, shape: &Shape, device: &Device, floats: bool) -> Result<()> {
        match self {
            Destination::Own(_) => Ok(()),
            Destination::Buffer(buffer) => buffer.check(shape, device, floats),
        }
    }

    /// What the device itself writes.
    pub fn on_device(&self) -> Option<OnDevice<'_>> {
        match self {
            Destination::Buffer(OutputBuffer::Device(buffer, pixels)) => {
                Some(OnDevice { buffer, pixels: *pixels })
            }
            _ => None,
        }
    }

    /// Takes in what the device has given the host: bytes `[height, width, 3]`, and floats of the same if there is room for them.
    pub fn keep(&mut self, bytes: &[u8], floats: Option<&[f32]>) -> Result<()> {
        let floats = || floats.ok_or_else(|| Error::Internal("no floats were fetched".to_string()));
        match self {
            Destination::Own(rgb) => rgb.extend_from_slice(bytes),
            Destination::Buffer(OutputBuffer::U8Hwc(rgb)) => rgb.copy_from_slice(bytes),
            Destination::Buffer(OutputBuffer::U8Chw(rgb)) => by_color(bytes, rgb),
            Destination::Buffer(OutputBuffer::F32Hwc(rgb)) => rgb.copy_from_slice(floats()?),
            Destination::Buffer(OutputBuffer::F32Chw(rgb)) => by_color(floats()?, rgb),
            Destination::Buffer(OutputBuffer::Device(..)) => {}
        }
        Ok(())
    }
}

/// `[pixels, 3]` as `[3, pixels]`.
fn by_color<T: Copy>(pixels: &[T], planes: &mut [T]) {
    let len = (planes.len() / COLORS).max(1);
    for (color, plane) in planes.chunks_exact_mut(len).enumerate() {
        for (to, pixel) in plane.iter_mut().zip(pixels.chunks_exact(COLORS)) {
            *to = pixel[color];
        }
    }
}

/// Where the device writes a picture to.
#[derive(Clone, Copy)]
pub(super) struct OnDevice<'a> {
    buffer: &'a DeviceBuffer,
    pixels: Pixels,
}

impl OnDevice<'_> {
    /// Enqueues that, of what the decoder leaves, f32 `[height, width, 3]`.
    pub fn enqueue(&self, device: &Device, image: &View<f32>) -> Result<()> {
        let (pitch, pixels, len) = (COLORS, image.len() / COLORS, image.len());
        let launch = |out: RgbOut<'_>| ToRgb { x: image, pitch, pixels, out }.launch(device, STREAM);
        match self.pixels {
            Pixels::U8Hwc => launch(RgbOut::U8(&self.buffer.view(len)?)),
            Pixels::U8Chw => launch(RgbOut::U8Planar(&self.buffer.view(len)?)),
            Pixels::F32Hwc => launch(RgbOut::F32(&self.buffer.view(len)?)),
            Pixels::F32Chw => launch(RgbOut::F32Planar(&self.buffer.view(len)?)),
        }
    }
}
