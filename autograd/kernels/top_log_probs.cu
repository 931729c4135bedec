// Log-probabilities of the most likely and of given tokens, under the model's own distribution: definitions as in
// `runtime/src/sampler/draw.rs`. Bound by bytes: up to five reads of a row, all but the first from the L2 cache.
#include "sample.cuh"
#include "logits_processors.cuh"

constexpr int MOST_LISTED = 256;  // of the most likely tokens; LISTED of `autograd/src/ops/sample/processors.rs`

struct Listed {
    int id;
    float log_prob;
};

// The most likely by falling logit, ties by rising id, then the given ones in their order. Rows that drew nothing are
// skipped. Block DRAW_THREADS, grid B.
extern "C" __global__ void __launch_bounds__(DRAW_THREADS)
    list_log_probs(const float* logits, int vocab, const int* active, const Extras* extras, const int* tokens,
                   const float* log_probs, Listed* listed) {
    const int index = blockIdx.x;
    if (!active[index] || tokens[index] < 0) return;
    const Extras mine = extras[index];
    if (mine.top + mine.given == 0) return;
    const LogitRow row(logits, index, vocab, vocab);
    // What the drawn token's log-probability was formed with.
    const double log_sum = (double)row.logits[tokens[index]] - log_probs[index];
    const auto entry = [&](int id) { return Listed{id, (float)(row.logits[id] - log_sum)}; };
    Listed* out = listed + mine.listed;
    const int* given = mine.lists + 2 * mine.biases;
    for (int i = threadIdx.x; i < mine.given; i += DRAW_THREADS) out[mine.top + i] = entry(given[i]);
    if (mine.top == 0) return;
    __shared__ Histogram histogram;
    __shared__ unsigned long long ranks[MOST_LISTED];
    __shared__ int found;
    const auto each = [&](auto f) {
        row.each([&](int start) {
            float z[8];
            row.load_raw(start, z, negative_infinity());
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (start + j < vocab) f(rank_of(z[j] + 0.0f, start + j));
        });
    };
    if (threadIdx.x == 0) found = 0;
    const unsigned long long lowest = lowest_of_top<false>(histogram, mine.top, [&](auto add) {
        each([&](unsigned long long rank) { add(rank, 1); });
    });
    each([&](unsigned long long rank) {
        if (rank >= lowest) ranks[atomicAdd(&found, 1)] = rank;
    });
    __syncthreads();
    // Ranks differ, so a token's place is the number of those above it.
    for (int i = threadIdx.x; i < mine.top; i += DRAW_THREADS) {
        int place = 0;
        for (int j = 0; j < mine.top; j++) place += ranks[j] > ranks[i];
        out[place] = entry(0x3ffff - (int)(ranks[i] & 0x3ffff));
    }
}
