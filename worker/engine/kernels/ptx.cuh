// What only PTX can say: tensor cores, asynchronous copies, conversions of pairs. One body for the device, one for the
// host shim; nothing else in the kernels knows which it is.

#pragma once

#ifdef SHIM

#include "shim/ptx.h"

#else

// Both numbers to bf16, to the nearest even: `low` in bits 0 to 15.
DEVICE u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// The sums of pairs of bf16, to the nearest even.
DEVICE u32 add_bf16(u32 a, u32 b) {
    u32 sums;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sums) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return sums;
}

// A number of half precision, in bits 0 to 15.
DEVICE float from_f16(u32 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short)bits));
    return x;
}

// d += a * b by one warp: (16, 16) times (16, 8), sums of single precision. With group = lane / 4 and pair = lane % 4 *
// 2: a[i] is row group + i % 2 * 8, columns pair + i / 2 * 8 and the next; b[i] is column group, rows pair + i * 8 and
// the next; d[i] is row group + i / 2 * 8, column pair + i % 2.
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// Four matrices of 8 rows of 16 bytes: lane l says where row l % 8 of matrix l / 8 is, 16-byte aligned, and gets of
// matrix i in r[i] numbers lane % 4 * 2 and the next of row lane / 4.
DEVICE void load_matrix4(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// The same of the matrices turned: column lane / 4, rows lane % 4 * 2 and the next.
DEVICE void load_matrix4_turned(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// Two matrices: the addresses are those of lanes 0 to 15.
DEVICE void load_matrix2(u32 (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

DEVICE void load_matrix2_turned(u32 (&r)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

// 16 bytes on their way to shared memory, past the first cache, both places 16-byte aligned; zeros, and nothing is
// read, when not valid.
DEVICE void copy_async16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}

// Makes a group of the copies that this thread began since the last group.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the last `pending`; others see the bytes after a barrier.
template <int pending>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 2^x, about; subnormal results are 0.
DEVICE float exp2_fast(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// 16 bytes, 16-byte aligned, that no launch writes and this one reads once.
DEVICE uint4 load_stream(const void* global) {
    uint4 x;
    asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
        : "l"(global));
    return x;
}

// Waits until the launches before this one are done and what they wrote is seen.
DEVICE void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next launch begin, up to its own grid_wait.
DEVICE void grid_release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif
