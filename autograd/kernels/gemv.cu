// Linear maps of one to eight rows, as decoding needs them: y = x W^T (+ bias) (+ scale * down B^T) (+ residual) for
// x [B, K] and W [N, K]. Bound by the bytes of W, which are read once.
//
// A block does 16 columns of y. Its warps take turns on blocks of 32 values of K, whose 16 x 32 weights a warp loads
// straight into matrix fragments: the order of k within such a block is free as long as x has the same, so each lane
// takes 16 bytes (8 consecutive k) of two rows. Rows past B are zeros. Every row's sum has the same order whatever B
// is, so a row's bits do not depend on its neighbours. K is a multiple of 8.
//
// grid ceil(N / 16), block 32 * warps (1 to 8), no dynamic shared memory. More warps hide latency better for long rows,
// and change the order of addition: choose them by N and K alone.
#include "common.cuh"

constexpr int COLUMNS = 16, ROWS = 8, MAX_WARPS = 8;
constexpr int DEPTH = 4;  // blocks of 32 in flight: 8 loads of W

struct Linear {
    const bf16 *x, *w;
    int rows, n, k;
    long long x_stride;
};

// A low-rank branch: y += scale * down B^T. `down` [B, segments * rank] holds one part for each segment of columns, cut
// at `second` and `third` (columns; N if there is none), as for queries, keys and values. `b` [N, rank].
struct Branch {
    const bf16 *down, *b;
    int rank, second, third;
    float scale;
};

__forceinline__ uint4 zeros() {
    return make_uint4(0, 0, 0, 0);
}

// This warp's share of d[row of y][column], summed over its blocks of K.
__forceinline__ void accumulate(const Linear& f, float (&d)[4]) {
    const int group = lane_id() >> 2, part = (lane_id() & 3) * 8, column = blockIdx.x * COLUMNS + group;
    // Columns past N repeat the last one; they are not written.
    const bf16* low = f.w + (long long)min(column, f.n - 1) * f.k;
    const bf16* high = f.w + (long long)min(column + 8, f.n - 1) * f.k;
    const bf16* x = f.x + (group < f.rows ? group : 0) * f.x_stride;
    const int warps = blockDim.x >> 5, step = 32 * warps;
    for (int base = 32 * (threadIdx.x >> 5); base < f.k; base += DEPTH * step) {
        uint4 a0[DEPTH], a1[DEPTH], b[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            const int k = base + i * step + part;
            const bool inside = k < f.k;
            a0[i] = inside ? load_streaming(low + k) : zeros();
            a1[i] = inside ? load_streaming(high + k) : zeros();
            b[i] = inside && group < f.rows ? load_vector(x + k) : zeros();
        }
#pragma unroll
        for (int i = 0; i < DEPTH; i++) {
            multiply_add(d, {a0[i].x, a1[i].x, a0[i].y, a1[i].y}, b[i].x, b[i].y);
            multiply_add(d, {a0[i].z, a1[i].z, a0[i].w, a1[i].w}, b[i].z, b[i].w);
        }
    }
}

__forceinline__ float branch_of(const Branch& branch, int row, int column, int segments) {
    const int segment = (column >= branch.second) + (column >= branch.third);
    const bf16* down = branch.down + ((long long)row * segments + segment) * branch.rank;
    const bf16* b = branch.b + (long long)column * branch.rank;
    float sum = 0.0f;
    for (int i = 0; i < branch.rank; i += 8) {
        float x[8], y[8];
        load8(down + i, x), load8(b + i, y);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = fmaf(x[j], y[j], sum);
    }
    return branch.scale * sum;
}

__forceinline__ void put(bf16* p, float x) {
    *p = to_bf16(x);
}

__forceinline__ void put(float* p, float x) {
    *p = x;
}

template <typename Out>
__forceinline__ void linear(const Linear& f, const bf16* bias, const Branch& branch, const bf16* residual, Out* y,
                            long long y_stride) {
    // [warp][row of y][column], padded against bank conflicts.
    __shared__ float shares[MAX_WARPS][ROWS][COLUMNS + 4];
    float d[4] = {};
    accumulate(f, d);
    const int warp = threadIdx.x >> 5, group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    shares[warp][pair][group] = d[0], shares[warp][pair + 1][group] = d[1];
    shares[warp][pair][group + 8] = d[2], shares[warp][pair + 1][group + 8] = d[3];
    __syncthreads();
    for (int i = threadIdx.x; i < f.rows * COLUMNS; i += blockDim.x) {
        const int row = i / COLUMNS, local = i % COLUMNS, column = blockIdx.x * COLUMNS + local;
        if (column >= f.n) continue;
        float sum = 0.0f;
        for (int w = 0; w < blockDim.x >> 5; w++) sum += shares[w][row][local];
        if (bias) sum += to_float(bias[column]);
        if (branch.rank > 0) {
            const int segments = 1 + (branch.second < f.n) + (branch.third < f.n);
            sum += branch_of(branch, row, column, segments);
        }
        const long long at = row * y_stride + column;
        if (residual) sum += to_float(residual[at]);
        put(y + at, sum);
    }
}

// `bias` [N] and `residual` (laid out like y, which it may be) may be null; rank 0: no branch, else a multiple of 8.
extern "C" __global__ void gemv(const bf16* x, long long x_stride, const bf16* w, const bf16* bias,
                                const bf16* residual, bf16* y, long long y_stride, int rows, int n, int k,
                                const bf16* down, const bf16* b, int rank, int second, int third, float scale) {
    linear({x, w, rows, n, k, x_stride}, bias, {down, b, rank, second, third, scale}, residual, y, y_stride);
}

// f32 output, for logits.
extern "C" __global__ void gemv_f32(const bf16* x, long long x_stride, const bf16* w, const bf16* bias, float* y,
                                    long long y_stride, int rows, int n, int k) {
    linear({x, w, rows, n, k, x_stride}, bias, {}, nullptr, y, y_stride);
}
