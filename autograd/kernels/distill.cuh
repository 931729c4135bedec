// What the kernels of distillation losses share: one row of logits a block (student `zs`, teacher `zt`, both [n, V]).
//
// Definitions as in `autograd/src/ops/divergence.rs`: p teacher, q student, both softmax(z / T); with h = q dL/dq the
// gradient is (h - q sum(h)) / T. -inf counts as LOWEST_LOGIT, so no difference of logits is NaN; NaN spreads.
#pragma once
#include "logits.cuh"

enum Kind { FORWARD, REVERSE, MIXED, SKEWED_FORWARD, SKEWED_REVERSE };

// Running sums of one side, relative to the largest logit seen. With e = exp((z - max) / T):
struct Side : Normalizer {
    float along = 0;  // of e (z - max)
    float cross = 0;  // of e (z - other side's z)
    float plain = 0;  // of exp(z - max), if T is not 1
    int index = 0;    // of the first maximum

    __forceinline__ void raise(float to, float inverse) {
        const float shifted = along + (max - to) * sum;
        plain = __fmul_rn(plain, exponential(max, to, 1.0f));
        const float factor = Normalizer::raise(to, inverse);
        along = factor * shifted, cross *= factor;
    }

    __forceinline__ void add(const float (&z)[8], const float (&other)[8], int start, float inverse, bool with_plain) {
        const float top = largest(z);
        if (top > max) {
            raise(top, inverse);
            index = start;
#pragma unroll
            for (int j = 7; j >= 0; j--) index = z[j] == top ? start + j : index;
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float e = exponential(z[j], max, inverse);
            sum = __fadd_rn(sum, e);
            along = fmaf(e, z[j] - max, along);
            cross = fmaf(e, z[j] - other[j], cross);
            if (with_plain) plain = __fadd_rn(plain, exponential(z[j], max, 1.0f));
        }
    }

    // Of the whole block.
    __forceinline__ void finish(float inverse) {
        const float top = block_max(max);
        index = block_min(max == top ? index : 0x7fffffff);
        raise(top, inverse);
        float sums[4] = {sum, along, cross, plain};
        block_sums(sums);
        sum = sums[0], along = sums[1], cross = sums[2], plain = sums[3];
    }

    __forceinline__ double log_sum(double inverse) const {
        return max * inverse + log((double)sum);
    }
};

// Probabilities, their logarithms and the logits of one token; past the end of the row the former are zero.
struct Token {
    float p, q, lp, lq, s, t;
};

// Contribution to the loss, and h up to a multiple of q.
struct Term {
    float loss, h;
};

// a x + (1 - a) y, at least the smallest normal number; a NaN stays.
__forceinline__ float mix(float a, float x, float y) {
    const float m = fmaf(a, x, (1.0f - a) * y);
    return m < 1.17549435e-38f ? 1.17549435e-38f : m;
}

template <Kind KIND>
__forceinline__ Term term(float constant, const Token& token) {
    const float p = token.p, q = token.q, lp = token.lp, lq = token.lq;
    if (KIND == FORWARD) return {p * (lp - lq), -p};
    if (KIND == REVERSE) return {q * (lq - lp), q * (lq - lp)};
    if (KIND == MIXED) {
        const float lm = logf(mix(constant, p, q)), h = (1.0f - constant) * (q * (lq - lm));
        return {fmaf(constant, p * (lp - lm), h), h};
    }
    if (KIND == SKEWED_FORWARD) {
        const float m = mix(constant, p, q);
        return {p * (lp - logf(m)), (constant - 1.0f) * (p * (q / m))};
    }
    const float m = mix(constant, q, p), loss = q * (lq - logf(m));
    return {loss, loss - constant * (q * (q / m))};
}

// One row at work.
struct Distill {
    LogitRow zs, zt;
    Side student, teacher;
    float constant, inverse, log_s, log_t;
    bf16* dz;
    float weight;

    // Calls f(start, tokens) for this thread's vectors.
    template <typename F>
    __forceinline__ void each(F f) const {
        zs.each([&](int start) {
            float s[8], t[8];
            zs.load(start, s), zt.load(start, t);
            Token tokens[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const bool inside = start + j < zs.vocab;
                const float lq = fmaf(s[j] - student.max, inverse, -log_s);
                const float lp = fmaf(t[j] - teacher.max, inverse, -log_t);
                tokens[j] = {__expf(lp), __expf(lq), inside ? lp : 0.0f, inside ? lq : 0.0f, s[j], t[j]};
            }
            f(start, tokens);
        });
    }

    __forceinline__ void first_pass(bool with_plain) {
        zs.each([&](int start) {
            float s[8], t[8];
            zs.load(start, s), zt.load(start, t);
            student.add(s, t, start, inverse, with_plain);
            teacher.add(t, s, start, inverse, false);
        });
        student.finish(inverse), teacher.finish(inverse);
        log_s = logf(student.sum), log_t = logf(teacher.sum);
    }

    // KL(a || b).
    __forceinline__ float divergence(const Side& a, const Side& b) const {
        return (float)((double)inverse * a.cross / a.sum - (a.log_sum(inverse) - b.log_sum(inverse)));
    }

    __forceinline__ float entropy(const Side& a) const {
        return (float)(log((double)a.sum) - (double)inverse * a.along / a.sum);
    }

    __forceinline__ bool wants_gradient() const {
        return dz && weight != 0.0f;
    }

    __forceinline__ void store(int start, const float (&d)[8]) const {
        if (is_aligned(dz) && start + 8 <= zs.vocab) return store8(dz + start, d);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (start + j < zs.vocab) dz[start + j] = to_bf16(d[j]);
    }

    // Writes the gradient, where h(start + j, token) is h and `total` its sum.
    template <typename H>
    __forceinline__ void write_gradient(float total, H h) const {
        const float factor = inverse * weight;
        each([&](int start, const Token(&tokens)[8]) {
            float d[8];
#pragma unroll
            for (int j = 0; j < 8; j++) d[j] = factor * fmaf(-total, tokens[j].q, h(start + j, tokens[j]));
            store(start, d);
        });
    }
};

// The arguments of the kernels. values [n, 7]: loss, forward KL, reverse KL, entropy, teacher's entropy (nats, at the
// temperature), agreement of the maxima, and the student's log-probability of `targets` (or null: 0) at temperature 1.
// dz [n, V] bf16 (or null) gets weights[row] times the loss's gradient; rows of weight 0 become zeros. `best` (or null) is
// the teacher's maximum, where its logits do not say so.
struct Arguments {
    const float* zs;
    long long zs_stride;
    const float* zt;
    long long zt_stride;
    int vocab, kind;
    float constant, temperature;
    const int* targets;
    const float* weights;
    float* values;
    bf16* dz;
    long long dz_stride;
    const int* best;
};

// `loss(work, forward KL, reverse KL)` gives the loss and writes the gradient where `work.wants_gradient()`.
template <typename Loss>
__forceinline__ void distill(const Arguments& a, Loss loss_of) {
    const int row = blockIdx.x;
    Distill work = {{a.zs, row, a.zs_stride, a.vocab}, {a.zt, row, a.zt_stride, a.vocab}};
    work.constant = a.constant;
    work.inverse = 1.0f / a.temperature;
    work.dz = a.dz ? a.dz + row * a.dz_stride : nullptr;
    work.weight = a.dz ? a.weights[row] : 0.0f;
    const bool with_plain = a.targets && a.temperature != 1.0f;
    work.first_pass(with_plain);
    const float forward = work.divergence(work.teacher, work.student);
    const float reverse = work.divergence(work.student, work.teacher);
    const float loss = loss_of(work, forward, reverse);
    if (work.dz && work.weight == 0.0f) {
        const float zeros[8] = {};
        work.zs.each([&](int start) { work.store(start, zeros); });
    }
    if (threadIdx.x != 0) return;
    float* out = a.values + 7LL * row;
    out[0] = loss, out[1] = forward, out[2] = reverse;
    out[3] = work.entropy(work.student), out[4] = work.entropy(work.teacher);
    out[5] = work.student.index == (a.best ? a.best[row] : work.teacher.index) ? 1.0f : 0.0f;
    out[6] = 0.0f;
    if (a.targets) {
        const float sum = with_plain ? work.student.plain : work.student.sum;
        out[6] = log_probability(work.zs.logits[a.targets[row]], work.student.max, sum, 1.0f);
    }
}
