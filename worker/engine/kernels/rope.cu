// What becomes of rows (queries | keys | values) before queries and keys meet.

#include "device.cuh"

#define PADDING 0xffffffffu

// Pairs of a head that a lane holds: heads up to 256 wide.
#define PAIRS 4

// Calls `body` with the index of each pair of a head that this lane holds, and its first column.
template <class Body>
DEVICE void each_pair(int width, Body body) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int column = (i * WARP + threadIdx.x % WARP) * 2;
        if (column < width) body(i, column);
    }
}

DEVICE float2 load_pair(const void* from, int kind, u64 at) {
    if (kind == F32) return *(const float2*)((const float*)from + at);
    u32 pair = *(const u32*)((const bf16*)from + at);
    return make_float2(low(pair), high(pair));
}

DEVICE void store_pair(void* to, int kind, u64 at, float2 x) {
    if (kind == F32) {
        *(float2*)((float*)to + at) = x;
    } else {
        *(u32*)((bf16*)to + at) = pack_bf16(x.x, x.y);
    }
}

// x / rms(x) * weight over the head.
DEVICE void norm_head(float2 (&x)[PAIRS], int width, const float* weight, float epsilon) {
    float squares = 0.0f;
    each_pair(width, [&](int i, int) { squares += x[i].x * x[i].x + x[i].y * x[i].y; });
    float factor = rsqrtf(__fdividef(warp_sum(squares), width) + epsilon);
    each_pair(width, [&](int i, int column) {
        float2 weights = load_pair(weight, F32, column);
        x[i] = make_float2(x[i].x * factor * weights.x, x[i].y * factor * weights.y);
    });
}

// Turns the first `width` numbers by `angles`, pairs of cosine and sine.
DEVICE void rotate(float2 (&x)[PAIRS], int width, const float* angles) {
    each_pair(width, [&](int i, int column) {
        float2 angle = load_pair(angles, F32, column);
        x[i] = make_float2(x[i].x * angle.x - x[i].y * angle.y, x[i].x * angle.y + x[i].y * angle.x);
    });
}

// row += bias; queries and keys normed, head by head, and rotated; queries written back, keys and values to the cache.
// A warp a head: grid rows * (query heads + 2 * key heads) / 8, rounded up. Widths even, up to 256.
KERNEL(rope_write, 256)
(void* qkv, int kind, int rows, int query_heads, int kv_heads, int width, int rope_width, const float* bias,
 const float* query_norm, const float* key_norm, float epsilon, const float* rope, const u32* positions,
 const u32* table_start, const u32* tables, bf16* kv, int layer, int layers) {
    grid_wait();
    grid_release();
    int heads = query_heads + 2 * kv_heads;
    u32 task = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    int row = task / heads, head = task % heads;
    if (row >= rows) return;
    u32 position = positions[row];
    u64 first = ((u64)row * heads + head) * width;
    float2 x[PAIRS];
    each_pair(width, [&](int i, int column) { x[i] = load_pair(qkv, kind, first + column); });
    if (position == PADDING) return;
    if (bias) {
        each_pair(width, [&](int i, int column) {
            float2 more = load_pair(bias, F32, head * width + column);
            x[i] = make_float2(x[i].x + more.x, x[i].y + more.y);
        });
    }
    int key = head - query_heads;
    if (key < kv_heads) {
        const float* norm = key < 0 ? query_norm : key_norm;
        if (norm) norm_head(x, width, norm, epsilon);
        rotate(x, rope_width, rope + (u64)position * rope_width);
    }
    if (key < 0) {
        each_pair(width, [&](int i, int column) { store_pair(qkv, kind, first + column, x[i]); });
        return;
    }
    // Keys and then values, as the heads lie: (half, head) is key / kv_heads and key % kv_heads.
    u64 block = tables[table_start[row] + position / BLOCK_TOKENS];
    u64 slot = ((block * layers + layer) * 2 * kv_heads + key) * BLOCK_TOKENS + position % BLOCK_TOKENS;
    each_pair(width, [&](int i, int column) { store_pair(kv, BF16, slot * width + column, x[i]); });
}
