// Attention of one new row a sequence over the pages of the KV pool, split along the positions (flash decoding).
//
// Limit: memory bandwidth, 4 D kv_heads bytes a position, read once: a CTA computes up to 16 query heads of a key head. A
// warp works alone, on every WARPS-th page, with its own cp.async pipeline and softmax state; the warps meet at the end.
//
// The grid does not depend on lengths: CTA z takes the chunks z, z + gridDim.z, .. that the sequence has. Chunks are at
// multiples of `chunk` positions, so a row's result depends on its sequence and `chunk` only, not on the batch or the grid.
#include "attention.cuh"

template <int D>
struct Shape {
    static constexpr int WARPS = D <= 128 ? 4 : 2, STAGES = D == 64 ? 4 : 3;
    static constexpr int PAGE = 16 * D * 2, STAGE = 2 * PAGE;  // bytes of a head's keys; keys and values
};

// The positions that the row of a sequence attends to, and the chunks that they lie in.
struct Span {
    int begin, end, first_chunk, chunks;
    __device__ Span(int length, int window, int chunk)
        : begin(window > 0 ? max(0, length - window) : 0), end(length), first_chunk(begin / chunk),
          chunks(length > 0 ? (length - 1) / chunk - first_chunk + 1 : 0) {}
};

// A warp's state: query rows g and g + 8 (g = lane / 4) of 16.
template <int D>
struct State {
    float o[1][D / 8][4], largest[2], sum[2];
};

// One page of 16 positions, `page` the first of them, of which [begin, end) count. Queries are A fragments.
template <int D>
__device__ inline void add_page(State<D>& state, const unsigned (&q)[D / 16][4], unsigned keys, int page, int begin, int end,
                                float scale) {
    const Fragments<D> k{keys, lane_by_columns<D>(), 0}, v{keys + Shape<D>::PAGE, lane_by_rows<D>(), 0};
    float s[1][2][4] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        unsigned b[4];
        load_matrices(b, k.at(0, i));
        mma(s[0][0], q[i], b[0], b[1]);
        mma(s[0][1], q[i], b[2], b[3]);
    }
    const int position = page + threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float now = state.largest[h];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float& x = s[0][i / 2][2 * h + i % 2];
            int at = position + i / 2 * 8 + i % 2;
            if (at < begin || at >= end) x = MINUS_INFINITY;
            now = fmaxf(now, x);
        }
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
        now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
        // Every page of the span has a position that counts, so `now` is finite.
        float factor = exp2_fast((state.largest[h] - now) * scale), add = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float& x = s[0][i / 2][2 * h + i % 2];
            x = exp2_fast((x - now) * scale);
            add += x;
        }
        state.sum[h] = state.sum[h] * factor + add;
        state.largest[h] = now;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            state.o[0][n][2 * h] *= factor;
            state.o[0][n][2 * h + 1] *= factor;
        }
    }
    unsigned p[1][1][4];
    as_operand(p, s);
    multiply_add<D>(state.o, p, v);
}

// Positions [begin, end) of a chunk, this warp's pages of them.
template <int D>
__device__ void run_pages(State<D>& state, const unsigned (&q)[D / 16][4], unsigned buffers, const bf16* keys, size_t half,
                          const int* table, int begin, int end, float scale) {
    constexpr int WARPS = Shape<D>::WARPS, STAGES = Shape<D>::STAGES, CHUNKS = D / 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int last = (end - 1) / 16;
    int page = begin / 16;
    page += (warp + WARPS - page % WARPS) % WARPS;  // pages with page % WARPS == warp

    // Reads a page's number one load ahead: the copies need it for their addresses.
    int ahead = page, number = ahead <= last ? table[ahead] : 0, fill = 0;
    auto load = [&] {
        if (ahead <= last) {
            const bf16* from = keys + number * (2 * half);
            const unsigned to = buffers + fill * Shape<D>::STAGE;
            const int next = ahead + WARPS;
            if (next <= last) number = table[next];
#pragma unroll
            for (int n = 0; n < CHUNKS / 2; n++) {
                int i = n * 32 + lane, row = i / CHUNKS, position = ahead * 16 + row;
                bool valid = position >= begin && position < end;
                unsigned offset = tile_offset<D>(row, i % CHUNKS);
                copy_async_16(to + offset, from + i * 8, valid);
                copy_async_16(to + Shape<D>::PAGE + offset, from + half + i * 8, valid);
            }
            ahead = next;
            if (++fill == STAGES) fill = 0;
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load();
    for (int stage = 0; page <= last; page += WARPS) {
        load();  // into the stage that was used STAGES - 1 pages ago
        copy_wait<STAGES - 1>();
        __syncwarp();
        add_page<D>(state, q, buffers + stage * Shape<D>::STAGE, page * 16, begin, end, scale);
        __syncwarp();
        if (++stage == STAGES) stage = 0;
    }
    copy_wait<0>();
}

// Grid (sequences, kv_heads * ceil(group / 16), splits), WARPS * 32 threads. Row b of qkv is the new row of sequence b, its
// key and value are in the pool. A sequence of length 0 gets zeros. A sequence of one chunk is finished here; the chunks
// of a longer one go to partial [sequences][parts][q_heads][D] (not divided) and state [sequences][parts][q_heads] (largest
// scaled score in units of ln 2, sum), for attention_combine.
// Shared memory: WARPS * STAGES stages of keys and values [16][D]; after the last page the warps' results.
template <int D>
__device__ void decode(bf16* out, float* partial, float2* state_out, const bf16* qkv, const bf16* pool, const int* page_table,
                       int table_stride, const int* kv_len, int q_heads, int kv_heads, int chunk, int parts, float scale,
                       int window) {
    constexpr int WARPS = Shape<D>::WARPS, THREADS = 32 * WARPS;
    extern __shared__ __align__(128) unsigned char shared[];
    const int sequence = blockIdx.x, group = q_heads / kv_heads, blocks = (group + 15) / 16;
    const int kv_head = blockIdx.y / blocks, block = blockIdx.y % blocks * 16;
    const int heads = min(16, group - block), head = kv_head * group + block;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int length = kv_len[sequence];
    const Span span(length, window, chunk);
    const size_t out_row = static_cast<size_t>(sequence) * q_heads + head;
    if (length <= 0) {
        if (blockIdx.z == 0)
            for (int i = threadIdx.x; i < heads * D; i += THREADS) out[out_row * D + i] = bf16{0};
        return;
    }
    if (static_cast<int>(blockIdx.z) >= span.chunks) return;

    const bf16* queries = qkv + static_cast<size_t>(sequence) * (q_heads + 2 * kv_heads) * D + head * D;
    unsigned q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = g + i % 2 * 8;
            q[k][i] = row < heads ? *reinterpret_cast<const unsigned*>(queries + row * D + k * 16 + i / 2 * 8 + t * 2) : 0;
        }

    const size_t half = static_cast<size_t>(kv_heads) * 16 * D;
    const unsigned buffers = shared_address(shared) + warp * (Shape<D>::STAGES * Shape<D>::STAGE);
    float* results = reinterpret_cast<float*>(shared);  // [WARPS][16][D]
    float2* states = reinterpret_cast<float2*>(shared + WARPS * 16 * D * 4);  // [WARPS][16]
    for (int part = blockIdx.z; part < span.chunks; part += gridDim.z) {
        State<D> state = {{}, {MINUS_INFINITY, MINUS_INFINITY}, {0.0f, 0.0f}};
        const int start = (span.first_chunk + part) * chunk;
        run_pages<D>(state, q, buffers, pool + kv_head * 16 * D, half,
                     page_table + static_cast<size_t>(sequence) * table_stride, max(span.begin, start),
                     min(span.end, start + chunk), scale * LOG2_E);
        __syncthreads();  // the page buffers are free
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = g + 8 * h;
            float sum = state.sum[h] + __shfl_xor_sync(0xffffffffu, state.sum[h], 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (row < heads) {
                if (t == 0) states[warp * 16 + row] = {state.largest[h] * (scale * LOG2_E), sum};
#pragma unroll
                for (int n = 0; n < D / 8; n++)
                    *reinterpret_cast<float2*>(results + (warp * 16 + row) * D + n * 8 + t * 2) = {state.o[0][n][2 * h],
                                                                                                  state.o[0][n][2 * h + 1]};
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < heads * D; i += THREADS) {
            const int row = i / D;
            float largest = states[row].x, sum = 0.0f, x = 0.0f;
#pragma unroll
            for (int w = 1; w < WARPS; w++) largest = fmaxf(largest, states[w * 16 + row].x);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float factor = exp2_fast(states[w * 16 + row].x - largest);
                sum += states[w * 16 + row].y * factor;
                x += results[w * 16 * D + i] * factor;
            }
            if (span.chunks == 1) {
                out[out_row * D + i] = to_bf16(x / sum);
            } else {
                const size_t at = (static_cast<size_t>(sequence) * parts + part) * q_heads + head;
                partial[at * D + i] = x;
                if (i % D == 0) state_out[at + row] = {largest, sum};
            }
        }
        __syncthreads();  // before the next chunk's pages come into the buffers
    }
}

// Grid (sequences, q_heads), D threads.
template <int D>
__device__ void combine(bf16* out, const float* partial, const float2* states, const int* kv_len, int q_heads, int chunk,
                        int parts, int window) {
    const int sequence = blockIdx.x, head = blockIdx.y;
    const Span span(kv_len[sequence], window, chunk);
    if (span.chunks <= 1) return;
    const size_t first = static_cast<size_t>(sequence) * parts * q_heads + head;
    float largest = MINUS_INFINITY, sum = 0.0f, x = 0.0f;
    for (int i = 0; i < span.chunks; i++) largest = fmaxf(largest, states[first + i * q_heads].x);
#pragma unroll 4
    for (int i = 0; i < span.chunks; i++) {
        const size_t at = first + i * q_heads;
        const float2 state = states[at];
        const float factor = exp2_fast(state.x - largest);
        sum += state.y * factor;
        x += partial[at * D + threadIdx.x] * factor;
    }
    out[(static_cast<size_t>(sequence) * q_heads + head) * D + threadIdx.x] = to_bf16(x / sum);
}

#define INSTANTIATE(D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(32 * Shape<D>::WARPS, 2) CAT(attention_decode_d, D)(                      \
        bf16* out, float* partial, float2* state, const bf16* qkv, const bf16* pool, const int* page_table,                \
        int table_stride, const int* kv_len, int q_heads, int kv_heads, int chunk, int parts, float scale, int window) {   \
        take_turn();                                                                                                       \
        decode<D>(out, partial, state, qkv, pool, page_table, table_stride, kv_len, q_heads, kv_heads, chunk, parts,       \
                  scale, window);                                                                                          \
    }                                                                                                                      \
    extern "C" __global__ void __launch_bounds__(D)                                                                        \
        CAT(attention_combine_d, D)(bf16* out, const float* partial, const float2* state, const int* kv_len, int q_heads,  \
                                    int chunk, int parts, int window) {                                                    \
        take_turn();                                                                                                       \
        combine<D>(out, partial, state, kv_len, q_heads, chunk, parts, window);                                            \
    }

#ifdef HEAD_DIM
INSTANTIATE(HEAD_DIM)
#else
INSTANTIATE(64)
INSTANTIATE(96)
INSTANTIATE(128)
INSTANTIATE(256)
#endif
