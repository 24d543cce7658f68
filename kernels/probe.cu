// probe: what every primitive of gpu.cuh does, written to memory.
//
// Work    one entry per family of primitives; each thread writes what it saw as 32-bit words.
// Use     on the emulator tests/probe.rs compares the words with what the PTX ISA says; on a GPU `gpu-check probe`
//         compares them with the emulator's. A misreading shared by a kernel and the emulator shows here, and only here.
// Source  fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "ldmatrix"; cp.async: "Data Movement".
#include "probe.h"
#include "gpu.cuh"

GPU_KERNEL(probe_echo, probe_echo_params, PROBE_THREADS, 1) {
    if (gpu::thread_x() != 0) return;
    p.first_words[0] = (uint32_t)(uint64_t)p.a_i64;
    p.first_words[1] = (uint32_t)((uint64_t)p.a_i64 >> 32);
    p.first_words[2] = (uint32_t)p.a_u64;
    p.first_words[3] = (uint32_t)(p.a_u64 >> 32);
    p.first_words[4] = (uint32_t)p.a_i32;
    p.first_words[5] = p.a_u32;
    p.last_words[0] = gpu::float_to_bits(p.a_f32);
    p.last_words[1] = (uint32_t)p.an_array[0];
    p.last_words[2] = (uint32_t)p.an_array[1];
    p.last_words[3] = (uint32_t)p.an_array[2];
    p.last_words[4] = (uint32_t)p.a_bf16 | (uint32_t)(uint16_t)p.a_i16 << 16;
    p.last_words[5] = (uint32_t)p.a_u8 | (uint32_t)(uint8_t)p.a_i8 << 8 | (uint32_t)p.a_u16 << 16;
}

// Where this CTA's thread is, one exchange through shared memory, and a counter behind all words.
GPU_KERNEL(probe_index, probe_params, PROBE_THREADS, 1) {
    uint32_t *const smem = &gpu::shared<uint32_t>();
    const int t = gpu::thread_x();
    smem[t] = (uint32_t)(t * 7 + gpu::cta_x());
    gpu::sync_cta();
    const int cta = (gpu::cta_z() * p.num_ctas_y + gpu::cta_y()) * gpu::num_ctas_x() + gpu::cta_x();
    uint32_t *const words = p.output + 1 + (cta * PROBE_THREADS + t) * PROBE_INDEX_WORDS;
    words[0] = (uint32_t)t;
    words[1] = (uint32_t)gpu::lane_id();
    words[2] = (uint32_t)gpu::warp_id();
    words[3] = (uint32_t)gpu::cta_x();
    words[4] = (uint32_t)gpu::cta_y();
    words[5] = (uint32_t)gpu::cta_z();
    words[6] = (uint32_t)gpu::num_ctas_x();
    words[7] = smem[(t + 33) % PROBE_THREADS];
    gpu::atomic_add(p.output, (uint32_t)(t + 1));
}

// Every CTA hands words over; the one that counts last adds them all. Behind the counter: words by CTA, then the sums.
GPU_KERNEL(probe_count, probe_params, PROBE_THREADS, 1) {
    uint32_t *const smem = &gpu::shared<uint32_t>();
    const int t = gpu::thread_x(), num = gpu::num_ctas_x();
    uint32_t *const words = p.output + 1 + t;
    words[gpu::cta_x() * PROBE_THREADS] = (uint32_t)(gpu::cta_x() * 1000 + t);
    gpu::sync_cta();
    if (t == 0) *smem = gpu::atomic_count(p.output, (uint32_t)num);
    gpu::sync_cta();
    // The first found all bits set, which counts as having been through.
    if (*smem != (uint32_t)num - 2) return;
    uint32_t sum = 0;
    for (int i = 0; i < num; ++i) sum += words[i * PROBE_THREADS];
    words[num * PROBE_THREADS] = sum;
}

GPU_KERNEL(probe_warp, probe_params, PROBE_THREADS, 1) {
    uint32_t *const smem = &gpu::shared<uint32_t>();
    const int t = gpu::thread_x();
    uint32_t *const words = p.output + t * PROBE_WARP_WORDS;
    const uint32_t u = p.input[t];
    const float f = gpu::bits_to_float(p.input[PROBE_THREADS + t]);
    constexpr int masks[8] = {0, 1, 2, 3, 4, 8, 16, 31};
    GPU_UNROLL
    for (int i = 0; i < 8; ++i) {
        words[2 * i] = gpu::shfl_xor(u, masks[i]);
        words[2 * i + 1] = gpu::float_to_bits(gpu::shfl_xor(f, masks[i]));
    }
    words[16] = gpu::float_to_bits(gpu::warp_sum(f));
    words[17] = gpu::float_to_bits(gpu::warp_sum<4>(f));
    words[18] = gpu::float_to_bits(gpu::warp_max(f));
    words[19] = gpu::float_to_bits(gpu::warp_max<8>(f));
    smem[t] = u;
    gpu::sync_warp();
    words[20] = smem[(t & 32) | (31 - gpu::lane_id())];
}

// A thread copies into its 16-byte slot by copy(slot, from, case); its neighbor looks at the whole slot.
template <typename Copy> GPU_FN int copy_cases(const probe_params &p, int copy_case, int num_cases, Copy copy) {
    uint4 *const slots = &gpu::shared<uint4>();
    const int t = gpu::thread_x();
    GPU_NO_UNROLL
    for (int i = 0; i < num_cases; ++i, ++copy_case) {
        slots[t] = uint4{0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u, 0xa5a5a5a5u};
        copy(&slots[t], p.input + (copy_case * PROBE_THREADS + t) * 4, i);
        gpu::cp_async_commit();
        gpu::cp_async_wait<0>();
        gpu::sync_cta();
        const uint4 seen = slots[(t + 1) % PROBE_THREADS];
        uint32_t *const words = p.output + (copy_case * PROBE_THREADS + t) * 4;
        words[0] = seen.x;
        words[1] = seen.y;
        words[2] = seen.z;
        words[3] = seen.w;
        gpu::sync_cta();
    }
    return copy_case;
}

GPU_KERNEL(probe_cp_async, probe_params, PROBE_THREADS, 1) {
    int next = copy_cases(p, 0, 5, [](void *to, const void *from, int valid) { gpu::cp_async<4>(to, from, valid); });
    next = copy_cases(p, next, 9, [](void *to, const void *from, int valid) { gpu::cp_async<8>(to, from, valid); });
    next = copy_cases(p, next, 17, [](void *to, const void *from, int valid) { gpu::cp_async<16>(to, from, valid); });
    // Any bit that is set will do.
    copy_cases(p, next, 2, [](void *to, const void *from, int i) { gpu::cp_async16_or_zeros(to, from, (uint32_t)i << 31); });
}

// The mainloop of every GEMM: a ring of STAGES slots, STAGES - 1 groups ahead, empty groups at the end.
template <int STAGES> GPU_FN void pipeline(const probe_params &p) {
    uint4 *const ring = &gpu::shared<uint4>();
    const int t = gpu::thread_x();
    const auto fetch = [&](int group) {
        if (group < PROBE_PIPELINE_GROUPS)
            gpu::cp_async<16>(&ring[group % STAGES * PROBE_THREADS + t], p.input + (group * PROBE_THREADS + t) * 4, 16);
        gpu::cp_async_commit();
    };
    GPU_UNROLL
    for (int group = 0; group < STAGES - 1; ++group) fetch(group);
    GPU_NO_UNROLL
    for (int group = 0; group < PROBE_PIPELINE_GROUPS; ++group) {
        gpu::cp_async_wait<STAGES - 2>();
        gpu::sync_cta();
        const uint4 seen = ring[group % STAGES * PROBE_THREADS + (t + 1) % PROBE_THREADS];
        uint32_t *const words = p.output + (((STAGES - 2) * PROBE_PIPELINE_GROUPS + group) * PROBE_THREADS + t) * 4;
        words[0] = seen.x;
        words[1] = seen.y;
        words[2] = seen.z;
        words[3] = seen.w;
        fetch(group + STAGES - 1);
    }
    gpu::cp_async_wait<0>();
    gpu::sync_cta();
}

GPU_KERNEL(probe_pipeline, probe_params, PROBE_THREADS, 1) {
    static_assert(5 * PROBE_THREADS * 16 <= PROBE_SMEM_BYTES, "the deepest ring must fit");
    pipeline<2>(p);
    pipeline<3>(p);
    pipeline<4>(p);
    pipeline<5>(p);
}

// Warp 0 loads as stored, warp 1 transposed. Lane l gives row (5 l + n) % 32 of tile n, so that rows are out of order.
GPU_KERNEL(probe_ldmatrix, probe_params, PROBE_THREADS, 1) {
    uint4 *const rows = &gpu::shared<uint4>();
    const int t = gpu::thread_x(), lane = gpu::lane_id();
    uint32_t *const words = &gpu::shared<uint32_t>();
    for (int i = t; i < PROBE_LDMATRIX_TILES * 32 * 4; i += PROBE_THREADS) words[i] = p.input[i];
    gpu::sync_cta();
    const void *row[PROBE_LDMATRIX_TILES];
    GPU_UNROLL
    for (int n = 0; n < PROBE_LDMATRIX_TILES; ++n) row[n] = &rows[n * 32 + (5 * lane + n) % 32];
    uint32_t frag[PROBE_LDMATRIX_TILES][4];
    if (gpu::warp_id() == 0) gpu::ldmatrix_x4_tile(frag, row);
    else gpu::ldmatrix_x4_trans_tile(frag, row);
    GPU_UNROLL
    for (int n = 0; n < PROBE_LDMATRIX_TILES; ++n) {
        GPU_UNROLL
        for (int i = 0; i < 4; ++i) p.output[(t * PROBE_LDMATRIX_TILES + n) * 4 + i] = frag[n][i];
    }
}

// Each warp multiplies its own tile. Input per warp, lane by lane in every register: a[steps][MT][4], b[steps][NT][2],
// acc[MT][NT][4]; output: acc.
template <int MT, int NT> GPU_FN void mma(const probe_params &p) {
    constexpr int A = PROBE_MMA_STEPS * MT * 4, B = PROBE_MMA_STEPS * NT * 2, C = MT * NT * 4;
    const int lane = gpu::lane_id();
    const uint32_t *const in = p.input + gpu::warp_id() * (A + B + C) * gpu::WARP + lane;
    uint32_t *const out = p.output + gpu::warp_id() * C * gpu::WARP + lane;
    float acc[MT][NT][4];
    GPU_UNROLL
    for (int i = 0; i < C; ++i) acc[i / (4 * NT)][i / 4 % NT][i % 4] = gpu::bits_to_float(in[(A + B + i) * gpu::WARP]);
    GPU_UNROLL
    for (int step = 0; step < PROBE_MMA_STEPS; ++step) {
        uint32_t a[MT][4], b[NT][2];
        GPU_UNROLL
        for (int i = 0; i < MT * 4; ++i) a[i / 4][i % 4] = in[(step * MT * 4 + i) * gpu::WARP];
        GPU_UNROLL
        for (int i = 0; i < NT * 2; ++i) b[i / 2][i % 2] = in[(A + step * NT * 2 + i) * gpu::WARP];
        gpu::mma_tile(acc, a, b);
    }
    GPU_UNROLL
    for (int i = 0; i < C; ++i) out[i * gpu::WARP] = gpu::float_to_bits(acc[i / (4 * NT)][i / 4 % NT][i % 4]);
}

GPU_KERNEL(probe_mma_1x1, probe_params, PROBE_THREADS, 1) { mma<1, 1>(p); }
GPU_KERNEL(probe_mma_1x3, probe_params, PROBE_THREADS, 1) { mma<1, 3>(p); }
GPU_KERNEL(probe_mma_2x4, probe_params, PROBE_THREADS, 1) { mma<2, 4>(p); }
GPU_KERNEL(probe_mma_4x8, probe_params, PROBE_THREADS, 1) { mma<4, 8>(p); }

// The same in fp16, by pairs: acc[MT][NT][2]; behind the output, what the first step alone gives from zero.
template <int MT, int NT> GPU_FN void mma_half(const probe_params &p) {
    constexpr int A = PROBE_MMA_STEPS * MT * 4, B = PROBE_MMA_STEPS * NT * 2, C = MT * NT * 2;
    const int lane = gpu::lane_id();
    const uint32_t *const in = p.input + gpu::warp_id() * (A + B + C) * gpu::WARP + lane;
    uint32_t *const out = p.output + gpu::warp_id() * 2 * C * gpu::WARP + lane;
    uint32_t acc[MT][NT][2], from_zero[MT][NT][2];
    GPU_UNROLL
    for (int i = 0; i < C; ++i)
        acc[i / (2 * NT)][i / 2 % NT][i % 2] = from_zero[i / (2 * NT)][i / 2 % NT][i % 2] = in[(A + B + i) * gpu::WARP];
    GPU_UNROLL
    for (int step = 0; step < PROBE_MMA_STEPS; ++step) {
        uint32_t a[MT][4], b[NT][2];
        GPU_UNROLL
        for (int i = 0; i < MT * 4; ++i) a[i / 4][i % 4] = in[(step * MT * 4 + i) * gpu::WARP];
        GPU_UNROLL
        for (int i = 0; i < NT * 2; ++i) b[i / 2][i % 2] = in[(A + step * NT * 2 + i) * gpu::WARP];
        if (step == 0) gpu::mma_half_tile<MT, NT, true>(from_zero, a, b);
        gpu::mma_half_tile<MT, NT>(acc, a, b);
    }
    GPU_UNROLL
    for (int i = 0; i < C; ++i) {
        out[i * gpu::WARP] = acc[i / (2 * NT)][i / 2 % NT][i % 2];
        out[(C + i) * gpu::WARP] = from_zero[i / (2 * NT)][i / 2 % NT][i % 2];
    }
}

GPU_KERNEL(probe_mma_half_1x8, probe_params, PROBE_THREADS, 1) { mma_half<1, 8>(p); }
GPU_KERNEL(probe_mma_half_2x3, probe_params, PROBE_THREADS, 1) { mma_half<2, 3>(p); }

GPU_KERNEL(probe_math, probe_params, PROBE_THREADS, 1) {
    const int i = gpu::cta_x() * PROBE_THREADS + gpu::thread_x();
    const int count = p.num_input_words / 3;
    if (i >= count) return;
    const uint32_t u = p.input[i];
    const float x = gpu::bits_to_float(u), y = gpu::bits_to_float(p.input[count + i]);
    const float z = gpu::bits_to_float(p.input[2 * count + i]);
    uint32_t *const words = p.output + i * PROBE_MATH_WORDS;
    // The same bits everywhere.
    words[0] = gpu::float_to_bits(gpu::mul_exact(x, y));
    words[1] = gpu::float_to_bits(gpu::add_exact(x, y));
    words[2] = gpu::float_to_bits(gpu::fma_exact(x, y, z));
    words[3] = gpu::float_to_bits(gpu::reciprocal_exact(x));
    words[4] = gpu::float_to_bits(gpu::rsqrt_exact(x));
    words[5] = gpu::float_to_bits(gpu::round_even(x));
    words[6] = gpu::pack_bf16x2(x, y);
    words[7] = gpu::float_to_bf16(x);
    words[8] = gpu::float_to_bits(gpu::bf16_to_float((bf16_bits)(u & 0xffffu)));
    words[9] = gpu::float_to_bits(gpu::bf16_lo(u));
    words[10] = gpu::float_to_bits(gpu::bf16_hi(u));
    words[11] = gpu::float_to_bits(gpu::bits_to_float(u));
    words[12] = gpu::pack_half2(x, y);
    words[13] = gpu::float_to_bits(gpu::half_lo(u));
    words[14] = gpu::float_to_bits(gpu::half_hi(u));
    words[15] = gpu::permute_bytes(u, p.input[count + i], p.input[2 * count + i]);
    // Within a few units in the last place.
    words[16] = gpu::float_to_bits(gpu::exp2_approx(x));
    words[17] = gpu::float_to_bits(gpu::exp_exact(x));
    words[18] = gpu::float_to_bits(gpu::tanh_exact(x));
    words[19] = gpu::float_to_bits(gpu::silu(x));
    words[20] = gpu::float_to_bits(gpu::quick_gelu(x));
    words[21] = gpu::float_to_bits(gpu::gelu_tanh(x));
    words[22] = gpu::float_to_bits(gpu::gelu_erf(x));
    words[23] = gpu::float_to_bits(gpu::divide_approx(x, 1.0f + gpu::exp_exact(-y)));
}

#ifndef __CUDACC__
// What a kernel must not do; tests/emulator.rs sees that the emulator says so. On a GPU these would hang or worse.

GPU_KERNEL(probe_fault_deadlock, probe_params, PROBE_THREADS, 1) {
    p.output[0] = 0;
    if (gpu::thread_x() < 16 || gpu::thread_x() >= 32) gpu::sync_cta();
    else gpu::sync_warp();
}

GPU_KERNEL(probe_fault_divergent, probe_params, PROBE_THREADS, 1) {
    uint32_t v = 0;
    if (gpu::lane_id() < 16) v = gpu::shfl_xor(1u, 1);
    else v = gpu::shfl_xor(2u, 1);
    p.output[gpu::thread_x()] = v;
}

GPU_KERNEL(probe_fault_early_exit, probe_params, PROBE_THREADS, 1) {
    p.output[0] = 0;
    if (gpu::thread_x() == 40) return;
    gpu::sync_cta();
}

GPU_KERNEL(probe_fault_far_source, probe_params, PROBE_THREADS, 1) {
    if (gpu::thread_x() == 5) gpu::cp_async<16>(&gpu::shared<uint4>(), p.input + ((int64_t)1 << 40), 16);
}

GPU_KERNEL(probe_fault_far_target, probe_params, PROBE_THREADS, 1) {
    gpu::cp_async<16>(&gpu::shared<uint4>() + gpu::thread_x() + PROBE_SMEM_BYTES / 16 - 60, p.input, 16);
}

GPU_KERNEL(probe_fault_misaligned, probe_params, PROBE_THREADS, 1) {
    gpu::cp_async<16>(&gpu::shared<uint4>() + gpu::thread_x(), p.input + 1, 16);
}

GPU_KERNEL(probe_fault_no_wait, probe_params, PROBE_THREADS, 1) {
    uint32_t *const smem = &gpu::shared<uint32_t>();
    const int t = gpu::thread_x();
    gpu::cp_async<4>(&smem[t], p.input + t, 4);
    gpu::cp_async_commit();
    p.output[t] = smem[t];
}

GPU_KERNEL(probe_fault_wild_store, probe_params, PROBE_THREADS, 1) {
    gpu::sync_cta();
    if (gpu::thread_x() == 9) p.output[-((int64_t)1 << 40)] = 1;
}

GPU_KERNEL(probe_fault_null, probe_params, PROBE_THREADS, 1) {
    const uint32_t *const none = gpu::thread_x() == 33 ? nullptr : (const uint32_t *)p.input;
    p.output[gpu::thread_x()] = *(const volatile uint32_t *)none;
}

GPU_KERNEL(probe_fault_divide, probe_params, PROBE_THREADS, 1) { p.output[gpu::thread_x()] = p.input[0] / (uint32_t)(gpu::thread_x() - 3); }

GPU_KERNEL(probe_fault_large_locals, probe_params, PROBE_THREADS, 1) {
    volatile uint32_t words[1 << 16];
    for (int i = 0; i < 1 << 16; ++i) words[i] = p.input[i % 64];
    p.output[gpu::thread_x()] = words[p.input[0]];
}

GPU_KERNEL(probe_fault_endless, probe_params, PROBE_THREADS, 1) {
    const volatile uint32_t *const flag = (const uint32_t *)p.input;
    if (gpu::thread_x() == 2)
        while (*flag != 0) {}
    gpu::sync_cta();
    p.output[gpu::thread_x()] = 0;
}

// Accesses whose cost is known; tests/accesses.rs finds each by the text of its line.
GPU_KERNEL(probe_accesses, probe_params, PROBE_THREADS, 1) {
    uint32_t *const words = &gpu::shared<uint32_t>();
    uint2 *const pairs = &gpu::shared<uint2>();
    uint4 *const quads = &gpu::shared<uint4>();
    const int t = gpu::thread_x(), lane = gpu::lane_id();
    uint32_t sum = 0;
    // Shared memory: words, parts of words, a word for all, vectors.
    sum += words[lane];
    sum += words[2 * lane];
    sum += words[32 * lane];
    sum += words[33 * lane];
    sum += words[lane / 8];
    sum += reinterpret_cast<uint8_t *>(words)[lane];
    const uint2 pair = pairs[lane];
    const uint2 far_pair = pairs[2 * lane];
    const uint4 quad = quads[lane];
    const uint4 far_quad = quads[2 * lane];
    const uint4 same_quad = quads[lane / 8];
    sum += pair.x + pair.y + far_pair.x + far_pair.y + quad.x + quad.w + far_quad.y + far_quad.z + same_quad.z;
    if (lane < 16) sum += words[2 * lane + 1];
    // Lanes that leave a loop early wait for the others, in every turn of the loop around it.
    GPU_NO_UNROLL
    for (int i = 0; i < 3; ++i) {
        GPU_NO_UNROLL
        for (int j = 0; j <= lane / 8; ++j) sum += words[32 * j + lane];
        sum += words[64 + i];
    }
    words[2 * t] = sum;
    quads[2 * t] = quad;
    gpu::sync_cta();
    // Device memory.
    sum += p.input[lane];
    sum += p.input[8 * lane];
    sum += p.input[lane + 1];
    sum += p.input[0];
    const uint4 device_quad = reinterpret_cast<const uint4 *>(p.input)[lane];
    sum += device_quad.x + device_quad.w;
    if (lane < 7) sum += p.input[7 - lane];
    p.output[t] = sum;
    gpu::atomic_add(p.output + PROBE_THREADS, 1u);
    // Copies, the second one with a gap of 16 bytes and 8 valid bytes; then rows side by side and one below the other.
    gpu::cp_async<16>(&quads[lane], p.input + 4 * lane, 16);
    gpu::cp_async<16>(&quads[2 * lane], p.input + 8 * (lane / 2), lane % 2 == 0 ? 8 : 0);
    gpu::cp_async_commit();
    gpu::cp_async_wait<0>();
    const void *rows[2] = {&quads[lane], &quads[8 * (lane % 8)]};
    uint32_t frag[2][4];
    gpu::ldmatrix_x4_tile(frag, rows);
    p.output[t] += frag[0][0] + frag[1][0];
}

// Who is last depends on the schedule: of a CTA's threads in word 1 + cta, of the CTAs in word 0.
GPU_KERNEL(probe_fault_race, probe_params, PROBE_THREADS, 1) {
    gpu::sync_cta();
    p.output[1 + gpu::cta_x()] = (uint32_t)gpu::thread_x();
    p.output[0] = (uint32_t)gpu::cta_x();
}
#endif
