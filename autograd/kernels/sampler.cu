// From logits [B, V] to tokens, as `runtime/src/sampler/draw.rs` defines it. Bound by bytes: one read of the logits for
// plain sampling; rows with top-k, top-p or min-p are read again, from the L2 cache, by one block each.
//
// 1. `adjust_logits` (history.cu; rows with bias, masked ids or penalties): changed copies of logits.
// 2. `sample_partials`, grid (ceil(V / CHUNK), B): maximum and sums of each chunk of ids.
// 3. `sample_rows`, grid B: joins the chunks, draws, and gives both log-probabilities.
// 4. `count_tokens` (history.cu): the new tokens enter the histories; `list_log_probs` (top_log_probs.cu).
// The chunks do not depend on B, so a row's token does not depend on its neighbours. Plain sampling weighs tokens
// relative to their chunk's maximum (the CPU: to the row's), which differs in the last rounding of f32.
#include "sample.cuh"

constexpr int PARTIAL_THREADS = 128;

// Parameters of the rows, arrays [B]. A row that is not `active` is skipped: its outputs stay as they are.
struct Rows {
    const int *active, *changed;  // `changed` (or null): the token is chosen by `adjusted`, not by `logits`
    const float* temperature;     // 0 takes the most likely token

    __forceinline__ bool is_changed(int row) const {
        return changed && changed[row];
    }
};

// What one chunk contributes; sums are relative to the chunk's maximum.
struct Side {
    double at_temperature, plain;  // of exp((z - max) / T) and of exp(z - max)
    float max;                     // -inf if there is no token
    int first;                     // id of the first maximum
};

struct Partial {
    Side model, choice;  // `choice` only for changed rows
    int sound, pad;      // 0 if a logit is NaN or +inf
};

// Sums of this thread's logits, relative to the block's maximum.
__forceinline__ Side chunk_side(const LogitRow& row, int start, float temperature, int& sound) {
    constexpr int VECTORS = CHUNK / PARTIAL_THREADS / 8;
    float z[VECTORS][8], max = negative_infinity();
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        row.load_raw(start + (v * PARTIAL_THREADS + threadIdx.x) * 8, z[v], negative_infinity());
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sound = sound && z[v][j] < -negative_infinity();
            max = fmaxf(max, z[v][j]);
        }
    Side side;
    side.max = block_max(max);
    int first = 0x7fffffff;
    float sums[2] = {};
    const float inverse = 1.0f / (temperature == 0.0f ? 1.0f : temperature);
#pragma unroll
    for (int v = VECTORS - 1; v >= 0; v--)
#pragma unroll
        for (int j = 7; j >= 0; j--) {
            if (z[v][j] == side.max) first = start + (v * PARTIAL_THREADS + threadIdx.x) * 8 + j;
            // Without a token in the chunk all gaps are NaN, and the sums are not used.
            const float gap = z[v][j] - side.max, e = __expf(gap);
            sums[0] += inverse == 1.0f ? e : __expf(gap * inverse);
            sums[1] += e;
        }
    side.first = block_min(first);
    side.at_temperature = block_sum((double)sums[0]);
    side.plain = block_sum((double)sums[1]);
    return side;
}

__forceinline__ void partials_of(const float* logits, long long stride, const float* adjusted, long long adjusted_stride,
                                 int vocab, const Rows& rows, Partial* partials) {
    const int row = blockIdx.y, start = blockIdx.x * CHUNK;
    if (!rows.active[row]) return;
    int sound = 1;
    Partial partial;
    partial.model = chunk_side(LogitRow(logits, row, stride, vocab), start, rows.temperature[row], sound);
    partial.choice = partial.model;
    if (rows.is_changed(row)) {
        partial.choice = chunk_side(LogitRow(adjusted, row, adjusted_stride, vocab), start,
                                    rows.temperature[row], sound);
    }
    partial.sound = __syncthreads_and(sound), partial.pad = 0;
    if (threadIdx.x == 0) partials[row * gridDim.x + blockIdx.x] = partial;
}

// ---- the draw ----

// Sums of one side over the row.
struct Joined {
    float max = negative_infinity();
    int first = 0;
    double at_temperature = 0, plain = 0;

    // exp((chunk's maximum - max) / T), by which its sums are multiplied; 0 where all its weights are.
    __forceinline__ double factor(const Side& side, float temperature) const {
        const double gap = ((double)side.max - max) / temperature;
        return gap < -87.0 ? 0.0 : exp(gap);
    }
};

// A row in which top-k, top-p or min-p drop tokens. (Not inlined: it is most of the kernel's code.)
__noinline__ int draw_truncated(Weights weights, int top_k, float top_p, double uniform, double* sums,
                                Histogram& histogram) {
    const int vocab = weights.row.vocab, chunks = (vocab + CHUNK - 1) / CHUNK;
    weights.lowest = lowest_kept(weights, top_k, top_p, histogram);
    // A warp sums a chunk.
    for (int chunk = threadIdx.x >> 5; chunk < chunks; chunk += DRAW_THREADS / 32) {
        double sum = 0;
        for (int at = lane_id() * 8; at < CHUNK; at += 32 * 8) {
            float z[8];
            weights.row.load_raw(chunk * CHUNK + at, z, negative_infinity());
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int id = chunk * CHUNK + at + j;
                if (id < vocab) sum += weights.kept(id, z[j]);
            }
        }
        sum = warp_sum(sum);
        if (lane_id() == 0) sums[chunk] = sum;
    }
    __syncthreads();
    return invert(sums, vocab, uniform, [&](int) {
        return [&](int id) { return (double)weights.kept(id, weights.row.logits[id]); };
    });
}

// A row whose tokens are all possible: the chunks' sums are known.
__forceinline__ int draw_plain(const LogitRow& row, const Joined& joined, const Side* sides, int side_stride,
                               float temperature, double uniform, double* sums) {
    const int chunks = (row.vocab + CHUNK - 1) / CHUNK;
    const auto side = [&](int chunk) -> const Side& {
        return *reinterpret_cast<const Side*>(reinterpret_cast<const char*>(sides) + (long long)chunk * side_stride);
    };
    for (int chunk = threadIdx.x; chunk < chunks; chunk += DRAW_THREADS) {
        const double factor = joined.factor(side(chunk), temperature);
        sums[chunk] = factor == 0.0 ? 0.0 : side(chunk).at_temperature * factor;
    }
    __syncthreads();
    const float inverse = 1.0f / temperature;
    return invert(sums, row.vocab, uniform, [&](int chunk) {
        const float max = side(chunk).max;
        const double factor = joined.factor(side(chunk), temperature);
        return [&row, max, inverse, factor](int id) {
            return (double)__expf((row.logits[id] - max) * inverse) * factor;
        };
    });
}

// Joins one side of a row's partials; all threads get the result.
template <typename Get>
__forceinline__ Joined join(int chunks, float temperature, Get side) {
    Joined joined;
    float max = negative_infinity();
    for (int i = threadIdx.x; i < chunks; i += DRAW_THREADS) max = fmaxf(max, side(i).max);
    joined.max = block_max(max);
    int first = 0x7fffffff;
    double at_temperature = 0, plain = 0;
    for (int i = threadIdx.x; i < chunks; i += DRAW_THREADS) {
        const Side& s = side(i);
        if (s.max == negative_infinity()) continue;
        if (s.max == joined.max) first = min(first, s.first);
        at_temperature += s.at_temperature * exp(((double)s.max - joined.max) / temperature);
        plain += s.plain * exp((double)s.max - joined.max);
    }
    joined.first = block_min(first);
    joined.at_temperature = block_sum(at_temperature);
    joined.plain = block_sum(plain);
    return joined;
}

constexpr int NOT_FINITE = -1, NO_CANDIDATE = -2;

struct Draw {
    const int* top_k;
    const float *top_p, *min_p;
    const unsigned long long *seed, *request, *position;
};

// The uniform number in [0, 1) of (seed, request, position).
__forceinline__ double uniform_of(const Draw& draw, int row) {
    const unsigned long long index = draw.position[row], stream = draw.request[row];
    const uint4 words = philox(draw.seed[row], make_uint4((unsigned)index, (unsigned)(index >> 32), (unsigned)stream,
                                                          (unsigned)(stream >> 32)));
    return (double)(((unsigned long long)words.x << 32 | words.y) >> 11) / 9007199254740992.0;
}

__forceinline__ int draw_token(const LogitRow& row, const Joined& joined, const Side* sides, float temperature,
                               const Draw& draw, int index, double* sums, Histogram& histogram) {
    const int top_k = draw.top_k[index];
    const float top_p = draw.top_p[index], min_p = draw.min_p[index];
    const double uniform = uniform_of(draw, index);
    if (top_k > 0 || top_p < 1.0f || min_p > 0.0f) {
        return draw_truncated({row, joined.max, temperature, min_p, 0}, top_k, top_p, uniform, sums,
                                 histogram);
    }
    return draw_plain(row, joined, sides, sizeof(Partial), temperature, uniform, sums);
}

__forceinline__ void sample(const float* logits, long long stride, const float* adjusted, long long adjusted_stride,
                            int vocab, const Rows& rows, const Draw& draw, const Partial* partials, int* tokens,
                            float* log_probs, float* sampling_log_probs) {
    const int index = blockIdx.x, chunks = (vocab + CHUNK - 1) / CHUNK;
    if (!rows.active[index]) return;
    const Partial* mine = partials + (long long)index * chunks;
    const bool changed = rows.is_changed(index), greedy = rows.temperature[index] == 0.0f;
    const float temperature = greedy ? 1.0f : rows.temperature[index];
    int sound = 1;
    for (int i = threadIdx.x; i < chunks; i += DRAW_THREADS) sound = sound && mine[i].sound;
    sound = __syncthreads_and(sound);
    const Joined model = join(chunks, temperature, [&](int i) -> const Side& { return mine[i].model; });
    const Joined choice =
        changed ? join(chunks, temperature, [&](int i) -> const Side& { return mine[i].choice; }) : model;
    __shared__ double sums[MAX_CHUNKS];
    __shared__ Histogram histogram;
    const auto drawn = [&](const auto& row) {
        const Side* sides = changed ? &mine->choice : &mine->model;
        return draw_token(row, choice, sides, temperature, draw, index, sums, histogram);
    };
    int token;
    if (!sound) {
        token = NOT_FINITE;
    } else if (model.max == negative_infinity() || choice.max == negative_infinity()) {
        token = NO_CANDIDATE;
    } else if (greedy) {
        token = choice.first;
    } else {
        token = changed ? drawn(LogitRow(adjusted, index, adjusted_stride, vocab))
                        : drawn(LogitRow(logits, index, stride, vocab));
    }
    if (threadIdx.x != 0) return;
    tokens[index] = token;
    if (token < 0) return;
    const double gap = (double)logits[index * stride + token] - model.max;
    log_probs[index] = (float)(gap - log(model.plain));
    sampling_log_probs[index] = greedy ? log_probs[index] : (float)(gap / temperature - log(model.at_temperature));
}

// Block PARTIAL_THREADS; partials [B, ceil(V / CHUNK)] of sizeof(Partial) = 56 bytes, 8-aligned.
extern "C" __global__ void __launch_bounds__(PARTIAL_THREADS)
    sample_partials(const float* logits, long long stride, const float* adjusted, long long adjusted_stride, int vocab,
                    const int* active, const int* changed, const float* temperature, Partial* partials) {
    partials_of(logits, stride, adjusted, adjusted_stride, vocab, {active, changed, temperature}, partials);
}

// Block DRAW_THREADS. top_k 0 keeps all. `tokens` gets -1 where a logit is NaN or +inf, -2 where no token is possible
// (log-probabilities stay as they are then). Log-probabilities are of the unchanged logits, at temperature 1 and at T.
extern "C" __global__ void __launch_bounds__(DRAW_THREADS)
    sample_rows(const float* logits, long long stride, const float* adjusted, long long adjusted_stride, int vocab,
                const int* active, const int* changed, const float* temperature, const int* top_k, const float* top_p,
                const float* min_p, const unsigned long long* seed, const unsigned long long* request,
                const unsigned long long* position, const Partial* partials, int* tokens, float* log_probs,
                float* sampling_log_probs) {
    sample(logits, stride, adjusted, adjusted_stride, vocab, {active, changed, temperature},
           {top_k, top_p, min_p, seed, request, position}, partials, tokens, log_probs, sampling_log_probs);
}

// Ids whose highest bit is set become the token that the last step drew in the row of the other bits; where that one
// drew nothing, any. Grid ceil(count / threads).
extern "C" __global__ void feed_tokens(unsigned* ids, const int* drawn, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && ids[i] >> 31) ids[i] = max(drawn[ids[i] & 0x7fffffffu], 0);
}
