// The gate of a gated MLP: y = silu(gate) * up on packed rows [T, 2 I] (gate columns, then up columns). Bound by bytes.
//
// A thread does eight columns: grid (ceil(I / 8 / threads), T). Rows come from blockIdx.y and, past 65535, a loop.
#include "common.cuh"
#include "swiglu.cuh"

extern "C" __global__ void swiglu_forward(const bf16* gate_up, bf16* y, int rows, int inner) {
    take_turn();
    const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= inner) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const bf16* gates = gate_up + 2LL * row * inner + column;
        float g[8], u[8];
        load8(gates, g), load8(gates + inner, u);
#pragma unroll
        for (int j = 0; j < 8; j++) g[j] = gated(g[j], u[j]);
        store8(y + (long long)row * inner + column, g);
    }
}

// With s = sigmoid(g): dgate = dy up s (1 + g (1 - s)), dup = dy g s. `d_gate_up` may be `gate_up`.
extern "C" __global__ void swiglu_backward(const bf16* dy, const bf16* gate_up, bf16* d_gate_up, int rows, int inner) {
    const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (column >= inner) return;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long at = 2LL * row * inner + column;
        float g[8], u[8], d[8];
        load8(gate_up + at, g), load8(gate_up + at + inner, u), load8(dy + (long long)row * inner + column, d);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float s = sigmoid(g[j]), up = u[j];
            u[j] = d[j] * g[j] * s;
            g[j] = d[j] * up * s * fmaf(g[j], 1.0f - s, 1.0f);
        }
        store8(d_gate_up + at, g), store8(d_gate_up + at + inner, u);
    }
}
