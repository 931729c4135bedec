// Linear maps of few rows, as decoding needs them, with what stands around them in a decoder layer:
//   y = act(norm(x) W^T + bias) + residual   and, for low-rank branches,   down = norm(x) A^T
// for x [rows, K], W [N, K] and A [ranks, K]. Bound by the bytes of W, which are read once for every 64 rows.
//
// A cluster of `splits` blocks does 64 columns of y for 8 TILES rows; its blocks share K, and so do the warps of a block,
// in slices of 32. A lane copies into its own ring of shared memory the 16 bytes that are its share of a matrix fragment (the
// order of k within a slice is free as long as W and x have the same), so no thread waits for another's copies. Shares meet in
// shared memory, first a block's, then a cluster's. The order of every sum depends on N, K and `splits` alone: a row's bits
// depend neither on its neighbours nor on TILES.
//
// The norm is applied to the sums: norm(x) W^T = (x * g) W^T / rms(x), with x^2 summed along the way. act is the identity, or
// with `gate` silu(gate) * up for W = [gate; up]; then a block has 32 columns of either, and there is no residual and no A.
//
// Block 128, grid (splits * (tiles of W + tiles of A), ceil(rows / (8 TILES))), clusters of (splits, 1, 1) from sm_90 on and
// splits 1 before. Dynamic shared memory: Ring<TILES>::BYTES. K, N, ranks and strides are multiples of 8.
#include "common.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS, COLUMNS = 64, SLICE = 32, FRAGMENTS = COLUMNS / 8;

template <int TILES>
struct Ring {
    static constexpr int STAGES = TILES <= 2 ? 4 : 3;
    // Fragments of W, one of the norm's weight, fragments of x; 16 bytes of each lane.
    static constexpr int SLOTS = FRAGMENTS + 1 + TILES;
    static constexpr int BYTES = WARPS * STAGES * SLOTS * 32 * 16;
    // Afterwards: sums [WARPS][rows][WIDTH] and squares [WARPS][rows]; WIDTH is padded against bank conflicts.
    static constexpr int ROWS = 8 * TILES, WIDTH = COLUMNS + 4;
    static_assert(WARPS * ROWS * (WIDTH + 1) * 4 <= BYTES);
};

struct Linear {
    const bf16* x;
    long long x_stride;
    const bf16* norm;  // or null: x as it is
    float eps;
    const bf16* w;
    int n;
    const bf16* a;
    int ranks, rows, k, gate, splits;

    __forceinline__ int w_tiles() const {
        return (n + COLUMNS - 1) / COLUMNS;  // N is even with `gate`, and its half a multiple of 8
    }

    __forceinline__ int tile() const {
        return blockIdx.x / splits;
    }

    // The row of W or A that is column `c` of this block. Columns past the end repeat the last one; they are not written.
    __forceinline__ const bf16* column(int c) const {
        if (tile() >= w_tiles()) return a + (long long)min((tile() - w_tiles()) * COLUMNS + c, ranks - 1) * k;
        const int half = COLUMNS / 2, inner = n / 2;
        if (gate) return w + (long long)(c / half * inner + min(tile() * half + c % half, inner - 1)) * k;
        return w + (long long)min(tile() * COLUMNS + c, n - 1) * k;
    }
};

// The pairs' products, rounded: a fused multiply-add with -0 (sm_80 has no multiplication of pairs).
__forceinline__ unsigned times(unsigned a, unsigned b) {
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
}

__forceinline__ float squares_of(uint4 v) {
    float x[8], sum = 0.0f;
    unpack8(v, x);
#pragma unroll
    for (int i = 0; i < 8; i++) sum = fmaf(x[i], x[i], sum);
    return sum;
}

// A warp's way along K.
template <int TILES>
struct Walk {
    const Linear& f;
    const bf16* columns[FRAGMENTS];  // this lane's rows of W: 8 i + lane / 4
    uint4* ring;                     // this lane's: [stage][slot], 32 apart
    int part, first_row, slice, end;

    __forceinline__ explicit Walk(const Linear& f) : f(f) {
        const int warp = threadIdx.x >> 5, total = (f.k + SLICE - 1) / SLICE, split = blockIdx.x % f.splits;
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++) columns[i] = f.column(8 * i + (lane_id() >> 2));
        ring = dynamic_shared + warp * (Ring<TILES>::STAGES * Ring<TILES>::SLOTS * 32) + lane_id();
        part = (lane_id() & 3) * 8;
        first_row = blockIdx.y * Ring<TILES>::ROWS;
        slice = split * total / f.splits + warp, end = (split + 1) * total / f.splits;
    }

    __forceinline__ uint4* slot(int stage, int i) const {
        return ring + (stage * Ring<TILES>::SLOTS + i) * 32;
    }

    __forceinline__ void copy_weights(int stage, int which) const {
        const int k = which * SLICE + part, bytes = which < end && k < f.k ? 16 : 0, at = bytes ? k : 0;
        if (which >= end) return;
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++) copy_async(slot(stage, i), columns[i] + at, bytes);
        if (f.norm) copy_async(slot(stage, FRAGMENTS), f.norm + at, bytes);
    }

    __forceinline__ void copy_rows(int stage, int which) const {
        if (which >= end) return;
        const int k = which * SLICE + part;
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            const int row = first_row + 8 * j + (lane_id() >> 2);
            const bool inside = row < f.rows && k < f.k;
            copy_async(slot(stage, FRAGMENTS + 1 + j), f.x + (inside ? row * f.x_stride + k : 0), inside ? 16 : 0);
        }
    }

    // What does not depend on earlier kernels: weights never change while a graph runs.
    __forceinline__ void start() const {
#pragma unroll
        for (int s = 0; s < Ring<TILES>::STAGES; s++) copy_weights(s, slice + s * WARPS);
    }

    // d[i][j]: columns 16 i .. by rows 8 j .., as multiply_add has them; squares of this lane's part of row 8 j + lane / 4.
    __forceinline__ void run(float (&d)[FRAGMENTS / 2][TILES][4], float (&squares)[TILES]) {
        constexpr int STAGES = Ring<TILES>::STAGES;
#pragma unroll
        for (int s = 0; s < STAGES; s++) copy_rows(s, slice + s * WARPS), copy_commit();
        for (int stage = 0; slice < end; slice += WARPS) {
            copy_wait<STAGES - 1>();
            multiply(stage, d, squares);
            copy_weights(stage, slice + STAGES * WARPS), copy_rows(stage, slice + STAGES * WARPS), copy_commit();
            if (++stage == STAGES) stage = 0;
        }
        copy_wait<0>();
    }

    __forceinline__ void multiply(int stage, float (&d)[FRAGMENTS / 2][TILES][4], float (&squares)[TILES]) const {
        uint4 a[FRAGMENTS], g;
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++) a[i] = *slot(stage, i);
        if (f.norm) g = *slot(stage, FRAGMENTS);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            uint4 b = *slot(stage, FRAGMENTS + 1 + j);
            if (f.norm) {
                squares[j] += squares_of(b);
                b = make_uint4(times(b.x, g.x), times(b.y, g.y), times(b.z, g.z), times(b.w, g.w));
            }
#pragma unroll
            for (int i = 0; i < FRAGMENTS; i += 2) {
                multiply_add(d[i / 2][j], {a[i].x, a[i + 1].x, a[i].y, a[i + 1].y}, b.x, b.y);
                multiply_add(d[i / 2][j], {a[i].z, a[i + 1].z, a[i].w, a[i + 1].w}, b.z, b.w);
            }
        }
    }
};

// ---- sums of a cluster ----

__forceinline__ void meet_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
#endif
}

// A value in the shared memory of a block of the cluster, at the address that it has in this one.
__forceinline__ float4 load_of_block(const float* p, int block) {
#if __CUDA_ARCH__ >= 900
    unsigned address;
    float4 v;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(block));
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
#else
    return *reinterpret_cast<const float4*>(p);
#endif
}

// Sums over the warps of the block, in place of the first warp's.
template <int TILES>
__forceinline__ void join_warps(const Linear& f, float (&d)[FRAGMENTS / 2][TILES][4], float (&squares)[TILES], int rows) {
    using R = Ring<TILES>;
    float* sums = reinterpret_cast<float*>(dynamic_shared);
    float* all_squares = sums + WARPS * R::ROWS * R::WIDTH;
    const int warp = threadIdx.x >> 5, group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    __syncthreads();  // the rings are free
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        float* low = sums + (warp * R::ROWS + 8 * j + pair) * R::WIDTH + group;
#pragma unroll
        for (int i = 0; i < FRAGMENTS / 2; i++) {
            low[16 * i] = d[i][j][0], low[R::WIDTH + 16 * i] = d[i][j][1];
            low[16 * i + 8] = d[i][j][2], low[R::WIDTH + 16 * i + 8] = d[i][j][3];
        }
        float sum = squares[j] + __shfl_xor_sync(ALL_LANES, squares[j], 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        if ((lane_id() & 3) == 0) all_squares[warp * R::ROWS + 8 * j + group] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < rows * (COLUMNS / 4); i += THREADS) {
        float4* at = reinterpret_cast<float4*>(sums + i / (COLUMNS / 4) * R::WIDTH + i % (COLUMNS / 4) * 4);
        float4 sum = at[0];
#pragma unroll
        for (int w = 1; w < WARPS; w++) {
            const float4 v = at[w * (R::ROWS * R::WIDTH / 4)];
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        at[0] = sum;
    }
    if (threadIdx.x < rows) {
        float* at = all_squares + threadIdx.x;
        float sum = at[0];
#pragma unroll
        for (int w = 1; w < WARPS; w++) sum += at[w * R::ROWS];
        at[0] = sum;
    }
    if (f.splits > 1) meet_cluster();
    else __syncthreads();
}

// Eight columns of a row of the whole product.
template <int TILES>
__forceinline__ void joined(const Linear& f, int row, int column, float (&v)[8]) {
    using R = Ring<TILES>;
    const float* from = reinterpret_cast<const float*>(dynamic_shared) + row * R::WIDTH + column;
    if (f.splits == 1) return load8(from, v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 0.0f;
#pragma unroll 4
    for (int block = 0; block < f.splits; block++) {
        const float4 x = load_of_block(from, block), y = load_of_block(from + 4, block);
        v[0] += x.x, v[1] += x.y, v[2] += x.z, v[3] += x.w, v[4] += y.x, v[5] += y.y, v[6] += y.z, v[7] += y.w;
    }
}

template <int TILES>
__forceinline__ float inverse_rms(const Linear& f, int row) {
    using R = Ring<TILES>;
    if (!f.norm) return 1.0f;
    // A vector of four rows' sums holds this row's.
    const float* from = reinterpret_cast<const float*>(dynamic_shared) + WARPS * R::ROWS * R::WIDTH + row / 4 * 4;
    float sum = 0.0f;
    for (int block = 0; block < f.splits; block++) {
        const float4 v = load_of_block(from, block);
        sum += row % 4 == 0 ? v.x : row % 4 == 1 ? v.y : row % 4 == 2 ? v.z : v.w;
    }
    return 1.0f / sqrtf(sum / f.k + f.eps);
}

struct Output {
    const bf16 *bias, *residual;  // or null; the residual is laid out like y, which it may be
    bf16* down;                   // [rows, ranks]
    void* y;
    long long stride;
    int f32;
};

__forceinline__ void add8(float (&v)[8], const bf16* p) {
    float x[8];
    load8(p, x);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += x[i];
}

__forceinline__ float silu(float x) {
    return x / (1.0f + __expf(-x));
}

// This block's part of the cluster's outputs, eight columns of a row at a time.
template <int TILES>
__forceinline__ void finish(const Linear& f, const Output& out, int rows) {
    const int split = blockIdx.x % f.splits, half = COLUMNS / 2, per_row = (f.gate ? half : COLUMNS) / 8;
    const int tile = f.tile(), units = rows * per_row, end = (split + 1) * units / f.splits;
    for (int unit = split * units / f.splits + threadIdx.x; unit < end; unit += THREADS) {
        const int row = unit / per_row, local = unit % per_row * 8;
        const long long at_row = blockIdx.y * Ring<TILES>::ROWS + row;
        float v[8];
        joined<TILES>(f, row, local, v);
        const float inverse = inverse_rms<TILES>(f, row);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= inverse;
        if (tile >= f.w_tiles()) {
            const int column = (tile - f.w_tiles()) * COLUMNS + local;
            if (column < f.ranks) store8(out.down + at_row * f.ranks + column, v);
            continue;
        }
        const int column = tile * per_row * 8 + local;
        if (column >= (f.gate ? f.n / 2 : f.n)) continue;
        if (out.bias) add8(v, out.bias + column);
        if (f.gate) {
            float up[8];
            joined<TILES>(f, row, half + local, up);
#pragma unroll
            for (int i = 0; i < 8; i++) up[i] *= inverse;
            if (out.bias) add8(up, out.bias + f.n / 2 + column);
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = silu(v[i]) * up[i];
        }
        const long long at = at_row * out.stride + column;
        if (out.residual) add8(v, out.residual + at);
        if (out.f32) store8(static_cast<float*>(out.y) + at, v);
        else store8(static_cast<bf16*>(out.y) + at, v);
    }
}

#define INSTANTIATE(ROWS)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) project_rows##ROWS(                                           \
        const bf16* x, long long x_stride, const bf16* norm, float eps, const bf16* w, const bf16* a, const bf16* bias,    \
        const bf16* residual, void* y, long long y_stride, bf16* down, int rows, int n, int k, int ranks, int gate,        \
        int f32, int splits) {                                                                                             \
        constexpr int TILES = ROWS / 8;                                                                                    \
        const Linear f = {x, x_stride, norm, eps, w, n, a, ranks, rows, k, gate, splits};                                  \
        Walk<TILES> walk(f);                                                                                               \
        let_next_start();                                                                                                  \
        walk.start();                                                                                                      \
        wait_for_previous();                                                                                               \
        float d[FRAGMENTS / 2][TILES][4] = {}, squares[TILES] = {};                                                        \
        walk.run(d, squares);                                                                                              \
        const int left = min(ROWS, rows - (int)blockIdx.y * ROWS);                                                         \
        join_warps<TILES>(f, d, squares, left);                                                                            \
        finish<TILES>(f, {bias, residual, down, y, y_stride, f32}, left);                                                  \
        if (splits > 1) meet_cluster();                                                                                    \
    }

INSTANTIATE(8)
INSTANTIATE(16)
INSTANTIATE(32)
INSTANTIATE(64)
