// group_norm_silu: out = act((x - mean_g) / sqrt(var_g + eps) * weight + bias)     NHWC, bf16 in, f32 inside, bf16 out
//
// Work    three launches. `partials`: one CTA per chunk of 64 pixels leaves mean and M2 (sum of squared deviations) of
//         every group; `finish`: one CTA per group combines its chunks, and makes of them what each of its channels is scaled
//         and shifted by; `apply`: one CTA per chunk does so. conv2d.cu does it, too, as it reads: then there is no `apply`.
//         In the first and last a thread owns a unit of 8 neighboring channels (1 where alignment forbids) and every
//         num_lanes-th pixel of the chunk:
//             unit    0  1  2 .. | 0  1  2 .. | ..       slot = lane * num_units + unit, one slot per thread
//             pixel   0  0  0    | 1  1  1    |          (more than one only above 256 units)
// Layout  chunks depend on the pixel index alone, so the bits do not depend on the grid or the number of SMs.
// Bound   memory: 2 bytes per element, and 4 where it is applied here.
// Source  GroupNorm (arXiv:1803.08494); Chan, Golub, LeVeque: updating formulae for the sample variance (1979).
//
// Precision. A slot sums deviations from its own first pixel. A sample of n values lies at most sqrt(n - 1) standard
// deviations from their mean, so with n <= 64 the subtraction s2 - s1^2 / n amplifies f32 rounding 64-fold at most:
// 4e-6 relative, however large the mean. Slots and chunks are then combined by Chan's formula, M2 + n (mean_i - mean)^2,
// with means averaged as offsets from the first: a group of equal values has exactly their mean and no variance. (Plain
// weighted means were off by 1e-7 of the mean, which eps = 1e-6 turns into 1e-4 of the mean in the output.) x * scale + shift
// is off by up to 2^-23 |x| scale; x as bf16 is known to 2^-9 |x|.
#include "group_norm_silu.h"
#include "gpu.cuh"

constexpr int THREADS = GROUP_NORM_SILU_THREADS;
constexpr int CHUNK = GROUP_NORM_SILU_CHUNK;

// Partial statistics of one channel of one slot. V = 8 channels a slot, at most 256 slots; or V = 1, at most 2048.
struct SharedStorage {
    float mean[GROUP_NORM_SILU_MAX_CHANNELS];
    float m2[GROUP_NORM_SILU_MAX_CHANNELS];
};
static_assert(sizeof(SharedStorage) == GROUP_NORM_SILU_SMEM_BYTES, "the launch must provide exactly this");
static_assert(THREADS * 8 <= GROUP_NORM_SILU_MAX_CHANNELS, "every thread's slot of 8 channels must fit");

struct FinishStorage {
    float warp_sums[THREADS / gpu::WARP];
};
static_assert(sizeof(FinishStorage) == GROUP_NORM_SILU_FINISH_SMEM_BYTES, "the launch must provide exactly this");

// How a chunk of pixels and all channels are dealt to the threads.
struct Slots {
    int num_units;   // units of V channels
    int num_lanes;   // pixels in flight
    int64_t pixel;   // the chunk's first
    int num_pixels;  // in the chunk
};
template <int V> GPU_FN Slots deal(const group_norm_silu_params &p) {
    Slots slots;
    slots.num_units = p.channels / V;
    slots.num_lanes = gpu::max(1, gpu::min(THREADS / slots.num_units, CHUNK));
    slots.pixel = (int64_t)gpu::cta_x() * CHUNK;
    slots.num_pixels = (int)gpu::min<int64_t>(CHUNK, p.pixels - slots.pixel);
    return slots;
}

// How many of the chunk's pixels `lane` sees.
GPU_FN int lane_pixels(const Slots &slots, int lane) {
    return lane < slots.num_pixels ? (slots.num_pixels - lane + slots.num_lanes - 1) / slots.num_lanes : 0;
}

template <int V> GPU_FN void load_bf16(float (&to)[V], const bf16_bits *from) {
    static_assert(V == 1 || V == 8, "one channel or 16 bytes of them");
    if constexpr (V == 8) {
        const uint4 v = *reinterpret_cast<const uint4 *>(from);
        to[0] = gpu::bf16_lo(v.x), to[1] = gpu::bf16_hi(v.x), to[2] = gpu::bf16_lo(v.y), to[3] = gpu::bf16_hi(v.y);
        to[4] = gpu::bf16_lo(v.z), to[5] = gpu::bf16_hi(v.z), to[6] = gpu::bf16_lo(v.w), to[7] = gpu::bf16_hi(v.w);
    } else {
        to[0] = gpu::bf16_to_float(*from);
    }
}
template <int V> GPU_FN void load_f32(float (&to)[V], const float *from) {
    static_assert(V == 1 || V == 8, "one channel or 32 bytes of them");
    if constexpr (V == 8) {
        const float4 lo = reinterpret_cast<const float4 *>(from)[0], hi = reinterpret_cast<const float4 *>(from)[1];
        to[0] = lo.x, to[1] = lo.y, to[2] = lo.z, to[3] = lo.w, to[4] = hi.x, to[5] = hi.y, to[6] = hi.z, to[7] = hi.w;
    } else {
        to[0] = *from;
    }
}
template <int V> GPU_FN void store_bf16(bf16_bits *to, const float (&from)[V]) {
    if constexpr (V == 8) {
        *reinterpret_cast<uint4 *>(to) = uint4{gpu::pack_bf16x2(from[0], from[1]), gpu::pack_bf16x2(from[2], from[3]),
                                               gpu::pack_bf16x2(from[4], from[5]), gpu::pack_bf16x2(from[6], from[7])};
    } else {
        *to = gpu::float_to_bf16(from[0]);
    }
}

template <int V> GPU_FN void group_norm_partials(const group_norm_silu_params &p) {
    SharedStorage &smem = gpu::shared<SharedStorage>();
    const Slots slots = deal<V>(p);

    for (int slot = gpu::thread_x(); slot < slots.num_units * slots.num_lanes; slot += THREADS) {
        const int lane = slot / slots.num_units, unit = slot % slots.num_units;
        const int n = lane_pixels(slots, lane);
        const bf16_bits *x = p.x + (slots.pixel + lane) * p.pitch + unit * V;
        float first[V] = {}, s1[V] = {}, s2[V] = {};
        if (n > 0) load_bf16(first, x);
        for (int i = 1; i < n; ++i) {
            float v[V];
            load_bf16(v, x + (int64_t)i * slots.num_lanes * p.pitch);
            GPU_UNROLL
            for (int j = 0; j < V; ++j) {
                const float d = v[j] - first[j];
                s1[j] += d;
                s2[j] += d * d;
            }
        }
        const float inverse = n > 0 ? 1.0f / (float)n : 0.0f;
        GPU_UNROLL
        for (int j = 0; j < V; ++j) {
            smem.mean[slot * V + j] = first[j] + s1[j] * inverse;
            smem.m2[slot * V + j] = gpu::max(s2[j] - s1[j] * (s1[j] * inverse), 0.0f);
        }
    }
    gpu::sync_cta();

    const int group_channels = p.channels / p.groups;
    const float inverse = 1.0f / (float)(slots.num_pixels * group_channels);
    for (int group = gpu::thread_x(); group < p.groups; group += THREADS) {
        // Groups begin with different channels: if all began with their first, 16 channels apart, all would ask two banks.
        const int turn = group * group_channels / gpu::WARP % group_channels;
        auto channel = [&](int c) { return group * group_channels + (c + turn < group_channels ? c + turn : c + turn - group_channels); };
        const float origin = smem.mean[group * group_channels];
        float offset = 0.0f;
        for (int lane = 0; lane < slots.num_lanes; ++lane) {
            float sum = 0.0f;
            for (int c = 0; c < group_channels; ++c) sum += smem.mean[lane * p.channels + channel(c)] - origin;
            offset += sum * ((float)lane_pixels(slots, lane) * inverse);
        }
        const float mean = origin + offset;
        float m2 = 0.0f;
        for (int lane = 0; lane < slots.num_lanes; ++lane) {
            const float n = (float)lane_pixels(slots, lane);
            for (int c = 0; c < group_channels; ++c) {
                const int i = lane * p.channels + channel(c);
                const float d = smem.mean[i] - mean;
                m2 += smem.m2[i] + n * (d * d);
            }
        }
        float *const to = p.partials + ((int64_t)group * p.num_chunks + gpu::cta_x()) * 2;
        to[0] = mean;
        to[1] = m2;
    }
}

// The sum over the CTA in a fixed order; every thread gets it.
GPU_FN float cta_sum(FinishStorage &smem, float v) {
    v = gpu::warp_sum(v);
    gpu::sync_cta();  // the last call's sums have been read
    if (gpu::lane_id() == 0) smem.warp_sums[gpu::warp_id()] = v;
    gpu::sync_cta();
    float sum = 0.0f;
    GPU_UNROLL
    for (int i = 0; i < THREADS / gpu::WARP; ++i) sum += smem.warp_sums[i];
    return sum;
}

GPU_KERNEL(group_norm_finish, group_norm_silu_params, GROUP_NORM_SILU_THREADS, 1) {
    FinishStorage &smem = gpu::shared<FinishStorage>();
    const float *const partials = p.partials + (int64_t)gpu::cta_x() * p.num_chunks * 2;
    const float count = (float)p.pixels;
    // A chunk's share of the pixels: all chunks but the last are whole.
    auto pixels_of = [&](int chunk) { return (float)gpu::min<int64_t>(CHUNK, p.pixels - (int64_t)chunk * CHUNK); };

    const float origin = partials[0];
    float offset = 0.0f;
    for (int chunk = gpu::thread_x(); chunk < p.num_chunks; chunk += THREADS) {
        offset += (partials[2 * chunk] - origin) * (pixels_of(chunk) / count);
    }
    const float mean = origin + cta_sum(smem, offset);

    // Divided by the group's channels: M2 of a chunk counts pixels x channels values, its weight only pixels.
    const float group_channels = (float)(p.channels / p.groups);
    float m2 = 0.0f;
    for (int chunk = gpu::thread_x(); chunk < p.num_chunks; chunk += THREADS) {
        const float d = partials[2 * chunk] - mean;
        m2 += partials[2 * chunk + 1] / group_channels + pixels_of(chunk) * (d * d);
    }
    const float rstd = gpu::rsqrt_exact(cta_sum(smem, m2) / count + p.eps);
    const int first = gpu::cta_x() * (int)group_channels;
    for (int c = first + gpu::thread_x(); c < first + (int)group_channels; c += THREADS) {
        const float scale = rstd * p.weight[c];
        p.norm[c] = scale;
        p.norm[p.channels + c] = gpu::fma_exact(-mean, scale, p.bias[c]);
    }
}

template <int V> GPU_FN void group_norm_apply(const group_norm_silu_params &p) {
    const Slots slots = deal<V>(p);
    for (int slot = gpu::thread_x(); slot < slots.num_units * slots.num_lanes; slot += THREADS) {
        const int lane = slot / slots.num_units, unit = slot % slots.num_units;
        float scale[V], shift[V];
        load_f32(scale, p.norm + unit * V);
        load_f32(shift, p.norm + p.channels + unit * V);
        for (int pixel = lane; pixel < slots.num_pixels; pixel += slots.num_lanes) {
            float v[V];
            load_bf16(v, p.x + (slots.pixel + pixel) * p.pitch + unit * V);
            GPU_UNROLL
            for (int j = 0; j < V; ++j) {
                v[j] = gpu::fma_exact(v[j], scale[j], shift[j]);
                if (p.silu) v[j] = gpu::silu(v[j]);
            }
            store_bf16(p.out + (slots.pixel + pixel) * p.out_pitch + unit * V, v);
        }
    }
}

GPU_KERNEL(group_norm_partials_x8, group_norm_silu_params, GROUP_NORM_SILU_THREADS, 1) { group_norm_partials<8>(p); }
GPU_KERNEL(group_norm_partials_x1, group_norm_silu_params, GROUP_NORM_SILU_THREADS, 1) { group_norm_partials<1>(p); }
GPU_KERNEL(group_norm_apply_x8, group_norm_silu_params, GROUP_NORM_SILU_THREADS, 1) { group_norm_apply<8>(p); }
GPU_KERNEL(group_norm_apply_x1, group_norm_silu_params, GROUP_NORM_SILU_THREADS, 1) { group_norm_apply<1>(p); }
