// Products for up to eight rows, of weights that are read once: out = activation(w * f(x) + bias [+ out]), f a norm or
// nothing; and pairs of products that a gate joins.
//
// Weights come as stream.cuh says, and begin to come before the launches that make x are done. The lines they meet are
// rows of x in bf16. One row or two that are not bf16 as they come have two lines each, their upper and their lower parts,
// so that x keeps 16 bits. A norm takes no time of its own: its factor goes to the sums.
//
// 256 or 512 threads, grid ceil(n / outputs). `outputs`, those of a block, are a multiple of 8, at most half as many as
// threads, of gemv_glu a quarter; the fewer, the more warps share a row of w. k % 8 == 0; x, norm and w are 16-byte
// aligned; of integers k % 32 == 0, and of gemv_glu n % 8 == 0. Lines: rows, twice as many where rows <= 2 and (norm or x
// is f32). Dynamic shared memory: threads * 256 + min(2 * lines * (k rounded up to 64), threads * 128) bytes.

#include "stream.cuh"

#define THREADS_MAX 512
#define ROWS_MAX 8
// Up to so many rows have lower parts too.
#define EXACT_ROWS_MAX 2
// Numbers of x that shared memory takes, for each thread: two parts for eight lines are two chunks of every warp each.
#define NUMBERS_OF_THREAD 64
#define PART_CHUNKS_MIN 2
// Pieces of x that a thread asks for at once.
#define BATCH 2

struct Input {
    const void* x;
    int kind, rows;
    const float* norm;
    float epsilon;
    const void* w;
    int n, k;
};

// Whether x goes to shared memory as it lies.
DEVICE bool is_copied(const Input& in) { return in.kind == BF16 && !in.norm; }

DEVICE bool has_lower(const Input& in) { return !is_copied(in) && in.rows <= EXACT_ROWS_MAX; }

DEVICE int lines_of(const Input& in) { return has_lower(in) ? 2 * in.rows : in.rows; }

DEVICE int warps_of_block() { return blockDim.x / WARP; }

DEVICE Team team_of_warp(int teams) {
    int warp = threadIdx.x / WARP;
    int number = warp % teams;
    return {number, warp / teams, (warps_of_block() - 1 - number) / teams + 1};
}

// Columns of all lines that are laid out in shared memory, and where the next will be.
struct Part {
    int first, columns;
    uint4 *staged, *next;
};

DEVICE int columns_of_chunks(int k) { return (k + CHUNK - 1) / CHUNK * CHUNK; }

// All columns, or as many as half of the memory takes.
DEVICE Part first_part(const Input& in, uint4* staged) {
    int all = columns_of_chunks(in.k);
    int most = (int)blockDim.x * NUMBERS_OF_THREAD / lines_of(in);
    int columns = all <= most ? all : most / 2 / CHUNK * CHUNK;
    return {0, columns, staged, staged + columns / PIECE * lines_of(in)};
}

DEVICE Part part_after(const Part& part, const Input& in) {
    int first = part.first + part.columns;
    return {first, min(part.columns, columns_of_chunks(in.k) - first), part.next, part.staged};
}

// Where a line's piece goes. Lanes read pieces as they read those of the weights, which makes the order (32 columns,
// line, piece).
DEVICE uint4* place_of(const Part& part, int lines, int line, int piece) {
    return part.staged + (piece / 4 * lines + line) * 4 + piece % 4;
}

// Which pieces of x a thread lays out: of one row, each `step` after the last.
struct Share {
    int row, first, step;
};

DEVICE Share share_of(Team readers) {
    return {readers.number, readers.member * WARP + (int)threadIdx.x % WARP, readers.members * WARP};
}

// Begins to copy x as it is.
DEVICE void copy_part(const Input& in, Share share, const Part& part) {
    const bf16* row = (const bf16*)in.x + (u64)share.row * in.k + part.first;
    for (int piece = share.first; piece < part.columns / PIECE; piece += share.step) {
        bool valid = part.first + piece * PIECE < in.k;
        copy_async16(place_of(part, in.rows, share.row, piece), row + piece * PIECE, valid);
    }
    copy_async_commit();
}

// Eight numbers as they lie in memory.
struct Piece {
    uint4 first, second;
};

DEVICE Piece load_piece(const void* from, int kind, u64 at) {
    if (kind == BF16) return {*(const uint4*)((const bf16*)from + at), {}};
    const uint4* numbers = (const uint4*)((const float*)from + at);
    return {numbers[0], numbers[1]};
}

DEVICE void unpack(float (&to)[PIECE], const Piece& piece, int kind) {
    const u32 words[8] = {piece.first.x,  piece.first.y,  piece.first.z,  piece.first.w,
                          piece.second.x, piece.second.y, piece.second.z, piece.second.w};
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        to[i] = kind == F32 ? __uint_as_float(words[i]) : i % 2 ? high(words[i / 2]) : low(words[i / 2]);
    }
}

// Pieces of x that a thread converts at once, and the norm's weights for them.
struct Batch {
    Piece x[BATCH], norm[BATCH];
};

// Pieces of a row from one on, each a step after the last; zeros past the last column.
DEVICE void load_pieces(Piece (&pieces)[BATCH], const void* row, int kind, int k, Share share, const Part& part,
                        int first) {
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        int piece = first + i * share.step;
        int column = part.first + piece * PIECE;
        pieces[i] = {};
        if (piece < part.columns / PIECE && column < k) pieces[i] = load_piece(row, kind, column);
    }
}

DEVICE void load_x(Batch& batch, const Input& in, Share share, const Part& part, int first) {
    const u8* row = (const u8*)in.x + (u64)share.row * in.k * (in.kind == F32 ? sizeof(float) : sizeof(bf16));
    load_pieces(batch.x, row, in.kind, in.k, share, part, first);
}

DEVICE void load_norm(Batch& batch, const Input& in, Share share, const Part& part, int first) {
    if (in.norm) load_pieces(batch.norm, in.norm, F32, in.k, share, part, first);
}

// Multiplies x by the norm's weights; returns the sum of its squares before that.
DEVICE float weigh(float (&x)[PIECE], const Piece& norm) {
    float weights[PIECE];
    float squares = 0.0f;
    unpack(weights, norm, F32);
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        squares += x[i] * x[i];
        x[i] *= weights[i];
    }
    return squares;
}

// What rounding to bf16 leaves of a pair.
DEVICE u32 lower_of(float x, float y, u32 upper) { return pack_bf16(x - low(upper), y - high(upper)); }

DEVICE void put_piece(uint4* to, const float (&x)[PIECE], bool lower) {
    uint4 upper = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])};
    to[0] = upper;
    if (!lower) return;
    // The next line is four pieces behind.
    to[4] = make_uint4(lower_of(x[0], x[1], upper.x), lower_of(x[2], x[3], upper.y), lower_of(x[4], x[5], upper.z),
                       lower_of(x[6], x[7], upper.w));
}

// Lays x out, times the norm's weights, the first batch of both being loaded; returns the sum of the squares of x.
DEVICE float convert_part(const Input& in, Share share, const Part& part, Batch& batch) {
    bool lower = has_lower(in);
    int line = lower ? 2 * share.row : share.row;
    int lines = lines_of(in);
    int pieces = part.columns / PIECE;
    float squares = 0.0f;
    for (int first = share.first; first < pieces;) {
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int piece = first + i * share.step;
            if (piece >= pieces) break;
            float x[PIECE];
            unpack(x, batch.x[i], in.kind);
            if (in.norm) squares += weigh(x, batch.norm[i]);
            put_piece(place_of(part, lines, line, piece), x, lower);
        }
        first += BATCH * share.step;
        if (first >= pieces) break;
        load_norm(batch, in, share, part, first);
        load_x(batch, in, share, part, first);
    }
    return squares;
}

// Lays a part out while another is multiplied.
DEVICE float lay_out(const Input& in, Share share, const Part& part, Batch& batch) {
    if (is_copied(in)) {
        copy_part(in, share, part);
        return 0.0f;
    }
    load_norm(batch, in, share, part, share.first);
    load_x(batch, in, share, part, share.first);
    return convert_part(in, share, part, batch);
}

// Lanes of lines that are not there take the last one again; nobody asks for their sums.
template <class Weights>
DEVICE void multiply_part(float (&sums)[2][4], Weights& weights, const Part& part, int lines) {
    int lane = threadIdx.x % WARP;
    const uint4* staged = part.staged + min(lane / 4, lines - 1) * 4 + lane % 4;
    while (weights.turn.column < part.first + part.columns) {
        await_chunk(weights);
        multiply(sums, weights, staged + (weights.turn.column - part.first) / PIECE * lines, lines);
        advance(weights);
        weights.turn.column += weights.turn.step;
    }
}

DEVICE u8* ring_of(u8* rings, int warp) { return rings + warp * RING_BYTES; }

// What a warp has summed. It lies where the warp's ring was.
struct Products {
    float of[TILE][ROWS_MAX];
};

DEVICE Products& products_of(u8* rings, int warp) { return *(Products*)ring_of(rings, warp); }

DEVICE void leave(Products& to, const float (&sums)[2][4], bool lower) {
    int lane = threadIdx.x % WARP;
    copy_async_wait<0>();
    __syncwarp();
#pragma unroll
    for (int group = 0; group < 2; group++) {
        float first = sums[0][group * 2] + sums[1][group * 2];
        float second = sums[0][group * 2 + 1] + sums[1][group * 2 + 1];
        float* rows = to.of[group * GROUP + lane / 4];
        if (lower) {
            rows[lane % 4] = first + second;
        } else {
            *(float2*)(rows + lane % 4 * 2) = make_float2(first, second);
        }
    }
}

// What norms need: the squares that every thread has summed, and what they make of them, a factor a row.
struct Norms {
    float squares[THREADS_MAX];
    float factors[ROWS_MAX];
};

// The last reader of a row does it, which has the fewest chunks: its products wait, those of the others do not.
DEVICE void leave_factor(const Input& in, Team readers, Norms& norms) {
    if (!in.norm || readers.member < readers.members - 1) return;
    int lane = threadIdx.x % WARP;
    float sum = 0.0f;
#pragma unroll 4
    for (int warp = readers.number; warp < warps_of_block(); warp += in.rows) sum += norms.squares[warp * WARP + lane];
    float reciprocal = 1.0f / in.k;
    sum = warp_sum(sum);
    if (lane == 0) norms.factors[readers.number] = rsqrtf(sum * reciprocal + in.epsilon);
}

// What is under way once x may be read.
template <class Weights>
struct Flight {
    Weights weights;
    Team readers;
    Part part;
    Batch batch;
};

// All weights come from afar and x has been written just now: the weights are asked for before, x as soon as it may be.
template <class Weights>
DEVICE void begin(Flight<Weights>& flight, const Input& in, Team team, const Groups& groups, u8* rings) {
    open(flight.weights, in.w, in.k, team, groups, ring_of(rings, threadIdx.x / WARP));
    flight.readers = team_of_warp(in.rows);
    flight.part = first_part(in, (uint4*)ring_of(rings, warps_of_block()));
    Share share = share_of(flight.readers);
    load_norm(flight.batch, in, share, flight.part, share.first);
#pragma unroll
    for (int i = 0; i < Weights::DEPTH; i++) advance(flight.weights);
    grid_release();
    grid_wait();
    if (is_copied(in)) {
        copy_part(in, share, flight.part);
    } else {
        load_x(flight.batch, in, share, flight.part, share.first);
    }
}

// A part's columns are laid out while those of the part before are multiplied, in the other half of the memory.
template <class Weights>
DEVICE void sum_products(const Input& in, Flight<Weights>& flight, u8* rings, Norms& norms) {
    Share share = share_of(flight.readers);
    Part part = flight.part;
    int lines = lines_of(in);
    float sums[2][4] = {};
    float squares = 0.0f;
    if (is_copied(in)) {
        copy_async_wait<0>();
    } else {
        squares = convert_part(in, share, part, flight.batch);
    }
    norms.squares[threadIdx.x] = squares;
    __syncthreads();
    for (Part next = part_after(part, in); next.first < in.k; next = part_after(next, in)) {
        squares += lay_out(in, share, next, flight.batch);
        norms.squares[threadIdx.x] = squares;
        multiply_part(sums, flight.weights, part, lines);
        // A part is so many chunks at least: what was asked for before them is there when no more groups are pending.
        copy_async_wait<PART_CHUNKS_MIN>();
        __syncthreads();
        part = next;
    }
    leave_factor(in, flight.readers, norms);
    multiply_part(sums, flight.weights, part, lines);
    leave(products_of(rings, threadIdx.x / WARP), sums, has_lower(in));
    __syncthreads();
}

// An output of a tile, for a row: what the members of the team have of it, times the norm's factor.
DEVICE float product(const Input& in, u8* rings, const Norms& norms, int team, int teams, int output, int row) {
    float sum = 0.0f;
#pragma unroll 4
    for (int warp = team; warp < warps_of_block(); warp += teams) sum += products_of(rings, warp).of[output][row];
    return in.norm ? sum * norms.factors[row] : sum;
}

// What is added to a product: asked for early, and therefore left as it lies in memory.
struct Before {
    float bias;
    u32 out;
};

DEVICE Before load_before(const float* bias, int output, bool add, const void* out, int kind, u64 at) {
    Before before = {};
    if (bias) before.bias = bias[output];
    if (add && kind == F32) before.out = ((const u32*)out)[at];
    if (add && kind == BF16) before.out = ((const bf16*)out)[at];
    return before;
}

DEVICE float sum_of(Before before, int kind) {
    return before.bias + (kind == F32 ? __uint_as_float(before.out) : low(before.out));
}

// Row and output of the numbers that a block makes, as many a row as outputs rounded up to a power of two: no division.
struct Number {
    int row, output;
};

DEVICE int log2_up(int x) { return 32 - __clz(x - 1); }

DEVICE Number number_at(int at, int outputs) {
    int shift = log2_up(outputs);
    return {at >> shift, at & ((1 << shift) - 1)};
}

// What follows a product, and where it goes.
struct Finish {
    const float* bias;
    int activation, add;
    void* out;
    int out_kind;
};

template <class Weights>
DEVICE void multiply_few(const Input& in, const Finish& finish, int outputs) {
    DYNAMIC_SHARED(u8, rings);
    SHARED Norms norms;
    int block = blockIdx.x * outputs;
    int end = min(block + outputs, in.n);
    int teams = (outputs + TILE - 1) / TILE;
    Team team = team_of_warp(teams);
    int first = block + team.number * TILE;
    Number number = number_at(threadIdx.x, outputs);
    bool exists = number.row < in.rows && number.output < outputs && block + number.output < in.n;
    u64 at = (u64)number.row * in.n + block + number.output;
    Flight<Weights> flight;
    begin(flight, in, team, {{first, first + GROUP}, {end, end}}, rings);

    Before before = {};
    if (exists) before = load_before(finish.bias, block + number.output, finish.add, finish.out, finish.out_kind, at);
    sum_products(in, flight, rings, norms);
    for (int i = threadIdx.x; i < in.rows << log2_up(outputs); i += blockDim.x) {
        if (i >= blockDim.x) number = number_at(i, outputs);
        int output = block + number.output;
        if (number.output >= outputs || output >= in.n) continue;
        at = (u64)number.row * in.n + output;
        if (i >= blockDim.x) before = load_before(finish.bias, output, finish.add, finish.out, finish.out_kind, at);
        float y = product(in, rings, norms, number.output / TILE, teams, number.output % TILE, number.row);
        store1(finish.out, finish.out_kind, at, activate(finish.activation, y + sum_of(before, finish.out_kind)));
    }
}

// The rows of w are gates, then as many ups: a tile's two groups are the gates and the ups of the same outputs.
template <class Weights>
DEVICE void multiply_gated(const Input& in, int function, void* out, int out_kind, int outputs) {
    DYNAMIC_SHARED(u8, rings);
    SHARED Norms norms;
    int block = blockIdx.x * outputs;
    int teams = outputs / GROUP;
    Team team = team_of_warp(teams);
    int first = block + team.number * GROUP;
    Flight<Weights> flight;
    begin(flight, in, team, {{first, in.n + first}, {in.n, 2 * in.n}}, rings);
    sum_products(in, flight, rings, norms);
    for (int i = threadIdx.x; i < in.rows << log2_up(outputs); i += blockDim.x) {
        Number number = number_at(i, outputs);
        if (number.output >= outputs || block + number.output >= in.n) continue;
        int tile = number.output / GROUP;
        int output = number.output % GROUP;
        float gates = product(in, rings, norms, tile, teams, output, number.row);
        float ups = product(in, rings, norms, tile, teams, GROUP + output, number.row);
        store1(out, out_kind, (u64)number.row * in.n + block + number.output, gate(function, gates) * ups);
    }
}

#define GEMV(name, weights)                                                                                        \
    KERNEL(name, THREADS_MAX)                                                                                      \
    (const void* x, int x_kind, int rows, const float* norm, float epsilon, const void* w, int n, int k,           \
     const float* bias, int activation, int add, void* out, int out_kind, int outputs) {                           \
        multiply_few<weights>({x, x_kind, rows, norm, epsilon, w, n, k}, {bias, activation, add, out, out_kind},   \
                              outputs);                                                                            \
    }

#define GEMV_GLU(name, weights)                                                                                    \
    KERNEL(name, THREADS_MAX)                                                                                      \
    (const void* x, int x_kind, int rows, const float* norm, float epsilon, const void* w, int n, int k,           \
     int function, void* out, int out_kind, int outputs) {                                                         \
        multiply_gated<weights>({x, x_kind, rows, norm, epsilon, w, n, k}, function, out, out_kind, outputs);      \
    }

GEMV(gemv, Brains)
GEMV(gemv_nibbles, Nibbles)
GEMV(gemv_bytes, Bytes)
GEMV_GLU(gemv_glu, Brains)
GEMV_GLU(gemv_glu_nibbles, Nibbles)
GEMV_GLU(gemv_glu_bytes, Bytes)
