// Element by element: sums, casts, factors, dropout; and sums over rows in a fixed order. Bound by bytes.
//
// Elementwise kernels take any length and any one-dimensional grid (blocks loop); pointers are multiples of 16 bytes.
#include "common.cuh"

__forceinline__ void put(float* p, float x) {
    *p = x;
}

__forceinline__ void put(bf16* p, float x) {
    *p = to_bf16(x);
}

// out[i] = f(a[i], b[i]) in f32.
template <typename A, typename B, typename Out, typename F>
__forceinline__ void map(const A* a, const B* b, Out* out, long long count, F f) {
    const long long step = 8LL * gridDim.x * blockDim.x;
    for (long long i = 8LL * (blockIdx.x * blockDim.x + threadIdx.x); i < count; i += step) {
        if (i + 8 > count) {
            for (; i < count; i++) put(out + i, f(to_float(a[i]), to_float(b[i])));
            return;
        }
        float x[8], y[8];
        load8(a + i, x), load8(b + i, y);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = f(x[j], y[j]);
        store8(out + i, x);
    }
}

// Columns `first ..< last` of rows that lie `stride` apart become -inf; one block a row.
extern "C" __global__ void exclude_columns(float* z, long long stride, int first, int last) {
    for (int column = first + threadIdx.x; column < last; column += blockDim.x) {
        z[blockIdx.x * stride + column] = __uint_as_float(0xff800000u);
    }
}

// `out` may be `a` or `b` in all of these.
extern "C" __global__ void add(const bf16* a, const bf16* b, bf16* out, long long count) {
    map(a, b, out, count, [](float x, float y) { return x + y; });
}

extern "C" __global__ void accumulate(float* a, const float* b, long long count) {
    map(a, b, a, count, [](float x, float y) { return x + y; });
}

extern "C" __global__ void scale(float* a, float factor, long long count) {
    map(a, a, a, count, [=](float x, float) { return x * factor; });
}

extern "C" __global__ void scale_bf16(bf16* a, float factor, long long count) {
    map(a, a, a, count, [=](float x, float) { return x * factor; });
}

extern "C" __global__ void cast_to_f32(const bf16* a, float* out, long long count) {
    map(a, a, out, count, [](float x, float) { return x; });
}

// Words of four bytes: a float's bits, or twice a bf16's.
extern "C" __global__ void fill(unsigned* out, unsigned word, long long count) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < count / 4; i += step) {
        store_vector(out + 4 * i, make_uint4(word, word, word, word));
    }
    if (blockIdx.x == 0 && threadIdx.x < count % 4) out[count - 1 - threadIdx.x] = word;
}

// Inverted dropout: an element is zeroed when its 32 random bits are below `bound`, else multiplied by `keep`.
//
// Element e of the tensor has word (e % 64) / 16 of counter 16 (e / 64) + e % 16 under `key`, as on the CPU. A thread
// does eight counters, so four vectors of eight elements. `count` is a multiple of 8; grid ceil(count / 32 / threads).
extern "C" __global__ void dropout(const bf16* x, bf16* out, long long count, unsigned long long key, unsigned bound,
                                   float keep) {
    const unsigned long long index = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long counter = index * 8;
    const long long start = (long long)(index >> 1) * 64 + (index & 1) * 8;
    if (start >= count) return;
    unsigned bits[4][8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const unsigned long long c = counter + j;
        const uint4 words = philox(key, make_uint4((unsigned)c, (unsigned)(c >> 32), 0, 0));
        bits[0][j] = words.x, bits[1][j] = words.y, bits[2][j] = words.z, bits[3][j] = words.w;
    }
#pragma unroll
    for (int word = 0; word < 4; word++) {
        const long long at = start + 16 * word;
        if (at >= count) return;
        float v[8];
        load8(x + at, v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = bits[word][j] < bound ? 0.0f : v[j] * keep;
        store8(out + at, v);
    }
}

// Column sums of bf16 [rows, width], first stage: partials [gridDim.y, width], each of a range of rows.
// Block (32, 8); grid (ceil(width / 256), any number of ranges).
extern "C" __global__ void column_sum_partials(const bf16* x, float* partials, int rows, int width) {
    __shared__ float shares[8][32 * 8 + 8];
    const int column = (blockIdx.x * 32 + threadIdx.x) * 8;
    const int range = (rows + gridDim.y - 1) / gridDim.y;
    const int first = blockIdx.y * range, end = min(rows, first + range);
    float sum[8] = {};
    if (column < width) {
#pragma unroll 4
        for (int row = first + threadIdx.y; row < end; row += 8) {
            float v[8];
            load8(x + (long long)row * width + column, v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum[j] += v[j];
        }
    }
    store8(&shares[threadIdx.y][threadIdx.x * 8], sum);
    __syncthreads();
    const int thread = threadIdx.y * 32 + threadIdx.x, out = blockIdx.x * 256 + thread;
    if (out >= width) return;
    float total = 0.0f;
#pragma unroll
    for (int y = 0; y < 8; y++) total += shares[y][thread];
    partials[(long long)blockIdx.y * width + out] = total;
}

// Second stage: out[c] (+)= sum over p of partials[p * stride + c], c < width. Block (32, 32), grid ceil(width / 32).
extern "C" __global__ void sum_partials(const float* partials, float* out, int parts, int stride, int width,
                                        int accumulate) {
    __shared__ float shares[32][33];
    const int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (int part = threadIdx.y; part < parts; part += 32) sum += partials[(long long)part * stride + column];
    }
    shares[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    const float total = warp_sum(shares[threadIdx.x][threadIdx.y]);
    const int out_column = blockIdx.x * 32 + threadIdx.y;
    if (threadIdx.x == 0 && out_column < width) out[out_column] = total + (accumulate ? out[out_column] : 0.0f);
}
