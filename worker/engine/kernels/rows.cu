// Rows moved, joined and changed number by number: all bound by memory. Any grid of 256 threads is right but for the
// mean, with fewer than 2^31 numbers a launch.

#include "device.cuh"

// What a thread takes of a row at once: four numbers, or one. `n` is known wherever it is asked, once all is inlined.
struct Few {
    float at[4];
    int n;
};

DEVICE void load(Few& few, const void* from, int kind, u64 at) {
    if (few.n == 4) {
        float4 four = load4(from, kind, at);
        few = {{four.x, four.y, four.z, four.w}, 4};
    } else {
        few.at[0] = load1(from, kind, at);
    }
}

DEVICE void store(const Few& few, void* to, int kind, u64 at) {
    if (few.n == 4) {
        store4(to, kind, at, make_float4(few.at[0], few.at[1], few.at[2], few.at[3]));
    } else {
        store1(to, kind, at, few.at[0]);
    }
}

// Changes each number, of which `change` is told the index and the value.
template <class Change>
DEVICE void map(Few& few, Change change) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i < few.n) few.at[i] = change(i, few.at[i]);
    }
}

template <int n, class Body>
DEVICE void each_few(int rows, int width, Body body) {
    u32 columns = width / n;
    u32 count = rows * columns;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
        body(Few{{}, n}, (int)(i / columns), (int)(i % columns) * n);
    }
}

// Calls `body` with room for a few numbers, their row and their first column.
template <class Body>
DEVICE void each(int rows, int width, bool fours, Body body) {
    grid_wait();
    grid_release();
    if (fours) {
        each_few<4>(rows, width, body);
    } else {
        each_few<1>(rows, width, body);
    }
}

// out[i] = factor * table[ids[i]]
KERNEL(gather, 256)
(const bf16* table, const u32* ids, int count, int width, float factor, void* out, int out_kind) {
    each(count, width, width % 4 == 0, [&](Few few, int row, int column) {
        load(few, table, BF16, (u64)ids[row] * width + column);
        map(few, [&](int, float x) { return factor * x; });
        store(few, out, out_kind, (u64)row * width + column);
    });
}

// out[i] = x[ids[i]]
KERNEL(take_rows, 256)
(const void* x, int x_kind, const u32* ids, int count, int width, void* out, int out_kind) {
    each(count, width, width % 4 == 0, [&](Few few, int row, int column) {
        load(few, x, x_kind, (u64)ids[row] * width + column);
        store(few, out, out_kind, (u64)row * width + column);
    });
}

// out[i] += x[ids[i]], or x[i] without ids
KERNEL(add_rows, 256)
(const void* x, int x_kind, const u32* ids, int count, int width, void* out, int out_kind) {
    each(count, width, width % 4 == 0, [&](Few few, int row, int column) {
        Few sums = few;
        u64 to = (u64)row * width + column;
        load(few, x, x_kind, (u64)(ids ? ids[row] : row) * width + column);
        load(sums, out, out_kind, to);
        map(sums, [&](int i, float sum) { return sum + few.at[i]; });
        store(sums, out, out_kind, to);
    });
}

// out[ids[i]] = x[i] from `column` on; the ids differ
KERNEL(scatter, 256)
(const void* x, int x_kind, int x_width, int column, const u32* ids, int count, int width, void* out, int out_kind) {
    bool fours = x_width % 4 == 0 && column % 4 == 0 && width % 4 == 0;
    each(count, width, fours, [&](Few few, int row, int at) {
        load(few, x, x_kind, (u64)row * x_width + column + at);
        store(few, out, out_kind, (u64)ids[row] * width + at);
    });
}

DEVICE u32 bias_pair(int activation, u32 pair, float first, float second) {
    return pack_bf16(activate(activation, low(pair) + first), activate(activation, high(pair) + second));
}

// The same of bf16, eight numbers a thread: after large products of the vendor's.
DEVICE void bias_halves(const float* bias, int activation, u32 rows, u32 width, bf16* x) {
    u32 eights = width / 8, all = rows * eights;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < all; at += gridDim.x * blockDim.x) {
        const float4* biases = (const float4*)bias + 2 * (at % eights);
        float4 a = biases[0], b = biases[1];
        uint4 few = ((const uint4*)x)[at];
        ((uint4*)x)[at] =
            make_uint4(bias_pair(activation, few.x, a.x, a.y), bias_pair(activation, few.y, a.z, a.w),
                       bias_pair(activation, few.z, b.x, b.y), bias_pair(activation, few.w, b.z, b.w));
    }
}

// x = activation(x + bias)
KERNEL(bias, 256)(const float* bias, int activation, int rows, int width, void* x, int kind) {
    if (kind == BF16 && width % 8 == 0) {
        grid_wait();
        grid_release();
        return bias_halves(bias, activation, rows, width, (bf16*)x);
    }
    each(rows, width, width % 4 == 0, [&](Few few, int row, int column) {
        Few biases = few;
        u64 at = (u64)row * width + column;
        load(few, x, kind, at);
        load(biases, bias, F32, column);
        map(few, [&](int i, float x) { return activate(activation, x + biases.at[i]); });
        store(few, x, kind, at);
    });
}

// x = factor * x
KERNEL(scale, 256)(float factor, int count, void* x, int kind) {
    each(1, count, count % 4 == 0, [&](Few few, int, int at) {
        load(few, x, kind, at);
        map(few, [&](int, float x) { return factor * x; });
        store(few, x, kind, at);
    });
}

DEVICE u32 gate_pair(int function, u32 gates, u32 ups) {
    return pack_bf16(gate(function, low(gates)) * low(ups), gate(function, high(gates)) * high(ups));
}

// The same of bf16 throughout, eight numbers a thread: prompts spend a tenth of their time here.
DEVICE void glu_halves(const bf16* x, int function, u32 rows, u32 width, bf16* out) {
    u32 eights = width / 8, all = rows * eights;
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < all; at += gridDim.x * blockDim.x) {
        u32 row = at / eights;
        const uint4* gates = (const uint4*)x + (u64)row * eights + at;
        uint4 g = gates[0], u = gates[eights];
        ((uint4*)out)[at] = make_uint4(gate_pair(function, g.x, u.x), gate_pair(function, g.y, u.y),
                                       gate_pair(function, g.z, u.z), gate_pair(function, g.w, u.w));
    }
}

// out = gate(g) * u of rows (g | u)
KERNEL(glu, 256)(const void* x, int x_kind, int function, int rows, int width, void* out, int out_kind) {
    if (x_kind == BF16 && out_kind == BF16 && width % 8 == 0) {
        grid_wait();
        grid_release();
        return glu_halves((const bf16*)x, function, rows, width, (bf16*)out);
    }
    each(rows, width, width % 4 == 0, [&](Few gates, int row, int column) {
        Few ups = gates;
        u64 from = (u64)row * 2 * width + column;
        load(gates, x, x_kind, from);
        load(ups, x, x_kind, from + width);
        map(gates, [&](int i, float x) { return gate(function, x) * ups.at[i]; });
        store(gates, out, out_kind, (u64)row * width + column);
    });
}

KERNEL(cast, 256)(const void* x, int x_kind, int count, void* out, int out_kind) {
    each(1, count, count % 4 == 0, [&](Few few, int, int at) {
        load(few, x, x_kind, at);
        store(few, out, out_kind, at);
    });
}

// One warp's share of a span's sum, for four columns a lane: every eighth row.
DEVICE float4 partial_sum(const void* x, int kind, uint2 span, int width, int column) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    bool fours = width % 4 == 0;
#pragma unroll 4
    for (u32 row = span.x + threadIdx.x / WARP; row < span.y; row += blockDim.x / WARP) {
        u64 at = (u64)row * width + column;
        float4 few = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (fours) {
            few = load4(x, kind, at);
        } else {
            few.x = load1(x, kind, at);
            if (column + 1 < width) few.y = load1(x, kind, at + 1);
            if (column + 2 < width) few.z = load1(x, kind, at + 2);
            if (column + 3 < width) few.w = load1(x, kind, at + 3);
        }
        sum.x += few.x;
        sum.y += few.y;
        sum.z += few.z;
        sum.w += few.w;
    }
    return sum;
}

// out[i] = mean of x[spans[i]], spans being (first, end); zeros of an empty span. Grid (count, width / 128 rounded up).
KERNEL(mean, 256)(const void* x, int x_kind, const u32* spans, int count, int width, void* out, int out_kind) {
    SHARED float sums[256 / WARP][WARP * 4];
    grid_wait();
    grid_release();
    uint2 span = make_uint2(spans[2 * blockIdx.x], spans[2 * blockIdx.x + 1]);
    int first = blockIdx.y * WARP * 4;
    int column = threadIdx.x % WARP * 4;
    if (first + column < width) {
        float4 sum = partial_sum(x, x_kind, span, width, first + column);
        *(float4*)&sums[threadIdx.x / WARP][column] = sum;
    }
    __syncthreads();
    column = threadIdx.x;
    if (column < WARP * 4 && first + column < width) {
        float sum = 0.0f;
        for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += sums[warp][column];
        float rows = span.y > span.x ? (float)(span.y - span.x) : 1.0f;
        store1(out, out_kind, (u64)blockIdx.x * width + first + column, sum / rows);
    }
}

// Numbers that look random, uniform in -spread to spread: weights of a network that is only measured.
KERNEL(noise, 256)(bf16* out, int count, int seed, float spread) {
    grid_wait();
    grid_release();
    for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < (u32)count; at += gridDim.x * blockDim.x) {
        u64 bits = ((u64)(u32)seed << 32 | at) + 0x9e3779b97f4a7c15ull;
        bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9ull;
        bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebull;
        out[at] = to_bf16(((float)(u32)(bits >> 40) * (1.0f / 8388608.0f) - 1.0f) * spread);
    }
}
