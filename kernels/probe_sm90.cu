// probe_sm90: what every primitive of gpu_sm90.cuh does, written to memory; probe.cu for Hopper.
//
// Work    one entry per family of primitives. The products are the mainloop of a GEMM: warpgroup 0 copies, warpgroups 1
//         and 2 multiply 64 rows each, over a ring of stages with a full and an empty barrier per stage.
// Use     tests/probe_sm90.rs on the emulator, `gpu-check probe` on an H100 or H200.
// Source  layouts: PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", "Strides" and "Swizzling Modes" of shared
//         memory; the CuTe layouts CLayout_64xN and ALayout_64x16 say the same.
#include "probe_sm90.h"
#include "gpu_sm90.cuh"

constexpr int STAGES = PROBE_SM90_STAGES;
constexpr int ROW_BYTES = PROBE_SM90_BLOCK_K * 2;
constexpr int M = PROBE_SM90_M;
constexpr int K = PROBE_SM90_K_BLOCKS * PROBE_SM90_BLOCK_K;
constexpr int BOX_BYTES = PROBE_SM90_BOX_ROWS * PROBE_SM90_BOX_ROW_BYTES;
static_assert(PROBE_SM90_K_BLOCKS % 2 == 0, "two sets of registers take turns");
static_assert(ROW_BYTES == 128, "a stage's rows are those of the 128-byte swizzle");

template <int N> struct Ring {
    unsigned char a[STAGES][M * ROW_BYTES];
    unsigned char b[STAGES][N * ROW_BYTES];
    gpu::mbarrier full[STAGES], empty[STAGES];
};
static_assert(sizeof(Ring<256>) <= PROBE_SM90_SMEM_BYTES, "the widest ring must fit");

// One thread sets up barriers; nobody may use them before the CTA has met.
template <typename F> GPU_FN void set_up(F init) {
    if (gpu::thread_x() == 0) {
        init();
        gpu::fence_mbarrier_init();
    }
    gpu::sync_cta();
}

// Rounds of: all write, all meet, all read, all meet; and of one warp that tells the others.
GPU_KERNEL(probe_sm90_barriers, probe_sm90_params, PROBE_SM90_THREADS, 1) {
    struct Shared {
        gpu::mbarrier all[2], told;
        uint32_t words[PROBE_SM90_THREADS];
        uint32_t told_words[32];
    };
    Shared &smem = gpu::shared<Shared>();
    const int t = gpu::thread_x();
    set_up([&] {
        gpu::mbarrier_init(&smem.all[0], PROBE_SM90_THREADS);
        gpu::mbarrier_init(&smem.all[1], PROBE_SM90_THREADS);
        gpu::mbarrier_init(&smem.told, 32);
    });
    GPU_NO_UNROLL
    for (int round = 0; round < PROBE_SM90_BARRIER_ROUNDS; ++round) {
        const int parity = round & 1;
        uint32_t *const words = p.output + (round * PROBE_SM90_THREADS + t) * PROBE_SM90_BARRIER_WORDS;
        smem.words[t] = p.input[t] + (uint32_t)round;
        if (gpu::warp_id() == round * 5 % 12) {
            smem.told_words[gpu::lane_id()] = p.input[gpu::lane_id()] * (uint32_t)(round + 3);
            gpu::mbarrier_arrive(&smem.told);
        }
        gpu::mbarrier_arrive(&smem.all[0]);
        gpu::mbarrier_wait(&smem.told, parity);
        words[1] = smem.told_words[31 - gpu::lane_id()];
        gpu::mbarrier_wait(&smem.all[0], parity);
        words[0] = smem.words[(t + 129) % PROBE_SM90_THREADS];
        gpu::mbarrier_arrive(&smem.all[1]);
        gpu::mbarrier_wait(&smem.all[1], parity);
    }
}

// Boxes of four maps at the input's coordinates, then plain ranges; each over a target of 0xa5, and seen as it lies.
GPU_KERNEL(probe_sm90_copies, probe_sm90_params, PROBE_SM90_THREADS, 1) {
    struct Shared {
        unsigned char target[BOX_BYTES];
        gpu::mbarrier barrier;
    };
    Shared &smem = gpu::shared<Shared>();
    uint32_t *const words = &gpu::shared<uint32_t>();
    const int t = gpu::thread_x();
    constexpr int MATRIX_WORDS = PROBE_SM90_COPY_ROWS * PROBE_SM90_COPY_PITCH_BYTES / 4;
    constexpr int NUM_BOXES = PROBE_SM90_MAPS * PROBE_SM90_BOXES;
    set_up([&] { gpu::mbarrier_init(&smem.barrier, 1); });
    GPU_NO_UNROLL
    for (int copy = 0; copy < NUM_BOXES + PROBE_SM90_RANGES; ++copy) {
        for (int i = t; i < BOX_BYTES / 4; i += PROBE_SM90_THREADS) words[i] = 0xa5a5a5a5u;
        gpu::fence_proxy_async();
        gpu::sync_cta();
        if (t == 0 && copy < NUM_BOXES) {
            const uint32_t *const place = p.input + MATRIX_WORDS + copy % PROBE_SM90_BOXES * 2;
            gpu::mbarrier_arrive_expect_tx(&smem.barrier, BOX_BYTES);
            gpu::tma_load_2d(smem.target, &p.maps[copy / PROBE_SM90_BOXES], (int)place[0], (int)place[1], &smem.barrier);
        } else if (t == 0) {
            const int range = copy - NUM_BOXES, num_bytes = 16 << 3 * range;
            gpu::mbarrier_arrive_expect_tx(&smem.barrier, num_bytes);
            gpu::bulk_load(smem.target + 16 * range, p.input + 8 * range, num_bytes, &smem.barrier);
        }
        gpu::mbarrier_wait(&smem.barrier, copy & 1);
        for (int i = t; i < BOX_BYTES / 4; i += PROBE_SM90_THREADS) p.output[copy * (BOX_BYTES / 4) + i] = words[i];
        gpu::sync_cta();
    }
}

// Consumer 0 starts from nothing, though its registers are not empty; consumer 1 from its registers.
template <int N> GPU_FN void start(float (&acc)[N / 2], int consumer) {
    GPU_UNROLL
    for (int i = 0; i < N / 2; ++i) acc[i] = consumer == 0 ? 1e30f : (float)(i + gpu::thread_x() % gpu::WARPGROUP);
}
template <int N> GPU_FN void store(uint32_t *output, const float (&acc)[N / 2], int consumer) {
    uint32_t *const words = output + consumer * (N / 2) * gpu::WARPGROUP + gpu::thread_x() % gpu::WARPGROUP;
    GPU_UNROLL
    for (int i = 0; i < N / 2; ++i) words[i * gpu::WARPGROUP] = gpu::float_to_bits(acc[i]);
}

// output = input A[M x K] . B[N x K]^T, A by copies or, from the input's words, in registers.
template <int N, bool A_IN_REGISTERS> GPU_FN void multiply(const probe_sm90_params &p) {
    Ring<N> &ring = gpu::shared<Ring<N>>();
    set_up([&] {
        for (int stage = 0; stage < STAGES; ++stage) {
            gpu::mbarrier_init(&ring.full[stage], 1);
            gpu::mbarrier_init(&ring.empty[stage], 2);
        }
    });
    if (gpu::warpgroup_id() == 0) {
        gpu::release_registers<40>();
        if (gpu::thread_x() != 0) return;
        GPU_NO_UNROLL
        for (int block = 0; block < PROBE_SM90_K_BLOCKS; ++block) {
            const int stage = block % STAGES, turn = block / STAGES;
            // The stage's first turn waits for nobody: the phase before the first counts as over.
            gpu::mbarrier_wait(&ring.empty[stage], (turn + 1) & 1);
            gpu::mbarrier_arrive_expect_tx(&ring.full[stage], (A_IN_REGISTERS ? N : M + N) * ROW_BYTES);
            if (!A_IN_REGISTERS) gpu::tma_load_2d(ring.a[stage], &p.maps[0], block * PROBE_SM90_BLOCK_K, 0, &ring.full[stage]);
            gpu::tma_load_2d(ring.b[stage], &p.maps[1], block * PROBE_SM90_BLOCK_K, 0, &ring.full[stage]);
        }
        return;
    }
    gpu::claim_registers<232>();
    const int consumer = gpu::warpgroup_id() - 1, lane = gpu::lane_id();
    const int row = 64 * consumer + 16 * (gpu::warp_id() % 4) + lane / 4;
    float acc[N / 2];
    start<N>(acc, consumer);
    // Two sets of registers for A, as the products of the block before read theirs until the wait. Nothing is in flight
    // where the loop turns: there ptxas moves accumulators about, and does not look whether the engine has them
    // (scripts/check-sass does).
    uint32_t a_even[4][4] = {}, a_odd[4][4] = {};
    const auto issue = [&](int block, uint32_t (&a)[4][4], bool is_idle) {
        const int stage = block % STAGES;
        if (A_IN_REGISTERS) {
            GPU_UNROLL
            for (int i = 0; i < 16; ++i) {
                const int k = block * PROBE_SM90_BLOCK_K + 16 * (i / 4) + 2 * (lane % 4) + 8 * (i / 2 % 2);
                a[i / 4][i % 4] = p.input[((row + 8 * (i % 2)) * K + k) / 2];
            }
        }
        gpu::mbarrier_wait(&ring.full[stage], block / STAGES & 1);
        const uint64_t a_tile = gpu::smem_descriptor(ring.a[stage] + consumer * 64 * ROW_BYTES);
        const uint64_t b_tile = gpu::smem_descriptor(ring.b[stage]);
        // Accumulators are named only while they are the threads'.
        if (is_idle) gpu::wgmma_fence(acc);
        if (A_IN_REGISTERS) gpu::wgmma_fence(a);
        GPU_UNROLL
        for (int step = 0; step < 4; ++step) {
            const bool accumulate = consumer == 1 || block + step > 0;
            if (A_IN_REGISTERS) gpu::wgmma_m64k16<N>(acc, a[step], gpu::next_k16(b_tile, step), accumulate);
            else gpu::wgmma_m64k16<N>(acc, gpu::next_k16(a_tile, step), gpu::next_k16(b_tile, step), accumulate);
        }
        gpu::wgmma_commit();
    };
    const auto release = [&](int block) {
        if (gpu::thread_x() % gpu::WARPGROUP == 0) gpu::mbarrier_arrive(&ring.empty[block % STAGES]);
    };
    GPU_NO_UNROLL
    for (int block = 0; block < PROBE_SM90_K_BLOCKS; block += 2) {
        issue(block, a_even, true);
        issue(block + 1, a_odd, false);
        gpu::wgmma_wait<1>(a_even);
        release(block);
        gpu::wgmma_wait<0>(acc, a_odd);
        release(block + 1);
    }
    store<N>(p.output, acc, consumer);
}

GPU_KERNEL(probe_sm90_ss_n64, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<64, false>(p); }
GPU_KERNEL(probe_sm90_ss_n128, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<128, false>(p); }
GPU_KERNEL(probe_sm90_ss_n256, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<256, false>(p); }
GPU_KERNEL(probe_sm90_rs_n64, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<64, true>(p); }
GPU_KERNEL(probe_sm90_rs_n128, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<128, true>(p); }
GPU_KERNEL(probe_sm90_rs_n256, probe_sm90_params, PROBE_SM90_THREADS, 1) { multiply<256, true>(p); }

// Threads store num_rows rows of k-values, a word at a time, where the swizzle wants them.
GPU_FN void store_tile(unsigned char *tile, const uint32_t *words, int num_rows) {
    for (int i = gpu::thread_x(); i < num_rows * ROW_BYTES / 4; i += PROBE_SM90_THREADS)
        *reinterpret_cast<uint32_t *>(tile + gpu::swizzle_128(4 * i)) = words[i];
}

// As above with operands that threads have stored: what they do not fence, the engine does not see.
GPU_KERNEL(probe_sm90_stored, probe_sm90_params, PROBE_SM90_THREADS, 1) {
    constexpr int N = 64;
    Ring<N> &ring = gpu::shared<Ring<N>>();
    const int consumer = gpu::warpgroup_id() - 1;
    float acc[N / 2];
    start<N>(acc, consumer);
    GPU_NO_UNROLL
    for (int round = 0; round < PROBE_SM90_STORED_ROUNDS; ++round) {
        const uint32_t *const words = p.input + round * (M + N) * ROW_BYTES / 4;
        store_tile(ring.a[0], words, M);
        store_tile(ring.b[0], words + M * ROW_BYTES / 4, N);
        gpu::fence_proxy_async();
        gpu::sync_cta();
        if (consumer >= 0) {
            gpu::wgmma_fence(acc);
            GPU_UNROLL
            for (int step = 0; step < 4; ++step) {
                const uint64_t a = gpu::smem_descriptor(ring.a[0] + consumer * 64 * ROW_BYTES);
                gpu::wgmma_m64k16<N>(acc, gpu::next_k16(a, step), gpu::next_k16(gpu::smem_descriptor(ring.b[0]), step),
                                     consumer == 1 || round + step > 0);
            }
            gpu::wgmma_commit();
            gpu::wgmma_wait<0>(acc);
        }
        gpu::sync_cta();
    }
    if (consumer >= 0) store<N>(p.output, acc, consumer);
}

#ifndef __CUDACC__
// What a kernel must not do; tests/emulator_sm90.rs sees that the emulator says so. On a GPU these would hang or worse.

GPU_FN void fault_of_barriers(const probe_sm90_params &p) {
    Ring<64> &ring = gpu::shared<Ring<64>>();
    gpu::mbarrier *const barrier = &ring.full[0];
    const int t = gpu::thread_x();
    if (p.fault == PROBE_SM90_FAULT_UNINITIALIZED) gpu::mbarrier_arrive(barrier);
    if (t == 0) gpu::mbarrier_init(barrier, 1);
    if (t == 0 && p.fault != PROBE_SM90_FAULT_NO_INIT_FENCE) gpu::fence_mbarrier_init();
    gpu::sync_cta();
    switch (p.fault) {
    case PROBE_SM90_FAULT_NO_INIT_FENCE:
        if (t == 0) gpu::bulk_load(ring.a[0], p.input, 16, barrier);
        return;
    case PROBE_SM90_FAULT_OVER_ARRIVAL:
        if (t < 2) gpu::mbarrier_arrive_expect_tx(barrier, 16);
        return;
    case PROBE_SM90_FAULT_LATE_FOR_A_PHASE:
        if (t > 0) gpu::mbarrier_wait(barrier, 0);
        gpu::mbarrier_arrive(barrier);
        if (t == 0) gpu::mbarrier_arrive(barrier);
        return;
    case PROBE_SM90_FAULT_TOO_MANY_BYTES_EXPECTED:
        if (t == 0) gpu::mbarrier_arrive_expect_tx(barrier, 48);
        if (t == 0) gpu::bulk_load(ring.a[0], p.input, 32, barrier);
        gpu::mbarrier_wait(barrier, 0);
        return;
    case PROBE_SM90_FAULT_TOO_FEW_BYTES_EXPECTED:
        if (t == 0) gpu::mbarrier_arrive_expect_tx(barrier, 16);
        if (t == 0) gpu::bulk_load(ring.a[0], p.input, 32, barrier);
        gpu::mbarrier_wait(barrier, 0);
        return;
    case PROBE_SM90_FAULT_NO_COPY_WAIT:
        if (t == 0) gpu::mbarrier_arrive_expect_tx(barrier, 16);
        if (t == 0) gpu::bulk_load(ring.a[0], p.input, 16, barrier);
        if (t == 0) p.output[0] = gpu::shared<uint32_t>();
        gpu::mbarrier_wait(barrier, 0);
        return;
    case PROBE_SM90_FAULT_FAR_COPY:
        if (t == 0) gpu::bulk_load(ring.a[0], p.input + ((int64_t)1 << 40), 16, barrier);
        return;
    case PROBE_SM90_FAULT_MISALIGNED_COPY:
        if (t == 0) gpu::tma_load_2d(ring.a[0] + 128, &p.maps[0], 0, 0, barrier);
        return;
    case PROBE_SM90_FAULT_MISALIGNED_COLUMN:
        if (t == 0) gpu::tma_load_2d(ring.a[0], &p.maps[0], 7, 0, barrier);
        return;
    case PROBE_SM90_FAULT_COPY_LEFT:
        if (t == 0) gpu::bulk_load(ring.a[0], p.input, 16, barrier);
        return;
    }
}

GPU_FN void fault_of_products(const probe_sm90_params &p) {
    constexpr int N = 64;
    Ring<N> &ring = gpu::shared<Ring<N>>();
    const int t = gpu::thread_x();
    set_up([&] { gpu::mbarrier_init(&ring.full[0], 1); });
    store_tile(ring.a[0], p.input, 64);
    if (p.fault == PROBE_SM90_FAULT_ONE_PROXY_FENCE && t == 0) gpu::fence_proxy_async();
    store_tile(ring.b[0], p.input, N);
    if (p.fault != PROBE_SM90_FAULT_NO_PROXY_FENCE && p.fault != PROBE_SM90_FAULT_ONE_PROXY_FENCE) gpu::fence_proxy_async();
    gpu::sync_cta();
    const uint64_t a = gpu::smem_descriptor(ring.a[0]), b = gpu::smem_descriptor(ring.b[0]);
    float acc[N / 2];
    uint32_t a_registers[4] = {p.input[0], p.input[1], p.input[2], p.input[3]};
    GPU_UNROLL
    for (int i = 0; i < N / 2; ++i) acc[i] = 0.0f;
    if (p.fault != PROBE_SM90_FAULT_NO_WGMMA_FENCE) gpu::wgmma_fence(acc, a_registers);
    if (p.fault == PROBE_SM90_FAULT_LATE_WRITE) acc[3] = 1.0f;
    if (p.fault == PROBE_SM90_FAULT_A_TOUCHED) {
        gpu::wgmma_m64k16<N>(acc, a_registers, b, true);
        a_registers[2] = p.input[4];
    } else if (p.fault == PROBE_SM90_FAULT_DIVERGENT && t % 128 >= 96) {
        gpu::wgmma_m64k16<N>(acc, a, b, false);
    } else {
        gpu::wgmma_m64k16<N>(acc, a, p.fault == PROBE_SM90_FAULT_BAD_DESCRIPTOR ? b + (128 >> 4) : b, true);
    }
    if (p.fault != PROBE_SM90_FAULT_NO_COMMIT) gpu::wgmma_commit();
    if (p.fault == PROBE_SM90_FAULT_EARLY_RELEASE && t == 0) gpu::bulk_load(ring.b[0] + 256, p.input, 16, &ring.full[0]);
    if (p.fault == PROBE_SM90_FAULT_ACC_TOUCHED) acc[5] *= 2.0f;
    if (p.fault == PROBE_SM90_FAULT_NO_WGMMA_WAIT) p.output[t] = gpu::float_to_bits(acc[0] + 1.0f);
    if (p.fault == PROBE_SM90_FAULT_RETURN_IN_FLIGHT) return;
    gpu::wgmma_wait<0>(acc, a_registers);
    if (p.fault != PROBE_SM90_FAULT_NO_WGMMA_WAIT) p.output[t] = gpu::float_to_bits(acc[0]);
}

GPU_KERNEL(probe_sm90_fault, probe_sm90_params, PROBE_SM90_THREADS, 1) {
    if (p.fault >= PROBE_SM90_FAULT_NO_PROXY_FENCE || p.fault == PROBE_SM90_FAULT_EARLY_RELEASE) fault_of_products(p);
    else fault_of_barriers(p);
}
#endif
