// What all kernels share: bf16, vectors of 16 bytes, sums in a fixed order, asynchronous copies, matrix fragments.
//
// Compiled by NVRTC without toolkit headers; `-default-device` makes every function below a device function.
#pragma once

struct bf16 {
    unsigned short bits;
};

// Where the end of a row is padded in registers, and what -inf counts as: finite, so that differences of logits are
// never NaN, and so low that an exponential of the difference to a real logit is exactly zero.
constexpr float LOWEST_LOGIT = -1e30f;

__forceinline__ float negative_infinity() {
    return __int_as_float(0xff800000);
}

__forceinline__ float to_float(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

__forceinline__ float to_float(float x) {
    return x;
}

// Rounds to the nearest, ties to even.
__forceinline__ bf16 to_bf16(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two bf16 in one word, `low` at the lower address.
__forceinline__ unsigned pack_bf16(float low, float high) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__forceinline__ float low_float(unsigned word) {
    return __uint_as_float(word << 16);
}

__forceinline__ float high_float(unsigned word) {
    return __uint_as_float(word & 0xffff0000u);
}

// What is stored as bf16, in f32.
__forceinline__ float rounded(float x) {
    return to_float(to_bf16(x));
}

// ---- kernels that overlap ----
//
// In a graph, a kernel that the table (autograd/src/cuda/table.rs) lists as overlapping may be started while kernels before
// it still run (programmatic dependent launch, from sm_90 on). Before it reads or writes anything that a kernel of the graph
// writes, every thread of it waits for all of them, also a thread that does nothing: so buffers may be used again as if kernels
// ran one after another. Before that it may read weights. A test sees that every listed kernel waits.

// Blocks of the next kernel may start when all blocks of this one have called this or ended.
__forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when all earlier kernels have ended and their writes are seen.
__forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first statement of an overlapping kernel that has nothing to do before.
__forceinline__ void take_turn() {
    let_next_start();
    wait_for_previous();
}

// ---- vectors of 16 bytes; addresses are multiples of 16 ----

__forceinline__ uint4 load_vector(const void* p) {
    return *reinterpret_cast<const uint4*>(p);
}

__forceinline__ void store_vector(void* p, uint4 v) {
    *reinterpret_cast<uint4*>(p) = v;
}

// Eight bf16 as f32.
__forceinline__ void unpack8(uint4 v, float (&x)[8]) {
    x[0] = low_float(v.x), x[1] = high_float(v.x), x[2] = low_float(v.y), x[3] = high_float(v.y);
    x[4] = low_float(v.z), x[5] = high_float(v.z), x[6] = low_float(v.w), x[7] = high_float(v.w);
}

__forceinline__ uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

__forceinline__ void load8(const bf16* p, float (&x)[8]) {
    unpack8(load_vector(p), x);
}

__forceinline__ void load8(const float* p, float (&x)[8]) {
    const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__forceinline__ void store8(bf16* p, const float (&x)[8]) {
    store_vector(p, pack8(x));
}

__forceinline__ void store8(float* p, const float (&x)[8]) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__forceinline__ bool is_aligned(const void* p) {
    return (reinterpret_cast<unsigned long long>(p) & 15) == 0;
}

// ---- reductions; the order depends on the launch's shape alone, and all threads get the result ----

constexpr unsigned ALL_LANES = 0xffffffffu;

__forceinline__ unsigned lane_id() {
    return threadIdx.x & 31;
}

template <typename T>
__forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The block is one-dimensional and consists of whole warps.
template <typename T>
__forceinline__ T block_sum(T x) {
    __shared__ T warps[32];
    x = warp_sum(x);
    __syncthreads();
    if (lane_id() == 0) warps[threadIdx.x >> 5] = x;
    __syncthreads();
    return warp_sum(lane_id() < blockDim.x >> 5 ? warps[lane_id()] : T(0));
}

// Several sums for the price of one.
template <int N>
__forceinline__ void block_sums(float (&x)[N]) {
    __shared__ float warps[N][32];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = warp_sum(x[i]);
        if (lane_id() == 0) warps[i][threadIdx.x >> 5] = x[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = warp_sum(lane_id() < blockDim.x >> 5 ? warps[i][lane_id()] : 0.0f);
}

__forceinline__ float block_max(float x) {
    __shared__ float warps[32];
    x = warp_max(x);
    __syncthreads();
    if (lane_id() == 0) warps[threadIdx.x >> 5] = x;
    __syncthreads();
    return warp_max(lane_id() < blockDim.x >> 5 ? warps[lane_id()] : negative_infinity());
}

__forceinline__ int block_min(int x) {
    __shared__ int warps[32];
    x = __reduce_min_sync(ALL_LANES, x);
    __syncthreads();
    if (lane_id() == 0) warps[threadIdx.x >> 5] = x;
    __syncthreads();
    return __reduce_min_sync(ALL_LANES, lane_id() < blockDim.x >> 5 ? warps[lane_id()] : 0x7fffffff);
}

// ---- random numbers: Philox4x32-10 (Salmon et al. 2011), a function of key and counter ----

__forceinline__ uint4 philox(unsigned long long key, uint4 c) {
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned low0 = 0xD2511F53u * c.x, high0 = __umulhi(0xD2511F53u, c.x);
        const unsigned low1 = 0xCD9E8D57u * c.z, high1 = __umulhi(0xCD9E8D57u, c.z);
        c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c;
}

// The block's dynamic shared memory.
extern __shared__ uint4 dynamic_shared[];

// ---- asynchronous copies to shared memory, 16 bytes each ----

__forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// Copies the first `bytes` (0 to 16) and fills the rest with zeros.
__forceinline__ void copy_async(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

__forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `PENDING` of this thread's committed groups are under way.
template <int PENDING>
__forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- matrix fragments ----

// Four 8x8 bf16 matrices; lane 8 i + j gives the address of row j of matrix i.
__forceinline__ void load_matrices(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

__forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// d += a b for a 16x16 (row-major), b 16x8 (column-major), d 16x8. With g = lane / 4 and c = lane % 4 a lane holds
// a[0] = (g, 2c..), a[1] = (g + 8, 2c..), a[2] = (g, 2c + 8..), a[3] = (g + 8, 2c + 8..), b[0] = (2c.., g),
// b[1] = (2c + 8.., g), d = (g, 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1).
__forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
