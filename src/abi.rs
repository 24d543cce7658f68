//! The params structs and constants of `kernels/*.h`, as bindgen sees them. Generated; do not edit:
//! `scripts/bless-abi` writes this file anew.
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, clippy::all)]

pub const ATTENTION_BLOCK_Q: u32 = 64;
pub const ATTENTION_D64_BLOCK_KV: u32 = 64;
pub const ATTENTION_D64_THREADS: u32 = 128;
pub const ATTENTION_D64_SMEM_BYTES: u32 = 24576;
pub const ATTENTION_D64_BIAS_SMEM_BYTES: u32 = 25088;
pub const ATTENTION_D128_BLOCK_KV: u32 = 64;
pub const ATTENTION_D128_THREADS: u32 = 128;
pub const ATTENTION_D128_SMEM_BYTES: u32 = 49152;
pub const ATTENTION_D128_BIAS_SMEM_BYTES: u32 = 49664;
pub const ATTENTION_D256_BLOCK_KV: u32 = 32;
pub const ATTENTION_D256_THREADS: u32 = 128;
pub const ATTENTION_D256_SMEM_BYTES: u32 = 65536;
pub const ATTENTION_D256_BIAS_SMEM_BYTES: u32 = 65920;
pub const ATTENTION_D512_BLOCK_KV: u32 = 16;
pub const ATTENTION_D512_THREADS: u32 = 256;
pub const ATTENTION_D512_SMEM_BYTES: u32 = 98304;
pub const ATTENTION_D512_BIAS_SMEM_BYTES: u32 = 98624;
pub const GEMM_BLOCK_N: u32 = 128;
pub const GEMM_BLOCK_M: u32 = 128;
pub const GEMM_BLOCK_K: u32 = 64;
pub const GEMM_THREADS: u32 = 128;
pub const GEMM_MAX_SEGMENTS: u32 = 4;
pub const GEMM_MAX_PROBLEMS: u32 = 2;
pub const GEMM_STORE_BF16: u32 = 0;
pub const GEMM_STORE_F32: u32 = 1;
pub const GEMM_ADD_F32: u32 = 2;
pub const GEMM_ADD_BF16: u32 = 3;
pub const GEMM_MUL_BF16: u32 = 4;
pub const GEMM_NORM_ROPE: u32 = 5;
pub const GEMM_ACT_NONE: u32 = 0;
pub const GEMM_ACT_GELU_TANH: u32 = 1;
pub const GEMM_ACT_GELU_ERF: u32 = 2;
pub const GEMM_ACT_QUICK_GELU: u32 = 3;
pub const GEMM_STORE_KINDS: u32 = 1;
pub const GEMM_STORE_ACTS: u32 = 15;
pub const GEMM_RESIDUAL_KINDS: u32 = 6;
pub const GEMM_RESIDUAL_ACTS: u32 = 1;
pub const GEMM_COMBINE_KINDS: u32 = 24;
pub const GEMM_COMBINE_ACTS: u32 = 1;
pub const GEMM_HEADS_KINDS: u32 = 33;
pub const GEMM_HEADS_ACTS: u32 = 3;
pub const BF16_GEMM_STAGES: u32 = 2;
pub const BF16_GEMM_SMEM_BYTES: u32 = 67104;
pub const CONV2D_THREADS: u32 = 128;
pub const CONV2D_BLOCK_N: u32 = 128;
pub const CONV2D_TILE_HEIGHT: u32 = 8;
pub const CONV2D_TILE_WIDTH: u32 = 16;
pub const CONV2D_BLOCK_C: u32 = 32;
pub const CONV2D_SMEM_BYTES: u32 = 49792;
pub const CONV2D_ENLARGE_SMEM_BYTES: u32 = 37376;
pub const CONV2D_NARROW_OUT_CHANNELS: u32 = 8;
pub const CONV2D_NARROW_SMEM_BYTES: u32 = 34048;
pub const COUNT_NONFINITE_THREADS: u32 = 256;
pub const COUNT_NONFINITE_PER_THREAD: u32 = 16;
pub const COUNT_NONFINITE_SMEM_BYTES: u32 = 0;
pub const EULER_STEP_THREADS: u32 = 256;
pub const EULER_STEP_SMEM_BYTES: u32 = 0;
pub const GEMM_SM90_BLOCK_M: u32 = 256;
pub const GEMM_SM90_THREADS: u32 = 384;
pub const GEMV_THREADS: u32 = 256;
pub const GEMV_ROWS: u32 = 32;
pub const GEMV_MAX_M: u32 = 8;
pub const GEMV_SMEM_BYTES_M1: u32 = 7168;
pub const GEMV_SMEM_BYTES_M2: u32 = 11264;
pub const GEMV_SMEM_BYTES_M4: u32 = 19456;
pub const GEMV_SMEM_BYTES_M8: u32 = 35840;
pub const GEMV_NONE: u32 = 0;
pub const GEMV_SILU: u32 = 1;
pub const GROUP_NORM_SILU_THREADS: u32 = 256;
pub const GROUP_NORM_SILU_CHUNK: u32 = 64;
pub const GROUP_NORM_SILU_MAX_CHANNELS: u32 = 2048;
pub const GROUP_NORM_SILU_SMEM_BYTES: u32 = 16384;
pub const GROUP_NORM_SILU_FINISH_SMEM_BYTES: u32 = 32;
pub const GROUP_NORM_SILU_APPLY_SMEM_BYTES: u32 = 0;
pub const HEAD_NORM_ROPE_THREADS: u32 = 256;
pub const HEAD_NORM_ROPE_HEADS: u32 = 8;
pub const HEAD_NORM_ROPE_MAX_HEAD_DIM: u32 = 256;
pub const HEAD_NORM_ROPE_SMEM_BYTES: u32 = 0;
pub const KEPT_GEMM_PANEL: u32 = 64;
pub const KEPT_GEMM_STAGES: u32 = 2;
pub const Q8_0_GEMM_SMEM_BYTES: u32 = 50176;
pub const F8_E4M3_GEMM_SMEM_BYTES: u32 = 50176;
pub const F8_E5M2_GEMM_SMEM_BYTES: u32 = 50176;
pub const Q6_K_GEMM_SMEM_BYTES: u32 = 48160;
pub const Q5_K_GEMM_SMEM_BYTES: u32 = 46624;
pub const Q5_0_GEMM_SMEM_BYTES: u32 = 45600;
pub const Q5_1_GEMM_SMEM_BYTES: u32 = 46624;
pub const Q4_K_GEMM_SMEM_BYTES: u32 = 44576;
pub const Q4_0_GEMM_SMEM_BYTES: u32 = 43552;
pub const Q4_1_GEMM_SMEM_BYTES: u32 = 44576;
pub const Q3_K_GEMM_SMEM_BYTES: u32 = 42016;
pub const Q2_K_GEMM_SMEM_BYTES: u32 = 40480;
pub const LAYER_NORM_MOD_THREADS: u32 = 128;
pub const LAYER_NORM_MOD_ROWS: u32 = 4;
pub const LAYER_NORM_MOD_SMALL_WIDTH: u32 = 1024;
pub const LAYER_NORM_MOD_WIDE_WIDTH: u32 = 3072;
pub const LAYER_NORM_MOD_SMEM_BYTES: u32 = 0;
pub const NEXT_STEP_THREADS: u32 = 32;
pub const NEXT_STEP_SMEM_BYTES: u32 = 0;
pub const NF4_GEMM_STAGES: u32 = 2;
pub const NF4_GEMM_SMEM_BYTES: u32 = 45600;
pub const NF4_GEMM_SM90_STAGES: u32 = 4;
pub const NF4_GEMM_SM90_SMEM_BYTES: u32 = 154624;
pub const NF4_GEMM_SM90_STEP_BYTES: u32 = 37376;
pub const NF4_HALF_GEMM_STAGES: u32 = 2;
pub const NF4_HALF_GEMM_SMEM_BYTES: u32 = 44064;
pub const NF4_QUANTIZE_THREADS: u32 = 256;
pub const NF4_QUANTIZE_BLOCKS: u32 = 8;
pub const NF4_QUANTIZE_SMEM_BYTES: u32 = 0;
pub const PROBE_THREADS: u32 = 64;
pub const PROBE_SMEM_BYTES: u32 = 8192;
pub const PROBE_INDEX_WORDS: u32 = 8;
pub const PROBE_WARP_WORDS: u32 = 21;
pub const PROBE_LDMATRIX_TILES: u32 = 3;
pub const PROBE_MATH_WORDS: u32 = 24;
pub const PROBE_ECHO_WORDS: u32 = 12;
pub const PROBE_COPY_CASES: u32 = 33;
pub const PROBE_PIPELINE_GROUPS: u32 = 10;
pub const PROBE_PIPELINE_RINGS: u32 = 4;
pub const PROBE_MMA_STEPS: u32 = 2;
pub const PROBE_SM90_THREADS: u32 = 384;
pub const PROBE_SM90_SMEM_BYTES: u32 = 99328;
pub const PROBE_SM90_BARRIER_ROUNDS: u32 = 5;
pub const PROBE_SM90_BARRIER_WORDS: u32 = 2;
pub const PROBE_SM90_COPY_ROWS: u32 = 40;
pub const PROBE_SM90_COPY_PITCH_BYTES: u32 = 224;
pub const PROBE_SM90_COPY_WIDTH_BF16: u32 = 104;
pub const PROBE_SM90_COPY_WIDTH_U8: u32 = 203;
pub const PROBE_SM90_BOX_ROWS: u32 = 16;
pub const PROBE_SM90_BOX_ROW_BYTES: u32 = 128;
pub const PROBE_SM90_BOXES: u32 = 6;
pub const PROBE_SM90_MAPS: u32 = 4;
pub const PROBE_SM90_RANGES: u32 = 3;
pub const PROBE_SM90_M: u32 = 128;
pub const PROBE_SM90_BLOCK_K: u32 = 64;
pub const PROBE_SM90_STAGES: u32 = 2;
pub const PROBE_SM90_K_BLOCKS: u32 = 6;
pub const PROBE_SM90_STORED_ROUNDS: u32 = 2;
pub const PROBE_SM90_FAULT_UNINITIALIZED: u32 = 0;
pub const PROBE_SM90_FAULT_NO_INIT_FENCE: u32 = 1;
pub const PROBE_SM90_FAULT_OVER_ARRIVAL: u32 = 2;
pub const PROBE_SM90_FAULT_LATE_FOR_A_PHASE: u32 = 3;
pub const PROBE_SM90_FAULT_TOO_MANY_BYTES_EXPECTED: u32 = 4;
pub const PROBE_SM90_FAULT_TOO_FEW_BYTES_EXPECTED: u32 = 5;
pub const PROBE_SM90_FAULT_NO_COPY_WAIT: u32 = 6;
pub const PROBE_SM90_FAULT_EARLY_RELEASE: u32 = 7;
pub const PROBE_SM90_FAULT_FAR_COPY: u32 = 8;
pub const PROBE_SM90_FAULT_MISALIGNED_COPY: u32 = 9;
pub const PROBE_SM90_FAULT_MISALIGNED_COLUMN: u32 = 10;
pub const PROBE_SM90_FAULT_COPY_LEFT: u32 = 11;
pub const PROBE_SM90_FAULT_NO_PROXY_FENCE: u32 = 12;
pub const PROBE_SM90_FAULT_ONE_PROXY_FENCE: u32 = 13;
pub const PROBE_SM90_FAULT_NO_WGMMA_FENCE: u32 = 14;
pub const PROBE_SM90_FAULT_LATE_WRITE: u32 = 15;
pub const PROBE_SM90_FAULT_NO_WGMMA_WAIT: u32 = 16;
pub const PROBE_SM90_FAULT_NO_COMMIT: u32 = 17;
pub const PROBE_SM90_FAULT_ACC_TOUCHED: u32 = 18;
pub const PROBE_SM90_FAULT_A_TOUCHED: u32 = 19;
pub const PROBE_SM90_FAULT_RETURN_IN_FLIGHT: u32 = 20;
pub const PROBE_SM90_FAULT_DIVERGENT: u32 = 21;
pub const PROBE_SM90_FAULT_BAD_DESCRIPTOR: u32 = 22;
pub const RMS_NORM_THREADS: u32 = 128;
pub const RMS_NORM_ROWS: u32 = 4;
pub const RMS_NORM_SMALL_WIDTH: u32 = 1024;
pub const RMS_NORM_WIDE_WIDTH: u32 = 4096;
pub const RMS_NORM_SMEM_BYTES: u32 = 0;
pub const SCALE_ROWS_THREADS: u32 = 256;
pub const SCALE_ROWS_SMEM_BYTES: u32 = 32;
pub const SCALE_ROWS_WIDE_WIDTH: u32 = 16384;
pub const SELECT_ROW_THREADS: u32 = 256;
pub const SELECT_ROW_SMEM_BYTES: u32 = 0;
pub const TO_RGB_THREADS: u32 = 256;
pub const TO_RGB_SMEM_BYTES: u32 = 0;
pub const UNPACK_LATENTS_THREADS: u32 = 256;
pub const UNPACK_LATENTS_SMEM_BYTES: u32 = 0;
pub type bf16_bits = u16;
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct tensor_map {
    pub opaque: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of tensor_map"][::std::mem::size_of::<tensor_map>() - 128usize];
    ["Alignment of tensor_map"][::std::mem::align_of::<tensor_map>() - 64usize];
    ["Offset of field: tensor_map::opaque"][::std::mem::offset_of!(tensor_map, opaque) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct attention_params {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub out: u64,
    pub bias: u64,
    pub q_pitch: i64,
    pub k_pitch: i64,
    pub v_pitch: i64,
    pub out_pitch: i64,
    pub q_head_stride: i32,
    pub k_head_stride: i32,
    pub v_head_stride: i32,
    pub out_head_stride: i32,
    pub q_len: i32,
    pub kv_len: i32,
    pub head_dim: i32,
    pub bias_len: i32,
    pub causal: i32,
    pub softmax_scale: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_params"][::std::mem::size_of::<attention_params>() - 112usize];
    ["Alignment of attention_params"][::std::mem::align_of::<attention_params>() - 8usize];
    ["Offset of field: attention_params::q"][::std::mem::offset_of!(attention_params, q) - 0usize];
    ["Offset of field: attention_params::k"][::std::mem::offset_of!(attention_params, k) - 8usize];
    ["Offset of field: attention_params::v"][::std::mem::offset_of!(attention_params, v) - 16usize];
    ["Offset of field: attention_params::out"][::std::mem::offset_of!(attention_params, out) - 24usize];
    ["Offset of field: attention_params::bias"][::std::mem::offset_of!(attention_params, bias) - 32usize];
    ["Offset of field: attention_params::q_pitch"]
        [::std::mem::offset_of!(attention_params, q_pitch) - 40usize];
    ["Offset of field: attention_params::k_pitch"]
        [::std::mem::offset_of!(attention_params, k_pitch) - 48usize];
    ["Offset of field: attention_params::v_pitch"]
        [::std::mem::offset_of!(attention_params, v_pitch) - 56usize];
    ["Offset of field: attention_params::out_pitch"]
        [::std::mem::offset_of!(attention_params, out_pitch) - 64usize];
    ["Offset of field: attention_params::q_head_stride"]
        [::std::mem::offset_of!(attention_params, q_head_stride) - 72usize];
    ["Offset of field: attention_params::k_head_stride"]
        [::std::mem::offset_of!(attention_params, k_head_stride) - 76usize];
    ["Offset of field: attention_params::v_head_stride"]
        [::std::mem::offset_of!(attention_params, v_head_stride) - 80usize];
    ["Offset of field: attention_params::out_head_stride"]
        [::std::mem::offset_of!(attention_params, out_head_stride) - 84usize];
    ["Offset of field: attention_params::q_len"][::std::mem::offset_of!(attention_params, q_len) - 88usize];
    ["Offset of field: attention_params::kv_len"][::std::mem::offset_of!(attention_params, kv_len) - 92usize];
    ["Offset of field: attention_params::head_dim"]
        [::std::mem::offset_of!(attention_params, head_dim) - 96usize];
    ["Offset of field: attention_params::bias_len"]
        [::std::mem::offset_of!(attention_params, bias_len) - 100usize];
    ["Offset of field: attention_params::causal"]
        [::std::mem::offset_of!(attention_params, causal) - 104usize];
    ["Offset of field: attention_params::softmax_scale"]
        [::std::mem::offset_of!(attention_params, softmax_scale) - 108usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct gemm_segment {
    pub out: u64,
    pub aux: u64,
    pub out_pitch: i64,
    pub n_begin: i32,
    pub n_end: i32,
    pub kind: i32,
    pub act: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemm_segment"][::std::mem::size_of::<gemm_segment>() - 40usize];
    ["Alignment of gemm_segment"][::std::mem::align_of::<gemm_segment>() - 8usize];
    ["Offset of field: gemm_segment::out"][::std::mem::offset_of!(gemm_segment, out) - 0usize];
    ["Offset of field: gemm_segment::aux"][::std::mem::offset_of!(gemm_segment, aux) - 8usize];
    ["Offset of field: gemm_segment::out_pitch"][::std::mem::offset_of!(gemm_segment, out_pitch) - 16usize];
    ["Offset of field: gemm_segment::n_begin"][::std::mem::offset_of!(gemm_segment, n_begin) - 24usize];
    ["Offset of field: gemm_segment::n_end"][::std::mem::offset_of!(gemm_segment, n_end) - 28usize];
    ["Offset of field: gemm_segment::kind"][::std::mem::offset_of!(gemm_segment, kind) - 32usize];
    ["Offset of field: gemm_segment::act"][::std::mem::offset_of!(gemm_segment, act) - 36usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct gemm_low_rank {
    pub t: u64,
    pub up: u64,
    pub t_pitch: i64,
    pub rank: i32,
    pub num_parts: i32,
    pub end: [i32; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemm_low_rank"][::std::mem::size_of::<gemm_low_rank>() - 48usize];
    ["Alignment of gemm_low_rank"][::std::mem::align_of::<gemm_low_rank>() - 8usize];
    ["Offset of field: gemm_low_rank::t"][::std::mem::offset_of!(gemm_low_rank, t) - 0usize];
    ["Offset of field: gemm_low_rank::up"][::std::mem::offset_of!(gemm_low_rank, up) - 8usize];
    ["Offset of field: gemm_low_rank::t_pitch"][::std::mem::offset_of!(gemm_low_rank, t_pitch) - 16usize];
    ["Offset of field: gemm_low_rank::rank"][::std::mem::offset_of!(gemm_low_rank, rank) - 24usize];
    ["Offset of field: gemm_low_rank::num_parts"][::std::mem::offset_of!(gemm_low_rank, num_parts) - 28usize];
    ["Offset of field: gemm_low_rank::end"][::std::mem::offset_of!(gemm_low_rank, end) - 32usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct gemm_problem {
    pub x: u64,
    pub x_scale: u64,
    pub w: u64,
    pub absmax: u64,
    pub bias: u64,
    pub rope_cos: u64,
    pub rope_sin: u64,
    pub x_pitch: i64,
    pub w_pitch: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub num_segments: i32,
    pub norm_eps: f32,
    pub reserved: i32,
    pub segment: [gemm_segment; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemm_problem"][::std::mem::size_of::<gemm_problem>() - 256usize];
    ["Alignment of gemm_problem"][::std::mem::align_of::<gemm_problem>() - 8usize];
    ["Offset of field: gemm_problem::x"][::std::mem::offset_of!(gemm_problem, x) - 0usize];
    ["Offset of field: gemm_problem::x_scale"][::std::mem::offset_of!(gemm_problem, x_scale) - 8usize];
    ["Offset of field: gemm_problem::w"][::std::mem::offset_of!(gemm_problem, w) - 16usize];
    ["Offset of field: gemm_problem::absmax"][::std::mem::offset_of!(gemm_problem, absmax) - 24usize];
    ["Offset of field: gemm_problem::bias"][::std::mem::offset_of!(gemm_problem, bias) - 32usize];
    ["Offset of field: gemm_problem::rope_cos"][::std::mem::offset_of!(gemm_problem, rope_cos) - 40usize];
    ["Offset of field: gemm_problem::rope_sin"][::std::mem::offset_of!(gemm_problem, rope_sin) - 48usize];
    ["Offset of field: gemm_problem::x_pitch"][::std::mem::offset_of!(gemm_problem, x_pitch) - 56usize];
    ["Offset of field: gemm_problem::w_pitch"][::std::mem::offset_of!(gemm_problem, w_pitch) - 64usize];
    ["Offset of field: gemm_problem::m"][::std::mem::offset_of!(gemm_problem, m) - 72usize];
    ["Offset of field: gemm_problem::n"][::std::mem::offset_of!(gemm_problem, n) - 76usize];
    ["Offset of field: gemm_problem::k"][::std::mem::offset_of!(gemm_problem, k) - 80usize];
    ["Offset of field: gemm_problem::num_segments"]
        [::std::mem::offset_of!(gemm_problem, num_segments) - 84usize];
    ["Offset of field: gemm_problem::norm_eps"][::std::mem::offset_of!(gemm_problem, norm_eps) - 88usize];
    ["Offset of field: gemm_problem::reserved"][::std::mem::offset_of!(gemm_problem, reserved) - 92usize];
    ["Offset of field: gemm_problem::segment"][::std::mem::offset_of!(gemm_problem, segment) - 96usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct gemm_params {
    pub problem: [gemm_problem; 2usize],
    pub low_rank: [gemm_low_rank; 2usize],
    pub partials: u64,
    pub arrivals: u64,
    pub num_whole: i32,
    pub num_slices: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemm_params"][::std::mem::size_of::<gemm_params>() - 632usize];
    ["Alignment of gemm_params"][::std::mem::align_of::<gemm_params>() - 8usize];
    ["Offset of field: gemm_params::problem"][::std::mem::offset_of!(gemm_params, problem) - 0usize];
    ["Offset of field: gemm_params::low_rank"][::std::mem::offset_of!(gemm_params, low_rank) - 512usize];
    ["Offset of field: gemm_params::partials"][::std::mem::offset_of!(gemm_params, partials) - 608usize];
    ["Offset of field: gemm_params::arrivals"][::std::mem::offset_of!(gemm_params, arrivals) - 616usize];
    ["Offset of field: gemm_params::num_whole"][::std::mem::offset_of!(gemm_params, num_whole) - 624usize];
    ["Offset of field: gemm_params::num_slices"][::std::mem::offset_of!(gemm_params, num_slices) - 628usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct conv2d_params {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub residual: u64,
    pub out: u64,
    pub norm: u64,
    pub out_pitch: i64,
    pub x_pitch: i32,
    pub weight_pitch: i32,
    pub height: i32,
    pub width: i32,
    pub channels: i32,
    pub out_channels: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of conv2d_params"][::std::mem::size_of::<conv2d_params>() - 80usize];
    ["Alignment of conv2d_params"][::std::mem::align_of::<conv2d_params>() - 8usize];
    ["Offset of field: conv2d_params::x"][::std::mem::offset_of!(conv2d_params, x) - 0usize];
    ["Offset of field: conv2d_params::weight"][::std::mem::offset_of!(conv2d_params, weight) - 8usize];
    ["Offset of field: conv2d_params::bias"][::std::mem::offset_of!(conv2d_params, bias) - 16usize];
    ["Offset of field: conv2d_params::residual"][::std::mem::offset_of!(conv2d_params, residual) - 24usize];
    ["Offset of field: conv2d_params::out"][::std::mem::offset_of!(conv2d_params, out) - 32usize];
    ["Offset of field: conv2d_params::norm"][::std::mem::offset_of!(conv2d_params, norm) - 40usize];
    ["Offset of field: conv2d_params::out_pitch"][::std::mem::offset_of!(conv2d_params, out_pitch) - 48usize];
    ["Offset of field: conv2d_params::x_pitch"][::std::mem::offset_of!(conv2d_params, x_pitch) - 56usize];
    ["Offset of field: conv2d_params::weight_pitch"]
        [::std::mem::offset_of!(conv2d_params, weight_pitch) - 60usize];
    ["Offset of field: conv2d_params::height"][::std::mem::offset_of!(conv2d_params, height) - 64usize];
    ["Offset of field: conv2d_params::width"][::std::mem::offset_of!(conv2d_params, width) - 68usize];
    ["Offset of field: conv2d_params::channels"][::std::mem::offset_of!(conv2d_params, channels) - 72usize];
    ["Offset of field: conv2d_params::out_channels"]
        [::std::mem::offset_of!(conv2d_params, out_channels) - 76usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct count_nonfinite_params {
    pub x: u64,
    pub counter: u64,
    pub index: u64,
    pub count: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of count_nonfinite_params"][::std::mem::size_of::<count_nonfinite_params>() - 32usize];
    ["Alignment of count_nonfinite_params"][::std::mem::align_of::<count_nonfinite_params>() - 8usize];
    ["Offset of field: count_nonfinite_params::x"]
        [::std::mem::offset_of!(count_nonfinite_params, x) - 0usize];
    ["Offset of field: count_nonfinite_params::counter"]
        [::std::mem::offset_of!(count_nonfinite_params, counter) - 8usize];
    ["Offset of field: count_nonfinite_params::index"]
        [::std::mem::offset_of!(count_nonfinite_params, index) - 16usize];
    ["Offset of field: count_nonfinite_params::count"]
        [::std::mem::offset_of!(count_nonfinite_params, count) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct euler_step_params {
    pub latents: u64,
    pub velocity: u64,
    pub negative: u64,
    pub latents_bf16: u64,
    pub dt: u64,
    pub step: u64,
    pub true_cfg_scale: u64,
    pub count: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of euler_step_params"][::std::mem::size_of::<euler_step_params>() - 64usize];
    ["Alignment of euler_step_params"][::std::mem::align_of::<euler_step_params>() - 8usize];
    ["Offset of field: euler_step_params::latents"]
        [::std::mem::offset_of!(euler_step_params, latents) - 0usize];
    ["Offset of field: euler_step_params::velocity"]
        [::std::mem::offset_of!(euler_step_params, velocity) - 8usize];
    ["Offset of field: euler_step_params::negative"]
        [::std::mem::offset_of!(euler_step_params, negative) - 16usize];
    ["Offset of field: euler_step_params::latents_bf16"]
        [::std::mem::offset_of!(euler_step_params, latents_bf16) - 24usize];
    ["Offset of field: euler_step_params::dt"][::std::mem::offset_of!(euler_step_params, dt) - 32usize];
    ["Offset of field: euler_step_params::step"][::std::mem::offset_of!(euler_step_params, step) - 40usize];
    ["Offset of field: euler_step_params::true_cfg_scale"]
        [::std::mem::offset_of!(euler_step_params, true_cfg_scale) - 48usize];
    ["Offset of field: euler_step_params::count"][::std::mem::offset_of!(euler_step_params, count) - 56usize];
};
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct gemm_sm90_params {
    pub x: [tensor_map; 2usize],
    pub t: [tensor_map; 2usize],
    pub gemm: gemm_params,
    pub unused: [u32; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemm_sm90_params"][::std::mem::size_of::<gemm_sm90_params>() - 1152usize];
    ["Alignment of gemm_sm90_params"][::std::mem::align_of::<gemm_sm90_params>() - 64usize];
    ["Offset of field: gemm_sm90_params::x"][::std::mem::offset_of!(gemm_sm90_params, x) - 0usize];
    ["Offset of field: gemm_sm90_params::t"][::std::mem::offset_of!(gemm_sm90_params, t) - 256usize];
    ["Offset of field: gemm_sm90_params::gemm"][::std::mem::offset_of!(gemm_sm90_params, gemm) - 512usize];
    ["Offset of field: gemm_sm90_params::unused"]
        [::std::mem::offset_of!(gemm_sm90_params, unused) - 1144usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct gemv_params {
    pub x: u64,
    pub weight: u64,
    pub codes: u64,
    pub absmax: u64,
    pub bias: u64,
    pub add: u64,
    pub out: u64,
    pub low_t: u64,
    pub low_up: u64,
    pub pitch: i64,
    pub weight_pitch: i64,
    pub add_pitch: i64,
    pub out_pitch: i64,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub act_in: i32,
    pub act_out: i32,
    pub x_vectors: i32,
    pub weight_vectors: i32,
    pub low_rank: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of gemv_params"][::std::mem::size_of::<gemv_params>() - 136usize];
    ["Alignment of gemv_params"][::std::mem::align_of::<gemv_params>() - 8usize];
    ["Offset of field: gemv_params::x"][::std::mem::offset_of!(gemv_params, x) - 0usize];
    ["Offset of field: gemv_params::weight"][::std::mem::offset_of!(gemv_params, weight) - 8usize];
    ["Offset of field: gemv_params::codes"][::std::mem::offset_of!(gemv_params, codes) - 16usize];
    ["Offset of field: gemv_params::absmax"][::std::mem::offset_of!(gemv_params, absmax) - 24usize];
    ["Offset of field: gemv_params::bias"][::std::mem::offset_of!(gemv_params, bias) - 32usize];
    ["Offset of field: gemv_params::add"][::std::mem::offset_of!(gemv_params, add) - 40usize];
    ["Offset of field: gemv_params::out"][::std::mem::offset_of!(gemv_params, out) - 48usize];
    ["Offset of field: gemv_params::low_t"][::std::mem::offset_of!(gemv_params, low_t) - 56usize];
    ["Offset of field: gemv_params::low_up"][::std::mem::offset_of!(gemv_params, low_up) - 64usize];
    ["Offset of field: gemv_params::pitch"][::std::mem::offset_of!(gemv_params, pitch) - 72usize];
    ["Offset of field: gemv_params::weight_pitch"]
        [::std::mem::offset_of!(gemv_params, weight_pitch) - 80usize];
    ["Offset of field: gemv_params::add_pitch"][::std::mem::offset_of!(gemv_params, add_pitch) - 88usize];
    ["Offset of field: gemv_params::out_pitch"][::std::mem::offset_of!(gemv_params, out_pitch) - 96usize];
    ["Offset of field: gemv_params::m"][::std::mem::offset_of!(gemv_params, m) - 104usize];
    ["Offset of field: gemv_params::n"][::std::mem::offset_of!(gemv_params, n) - 108usize];
    ["Offset of field: gemv_params::k"][::std::mem::offset_of!(gemv_params, k) - 112usize];
    ["Offset of field: gemv_params::act_in"][::std::mem::offset_of!(gemv_params, act_in) - 116usize];
    ["Offset of field: gemv_params::act_out"][::std::mem::offset_of!(gemv_params, act_out) - 120usize];
    ["Offset of field: gemv_params::x_vectors"][::std::mem::offset_of!(gemv_params, x_vectors) - 124usize];
    ["Offset of field: gemv_params::weight_vectors"]
        [::std::mem::offset_of!(gemv_params, weight_vectors) - 128usize];
    ["Offset of field: gemv_params::low_rank"][::std::mem::offset_of!(gemv_params, low_rank) - 132usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct group_norm_silu_params {
    pub x: u64,
    pub weight: u64,
    pub bias: u64,
    pub out: u64,
    pub partials: u64,
    pub norm: u64,
    pub pixels: i64,
    pub pitch: i64,
    pub out_pitch: i64,
    pub num_chunks: i32,
    pub channels: i32,
    pub groups: i32,
    pub silu: i32,
    pub eps: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of group_norm_silu_params"][::std::mem::size_of::<group_norm_silu_params>() - 96usize];
    ["Alignment of group_norm_silu_params"][::std::mem::align_of::<group_norm_silu_params>() - 8usize];
    ["Offset of field: group_norm_silu_params::x"]
        [::std::mem::offset_of!(group_norm_silu_params, x) - 0usize];
    ["Offset of field: group_norm_silu_params::weight"]
        [::std::mem::offset_of!(group_norm_silu_params, weight) - 8usize];
    ["Offset of field: group_norm_silu_params::bias"]
        [::std::mem::offset_of!(group_norm_silu_params, bias) - 16usize];
    ["Offset of field: group_norm_silu_params::out"]
        [::std::mem::offset_of!(group_norm_silu_params, out) - 24usize];
    ["Offset of field: group_norm_silu_params::partials"]
        [::std::mem::offset_of!(group_norm_silu_params, partials) - 32usize];
    ["Offset of field: group_norm_silu_params::norm"]
        [::std::mem::offset_of!(group_norm_silu_params, norm) - 40usize];
    ["Offset of field: group_norm_silu_params::pixels"]
        [::std::mem::offset_of!(group_norm_silu_params, pixels) - 48usize];
    ["Offset of field: group_norm_silu_params::pitch"]
        [::std::mem::offset_of!(group_norm_silu_params, pitch) - 56usize];
    ["Offset of field: group_norm_silu_params::out_pitch"]
        [::std::mem::offset_of!(group_norm_silu_params, out_pitch) - 64usize];
    ["Offset of field: group_norm_silu_params::num_chunks"]
        [::std::mem::offset_of!(group_norm_silu_params, num_chunks) - 72usize];
    ["Offset of field: group_norm_silu_params::channels"]
        [::std::mem::offset_of!(group_norm_silu_params, channels) - 76usize];
    ["Offset of field: group_norm_silu_params::groups"]
        [::std::mem::offset_of!(group_norm_silu_params, groups) - 80usize];
    ["Offset of field: group_norm_silu_params::silu"]
        [::std::mem::offset_of!(group_norm_silu_params, silu) - 84usize];
    ["Offset of field: group_norm_silu_params::eps"]
        [::std::mem::offset_of!(group_norm_silu_params, eps) - 88usize];
    ["Offset of field: group_norm_silu_params::reserved"]
        [::std::mem::offset_of!(group_norm_silu_params, reserved) - 92usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct head_norm_rope_params {
    pub x: u64,
    pub weight: u64,
    pub cos: u64,
    pub sin: u64,
    pub pitch: i64,
    pub rope_row: i64,
    pub rows: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of head_norm_rope_params"][::std::mem::size_of::<head_norm_rope_params>() - 64usize];
    ["Alignment of head_norm_rope_params"][::std::mem::align_of::<head_norm_rope_params>() - 8usize];
    ["Offset of field: head_norm_rope_params::x"][::std::mem::offset_of!(head_norm_rope_params, x) - 0usize];
    ["Offset of field: head_norm_rope_params::weight"]
        [::std::mem::offset_of!(head_norm_rope_params, weight) - 8usize];
    ["Offset of field: head_norm_rope_params::cos"]
        [::std::mem::offset_of!(head_norm_rope_params, cos) - 16usize];
    ["Offset of field: head_norm_rope_params::sin"]
        [::std::mem::offset_of!(head_norm_rope_params, sin) - 24usize];
    ["Offset of field: head_norm_rope_params::pitch"]
        [::std::mem::offset_of!(head_norm_rope_params, pitch) - 32usize];
    ["Offset of field: head_norm_rope_params::rope_row"]
        [::std::mem::offset_of!(head_norm_rope_params, rope_row) - 40usize];
    ["Offset of field: head_norm_rope_params::rows"]
        [::std::mem::offset_of!(head_norm_rope_params, rows) - 48usize];
    ["Offset of field: head_norm_rope_params::heads"]
        [::std::mem::offset_of!(head_norm_rope_params, heads) - 52usize];
    ["Offset of field: head_norm_rope_params::head_dim"]
        [::std::mem::offset_of!(head_norm_rope_params, head_dim) - 56usize];
    ["Offset of field: head_norm_rope_params::eps"]
        [::std::mem::offset_of!(head_norm_rope_params, eps) - 60usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct layer_norm_mod_params {
    pub x: u64,
    pub scale: u64,
    pub shift: u64,
    pub rest_scale: u64,
    pub rest_shift: u64,
    pub out_bf16: u64,
    pub out_f32: u64,
    pub pitch: i64,
    pub out_pitch: i64,
    pub rows: i32,
    pub width: i32,
    pub rest_row: i32,
    pub scale_offset: f32,
    pub eps: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of layer_norm_mod_params"][::std::mem::size_of::<layer_norm_mod_params>() - 96usize];
    ["Alignment of layer_norm_mod_params"][::std::mem::align_of::<layer_norm_mod_params>() - 8usize];
    ["Offset of field: layer_norm_mod_params::x"][::std::mem::offset_of!(layer_norm_mod_params, x) - 0usize];
    ["Offset of field: layer_norm_mod_params::scale"]
        [::std::mem::offset_of!(layer_norm_mod_params, scale) - 8usize];
    ["Offset of field: layer_norm_mod_params::shift"]
        [::std::mem::offset_of!(layer_norm_mod_params, shift) - 16usize];
    ["Offset of field: layer_norm_mod_params::rest_scale"]
        [::std::mem::offset_of!(layer_norm_mod_params, rest_scale) - 24usize];
    ["Offset of field: layer_norm_mod_params::rest_shift"]
        [::std::mem::offset_of!(layer_norm_mod_params, rest_shift) - 32usize];
    ["Offset of field: layer_norm_mod_params::out_bf16"]
        [::std::mem::offset_of!(layer_norm_mod_params, out_bf16) - 40usize];
    ["Offset of field: layer_norm_mod_params::out_f32"]
        [::std::mem::offset_of!(layer_norm_mod_params, out_f32) - 48usize];
    ["Offset of field: layer_norm_mod_params::pitch"]
        [::std::mem::offset_of!(layer_norm_mod_params, pitch) - 56usize];
    ["Offset of field: layer_norm_mod_params::out_pitch"]
        [::std::mem::offset_of!(layer_norm_mod_params, out_pitch) - 64usize];
    ["Offset of field: layer_norm_mod_params::rows"]
        [::std::mem::offset_of!(layer_norm_mod_params, rows) - 72usize];
    ["Offset of field: layer_norm_mod_params::width"]
        [::std::mem::offset_of!(layer_norm_mod_params, width) - 76usize];
    ["Offset of field: layer_norm_mod_params::rest_row"]
        [::std::mem::offset_of!(layer_norm_mod_params, rest_row) - 80usize];
    ["Offset of field: layer_norm_mod_params::scale_offset"]
        [::std::mem::offset_of!(layer_norm_mod_params, scale_offset) - 84usize];
    ["Offset of field: layer_norm_mod_params::eps"]
        [::std::mem::offset_of!(layer_norm_mod_params, eps) - 88usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct next_step_params {
    pub step: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of next_step_params"][::std::mem::size_of::<next_step_params>() - 8usize];
    ["Alignment of next_step_params"][::std::mem::align_of::<next_step_params>() - 8usize];
    ["Offset of field: next_step_params::step"][::std::mem::offset_of!(next_step_params, step) - 0usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct nf4_quantize_params {
    pub src_f32: u64,
    pub src_bf16: u64,
    pub src_codes: u64,
    pub src_absmax: u64,
    pub codes: u64,
    pub absmax: u64,
    pub nonfinite: u64,
    pub rows: i64,
    pub pitch: i64,
    pub k: i64,
    pub first_row: i64,
    pub padded_rows: i64,
    pub fragments: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nf4_quantize_params"][::std::mem::size_of::<nf4_quantize_params>() - 104usize];
    ["Alignment of nf4_quantize_params"][::std::mem::align_of::<nf4_quantize_params>() - 8usize];
    ["Offset of field: nf4_quantize_params::src_f32"]
        [::std::mem::offset_of!(nf4_quantize_params, src_f32) - 0usize];
    ["Offset of field: nf4_quantize_params::src_bf16"]
        [::std::mem::offset_of!(nf4_quantize_params, src_bf16) - 8usize];
    ["Offset of field: nf4_quantize_params::src_codes"]
        [::std::mem::offset_of!(nf4_quantize_params, src_codes) - 16usize];
    ["Offset of field: nf4_quantize_params::src_absmax"]
        [::std::mem::offset_of!(nf4_quantize_params, src_absmax) - 24usize];
    ["Offset of field: nf4_quantize_params::codes"]
        [::std::mem::offset_of!(nf4_quantize_params, codes) - 32usize];
    ["Offset of field: nf4_quantize_params::absmax"]
        [::std::mem::offset_of!(nf4_quantize_params, absmax) - 40usize];
    ["Offset of field: nf4_quantize_params::nonfinite"]
        [::std::mem::offset_of!(nf4_quantize_params, nonfinite) - 48usize];
    ["Offset of field: nf4_quantize_params::rows"]
        [::std::mem::offset_of!(nf4_quantize_params, rows) - 56usize];
    ["Offset of field: nf4_quantize_params::pitch"]
        [::std::mem::offset_of!(nf4_quantize_params, pitch) - 64usize];
    ["Offset of field: nf4_quantize_params::k"][::std::mem::offset_of!(nf4_quantize_params, k) - 72usize];
    ["Offset of field: nf4_quantize_params::first_row"]
        [::std::mem::offset_of!(nf4_quantize_params, first_row) - 80usize];
    ["Offset of field: nf4_quantize_params::padded_rows"]
        [::std::mem::offset_of!(nf4_quantize_params, padded_rows) - 88usize];
    ["Offset of field: nf4_quantize_params::fragments"]
        [::std::mem::offset_of!(nf4_quantize_params, fragments) - 96usize];
    ["Offset of field: nf4_quantize_params::reserved"]
        [::std::mem::offset_of!(nf4_quantize_params, reserved) - 100usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct probe_params {
    pub input: u64,
    pub output: u64,
    pub num_input_words: i32,
    pub num_ctas_y: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of probe_params"][::std::mem::size_of::<probe_params>() - 24usize];
    ["Alignment of probe_params"][::std::mem::align_of::<probe_params>() - 8usize];
    ["Offset of field: probe_params::input"][::std::mem::offset_of!(probe_params, input) - 0usize];
    ["Offset of field: probe_params::output"][::std::mem::offset_of!(probe_params, output) - 8usize];
    ["Offset of field: probe_params::num_input_words"]
        [::std::mem::offset_of!(probe_params, num_input_words) - 16usize];
    ["Offset of field: probe_params::num_ctas_y"][::std::mem::offset_of!(probe_params, num_ctas_y) - 20usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct probe_echo_params {
    pub first_words: u64,
    pub last_words: u64,
    pub a_i64: i64,
    pub a_u64: u64,
    pub a_i32: i32,
    pub a_u32: u32,
    pub a_f32: f32,
    pub an_array: [i32; 3usize],
    pub a_bf16: bf16_bits,
    pub a_i16: i16,
    pub a_u8: u8,
    pub a_i8: i8,
    pub a_u16: u16,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of probe_echo_params"][::std::mem::size_of::<probe_echo_params>() - 64usize];
    ["Alignment of probe_echo_params"][::std::mem::align_of::<probe_echo_params>() - 8usize];
    ["Offset of field: probe_echo_params::first_words"]
        [::std::mem::offset_of!(probe_echo_params, first_words) - 0usize];
    ["Offset of field: probe_echo_params::last_words"]
        [::std::mem::offset_of!(probe_echo_params, last_words) - 8usize];
    ["Offset of field: probe_echo_params::a_i64"][::std::mem::offset_of!(probe_echo_params, a_i64) - 16usize];
    ["Offset of field: probe_echo_params::a_u64"][::std::mem::offset_of!(probe_echo_params, a_u64) - 24usize];
    ["Offset of field: probe_echo_params::a_i32"][::std::mem::offset_of!(probe_echo_params, a_i32) - 32usize];
    ["Offset of field: probe_echo_params::a_u32"][::std::mem::offset_of!(probe_echo_params, a_u32) - 36usize];
    ["Offset of field: probe_echo_params::a_f32"][::std::mem::offset_of!(probe_echo_params, a_f32) - 40usize];
    ["Offset of field: probe_echo_params::an_array"]
        [::std::mem::offset_of!(probe_echo_params, an_array) - 44usize];
    ["Offset of field: probe_echo_params::a_bf16"]
        [::std::mem::offset_of!(probe_echo_params, a_bf16) - 56usize];
    ["Offset of field: probe_echo_params::a_i16"][::std::mem::offset_of!(probe_echo_params, a_i16) - 58usize];
    ["Offset of field: probe_echo_params::a_u8"][::std::mem::offset_of!(probe_echo_params, a_u8) - 60usize];
    ["Offset of field: probe_echo_params::a_i8"][::std::mem::offset_of!(probe_echo_params, a_i8) - 61usize];
    ["Offset of field: probe_echo_params::a_u16"][::std::mem::offset_of!(probe_echo_params, a_u16) - 62usize];
};
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct probe_sm90_params {
    pub maps: [tensor_map; 4usize],
    pub input: u64,
    pub output: u64,
    pub num_input_words: i32,
    pub fault: i32,
    pub unused: [u32; 10usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of probe_sm90_params"][::std::mem::size_of::<probe_sm90_params>() - 576usize];
    ["Alignment of probe_sm90_params"][::std::mem::align_of::<probe_sm90_params>() - 64usize];
    ["Offset of field: probe_sm90_params::maps"][::std::mem::offset_of!(probe_sm90_params, maps) - 0usize];
    ["Offset of field: probe_sm90_params::input"]
        [::std::mem::offset_of!(probe_sm90_params, input) - 512usize];
    ["Offset of field: probe_sm90_params::output"]
        [::std::mem::offset_of!(probe_sm90_params, output) - 520usize];
    ["Offset of field: probe_sm90_params::num_input_words"]
        [::std::mem::offset_of!(probe_sm90_params, num_input_words) - 528usize];
    ["Offset of field: probe_sm90_params::fault"]
        [::std::mem::offset_of!(probe_sm90_params, fault) - 532usize];
    ["Offset of field: probe_sm90_params::unused"]
        [::std::mem::offset_of!(probe_sm90_params, unused) - 536usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct rms_norm_params {
    pub x: u64,
    pub weight: u64,
    pub out_bf16: u64,
    pub out_f32: u64,
    pub pitch: i64,
    pub out_pitch: i64,
    pub rows: i32,
    pub width: i32,
    pub eps: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rms_norm_params"][::std::mem::size_of::<rms_norm_params>() - 64usize];
    ["Alignment of rms_norm_params"][::std::mem::align_of::<rms_norm_params>() - 8usize];
    ["Offset of field: rms_norm_params::x"][::std::mem::offset_of!(rms_norm_params, x) - 0usize];
    ["Offset of field: rms_norm_params::weight"][::std::mem::offset_of!(rms_norm_params, weight) - 8usize];
    ["Offset of field: rms_norm_params::out_bf16"]
        [::std::mem::offset_of!(rms_norm_params, out_bf16) - 16usize];
    ["Offset of field: rms_norm_params::out_f32"][::std::mem::offset_of!(rms_norm_params, out_f32) - 24usize];
    ["Offset of field: rms_norm_params::pitch"][::std::mem::offset_of!(rms_norm_params, pitch) - 32usize];
    ["Offset of field: rms_norm_params::out_pitch"]
        [::std::mem::offset_of!(rms_norm_params, out_pitch) - 40usize];
    ["Offset of field: rms_norm_params::rows"][::std::mem::offset_of!(rms_norm_params, rows) - 48usize];
    ["Offset of field: rms_norm_params::width"][::std::mem::offset_of!(rms_norm_params, width) - 52usize];
    ["Offset of field: rms_norm_params::eps"][::std::mem::offset_of!(rms_norm_params, eps) - 56usize];
    ["Offset of field: rms_norm_params::reserved"]
        [::std::mem::offset_of!(rms_norm_params, reserved) - 60usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct scale_rows_params {
    pub x: u64,
    pub scale: u64,
    pub pitch: i64,
    pub rows: i32,
    pub width: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of scale_rows_params"][::std::mem::size_of::<scale_rows_params>() - 32usize];
    ["Alignment of scale_rows_params"][::std::mem::align_of::<scale_rows_params>() - 8usize];
    ["Offset of field: scale_rows_params::x"][::std::mem::offset_of!(scale_rows_params, x) - 0usize];
    ["Offset of field: scale_rows_params::scale"][::std::mem::offset_of!(scale_rows_params, scale) - 8usize];
    ["Offset of field: scale_rows_params::pitch"][::std::mem::offset_of!(scale_rows_params, pitch) - 16usize];
    ["Offset of field: scale_rows_params::rows"][::std::mem::offset_of!(scale_rows_params, rows) - 24usize];
    ["Offset of field: scale_rows_params::width"][::std::mem::offset_of!(scale_rows_params, width) - 28usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct select_row_params {
    pub table: u64,
    pub index: u64,
    pub out: u64,
    pub pitch: i64,
    pub width: i64,
    pub rows: i32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of select_row_params"][::std::mem::size_of::<select_row_params>() - 48usize];
    ["Alignment of select_row_params"][::std::mem::align_of::<select_row_params>() - 8usize];
    ["Offset of field: select_row_params::table"][::std::mem::offset_of!(select_row_params, table) - 0usize];
    ["Offset of field: select_row_params::index"][::std::mem::offset_of!(select_row_params, index) - 8usize];
    ["Offset of field: select_row_params::out"][::std::mem::offset_of!(select_row_params, out) - 16usize];
    ["Offset of field: select_row_params::pitch"][::std::mem::offset_of!(select_row_params, pitch) - 24usize];
    ["Offset of field: select_row_params::width"][::std::mem::offset_of!(select_row_params, width) - 32usize];
    ["Offset of field: select_row_params::rows"][::std::mem::offset_of!(select_row_params, rows) - 40usize];
    ["Offset of field: select_row_params::reserved"]
        [::std::mem::offset_of!(select_row_params, reserved) - 44usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct to_rgb_params {
    pub x: u64,
    pub out: u64,
    pub pixels: i64,
    pub pitch: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of to_rgb_params"][::std::mem::size_of::<to_rgb_params>() - 32usize];
    ["Alignment of to_rgb_params"][::std::mem::align_of::<to_rgb_params>() - 8usize];
    ["Offset of field: to_rgb_params::x"][::std::mem::offset_of!(to_rgb_params, x) - 0usize];
    ["Offset of field: to_rgb_params::out"][::std::mem::offset_of!(to_rgb_params, out) - 8usize];
    ["Offset of field: to_rgb_params::pixels"][::std::mem::offset_of!(to_rgb_params, pixels) - 16usize];
    ["Offset of field: to_rgb_params::pitch"][::std::mem::offset_of!(to_rgb_params, pitch) - 24usize];
};
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct unpack_latents_params {
    pub tokens: u64,
    pub out: u64,
    pub num_pairs: i64,
    pub width: i32,
    pub channels: i32,
    pub pitch: i32,
    pub scaling: f32,
    pub shift: f32,
    pub reserved: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of unpack_latents_params"][::std::mem::size_of::<unpack_latents_params>() - 48usize];
    ["Alignment of unpack_latents_params"][::std::mem::align_of::<unpack_latents_params>() - 8usize];
    ["Offset of field: unpack_latents_params::tokens"]
        [::std::mem::offset_of!(unpack_latents_params, tokens) - 0usize];
    ["Offset of field: unpack_latents_params::out"]
        [::std::mem::offset_of!(unpack_latents_params, out) - 8usize];
    ["Offset of field: unpack_latents_params::num_pairs"]
        [::std::mem::offset_of!(unpack_latents_params, num_pairs) - 16usize];
    ["Offset of field: unpack_latents_params::width"]
        [::std::mem::offset_of!(unpack_latents_params, width) - 24usize];
    ["Offset of field: unpack_latents_params::channels"]
        [::std::mem::offset_of!(unpack_latents_params, channels) - 28usize];
    ["Offset of field: unpack_latents_params::pitch"]
        [::std::mem::offset_of!(unpack_latents_params, pitch) - 32usize];
    ["Offset of field: unpack_latents_params::scaling"]
        [::std::mem::offset_of!(unpack_latents_params, scaling) - 36usize];
    ["Offset of field: unpack_latents_params::shift"]
        [::std::mem::offset_of!(unpack_latents_params, shift) - 40usize];
    ["Offset of field: unpack_latents_params::reserved"]
        [::std::mem::offset_of!(unpack_latents_params, reserved) - 44usize];
};
