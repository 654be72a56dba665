// What every kernel is written in: types, qualifiers, and the small sums of a warp and a block.
//
// No header of CUDA is included anywhere: NVRTC needs no path, and the host shim (SHIM) compiles the same text.
// bf16 is its bits. Kernels are declared with KERNEL(name, threads): C linkage, at most so many threads a block.

#pragma once

typedef unsigned char u8;
typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef SHIM
#include "shim/shim.h"
#else
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
// The block's dynamic shared memory, 16-byte aligned, as an array of `type`.
#define DYNAMIC_SHARED(type, name)                                   \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared_)
#endif

#include "ptx.cuh"

#define WARP 32
#define FULL 0xffffffffu

// Tokens of a block of the key-value cache.
#define BLOCK_TOKENS 16

// How a buffer holds its numbers.
enum Kind { F32 = 0, BF16 = 1 };

// What follows a product: the numbers of `dense::Activation`.
enum Activation { NONE = 0, GELU = 1, QUICK_GELU = 2, RELU6 = 3 };

// What gates pass through: the numbers of `backend::Gate`.
enum Gate { SILU = 0, GELU_TANH = 1 };

DEVICE float from_bf16(bf16 bits) { return __uint_as_float((u32)bits << 16); }

// To the nearest, of two equally near the even one; NaN stays NaN.
DEVICE bf16 to_bf16(float x) { return (bf16)(pack_bf16(x, 0.0f) & 0xffffu); }

DEVICE float low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Number `at` of a buffer.
DEVICE float load1(const void* from, int kind, u64 at) {
    return kind == F32 ? ((const float*)from)[at] : from_bf16(((const bf16*)from)[at]);
}

DEVICE void store1(void* to, int kind, u64 at, float x) {
    if (kind == F32) {
        ((float*)to)[at] = x;
    } else {
        ((bf16*)to)[at] = to_bf16(x);
    }
}

// Numbers `at` to `at + 3`; `at` is a multiple of 4.
DEVICE float4 load4(const void* from, int kind, u64 at) {
    if (kind == F32) return *(const float4*)((const float*)from + at);
    uint2 pairs = *(const uint2*)((const bf16*)from + at);
    return make_float4(low(pairs.x), high(pairs.x), low(pairs.y), high(pairs.y));
}

DEVICE void store4(void* to, int kind, u64 at, float4 x) {
    if (kind == F32) {
        *(float4*)((float*)to + at) = x;
    } else {
        *(uint2*)((bf16*)to + at) = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    }
}

DEVICE float warp_sum(float x) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(FULL, x, lanes);
    return x;
}

DEVICE float warp_max(float x) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(FULL, x, lanes));
    return x;
}

// The sum over the block, for all its threads; `warps` holds a number a warp. All threads call it.
DEVICE float block_sum(float x, float* warps) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / WARP; warp++) sum += warps[warp];
    return sum;
}

// x * Phi(x), exactly.
DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// Of what is far below zero the divisor is beyond the quick division's range, which gives zero: as it should.
DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

DEVICE float activate(int activation, float x) {
    if (activation == GELU) return gelu(x);
    if (activation == QUICK_GELU) return x * sigmoid(1.702f * x);
    if (activation == RELU6) return fminf(fmaxf(x, 0.0f), 6.0f);
    return x;
}

DEVICE float gate(int function, float x) {
    if (function == SILU) return x * sigmoid(x);
    float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
}
