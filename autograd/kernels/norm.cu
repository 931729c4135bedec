// RMSNorm: y = x / sqrt(mean(x^2) + eps) * w on rows of `width`, a multiple of 8 up to 16384. Bound by bytes: a row is
// read once and held in registers. The backward computes the inverse root again instead of keeping it.
//
// Block (x, y): x threads share a row, y rows share a block. x = min(512, 32 ceil(width / 256)), and y may exceed 1
// only where x is 32. A row's order of addition depends on its width alone, so its bits do not depend on the batch.
#include "common.cuh"

constexpr int VECTORS = 4;  // of 8 values, a thread: 4 * 8 * 512 = 16384

__forceinline__ float row_sum(float x) {
    return blockDim.x == 32 ? warp_sum(x) : block_sum(x);
}

__forceinline__ void row_sums(float (&x)[2]) {
    if (blockDim.x == 32) {
        x[0] = warp_sum(x[0]), x[1] = warp_sum(x[1]);
    } else {
        block_sums(x);
    }
}

__forceinline__ int row_of_block(int block) {
    return block * blockDim.y + threadIdx.y;
}

// Calls work(slot, column) for this thread's vectors.
template <typename Work>
__forceinline__ void for_vectors(int width, Work work) {
#pragma unroll
    for (int slot = 0; slot < VECTORS; slot++) {
        const int column = (slot * blockDim.x + threadIdx.x) * 8;
        if (column < width) work(slot, column);
    }
}

// y = norm(x); with `add`, norm(x + add), and the sum, rounded to bf16, is written to `sum` (which may be x or add).
extern "C" __global__ void rms_norm_forward(const bf16* x, const bf16* add, const bf16* weight, bf16* sum, bf16* y,
                                            int rows, int width, float eps) {
    take_turn();
    const int row = row_of_block(blockIdx.x);
    if (row >= rows) return;
    const long long start = (long long)row * width;
    uint4 held[VECTORS];
    float squares = 0.0f;
    for_vectors(width, [&](int slot, int column) { held[slot] = load_vector(x + start + column); });
    for_vectors(width, [&](int slot, int column) {
        float v[8];
        unpack8(held[slot], v);
        if (add) {
            float other[8];
            load8(add + start + column, other);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += other[j];
            // The norm sees what the residual stream keeps.
            held[slot] = pack8(v);
            store_vector(sum + start + column, held[slot]);
            unpack8(held[slot], v);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) squares = fmaf(v[j], v[j], squares);
    });
    const float inverse = 1.0f / sqrtf(row_sum(squares) / width + eps);
    for_vectors(width, [&](int slot, int column) {
        float v[8], w[8];
        unpack8(held[slot], v);
        load8(weight + column, w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = v[j] * inverse * w[j];
        store8(y + start + column, v);
    });
}

// With r = 1 / rms: dx = r (w dy - x r^2 mean(w dy x)) (+ add), and dw = sum over rows of dy x r.
//
// A block goes through rows blockIdx.x * y, + gridDim.x * y ..; `partials` [gridDim.x * y, width] f32 (or null) gets
// each row of threads' share of dw, for `sum_partials`. `add` may be null; dx may be dy or add.
extern "C" __global__ void __launch_bounds__(512)
    rms_norm_backward(const bf16* dy, const bf16* x, const bf16* weight, const bf16* add, bf16* dx, float* partials,
                      int rows, int width, float eps) {
    float shares[VECTORS][8];
#pragma unroll
    for (int slot = 0; slot < VECTORS; slot++)
#pragma unroll
        for (int j = 0; j < 8; j++) shares[slot][j] = 0.0f;
    for (int row = row_of_block(blockIdx.x); row < rows; row += gridDim.x * blockDim.y) {
        const long long start = (long long)row * width;
        uint4 xs[VECTORS], gs[VECTORS];
        for_vectors(width, [&](int slot, int column) {
            xs[slot] = load_vector(x + start + column);
            gs[slot] = load_vector(dy + start + column);
        });
        float sums[2] = {};  // of x^2 and w dy x
        for_vectors(width, [&](int slot, int column) {
            float v[8], g[8], w[8];
            unpack8(xs[slot], v), unpack8(gs[slot], g), load8(weight + column, w);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[0] = fmaf(v[j], v[j], sums[0]);
                sums[1] = fmaf(g[j] * w[j], v[j], sums[1]);
            }
        });
        row_sums(sums);
        const float inverse = 1.0f / sqrtf(sums[0] / width + eps);
        const float slope = -inverse * inverse * sums[1] / width;
        for_vectors(width, [&](int slot, int column) {
            float v[8], g[8], w[8], d[8];
            unpack8(xs[slot], v), unpack8(gs[slot], g), load8(weight + column, w);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                d[j] = inverse * fmaf(slope, v[j], g[j] * w[j]);
                shares[slot][j] = fmaf(v[j] * inverse, g[j], shares[slot][j]);
            }
            if (add) {
                float other[8];
                load8(add + start + column, other);
#pragma unroll
                for (int j = 0; j < 8; j++) d[j] += other[j];
            }
            store8(dx + start + column, d);
        });
    }
    if (partials) {
        float* to = partials + (long long)row_of_block(blockIdx.x) * width;
        for_vectors(width, [&](int slot, int column) { store8(to + column, shares[slot]); });
    }
}
