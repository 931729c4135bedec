// Linear maps y = alpha x W^T (+ C) (+ bias) for x [B, K] and W [N, K], which define the order of addition of
// deterministic mode: one f32 accumulator a value, blocks of 16 k upwards, each by one tensor-core instruction, zeros past
// K. So a row's bits do not depend on B. cuBLASLt's algorithms are used where they are proven to give these bits
// (src/cuda/fixed.rs); these kernels do few rows, and what cuBLASLt has no such algorithm for.
//
// Bound by the bytes of W while rows are few. The sum over K is a chain of instructions, so a warp does 16 columns of y
// by itself, without barriers: a ring of cp.async stages of 64 k keeps 12 to 45 KiB under way.
//
// grid (ceil(N / 16), ceil(B / (8 TILES))), block 32. K, strides and addresses in multiples of 8 values.
#include "common.cuh"

constexpr int COLUMNS = 16, DEPTH = 64, ROW = DEPTH * 2;  // bytes of a row of a stage

template <int TILES>
struct Stage {
    static constexpr int BYTES = (COLUMNS + 8 * TILES) * ROW, COUNT = TILES == 1 ? 15 : 4;
};

struct Operands {
    const bf16 *x, *w;
    long long x_stride, w_stride;
    int rows, n, k;
};

// Address of a chunk of 16 bytes: the eight rows of an ldmatrix phase lie in different banks.
__forceinline__ char* at(char* stage, int row, int chunk) {
    return stage + row * ROW + ((chunk ^ (row & 7)) << 4);
}

// Starts copying k .. + DEPTH of the warp's rows of W and x; zeros past K and past the last row of x.
template <int TILES>
__forceinline__ void load(char* stage, const Operands& f, int first_row, int column, int k) {
    const int chunk = lane_id() & 7, start = k + chunk * 8;
#pragma unroll
    for (int i = 0; i < COLUMNS / 4; i++) {
        const int row = i * 4 + (lane_id() >> 3);
        // Columns past N repeat the last one; they are not written.
        const bf16* from = f.w + min(column + row, f.n - 1) * f.w_stride;
        copy_async(at(stage, row, chunk), from + (start < f.k ? start : 0), start < f.k ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        const int row = i * 4 + (lane_id() >> 3);
        const bool inside = first_row + row < f.rows && start < f.k;
        const bf16* from = f.x + (inside ? (first_row + row) * f.x_stride + start : 0);
        copy_async(at(stage, COLUMNS + row, chunk), from, inside ? 16 : 0);
    }
}

// d[tile] += W x^T of one stage: lane (g, c) = (lane / 4, lane % 4) has columns g, g + 8 of y and rows 2c, 2c + 1 of a tile.
template <int TILES>
__forceinline__ void multiply(float (&d)[TILES][4], char* stage) {
    const int lane = lane_id();
#pragma unroll
    for (int i = 0; i < DEPTH / 32; i++) {
        unsigned a[2][4];
#pragma unroll
        for (int j = 0; j < 2; j++) load_matrices(a[j], at(stage, lane & 15, 4 * i + 2 * j + (lane >> 4)));
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            unsigned b[4];
            load_matrices(b, at(stage, COLUMNS + tile * 8 + (lane & 7), 4 * i + (lane >> 3)));
            multiply_add(d[tile], a[0], b[0], b[1]);
            multiply_add(d[tile], a[1], b[2], b[3]);
        }
    }
}

__forceinline__ void put(bf16* p, float x) {
    *p = to_bf16(x);
}

__forceinline__ void put(float* p, float x) {
    *p = x;
}

template <int TILES, typename Out>
__forceinline__ void product(const Operands& f, float alpha, const Out* c, long long c_stride, const Out* bias, Out* y,
                             long long y_stride) {
    constexpr int COUNT = Stage<TILES>::COUNT, BYTES = Stage<TILES>::BYTES;
    char* ring = reinterpret_cast<char*>(dynamic_shared);
    const int column = blockIdx.x * COLUMNS, first_row = blockIdx.y * (8 * TILES);
    int ahead = 0, fill = 0;
    const auto load_next = [&] {
        if (ahead < f.k) {
            load<TILES>(ring + fill * BYTES, f, first_row, column, ahead);
            ahead += DEPTH, fill = fill + 1 == COUNT ? 0 : fill + 1;
        }
        copy_commit();
    };
    for (int i = 0; i < COUNT - 1; i++) load_next();
    float d[TILES][4] = {};
    for (int k = 0, stage = 0; k < f.k; k += DEPTH) {
        load_next();  // into the stage that was multiplied last
        copy_wait<COUNT - 1>();
        __syncwarp();
        multiply(d, ring + stage * BYTES);
        __syncwarp();
        stage = stage + 1 == COUNT ? 0 : stage + 1;
    }
    copy_wait<0>();
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first_row + tile * 8 + (lane_id() & 3) * 2 + i % 2;
            const int at = column + (lane_id() >> 2) + i / 2 * 8;
            if (row >= f.rows || at >= f.n) continue;
            float v = __fmul_rn(alpha, d[tile][i]);
            if (c) v = __fmaf_rn(alpha, d[tile][i], to_float(c[row * c_stride + at]));
            if (bias) v = __fadd_rn(v, to_float(bias[at]));
            put(y + row * y_stride + at, v);
        }
}

// `c` (which may be y) and `bias` may be null.
#define INSTANTIATE(NAME, TILES, OUT)                                                                                 \
    extern "C" __global__ void __launch_bounds__(32)                                                                 \
        NAME(const bf16* x, long long x_stride, const bf16* w, long long w_stride, const OUT* c, long long c_stride, \
             const OUT* bias, OUT* y, long long y_stride, int rows, int n, int k, float alpha) {                     \
        product<TILES>({x, w, x_stride, w_stride, rows, n, k}, alpha, c, c_stride, bias, y, y_stride);               \
    }

INSTANTIATE(matmul_batch_invariant_few, 1, bf16)
INSTANTIATE(matmul_batch_invariant_few_f32, 1, float)
INSTANTIATE(matmul_batch_invariant_many, 8, bf16)
INSTANTIATE(matmul_batch_invariant_many_f32, 8, float)
