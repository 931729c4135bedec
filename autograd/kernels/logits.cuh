// Rows of f32 logits: reading them in vectors, and finding the most likely tokens without sorting.
#pragma once
#include "common.cuh"

// What stands past the end of a row: so far below LOWEST_LOGIT that it adds nothing even where all logits are -inf.
constexpr float PAST_THE_END = 4 * LOWEST_LOGIT;
// Start of a running maximum: between the two.
constexpr float NO_MAXIMUM = 2 * LOWEST_LOGIT;

// -inf and +inf become finite; NaN stays.
__forceinline__ float clamped(float x) {
    x = x < LOWEST_LOGIT ? LOWEST_LOGIT : x;
    return x > -LOWEST_LOGIT ? -LOWEST_LOGIT : x;
}

__forceinline__ float largest(const float (&z)[8]) {
    float top = z[0];
#pragma unroll
    for (int j = 1; j < 8; j++) top = fmaxf(top, z[j]);
    return top;
}

struct LogitRow {
    const float* logits;
    int vocab;
    bool vectors;  // rows of an odd stride start anywhere: those are read element by element

    __forceinline__ LogitRow(const float* rows, long long row, long long stride, int vocab)
        : logits(rows + row * stride), vocab(vocab), vectors(is_aligned(logits)) {}

    // The logits at `start ..+ 8`; what is past the end reads as `past`.
    __forceinline__ void load_raw(int start, float (&x)[8], float past) const {
        if (vectors && start + 8 <= vocab) return load8(logits + start, x);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = start + j < vocab ? logits[start + j] : past;
    }

    __forceinline__ void load(int start, float (&x)[8]) const {
        load_raw(start, x, PAST_THE_END);
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = start + j < vocab ? clamped(x[j]) : PAST_THE_END;
    }

    // Calls f(start) for the starts of this thread's vectors, ascending.
    template <typename F>
    __forceinline__ void each(F f) const {
        for (int start = threadIdx.x * 8; start < vocab; start += blockDim.x * 8) f(start);
    }
};

// ---- log-probabilities ----

constexpr int THREADS = 512;  // of the blocks that sum a row

// exp((z - max) / T); `inverse` is 1 / T.
__forceinline__ float exponential(float z, float max, float inverse) {
    return __expf(__fmul_rn(__fadd_rn(z, -max), inverse));
}

// ln softmax(z / T)[token] from the token's logit, the row's largest, and the sum of the row's exponentials.
__forceinline__ float log_probability(float z, float max, float sum, float inverse) {
    const double gap = __fadd_rn(clamped(z), -max);
    return (float)__dadd_rn(__dmul_rn(inverse, gap), -log((double)sum));
}

// The largest logit and the sum of the exponentials relative to it. All kernels that report log-probabilities form these
// in one order, with roundings spelled out, so that sampler and losses give the same bits: a thread goes through its
// vectors upwards and brings its sum to a maximum when it meets one, then threads and warps are added as in `block_sums`.
struct Normalizer {
    float max = NO_MAXIMUM, sum = 0;

    // Returns what other sums have to be multiplied with.
    __forceinline__ float raise(float to, float inverse) {
        const float factor = exponential(max, to, inverse);
        sum = __fmul_rn(sum, factor), max = to;
        return factor;
    }

    // Of a row, by a block of THREADS that loads AHEAD vectors at a time.
    template <int AHEAD>
    static __forceinline__ Normalizer of(const LogitRow& row, float inverse) {
        Normalizer all;
        for (int start = threadIdx.x * 8; start < row.vocab; start += AHEAD * THREADS * 8) {
            float z[AHEAD][8];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) row.load(start + i * THREADS * 8, z[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const float top = largest(z[i]);
                if (top > all.max) all.raise(top, inverse);
#pragma unroll
                for (int j = 0; j < 8; j++) all.sum = __fadd_rn(all.sum, exponential(z[i][j], all.max, inverse));
            }
        }
        all.raise(block_max(all.max), inverse);
        float sums[1] = {all.sum};
        block_sums(sums);
        all.sum = sums[0];
        return all;
    }
};

// ---- order of tokens: by falling logit, then by rising id ----

// 50 bits that grow with the rank; ids are below 2^18. -0 comes below +0: add 0.0f to a logit to make them tie.
__forceinline__ unsigned long long rank_of(float logit, int id) {
    const unsigned bits = __float_as_uint(logit), rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (unsigned long long)rising << 18 | (unsigned)(0x3ffff - id);
}

constexpr int BINS = 1024;

// Measures of tokens by one digit of their rank. Integers, so that the order of addition does not matter.
struct Histogram {
    unsigned count[BINS], low[BINS], high[BINS];

    __forceinline__ void clear() {
        for (int i = threadIdx.x; i < BINS; i += blockDim.x) count[i] = low[i] = high[i] = 0;
    }

    template <bool WEIGHTED>
    __forceinline__ void add(int bin, unsigned long long measure) {
        atomicAdd(&count[bin], 1u);
        if (!WEIGHTED || measure == 0) return;
        const unsigned part = (unsigned)measure, old = atomicAdd(&low[bin], part);
        const unsigned carried = (unsigned)(measure >> 32) + (old + part < old);
        if (carried) atomicAdd(&high[bin], carried);
    }

    template <bool WEIGHTED>
    __forceinline__ unsigned long long measure(int bin) const {
        return WEIGHTED ? (unsigned long long)high[bin] << 32 | low[bin] : count[bin];
    }
};

// Called by one warp: the highest bin at which `above` plus the measures of the bins from the top reaches `goal`;
// `above` grows by the bins over it. Returned and set by all lanes.
template <bool WEIGHTED>
__forceinline__ int crossing_bin(const Histogram& histogram, unsigned long long& above, unsigned long long goal) {
    const int lane = lane_id(), first = BINS - 32 * (lane + 1);
    unsigned long long mine = 0;
    // Lanes start at different banks.
    for (int j = 0; j < 32; j++) mine += histogram.measure<WEIGHTED>(first + ((j + lane) & 31));
    unsigned long long through = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const unsigned long long lower = __shfl_up_sync(ALL_LANES, through, offset);
        if (lane >= offset) through += lower;
    }
    const unsigned reached = __ballot_sync(ALL_LANES, above + through >= goal);
    const int owner = reached ? __ffs(reached) - 1 : 31;
    unsigned long long sum = above + through - mine;
    int bin = first + 31;
    if (lane == owner) {
        for (; bin > first; bin--) {
            const unsigned long long next = sum + histogram.measure<WEIGHTED>(bin);
            if (next >= goal) break;
            sum = next;
        }
    }
    above = __shfl_sync(ALL_LANES, sum, owner);
    return __shfl_sync(ALL_LANES, bin, owner);
}

// The lowest rank in the shortest list of most likely tokens whose measures sum to at least `goal` (or a bound below
// that rank and above the next). `visit(f)` calls f(rank, measure) for the thread's tokens; the measures must suffice.
// WEIGHTED false: every measure is 1. All threads of the block call it and get the result.
template <bool WEIGHTED, typename Visit>
__forceinline__ unsigned long long lowest_of_top(Histogram& histogram, unsigned long long goal, Visit visit) {
    __shared__ unsigned long long state[3];  // chosen digits, measure above them, whether all of the bin is in
    unsigned long long prefix = 0, above = 0;
    for (int shift = 40; shift >= 0; shift -= 10) {
        // Nobody reads the histogram any more: the choice of a bin ends with a barrier.
        histogram.clear();
        __syncthreads();
        visit([&](unsigned long long rank, unsigned long long measure) {
            if (rank >> (shift + 10) == prefix >> (shift + 10)) {
                histogram.add<WEIGHTED>((int)(rank >> shift) & (BINS - 1), measure);
            }
        });
        __syncthreads();
        if (threadIdx.x < 32) {
            const int bin = crossing_bin<WEIGHTED>(histogram, above, goal);
            if (threadIdx.x == 0) {
                state[0] = prefix | (unsigned long long)bin << shift;
                state[1] = above;
                state[2] = histogram.count[bin] <= 1 || above + histogram.measure<WEIGHTED>(bin) == goal;
            }
        }
        __syncthreads();
        prefix = state[0], above = state[1];
        if (state[2]) break;
    }
    return prefix;
}
