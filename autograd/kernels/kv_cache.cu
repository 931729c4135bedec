// Writes to the KV pool of a layer, [page][2][kv_heads][16][D] bf16 (keys, then values; 16 positions a page). Limit: bytes.

// Keys and values of new rows (rotated already) to their pages; a row with position < 0 is padding and is left out. Row r of
// qkv [T, (q_heads + 2 kv_heads) * D] belongs to sequence seq_of_row[r] and goes to positions[r]. Grid: T rows.
extern "C" __global__ void __launch_bounds__(256) kv_write(unsigned short* pool, const unsigned short* qkv,
                                                           const int* seq_of_row, const int* positions,
                                                           const int* page_table, int table_stride, int q_heads, int kv_heads,
                                                           int head_dim) {
    const int row = blockIdx.x, position = positions[row];
    if (position < 0) return;
    const size_t page = page_table[static_cast<size_t>(seq_of_row[row]) * table_stride + position / 16];
    const int half = kv_heads * head_dim;
    const unsigned short* from = qkv + static_cast<size_t>(row) * (q_heads * head_dim + 2 * half) + q_heads * head_dim;
    // The 2 * kv_heads heads of the row are in the order of the page's [2][kv_heads].
    unsigned short* to = pool + page * (2 * 16 * half) + position % 16 * head_dim;
    for (int i = threadIdx.x * 8; i < 2 * half; i += blockDim.x * 8) {
        const int head = i / head_dim;
        *reinterpret_cast<uint4*>(to + static_cast<size_t>(head) * 16 * head_dim + (i - head * head_dim)) =
            *reinterpret_cast<const uint4*>(from + i);
    }
}

// Copies page pairs[i].x to page pairs[i].y, whole pages of `page_bytes` (a multiple of 16). Grid: pairs.
extern "C" __global__ void __launch_bounds__(256) kv_copy_page(unsigned char* pool, const int2* pairs, int page_bytes) {
    const int2 pair = pairs[blockIdx.x];
    const uint4* from = reinterpret_cast<const uint4*>(pool + static_cast<size_t>(pair.x) * page_bytes);
    uint4* to = reinterpret_cast<uint4*>(pool + static_cast<size_t>(pair.y) * page_bytes);
    for (int i = threadIdx.x; i < page_bytes / 16; i += blockDim.x) to[i] = from[i];
}
