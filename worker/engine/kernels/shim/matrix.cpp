// Tensor cores and asynchronous copies. A copy is made when its thread waits for it, and its destination is poisoned
// when it begins: who reads too early, or still reads what is being replaced, gets NaN.

#include <string.h>

#include "shim/inside.h"

namespace shim {

namespace {

struct Fragments {
    float* d;
    const unsigned* a;
    const unsigned* b;
};

float half_of(unsigned pair, int which) {
    return same_bits<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
}

void multiply_all(const Lanes& lanes) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& own = lanes.of<Fragments>(lane);
        int group = lane / 4, pair = lane % 4 * 2;
        for (int at = 0; at < 8; at++) {
            a[group + at / 2 % 2 * 8][pair + at / 4 * 8 + at % 2] = half_of(own.a[at / 2], at % 2);
        }
        for (int at = 0; at < 4; at++) {
            b[pair + at / 2 * 8 + at % 2][group] = half_of(own.b[at / 2], at % 2);
            d[group + at / 2 * 8][pair + at % 2] = own.d[at];
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            for (int k = 0; k < 16; k++) d[row][column] += a[row][k] * b[k][column];
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const Fragments& own = lanes.of<Fragments>(lane);
        for (int at = 0; at < 4; at++) own.d[at] = d[lane / 4 + at / 2 * 8][lane % 4 * 2 + at % 2];
    }
}

struct Matrices {
    unsigned* r;
    int count;
    bool turned;
    const char* row;
};

void load_all(const Lanes& lanes) {
    const Matrices& first = lanes.of<Matrices>(0);
    for (int lane = 0; lane < 8 * first.count; lane++) {
        const char* row = lanes.of<Matrices>(lane).row;
        if ((uintptr_t)row % 16 != 0) fail(lanes.place, "ldmatrix: lane %d's row is misaligned", lane);
        if (!is_shared(row, 16)) fail(lanes.place, "ldmatrix: lane %d's row is not in shared memory", lane);
    }
    for (int matrix = 0; matrix < first.count; matrix++) {
        unsigned short numbers[8][8];
        for (int row = 0; row < 8; row++) memcpy(numbers[row], lanes.of<Matrices>(matrix * 8 + row).row, 16);
        for (int lane = 0; lane < 32; lane++) {
            int group = lane / 4, pair = lane % 4 * 2;
            unsigned low = first.turned ? numbers[pair][group] : numbers[group][pair];
            unsigned high = first.turned ? numbers[pair + 1][group] : numbers[group][pair + 1];
            lanes.of<Matrices>(lane).r[matrix] = low | high << 16;
        }
    }
}

}  // namespace

void multiply(Place place, float* d, const unsigned* a, const unsigned* b) {
    Fragments own = {d, a, b};
    collective(place, "mma", ~0u, &own, multiply_all);
}

void load_matrix(Place place, unsigned* r, int count, bool turned, const void* shared) {
    Matrices own = {r, count, turned, (const char*)shared};
    collective(place, "ldmatrix", ~0u, &own, load_all);
}

const void* global16(Place place, const void* global) {
    if ((uintptr_t)global % 16 != 0) fail(place, "%p is misaligned for 16 bytes", global);
    if (!is_global(global, 16)) fail(place, "reads 16 bytes at %s", whereabouts(global).c_str());
    return global;
}

void copy_async16(Place place, void* shared, const void* global, bool valid) {
    if ((uintptr_t)shared % 16 != 0) fail(place, "cp.async: the destination is misaligned");
    if ((uintptr_t)global % 16 != 0) fail(place, "cp.async: the source is misaligned");
    if (!is_shared(shared, 16)) fail(place, "cp.async: the destination is not in shared memory");
    if (valid) global16(place, global);
    memset(shared, 0xff, 16);
    copies().begun.push_back(Copy{shared, global, valid, copies().groups});
}

void copy_async_commit() { copies().groups++; }

void copy_async_wait(Place place, int pending) {
    Copies& own = copies();
    size_t kept = 0;
    for (const Copy& copy : own.begun) {
        if (copy.group >= own.groups - pending) {
            own.begun[kept++] = copy;
        } else if (!copy.valid) {
            memset(copy.to, 0, 16);
        } else {
            memcpy(copy.to, global16(place, copy.from), 16);
        }
    }
    own.begun.resize(kept);
}

unsigned bf16_bits(float x) {
    if (x != x) return 0x7fff;
    unsigned bits = same_bits<unsigned>(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float f16_number(unsigned bits) {
    unsigned exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    float size = exponent == 0 ? ldexpf((float)fraction, -24) : ldexpf((float)(fraction | 0x400), (int)exponent - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return bits >> 15 ? -size : size;
}

}  // namespace shim
