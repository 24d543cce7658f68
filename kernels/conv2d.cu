// conv2d: NHWC convolution 3x3 (pad 1) as an implicit GEMM, + bias, + residual    bf16 in, f32 accumulate, bf16 or f32 out
//
// Work    one CTA per 128 output channels x 8 x 16 pixels; 4 warps as in gemm_tile.cuh, each 64 channels x 4 rows of 16 pixels.
//         32 input channels at a time, their halo of 10 x 18 pixels is fetched once and multiplied nine times, each tap reading
//         it from another pixel on; the weights of a tap and 32 channels arrive meanwhile, three stages in a ring:
//             halo     | block 0 ............ | block 1 ............ |   two slots; the next block's is fetched in rounds of one
//                                                                        cp.async per thread, each beside another tap
//             weights  | tap 0 | tap 1 | .. 8 | tap 0 | ..
//         CTAs with the same pixels follow each other in the grid, so that L2 has them.
// Norm    with one, x is read as silu(GroupNorm(x)): a thread normalizes in shared memory the chunks that it has fetched itself,
//         a round of them per tap, a block ahead of their use, by the scales and shifts that came with the first round; the
//         taps' barriers hand both over. What lies outside of the map stays zero, as the reference pads what is normalized. So
//         the normalized map exists nowhere. Neither fetch nor norm has a branch: they are scheduled between the products.
// Fold    nearest-neighbor enlargement by two, then 3x3: of the nine taps of an output pixel several read the same input pixel,
//         so each of an input pixel's four output pixels (its phases) has four taps, whose weights the loader has summed:
//         4 / 9 of the work, and an enlarged map exists nowhere.
// Layout  shared memory in planes of one 16-byte chunk (8 channels) of all pixels, or all output channels. A plane is 2 chunks
//         more than a multiple of 8, so that a warp's cp.async touches every bank once; ldmatrix reads 8 chunks in a row,
//         whatever the tap. Each place is a constant from the lane's own.
// Bound   compute: 128 HMMA and under 320 issue slots per 64 channels and tap.
// Narrow  a few output channels (conv_out) are the columns of the tensor core instead, pixels its rows: memory-bound.
// Tried   (H200) k-steps of 64 channels of one tap, gathered pixel by pixel. By the model: scales from memory at every round of the
//         norm; a halo fetched whole beside tap 0; halo rows dealt out 32 at a time, whose addresses spill. benches/WORKLOG.md.
#include "conv2d.h"
#include "gemm_epilogues.cuh"

namespace {

constexpr int THREADS = CONV2D_THREADS, BLOCK_C = CONV2D_BLOCK_C;
constexpr int TILE_H = CONV2D_TILE_HEIGHT, TILE_W = CONV2D_TILE_WIDTH;
constexpr int CHUNKS = BLOCK_C / 8;           // of 8 channels
constexpr int ROWS_AT_ONCE = THREADS / CHUNKS; // pixels, or output channels, that the CTA fetches with one cp.async per thread
constexpr int PAD = 2;
static_assert(CONV2D_BLOCK_N == GEMM_BLOCK_N && TILE_H * TILE_W == GEMM_BLOCK_M && THREADS == GEMM_THREADS, "warps as in a GEMM tile");
static_assert(TILE_W == 16 && CHUNKS == 4 && ROWS_AT_ONCE % 8 == 0, "what addresses below take for granted");

// A thread copies the same chunk of every row.
GPU_FN int own_row() { return gpu::thread_x() / CHUNKS; }
GPU_FN int own_chunk() { return gpu::thread_x() % CHUNKS; }

// The pixels that a tile of outputs reads through a filter of SIDE x SIDE taps, row by row in every plane.
//
// With one cp.async per thread the CTA fetches the first 16 pixels of two rows, whose places in the map are then constants from
// each other. What these rounds leave is one more, the first: the columns behind (two of a 3 x 3 filter, one of 2 x 2), the odd
// row (2 x 2), and the norm.
template <int SIDE> struct Halo {
    static constexpr int WIDTH = TILE_W + SIDE - 1, HEIGHT = TILE_H + SIDE - 1, PIXELS = WIDTH * HEIGHT;
    static constexpr int ROWS_A_ROUND = ROWS_AT_ONCE / TILE_W, ROUNDS = HEIGHT / ROWS_A_ROUND + 1;
    static constexpr int PLANE = ROUNDS * ROWS_AT_ONCE + PAD; // chunks
    static constexpr bool HAS_NORM = SIDE == 3; // what is enlarged has none
    static constexpr int NORM_ROWS = 4; // behind the pixels: scales, then shifts, of a plane's 8 channels
    uint4 chunk[CHUNKS * PLANE];

    // Row and column of what thread row `r` fetches of the rest; there are so many pixels in it.
    static constexpr int REST = PIXELS - (ROUNDS - 1) * ROWS_AT_ONCE;
    GPU_METHOD static int rest_y(int r) { return SIDE == 3 ? r / 2 : r < TILE_W ? HEIGHT - 1 : r - TILE_W; }
    GPU_METHOD static int rest_x(int r) { return SIDE == 3 ? TILE_W + r % 2 : r < TILE_W ? r : TILE_W; }
};
static_assert(Halo<3>::REST == 2 * Halo<3>::HEIGHT && Halo<2>::REST == TILE_W + Halo<2>::HEIGHT, "the rest");
static_assert(Halo<3>::REST + Halo<3>::NORM_ROWS <= ROWS_AT_ONCE && Halo<2>::REST <= ROWS_AT_ONCE, "is one round");

struct WeightStage {
    static constexpr int PLANE = CONV2D_BLOCK_N + PAD;
    uint4 chunk[CHUNKS * PLANE];
};

// As many stages of weights as divide the taps: a tap's stage is then known to the compiler.
template <int SIDE> struct SharedStorage {
    static constexpr int STAGES = SIDE;
    Halo<SIDE> halo[2];
    WeightStage weights[STAGES];
};
static_assert(sizeof(SharedStorage<3>) == CONV2D_SMEM_BYTES, "the header tells the host how much to ask for");
static_assert(sizeof(SharedStorage<2>) == CONV2D_ENLARGE_SMEM_BYTES, "the header tells the host how much to ask for");

// A channel pair as GroupNorm, which is a scale and a shift of each, and SiLU make it.
GPU_FN uint32_t normalize_pair(uint32_t pair, float scale_lo, float scale_hi, float shift_lo, float shift_hi) {
    const float lo = gpu::fma_exact(gpu::bf16_lo(pair), scale_lo, shift_lo);
    const float hi = gpu::fma_exact(gpu::bf16_hi(pair), scale_hi, shift_hi);
    return gpu::pack_bf16x2(gpu::silu(lo), gpu::silu(hi));
}

// Fetches halos, 32 channels of the map after the other, and normalizes them. What can be worked out anew is not kept: the
// products need the registers.
template <int SIDE> struct HaloLoader {
    using Tile = Halo<SIDE>;
    // Bits of `known` for round 0; those of the others follow.
    static constexpr uint32_t EXISTS = 1;          // there is something to fetch
    static constexpr uint32_t NORMALIZED = 1 << 8; // a pixel that a norm is for
    static constexpr uint32_t NORM = 1 << 16;      // scales or shifts; of round 0 alone
    static_assert(Tile::ROUNDS <= 8, "a bit for each of them");
    const conv2d_params &p;
    const uint4 *rest; // this thread's chunk of round 0, of the next block; in the map or not
    const uint4 *rows; // of round 1; the next ones are so many rows below
    uint32_t known;

    // Of the pixels from (y0, x0) on.
    GPU_METHOD HaloLoader(const conv2d_params &params, int y0, int x0) : p(params), known(0) {
        const uint4 *const map = reinterpret_cast<const uint4 *>(p.x) + own_chunk();
        auto pixel = [&](int y, int x) { return map + ((int64_t)(y0 + y) * p.width + x0 + x) * p.x_pitch; };
        auto take = [&](int i, int y, int x) {
            const bool in_map = y0 + y >= 0 && y0 + y < p.height && x0 + x >= 0 && x0 + x < p.width;
            if (in_map) known |= (p.norm ? EXISTS | NORMALIZED : EXISTS) << i;
        };
        rest = pixel(Tile::rest_y(own_row()), Tile::rest_x(own_row()));
        const int norm_row = own_row() - Tile::REST;
        if (norm_row < 0) {
            take(0, Tile::rest_y(own_row()), Tile::rest_x(own_row()));
        } else if (Tile::HAS_NORM && p.norm && norm_row < Tile::NORM_ROWS) {
            known = EXISTS | NORM;
            rest = reinterpret_cast<const uint4 *>(p.norm + (norm_row < 2 ? 0 : p.channels) + own_chunk() * 8) + norm_row % 2;
        }
        rows = pixel(y(1), x());
        GPU_UNROLL
        for (int i = 1; i < Tile::ROUNDS; ++i) take(i, y(i), x());
    }

    // This thread's pixel of round i, which is not the first.
    GPU_METHOD static int y(int i) { return own_row() / TILE_W + (i - 1) * Tile::ROWS_A_ROUND; }
    GPU_METHOD static int x() { return own_row() % TILE_W; }

    GPU_METHOD static uint4 &place(Tile &tile, int i) {
        const int r = own_row();
        const int of_rest = r < Tile::REST ? Tile::rest_y(r) * Tile::WIDTH + Tile::rest_x(r) : Tile::PIXELS - Tile::REST + r;
        return tile.chunk[own_chunk() * Tile::PLANE + (i == 0 ? of_rest : y(i) * Tile::WIDTH + x())];
    }

    // Called for i = 0, 1, 2, .. of every block. Zeros are fetched for what `exists` says is no block, and where there is no channel.
    GPU_METHOD void fetch_round(Tile &tile, int i, int block, bool exists) {
        const int bytes = exists ? gpu::max(0, gpu::min(p.channels - block * BLOCK_C - own_chunk() * 8, 8)) * 2 : 0;
        if (i == 0) {
            gpu::cp_async<16>(&place(tile, i), rest, known & EXISTS ? bytes : 0);
            rest += known & NORM ? BLOCK_C * sizeof(float) / 16 : CHUNKS;
        } else {
            const uint4 *const from = rows + (int64_t)((i - 1) * Tile::ROWS_A_ROUND) * p.width * p.x_pitch;
            gpu::cp_async<16>(&place(tile, i), from, known & EXISTS << i ? bytes : 0);
            if (i == Tile::ROUNDS - 1) rows += CHUNKS;
        }
    }

    GPU_METHOD void fetch(Tile &tile, int block) {
        GPU_UNROLL
        for (int i = 0; i < Tile::ROUNDS; ++i) fetch_round(tile, i, block, true);
    }

    // Round i, where `applies`: of this thread it has landed, and round 0 of all. Without a branch, so that the products around hide it.
    GPU_METHOD void normalize_round(Tile &tile, int i, bool applies) const {
        uint4 &chunk = place(tile, i);
        const float4 *const norm = reinterpret_cast<const float4 *>(&tile.chunk[own_chunk() * Tile::PLANE + Tile::PIXELS]);
        const uint4 v = chunk;
        const float4 scale = norm[0], more_scale = norm[1], shift = norm[2], more_shift = norm[3];
        const uint4 normed = {normalize_pair(v.x, scale.x, scale.y, shift.x, shift.y),
                              normalize_pair(v.y, scale.z, scale.w, shift.z, shift.w),
                              normalize_pair(v.z, more_scale.x, more_scale.y, more_shift.x, more_shift.y),
                              normalize_pair(v.w, more_scale.z, more_scale.w, more_shift.z, more_shift.w)};
        gpu::store_shared_if(applies && known & NORMALIZED << i, &chunk, normed);
    }
};

// Fetches weights: of 128 output channels, 32 of a tap after the other.
struct WeightLoader {
    static constexpr int ROUNDS = CONV2D_BLOCK_N / ROWS_AT_ONCE;
    const conv2d_params &p;
    const uint4 *src;   // this thread's chunk of its first row
    uint32_t exists;    // bit i: there is an output channel for round i

    // The output channels of a thread's rows, in the fragments' order (gemm_rows.cuh): first() + offset(i).
    GPU_METHOD static int first() { return gemm::feature_of(own_row() / 16, own_row() % 16); }
    GPU_METHOD static constexpr int offset(int i) { return i / 2 * gemm::WARP_N + i % 2 * 4; }
    static_assert(ROWS_AT_ONCE == 32, "a round is two m16 tiles, of four to a warp");

    // From chunk `begin` of each row on.
    GPU_METHOD WeightLoader(const conv2d_params &params, int n0, int begin)
        : p(params), src(reinterpret_cast<const uint4 *>(p.weight) + (int64_t)(n0 + first()) * p.weight_pitch + begin + own_chunk()),
          exists(0) {
        GPU_UNROLL
        for (int i = 0; i < ROUNDS; ++i) exists |= (n0 + first() + offset(i) < p.out_channels ? 1u : 0u) << i;
    }

    GPU_METHOD void fetch(WeightStage &stage) {
        GPU_UNROLL
        for (int i = 0; i < ROUNDS; ++i) {
            gpu::cp_async16_or_zeros(&stage.chunk[own_chunk() * WeightStage::PLANE + own_row() + i * ROWS_AT_ONCE],
                                     src + (int64_t)p.weight_pitch * offset(i), exists & 1u << i);
        }
        src += CHUNKS;
    }
};

// acc += weights of a tap x the pixels that it points at: `pixel` chunks into the halo. `beside` is done before the last products.
template <int SIDE, typename Beside>
GPU_FN void multiply_tap(gemm::Accumulators &acc, const WeightStage &weights, const Halo<SIDE> &halo, int warp_n, int pixel,
                         Beside beside) {
    const int lane = gpu::lane_id();
    const uint4 *const w = &weights.chunk[lane / 16 * WeightStage::PLANE + warp_n + lane % 16];
    const uint4 *const x = &halo.chunk[lane / 8 % 2 * Halo<SIDE>::PLANE + pixel + lane / 16 * 8 + lane % 8];
    GPU_UNROLL
    for (int k16 = 0; k16 < BLOCK_C / 16; ++k16) {
        const void *features[gemm::MT], *pixels[gemm::NT / 2];
        GPU_UNROLL
        for (int i = 0; i < gemm::MT; ++i) features[i] = w + 2 * k16 * WeightStage::PLANE + 16 * i;
        GPU_UNROLL
        for (int j = 0; j < gemm::NT / 2; ++j) pixels[j] = x + 2 * k16 * Halo<SIDE>::PLANE + j * Halo<SIDE>::WIDTH;
        uint32_t a[gemm::MT][4], frag[gemm::NT / 2][4], b[gemm::NT][2];
        gpu::ldmatrix_x4_tile<gemm::MT>(a, features);
        gpu::ldmatrix_x4_tile<gemm::NT / 2>(frag, pixels);
        if (k16 == BLOCK_C / 16 - 1) beside();
        GPU_UNROLL
        for (int j = 0; j < gemm::NT; ++j) b[j][0] = frag[j / 2][j % 2 * 2], b[j][1] = frag[j / 2][j % 2 * 2 + 1];
        gpu::mma_tile<gemm::MT, gemm::NT>(acc, a, b);
    }
}

// This lane's 8 channels of its 16 pixels: + bias, + residual, to memory. n8 tile j is half a row of the tile's.
template <int SIDE> GPU_FN void finish(const conv2d_params &p, gemm::Accumulators &acc, int y0, int x0, int phase, int feature) {
    if (feature >= p.out_channels) return;
    const int zoom = SIDE == 2 ? 2 : 1, first = x0 + gpu::lane_id() % 4 * 2;
    const int64_t to_right = zoom * p.out_pitch, down = zoom * p.width * to_right;
    const int64_t at = ((int64_t)(zoom * y0 + phase / 2) * (zoom * p.width) + zoom * first + phase % 2) * p.out_pitch + feature;
    auto dx = [](int i) { return i / 2 % 2 * 8 + i % 2; };
    auto exists = [&](int i) { return y0 + i / 4 < p.height && first + dx(i) < p.width; };
    auto place = [&](int i) { return at + i / 4 * down + dx(i) * to_right; };
    uint4 old[gemm::TOKENS_EACH]; // all on their way at once: a latency of the memory, not sixteen
    if (p.residual) {
        GPU_UNROLL
        for (int i = 0; i < gemm::TOKENS_EACH; ++i) {
            if (exists(i)) old[i] = *reinterpret_cast<const uint4 *>(p.residual + place(i));
        }
    }
    float bias[8] = {};
    if (p.bias) gemm::load_f32x8(bias, p.bias + feature);
    GPU_UNROLL
    for (int i = 0; i < gemm::TOKENS_EACH; ++i) {
        float out[8];
        gemm::take_token(out, acc, bias, i);
        if (p.residual) {
            float residual[8];
            gemm::unpack_bf16x8(residual, old[i]);
            GPU_UNROLL
            for (int c = 0; c < 8; ++c) out[c] += residual[c];
        }
        if (exists(i)) gemm::store_bf16x8(static_cast<bf16_bits *>(p.out) + place(i), out);
    }
}

// SIDE 3: the convolution, of the map or of what its norm makes of it; SIDE 2: that of the enlarged map.
template <int SIDE> GPU_FN void convolve(const conv2d_params &p) {
    constexpr bool NORM = Halo<SIDE>::HAS_NORM;
    constexpr int TAPS = SIDE * SIDE, STAGES = SharedStorage<SIDE>::STAGES;
    constexpr int FIRST_ROUND = 2; // the tap by which a halo fetched at tap 0 has landed for everyone
    static_assert(!NORM || FIRST_ROUND + Halo<SIDE>::ROUNDS < TAPS, "normalized by the last tap's barrier");
    auto &smem = gpu::shared<SharedStorage<SIDE>>();
    constexpr int PHASES = SIDE == 2 ? 4 : 1;
    const int n0 = gpu::cta_x() * CONV2D_BLOCK_N, x0 = gpu::cta_y() * TILE_W, y0 = gpu::cta_z() / PHASES * TILE_H;
    const int phase = gpu::cta_z() % PHASES;
    const int warp_n = gpu::warp_id() / 2 * gemm::WARP_N, warp_row = gpu::warp_id() % 2 * (TILE_H / 2);
    const int num_blocks = gpu::ceil_div(p.channels, BLOCK_C);
    HaloLoader<SIDE> pixels(p, y0 - 1 + phase / 2, x0 - 1 + phase % 2);
    WeightLoader weights(p, n0, phase * num_blocks * TAPS * CHUNKS);

    // prologue
    pixels.fetch(smem.halo[0], 0);
    GPU_UNROLL
    for (int tap = 0; tap < STAGES - 1; ++tap) {
        weights.fetch(smem.weights[tap]);
        gpu::cp_async_commit();
    }
    if (NORM) {
        gpu::cp_async_wait<STAGES - 2>();
        gpu::sync_cta(); // others have fetched the scales
        GPU_UNROLL
        for (int i = 0; i < Halo<SIDE>::ROUNDS; ++i) pixels.normalize_round(smem.halo[0], i, true);
    }
    gemm::Accumulators acc;
    gemm::for_each(acc, [](float) { return 0.0f; });

    // mainloop
    GPU_NO_UNROLL
    for (int block = 0; block < num_blocks; ++block) {
        const Halo<SIDE> &halo = smem.halo[block % 2];
        Halo<SIDE> &next = smem.halo[(block + 1) % 2];
        const bool has_next = block + 1 < num_blocks;
        GPU_UNROLL_BY(SIDE == 3 ? TAPS : STAGES) // enlarging, four taps at once spill on sm_120
        for (int tap = 0; tap < TAPS; ++tap) {
            gpu::cp_async_wait<STAGES - 2>();
            gpu::sync_cta(); // the step has landed for everyone, and everyone has left what is fetched next
            if (has_next || tap + STAGES - 1 < TAPS) weights.fetch(smem.weights[(tap + STAGES - 1) % STAGES]);
            if (SIDE == 2) {
                if (tap == 0 && has_next) pixels.fetch(next, block + 1);
            } else if (tap < Halo<SIDE>::ROUNDS) {
                pixels.fetch_round(next, tap, block + 1, has_next);
            }
            gpu::cp_async_commit(); // empty groups too, so that "all but the last STAGES - 2" stays true at the end
            const int pixel = (warp_row + tap / SIDE) * Halo<SIDE>::WIDTH + tap % SIDE;
            multiply_tap<SIDE>(acc, smem.weights[tap % STAGES], halo, warp_n, pixel, [&] {
                const int round = tap - FIRST_ROUND;
                if (NORM && round >= 0 && round < Halo<SIDE>::ROUNDS) pixels.normalize_round(next, round, has_next);
            });
        }
    }
    finish<SIDE>(p, acc, y0 + warp_row, x0, phase, n0 + warp_n + gpu::lane_id() / 4 * 8);
}

// conv_out: a few output channels, f32. A warp has two rows of the tile's pixels.
struct NarrowStorage {
    static constexpr int TAPS = 9, OUT_CHANNELS = CONV2D_NARROW_OUT_CHANNELS;
    Halo<3> halo[2];
    uint4 weights[2][TAPS * CHUNKS * OUT_CHANNELS];
};
static_assert(sizeof(NarrowStorage) == CONV2D_NARROW_SMEM_BYTES, "the header tells the host how much to ask for");
static_assert(CHUNKS * NarrowStorage::OUT_CHANNELS == gpu::WARP, "one ldmatrix reads a tap's weights");

GPU_FN void fetch_narrow_weights(NarrowStorage &smem, const conv2d_params &p, int block) {
    constexpr int TAPS = NarrowStorage::TAPS, ROWS = NarrowStorage::OUT_CHANNELS;
    for (int i = gpu::thread_x(); i < TAPS * CHUNKS * ROWS; i += THREADS) {
        const int row = i % ROWS, chunk = i / ROWS; // of the block's taps
        const bool exists = row < p.out_channels;
        const int64_t at = (int64_t)(exists ? row : 0) * p.weight_pitch + block * (TAPS * CHUNKS) + chunk;
        gpu::cp_async16_or_zeros(&smem.weights[block % 2][i], reinterpret_cast<const uint4 *>(p.weight) + at, exists);
    }
}

GPU_FN void convolve_narrow(const conv2d_params &p) {
    auto &smem = gpu::shared<NarrowStorage>();
    const int x0 = gpu::cta_y() * TILE_W, y0 = gpu::cta_z() * TILE_H, lane = gpu::lane_id(), warp_row = gpu::warp_id() * 2;
    const int num_blocks = gpu::ceil_div(p.channels, BLOCK_C);
    HaloLoader<3> pixels(p, y0 - 1, x0 - 1);
    auto fetch = [&](int block) {
        if (block < num_blocks) {
            pixels.fetch(smem.halo[block % 2], block);
            fetch_narrow_weights(smem, p, block);
        }
        gpu::cp_async_commit();
    };
    float acc[2][1][4] = {};
    fetch(0);
    GPU_NO_UNROLL
    for (int block = 0; block < num_blocks; ++block) {
        Halo<3> &halo = smem.halo[block % 2];
        gpu::cp_async_wait<0>();
        gpu::sync_cta(); // the block is there for everyone, and everyone has left the one before
        fetch(block + 1);
        GPU_UNROLL
        for (int i = 0; i < Halo<3>::ROUNDS; ++i) pixels.normalize_round(halo, i, true);
        gpu::sync_cta(); // it is normalized
        GPU_UNROLL
        for (int tap = 0; tap < NarrowStorage::TAPS; ++tap) {
            const void *const weights[1] = {&smem.weights[block % 2][tap * gpu::WARP + lane]};
            uint32_t w[1][4];
            gpu::ldmatrix_x4_tile<1>(w, weights);
            const int pixel = (warp_row + tap / 3) * Halo<3>::WIDTH + tap % 3 + lane % 16;
            GPU_UNROLL
            for (int k16 = 0; k16 < BLOCK_C / 16; ++k16) {
                const void *rows[2];
                GPU_UNROLL
                for (int i = 0; i < 2; ++i) rows[i] = &halo.chunk[(2 * k16 + lane / 16) * Halo<3>::PLANE + pixel + i * Halo<3>::WIDTH];
                uint32_t a[2][4];
                gpu::ldmatrix_x4_tile<2>(a, rows);
                const uint32_t b[1][2] = {{w[0][2 * k16], w[0][2 * k16 + 1]}};
                gpu::mma_tile<2, 1>(acc, a, b);
            }
        }
    }
    GPU_UNROLL
    for (int i = 0; i < 2; ++i) {
        GPU_UNROLL
        for (int e = 0; e < 4; ++e) {
            const int y = y0 + warp_row + i, x = x0 + lane / 4 + e / 2 * 8, channel = lane % 4 * 2 + e % 2;
            if (y < p.height && x < p.width && channel < p.out_channels) {
                const float bias = p.bias ? p.bias[channel] : 0.0f;
                static_cast<float *>(p.out)[((int64_t)y * p.width + x) * p.out_pitch + channel] = acc[i][0][e] + bias;
            }
        }
    }
}

} // namespace

GPU_KERNEL(conv2d_bf16_sm80, conv2d_params, CONV2D_THREADS, 2) { convolve<3>(p); }
GPU_KERNEL(conv2d_enlarge_bf16_sm80, conv2d_params, CONV2D_THREADS, 2) { convolve<2>(p); }
GPU_KERNEL(conv2d_narrow_f32_sm80, conv2d_params, CONV2D_THREADS, 2) { convolve_narrow(p); }
