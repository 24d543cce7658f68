// scale_rows.h: contract of scale_rows.cu.
#ifndef SCHNELL_SCALE_ROWS_H
#define SCHNELL_SCALE_ROWS_H
#include "abi.h"

#define SCALE_ROWS_THREADS 256
#define SCALE_ROWS_SMEM_BYTES 32
#define SCALE_ROWS_WIDE_WIDTH 16384 // widest row of the wide entry: in registers

typedef struct scale_rows_params {
    DEV(bf16_bits) x;     // [rows, width], row pitch `pitch`, rows 16-byte aligned; afterwards fp16
    DEV(float) scale;     // [rows]: what the fp16 numbers are to be multiplied by
    int64_t pitch;        // elements; a multiple of 8
    int32_t rows;
    int32_t width;        // a multiple of 8
} scale_rows_params;

#endif
