// What PTX does for the kernels, done by hand.

#pragma once

#pragma GCC visibility push(hidden)
namespace shim {

void multiply(Place place, float* d, const unsigned* a, const unsigned* b);
// `count` matrices of 8 by 8; `turned` as .trans
void load_matrix(Place place, unsigned* r, int count, bool turned, const void* shared);
void copy_async16(Place place, void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(Place place, int pending);
const void* global16(Place place, const void* global);
unsigned bf16_bits(float x);
float f16_number(unsigned bits);
void grid_wait();

}  // namespace shim
#pragma GCC visibility pop

DEVICE u32 pack_bf16(float low, float high) { return shim::bf16_bits(low) | shim::bf16_bits(high) << 16; }

DEVICE u32 add_bf16(u32 a, u32 b) {
    float low = __uint_as_float(a << 16) + __uint_as_float(b << 16);
    float high = __uint_as_float(a & 0xffff0000u) + __uint_as_float(b & 0xffff0000u);
    return pack_bf16(low, high);
}

DEVICE float from_f16(u32 bits) { return shim::f16_number(bits & 0xffffu); }

DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], SHIM_PLACE) {
    shim::multiply(SHIM_HERE, d, a, b);
}

DEVICE void load_matrix4(u32 (&r)[4], const void* shared, SHIM_PLACE) {
    shim::load_matrix(SHIM_HERE, r, 4, false, shared);
}
DEVICE void load_matrix4_turned(u32 (&r)[4], const void* shared, SHIM_PLACE) {
    shim::load_matrix(SHIM_HERE, r, 4, true, shared);
}
DEVICE void load_matrix2(u32 (&r)[2], const void* shared, SHIM_PLACE) {
    shim::load_matrix(SHIM_HERE, r, 2, false, shared);
}
DEVICE void load_matrix2_turned(u32 (&r)[2], const void* shared, SHIM_PLACE) {
    shim::load_matrix(SHIM_HERE, r, 2, true, shared);
}

DEVICE void copy_async16(void* shared, const void* global, bool valid, SHIM_PLACE) {
    shim::copy_async16(SHIM_HERE, shared, global, valid);
}
DEVICE void copy_async_commit() { shim::copy_async_commit(); }
template <int pending>
DEVICE void copy_async_wait(SHIM_PLACE) {
    static_assert(pending >= 0, "groups that may be under way");
    shim::copy_async_wait(SHIM_HERE, pending);
}

DEVICE float exp2_fast(float x) {
    float power = exp2f(x);
    return power < 1.17549435e-38f ? 0.0f : power;
}

DEVICE uint4 load_stream(const void* global, SHIM_PLACE) { return *(const uint4*)shim::global16(SHIM_HERE, global); }

DEVICE void grid_wait() { shim::grid_wait(); }
DEVICE void grid_release() {}
