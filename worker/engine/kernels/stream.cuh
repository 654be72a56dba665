// Weights on their way to a warp, which multiplies them by lines of x: bf16, or the integers of a quantised file.
//
// Memory is the bound, so many bytes are under way: a warp has a ring of chunks in shared memory, and asks for the next
// chunk when it is done with one. Tensor cores multiply: a product takes 16 outputs, two groups of 8, and eight lines.
// Which of a chunk's columns a product takes first does not matter, so long as x and weights agree: a lane has pieces of
// 8 columns of both, one of each half of a chunk, and pair by pair they are what tensor cores want of it.

#pragma once

#include "device.cuh"

// Outputs of a warp, and the half of them whose weights a lane has a row of each: row lane / 4 of a group.
#define TILE 16
#define GROUP 8
// Columns that a warp takes at once. Of each half a lane has piece lane % 4.
#define CHUNK 64
#define PIECE 8
// What a warp's ring takes.
#define RING_BYTES (256 * WARP)

// Warps that share a tile of outputs, or a row of x: every so many of them, so that teams are as equal as can be.
struct Team {
    int number, member, members;
};

// Where the rows of a tile's groups begin, and where those of the block end.
struct Groups {
    int first[2], end[2];
};

// How far a warp is: members of a team take a chunk each in turn. The chunk to multiply is in the slot and begins at
// `column`; `left` columns are left from the next chunk on that is to be asked for.
struct Turn {
    int slot, column, left, step;
};

DEVICE Turn turn_of(Team team, int k) {
    int column = team.member * CHUNK;
    return {0, column, k - column, team.members * CHUNK};
}

// Rows of bf16, k numbers each. Every lane asks for what it multiplies itself.
struct Brains {
    static const int DEPTH = 4;
    // What a lane has of a chunk: two pieces of each group.
    static const int PIECES = 4;

    uint4* ring;
    const bf16* from[2];
    bool exists[2];
    Turn turn;
};

DEVICE void open(Brains& weights, const void* w, int k, Team team, const Groups& groups, void* ring) {
    int lane = threadIdx.x % WARP;
    weights.ring = (uint4*)ring + lane;
    weights.turn = turn_of(team, k);
#pragma unroll
    for (int group = 0; group < 2; group++) {
        int row = groups.first[group] + lane / 4;
        weights.exists[group] = row < groups.end[group];
        weights.from[group] = (const bf16*)w + (u64)row * k + weights.turn.column + lane % 4 * PIECE;
    }
}

// Asks for a chunk, in place of the one in the slot.
DEVICE void ask(Brains& weights) {
    uint4* to = weights.ring + weights.turn.slot * Brains::PIECES * WARP;
    int left = weights.turn.left - (int)threadIdx.x % 4 * PIECE;
#pragma unroll
    for (int group = 0; group < 2; group++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int column = half * (CHUNK / 2);
            bool valid = weights.exists[group] && left > column;
            copy_async16(to + (group * 2 + half) * WARP, weights.from[group] + column, valid);
        }
        weights.from[group] += weights.turn.step;
    }
}

// Waits until the chunk in the slot is there.
DEVICE void await_chunk(const Brains&) { copy_async_wait<Brains::DEPTH - 1>(); }

// Adds the products of the chunk in the slot. Halves have sums of their own, so that one need not wait for the other.
DEVICE void multiply(float (&sums)[2][4], const Brains& weights, const uint4* staged, int lines) {
    const uint4* chunk = weights.ring + weights.turn.slot * Brains::PIECES * WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 x = staged[half * 4 * lines];
        uint4 first = chunk[half * WARP];
        uint4 second = chunk[(2 + half) * WARP];
        mma_bf16(sums[half], {first.x, second.x, first.y, second.y}, {x.x, x.y});
        mma_bf16(sums[half], {first.z, second.z, first.w, second.w}, {x.z, x.w});
    }
}

// Integers with a scale and a minimum for each 32 columns of a row: w = scale * integer + minimum. `words` are those that
// eight integers take: one of nibbles, 0 to 15, or two of signed bytes.
//
// They lie in units, of a group of rows and a chunk of columns; units of a group lie side by side. A unit has, lane by
// lane, its integers of both halves; then, row by row, scale and minimum of both halves, f16. Of two columns that lie
// together the first is in the lower half of a word: nibbles 2i and 2i + 1 begin at bits 4i and 16 + 4i; of a word of
// bytes, columns 0 and 1 at bits 0 and 16, 2 and 3 at bits 8 and 24. What only fills units is zeros.
template <int words>
struct Integers {
    static const int SCALES = 2 * words * 4 * WARP;
    static const int UNIT = SCALES + GROUP * 8;
    static const int DEPTH = RING_BYTES / (2 * UNIT);
    // 16 bytes each, of both groups' units, and how often a warp's lanes copy one each.
    static const int COPIES = 2 * UNIT / 16;
    static const int ROUNDS = (COPIES + WARP - 1) / WARP;

    u8* ring;
    const u8* from[ROUNDS];
    bool exists[ROUNDS];
    Turn turn;
};

typedef Integers<1> Nibbles;
typedef Integers<2> Bytes;

template <int words>
DEVICE void open(Integers<words>& weights, const void* w, int k, Team team, const Groups& groups, void* ring) {
    const int unit = Integers<words>::UNIT;
    weights.ring = (u8*)ring;
    weights.turn = turn_of(team, k);
    int chunks = (k + CHUNK - 1) / CHUNK;
#pragma unroll
    for (int round = 0; round < Integers<words>::ROUNDS; round++) {
        int copy = round * WARP + (int)threadIdx.x % WARP;
        bool second = copy * 16 >= unit;
        int first = second ? groups.first[1] : groups.first[0];
        int end = second ? groups.end[1] : groups.end[0];
        weights.exists[round] = copy < Integers<words>::COPIES && first < end;
        u64 at = (u64)(first / GROUP) * chunks + team.member;
        weights.from[round] = (const u8*)w + at * unit + (copy * 16 - (second ? unit : 0));
    }
}

template <int words>
DEVICE void ask(Integers<words>& weights) {
    const int unit = Integers<words>::UNIT;
    u8* to = weights.ring + weights.turn.slot * 2 * unit + threadIdx.x % WARP * 16;
    // Other lanes may still read what is there.
    __syncwarp();
#pragma unroll
    for (int round = 0; round < Integers<words>::ROUNDS; round++) {
        if (round * WARP + (int)threadIdx.x % WARP < Integers<words>::COPIES) {
            copy_async16(to + round * WARP * 16, weights.from[round], weights.exists[round]);
        }
        weights.from[round] += weights.turn.step / CHUNK * unit;
    }
}

// Lanes read what others asked for.
template <int words>
DEVICE void await_chunk(const Integers<words>&) {
    copy_async_wait<Integers<words>::DEPTH - 1>();
    __syncwarp();
}

// Two of bf16.
#define ONES 0x3f803f80u

// Nibbles or bytes in the low bits of both halves of a word, as bf16: below 128 they are the fraction of 128 + x, of which
// 128 is taken. Signed bytes have one bit more, worth -128.
template <int words>
DEVICE u32 numbers(u32 pair) {
    if (words == 1) return add_bf16((pair & 0x000f000fu) | 0x43004300u, 0xc300c300u);
    return add_bf16((pair & 0x007f007fu) | 0x43004300u, (pair & 0x00800080u) | 0xc300c300u);
}

// What a lane has of a group's unit.
template <int words>
struct Own {
    u32 integers[2 * words];
    u32 scales[2];
};

template <int words>
DEVICE Own<words> own_of(const u8* unit) {
    int lane = threadIdx.x % WARP;
    uint2 scales = ((const uint2*)(unit + Integers<words>::SCALES))[lane / 4];
    if constexpr (words == 1) {
        uint2 integers = ((const uint2*)unit)[lane];
        return {{integers.x, integers.y}, {scales.x, scales.y}};
    } else {
        uint4 integers = ((const uint4*)unit)[lane];
        return {{integers.x, integers.y, integers.z, integers.w}, {scales.x, scales.y}};
    }
}

// A piece of eight, pair by pair.
template <int words>
DEVICE void unpack(u32 (&to)[4], const Own<words>& own, int half) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[i] = numbers<words>(words == 1 ? own.integers[half] >> 4 * i : own.integers[half * 2 + i / 2] >> 8 * (i % 2));
    }
}

// Sums of integers are exact but for those of x; what each half adds has its row's scale, and its minimum by the sum of x.
template <int words>
DEVICE void multiply(float (&sums)[2][4], const Integers<words>& weights, const uint4* staged, int lines) {
    const int unit = Integers<words>::UNIT;
    const u8* chunk = weights.ring + weights.turn.slot * 2 * unit;
    Own<words> own[2] = {own_of<words>(chunk), own_of<words>(chunk + unit)};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 x = staged[half * 4 * lines];
        u32 first[4], second[4];
        unpack(first, own[0], half);
        unpack(second, own[1], half);
        float products[4] = {}, totals[4] = {};
        mma_bf16(products, {first[0], second[0], first[1], second[1]}, {x.x, x.y});
        mma_bf16(products, {first[2], second[2], first[3], second[3]}, {x.z, x.w});
        mma_bf16(totals, {ONES, ONES, ONES, ONES}, {x.x, x.y});
        mma_bf16(totals, {ONES, ONES, ONES, ONES}, {x.z, x.w});
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 scales = own[i / 2].scales[half];
            sums[half][i] += from_f16(scales & 0xffffu) * products[i] + from_f16(scales >> 16) * totals[i];
        }
    }
}

// Goes on to the next slot, having asked for a chunk if there is one: where there is none, the empty group keeps the count.
template <class Weights>
DEVICE void advance(Weights& weights) {
    if (weights.turn.left > 0) {
        ask(weights);
        weights.turn.left -= weights.turn.step;
    }
    copy_async_commit();
    weights.turn.slot = weights.turn.slot + 1 == Weights::DEPTH ? 0 : weights.turn.slot + 1;
}
