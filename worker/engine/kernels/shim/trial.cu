// Kernels that the shim is tried with: right ones, and for each of its rules one that breaks it.

#include "device.cuh"

// out[i] = x[threads - 1 - i]
KERNEL(turn_round, 256)(const float* x, float* out, int synchronised) {
    SHARED float held[256];
    grid_wait();
    held[threadIdx.x] = x[threadIdx.x];
    if (synchronised) __syncthreads();
    out[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

// The same through dynamic shared memory and a template's.
template <int factor>
DEVICE float through(float x) {
    SHARED float held[256];
    held[threadIdx.x] = factor * x;
    __syncthreads();
    return held[blockDim.x - 1 - threadIdx.x];
}

KERNEL(turn_twice, 256)(const float* x, float* out) {
    DYNAMIC_SHARED(float, held);
    grid_wait();
    held[threadIdx.x] = through<2>(x[threadIdx.x]);
    __syncthreads();
    out[threadIdx.x] = through<3>(held[blockDim.x - 1 - threadIdx.x]);
}

// What static and dynamic shared memory hold at a block's start.
KERNEL(fresh, 32)(u32* out) {
    SHARED u32 held[32];
    DYNAMIC_SHARED(u32, more);
    grid_wait();
    u32 at = blockIdx.x * 32 + threadIdx.x;
    out[2 * at] = held[threadIdx.x];
    out[2 * at + 1] = more[threadIdx.x];
    held[threadIdx.x] = more[threadIdx.x] = at;
}

// One thread leaves before the barrier, or some wait at another one.
KERNEL(left_early, 64)(int thread) {
    grid_wait();
    if ((int)threadIdx.x == thread) return;
    __syncthreads();
}

KERNEL(two_barriers, 64)(int threads) {
    grid_wait();
    if ((int)threadIdx.x < threads) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

// out[lane] = the sum of x over the lanes below `lanes`, who alone add when the mask is right
KERNEL(sum_lanes, 32)(const float* x, float* out, int lanes, u32 mask) {
    grid_wait();
    if ((int)threadIdx.x >= lanes) return;
    float sum = x[threadIdx.x];
    for (int by = lanes / 2; by > 0; by /= 2) sum += __shfl_xor_sync(mask, sum, by);
    out[threadIdx.x] = sum;
}

KERNEL(two_places, 32)(float* out, int lanes) {
    grid_wait();
    float x = 1.0f;
    if ((int)threadIdx.x < lanes) {
        x += __shfl_xor_sync(FULL, x, 1);
    } else {
        x -= __shfl_xor_sync(FULL, x, 1);
    }
    out[threadIdx.x] = x;
}

// The functions of a warp, a number each.
KERNEL(warp_words, 32)(u32* out) {
    grid_wait();
    u32 lane = threadIdx.x;
    u32* own = out + 8 * lane;
    own[0] = __shfl_sync(FULL, lane, 3);
    own[1] = __shfl_sync(FULL, lane, 1, 8);
    own[2] = __shfl_up_sync(FULL, lane, 2);
    own[3] = __shfl_down_sync(FULL, lane, 2, 16);
    own[4] = __ballot_sync(FULL, lane % 3 == 0);
    own[5] = (u32)(__any_sync(FULL, lane == 7) + 2 * __all_sync(FULL, lane < 31) + 4 * __all_sync(FULL, lane < 32));
    own[6] = (u32)__reduce_min_sync(FULL, (int)lane - 5);
    own[7] = __reduce_add_sync(FULL, lane);
}

// Each thread copies 16 bytes in two groups, and waits for the first, for both, or for none.
KERNEL(copies, 64)(const float* x, float* out, int groups, int valid) {
    SHARED float4 held[2][64];
    grid_wait();
    u32 at = threadIdx.x;
    copy_async16(&held[0][at], x + 4 * at, (int)at < valid);
    copy_async_commit();
    copy_async16(&held[1][at], x + 4 * (at + 64), true);
    copy_async_commit();
    if (groups == 1) copy_async_wait<1>();
    if (groups == 2) copy_async_wait<0>();
    __syncthreads();
    ((float4*)out)[at] = held[0][63 - at];
    ((float4*)out)[at + 64] = held[1][63 - at];
}

// d = a * b^T for (16, 16), (8, 16), (16, 8), the fragments from shared memory as asked for.
KERNEL(product, 32)(const bf16* a, const bf16* b, float* d, int turned) {
    SHARED __align__(16) bf16 left[16][24], right[16][24];
    grid_wait();
    u32 lane = threadIdx.x;
    for (u32 at = lane; at < 256; at += 32) left[at / 16][at % 16] = a[at];
    for (u32 at = lane; at < 128; at += 32) {
        // turned: as (16, 8), so that only a turned load gives fragments of it
        if (turned) {
            right[at % 16][at / 16] = b[at];
        } else {
            right[at / 16][at % 16] = b[at];
        }
    }
    __syncwarp();
    u32 rows[4], columns[2];
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load_matrix4(rows, &left[lane % 16][lane / 16 * 8]);
    if (turned) {
        load_matrix2_turned(columns, &right[lane % 16][0]);
    } else {
        load_matrix2(columns, &right[lane % 8][lane / 8 % 2 * 8]);
    }
    mma_bf16(sums, rows, columns);
    for (u32 at = 0; at < 4; at++) d[(lane / 4 + at / 2 * 8) * 8 + lane % 4 * 2 + at % 2] = sums[at];
}

// out[i] = all numbers of matrix i, of four side by side, turned
KERNEL(turn_matrices, 32)(const bf16* x, u32* out) {
    SHARED __align__(16) bf16 held[8][32];
    grid_wait();
    for (u32 at = threadIdx.x; at < 256; at += 32) held[at / 32][at % 32] = x[at];
    __syncwarp();
    u32 r[4];
    load_matrix4_turned(r, &held[threadIdx.x % 8][threadIdx.x / 8 * 8]);
    for (u32 at = 0; at < 4; at++) out[at * 32 + threadIdx.x] = r[at];
}

// Where things must be aligned: 0 an ordinary load, 1 a copy's source, 2 its destination, 3 a matrix, 4 a streamed
// load.
KERNEL(misaligned, 32)(const float* x, float* out, int which, int by) {
    SHARED __align__(16) float held[256];
    grid_wait();
    held[threadIdx.x] = held[128 + threadIdx.x] = 0.0f;
    float* near = held + 4 * threadIdx.x + by;
    u32 r[4] = {0, 0, 0, 0};
    if (which == 0) r[0] = __float_as_uint(((const float4*)(x + by))->x);
    if (which == 1) copy_async16(held + 4 * threadIdx.x, x + by, true);
    if (which == 2) copy_async16(near, x, true);
    if (which == 3) load_matrix4(r, near);
    if (which == 4) r[0] = load_stream(x + by).x;
    out[threadIdx.x] = __uint_as_float(r[0]);
}

// What may not be: 0 past the end, 1 null, 2 an index out of an array, 3 a shift by all bits, 4 a sum that overflows, 5
// a division by zero, 6 all of the stack, 7 past the dynamic shared memory, 8 a byte just after the end.
DEVICE int deep(int levels) {
    volatile int held[256];
    held[levels % 256] = levels;
    return levels == 0 ? 0 : deep(levels - 1) + held[levels % 256];
}

KERNEL(forbidden, 32)(int* x, int which, int number) {
    SHARED int held[32];
    DYNAMIC_SHARED(int, more);
    grid_wait();
    held[threadIdx.x] = more[threadIdx.x] = number;
    if (which == 0) x[number] = 1;
    if (which == 1) *(int*)(u64)(number - 1) = 1;
    if (which == 2) x[0] = held[threadIdx.x + number];
    if (which == 3) x[0] = 1 << number;
    if (which == 4) x[0] = 0x7fffffff - 100 + number;
    if (which == 5) x[0] = 1 / (number - 1);
    if (which == 6) x[0] = deep(number);
    if (which == 7) more[threadIdx.x + number] = 1;
    if (which == 8) ((char*)x)[number] = 1;
}

// Nobody waits for the launches before.
KERNEL(hasty, 32)(float* out) { out[threadIdx.x] = 1.0f; }

// Blocks count themselves; the last writes how many there were, and begins anew.
KERNEL(last_counts, 64)(u32* counter, u32* out) {
    SHARED u32 arrived;
    grid_wait();
    if (threadIdx.x == 0) arrived = atomicAdd(counter, 1u);
    __syncthreads();
    u32 blocks = gridDim.x * gridDim.y * gridDim.z;
    if (arrived != blocks - 1) return;
    if (threadIdx.x == 0) {
        *out = blocks;
        *counter = 0;
    }
}
