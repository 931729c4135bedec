// Between the projection and attention: per-head RMSNorm of queries and keys (optional), then rotary embedding, on
// packed rows qkv [T, (Hq + 2 Hkv) * D]. Bound by bytes: one read and one write of qkv.
//
// A head is shared by `group` lanes, the power of two at least D / 16 (at most 32): a lane holds eight values of the
// head's first half and the eight that they are rotated with. Blocks are one-dimensional, whole warps. Tables `cosines`
// and `sines` are f32 [positions, D / 2]; a negative position marks a padding row, which is neither read nor written.
#include "common.cuh"

struct Shape {
    int rows, q_heads, kv_heads, head_dim;

    __forceinline__ int heads() const {
        return q_heads + 2 * kv_heads;
    }
};

// A lane's share of one head.
struct Share {
    float a[8], b[8];

    __forceinline__ void load(const bf16* head, int column, int half) {
        load8(head + column, a), load8(head + half + column, b);
    }

    __forceinline__ void store(bf16* head, int column, int half) const {
        store8(head + column, a), store8(head + half + column, b);
    }

    // sign 1 rotates, -1 rotates back.
    __forceinline__ void rotate(const float* cosines, const float* sines, float sign) {
        float c[8], s[8];
        load8(cosines, c), load8(sines, s);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float x = a[j], y = b[j], sine = sign * s[j];
            // Spelled out: rows that are stored in pages have the bits of those that are not.
            a[j] = __fmaf_rn(x, c[j], -__fmul_rn(y, sine));
            b[j] = __fmaf_rn(y, c[j], __fmul_rn(x, sine));
        }
    }
};

__forceinline__ float group_sum(float x, int group) {
    for (int offset = group >> 1; offset > 0; offset >>= 1) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__forceinline__ float inverse_rms(const Share& x, int group, int head_dim, float eps) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < 8; j++) squares = fmaf(x.a[j], x.a[j], fmaf(x.b[j], x.b[j], squares));
    return 1.0f / sqrtf(group_sum(squares, group) / head_dim + eps);
}

// Where keys and values are kept: [page][2][Hkv][16][D].
struct Pages {
    bf16* pool;
    const int* seq_of_row;
    const int* table;
    int stride;

    __forceinline__ bf16* at(int row, int position, int value, int head, const Shape& shape) const {
        const long long page = table[(long long)seq_of_row[row] * stride + (position >> 4)];
        return pool + (((page * 2 + value) * shape.kv_heads + head) * 16 + (position & 15)) * shape.head_dim;
    }
};

// Every lane of a warp stays to the end, since lanes of one head exchange sums.
template <bool PAGED>
__forceinline__ void forward(const bf16* qkv, bf16* out, const int* positions, const float* cosines,
                             const float* sines, const bf16* q_weight, const bf16* k_weight, Shape shape, int group,
                             float eps, Pages pages) {
    const int half = shape.head_dim / 2;
    const unsigned index = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned item = index / group;
    const int row = item / shape.heads(), head = item % shape.heads(), column = (index % group) * 8;
    const int position = row < shape.rows ? positions[row] : -1;
    const bool active = position >= 0 && column < half;
    const bool is_value = head >= shape.q_heads + shape.kv_heads, is_query = head < shape.q_heads;
    const long long at = ((long long)row * shape.heads() + head) * shape.head_dim;
    Share x = {};
    if (active) x.load(qkv + at, column, half);
    const bf16* weight = is_query ? q_weight : k_weight;
    if (q_weight || k_weight) {
        const float inverse = inverse_rms(x, group, shape.head_dim, eps);
        if (active && weight && !is_value) {
            Share w;
            w.load(weight, column, half);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x.a[j] = x.a[j] * inverse * w.a[j];
                x.b[j] = x.b[j] * inverse * w.b[j];
            }
        }
    }
    if (!active) return;
    const long long angles = (long long)position * half + column;
    if (!is_value) x.rotate(cosines + angles, sines + angles, 1.0f);
    if (PAGED && !is_query) {
        const int kv_head = (head - shape.q_heads) % shape.kv_heads;
        x.store(pages.at(row, position, is_value, kv_head, shape), column, half);
    }
    if (!is_value || out != qkv) x.store(out + at, column, half);
}

// `out` may be `qkv`. grid ceil(T * (Hq + 2 Hkv) * group / threads).
extern "C" __global__ void qk_norm_rope_forward(const bf16* qkv, bf16* out, const int* positions, const float* cosines,
                                                const float* sines, const bf16* q_weight, const bf16* k_weight,
                                                int rows, int q_heads, int kv_heads, int head_dim, int group,
                                                float eps) {
    forward<false>(qkv, out, positions, cosines, sines, q_weight, k_weight, {rows, q_heads, kv_heads, head_dim}, group,
                   eps, {});
}

// The same; keys and values go to their pages too.
extern "C" __global__ void qk_norm_rope_paged(const bf16* qkv, bf16* out, const int* positions, const float* cosines,
                                              const float* sines, const bf16* q_weight, const bf16* k_weight,
                                              int rows, int q_heads, int kv_heads, int head_dim, int group, float eps,
                                              bf16* pool, const int* seq_of_row, const int* page_table,
                                              int table_stride) {
    take_turn();
    forward<true>(qkv, out, positions, cosines, sines, q_weight, k_weight, {rows, q_heads, kv_heads, head_dim}, group,
                  eps, {pool, seq_of_row, page_table, table_stride});
}

// Sums a lane's shares over the block's groups and writes one row of partials, f32 [D].
__forceinline__ void write_shares(const Share& shares, float* out, float* buffer, int group, int head_dim) {
    const int half = head_dim / 2, column = (threadIdx.x % group) * 8, groups = blockDim.x / group;
    float* mine = buffer + (threadIdx.x / group) * head_dim;
    __syncthreads();
    if (column < half) store8(mine + column, shares.a), store8(mine + half + column, shares.b);
    __syncthreads();
    for (int i = threadIdx.x; i < head_dim; i += blockDim.x) {
        float sum = 0.0f;
        for (int g = 0; g < groups; g++) sum += buffer[g * head_dim + i];
        out[i] = sum;
    }
}

// d(qkv rotated) and the raw qkv to d(qkv raw); `d_qkv` may be `d_out`. With weights: dx = r (w g - x r^2 mean(w g x)).
//
// `partials` (or null) [gridDim.x, 2, D] f32 gets the blocks' shares of the gradients of q_weight and k_weight, for
// `sum_partials` (row stride 2 D). Dynamic shared memory: threads / group * D floats with partials, else none. Blocks
// loop: any grid.
extern "C" __global__ void qk_norm_rope_backward(const bf16* d_out, const bf16* qkv, bf16* d_qkv, const int* positions,
                                                 const float* cosines, const float* sines, const bf16* q_weight,
                                                 const bf16* k_weight, float* partials, int rows, int q_heads,
                                                 int kv_heads, int head_dim, int group, float eps) {
    const Shape shape = {rows, q_heads, kv_heads, head_dim};
    const int half = head_dim / 2, column = (threadIdx.x % group) * 8;
    const long long items = (long long)rows * shape.heads(), step = (long long)gridDim.x * (blockDim.x / group);
    const long long first = (long long)blockIdx.x * (blockDim.x / group);
    Share shares[2] = {};
    for (long long base = first; base < items; base += step) {
        const long long item = base + threadIdx.x / group;
        const int row = item / shape.heads(), head = item % shape.heads();
        const int position = item < items ? positions[row] : -1;
        const bool active = position >= 0 && column < half;
        const bool is_value = head >= q_heads + kv_heads, is_query = head < q_heads;
        const bf16* weight = is_query ? q_weight : k_weight;
        Share g = {}, x = {}, w = {};
        if (active) {
            g.load(d_out + item * head_dim, column, half);
            const long long angles = (long long)position * half + column;
            if (!is_value) g.rotate(cosines + angles, sines + angles, -1.0f);
            if (!is_value && weight) x.load(qkv + item * head_dim, column, half), w.load(weight, column, half);
        }
        if (q_weight || k_weight) {
            const float inverse = inverse_rms(x, group, head_dim, eps);
            float along = 0.0f;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                along = fmaf(g.a[j] * w.a[j], x.a[j], along);
                along = fmaf(g.b[j] * w.b[j], x.b[j], along);
            }
            const float slope = -inverse * inverse * group_sum(along, group) / head_dim;
            if (active && !is_value && weight) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const float da = g.a[j] * x.a[j] * inverse, db = g.b[j] * x.b[j] * inverse;
                    shares[0].a[j] += is_query ? da : 0.0f, shares[0].b[j] += is_query ? db : 0.0f;
                    shares[1].a[j] += is_query ? 0.0f : da, shares[1].b[j] += is_query ? 0.0f : db;
                    g.a[j] = inverse * fmaf(slope, x.a[j], g.a[j] * w.a[j]);
                    g.b[j] = inverse * fmaf(slope, x.b[j], g.b[j] * w.b[j]);
                }
            }
        }
        if (active && (!is_value || d_qkv != d_out)) g.store(d_qkv + item * head_dim, column, half);
    }
    if (!partials) return;
    float* buffer = reinterpret_cast<float*>(dynamic_shared);
    float* out = partials + 2LL * blockIdx.x * head_dim;
    write_shares(shares[0], out, buffer, group, head_dim);
    write_shares(shares[1], out + head_dim, buffer, group, head_dim);
}
