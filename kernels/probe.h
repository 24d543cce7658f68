// probe.h: contract of probe.cu.
#ifndef SCHNELL_PROBE_H
#define SCHNELL_PROBE_H
#include "abi.h"

#define PROBE_THREADS 64
#define PROBE_SMEM_BYTES 8192

// 32-bit words that each thread (of `math`: each element) writes.
#define PROBE_INDEX_WORDS 8
#define PROBE_WARP_WORDS 21
#define PROBE_LDMATRIX_TILES 3
#define PROBE_MATH_WORDS 24
#define PROBE_ECHO_WORDS 12
// cp.async of 4, 8 and 16 bytes with every number of valid bytes: 5 + 9 + 17 cases; 16 bytes or none: 2.
#define PROBE_COPY_CASES 33
// Groups that each ring of 2, 3, 4 and 5 slots carries.
#define PROBE_PIPELINE_GROUPS 10
#define PROBE_PIPELINE_RINGS 4
#define PROBE_MMA_STEPS 2

typedef struct probe_params {
    DEV(const uint32_t) input;     // [num_input_words]
    DEV(uint32_t) output;          // [num_output_words]
    int32_t num_input_words;
    int32_t num_ctas_y;
} probe_params;

// One field of every type that a params struct may hold.
typedef struct probe_echo_params {
    DEV(uint32_t) first_words;     // [PROBE_ECHO_WORDS / 2]
    DEV(uint32_t) last_words;      // [PROBE_ECHO_WORDS / 2]
    int64_t a_i64;
    uint64_t a_u64;
    int32_t a_i32;
    uint32_t a_u32;
    float a_f32;
    int32_t an_array[3];
    bf16_bits a_bf16;
    int16_t a_i16;
    uint8_t a_u8;
    int8_t a_i8;
    uint16_t a_u16;
} probe_echo_params;

#endif
