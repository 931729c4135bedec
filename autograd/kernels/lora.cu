// The second half of low-rank branches on a few rows: y += scale * down B^T for up to three maps side by side, in one
// launch. Bound by the bytes of y, B and down. Products of many rows are left to cuBLASLt.
//
// y [rows, y_stride] bf16; map i has the columns up to `end_i`, `b_i` [its columns, rank_i] and the ranks after those of
// the maps before it in `down` [rows, down_stride]. A rank of 0 is a map without a branch. Borders and ranks are multiples
// of 8. A warp does 16 rows by 32 columns: block 128, grid (ceil(columns / 128), ceil(rows / 16)). A row's bits do not
// depend on its neighbours.
#include "common.cuh"

struct Map {
    const bf16* b;
    int start, rank, first_rank;
    float scale;
};

__forceinline__ unsigned pair_at(const bf16* p) {
    return *reinterpret_cast<const unsigned*>(p);
}

// 16 rows from `down` (the first `rows` of them count) by the 8 columns from `column` on.
__forceinline__ void multiply(float (&d)[4], const Map& map, const bf16* down, int stride, int rows, int column) {
    const int group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    const bf16* low = down + (long long)group * stride + map.first_rank + pair;
    const bf16* high = low + 8LL * stride;
    const bf16* b = map.b + (long long)(column - map.start + group) * map.rank + pair;
    const bool has_low = group < rows, has_high = group + 8 < rows;
    for (int k = 0; k < map.rank; k += 16) {
        const bool whole = k + 8 < map.rank;
        const unsigned a0 = has_low ? pair_at(low + k) : 0, a1 = has_high ? pair_at(high + k) : 0;
        const unsigned a2 = has_low && whole ? pair_at(low + k + 8) : 0;
        const unsigned a3 = has_high && whole ? pair_at(high + k + 8) : 0;
        multiply_add(d, {a0, a1, a2, a3}, pair_at(b + k), whole ? pair_at(b + k + 8) : 0);
    }
}

__forceinline__ void add_pair(bf16* y, float x0, float x1) {
    unsigned* word = reinterpret_cast<unsigned*>(y);
    *word = pack_bf16(low_float(*word) + x0, high_float(*word) + x1);
}

extern "C" __global__ void __launch_bounds__(128)
    lora_up(bf16* y, long long y_stride, const bf16* down, int down_stride, int rows, const bf16* b0, const bf16* b1,
            const bf16* b2, int end0, int end1, int end2, int rank0, int rank1, int rank2, float scale0, float scale1,
            float scale2) {
    take_turn();
    const int first_row = blockIdx.y * 16, left = rows - first_row;
    const int group = lane_id() >> 2, pair = (lane_id() & 3) * 2;
    const int first = (blockIdx.x * 4 + (threadIdx.x >> 5)) * 32;
    for (int column = first; column < min(first + 32, end2); column += 8) {
        const Map map = column < end0   ? Map{b0, 0, rank0, 0, scale0}
                        : column < end1 ? Map{b1, end0, rank1, rank0, scale1}
                                        : Map{b2, end1, rank2, rank0 + rank1, scale2};
        if (map.rank == 0) continue;
        float d[4] = {};
        multiply(d, map, down + (long long)first_row * down_stride, down_stride, left, column);
        bf16* to = y + (first_row + group) * y_stride + column + pair;
        if (group < left) add_pair(to, map.scale * d[0], map.scale * d[1]);
        if (group + 8 < left) add_pair(to + 8 * y_stride, map.scale * d[2], map.scale * d[3]);
    }
}
