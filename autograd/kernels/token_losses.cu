// Losses of given tokens, one row of logits [n, V] a block: cross-entropy, policy gradient, log-probability.
//
// With q = softmax(z / T): a loss f ln q[target] has the gradient f (onehot - q) / T. Bound by bytes of device memory:
// a token costs 4 for the values and 4 + 2 for the gradient.
// -inf counts as LOWEST_LOGIT; NaN spreads. Targets are in [0, V). grid n, block THREADS.
#include "logits.cuh"

// A row's distribution.
struct Softmax : Normalizer {
    float along = 0;  // with e = exp((z - max) / T): the sum of e (z - max)

    __forceinline__ void raise(float to, float inverse) {
        const float shifted = along + (max - to) * sum;
        along = Normalizer::raise(to, inverse) * shifted;
    }

    __forceinline__ Softmax(const LogitRow& row, float inverse) {
        row.each([&](int start) {
            float z[8];
            row.load(start, z);
            const float top = largest(z);
            if (top > max) raise(top, inverse);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float e = exponential(z[j], max, inverse);
                sum = __fadd_rn(sum, e);
                along = fmaf(e, z[j] - max, along);
            }
        });
        raise(block_max(max), inverse);
        float sums[2] = {sum, along};
        block_sums(sums);
        sum = sums[0], along = sums[1];
    }

    __forceinline__ float entropy(float inverse) const {
        return (float)(log((double)sum) - (double)inverse * along / sum);
    }

    __forceinline__ float log_prob(float z, float inverse) const {
        return log_probability(z, max, sum, inverse);
    }
};

// dz = factor * (onehot - q).
__forceinline__ void write_gradient(const LogitRow& row, const Softmax& softmax, float inverse, int target,
                                    float factor, bf16* dz) {
    const float log_sum = logf(softmax.sum);
    row.each([&](int start) {
        float d[8] = {};
        if (factor != 0.0f) {
            row.load(start, d);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const float q = __expf(fmaf(d[j] - softmax.max, inverse, -log_sum));
                d[j] = factor * ((start + j == target ? 1.0f : 0.0f) - q);
            }
        }
        if (is_aligned(dz) && start + 8 <= row.vocab) return store8(dz + start, d);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (start + j < row.vocab) dz[start + j] = to_bf16(d[j]);
    });
}

// values [n, 3]: loss, ln q[target], entropy. `sampled` null: cross-entropy, loss -ln q; else the policy gradient,
// loss -exp(ln q - sampled) advantage.
__forceinline__ void token_loss(const float* z, long long stride, int vocab, const int* targets, const float* sampled,
                                const float* advantages, float temperature, const float* weights, float* values,
                                bf16* dz, long long dz_stride) {
    const int i = blockIdx.x, target = targets[i];
    const LogitRow row(z, i, stride, vocab);
    const float inverse = 1.0f / temperature;
    const Softmax softmax(row, inverse);
    const float log_prob = softmax.log_prob(row.logits[target], inverse);
    const float loss = sampled ? -expf(log_prob - sampled[i]) * advantages[i] : -log_prob;
    if (threadIdx.x == 0) {
        values[3LL * i] = loss, values[3LL * i + 1] = log_prob, values[3LL * i + 2] = softmax.entropy(inverse);
    }
    if (!dz) return;
    const float weight = weights[i], slope = sampled ? loss : -1.0f;
    write_gradient(row, softmax, inverse, target, weight == 0.0f ? 0.0f : weight * slope * inverse, dz + i * dz_stride);
}

// ln q[target] alone, [n].
__forceinline__ void log_prob(const float* z, long long stride, int vocab, const int* targets, float temperature,
                              float* values) {
    const LogitRow row(z, blockIdx.x, stride, vocab);
    const float inverse = 1.0f / temperature;
    const Softmax softmax(row, inverse);
    if (threadIdx.x == 0) {
        values[blockIdx.x] = softmax.log_prob(row.logits[targets[blockIdx.x]], inverse);
    }
}

// `dz` [n, V] bf16 (or null) gets weights[row] times the loss's gradient; rows of weight 0 become zeros.
extern "C" __global__ void __launch_bounds__(THREADS)
    cross_entropy_rows(const float* z, long long stride, int vocab, const int* targets, const float* weights,
                       float* values, bf16* dz, long long dz_stride) {
    token_loss(z, stride, vocab, targets, nullptr, nullptr, 1.0f, weights, values, dz, dz_stride);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    policy_gradient_rows(const float* z, long long stride, int vocab, const int* targets, const float* sampled,
                         const float* advantages, float temperature, const float* weights, float* values, bf16* dz,
                         long long dz_stride) {
    token_loss(z, stride, vocab, targets, sampled, advantages, temperature, weights, values, dz, dz_stride);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    log_prob_rows(const float* z, long long stride, int vocab, const int* targets, float temperature, float* values) {
    log_prob(z, stride, vocab, targets, temperature, values);
}

// What the sampler drew, with the log-probabilities that the losses above give: at temperature 1 and at the draw's (0
// counts as 1). Arrays [n]; rows that are not `active` or have no token are left as they are.
extern "C" __global__ void __launch_bounds__(THREADS)
    drawn_log_probs(const float* z, long long stride, int vocab, const int* active, const float* temperatures,
                    const int* tokens, float* log_probs, float* sampling_log_probs) {
    const int i = blockIdx.x, token = tokens[i];
    if (!active[i] || token < 0) return;
    const LogitRow row(z, i, stride, vocab);
    const float temperature = temperatures[i] == 0.0f ? 1.0f : temperatures[i], inverse = 1.0f / temperature;
    const auto log_prob_at = [&](float inverse) {
        const Normalizer all = Normalizer::of<4>(row, inverse);
        return log_probability(row.logits[token], all.max, all.sum, inverse);
    };
    const float plain = log_prob_at(1.0f), sampling = inverse == 1.0f ? plain : log_prob_at(inverse);
    if (threadIdx.x == 0) log_probs[i] = plain, sampling_log_probs[i] = sampling;
}
