// Causal attention over packed sequences, and over the pages of the KV pool: online softmax, a tile of query rows against
// tiles of 64 keys in ascending order from position 0.
//
// Limit: tensor-core flops, 4 D a (query, key) pair. A warp owns 32 query rows (16 for D = 256, for want of registers), so
// that a K or V fragment is read from shared memory once for two products; K of the next tile arrives during softmax and
// P V, V of this tile during Q K^T.
//
// A row's result depends on its query and on the keys up to its position only, bit for bit: a tile that is masked for a
// row multiplies by 2^0 and adds zeros. So packed, paged and chunked calls agree, whatever else the tile holds.
#include "attention.cuh"

#define THREADS 128

// Query rows of a CTA.
template <int D>
struct Shape {
    static constexpr int M = D <= 128 ? 2 : 1, ROWS = 64 * M;
};

// Key positions start at `key`; this lane's rows have positions row + 16 m + 8 h.
template <int M>
__device__ inline void mask(float (&s)[M][8][4], int row, int key, int window) {
    key += threadIdx.x % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int distance = row + 16 * m + i / 2 * 8 - (key + 8 * n + i % 2);
                if (distance < 0 || distance >= window) s[m][n][i] = MINUS_INFINITY;
            }
}

// One tile: `rows` query rows from `position` on against the keys up to each of them. Keys exist up to `end`.
// Shared memory: queries [ROWS][D], keys [64][D], values [64][D].
template <int D, class Source>
__device__ void attend(bf16* out, size_t out_stride, float* lse, int lse_stride, PackedRows queries, Source keys,
                       Source values, int rows, int position, int end, float scale, int window) {
    constexpr int M = Shape<D>::M, ROWS = Shape<D>::ROWS;
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned q_tile = shared_address(shared), k_tile = q_tile + ROWS * D * 2, v_tile = k_tile + TILE_KEYS * D * 2;
    const Lane by_rows = lane_by_rows<D>(), by_columns = lane_by_columns<D>();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_first = position + warp * 16 * M, warp_last = warp_first + 16 * M - 1;
    const float scale2 = scale * LOG2_E;
    if (window == 0) window = 0x40000000;

    const int last = (position + rows - 1) / TILE_KEYS;
    int tile = max(0, position - window + 1) / TILE_KEYS;
    load_tile<D, ROWS, THREADS>(q_tile, queries, 0, rows);
    load_tile<D, TILE_KEYS, THREADS>(k_tile, keys, tile * TILE_KEYS, end);
    copy_commit();

    float o[M][D / 8][4] = {}, largest[M][2], sum[M][2];
#pragma unroll
    for (int i = 0; i < 2 * M; i++) {
        largest[i / 2][i % 2] = MINUS_INFINITY;
        sum[i / 2][i % 2] = 0.0f;
    }
    for (; tile <= last; tile++) {
        const int key = opaque(tile * TILE_KEYS);
        const bool any = warp * 16 * M < rows && key <= warp_last && key + TILE_KEYS - 1 > warp_first - window;
        const bool all = key + TILE_KEYS - 1 <= warp_first && key > warp_last - window;
        copy_wait<0>();
        __syncthreads();  // keys have arrived; every warp is done with the values of the tile before
        load_tile<D, TILE_KEYS, THREADS>(v_tile, values, key, end);
        copy_commit();
        float s[M][8][4];
        if (any) multiply_transposed<D>(s, {q_tile + warp * 16 * M * D * 2, by_rows, key}, {k_tile, by_columns, key});
        copy_wait<0>();
        __syncthreads();  // values have arrived; every warp is done with the keys
        if (tile < last) load_tile<D, TILE_KEYS, THREADS>(k_tile, keys, key + TILE_KEYS, end);
        copy_commit();
        if (any) {
            if (!all) mask<M>(s, warp_first + lane / 4, key, window);
            unsigned p[M][TILE_KEYS / 16][4];
            softmax(p, s, largest, sum, o, scale2);
            multiply_add<D>(o, p, {v_tile, by_rows, key});
        }
    }

    float inverse[M][2];
    const int first = warp * 16 * M;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[m][h];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            inverse[m][h] = 1.0f / total;
            int row = first + 16 * m + 8 * h + lane / 4;
            if (lse != nullptr && lane % 4 == 0 && row < rows)
                lse[static_cast<size_t>(row) * lse_stride] = largest[m][h] * scale + logf(total);
        }
    store_rows<D, M, D / 8>(out + first * out_stride, out_stride, rows - first, shared + first * D * 2, o, inverse);
}

// A sequence is qkv rows [cu[s], cu[s + 1]). Grid (q_heads, tiles); tiles are {sequence, tile of ROWS rows}.
template <int D>
__device__ void forward(bf16* out, float* lse, const bf16* qkv, const int* cu, const int2* tiles, int q_heads,
                        int kv_heads, float scale, int window) {
    const int2 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / (q_heads / kv_heads);
    const int begin = cu[tile.x], length = cu[tile.x + 1] - begin, first = tile.y * Shape<D>::ROWS;
    const unsigned stride = (q_heads + 2 * kv_heads) * D;
    const size_t row = begin + first;
    const bf16* sequence = qkv + static_cast<size_t>(begin) * stride;
    attend<D>(out + (row * q_heads + head) * D, static_cast<size_t>(q_heads) * D,
              lse == nullptr ? nullptr : lse + row * q_heads + head, q_heads,
              PackedRows{qkv + row * stride + head * D, stride},
              PackedRows{sequence + (q_heads + kv_head) * D, stride},
              PackedRows{sequence + (q_heads + kv_heads + kv_head) * D, stride}, min(Shape<D>::ROWS, length - first),
              first, length, scale, window);
}

// New rows of a sequence are qkv rows [cu_q[s], cu_q[s + 1]), the last of its kv_len[s] positions; their keys and values are
// in the pool already. Pool: [page][2][kv_heads][16][D].
template <int D>
__device__ void paged(bf16* out, float* lse, const bf16* qkv, const bf16* pool, const int* page_table, int table_stride,
                      const int* cu_q, const int* kv_len, const int2* tiles, int q_heads, int kv_heads, float scale,
                      int window) {
    const int2 tile = tiles[blockIdx.y];
    const int head = blockIdx.x, kv_head = head / (q_heads / kv_heads);
    const int begin = cu_q[tile.x], count = cu_q[tile.x + 1] - begin, first = tile.y * Shape<D>::ROWS;
    const int end = kv_len[tile.x];
    const unsigned stride = (q_heads + 2 * kv_heads) * D;
    const size_t row = begin + first;
    const size_t half = static_cast<size_t>(kv_heads) * 16 * D;
    const int* table = page_table + static_cast<size_t>(tile.x) * table_stride;
    attend<D>(out + (row * q_heads + head) * D, static_cast<size_t>(q_heads) * D,
              lse == nullptr ? nullptr : lse + row * q_heads + head, q_heads,
              PackedRows{qkv + row * stride + head * D, stride},
              PagedRows<D>{pool + kv_head * 16 * D, table, 2 * half},
              PagedRows<D>{pool + half + kv_head * 16 * D, table, 2 * half}, min(Shape<D>::ROWS, count - first),
              end - count + first, end, scale, window);
}

#define INSTANTIATE(D)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) CAT(attention_forward_d, D)(                               \
        bf16* out, float* lse, const bf16* qkv, const int* cu_seqlens, const int2* tiles, int q_heads, int kv_heads,    \
        float scale, int window) {                                                                                      \
        forward<D>(out, lse, qkv, cu_seqlens, tiles, q_heads, kv_heads, scale, window);                                 \
    }                                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) CAT(attention_paged_d, D)(                                 \
        bf16* out, float* lse, const bf16* qkv, const bf16* pool, const int* page_table, int table_stride,              \
        const int* cu_q, const int* kv_len, const int2* tiles, int q_heads, int kv_heads, float scale, int window) {    \
        paged<D>(out, lse, qkv, pool, page_table, table_stride, cu_q, kv_len, tiles, q_heads, kv_heads, scale, window); \
    }

#ifdef HEAD_DIM
INSTANTIATE(HEAD_DIM)
#else
INSTANTIATE(64)
INSTANTIATE(96)
INSTANTIATE(128)
INSTANTIATE(256)
#endif
