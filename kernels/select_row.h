// select_row.h: contract of select_row.cu.
#ifndef SCHNELL_SELECT_ROW_H
#define SCHNELL_SELECT_ROW_H
#include "abi.h"

#define SELECT_ROW_THREADS 256
#define SELECT_ROW_SMEM_BYTES 0

typedef struct select_row_params {
    DEV(const float) table;    // [rows, pitch]
    DEV(const int32_t) index;  // [1]: which row; brought into 0 .. rows - 1
    DEV(float) out;            // [width]
    int64_t pitch, width;
    int32_t rows;
    int32_t reserved;
} select_row_params;

#endif
