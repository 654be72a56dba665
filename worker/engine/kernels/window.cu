// Windows of pictures, whose rows are (picture, y, x) with their channels side by side. Any grid of 256 threads is
// right, with fewer than 2^31 numbers a launch.

#include "device.cuh"

// Where windows lie.
struct Windows {
    int pictures, height, width, channels;
    int kernel_y, kernel_x, stride_y, stride_x, pad_top, pad_left;
    int out_height, out_width;
};

// What is left of an index whose innermost extents are taken off one by one.
DEVICE int take(u32& index, u32 extent) {
    u32 inner = index % extent;
    index /= extent;
    return inner;
}

// Calls `body` with each index below `count`.
template <class Body>
DEVICE void each_index(u32 count, Body body) {
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) body(i);
}

// `n` numbers at a time. A row of a window is one run of numbers in its picture too, whatever its channels.
template <int n>
DEVICE void unfold_few(const void* x, int x_kind, const Windows& windows, void* out, int out_kind) {
    u32 run = windows.kernel_x * windows.channels / n;
    u32 line = windows.width * windows.channels;
    u32 rows = windows.pictures * windows.out_height * windows.out_width * windows.kernel_y;
    each_index(rows * run, [&](u32 i) {
        u32 rest = i;
        int at = take(rest, run) * n;
        int tap = take(rest, windows.kernel_y);
        int column = take(rest, windows.out_width) * windows.stride_x - windows.pad_left;
        int row = take(rest, windows.out_height) * windows.stride_y - windows.pad_top + tap;
        at += column * windows.channels;
        bool inside = (u32)row < (u32)windows.height && (u32)at < line;
        u64 from = ((u64)rest * windows.height + row) * line + at;
        if constexpr (n == 4) {
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (inside) four = load4(x, x_kind, from);
            store4(out, out_kind, (u64)i * n, four);
        } else {
            store1(out, out_kind, i, inside ? load1(x, x_kind, from) : 0.0f);
        }
    });
}

// Every window as a row (kernel y, kernel x, channels); zeros outside.
KERNEL(unfold, 256)
(const void* x, int x_kind, int pictures, int height, int width, int channels, int kernel_y, int kernel_x, int stride_y,
 int stride_x, int pad_top, int pad_left, int out_height, int out_width, void* out, int out_kind) {
    grid_wait();
    grid_release();
    Windows windows = {pictures, height, width, channels, kernel_y, kernel_x, stride_y, stride_x, pad_top, pad_left,
                       out_height, out_width};
    bool fours = kernel_x * channels % 4 == 0 && width * channels % 4 == 0 && stride_x * channels % 4 == 0 &&
                 pad_left * channels % 4 == 0;
    if (fours) {
        unfold_few<4>(x, x_kind, windows, out, out_kind);
    } else {
        unfold_few<1>(x, x_kind, windows, out, out_kind);
    }
}

// Outputs side by side that a thread computes, so that a tap and most inputs are loaded once for several.
#define STRIP 4

DEVICE void add_product(float4& sum, float4 a, float4 b) {
    sum.x += a.x * b.x;
    sum.y += a.y * b.y;
    sum.z += a.z * b.z;
    sum.w += a.w * b.w;
}

// Adds one row of a square kernel, for four channels: `line` is the picture's row, and the strip's first window begins
// at its `column`.
template <int kernel_side, int stride>
DEVICE void filter_line(float4 (&sums)[STRIP], const void* x, int kind, u64 line, int column, const Windows& windows,
                        const float* taps) {
    float4 tap[kernel_side];
#pragma unroll
    for (int i = 0; i < kernel_side; i++) tap[i] = load4(taps, F32, i * windows.channels);
#pragma unroll
    for (int i = 0; i < (STRIP - 1) * stride + kernel_side; i++) {
        if ((u32)(column + i) >= (u32)windows.width) continue;
        float4 four = load4(x, kind, line + (column + i) * windows.channels);
#pragma unroll
        for (int of = 0; of < STRIP; of++) {
            if (i >= of * stride && i < of * stride + kernel_side) add_product(sums[of], four, tap[i - of * stride]);
        }
    }
}

template <int kernel_side, int stride>
DEVICE void filter_strips(const void* x, int x_kind, const Windows& windows, const float* kernel, const float* bias,
                          int activation, void* out, int out_kind) {
    u32 fours = windows.channels / 4, strips = (windows.out_width + STRIP - 1) / STRIP;
    each_index(windows.pictures * windows.out_height * strips * fours, [&](u32 rest) {
        int channel = take(rest, fours) * 4;
        int first = take(rest, strips) * STRIP;
        int top = take(rest, windows.out_height);
        u64 to = (((u64)rest * windows.out_height + top) * windows.out_width + first) * windows.channels + channel;
        top = top * stride - windows.pad_top;
        float4 start = load4(bias, F32, channel);
        float4 sums[STRIP] = {start, start, start, start};
        for (int i = 0; i < kernel_side; i++) {
            if ((u32)(top + i) >= (u32)windows.height) continue;
            u64 line = ((u64)rest * windows.height + top + i) * windows.width * windows.channels + channel;
            filter_line<kernel_side, stride>(sums, x, x_kind, line, first * stride - windows.pad_left, windows,
                                             kernel + i * kernel_side * windows.channels + channel);
        }
#pragma unroll
        for (int of = 0; of < STRIP; of++) {
            if (first + of >= windows.out_width) continue;
            float4 sum = sums[of];
            sum = make_float4(activate(activation, sum.x), activate(activation, sum.y), activate(activation, sum.z),
                              activate(activation, sum.w));
            store4(out, out_kind, to + of * windows.channels, sum);
        }
    });
}

// Any kernel and stride, a number at a time.
DEVICE void filter_each(const void* x, int x_kind, const Windows& windows, const float* kernel, const float* bias,
                        int activation, void* out, int out_kind) {
    each_index(windows.pictures * windows.out_height * windows.out_width * windows.channels, [&](u32 i) {
        u32 rest = i;
        int channel = take(rest, windows.channels);
        int left = take(rest, windows.out_width) * windows.stride_x - windows.pad_left;
        int top = take(rest, windows.out_height) * windows.stride_y - windows.pad_top;
        float sum = bias[channel];
        for (int tap = 0; tap < windows.kernel_y * windows.kernel_x; tap++) {
            int row = top + tap / windows.kernel_x, column = left + tap % windows.kernel_x;
            if ((u32)row >= (u32)windows.height || (u32)column >= (u32)windows.width) continue;
            u64 from = (((u64)rest * windows.height + row) * windows.width + column) * windows.channels + channel;
            sum += load1(x, x_kind, from) * kernel[tap * windows.channels + channel];
        }
        store1(out, out_kind, i, activate(activation, sum));
    });
}

// out = activation(each channel convolved by itself + bias); kernel is (kernel y * kernel x, channels)
KERNEL(depthwise, 256)
(const void* x, int x_kind, int pictures, int height, int width, int channels, int kernel_y, int kernel_x, int stride_y,
 int stride_x, int pad_top, int pad_left, int out_height, int out_width, const float* kernel, const float* bias,
 int activation, void* out, int out_kind) {
    grid_wait();
    grid_release();
    Windows windows = {pictures, height, width, channels, kernel_y, kernel_x, stride_y, stride_x, pad_top, pad_left,
                       out_height, out_width};
    bool square = kernel_y == kernel_x && stride_y == stride_x && channels % 4 == 0;
    if (square && kernel_x == 3 && stride_x == 1) {
        filter_strips<3, 1>(x, x_kind, windows, kernel, bias, activation, out, out_kind);
    } else if (square && kernel_x == 3 && stride_x == 2) {
        filter_strips<3, 2>(x, x_kind, windows, kernel, bias, activation, out, out_kind);
    } else if (square && kernel_x == 5 && stride_x == 1) {
        filter_strips<5, 1>(x, x_kind, windows, kernel, bias, activation, out, out_kind);
    } else if (square && kernel_x == 5 && stride_x == 2) {
        filter_strips<5, 2>(x, x_kind, windows, kernel, bias, activation, out, out_kind);
    } else {
        filter_each(x, x_kind, windows, kernel, bias, activation, out, out_kind);
    }
}
