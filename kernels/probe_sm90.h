// probe_sm90.h: contract of probe_sm90.cu.
#ifndef SCHNELL_PROBE_SM90_H
#define SCHNELL_PROBE_SM90_H
#include "abi.h"

// Three warpgroups: a producer and two consumers.
#define PROBE_SM90_THREADS 384
// Two stages of 128 rows of A and 256 of B, 128 bytes each, and barriers.
#define PROBE_SM90_SMEM_BYTES 99328

#define PROBE_SM90_BARRIER_ROUNDS 5
// Words per thread and round.
#define PROBE_SM90_BARRIER_WORDS 2

// The matrix that copies read, as bf16 and as bytes: the last bytes of each row belong to no element.
#define PROBE_SM90_COPY_ROWS 40
#define PROBE_SM90_COPY_PITCH_BYTES 224
#define PROBE_SM90_COPY_WIDTH_BF16 104
#define PROBE_SM90_COPY_WIDTH_U8 203
// The box: whole rows of the swizzle.
#define PROBE_SM90_BOX_ROWS 16
#define PROBE_SM90_BOX_ROW_BYTES 128
// Boxes per map, four maps, and plain ranges.
#define PROBE_SM90_BOXES 6
#define PROBE_SM90_MAPS 4
#define PROBE_SM90_RANGES 3

// Rows of A: 64 per consumer.
#define PROBE_SM90_M 128
// Values of k per stage.
#define PROBE_SM90_BLOCK_K 64
#define PROBE_SM90_STAGES 2
#define PROBE_SM90_K_BLOCKS 6
// Rounds of the products of what threads have stored.
#define PROBE_SM90_STORED_ROUNDS 2

// What a kernel must not do, see src/kernels/probe_sm90.rs.
#define PROBE_SM90_FAULT_UNINITIALIZED 0
#define PROBE_SM90_FAULT_NO_INIT_FENCE 1
#define PROBE_SM90_FAULT_OVER_ARRIVAL 2
#define PROBE_SM90_FAULT_LATE_FOR_A_PHASE 3
#define PROBE_SM90_FAULT_TOO_MANY_BYTES_EXPECTED 4
#define PROBE_SM90_FAULT_TOO_FEW_BYTES_EXPECTED 5
#define PROBE_SM90_FAULT_NO_COPY_WAIT 6
#define PROBE_SM90_FAULT_EARLY_RELEASE 7
#define PROBE_SM90_FAULT_FAR_COPY 8
#define PROBE_SM90_FAULT_MISALIGNED_COPY 9
#define PROBE_SM90_FAULT_MISALIGNED_COLUMN 10
#define PROBE_SM90_FAULT_COPY_LEFT 11
#define PROBE_SM90_FAULT_NO_PROXY_FENCE 12
#define PROBE_SM90_FAULT_ONE_PROXY_FENCE 13
#define PROBE_SM90_FAULT_NO_WGMMA_FENCE 14
#define PROBE_SM90_FAULT_LATE_WRITE 15
#define PROBE_SM90_FAULT_NO_WGMMA_WAIT 16
#define PROBE_SM90_FAULT_NO_COMMIT 17
#define PROBE_SM90_FAULT_ACC_TOUCHED 18
#define PROBE_SM90_FAULT_A_TOUCHED 19
#define PROBE_SM90_FAULT_RETURN_IN_FLIGHT 20
#define PROBE_SM90_FAULT_DIVERGENT 21
#define PROBE_SM90_FAULT_BAD_DESCRIPTOR 22

typedef struct probe_sm90_params {
    // Copies: bf16 with swizzle, without, bytes with, without. Products: A and B, with swizzle.
    tensor_map maps[PROBE_SM90_MAPS];
    DEV(const uint32_t) input;     // [num_input_words]
    DEV(uint32_t) output;          // [num_output_words]
    int32_t num_input_words;
    int32_t fault;
    uint32_t unused[10];           // up to a multiple of the maps' alignment
} probe_sm90_params;

#endif
