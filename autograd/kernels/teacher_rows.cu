// Logits of a teacher that is elsewhere, into rows of f32 that lie `stride` apart; one block a row.
//
// Bound by bytes of device memory: placing reads and writes each number once; expanding writes two numbers a token and
// reads the student's twice.
#include "logits.cuh"

// rows [n, V].
extern "C" __global__ void __launch_bounds__(THREADS)
    place_logits_f32(float* zt, long long stride, const float* rows, int vocab) {
    const float* from = rows + (long long)blockIdx.x * vocab;
    float* to = zt + blockIdx.x * stride;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) to[v] = from[v];
}

// As above; bf16 is the upper half of an f32.
extern "C" __global__ void __launch_bounds__(THREADS)
    place_logits_bf16(float* zt, long long stride, const unsigned short* rows, int vocab) {
    const unsigned short* from = rows + (long long)blockIdx.x * vocab;
    float* to = zt + blockIdx.x * stride;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) to[v] = __uint_as_float((unsigned)from[v] << 16);
}

// `zt` becomes T ln p, where p has `log_probs` [n, k] at `ids` [n, k] and shares exp(tails[row]) among all other tokens in
// the proportions of softmax(zs / T).
extern "C" __global__ void __launch_bounds__(THREADS)
    expand_top_rows(const float* zs, long long zs_stride, float* zt, long long zt_stride, int vocab, const int* ids,
                    const float* log_probs, const float* tails, int k, float temperature) {
    const int row = blockIdx.x;
    const float* s = zs + row * zs_stride;
    float* t = zt + row * zt_stride;
    ids += (long long)row * k, log_probs += (long long)row * k;
    // Marks: 1 for a token of the list, 0 for one of the bucket.
    for (int v = threadIdx.x; v < vocab; v += blockDim.x) t[v] = 0.0f;
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += blockDim.x) t[ids[j]] = 1.0f;
    __syncthreads();
    const float inverse = 1.0f / temperature;
    float top = NO_MAXIMUM, sums[1] = {};
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (t[v] == 0.0f) top = fmaxf(top, clamped(s[v]));
    top = block_max(top);
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (t[v] == 0.0f) sums[0] += exponential(clamped(s[v]), top, inverse);
    block_sums(sums);
    const float shift = temperature * (tails[row] - logf(sums[0])) - top;
    for (int v = threadIdx.x; v < vocab; v += blockDim.x)
        if (t[v] == 0.0f) t[v] = clamped(s[v]) + shift;
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += blockDim.x) t[ids[j]] = temperature * log_probs[j];
}
