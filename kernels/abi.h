// abi.h: what every kernel header starts from. Plain C, so that bindgen can read it.
//
// A params struct holds fixed-width integers, floats and DEV(T) pointers, ordered so that the compiler inserts no
// padding. DEV(T) is a device pointer for nvcc and for the emulator build, and an integer for Rust: a device address
// is nothing that the host may follow.
#ifndef SCHNELL_ABI_H
#define SCHNELL_ABI_H

#include <stdint.h>

#ifdef SCHNELL_BINDGEN
#define DEV(T) uint64_t
#else
#define DEV(T) T *
#endif

// bf16 as its bits: the high half of an IEEE float32.
typedef uint16_t bf16_bits;

// A matrix in device memory and the box of it that one tma_load_2d fetches, in the machine's own encoding: on a GPU the
// driver's CUtensorMap. `Footprint::tensor_map` makes it; a kernel passes on its address within the params struct.
typedef struct __attribute__((aligned(64))) tensor_map {
    uint64_t opaque[16];
} tensor_map;

#endif
