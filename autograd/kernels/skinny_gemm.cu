// Linear maps of one to eight rows, as decoding needs them, with what stands around them in a decoder layer:
//   y = act(norm(x) W^T + bias) + residual   and, for low-rank branches,   down = norm(x) A^T
// for x [rows, K], W [N, K] and A [ranks, K]. Bound by the bytes of W, which are read once. What costs beside them is time
// in which no bytes flow, so a block has its first part of W under way before it waits for the kernel that makes x.
//
// A block does 8 F columns of y. Its warps share K in slices of 32. A lane copies into its own ring of shared memory the 16
// bytes that are its share of a matrix fragment (the order of k within a slice is free as long as W and x have the same), so
// no thread waits for another's copies. The order of every sum depends on K alone: a row's bits depend neither on its
// neighbours nor on F. Choose F so that there are about as many blocks as multiprocessors.
//
// The norm is applied to the sums: norm(x) W^T = (x * g) W^T / rms(x), with x^2 summed along the way. act is the identity, or
// with `gate` silu(gate) * up for W = [gate; up]; then F is even, a block has 4 F columns of either, and there is no A.
//
// Block 256, grid (tiles of W + tiles of A). Dynamic shared memory: Ring<F>::BYTES, so that blocks of two kernels fit a
// multiprocessor. K, N, ranks and strides are multiples of 8.
#include "common.cuh"

constexpr int WARPS = 8, THREADS = 32 * WARPS, SLICE = 32, ROWS = 8;

template <int F>
struct Ring {
    static constexpr int SLOTS = F + 2;  // fragments of W, of the norm's weight, of x: 16 bytes of each lane
    static constexpr int STAGES = 24 / SLOTS;
    static constexpr int BYTES = WARPS * STAGES * SLOTS * 32 * 16;
    // Afterwards: sums [WARPS][ROWS][WIDTH], padded against bank conflicts, and squares [WARPS][ROWS].
    static constexpr int COLUMNS = 8 * F, WIDTH = 16 * ((F + 1) / 2) + 4;
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
    int ranks, rows, k, gate;
};

// The columns of a block.
template <int F>
struct Tile {
    const Linear& f;
    int first;    // of them, in W or A
    bool branch;  // in A

    __forceinline__ explicit Tile(const Linear& f) : f(f) {
        const int tiles = (f.n + 8 * F - 1) / (8 * F);
        branch = blockIdx.x >= tiles;
        first = (blockIdx.x - (branch ? tiles : 0)) * (f.gate ? 4 * F : 8 * F);
    }

    // The row of W or A for column `c`. Columns past the end repeat the last one; they are not written.
    __forceinline__ const bf16* row(int c) const {
        if (branch) return f.a + (long long)min(first + c, f.ranks - 1) * f.k;
        const int inner = f.n / 2;
        if (f.gate) return f.w + (long long)(c / (4 * F) * inner + min(first + c % (4 * F), inner - 1)) * f.k;
        return f.w + (long long)min(first + c, f.n - 1) * f.k;
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

// What a warp has summed: d[i] columns 16 i .. by rows, as multiply_add has them; squares of this lane's part of row lane / 4.
template <int F>
struct Sums {
    float d[(F + 1) / 2][4] = {}, squares = 0.0f;
};

// A warp's way along K.
template <int F>
struct Walk {
    const Linear& f;
    const bf16* rows[F];  // this lane's of W: columns 8 i + lane / 4
    uint4* ring;          // this lane's: [stage][slot], 32 apart
    int part, slice, end;

    __forceinline__ Walk(const Linear& f, const Tile<F>& tile) : f(f) {
        const int warp = threadIdx.x >> 5;
#pragma unroll
        for (int i = 0; i < F; i++) rows[i] = tile.row(8 * i + (lane_id() >> 2));
        ring = dynamic_shared + warp * (Ring<F>::STAGES * Ring<F>::SLOTS * 32) + lane_id();
        part = (lane_id() & 3) * 8;
        slice = warp, end = (f.k + SLICE - 1) / SLICE;
    }

    __forceinline__ uint4* slot(int stage, int i) const {
        return ring + (stage * Ring<F>::SLOTS + i) * 32;
    }

    __forceinline__ void copy_weights(int stage, int which) const {
        if (which >= end) return;
        const int k = which * SLICE + part, bytes = k < f.k ? 16 : 0, at = bytes ? k : 0;
#pragma unroll
        for (int i = 0; i < F; i++) copy_async(slot(stage, i), rows[i] + at, bytes);
        if (f.norm) copy_async(slot(stage, F), f.norm + at, bytes);
    }

    __forceinline__ void copy_rows(int stage, int which) const {
        if (which >= end) return;
        const int k = which * SLICE + part, row = lane_id() >> 2;
        const bool inside = row < f.rows && k < f.k;
        copy_async(slot(stage, F + 1), f.x + (inside ? row * f.x_stride + k : 0), inside ? 16 : 0);
    }

    // What does not depend on earlier kernels: weights never change while a graph runs.
    __forceinline__ void start() const {
#pragma unroll
        for (int s = 0; s < Ring<F>::STAGES; s++) copy_weights(s, slice + s * WARPS);
    }

    __forceinline__ void run(Sums<F>& sums) {
        constexpr int STAGES = Ring<F>::STAGES;
#pragma unroll
        for (int s = 0; s < STAGES; s++) copy_rows(s, slice + s * WARPS), copy_commit();
        for (int stage = 0; slice < end; slice += WARPS) {
            copy_wait<STAGES - 1>();
            multiply(stage, sums);
            copy_weights(stage, slice + STAGES * WARPS), copy_rows(stage, slice + STAGES * WARPS), copy_commit();
            if (++stage == STAGES) stage = 0;
        }
        copy_wait<0>();
    }

    __forceinline__ void multiply(int stage, Sums<F>& sums) const {
        uint4 b = *slot(stage, F + 1);
        if (f.norm) {
            const uint4 g = *slot(stage, F);
            sums.squares += squares_of(b);
            b = make_uint4(times(b.x, g.x), times(b.y, g.y), times(b.z, g.z), times(b.w, g.w));
        }
#pragma unroll
        for (int i = 0; i < F; i += 2) {
            const uint4 low = *slot(stage, i), high = i + 1 < F ? *slot(stage, i + 1) : make_uint4(0, 0, 0, 0);
            multiply_add(sums.d[i / 2], {low.x, high.x, low.y, high.y}, b.x, b.y);
            multiply_add(sums.d[i / 2], {low.z, high.z, low.w, high.w}, b.z, b.w);
        }
    }
};

// Puts the warps' sums side by side into shared memory.
template <int F>
__forceinline__ void share(const Sums<F>& sums) {
    using R = Ring<F>;
    float* all = reinterpret_cast<float*>(dynamic_shared);
    const int warp = threadIdx.x >> 5, group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    float* low = all + (warp * ROWS + pair) * R::WIDTH + group;
    __syncthreads();  // the rings are free
#pragma unroll
    for (int i = 0; i < (F + 1) / 2; i++) {
        low[16 * i] = sums.d[i][0], low[R::WIDTH + 16 * i] = sums.d[i][1];
        low[16 * i + 8] = sums.d[i][2], low[R::WIDTH + 16 * i + 8] = sums.d[i][3];
    }
    float squares = sums.squares + __shfl_xor_sync(ALL_LANES, sums.squares, 1);
    squares += __shfl_xor_sync(ALL_LANES, squares, 2);
    if ((lane_id() & 3) == 0) all[WARPS * ROWS * R::WIDTH + warp * ROWS + group] = squares;
    __syncthreads();
}

// Sum of the warps' values that are `stride` apart.
__forceinline__ float over_warps(const float* p, int stride) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += p[w * stride];
    return sum;
}

struct Output {
    const bf16 *bias, *residual;  // or null; the residual is laid out like y, which it may be
    bf16* down;                   // [rows, ranks]
    void* y;
    long long stride;
    int f32;
};

__forceinline__ float silu(float x) {
    return x / (1.0f + __expf(-x));
}

template <int F>
__forceinline__ void finish(const Linear& f, const Tile<F>& tile, const Output& out) {
    using R = Ring<F>;
    const float* all = reinterpret_cast<const float*>(dynamic_shared);
    const int width = f.gate ? R::COLUMNS / 2 : R::COLUMNS, limit = tile.branch ? f.ranks : f.gate ? f.n / 2 : f.n;
    for (int i = threadIdx.x; i < f.rows * width; i += THREADS) {
        const int row = i / width, local = i % width, column = tile.first + local;
        if (column >= limit) continue;
        const float* from = all + row * R::WIDTH + local;
        float inverse = 1.0f;
        if (f.norm) inverse = 1.0f / sqrtf(over_warps(all + WARPS * ROWS * R::WIDTH + row, ROWS) / f.k + f.eps);
        float v = inverse * over_warps(from, ROWS * R::WIDTH);
        if (tile.branch) {
            out.down[(long long)row * f.ranks + column] = to_bf16(v);
            continue;
        }
        if (out.bias) v += to_float(out.bias[column]);
        if (f.gate) {
            float up = inverse * over_warps(from + width, ROWS * R::WIDTH);
            if (out.bias) up += to_float(out.bias[f.n / 2 + column]);
            v = silu(v) * up;
        }
        const long long at = row * out.stride + column;
        if (out.residual) v += to_float(out.residual[at]);
        if (out.f32) static_cast<float*>(out.y)[at] = v;
        else static_cast<bf16*>(out.y)[at] = to_bf16(v);
    }
}

#define INSTANTIATE(F)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) skinny_gemm_##F(                                                 \
        const bf16* x, long long x_stride, const bf16* norm, float eps, const bf16* w, const bf16* a, const bf16* bias,    \
        const bf16* residual, void* y, long long y_stride, bf16* down, int rows, int n, int k, int ranks, int gate,        \
        int f32) {                                                                                                         \
        const Linear f = {x, x_stride, norm, eps, w, n, a, ranks, rows, k, gate};                                          \
        const Tile<F> tile(f);                                                                                             \
        Walk<F> walk(f, tile);                                                                                             \
        walk.start();                                                                                                      \
        let_next_start();                                                                                                  \
        wait_for_previous();                                                                                               \
        Sums<F> sums;                                                                                                      \
        walk.run(sums);                                                                                                    \
        share<F>(sums);                                                                                                    \
        finish<F>(f, tile, {bias, residual, down, y, y_stride, f32});                                                      \
    }

INSTANTIATE(1)
INSTANTIATE(2)
INSTANTIATE(3)
INSTANTIATE(4)
INSTANTIATE(6)
INSTANTIATE(8)
