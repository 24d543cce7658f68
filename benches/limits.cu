// limits: what one Hopper GPU can do at most, unit by unit: the constants that predictions and rooflines stand on.
//
//     scripts/gpu-check run limits            packed as target/gpu-check/limits: a line of JSON per row on stdout, the
//                                             table on stderr
//
// Work    every row is one kernel that does one thing as fast as it can on all SMs, on random numbers (power, and so the
//         clock, depends on them), timed by CUDA events; the SM clock is read beside it (clock64 over globaltimer), so that
//         rates per clock are known whatever the clock was.
// Rows    tensor cores by mma.sync and by wgmma, A from shared memory or registers, N 64 to 256; the same while bulk
//         copies fill shared memory, or while warps read it; L2 to SM by loads, bulk copies, and bulk copies that
//         2 or 4 CTAs of a cluster share; DRAM; exp2; launches one after the other, in a stream and in a graph.
// Source  instructions: kernels/gpu_sm90.cuh, whose primitives are used here; multicast: PTX ISA, cp.async.bulk.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include <cuda_runtime.h>

#include "gpu_sm90.cuh"

namespace {

void check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "limits: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(6);
}
#define CHECK(call) check(call, #call)

constexpr int STAGE_BYTES = 16384;
constexpr int STAGES = 12;
constexpr int SINK_BYTES = 4096;
constexpr int FILL_STAGES = 5; // beside operands
constexpr int SMEM_BYTES = STAGES * STAGE_BYTES + 1024 + 256;

struct Clock {
    unsigned long long cycles, ns;
};

// Every kernel's: what it reads, how often it turns, where thread 0 of CTA 0 leaves its clocks, where results go that are
// never wanted (but the compiler does not know).
struct Params {
    const uint4 *source;
    size_t source_bytes;
    int turns;
    Clock *clock;
    float *sink;
};

__device__ unsigned long long cycles_now() {
    unsigned long long cycles;
    asm volatile("mov.u64 %0, %clock64;" : "=l"(cycles));
    return cycles;
}
__device__ unsigned long long global_ns() {
    unsigned long long ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
    return ns;
}
struct Stopwatch {
    Clock *clock;
    unsigned long long cycles, ns;
    __device__ explicit Stopwatch(Clock *c) : clock(c), cycles(cycles_now()), ns(global_ns()) {}
    __device__ void stop() const {
        if (blockIdx.x == 0 && threadIdx.x == 0) *clock = {cycles_now() - cycles, global_ns() - ns};
    }
};

__device__ unsigned char *aligned_smem() {
    extern __shared__ unsigned char raw[];
    return raw + (-(uint64_t)__cvta_generic_to_shared(raw) & 1023);
}
__device__ void fill_smem(unsigned char *smem, const Params &p, int bytes) {
    auto *to = reinterpret_cast<uint4 *>(smem);
    for (int i = threadIdx.x; i < bytes / 16; i += blockDim.x) to[i] = p.source[(i + blockIdx.x * 977) % (p.source_bytes / 16)];
    gpu::fence_proxy_async();
    __syncthreads();
}

// ------------------------------------------------------------------------------------------ tensor cores

// 16 independent accumulator tiles per warp.
__global__ __launch_bounds__(256, 1) void mma_sync(Params p) {
    uint32_t a[4], b[16][2];
    float acc[16][4] = {};
    const uint4 seed = p.source[blockIdx.x * 256 + threadIdx.x];
    a[0] = seed.x, a[1] = seed.y, a[2] = seed.z, a[3] = seed.w;
    for (int j = 0; j < 16; ++j) {
        const uint4 more = p.source[(j + 1) * 4096 + threadIdx.x];
        b[j][0] = more.x, b[j][1] = more.y;
    }
    __syncthreads();
    const Stopwatch watch(p.clock);
#pragma unroll 1
    for (int turn = 0; turn < p.turns; ++turn) {
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                         : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[j][0]), "r"(b[j][1]));
        }
    }
    watch.stop();
    float sum = 0;
    for (auto &tile : acc) sum += tile[0] + tile[1] + tile[2] + tile[3];
    if (sum == 1.2345f) *p.sink = sum;
}

enum class Beside { Nothing, BulkFill, Loads };

// Two warpgroups of consumers; a third fills shared memory, or reads it, or does nothing. A turn is k = 64.
template <int N, bool A_IN_REGISTERS, Beside BESIDE> __global__ __launch_bounds__(384, 1) void wgmma_loop(Params p) {
    unsigned char *smem = aligned_smem();
    __shared__ gpu::mbarrier full[FILL_STAGES];
    __shared__ volatile int is_over;
    // A: 2 x 64 rows of 128 bytes; B: N rows; two stages each, and those that copies fill.
    constexpr int A_BYTES = 64 * 128, B_BYTES = N * 128;
    fill_smem(smem, p, 4 * A_BYTES + 2 * B_BYTES);
    unsigned char *const spare = smem + 4 * A_BYTES + 2 * B_BYTES;
    if (threadIdx.x == 0) {
        for (gpu::mbarrier &barrier : full) gpu::mbarrier_init(&barrier, 1);
        gpu::fence_mbarrier_init();
        is_over = 0;
    }
    __syncthreads();
    const int group = threadIdx.x / 128;
    if (group == 2) {
        gpu::release_registers<40>();
        unsigned long long moved = 0;
        if (BESIDE == Beside::BulkFill && threadIdx.x == 256) {
            const size_t chunks = p.source_bytes / STAGE_BYTES;
            size_t chunk = blockIdx.x * 37 % chunks;
            int i = 0;
            for (; !is_over; ++i) {
                const int s = i % FILL_STAGES;
                if (i >= FILL_STAGES) gpu::mbarrier_wait(&full[s], (i / FILL_STAGES - 1) & 1);
                gpu::mbarrier_arrive_expect_tx(&full[s], STAGE_BYTES);
                gpu::bulk_load(spare + s * STAGE_BYTES, (const unsigned char *)p.source + chunk * STAGE_BYTES, STAGE_BYTES, &full[s]);
                chunk = chunk + 1 == chunks ? 0 : chunk + 1;
                moved += STAGE_BYTES;
            }
            // The last copies must land before the CTA ends.
            for (int j = gpu::max(i - FILL_STAGES, 0); j < i; ++j) gpu::mbarrier_wait(&full[j % FILL_STAGES], (j / FILL_STAGES) & 1);
            p.sink[1 + blockIdx.x] = (float)moved;
        }
        if (BESIDE == Beside::Loads) {
            const uint32_t from = gpu::smem_address(smem) + (threadIdx.x - 256) * 16;
            uint32_t sum = 0;
            while (!is_over) {
                uint4 v[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                                 : "=r"(v[i].x), "=r"(v[i].y), "=r"(v[i].z), "=r"(v[i].w)
                                 : "r"(from + i * 2048));
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) sum += v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
                moved += 4 * 16 * 128;
            }
            // Warps take different shares.
            if (threadIdx.x % 32 == 0) atomicAdd(&p.sink[1 + blockIdx.x], (float)(moved / 4));
            if (sum == 12345) *p.sink = 1;
        }
        return;
    }
    gpu::claim_registers<232>();
    float acc[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[i] = 0;
    uint32_t a_frag[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) a_frag[i / 4][i % 4] = reinterpret_cast<uint32_t *>(smem)[threadIdx.x * 16 + i];
    const uint64_t a0 = gpu::smem_descriptor(smem + group * A_BYTES), b0 = gpu::smem_descriptor(smem + 4 * A_BYTES);
    const Stopwatch watch(p.clock);
#pragma unroll 1
    for (int turn = 0; turn < p.turns; ++turn) {
        const uint64_t stage = turn & 1;
        gpu::wgmma_fence(acc, a_frag[0], a_frag[1], a_frag[2], a_frag[3]);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const uint64_t b = gpu::next_k16(b0 + stage * (B_BYTES / 16), k);
            if constexpr (A_IN_REGISTERS) gpu::wgmma_m64k16<N>(acc, a_frag[k], b, true);
            else gpu::wgmma_m64k16<N>(acc, gpu::next_k16(a0 + stage * (2 * A_BYTES / 16), k), b, true);
        }
        gpu::wgmma_commit();
        gpu::wgmma_wait<0>(acc, a_frag[0], a_frag[1], a_frag[2], a_frag[3]);
    }
    watch.stop();
    asm volatile("bar.sync 1, 256;");
    if (threadIdx.x == 0) is_over = 1;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) sum += acc[i];
    if (sum == 1.2345f) *p.sink = sum;
}

// ------------------------------------------------------------------------------------------ memory

__global__ __launch_bounds__(1024, 1) void read_global(Params p) {
    const size_t n = p.source_bytes / 16, step = (size_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;
    const Stopwatch watch(p.clock);
#pragma unroll 1
    for (int turn = 0; turn < p.turns; ++turn) {
        size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
#pragma unroll 1
        for (; i + 3 * step < n; i += 4 * step) {
            uint4 v[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint4 *at = p.source + i + j * step;
                asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w) : "l"(at));
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
        }
    }
    watch.stop();
    if (sum == 12345) *p.sink = 1;
}

// 16 KB at a time into a ring of DEPTH; with CLUSTER > 1 each CTA of a cluster fetches its share of every stage for all.
template <int CLUSTER, int DEPTH> __global__ __launch_bounds__(128, 1) void bulk_read(Params p) {
    unsigned char *smem = aligned_smem();
    __shared__ gpu::mbarrier full[DEPTH], empty[DEPTH];
    const int rank = CLUSTER == 1 ? 0 : blockIdx.x % CLUSTER;
    if (threadIdx.x == 0) {
        for (int s = 0; s < DEPTH; ++s) gpu::mbarrier_init(&full[s], 1), gpu::mbarrier_init(&empty[s], CLUSTER);
        gpu::fence_mbarrier_init();
    }
    if (CLUSTER > 1) asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    else __syncthreads();
    const Stopwatch watch(p.clock);
    constexpr int SHARE = STAGE_BYTES / CLUSTER;
    if (threadIdx.x == 0) {
        const size_t chunks = p.source_bytes / STAGE_BYTES;
        size_t chunk = (blockIdx.x / CLUSTER) * 61 % chunks;
        for (int i = 0; i < p.turns; ++i) {
            const int s = i % DEPTH;
            if (i >= DEPTH) gpu::mbarrier_wait(&empty[s], (i / DEPTH - 1) & 1);
            gpu::mbarrier_arrive_expect_tx(&full[s], STAGE_BYTES);
            const unsigned char *src = (const unsigned char *)p.source + chunk * STAGE_BYTES + rank * SHARE;
            unsigned char *dst = smem + s * STAGE_BYTES + rank * SHARE;
            if (CLUSTER == 1) gpu::bulk_load(dst, src, SHARE, &full[s]);
            else
                asm volatile(
                    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
                        gpu::smem_address(dst)),
                    "l"(__cvta_generic_to_global(src)), "r"(SHARE), "r"(gpu::smem_address(&full[s])), "h"((uint16_t)((1 << CLUSTER) - 1))
                    : "memory");
            chunk = chunk + 1 == chunks ? 0 : chunk + 1;
        }
    } else if (threadIdx.x >= 32 && threadIdx.x < 32 + CLUSTER) {
        // Each of these tells one CTA of the cluster that this one has done with a stage.
        for (int i = 0; i < p.turns; ++i) {
            const int s = i % DEPTH;
            gpu::mbarrier_wait(&full[s], (i / DEPTH) & 1);
            if (CLUSTER == 1) gpu::mbarrier_arrive(&empty[s]);
            else
                asm volatile("{\n.reg .b32 other;\nmapa.shared::cluster.u32 other, %0, "
                             "%1;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [other];\n}" ::"r"(gpu::smem_address(&empty[s])),
                             "r"((int)threadIdx.x - 32)
                             : "memory");
        }
    }
    if (CLUSTER > 1) asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    else __syncthreads();
    watch.stop();
}

__global__ __launch_bounds__(1024, 1) void copy_global(Params p, uint4 *to) {
    const size_t n = p.source_bytes / 16, step = (size_t)gridDim.x * blockDim.x;
    const Stopwatch watch(p.clock);
#pragma unroll 1
    for (int turn = 0; turn < p.turns; ++turn) {
#pragma unroll 4
        for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) to[i] = p.source[i];
    }
    watch.stop();
}

__global__ __launch_bounds__(1024, 1) void exp2s(Params p) {
    float x[8];
    for (int i = 0; i < 8; ++i) x[i] = -(float)(threadIdx.x + i) * 1e-3f;
    const Stopwatch watch(p.clock);
#pragma unroll 1
    for (int turn = 0; turn < p.turns; ++turn) {
#pragma unroll
        for (float &v : x) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(v));
    }
    watch.stop();
    float sum = 0;
    for (float v : x) sum += v;
    if (sum == 1.2345f) *p.sink = sum;
}

__global__ void nothing(Params) {}

// ------------------------------------------------------------------------------------------ host

struct Bench {
    int num_sms;
    Params params;
    Clock *clock;
    std::vector<float> sink;

    void row(const char *name, double value, const char *unit, double per_clock, const char *per_unit, double ghz) {
        std::fprintf(stderr, "%-44s %10.2f %-9s", name, value, unit);
        if (per_clock > 0) std::fprintf(stderr, " %9.2f %-12s", per_clock, per_unit);
        if (ghz > 0) std::fprintf(stderr, " at %.3f GHz", ghz);
        std::fprintf(stderr, "\n");
        std::printf(
            "{\"limit\":{\"name\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"per_clock\":%.6g,\"per_clock_unit\":\"%s\",\"sm_ghz\":%.4g}}\n",
            name, value, unit, per_clock, per_unit, ghz);
        std::fflush(stdout);
    }

    // Median milliseconds of `repetitions` after one that warms up; `ghz` is the clock in the last.
    double time(const std::function<void()> &launch, double &ghz, int repetitions = 5) {
        cudaEvent_t begin, end;
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        std::vector<float> ms(repetitions);
        launch();
        CHECK(cudaGetLastError());
        for (float &t : ms) {
            CHECK(cudaMemset(params.sink, 0, SINK_BYTES));
            CHECK(cudaEventRecord(begin));
            launch();
            CHECK(cudaEventRecord(end));
            CHECK(cudaEventSynchronize(end));
            CHECK(cudaEventElapsedTime(&t, begin, end));
        }
        Clock c;
        CHECK(cudaMemcpy(&c, clock, sizeof c, cudaMemcpyDeviceToHost));
        ghz = c.ns ? (double)c.cycles / (double)c.ns : 0;
        std::sort(ms.begin(), ms.end());
        return ms[ms.size() / 2];
    }

    template <typename K>
    void tensor(const char *name, K kernel, int threads, int smem, double flop_per_turn_and_sm, int turns, int repetitions = 5) {
        Params p = params;
        p.turns = turns;
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem));
        double ghz;
        const double ms = time([&] { kernel<<<num_sms, threads, smem>>>(p); }, ghz, repetitions);
        const double flops = flop_per_turn_and_sm * turns * num_sms;
        row(name, flops / ms / 1e9, "TFLOP/s", flops / num_sms / (ms * 1e6 * ghz), "FLOP/clk/SM", ghz);
    }

    template <typename K> void beside(const char *name, const char *what, K kernel, double flop_per_turn_and_sm, int turns) {
        tensor(name, kernel, 384, SMEM_BYTES, flop_per_turn_and_sm, turns, 1);
        std::vector<float> moved(num_sms + 1);
        CHECK(cudaMemcpy(moved.data(), params.sink, moved.size() * 4, cudaMemcpyDeviceToHost));
        Clock c;
        CHECK(cudaMemcpy(&c, clock, sizeof c, cudaMemcpyDeviceToHost));
        double bytes = 0;
        for (int i = 1; i <= num_sms; ++i) bytes += moved[i];
        row(what, bytes / (double)c.ns / 1e3, "TB/s", bytes / num_sms / (double)c.cycles, "B/clk/SM", (double)c.cycles / (double)c.ns);
    }

    template <int CLUSTER, int DEPTH> void bulk(const char *name, size_t bytes) {
        Params p = params;
        p.source_bytes = bytes;
        p.turns = 6000;
        auto *kernel = bulk_read<CLUSTER, DEPTH>;
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SMEM_BYTES));
        cudaLaunchConfig_t config = {};
        const int ctas = num_sms / CLUSTER * CLUSTER;
        config.gridDim = ctas, config.blockDim = 128, config.dynamicSmemBytes = SMEM_BYTES;
        cudaLaunchAttribute attribute;
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {CLUSTER, 1, 1};
        config.attrs = &attribute, config.numAttrs = CLUSTER > 1;
        double ghz;
        const double ms = time([&] { CHECK(cudaLaunchKernelEx(&config, kernel, p)); }, ghz);
        const double delivered = (double)STAGE_BYTES * p.turns * ctas;
        row(name, delivered / ms / 1e9, "TB/s", delivered / ctas / (ms * 1e6 * ghz), "B/clk/SM", ghz);
    }
};

} // namespace

int main() {
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    if (properties.major != 9) {
        std::fprintf(stderr, "limits: %s has compute capability %d.%d; these kernels are for 9.0\n", properties.name, properties.major,
                     properties.minor);
        return 5;
    }
    Bench b = {};
    b.num_sms = properties.multiProcessorCount;
    constexpr size_t BYTES = (size_t)2 << 30;
    std::vector<uint16_t> host(64 << 20);
    // bf16 in [-1, 1): sign, exponents around 2^-1, mantissa.
    uint64_t state = 1;
    for (auto &x : host) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        x = (uint16_t)((state >> 60 & 1) << 15 | (0x3e00 + (state >> 33 & 0x17f)));
    }
    unsigned char *memory, *other;
    CHECK(cudaMalloc(&memory, BYTES));
    CHECK(cudaMalloc(&other, BYTES));
    for (size_t at = 0; at < BYTES; at += host.size() * 2)
        CHECK(cudaMemcpy(memory + at, host.data(), host.size() * 2, cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&b.clock, sizeof(Clock)));
    float *sink;
    CHECK(cudaMalloc(&sink, SINK_BYTES));
    b.params = {(const uint4 *)memory, 16u << 20, 0, b.clock, sink};
    std::fprintf(stderr, "limits on %s, %d SMs, L2 %d MiB\n", properties.name, b.num_sms, properties.l2CacheSize >> 20);

    double ghz;
    const double mma = 8 * 16 * 2.0 * 16 * 8 * 16;
    b.tensor("mma.sync m16n8k16 bf16, 8 warps", mma_sync, 256, 0, mma, 20000);
    const auto flop = [](int n) { return 2 * 2.0 * 64 * n * 64; };
    b.tensor("wgmma n64, A and B in smem", wgmma_loop<64, false, Beside::Nothing>, 384, SMEM_BYTES, flop(64), 20000);
    b.tensor("wgmma n128, A and B in smem", wgmma_loop<128, false, Beside::Nothing>, 384, SMEM_BYTES, flop(128), 20000);
    b.tensor("wgmma n256, A and B in smem", wgmma_loop<256, false, Beside::Nothing>, 384, SMEM_BYTES, flop(256), 10000);
    b.tensor("wgmma n64, A in registers", wgmma_loop<64, true, Beside::Nothing>, 384, SMEM_BYTES, flop(64), 20000);
    b.tensor("wgmma n128, A in registers", wgmma_loop<128, true, Beside::Nothing>, 384, SMEM_BYTES, flop(128), 20000);
    b.tensor("wgmma n256, A in registers", wgmma_loop<256, true, Beside::Nothing>, 384, SMEM_BYTES, flop(256), 10000);
    b.tensor("wgmma n256, A in registers, half a second", wgmma_loop<256, true, Beside::Nothing>, 384, SMEM_BYTES, flop(256), 900000, 1);
    b.beside("wgmma n256 (registers) beside bulk copies", "bulk copies beside wgmma n256 (registers)",
             wgmma_loop<256, true, Beside::BulkFill>, flop(256), 10000);
    b.beside("wgmma n128 (registers) beside bulk copies", "bulk copies beside wgmma n128 (registers)",
             wgmma_loop<128, true, Beside::BulkFill>, flop(128), 20000);
    b.beside("wgmma n256 (smem) beside bulk copies", "bulk copies beside wgmma n256 (smem)", wgmma_loop<256, false, Beside::BulkFill>,
             flop(256), 10000);
    b.beside("wgmma n256 (registers) beside 16-byte loads", "16-byte loads beside wgmma n256 (registers)",
             wgmma_loop<256, true, Beside::Loads>, flop(256), 10000);
    b.beside("wgmma n128 (registers) beside 16-byte loads", "16-byte loads beside wgmma n128 (registers)",
             wgmma_loop<128, true, Beside::Loads>, flop(128), 20000);

    b.bulk<1, 2>("L2 to smem, bulk copies, 2 in flight", 16 << 20);
    b.bulk<1, 4>("L2 to smem, bulk copies, 4 in flight", 16 << 20);
    b.bulk<1, 6>("L2 to smem, bulk copies, 6 in flight", 16 << 20);
    b.bulk<1, 12>("L2 to smem, bulk copies, 12 in flight", 16 << 20);
    b.bulk<1, 4>("L2 to smem, bulk copies, 4 in flight (4 MiB)", 4 << 20);
    b.bulk<2, 4>("L2 to smem, shared by 2 CTAs, 4 in flight", 16 << 20);
    b.bulk<2, 12>("L2 to smem, shared by 2 CTAs, 12 in flight", 16 << 20);
    b.bulk<4, 4>("L2 to smem, shared by 4 CTAs, 4 in flight", 16 << 20);
    b.bulk<4, 12>("L2 to smem, shared by 4 CTAs, 12 in flight", 16 << 20);
    b.bulk<1, 4>("DRAM to smem, bulk copies, 4 in flight", BYTES);
    const auto read = [&](const char *name, size_t bytes, int turns) {
        Params p = b.params;
        p.source_bytes = bytes, p.turns = turns;
        const double ms = b.time([&] { read_global<<<b.num_sms, 1024>>>(p); }, ghz);
        const size_t step = (size_t)b.num_sms * 1024 * 4;
        const double moved = (double)(bytes / 16 / step * step * 16) * turns;
        b.row(name, moved / ms / 1e9, "TB/s", moved / b.num_sms / (ms * 1e6 * ghz), "B/clk/SM", ghz);
    };
    read("L2 to registers, 16-byte loads (16 MiB)", 16 << 20, 300);
    read("DRAM to registers, 16-byte loads (2 GiB)", BYTES, 2);
    {
        Params p = b.params;
        p.source_bytes = BYTES, p.turns = 2;
        const double ms = b.time([&] { copy_global<<<2 * b.num_sms, 1024>>>(p, (uint4 *)other); }, ghz);
        b.row("DRAM to DRAM, read and written", 2.0 * BYTES * p.turns / ms / 1e9, "TB/s", 0, "", ghz);
    }
    {
        Params p = b.params;
        p.turns = 20000;
        const double ms = b.time([&] { exp2s<<<b.num_sms, 1024>>>(p); }, ghz);
        const double count = 8.0 * 1024 * b.num_sms * p.turns;
        b.row("exp2", count / ms / 1e9, "T/s", count / b.num_sms / (ms * 1e6 * ghz), "/clk/SM", ghz);
    }
    {
        constexpr int LAUNCHES = 1000;
        cudaStream_t stream;
        CHECK(cudaStreamCreate(&stream));
        const auto chain = [&] {
            for (int i = 0; i < LAUNCHES; ++i) nothing<<<b.num_sms, 128, 0, stream>>>(b.params);
        };
        CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        chain();
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        CHECK(cudaStreamEndCapture(stream, &graph));
        CHECK(cudaGraphInstantiate(&exec, graph, 0));
        CHECK(cudaMemset(b.clock, 0, sizeof(Clock)));
        cudaEvent_t begin, end;
        CHECK(cudaEventCreate(&begin));
        CHECK(cudaEventCreate(&end));
        const auto us = [&](const std::function<void()> &work) {
            float best = 1e9;
            for (int i = 0; i < 5; ++i) {
                float ms;
                CHECK(cudaEventRecord(begin, stream));
                work();
                CHECK(cudaEventRecord(end, stream));
                CHECK(cudaEventSynchronize(end));
                CHECK(cudaEventElapsedTime(&ms, begin, end));
                best = std::min(best, ms);
            }
            return best * 1e3 / LAUNCHES;
        };
        b.row("an empty launch after another, stream", us(chain), "us", 0, "", 0);
        b.row("an empty launch after another, graph", us([&] { CHECK(cudaGraphLaunch(exec, stream)); }), "us", 0, "", 0);
    }
    CHECK(cudaDeviceSynchronize());
    return 0;
}
