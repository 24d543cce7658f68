// slow.cu: a matrix product's main loop written as it should be, and with three mistakes that a model of an SM has to see. Compiled by
// `scripts/sass --self-test` alone; nothing runs it.
//
// Work    a CTA of 4 warps, each 32 x 32 of the output as 2 x 4 tiles m16n8k16; k in steps of 64 through a ring of stages. Meant to be
//         alone on its SM: a second CTA would hide much of what the first does wrong.
// Slow    conflicts: an operand is read word by word at a stride of a row, every lane in the same bank
//         one_stage: a k-step is fetched when the one before is done with
//         unhidden:  a k-step is loaded into registers and stored to shared memory when it is needed, nothing to do meanwhile
#include <cstdint>

constexpr int BLOCK = 64, BLOCK_K = 64, CHUNKS = BLOCK_K / 8, THREADS = 128;
constexpr int MT = 2, NT = 4, EACH = BLOCK * CHUNKS / THREADS;

struct Stage {
    uint4 a[BLOCK * CHUNKS], b[BLOCK * CHUNKS];
};
extern __shared__ uint4 shared[];

__device__ uint32_t address_of(const void *p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ int swizzle(int row, int chunk) { return row * CHUNKS + (chunk ^ (row & 7)); }

__device__ void copy(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address_of(to)), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ void ldmatrix(uint32_t (&r)[4], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address_of(p))
                 : "memory");
}
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Words between neighboring lanes of the reads of `CONFLICTS`: scripts/machine_code/judge.py counts the banks that they meet in.
#define SLOW_STRIDE_WORDS 32

template <bool CONFLICTS> __device__ void multiply(float (&acc)[MT][NT][4], const Stage &stage, int row_a, int row_b) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k16 = 0; k16 < BLOCK_K / 16; ++k16) {
        uint32_t a[MT][4], b[NT / 2][4];
#pragma unroll
        for (int i = 0; i < MT; ++i) {
            if (CONFLICTS) {
                const uint32_t *words = reinterpret_cast<const uint32_t *>(stage.a) + lane * SLOW_STRIDE_WORDS + row_a;
#pragma unroll
                for (int part = 0; part < 4; ++part) a[i][part] = words[2 * (8 * k16 + 4 * i + part)]; // no two of them in one load
            } else {
                ldmatrix(a[i], &stage.a[swizzle(row_a + 16 * i + lane % 16, 2 * k16 + lane / 16)]);
            }
        }
#pragma unroll
        for (int j = 0; j < NT / 2; ++j) ldmatrix(b[j], &stage.b[swizzle(row_b + 16 * j + lane % 16, 2 * k16 + lane / 16)]);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
#pragma unroll
            for (int j = 0; j < NT; ++j) mma(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
}

enum class Way { GOOD, CONFLICTS, ONE_STAGE, UNHIDDEN };

template <Way WAY> __device__ void product(const uint4 *a, const uint4 *b, float *out, int pitch, uint32_t num_k) {
    constexpr int STAGES = WAY == Way::GOOD || WAY == Way::CONFLICTS ? 4 : 1;
    Stage *stages = reinterpret_cast<Stage *>(shared);
    const int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, warp = threadIdx.x / 32;
    a += (blockIdx.x * BLOCK + row) * pitch + chunk, b += (blockIdx.y * BLOCK + row) * pitch + chunk;
    const int step = 16 * pitch;
    float acc[MT][NT][4] = {};

    auto fetch = [&](uint32_t kb) {
        Stage &stage = stages[kb % STAGES];
        if (kb < num_k) {
            if constexpr (WAY == Way::UNHIDDEN) {
                uint4 held[2 * EACH];
#pragma unroll
                for (int i = 0; i < EACH; ++i) held[i] = a[i * step], held[EACH + i] = b[i * step];
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    stage.a[swizzle(row + 16 * i, chunk)] = held[i];
                    stage.b[swizzle(row + 16 * i, chunk)] = held[EACH + i];
                }
            } else {
#pragma unroll
                for (int i = 0; i < EACH; ++i) {
                    copy(&stage.a[swizzle(row + 16 * i, chunk)], a + i * step);
                    copy(&stage.b[swizzle(row + 16 * i, chunk)], b + i * step);
                }
            }
            a += CHUNKS, b += CHUNKS;
        }
        commit();
    };

    for (uint32_t kb = 0; kb < STAGES - 1; ++kb) fetch(kb);
#pragma unroll 1
    for (uint32_t kb = 0; kb < num_k; ++kb) {
        if constexpr (STAGES == 1) {
            __syncthreads();
            fetch(kb);
            wait<0>();
            __syncthreads();
        } else {
            wait<STAGES - 2>();
            __syncthreads();
            fetch(kb + STAGES - 1);
        }
        multiply<WAY == Way::CONFLICTS>(acc, stages[kb % STAGES], warp / 2 * 32, warp % 2 * 32);
    }
#pragma unroll
    for (int i = 0; i < MT * NT; ++i) {
        float4 *to = reinterpret_cast<float4 *>(out) + (blockIdx.x * MT * NT + i) * THREADS + threadIdx.x;
        float (&v)[4] = acc[i / NT][i % NT];
        *to = float4{v[0], v[1], v[2], v[3]};
    }
}

#define SLOW(entry, way)                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) entry(const uint4 *a, const uint4 *b, float *out, int pitch, uint32_t num_k) { \
        product<Way::way>(a, b, out, pitch, num_k);                                                                                      \
    }
SLOW(slow_not, GOOD)
SLOW(slow_conflicts, CONFLICTS)
SLOW(slow_one_stage, ONE_STAGE)
SLOW(slow_unhidden, UNHIDDEN)
