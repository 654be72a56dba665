// Norms of rows. Up to 1024 numbers a warp takes a row, and a block several; beyond, a block takes a row. A row is read
// once and held in registers, unless its width is no multiple of 4. A norm may be written over its input.

#include "device.cuh"

#define WARP_ROW 1024
#define BLOCK_THREADS 512

// Numbers of a row that a thread holds: all threads of a block 16384.
#define HELD 32

// What a norm reads and writes.
struct Norm {
    const void* x;
    int x_kind;
    const float* weight;
    const float* bias;  // null: none, and the mean stays in
    float epsilon;
    int rows, width, add;
    void* out;
    int out_kind;
};

// The sum over the threads that share a row: a warp, or the block.
template <int threads>
DEVICE float team_sum(float x) {
    SHARED float warps[BLOCK_THREADS / WARP];
    return threads == WARP ? warp_sum(x) : block_sum(x, warps);
}

// Calls `body` for each `n` numbers of the row that this thread has, with their column: those held, or, of odd widths,
// one after the other read into `held`.
template <int threads, int n, class Body>
DEVICE void each_few(const Norm& norm, int row, float (&held)[HELD], Body body) {
    int thread = threadIdx.x % threads;
    if constexpr (n == 4) {
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            int column = i * threads + thread * 4;
            if (column < norm.width) body(held + i, column);
        }
    } else {
        for (int column = thread; column < norm.width; column += threads) {
            held[0] = load1(norm.x, norm.x_kind, (u64)row * norm.width + column);
            body(held, column);
        }
    }
}

template <int n>
DEVICE void load_few(float* to, const void* from, int kind, u64 at) {
    if constexpr (n == 4) {
        float4 four = load4(from, kind, at);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
    } else {
        to[0] = load1(from, kind, at);
    }
}

template <int n>
DEVICE void store_few(const float* from, void* to, int kind, u64 at) {
    if constexpr (n == 4) {
        store4(to, kind, at, make_float4(from[0], from[1], from[2], from[3]));
    } else {
        store1(to, kind, at, from[0]);
    }
}

template <int threads, int n>
DEVICE void norm_row(const Norm& norm, int row) {
    float held[HELD];
    u64 first = (u64)row * norm.width;
    if (n == 4) {
        each_few<threads, n>(norm, row, held, [&](float* x, int column) {
            load_few<n>(x, norm.x, norm.x_kind, first + column);
        });
    }
    float mean = 0.0f;
    if (norm.bias) {
        float sum = 0.0f;
        each_few<threads, n>(norm, row, held, [&](float* x, int) {
            for (int i = 0; i < n; i++) sum += x[i];
        });
        mean = __fdividef(team_sum<threads>(sum), norm.width);
    }
    float squares = 0.0f;
    each_few<threads, n>(norm, row, held, [&](float* x, int) {
        for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    });
    float factor = rsqrtf(__fdividef(team_sum<threads>(squares), norm.width) + norm.epsilon);
    each_few<threads, n>(norm, row, held, [&](float* x, int column) {
        float weights[n], base[n] = {};
        load_few<n>(weights, norm.weight, F32, column);
        if (norm.bias) load_few<n>(base, norm.bias, F32, column);
        if (norm.add) load_few<n>(base, norm.out, norm.out_kind, first + column);
        for (int i = 0; i < n; i++) base[i] += (x[i] - mean) * factor * weights[i];
        store_few<n>(base, norm.out, norm.out_kind, first + column);
    });
}

template <int threads>
DEVICE void norm_row(const Norm& norm, int row) {
    if (row >= norm.rows) return;
    if (norm.width % 4 == 0) {
        norm_row<threads, 4>(norm, row);
    } else {
        norm_row<threads, 1>(norm, row);
    }
}

DEVICE void norm_rows(const Norm& norm) {
    grid_wait();
    grid_release();
    if (norm.width <= WARP_ROW) {
        norm_row<WARP>(norm, blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
    } else {
        norm_row<BLOCK_THREADS>(norm, blockIdx.x);
    }
}

// out = x / rms(x) * weight, or is added to. Up to a width of 1024 any threads, and rows / warps of a block blocks;
// beyond, 512 threads and a block a row, up to 16384.
KERNEL(rms_norm, 512)
(const void* x, int x_kind, const float* weight, float epsilon, int rows, int width, int add, void* out, int out_kind) {
    norm_rows({x, x_kind, weight, nullptr, epsilon, rows, width, add, out, out_kind});
}

// out = (x - mean) / deviation * weight + bias. Launched as rms_norm.
KERNEL(layer_norm, 512)
(const void* x, int x_kind, const float* weight, const float* bias, float epsilon, int rows, int width, void* out,
 int out_kind) {
    norm_rows({x, x_kind, weight, bias, epsilon, rows, width, 0, out, out_kind});
}
