// Histories of sequences, and what they and the requests' parameters do to the next logits: definitions as in
// `runtime/src/sampler/history.rs`.
//
// A slot holds a sequence: `counts` u16 [slots, V] (occurrences in the generation, at most 65535), `prompts` u8
// [slots, V] (1: in the prompt), `generated` int [slots] (length of the generation). `slots` [B] gives a row's slot; a
// negative one marks a row to skip.
#include "common.cuh"

constexpr int CHUNK = 2048;

// Bias, then the min_tokens mask, then repetition, frequency and presence penalties, on rows with `changed`.
//
// Lists of row r: bias_ids and biases [bias_borders[r] .. [r + 1]] (ids distinct), masked_ids [mask_borders[r] ..
// [r + 1]], which become -inf while the generation has fewer than min_tokens[r] tokens. `adjusted` may be `logits` if
// both are f32. Grid (ceil(V / CHUNK), B). Bound by bytes: 4 + 4 + 2 + 1 a token.
template <typename T>
__forceinline__ void adjust(const T* logits, long long stride, float* adjusted, long long adjusted_stride, int vocab,
                            const int* changed, const int* slots, const float* repetition, const float* frequency,
                            const float* presence, const int* bias_borders, const int* bias_ids, const float* biases,
                            const int* mask_borders, const int* masked_ids, const int* min_tokens,
                            const unsigned short* counts, const unsigned char* prompts, const int* generated) {
    __shared__ float z[CHUNK];
    const int row = blockIdx.y, start = blockIdx.x * CHUNK, length = min(CHUNK, vocab - start);
    const int slot = slots[row];
    if (!changed[row] || slot < 0) return;
    for (int i = threadIdx.x; i < length; i += blockDim.x) z[i] = to_float(logits[row * stride + start + i]);
    __syncthreads();
    for (int i = bias_borders[row] + threadIdx.x; i < bias_borders[row + 1]; i += blockDim.x) {
        const unsigned at = bias_ids[i] - start;
        if (at < length) z[at] += biases[i];
    }
    __syncthreads();
    if (generated[slot] < min_tokens[row]) {
        for (int i = mask_borders[row] + threadIdx.x; i < mask_borders[row + 1]; i += blockDim.x) {
            const unsigned at = masked_ids[i] - start;
            if (at < length) z[at] = negative_infinity();
        }
    }
    __syncthreads();
    const float repeated = repetition[row], frequent = frequency[row], present = presence[row];
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        const long long at = (long long)slot * vocab + start + i;
        const int count = counts[at];
        float x = z[i];
        if (count > 0 || prompts[at]) x = x > 0.0f ? __fdiv_rn(x, repeated) : x * repeated;
        if (count > 0) x = __fsub_rn(x, __fadd_rn(__fmul_rn(frequent, (float)count), present));
        adjusted[row * adjusted_stride + start + i] = x;
    }
}

extern "C" __global__ void adjust_logits(const float* logits, long long stride, float* adjusted,
                                         long long adjusted_stride, int vocab, const int* changed, const int* slots,
                                         const float* repetition, const float* frequency, const float* presence,
                                         const int* bias_borders, const int* bias_ids, const float* biases,
                                         const int* mask_borders, const int* masked_ids, const int* min_tokens,
                                         const unsigned short* counts, const unsigned char* prompts,
                                         const int* generated) {
    adjust(logits, stride, adjusted, adjusted_stride, vocab, changed, slots, repetition, frequency, presence,
           bias_borders, bias_ids, biases, mask_borders, masked_ids, min_tokens, counts, prompts, generated);
}

extern "C" __global__ void adjust_logits_bf16(const bf16* logits, long long stride, float* adjusted,
                                              long long adjusted_stride, int vocab, const int* changed,
                                              const int* slots, const float* repetition, const float* frequency,
                                              const float* presence, const int* bias_borders, const int* bias_ids,
                                              const float* biases, const int* mask_borders, const int* masked_ids,
                                              const int* min_tokens, const unsigned short* counts,
                                              const unsigned char* prompts, const int* generated) {
    adjust(logits, stride, adjusted, adjusted_stride, vocab, changed, slots, repetition, frequency, presence,
           bias_borders, bias_ids, biases, mask_borders, masked_ids, min_tokens, counts, prompts, generated);
}

// Appends tokens[r] to the history of row r; negative tokens are errors and are left out. The rows' slots differ.
// Grid ceil(rows / threads).
extern "C" __global__ void count_tokens(const int* tokens, const int* slots, const int* active, unsigned short* counts,
                                        int* generated, int vocab, int rows) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || !active[row] || slots[row] < 0 || tokens[row] < 0) return;
    unsigned short& count = counts[(long long)slots[row] * vocab + tokens[row]];
    if (count < 65535) count++;
    generated[slots[row]]++;
}

// An empty history. Grid: any number of blocks.
extern "C" __global__ void clear_history(unsigned short* counts, unsigned char* prompts, int* generated, int slot,
                                         int vocab) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < vocab; i += gridDim.x * blockDim.x) {
        counts[(long long)slot * vocab + i] = 0;
        prompts[(long long)slot * vocab + i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) generated[slot] = 0;
}

// Marks the tokens of a prompt, after `clear_history`. Grid ceil(length / threads).
extern "C" __global__ void mark_prompt(const int* prompt, int length, unsigned char* prompts, int slot, int vocab) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) prompts[(long long)slot * vocab + prompt[i]] = 1;
}
