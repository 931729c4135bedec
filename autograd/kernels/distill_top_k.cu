// Distillation on a support of top-k tokens and one bucket for all others; one block a row.
//
// The support is the teacher's top k for KL(p||q), the student's for KL(q||p), their union for the JSD; ties go to the
// lower id. It is never listed: a token is in it when its rank is at least that of the k-th.
//
// Bound by bytes of device memory: as `distill.cu` with a mixture, and 4 bytes a token more for each digit (10 bits) of
// a threshold, about three, for each side that is selected from.
#include "distill.cuh"

// Lowest rank of the k most likely tokens, by logits divided by the temperature.
__forceinline__ unsigned long long threshold(Histogram& histogram, const LogitRow& z, float inverse, int k) {
    if (k >= z.vocab) return 0;
    return lowest_of_top<false>(histogram, k, [&](auto add) {
        z.each([&](int start) {
            float x[8];
            z.load(start, x);
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (start + j < z.vocab) add(rank_of(x[j] * inverse, start + j), 1);
        });
    });
}

template <Kind KIND>
__forceinline__ float reduced_loss(const Distill& work, int k, Histogram& histogram) {
    constexpr float TAIL_LIMIT = 1e-7f;  // least mass of the bucket, so that its logarithm is finite
    const unsigned long long NONE = ~0ull;
    const unsigned long long from_t = KIND == REVERSE ? NONE : threshold(histogram, work.zt, work.inverse, k);
    const unsigned long long from_s = KIND == FORWARD ? NONE : threshold(histogram, work.zs, work.inverse, k);
    const auto in_support = [&](int id, const Token& token) {
        return id < work.zs.vocab && (rank_of(token.s * work.inverse, id) >= from_s ||
                                      rank_of(token.t * work.inverse, id) >= from_t);
    };
    float sums[5] = {};  // loss and h on the support, q and p outside it, tokens of the support
    work.each([&](int start, const Token(&tokens)[8]) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (in_support(start + j, tokens[j])) {
                const Term t = term<KIND>(work.constant, tokens[j]);
                sums[0] += t.loss, sums[1] += t.h, sums[4] += 1.0f;
            } else {
                sums[2] += tokens[j].q, sums[3] += tokens[j].p;
            }
        }
    });
    block_sums(sums);
    float share = 0.0f;
    if (sums[4] < work.zs.vocab) {
        Token bucket = {};
        bucket.q = sums[2] < TAIL_LIMIT ? TAIL_LIMIT : sums[2], bucket.p = sums[3] < TAIL_LIMIT ? TAIL_LIMIT : sums[3];
        bucket.lq = logf(bucket.q), bucket.lp = logf(bucket.p);
        const Term t = term<KIND>(work.constant, bucket);
        sums[0] += t.loss;
        // A token of the tail shares the bucket's h in proportion to q; a bucket at its limit is a constant.
        if (!(sums[2] <= TAIL_LIMIT)) share = t.h / bucket.q, sums[1] += t.h;
    }
    if (work.wants_gradient()) {
        work.write_gradient(sums[1], [&](int id, const Token& token) {
            return in_support(id, token) ? term<KIND>(work.constant, token).h : token.q * share;
        });
    }
    return sums[0];
}

__forceinline__ void top_k(const Arguments& a, int k) {
    __shared__ Histogram histogram;
    distill(a, [&](const Distill& work, float, float) {
        switch (a.kind) {
            case FORWARD: return reduced_loss<FORWARD>(work, k, histogram);
            case REVERSE: return reduced_loss<REVERSE>(work, k, histogram);
            default: return reduced_loss<MIXED>(work, k, histogram);
        }
    });
}

// grid n, block THREADS. `kind`: 0 for beta 0, 1 for beta 1, 2 for `constant` beta between. k from 1 to V.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    distill_top_k_rows(const float* zs, long long zs_stride, const float* zt, long long zt_stride, int vocab, int kind,
                       float constant, int k, float temperature, const int* targets, const float* weights,
                       float* values, bf16* dz, long long dz_stride) {
    top_k({zs, zs_stride, zt, zt_stride, vocab, kind, constant, temperature, targets, weights, values, dz, dz_stride,
           nullptr},
          k);
}
