// AdamW on many tensors at once, and the gradient's norm. Definitions as in `autograd/src/adamw.rs`.
//
// `tensors` is a table; `chunks` lists pieces of OPTIMIZER_CHUNK elements, block b does chunks[b]. Bound by bytes: a
// parameter costs 4 (gradient) + 24 (master, moments) + 2 (weight).
#include "common.cuh"

constexpr int OPTIMIZER_CHUNK = 16384;
constexpr int THREADS = 512;

// One trained tensor; pointers are multiples of 16 bytes. `weight` is what the model computes with.
struct Trained {
    bf16* weight;
    const float* grad;
    float *master, *m, *v;
    long long count;
};

struct Chunk {
    int tensor, index;
};

// Calls f(element, how many of eight) for this thread's elements of the block's chunk.
template <typename F>
__forceinline__ void each(const Trained& t, const Chunk& chunk, F f) {
    const long long start = (long long)chunk.index * OPTIMIZER_CHUNK;
    const long long end = min(start + OPTIMIZER_CHUNK, t.count);
    for (long long i = start + threadIdx.x * 8; i < end; i += THREADS * 8) f(i, (int)min(8LL, end - i));
}

__forceinline__ void load_some(const float* p, int count, float (&x)[8]) {
    if (count == 8) return load8(p, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = j < count ? p[j] : 0.0f;
}

__forceinline__ void store_some(float* p, int count, const float (&x)[8]) {
    if (count == 8) return store8(p, x);
#pragma unroll
    for (int j = 0; j < 8; j++)
        if (j < count) p[j] = x[j];
}

// m += rest1 (g - m), v = beta2 v + rest2 g^2, w = w decay - step m / (sqrt(v) root + eps), with
// g = grad * grad_factor.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const Trained* tensors, const Chunk* chunks, float grad_factor, float decay, float rest1, float beta2,
          float rest2, float step, float root, float eps) {
    const Chunk chunk = chunks[blockIdx.x];
    const Trained t = tensors[chunk.tensor];
    each(t, chunk, [&](long long i, int count) {
        float g[8], w[8], m[8], v[8];
        load_some(t.grad + i, count, g), load_some(t.master + i, count, w);
        load_some(t.m + i, count, m), load_some(t.v + i, count, v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float scaled = g[j] * grad_factor;
            m[j] += rest1 * (scaled - m[j]);
            v[j] = beta2 * v[j] + rest2 * scaled * scaled;
            w[j] = w[j] * decay - step * m[j] / (sqrtf(v[j]) * root + eps);
        }
        store_some(t.m + i, count, m), store_some(t.v + i, count, v), store_some(t.master + i, count, w);
        if (count == 8) return store8(t.weight + i, w);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (j < count) t.weight[i + j] = to_bf16(w[j]);
    });
}

// partials[b] = sum of squares of the gradients in chunks[b].
extern "C" __global__ void __launch_bounds__(THREADS)
    square_sum_partials(const Trained* tensors, const Chunk* chunks, double* partials) {
    const Chunk chunk = chunks[blockIdx.x];
    const Trained t = tensors[chunk.tensor];
    double sum = 0;
    each(t, chunk, [&](long long i, int count) {
        float g[8];
        load_some(t.grad + i, count, g);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += (double)g[j] * g[j];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
