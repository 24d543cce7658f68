//! The GPU.
use super::{Capability, EventId, Kernel, Machine, StreamId};
use crate::{Error, Result};
use std::ffi::c_void;
pub(crate) enum Cuda {}
impl Cuda {
    pub fn open(_o: usize) -> Result<Self> {
        Err(Error::Unsupported("no CUDA yet".into()))
    }
}
impl Machine for Cuda {
    fn capability(&self) -> &Capability {
        match *self {}
    }
    unsafe fn allocate(&self, _: usize) -> Result<u64> {
        match *self {}
    }
    unsafe fn free(&self, _: u64, _: usize) {
        match *self {}
    }
    unsafe fn allocate_host(&self, _: usize) -> Result<*mut u8> {
        match *self {}
    }
    unsafe fn free_host(&self, _: *mut u8, _: usize) {
        match *self {}
    }
    fn prepare(&self, _: &'static Kernel) -> Result<()> {
        match *self {}
    }
    unsafe fn copy_to_device(&self, _: StreamId, _: u64, _: *const u8, _: usize) -> Result<()> {
        match *self {}
    }
    unsafe fn copy_to_host(&self, _: StreamId, _: *mut u8, _: u64, _: usize) -> Result<()> {
        match *self {}
    }
    unsafe fn fill(&self, _: StreamId, _: u64, _: u8, _: usize) -> Result<()> {
        match *self {}
    }
    unsafe fn launch(
        &self,
        _: StreamId,
        _: &'static Kernel,
        _: [u32; 3],
        _: *const c_void,
        _: usize,
    ) -> Result<()> {
        match *self {}
    }
    fn create_event(&self) -> Result<EventId> {
        match *self {}
    }
    unsafe fn destroy_event(&self, _: EventId) {
        match *self {}
    }
    unsafe fn record(&self, _: StreamId, _: EventId) -> Result<()> {
        match *self {}
    }
    unsafe fn wait(&self, _: StreamId, _: EventId) -> Result<()> {
        match *self {}
    }
    unsafe fn elapsed_ms(&self, _: EventId, _: EventId) -> Result<f32> {
        match *self {}
    }
    unsafe fn synchronize_event(&self, _: EventId) -> Result<()> {
        match *self {}
    }
    fn synchronize(&self, _: StreamId) -> Result<()> {
        match *self {}
    }
}
