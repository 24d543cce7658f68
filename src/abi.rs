//! The params structs and constants of `kernels/*.h`, as bindgen sees them. Generated; do not edit:
//! `scripts/bless-abi` writes this file anew.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, clippy::all)]

pub const EULER_STEP_THREADS: u32 = 256;
pub const EULER_STEP_SMEM_BYTES: u32 = 0;
pub type bf16_bits = u16;
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct euler_step_params {
    pub latents: u64,
    pub velocity: u64,
    pub latents_bf16: u64,
    pub count: i64,
    pub dt: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of euler_step_params"][::std::mem::size_of::<euler_step_params>() - 40usize];
    ["Alignment of euler_step_params"][::std::mem::align_of::<euler_step_params>() - 8usize];
    ["Offset of field: euler_step_params::latents"]
        [::std::mem::offset_of!(euler_step_params, latents) - 0usize];
    ["Offset of field: euler_step_params::velocity"]
        [::std::mem::offset_of!(euler_step_params, velocity) - 8usize];
    ["Offset of field: euler_step_params::latents_bf16"]
        [::std::mem::offset_of!(euler_step_params, latents_bf16) - 16usize];
    ["Offset of field: euler_step_params::count"][::std::mem::offset_of!(euler_step_params, count) - 24usize];
    ["Offset of field: euler_step_params::dt"][::std::mem::offset_of!(euler_step_params, dt) - 32usize];
    ["Offset of field: euler_step_params::reserved"]
        [::std::mem::offset_of!(euler_step_params, reserved) - 36usize];
};
