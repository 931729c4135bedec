// Rows by index: embedding lookup and row selection, with their gradients. Bound by bytes.
//
// Gradients add rows that share a target in a fixed order, given as segments: `order[borders[s] .. borders[s + 1]]` are
// the rows of segment s, ascending. The host sorts; no atomics, so the sums are the same in every run.
#include "common.cuh"

// out[i] = table[ids[i]]: bf16 rows of `width`. One warp a row: block (32, y), grid ceil(rows / y).
__forceinline__ void gather(const bf16* table, const int* ids, bf16* out, int rows, int width) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const bf16* from = table + (long long)ids[row] * width;
    bf16* to = out + (long long)row * width;
#pragma unroll 4
    for (int i = threadIdx.x * 8; i < width; i += 32 * 8) store_vector(to + i, load_vector(from + i));
}

extern "C" __global__ void embedding_forward(const bf16* table, const int* ids, bf16* out, int rows, int width) {
    take_turn();
    gather(table, ids, out, rows, width);
}

extern "C" __global__ void select_rows_forward(const bf16* x, const int* indices, bf16* out, int rows, int width) {
    gather(x, indices, out, rows, width);
}

// Sum of the rows `order[from .. to]` at columns `column ..+ 8`.
__forceinline__ void sum_rows(const bf16* dy, const int* order, int from, int to, int width, int column,
                              float (&sum)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] = 0.0f;
#pragma unroll 4
    for (int i = from; i < to; i++) {
        float g[8];
        load8(dy + (long long)order[i] * width + column, g);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += g[j];
    }
}

// grad[ids[s]] (+)= sum of segment s, for distinct ids; f32 [V, width], other rows are left as they are.
// grid (segments, ceil(width / 8 / threads)).
extern "C" __global__ void embedding_backward(const bf16* dy, const int* order, const int* borders, const int* ids,
                                              float* grad, int width, int accumulate) {
    const int column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (column >= width) return;
    float sum[8];
    sum_rows(dy, order, borders[blockIdx.x], borders[blockIdx.x + 1], width, column, sum);
    float* to = grad + (long long)ids[blockIdx.x] * width + column;
    if (accumulate) {
        float old[8];
        load8(to, old);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += old[j];
    }
    store8(to, sum);
}

// dx[t] = sum of segment t, zeros for an empty one: every row of dx has a segment, so all of dx is written.
// grid (rows of dx, ceil(width / 8 / threads)).
extern "C" __global__ void select_rows_backward(const bf16* dy, const int* order, const int* borders, bf16* dx,
                                                int width) {
    const int column = (blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (column >= width) return;
    float sum[8];
    sum_rows(dy, order, borders[blockIdx.x], borders[blockIdx.x + 1], width, column, sum);
    store8(dx + (long long)blockIdx.x * width + column, sum);
}
