// The second half of low-rank branches on a few rows: y += scale * down B^T for up to three maps side by side, in one
// launch; after the two maps of a gated MLP also the gate. Bound by latency at decoding's rows: so a warp has little to do
// and reads y while it waits for B. GEMMs of many rows are left to cuBLASLt.
//
// y [rows, y_stride] bf16; map i has the columns up to `end_i`, `b_i` [its columns, rank_i] and the ranks after those of
// the maps before it in `down` [rows, down_stride]. A rank of 0 is a map without a branch. Borders and ranks are multiples
// of 8. A warp does two tiles of 16 rows by 8 columns: block 128, grid (ceil(tiles of a row / 8), ceil(rows / 16)). A row's
// bits do not depend on its neighbours.
#include "common.cuh"
#include "swiglu.cuh"

struct Map {
    const bf16* b;
    int start, rank, first_rank;
    float scale;
};

// 16 rows of `down`; the first `count` of them are there.
struct Rows {
    const bf16* down;
    int stride, count;
};

__forceinline__ unsigned pair_at(const bf16* p) {
    return *reinterpret_cast<const unsigned*>(p);
}

// down B^T in the 8 columns from `column` on.
__forceinline__ void multiply(float (&d)[4], const Map& map, const Rows& rows, int column) {
    const int group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    const bf16* low = rows.down + (long long)group * rows.stride + map.first_rank + pair;
    const bf16* high = low + 8LL * rows.stride;
    const bf16* b = map.b + (long long)(column - map.start + group) * map.rank + pair;
    const bool has_low = group < rows.count, has_high = group + 8 < rows.count;
#pragma unroll 2
    for (int k = 0; k < map.rank; k += 16) {
        const bool whole = k + 8 < map.rank;
        const unsigned a0 = has_low ? pair_at(low + k) : 0, a1 = has_high ? pair_at(high + k) : 0;
        const unsigned a2 = has_low && whole ? pair_at(low + k + 8) : 0;
        const unsigned a3 = has_high && whole ? pair_at(high + k + 8) : 0;
        multiply_add(d, {a0, a1, a2, a3}, pair_at(b + k), whole ? pair_at(b + k + 8) : 0);
    }
}

// A lane's four values of y + scale * down B^T, in two words: rows `group` and `group + 8`. `y` is the first row's.
__forceinline__ void sums(unsigned (&words)[2], const bf16* y, long long stride, const Map& map, const Rows& rows,
                          int column) {
    const int group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    const bf16* from = y + group * stride + column + pair;
    const unsigned low = group < rows.count ? pair_at(from) : 0;
    const unsigned high = group + 8 < rows.count ? pair_at(from + 8 * stride) : 0;
    float d[4] = {};
    multiply(d, map, rows, column);
    words[0] = pack_bf16(fmaf(map.scale, d[0], low_float(low)), fmaf(map.scale, d[1], high_float(low)));
    words[1] = pack_bf16(fmaf(map.scale, d[2], low_float(high)), fmaf(map.scale, d[3], high_float(high)));
}

// Writes a lane's words to its rows of `y`, which is the first row's.
__forceinline__ void store(bf16* y, long long stride, const unsigned (&words)[2], int count, int column) {
    const int group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    bf16* to = y + group * stride + column + pair;
    if (group < count) *reinterpret_cast<unsigned*>(to) = words[0];
    if (group + 8 < count) *reinterpret_cast<unsigned*>(to + 8 * stride) = words[1];
}

extern "C" __global__ void __launch_bounds__(128)
    lora_up(bf16* y, long long y_stride, const bf16* down, int down_stride, int row_count, const bf16* b0,
            const bf16* b1, const bf16* b2, int end0, int end1, int end2, int rank0, int rank1, int rank2, float scale0,
            float scale1, float scale2) {
    take_turn();
    const int first_row = blockIdx.y * 16, first = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 16;
    const Rows rows{down + (long long)first_row * down_stride, down_stride, row_count - first_row};
    bf16* tile = y + first_row * y_stride;
    unsigned words[2][2];
    bool changed[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int column = first + 8 * i;
        const Map map = column < end0   ? Map{b0, 0, rank0, 0, scale0}
                        : column < end1 ? Map{b1, end0, rank1, rank0, scale1}
                                        : Map{b2, end1, rank2, rank0 + rank1, scale2};
        changed[i] = column < end2 && map.rank > 0;
        if (changed[i]) sums(words[i], tile, y_stride, map, rows, column);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (changed[i]) store(tile, y_stride, words[i], rows.count, first + 8 * i);
}

// y = silu(gate) * up of the two maps' columns with their branches added, rounded as `lora_up` and `swiglu_forward` one
// after another round: gate_up [rows, 2 inner], y [rows, inner].
extern "C" __global__ void __launch_bounds__(128)
    lora_up_swiglu(const bf16* gate_up, bf16* y, int inner, const bf16* down, int down_stride, int row_count,
                   const bf16* b0, const bf16* b1, int rank0, int rank1, float scale0, float scale1) {
    take_turn();
    const int first_row = blockIdx.y * 16, column = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 8;
    if (column >= inner) return;
    const Rows rows{down + (long long)first_row * down_stride, down_stride, row_count - first_row};
    const bf16* tile = gate_up + 2LL * first_row * inner;
    unsigned gates[2], ups[2];
    sums(gates, tile, 2 * inner, Map{b0, 0, rank0, 0, scale0}, rows, column);
    sums(ups, tile, 2 * inner, Map{b1, inner, rank1, rank0, scale1}, rows, inner + column);
#pragma unroll
    for (int i = 0; i < 2; i++)
        gates[i] = pack_bf16(gated(low_float(gates[i]), low_float(ups[i])), gated(high_float(gates[i]), high_float(ups[i])));
    store(y + (long long)first_row * inner, inner, gates, rows.count, column);
}

// ---- rows of different adapters ----
//
// The rows of an adapter are contiguous. `tiles` cuts them into up to 16 rows of one adapter and names that adapter's modules,
// one for each projection of the model. Both lie in the GPU's memory, so that one launch serves all adapters of a batch. Up to
// three projections of one input; ranks are multiples of 8, at most MAX_RANK. `down` is [rows, projections, MAX_RANK].

constexpr int MAX_RANK = 64;
// Warps that share out K.
constexpr int DOWN_WARPS = 8;

// A rank of 0: the adapter has no module here.
struct Module {
    const bf16 *a, *b;
    int rank;
    float scale;
};

struct Tile {
    unsigned first_row, rows, modules_low, modules_high;
};

__forceinline__ Module module_of(const Tile& tile, int index) {
    return reinterpret_cast<const Module*>((unsigned long long)tile.modules_high << 32 | tile.modules_low)[index];
}

// down = x A^T. A warp takes 32 of K at a time: a lane the same eight of x and of A, so that what the fragments call k is
// another order of these 32, the same one on both sides. Grid (tiles, projections), block 32 DOWN_WARPS.
extern "C" __global__ void __launch_bounds__(32 * DOWN_WARPS)
    lora_down_grouped(const bf16* x, int k, bf16* down, const Tile* tiles, int index0, int index1, int index2) {
    __shared__ float partial[DOWN_WARPS][16][MAX_RANK];
    take_turn();
    const Tile tile = tiles[blockIdx.x];
    if (tile.rows == 0) return;
    const int projection = blockIdx.y, warp = threadIdx.x >> 5, group = lane_id() >> 2, quad = lane_id() & 3;
    const Module module = module_of(tile, projection == 0 ? index0 : projection == 1 ? index1 : index2);
    const bf16* low = x + (long long)(tile.first_row + group) * k;
    const bf16* high = low + 8LL * k;
    const bf16* a = module.a + (long long)group * k;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    float d[MAX_RANK / 8][4] = {};
    for (int first = warp * 32; first < k; first += 32 * DOWN_WARPS) {
        const int at = first + 8 * quad;
        const bool inside = at < k;
        const uint4 p = inside && group < tile.rows ? load_vector(low + at) : zero;
        const uint4 q = inside && group + 8 < tile.rows ? load_vector(high + at) : zero;
#pragma unroll
        for (int i = 0; i < MAX_RANK / 8; i++) {
            if (8 * i >= module.rank) continue;
            const uint4 w = inside ? load_vector(a + 8LL * i * k + at) : zero;
            multiply_add(d[i], {p.x, q.x, p.y, q.y}, w.x, w.y);
            multiply_add(d[i], {p.z, q.z, p.w, q.w}, w.z, w.w);
        }
    }
#pragma unroll
    for (int i = 0; i < MAX_RANK / 8; i++) {
        if (8 * i >= module.rank) continue;
        const int column = 8 * i + 2 * quad;
        partial[warp][group][column] = d[i][0], partial[warp][group][column + 1] = d[i][1];
        partial[warp][group + 8][column] = d[i][2], partial[warp][group + 8][column + 1] = d[i][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (int)tile.rows * module.rank; i += 32 * DOWN_WARPS) {
        const int row = i / module.rank, column = i % module.rank;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < DOWN_WARPS; w++) sum += partial[w][row][column];
        down[((long long)(tile.first_row + row) * gridDim.y + projection) * MAX_RANK + column] = to_bf16(sum);
    }
}

// y += scale * down B^T, as `lora_up`. Grid (ceil(columns of y / 64), tiles), block 128.
extern "C" __global__ void __launch_bounds__(128)
    lora_up_grouped(bf16* y, long long y_stride, const bf16* down, int projections, const Tile* tiles, int end0, int end1,
                    int end2, int index0, int index1, int index2) {
    take_turn();
    const Tile tile = tiles[blockIdx.y];
    if (tile.rows == 0) return;
    const int first = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 16, stride = projections * MAX_RANK;
    const Rows rows{down + (long long)tile.first_row * stride, stride, (int)tile.rows};
    bf16* values = y + tile.first_row * y_stride;
    for (int column = first; column < min(first + 16, end2); column += 8) {
        const int projection = column < end0 ? 0 : column < end1 ? 1 : 2;
        const Module module = module_of(tile, projection == 0 ? index0 : projection == 1 ? index1 : index2);
        if (module.rank == 0) continue;
        const int start = projection == 0 ? 0 : projection == 1 ? end0 : end1;
        const Map map{module.b, start, module.rank, projection * MAX_RANK, module.scale};
        unsigned words[2];
        sums(words, values, y_stride, map, rows, column);
        store(values, y_stride, words, rows.count, column);
    }
}
