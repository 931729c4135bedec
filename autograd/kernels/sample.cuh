// Parts of the draw of one token by one block: weights, truncation, and the inverse of the cumulative distribution.
#pragma once
#include "logits.cuh"

constexpr int CHUNK = 2048;      // ids that are summed together
constexpr int MAX_CHUNKS = 128;  // V up to 262144
constexpr int DRAW_THREADS = 512;

// `e^x` for x <= 0 in the very operations of the CPU's sampler, so that weights are equal to the bit; 0 below -87.
__forceinline__ float exp_of_nonpositive(float x) {
    const float ROUND = 12582912.0f;
    const float bounded = x < -87.0f ? -87.0f : x;
    const float shifted = __fadd_rn(__fmul_rn(bounded, 1.44269504088896340736f), ROUND);
    const float power = __fsub_rn(shifted, ROUND);
    const float high = __fsub_rn(bounded, __fmul_rn(power, 0.6933594f));
    const float r = __fsub_rn(high, __fmul_rn(power, -2.1219444e-4f));
    const float factors[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    float series = 1.0f / 5040;
#pragma unroll
    for (int i = 0; i < 7; i++) series = __fadd_rn(__fmul_rn(series, r), factors[i]);
    const unsigned exponent = __float_as_uint(shifted) - __float_as_uint(ROUND) + 127u;
    const float value = __fmul_rn(series, __uint_as_float(exponent << 23));
    return x < -87.0f ? 0.0f : value;
}

// How the chosen row's tokens are weighed. `lowest` is the lowest rank that top-k and top-p keep.
struct Weights {
    LogitRow row;
    float max, temperature, min_p;
    unsigned long long lowest;

    // Relative to the most likely token, as the CPU computes it; 0 if `lowest` or `min_p` drop it.
    __forceinline__ float kept(int id, float logit) const {
        const float weight = unbounded(logit);
        return weight >= min_p && (lowest == 0 || rank_of(logit + 0.0f, id) >= lowest) ? weight : 0.0f;
    }

    __forceinline__ float unbounded(float logit) const {
        return exp_of_nonpositive(__fdiv_rn(__fsub_rn(logit, max), temperature));
    }

    // Calls f(id, logit) for this thread's tokens.
    template <typename F>
    __forceinline__ void each(F f) const {
        row.each([&](int start) {
            float z[8];
            row.load_raw(start, z, negative_infinity());
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (start + j < row.vocab) f(start + j, z[j]);
        });
    }
};

// Measures of weights in the nucleus: integers, exact for weights of at least 2^-21.
__forceinline__ unsigned long long fixed(float weight) {
    return __double2ull_rn((double)weight * 35184372088832.0);  // 2^45; 2^18 of them fit in 64 bits
}

// The lowest rank that is kept, 0 if all are.
__forceinline__ unsigned long long lowest_kept(const Weights& weights, int top_k, float top_p,
                                               Histogram& histogram) {
    unsigned long long lowest = 0;
    if (top_k > 0 && top_k < weights.row.vocab) {
        lowest = lowest_of_top<false>(histogram, top_k, [&](auto add) {
            weights.each([&](int id, float logit) { add(rank_of(logit + 0.0f, id), 1); });
        });
    }
    if (top_p >= 1.0f) return lowest;
    unsigned long long sum = 0;
    weights.each([&](int id, float logit) {
        if (rank_of(logit + 0.0f, id) >= lowest) sum += fixed(weights.unbounded(logit));
    });
    const unsigned long long goal = (unsigned long long)ceil((double)top_p * (double)block_sum(sum));
    const unsigned long long nucleus = lowest_of_top<true>(histogram, goal, [&](auto add) {
        weights.each([&](int id, float logit) {
            const unsigned long long rank = rank_of(logit + 0.0f, id);
            if (rank >= lowest) add(rank, fixed(weights.unbounded(logit)));
        });
    });
    return max(lowest, nucleus);
}

// Called by one warp: the first index at which the running sum exceeds `target`, and the sum before it. If rounding
// left the target above all, the last index with a positive value. -1 if no value is positive.
__forceinline__ int first_above(const double* values, int count, double target, double& before) {
    double sum = 0;
    int last = -1;
    double before_last = 0;
    for (int base = 0; base < count; base += 32) {
        const int i = base + lane_id();
        const double value = i < count ? values[i] : 0.0;
        double through = value;
#pragma unroll
        for (int offset = 1; offset < 32; offset <<= 1) {
            const double lower = __shfl_up_sync(ALL_LANES, through, offset);
            if (lane_id() >= offset) through += lower;
        }
        const double start = sum + (through - value);
        const unsigned above = __ballot_sync(ALL_LANES, value > 0 && sum + through > target);
        const unsigned positive = __ballot_sync(ALL_LANES, value > 0);
        if (above) {
            before = __shfl_sync(ALL_LANES, start, __ffs(above) - 1);
            return base + __ffs(above) - 1;
        }
        if (positive) {
            last = base + 31 - __clz(positive);
            before_last = __shfl_sync(ALL_LANES, start, 31 - __clz(positive));
        }
        sum += __shfl_sync(ALL_LANES, through, 31);
    }
    before = before_last;
    return last;
}

// The token of the chunk at `start` at which `before` plus the running sum of weight(id) passes `target`; all threads
// of the block search and get it.
template <typename F>
__forceinline__ int search_chunk(int start, int vocab, double before, double target, F weight) {
    constexpr int SHARE = CHUNK / DRAW_THREADS;
    __shared__ double sums[DRAW_THREADS];
    __shared__ int found;
    double mine[SHARE], sum = 0;
#pragma unroll
    for (int j = 0; j < SHARE; j++) {
        const int id = start + threadIdx.x * SHARE + j;
        mine[j] = id < vocab ? weight(id) : 0.0;
        sum += mine[j];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    __shared__ double before_owner;
    __shared__ int owner;
    if (threadIdx.x < 32) {
        double until = 0;
        const int index = first_above(sums, DRAW_THREADS, target - before, until);
        if (threadIdx.x == 0) owner = index, before_owner = until;
    }
    __syncthreads();
    if (threadIdx.x == max(owner, 0)) {
        double running = before + before_owner;
        int token = -1;
#pragma unroll
        for (int j = 0; j < SHARE; j++) {
            if (mine[j] > 0 && (token < 0 || running <= target)) token = start + threadIdx.x * SHARE + j;
            running += mine[j];
        }
        found = token;
    }
    __syncthreads();
    return found;
}

// Inverts the cumulative weights in id order at uniform * sum. `sums` holds the weights of the chunks, and
// weigher(chunk) gives a function from its ids to their weights.
template <typename F>
__forceinline__ int invert(const double* sums, int vocab, double uniform, F weigher) {
    __shared__ double total, before;
    __shared__ int chunk;
    const int chunks = (vocab + CHUNK - 1) / CHUNK;
    if (threadIdx.x < 32) {
        double sum = 0;
        for (int i = lane_id(); i < chunks; i += 32) sum += sums[i];
        sum = warp_sum(sum);
        double until = 0;
        const int index = first_above(sums, chunks, uniform * sum, until);
        if (threadIdx.x == 0) chunk = max(index, 0), total = sum, before = until;
    }
    __syncthreads();
    return search_chunk(chunk * CHUNK, vocab, before, uniform * total, weigher(chunk));
}
