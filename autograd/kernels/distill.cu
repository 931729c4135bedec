// Distillation losses over the whole vocabulary, and their gradients; one block a row.
//
// Bound by bytes of device memory. The first pass finds both normalizers, entropies and KL divergences at once; a
// divergence with a mixture needs a second pass for its sums; the gradient is the last pass. A token costs, f32 logits:
// KL 8 (values alone) or 8 + 8 + 2 bytes, mixtures 16 or 16 + 8 + 2.
#include "distill.cuh"

template <Kind KIND>
__forceinline__ float full_loss(const Distill& work, float forward, float reverse) {
    float sums[2] = {KIND == FORWARD ? forward : reverse, KIND == FORWARD ? -1.0f : reverse};
    if (KIND != FORWARD && KIND != REVERSE) {
        sums[0] = sums[1] = 0.0f;
        work.each([&](int, const Token(&tokens)[8]) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const Term t = term<KIND>(work.constant, tokens[j]);
                sums[0] += t.loss, sums[1] += t.h;
            }
        });
        block_sums(sums);
    }
    if (work.wants_gradient()) {
        work.write_gradient(sums[1], [&](int, const Token& token) { return term<KIND>(work.constant, token).h; });
    }
    return sums[0];
}

__forceinline__ void full(const Arguments& a) {
    distill(a, [&](const Distill& work, float forward, float reverse) {
        switch (a.kind) {
            case FORWARD: return full_loss<FORWARD>(work, forward, reverse);
            case REVERSE: return full_loss<REVERSE>(work, forward, reverse);
            case MIXED: return full_loss<MIXED>(work, forward, reverse);
            case SKEWED_FORWARD: return full_loss<SKEWED_FORWARD>(work, forward, reverse);
            default: return full_loss<SKEWED_REVERSE>(work, forward, reverse);
        }
    });
}

// grid n, block THREADS. `kind`: 0 KL(p||q), 1 KL(q||p), 2 JSD with `constant` beta in (0, 1), 3 and 4 skewed forward
// and reverse with `constant` alpha.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    distill_rows(const float* zs, long long zs_stride, const float* zt, long long zt_stride, int vocab, int kind,
                 float constant, float temperature, const int* targets, const float* weights, float* values, bf16* dz,
                 long long dz_stride, const int* best) {
    full({zs, zs_stride, zt, zt_stride, vocab, kind, constant, temperature, targets, weights, values, dz, dz_stride,
          best});
}
