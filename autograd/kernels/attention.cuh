// Tiles in shared memory, shared by the attention kernels.
//
// A tile is [rows][D] bf16 in 16-byte chunks. Chunk c of row r lies at chunk c ^ swizzle(r) of that row, so that the eight
// rows that one ldmatrix phase reads at the same c lie in eight different groups of four banks.
#ifndef ARLE_ATTENTION_CUH
#define ARLE_ATTENTION_CUH

#include "mma.cuh"

#define LOG2_E 1.4426950408889634f
#define MINUS_INFINITY __uint_as_float(0xff800000u)
// Keys of a tile of the forward kernels.
#define TILE_KEYS 64

// A row of 96 is 12 chunks: 12 r mod 8 is 0 or 4, so the swizzle has to spread over 4 chunks only.
template <int D>
__device__ inline unsigned swizzle(unsigned row) {
    return D == 96 ? (row >> 1) & 3 : row & 7;
}

template <int D>
__device__ inline unsigned tile_offset(unsigned row, unsigned chunk) {
    return row * (2 * D) + ((chunk ^ swizzle<D>(row)) << 4);
}

// This lane's part of an ldmatrix address. Fragments start at multiples of 16 rows, which leaves the swizzle alone, and at
// even chunks, which can be added with xor.
struct Lane {
    unsigned row, chunk;
};

// Rows are the matrix's rows: the A operand; and, transposed, a B operand whose k runs over rows.
template <int D>
__device__ inline Lane lane_by_rows() {
    unsigned lane = threadIdx.x % 32, row = lane % 16;
    return {row * (2 * D), ((lane / 16) ^ swizzle<D>(row)) << 4};
}

// A B operand whose n runs over rows.
template <int D>
__device__ inline Lane lane_by_columns() {
    unsigned lane = threadIdx.x % 32, row = lane % 8 + lane / 16 * 8;
    return {row * (2 * D), ((lane / 8 % 2) ^ swizzle<D>(row)) << 4};
}

// This lane's address of the 16x16 fragment at (`row`, 16 * `block`) of a tile.
//
// `step` is an opaque number >= 0 of the caller's loop. The compiler does not know that it has no sign, so it computes the
// addresses in each pass (one or two instructions) and leaves the registers to the accumulators.
template <int D>
struct Fragments {
    unsigned base, chunk;
    __device__ Fragments(unsigned tile, Lane lane, int step) : base(tile + lane.row), chunk(lane.chunk ^ (step >> 31)) {}
    __device__ unsigned at(int row, int block) const { return base + (chunk ^ (block << 5)) + row * (2 * D); }
};

// Rows of a packed matrix. A sequence has less than 2^32 elements.
struct PackedRows {
    const bf16* base;
    unsigned stride;
    __device__ const bf16* row(unsigned i) const { return base + i * stride; }
};

// Rows (positions of one sequence) in pages of 16.
template <int D>
struct PagedRows {
    const bf16* base;  // the head's rows in page 0
    const int* table;
    size_t page;  // elements of a page
    __device__ const bf16* row(int i) const { return base + table[i >> 4] * page + (i & 15) * D; }
};

// Starts copying rows [first, first + ROWS) to a tile; rows from `end` on become zeros (first < end).
template <int D, int ROWS, int THREADS, class Source>
__device__ inline void load_tile(unsigned tile, const Source& source, int first, int end) {
    constexpr int CHUNKS = D / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "");
    const unsigned thread = opaque(threadIdx.x);
#pragma unroll
    for (int n = 0; n < ROWS * CHUNKS / THREADS; n++) {
        int i = n * THREADS + thread, row = i / CHUNKS, chunk = i % CHUNKS;
        bool valid = first + row < end;
        copy_async_16(tile + tile_offset<D>(row, chunk), source.row(valid ? first + row : first) + chunk * 8, valid);
    }
}

// c = A B^T for rows of two tiles: A fragments from row 0 of `a`, columns of c from rows of `b`.
template <int D, int M, int N>
__device__ inline void multiply_transposed(float (&c)[M][N][4], Fragments<D> a, Fragments<D> b) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4 * N; i++) c[m][i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        unsigned x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++) load_matrices(x[m], a.at(16 * m, k));
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            load_matrices(y, b.at(16 * n, k));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][2 * n], x[m], y[0], y[1]);
                mma(c[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

// c += A B: A in registers, B's rows are rows of a tile, c's columns are the tile's from 16 * `block` on.
template <int D, int M, int K, int N>
__device__ inline void multiply_add(float (&c)[M][N][4], const unsigned (&a)[M][K][4], Fragments<D> b, int block = 0) {
#pragma unroll
    for (int k = 0; k < K; k++)
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            unsigned y[4];
            load_matrices_transposed(y, b.at(16 * k, block + n));
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(c[m][2 * n], a[m][k], y[0], y[1]);
                mma(c[m][2 * n + 1], a[m][k], y[2], y[3]);
            }
        }
}

// Accumulators [16 M, 8 N] as A fragments of a following product, rounded to bf16.
template <int M, int N>
__device__ inline void as_operand(unsigned (&a)[M][N / 2][4], const float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) a[m][n / 2][n % 2 * 2 + h] = pack_bf16(c[m][n][2 * h], c[m][n][2 * h + 1]);
}

// Scores of a tile of keys to probabilities relative to the running maximum, as A fragments; sum and output are brought to
// that maximum. Roundings are spelled out: kernels that share this give the same bits.
template <int M, int N>
__device__ inline void softmax(unsigned (&p)[M][TILE_KEYS / 16][4], const float (&s)[M][8][4], float (&largest)[M][2],
                               float (&sum)[M][2], float (&o)[M][N][4], float scale) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float now = largest[m][h];
#pragma unroll
            for (int n = 0; n < 8; n++) now = fmaxf(now, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
            now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
            // A row that has seen no key yet: any finite base will do.
            float base = now == MINUS_INFINITY ? 0.0f : now;
            // The difference first: it is exactly 0, and the factor 1, when the maximum stays.
            float factor = exp2_fast(__fmul_rn(__fadd_rn(largest[m][h], -base), scale));
            float shift = __fmul_rn(-base, scale), add = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float even = exp2_fast(__fmaf_rn(s[m][n][2 * h], scale, shift));
                float odd = exp2_fast(__fmaf_rn(s[m][n][2 * h + 1], scale, shift));
                add = __fadd_rn(add, __fadd_rn(even, odd));
                p[m][n / 2][n % 2 * 2 + h] = pack_bf16(even, odd);
            }
            sum[m][h] = __fmaf_rn(sum[m][h], factor, add);
            largest[m][h] = now;
#pragma unroll
            for (int n = 0; n < N; n++) {
                o[m][n][2 * h] = __fmul_rn(o[m][n][2 * h], factor);
                o[m][n][2 * h + 1] = __fmul_rn(o[m][n][2 * h + 1], factor);
            }
        }
}

// Writes `times` x a warp's accumulators [16 M, 8 N] as bf16 to rows of `to`, through the tile at `stage` (16 M rows of D
// that only this warp uses), so that a lane writes 16 bytes. Only the first `rows` rows exist.
template <int D, int M, int N>
__device__ inline void store_rows(bf16* to, size_t stride, int rows, unsigned char* stage, const float (&x)[M][N][4],
                                  const float (&times)[M][2]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *reinterpret_cast<unsigned*>(stage + tile_offset<D>(m * 16 + h * 8 + g, n) + t * 4) =
                    pack_bf16(x[m][n][2 * h] * times[m][h], x[m][n][2 * h + 1] * times[m][h]);
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * M * N; i += 32) {
        int row = i / N, chunk = i % N;
        if (row < rows)
            *reinterpret_cast<uint4*>(to + row * stride + chunk * 8) =
                *reinterpret_cast<const uint4*>(stage + tile_offset<D>(row, chunk));
    }
}

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)

#endif
