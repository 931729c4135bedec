// Backward of causal attention over packed sequences, without atomics: every element of dqkv is written once, by sums in a
// fixed order. With P = exp(scale Q K^T - lse), delta = rowsum(dO * O) and dS = P * (dO V^T - delta):
//     dQ = scale dS K        by tiles of query rows     (attention_backward_q)
//     dK = scale dS^T Q, dV = P^T dO   by tiles of keys, over all query heads of the group   (attention_backward_kv)
//
// Limit: tensor-core flops, 14 D a (query, key) pair: P and dO V^T are computed in both kernels, which costs 7 products
// instead of 5 and saves the atomic (or staged) sum of dQ. In the second kernel a warp owns keys and computes transposed
// scores, so that P^T and dS^T are A operands as they come out of the product.
#include "attention.cuh"

#define THREADS 128

// delta [row, head] = sum of out * dout over a head. A group of 8, 16 or 32 lanes, the power of two >= D / 8, sums a head.
extern "C" __global__ void __launch_bounds__(256) attention_backward_delta(float* delta, const bf16* out, const bf16* dout,
                                                                           int heads, int head_dim) {
    const int chunks = head_dim / 8, lanes = chunks <= 8 ? 8 : chunks <= 16 ? 16 : 32;
    const int head = (blockIdx.x * 256 + threadIdx.x) / lanes, lane = threadIdx.x % lanes;
    float sum = 0.0f;
    if (head < heads && lane < chunks) {
        const size_t at = static_cast<size_t>(head) * head_dim + lane * 8;
        const uint4 a = *reinterpret_cast<const uint4*>(out + at), b = *reinterpret_cast<const uint4*>(dout + at);
        const unsigned x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += __uint_as_float(x[i] << 16) * __uint_as_float(y[i] << 16);
            sum += __uint_as_float(x[i] & 0xffff0000u) * __uint_as_float(y[i] & 0xffff0000u);
        }
    }
    for (int offset = 16; offset > 0; offset /= 2)
        if (offset < lanes) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (head < heads && lane == 0) delta[head] = sum;
}

// Query rows of a CTA (as in the forward), keys of a step.
template <int D>
struct QShape {
    static constexpr int M = D <= 128 ? 2 : 1, ROWS = 64 * M, KEYS = 32, STAGES = D <= 128 ? 2 : 1;
};

// Grid (q_heads, tiles). Shared memory: queries [ROWS][D], dout [ROWS][D], then STAGES of keys and values [32][D].
template <int D>
__device__ void backward_q(bf16* dqkv, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
                           const int* cu, const int2* tiles, int q_heads, int kv_heads, float scale, int window) {
    constexpr int M = QShape<D>::M, ROWS = QShape<D>::ROWS, KEYS = QShape<D>::KEYS, STAGES = QShape<D>::STAGES;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned q_tile = shared_address(shared), o_tile = q_tile + ROWS * D * 2, kv_tiles = o_tile + ROWS * D * 2;
    const Lane by_rows = lane_by_rows<D>(), by_columns = lane_by_columns<D>();
    const int2 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / (q_heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int begin = cu[tile.x], length = cu[tile.x + 1] - begin, first = tile.y * ROWS, rows = min(ROWS, length - first);
    const unsigned stride = (q_heads + 2 * kv_heads) * D;
    const bf16* sequence = qkv + static_cast<size_t>(begin) * stride;
    const PackedRows keys{sequence + (q_heads + kv_head) * D, stride};
    const PackedRows values{sequence + (q_heads + kv_heads + kv_head) * D, stride};
    const size_t row0 = begin + first;
    const int warp_rows = warp * 16 * M, warp_first = first + warp_rows, warp_last = warp_first + 16 * M - 1;
    const float scale2 = scale * LOG2_E;
    if (window == 0) window = 0x40000000;

    load_tile<D, ROWS, THREADS>(q_tile, PackedRows{qkv + row0 * stride + head * D, stride}, 0, rows);
    load_tile<D, ROWS, THREADS>(o_tile, PackedRows{dout + (row0 * q_heads + head) * D, unsigned(q_heads * D)}, 0, rows);
    const int last = (first + rows - 1) / KEYS;
    int step = max(0, first - window + 1) / KEYS, stage = 0;
    auto load = [&](int step, int stage) {
        const unsigned to = kv_tiles + stage * (2 * KEYS * D * 2);
        load_tile<D, KEYS, THREADS>(to, keys, step * KEYS, length);
        load_tile<D, KEYS, THREADS>(to + KEYS * D * 2, values, step * KEYS, length);
        copy_commit();
    };
    load(step, 0);

    float dq[M][D / 8][4] = {}, log_sum[M][2], row_delta[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        int row = warp_rows + i * 8 + lane / 4;
        size_t at = (row0 + row) * q_heads + head;
        log_sum[i / 2][i % 2] = row < rows ? -lse[at] * LOG2_E : 0.0f;
        row_delta[i / 2][i % 2] = row < rows ? delta[at] : 0.0f;
    }
    for (; step <= last; step++) {
        const int key = opaque(step * KEYS);
        const unsigned k_tile = kv_tiles + stage * (2 * KEYS * D * 2), v_tile = k_tile + KEYS * D * 2;
        copy_wait<0>();
        __syncthreads();  // this step's tiles have arrived; every warp is done with those of the step before
        if (STAGES == 2 && step < last) load(step + 1, stage ^= 1);
        if (warp_rows < rows && key <= warp_last && key + KEYS - 1 > warp_first - window) {
            const bool all = key + KEYS - 1 <= warp_first && key > warp_last - window;
            float p[M][KEYS / 8][4], ds[M][KEYS / 8][4];
            multiply_transposed<D>(p, {q_tile + warp_rows * D * 2, by_rows, key}, {k_tile, by_columns, key});
            multiply_transposed<D>(ds, {o_tile + warp_rows * D * 2, by_rows, key}, {v_tile, by_columns, key});
            const int distance = warp_first + lane / 4 - (key + lane % 4 * 2);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        float x = exp2_fast(__fmaf_rn(p[m][n][i], scale2, log_sum[m][i / 2]));
                        int apart = distance + 16 * m + i / 2 * 8 - 8 * n - i % 2;
                        if (!all && (apart < 0 || apart >= window)) x = 0.0f;
                        ds[m][n][i] = x * (ds[m][n][i] - row_delta[m][i / 2]);
                    }
            unsigned a[M][KEYS / 16][4];
            as_operand(a, ds);
            multiply_add<D>(dq, a, {k_tile, by_rows, key});
        }
        if (STAGES == 1 && step < last) {
            __syncthreads();
            load(step + 1, 0);
        }
    }

    float times[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) times[i / 2][i % 2] = scale;
    store_rows<D>(dqkv + (row0 + warp_rows) * stride + head * D, stride, rows - warp_rows, shared + warp_rows * D * 2, dq,
                  times);
}

// Keys of a CTA, query rows of a step. D = 256 has no registers for a whole dK and dV: PARTS CTAs compute D / PARTS columns.
template <int D>
struct KvShape {
    static constexpr int M = D == 64 ? 2 : 1, KEYS = 64 * M, ROWS = D == 64 || D == 256 ? 32 : 64;
    static constexpr int STAGES = D <= 128 ? 2 : 1, PARTS = D == 256 ? 2 : 1;
};

// Grid (kv_heads, tiles, PARTS); tiles are {sequence, tile of KEYS keys}. Shared memory: keys [KEYS][D], values [KEYS][D],
// then STAGES of queries [ROWS][D], dout [ROWS][D], lse [ROWS] and delta [ROWS].
template <int D>
__device__ void backward_kv(bf16* dqkv, const bf16* qkv, const bf16* dout, const float* lse, const float* delta,
                            const int* cu, const int2* tiles, int q_heads, int kv_heads, float scale, int window) {
    constexpr int M = KvShape<D>::M, ROWS = KvShape<D>::ROWS, KEYS = KvShape<D>::KEYS, STAGES = KvShape<D>::STAGES;
    constexpr int WIDTH = D / KvShape<D>::PARTS, STAGE = 2 * ROWS * D * 2 + 2 * ROWS * 4;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned k_tile = shared_address(shared), v_tile = k_tile + KEYS * D * 2;
    const Lane by_rows = lane_by_rows<D>(), by_columns = lane_by_columns<D>();
    const int2 tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x, group = q_heads / kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int begin = cu[tile.x], length = cu[tile.x + 1] - begin, first = tile.y * KEYS, count = min(KEYS, length - first);
    const unsigned stride = (q_heads + 2 * kv_heads) * D;
    const bf16* sequence = qkv + static_cast<size_t>(begin) * stride;
    const int warp_rows = warp * 16 * M, warp_first = first + warp_rows, warp_last = warp_first + 16 * M - 1;
    const float scale2 = scale * LOG2_E;
    if (window == 0) window = 0x40000000;

    load_tile<D, KEYS, THREADS>(k_tile, PackedRows{sequence + (q_heads + kv_head) * D, stride}, first, length);
    load_tile<D, KEYS, THREADS>(v_tile, PackedRows{sequence + (q_heads + kv_heads + kv_head) * D, stride}, first, length);
    // Query tiles that see these keys: from the first key's on, up to the last one within the window of the last key.
    const int low = first / ROWS, high = (min(length, first + count - 1 + window) - 1) / ROWS;
    auto load = [&](int head, int step, int stage) {
        const unsigned to = v_tile + KEYS * D * 2 + stage * STAGE;
        const size_t row = begin;
        load_tile<D, ROWS, THREADS>(to, PackedRows{sequence + head * D, stride}, step * ROWS, length);
        load_tile<D, ROWS, THREADS>(to + ROWS * D * 2, PackedRows{dout + (row * q_heads + head) * D, unsigned(q_heads * D)},
                                    step * ROWS, length);
        const int i = threadIdx.x % ROWS, q = step * ROWS + i;
        const size_t at = (row + min(q, length - 1)) * q_heads + head;
        if (threadIdx.x < 2 * ROWS)
            copy_async_4(to + 2 * ROWS * D * 2 + threadIdx.x * 4, (threadIdx.x < ROWS ? lse : delta) + at, q < length);
        copy_commit();
    };
    int head = kv_head * group, step = low, stage = 0;
    load(head, step, 0);

    float dk[M][WIDTH / 8][4] = {}, dv[M][WIDTH / 8][4] = {};
    for (int left = group * (high - low + 1); left > 0; left--) {
        const int query = opaque(step * ROWS);
        const unsigned q_tile = v_tile + KEYS * D * 2 + stage * STAGE, o_tile = q_tile + ROWS * D * 2;
        const float* log_sum = reinterpret_cast<const float*>(shared + (q_tile - k_tile) + 2 * ROWS * D * 2);
        copy_wait<0>();
        __syncthreads();  // this step's tiles have arrived; every warp is done with those of the step before
        if (++step > high) {
            step = low;
            head++;
        }
        if (STAGES == 2 && left > 1) load(head, step, stage ^= 1);
        if (warp_rows < count && query + ROWS - 1 >= warp_first && query < warp_last + window) {
            const bool all = query >= warp_last && query + ROWS - 1 < warp_first + window;
            // Keys are rows, queries are columns from here on.
            float p[M][ROWS / 8][4], ds[M][ROWS / 8][4];
            unsigned a[M][ROWS / 16][4];
            multiply_transposed<D>(p, {k_tile + warp_rows * D * 2, by_rows, query}, {q_tile, by_columns, query});
            const int distance = query + lane % 4 * 2 - (warp_first + lane / 4);
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                const float2 sum = *reinterpret_cast<const float2*>(log_sum + n * 8 + lane % 4 * 2);
                const float shift[2] = {-sum.x * LOG2_E, -sum.y * LOG2_E};
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        p[m][n][i] = exp2_fast(__fmaf_rn(p[m][n][i], scale2, shift[i % 2]));
                        int apart = distance + 8 * n + i % 2 - 16 * m - i / 2 * 8;
                        if (!all && (apart < 0 || apart >= window)) p[m][n][i] = 0.0f;
                    }
            }
            as_operand(a, p);
            multiply_add<D>(dv, a, {o_tile, by_rows, query}, blockIdx.z * (WIDTH / 16));
            multiply_transposed<D>(ds, {v_tile + warp_rows * D * 2, by_rows, query}, {o_tile, by_columns, query});
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                const float2 sum = *reinterpret_cast<const float2*>(log_sum + ROWS + n * 8 + lane % 4 * 2);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) ds[m][n][i] = p[m][n][i] * (ds[m][n][i] - (i % 2 ? sum.y : sum.x));
            }
            as_operand(a, ds);
            multiply_add<D>(dk, a, {q_tile, by_rows, query}, blockIdx.z * (WIDTH / 16));
        }
        if (STAGES == 1 && left > 1) {
            __syncthreads();
            load(head, step, 0);
        }
    }

    float times[M][2], one[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) times[i / 2][i % 2] = scale, one[i / 2][i % 2] = 1.0f;
    const size_t row = begin + warp_first;
    bf16* to = dqkv + row * stride + (q_heads + kv_head) * D + blockIdx.z * WIDTH;
    store_rows<D>(to, stride, count - warp_rows, shared + warp_rows * D * 2, dk, times);
    store_rows<D>(to + kv_heads * D, stride, count - warp_rows, shared + (KEYS + warp_rows) * D * 2, dv, one);
}

#define INSTANTIATE(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) CAT(attention_backward_q_d, D)(                             \
        bf16* dqkv, const bf16* qkv, const bf16* dout, const float* lse, const float* delta, const int* cu_seqlens,      \
        const int2* tiles, int q_heads, int kv_heads, float scale, int window) {                                         \
        backward_q<D>(dqkv, qkv, dout, lse, delta, cu_seqlens, tiles, q_heads, kv_heads, scale, window);                 \
    }                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) CAT(attention_backward_kv_d, D)(                            \
        bf16* dqkv, const bf16* qkv, const bf16* dout, const float* lse, const float* delta, const int* cu_seqlens,      \
        const int2* tiles, int q_heads, int kv_heads, float scale, int window) {                                         \
        backward_kv<D>(dqkv, qkv, dout, lse, delta, cu_seqlens, tiles, q_heads, kv_heads, scale, window);                \
    }

#ifdef HEAD_DIM
INSTANTIATE(HEAD_DIM)
#else
INSTANTIATE(64)
INSTANTIATE(96)
INSTANTIATE(128)
INSTANTIATE(256)
#endif
