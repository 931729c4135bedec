// Attention of one new row a sequence over the pages of the KV pool, with the bits of attention_forward.cu: the same
// products, the same softmax (attention.cuh), the same order of tiles of 64 keys from position 0 on. Decode steps of a
// deterministic runtime; attention_decode.cu is faster where few sequences are long, since it splits the positions.
//
// Limit: memory bandwidth, 4 D kv_heads bytes a position, read once: a CTA computes up to 16 query heads of a key head.
// A warp scores 16 of a tile's keys and forms a quarter of the output's columns, so it needs those keys and these
// columns of the values alone, by a cp.async pipeline of its own. Scores meet in shared memory: one barrier a tile.
#include "attention.cuh"

template <int D>
struct Shape {
    static constexpr int WARPS = 4, STAGES = D == 64 ? 4 : D == 96 ? 3 : D == 128 ? 2 : 1;  // in the 99 KiB of an sm_89
    static constexpr int BLOCKS = (D / 16 + WARPS - 1) / WARPS;  // of 16 output columns, a warp; the last may have none
    static constexpr int CHUNKS = 2 * BLOCKS;                    // of 16 bytes, a row of the warp's values
    static constexpr int KEY_BYTES = 16 * D * 2, STAGE = KEY_BYTES + TILE_KEYS * CHUNKS * 16;
    static constexpr int SCORES = TILE_KEYS + 8;  // floats from row to row, against bank conflicts
};

// Offset of a chunk of 16 bytes among a warp's values [64][CHUNKS]: the eight rows of an ldmatrix phase lie in eight
// different groups of four banks.
template <int CHUNKS>
__device__ inline unsigned value_offset(unsigned row, unsigned chunk) {
    return (row * CHUNKS + (chunk ^ (row / (8 / CHUNKS) % CHUNKS))) << 4;
}

// What a warp reads of a sequence's pages.
template <int D>
struct Reader {
    const bf16 *keys, *values;  // the head's in page 0, the values from the warp's columns on
    const int* table;
    size_t page;  // elements of a page
    int position, warp, lane;
    bool columns;  // whether the warp has any
    int number;    // in lanes 0 to 3 the pages of the tile that is loaded next

    __device__ void look_up(int tile) { number = table[min(tile * 4 + lane % 4, position / 16)]; }

    // Starts copying the warp's part of a tile; keys past the row's own become zeros.
    __device__ void load(unsigned to, int tile) const {
        constexpr int CHUNKS = Shape<D>::CHUNKS;
        const bf16* own = keys + __shfl_sync(0xffffffffu, number, warp) * page;
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            const int i = n * 32 + lane, row = i / (D / 8), chunk = i % (D / 8);
            copy_async_16(to + tile_offset<D>(row, chunk), own + i * 8, tile * TILE_KEYS + warp * 16 + row <= position);
        }
#pragma unroll
        for (int n = 0; n < 2 * CHUNKS; n++) {
            const int row = (n * 32 + lane) / CHUNKS, chunk = lane % CHUNKS;
            const bf16* from = values + __shfl_sync(0xffffffffu, number, n * 2 / CHUNKS) * page;
            if (columns)
                copy_async_16(to + Shape<D>::KEY_BYTES + value_offset<CHUNKS>(row, chunk),
                              from + (row % 16) * D + chunk * 8, tile * TILE_KEYS + row <= position);
        }
    }
};

// Scores of 16 query rows and the warp's 16 keys, the first of them at `key`; -inf where the row does not look.
template <int D>
__device__ inline void write_scores(float* scores, const unsigned (&q)[D / 16][4], unsigned keys, int key, int position,
                                    int window) {
    const Fragments<D> k{keys, lane_by_columns<D>(), 0};
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        unsigned b[4];
        load_matrices(b, k.at(0, i));
        mma(s[0], q[i], b[0], b[1]);
        mma(s[1], q[i], b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int distance = position - (key + 8 * n + 2 * t + i % 2);
            if (distance < 0 || distance >= window) s[n][i] = MINUS_INFINITY;
        }
        float* to = scores + g * Shape<D>::SCORES + 8 * n + 2 * t;
        *reinterpret_cast<float2*>(to) = {s[n][0], s[n][1]};
        *reinterpret_cast<float2*>(to + 8 * Shape<D>::SCORES) = {s[n][2], s[n][3]};
    }
}

template <int D>
__device__ inline void read_scores(float (&s)[1][8][4], const float* scores) {
    const int lane = threadIdx.x % 32;
    const float* from = scores + lane / 4 * Shape<D>::SCORES + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float2 low = *reinterpret_cast<const float2*>(from + 8 * n);
        const float2 high = *reinterpret_cast<const float2*>(from + 8 * Shape<D>::SCORES + 8 * n);
        s[0][n][0] = low.x, s[0][n][1] = low.y, s[0][n][2] = high.x, s[0][n][3] = high.y;
    }
}

// Output += probabilities times the warp's columns of the values.
template <int D>
__device__ inline void add_values(float (&o)[1][Shape<D>::CHUNKS][4], const unsigned (&p)[1][TILE_KEYS / 16][4],
                                  unsigned values) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < TILE_KEYS / 16; k++)
#pragma unroll
        for (int b = 0; b < Shape<D>::BLOCKS; b++) {
            unsigned y[4];
            load_matrices_transposed(y, values + value_offset<Shape<D>::CHUNKS>(16 * k + lane % 16, 2 * b + lane / 16));
            mma(o[0][2 * b], p[0][k], y[0], y[1]);
            mma(o[0][2 * b + 1], p[0][k], y[2], y[3]);
        }
}

// Grid (sequences, kv_heads * ceil(group / 16)), 128 threads. Row b of qkv is the new row of sequence b, its key and value
// are in the pool. A sequence of length 0 gets zeros. Shared memory: the warps' stages, then two buffers of scores.
template <int D>
__device__ void single(bf16* out, const bf16* qkv, const bf16* pool, const int* page_table, int table_stride,
                       const int* kv_len, int q_heads, int kv_heads, float scale, int window) {
    using S = Shape<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    const int sequence = blockIdx.x, group = q_heads / kv_heads, blocks = (group + 15) / 16;
    const int kv_head = blockIdx.y / blocks, block = blockIdx.y % blocks * 16;
    const int heads = min(16, group - block), head = kv_head * group + block;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int position = kv_len[sequence] - 1, column = warp * S::BLOCKS * 16;
    bf16* to = out + (static_cast<size_t>(sequence) * q_heads + head) * D;
    if (position < 0) {
        for (int i = threadIdx.x; i < heads * D; i += 32 * S::WARPS) to[i] = bf16{0};
        return;
    }
    if (window == 0) window = 0x40000000;

    const bf16* queries = qkv + static_cast<size_t>(sequence) * (q_heads + 2 * kv_heads) * D + head * D;
    unsigned q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = g + i % 2 * 8;
            q[k][i] = row < heads ? *reinterpret_cast<const unsigned*>(queries + row * D + k * 16 + i / 2 * 8 + t * 2) : 0;
        }

    const size_t half = static_cast<size_t>(kv_heads) * 16 * D;
    const bf16* keys = pool + kv_head * 16 * D;
    Reader<D> reader = {keys, keys + half + column, page_table + static_cast<size_t>(sequence) * table_stride, 2 * half,
                        position, warp, lane, column < D, 0};
    const unsigned stages = shared_address(shared) + warp * (S::STAGES * S::STAGE);
    float* scores = reinterpret_cast<float*>(shared + S::WARPS * S::STAGES * S::STAGE);

    const int last = position / TILE_KEYS;
    int tile = max(0, position - window + 1) / TILE_KEYS, ahead = tile, fill = 0;
    reader.look_up(ahead);
    auto load = [&] {
        if (ahead <= last) {
            reader.load(stages + fill * S::STAGE, ahead++);
            reader.look_up(ahead);
            if (++fill == S::STAGES) fill = 0;
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < S::STAGES - 1; i++) load();

    float o[1][S::CHUNKS][4] = {}, largest[1][2] = {{MINUS_INFINITY, MINUS_INFINITY}}, sum[1][2] = {};
    for (int stage = 0, turn = 0; tile <= last; tile++, turn ^= 1) {
        load();  // into the stage that this warp is done with
        copy_wait<S::STAGES - 1>();
        __syncwarp();
        const unsigned from = stages + stage * S::STAGE;
        float* buffer = scores + turn * 16 * S::SCORES;
        write_scores<D>(buffer + 16 * warp, q, from, tile * TILE_KEYS + 16 * warp, position, window);
        // Nobody writes to this buffer before all have passed the next tile's barrier, after reading it.
        __syncthreads();
        float s[1][8][4];
        read_scores<D>(s, buffer);
        unsigned p[1][TILE_KEYS / 16][4];
        softmax(p, s, largest, sum, o, scale * LOG2_E);
        if (column < D) add_values<D>(o, p, from + S::KEY_BYTES);
        __syncwarp();
        if (++stage == S::STAGES) stage = 0;
    }
    copy_wait<0>();

    if (column >= D) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = sum[0][h];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        const float inverse = 1.0f / total;
        const int row = g + 8 * h;
        if (row >= heads) continue;
#pragma unroll
        for (int n = 0; n < S::CHUNKS; n++)
            *reinterpret_cast<unsigned*>(to + row * D + column + n * 8 + t * 2) =
                pack_bf16(o[0][n][2 * h] * inverse, o[0][n][2 * h + 1] * inverse);
    }
}

#define INSTANTIATE(D)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128, 2) CAT(attention_single_d, D)(                                 \
        bf16* out, const bf16* qkv, const bf16* pool, const int* page_table, int table_stride, const int* kv_len,    \
        int q_heads, int kv_heads, float scale, int window) {                                                        \
        single<D>(out, qkv, pool, page_table, table_stride, kv_len, q_heads, kv_heads, scale, window);               \
    }

#ifdef HEAD_DIM
INSTANTIATE(HEAD_DIM)
#else
INSTANTIATE(64)
INSTANTIATE(96)
INSTANTIATE(128)
INSTANTIATE(256)
#endif
