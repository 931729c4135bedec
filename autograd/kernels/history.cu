// Histories of sequences, and what they and the requests' parameters do to the next logits: definitions as in
// `runtime/src/sampler/history.rs`.
//
// A history is u16 [V], occurrences in the generation (at most 65535), and behind them u8 [V], 1: in the prompt.
#include "logits_processors.cuh"

constexpr int CHUNK = 2048;

// Bias, then the masked ids, then repetition, frequency and presence penalties, then what is not allowed, on rows with
// `changed`. Grid (ceil(V / CHUNK), B). Bound by bytes: 4 + 4 + 2 + 1 a token.
extern "C" __global__ void adjust_logits(const float* logits, float* adjusted, int vocab, const int* changed,
                                         const Extras* extras) {
    __shared__ float z[CHUNK];
    const int row = blockIdx.y, start = blockIdx.x * CHUNK, length = min(CHUNK, vocab - start);
    if (!changed[row]) return;
    const Extras mine = extras[row];
    const long long first = (long long)row * vocab + start;
    for (int i = threadIdx.x; i < length; i += blockDim.x) z[i] = logits[first + i];
    __syncthreads();
    const int *bias_ids = mine.lists, *masked_ids = mine.lists + 2 * mine.biases + mine.given;
    for (int i = threadIdx.x; i < mine.biases; i += blockDim.x) {
        const unsigned at = bias_ids[i] - start;
        if (at < length) z[at] += __int_as_float(bias_ids[mine.biases + i]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < mine.masked; i += blockDim.x) {
        const unsigned at = masked_ids[i] - start;
        if (at < length) z[at] = negative_infinity();
    }
    __syncthreads();
    const unsigned short* counts = mine.history;
    const unsigned char* prompt = reinterpret_cast<const unsigned char*>(counts + vocab);
    for (int i = threadIdx.x; i < length; i += blockDim.x) {
        float x = z[i];
        const int count = counts ? counts[start + i] : 0;
        if (count > 0 || (counts && prompt[start + i])) {
            x = x > 0.0f ? __fdiv_rn(x, mine.repetition) : __fmul_rn(x, mine.repetition);
        }
        if (count > 0) x = __fsub_rn(x, __fadd_rn(__fmul_rn(mine.frequency, (float)count), mine.presence));
        const int id = start + i;
        if (mine.allowed && !(mine.allowed[id >> 5] >> (id & 31) & 1)) x = negative_infinity();
        adjusted[first + i] = x;
    }
}

// Appends tokens[r] to the history of row r; negative tokens are errors and are left out. No two rows share a history.
// Grid ceil(rows / threads).
extern "C" __global__ void count_tokens(const int* tokens, const int* active, const Extras* extras, int rows) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows || !active[row] || !extras[row].history || tokens[row] < 0) return;
    unsigned short& count = extras[row].history[tokens[row]];
    if (count < 65535) count++;
}

// Marks the tokens of a prompt in a history of zeros. Grid ceil(length / threads).
extern "C" __global__ void mark_prompt(const int* prompt, int length, unsigned short* history, int vocab) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < length) reinterpret_cast<unsigned char*>(history + vocab)[prompt[i]] = 1;
}
