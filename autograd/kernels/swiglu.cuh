// The gate of a gated MLP.
#pragma once
#include "common.cuh"

__forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + __expf(-x));
}

// silu(gate) * up
__forceinline__ float gated(float gate, float up) {
    return gate * sigmoid(gate) * up;
}
