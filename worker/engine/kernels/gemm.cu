// Products for many rows: out = activation(a * b^T + bias [+ out]), on tensor cores.
//
// A block makes one tile of `out`. Both inputs pass through a ring of stages in shared memory, filled by asynchronous
// copies; warps multiply out of registers, which they load one step ahead where there are enough. The columns of a and
// b may be split among blocks (gridDim.z): each leaves its sums in `workspace`, and the last to arrive adds them up,
// always in one order.
//
// Every kernel but gemm_any: grid (ceil(n / tile_n), ceil(m / tile_m), splits), k % 8 == 0, a and b 16-byte aligned,
// b of constants. Threads, dynamic shared memory, and blocks that a multiprocessor of 227 KiB holds:
//     gemm_256_192   256   229376 bytes   1
//     gemm_128_256   256   196608 bytes   1
//     gemm_128_128   512   196608 bytes   1
//     gemm_64_256    256   204800 bytes   1
//     gemm_64_128    256    98304 bytes   2
//     gemm_64_64     128    65536 bytes   3
//     gemm_32_128    256   102400 bytes   2
//     gemm_16_128    128    73728 bytes   3
//     gemm_16_64     128    71680 bytes   3
// The second cache feeds a multiprocessor slower than its tensor cores take: large tiles are for its sake. Few rows
// wait for the weights alone: their kernels have long rings, so that much is on its way.
// With splits > 1, at most one for every 64 columns, `workspace` has tiles * splits * tile_m * tile_n floats, and
// `counters` a zero for every tile, which is zero again afterwards.

#include "device.cuh"

// Columns of a stage: rows of 128 bytes, which eight lanes copy.
#define STAGE_COLUMNS 64
#define ROW_BYTES 128
#define PIECE 8
#define PIECES (STAGE_COLUMNS / PIECE)
// A tensor core's product takes 16 columns.
#define STEPS (STAGE_COLUMNS / 16)
// Tiles below each other that are made at about the same time, while the second cache has the rows of b they share.
#define TILES_DOWN 16

template <int tile_m_, int tile_n_, int warp_m_, int warp_n_, int stages_>
struct Shape {
    static constexpr int tile_m = tile_m_;
    static constexpr int tile_n = tile_n_;
    static constexpr int warp_m = warp_m_;
    static constexpr int warp_n = warp_n_;
    static constexpr int stages = stages_;
    static constexpr int warps_n = tile_n / warp_n;
    static constexpr int threads = WARP * warps_n * (tile_m / warp_m);
    static constexpr int products_m = warp_m / 16;
    static constexpr int products_n = warp_n / 8;
    // How far apart the rows are that a thread copies a piece of, of how many it does, and of how many in a step; in a
    // stage's last step of none.
    static constexpr int rows_apart = threads / PIECES;
    static constexpr int a_copies = tile_m / rows_apart;
    static constexpr int b_copies = tile_n / rows_apart;
    static constexpr int copies = a_copies + b_copies;
    static constexpr int copies_a_step = (copies + STEPS - 2) / (STEPS - 1);
    static constexpr int a_bytes = tile_m * ROW_BYTES;
    static constexpr int stage_bytes = (tile_m + tile_n) * ROW_BYTES;
    // A warp loads its inputs a step ahead if there are registers for them twice, of which addresses take about 24.
    static constexpr int registers = threads > 256 ? 65536 / threads : 255;
    static constexpr int inputs = products_m * 4 + products_n * 2;
    static constexpr int buffers = products_m * products_n * 4 + 2 * inputs + 24 <= registers ? 2 : 1;
    // A row of a warp's sums in shared memory; eight more floats keep the rows that a store meets in different banks.
    static constexpr int sheet_row = warp_n + 8;
    static constexpr int sheet = warp_m * sheet_row;
    // How a warp walks over its sums, strip by strip: lanes side by side with four columns each, as many rows as that
    // leaves, and of these several under way.
    static constexpr int strip = warp_n % 64 == 0 ? 64 : warp_n % 32 == 0 ? 32 : 16;
    static constexpr int lanes_across = strip / 4;
    static constexpr int rows_down = WARP / lanes_across;
    static constexpr int vectors = warp_m / rows_down < 4 ? warp_m / rows_down : 4;
    static_assert(threads / WARP * sheet * 4 <= stages * stage_bytes, "the sums fit where the inputs were");
    static_assert(tile_m % rows_apart == 0 && tile_n % rows_apart == 0, "all threads copy as much");
    static_assert(warp_m % (rows_down * vectors) == 0, "every lane has whole batches of vectors");
    static_assert(warp_n % strip == 0, "a warp's columns are whole strips");
};

struct Product {
    const bf16* a;
    const bf16* b;
    int m, n, k;
    const float* bias;
    int activation, add;
    void* out;
    int out_kind;
    float* workspace;
    u32* counters;
};

struct Tile {
    int number, row, column;
};

template <class S>
DEVICE Tile tile_of_block() {
    int across = gridDim.x;
    int block = blockIdx.y * across + blockIdx.x;
    int band = block / (TILES_DOWN * across);
    int within = block % (TILES_DOWN * across);
    int down = min((int)gridDim.y - band * TILES_DOWN, TILES_DOWN);
    int y = band * TILES_DOWN + within % down;
    int x = within / down;
    return {y * across + x, y * S::tile_m, x * S::tile_n};
}

// A piece of 16 bytes lies in its row at its number XOR the row's: neither the eight lanes that copy a row nor the
// eight rows of a matrix that ldmatrix takes meet in a bank.
DEVICE int swizzled(int row, int piece) { return row * ROW_BYTES + ((piece ^ (row % PIECES)) << 4); }

// What a thread copies of a matrix's rows: the same piece of several.
struct Copier {
    const bf16* from;
    int rows_left;
};

// Both matrices' copiers: how many numbers lie between a thread's rows, and how many columns are still to come.
struct Inputs {
    Copier a, b;
    int apart, columns_left;
};

// Columns from `end` on pass for zeros, so that copies may run on past the last stage.
template <class S>
DEVICE Inputs inputs_of_thread(const Product& p, Tile tile, int first, int end) {
    int row = threadIdx.x / PIECES;
    int column = first + threadIdx.x % PIECES * PIECE;
    Copier a = {p.a + (u64)(tile.row + row) * p.k + column, p.m - tile.row - row};
    Copier b = {p.b + (u64)(tile.column + row) * p.k + column, p.n - tile.column - row};
    return {a, b, S::rows_apart * p.k, end - column};
}

// Copies the thread's piece `i` of a stage, each in turn, if it has columns. What lies outside the matrix is zero.
template <class S>
DEVICE void copy(Copier& copier, u8* to, int i, int apart, bool columns) {
    bool valid = i * S::rows_apart < copier.rows_left && columns;
    copy_async16(to + i * S::rows_apart * ROW_BYTES, copier.from, valid);
    copier.from += apart;
}

// From the end of a stage's `copies` to the next stage's first.
DEVICE void next_stage(Copier& copier, int copies, int apart) {
    copier.from += STAGE_COLUMNS - (long long)apart * copies;
}

// What a warp multiplies in a step: rows of a, and pairs of eight rows of b.
template <class S>
struct Fragments {
    u32 a[S::products_m][4];
    u32 b[S::products_n / 2][4];
};

// Where a lane's rows begin in the first step, of a and of b.
struct Corner {
    int a, b;
};

template <class S>
DEVICE Corner corner_of_lane() {
    int lane = threadIdx.x % WARP;
    int warp = threadIdx.x / WARP;
    int a_row = warp / S::warps_n * S::warp_m + lane % 16;
    int b_row = warp % S::warps_n * S::warp_n + lane / 16 * 8 + lane % 8;
    return {swizzled(a_row, lane / 16), S::a_bytes + swizzled(b_row, lane / 8 % 2)};
}

template <class S>
DEVICE void load_fragments(Fragments<S>& to, const u8* ring, int stage, Corner corner, int step) {
    // A step is two pieces, and the swizzle an XOR: so is the way from the first step's piece to this one's. Stages are
    // whole rows, which the XOR leaves alone; taken after the sum it needs no register for every step.
    const u8* a = ring + ((stage + corner.a) ^ (step << 5));
    const u8* b = ring + ((stage + corner.b) ^ (step << 5));
#pragma unroll
    for (int i = 0; i < S::products_m; i++) load_matrix4(to.a[i], a + i * 16 * ROW_BYTES);
#pragma unroll
    for (int j = 0; j < S::products_n / 2; j++) load_matrix4(to.b[j], b + j * 16 * ROW_BYTES);
}

template <class S>
DEVICE void multiply(float (&sums)[S::products_m][S::products_n][4], const Fragments<S>& by) {
#pragma unroll
    for (int i = 0; i < S::products_m; i++) {
#pragma unroll
        for (int at = 0; at < S::products_n; at++) {
            // To and fro, so that a product has one input in common with the last.
            int j = i % 2 ? S::products_n - 1 - at : at;
            u32 b[2] = {by.b[j / 2][j % 2 * 2], by.b[j / 2][j % 2 * 2 + 1]};
            mma_bf16(sums[i][j], by.a[i], b);
        }
    }
}

// The sums of a warp over `stages` stages from `first` on.
template <class S>
DEVICE void accumulate(float (&sums)[S::products_m][S::products_n][4], const Product& p, Tile tile, int first,
                       int stages, u8* ring) {
    int end = min(p.k, (first + stages) * STAGE_COLUMNS);
    Inputs in = inputs_of_thread<S>(p, tile, first * STAGE_COLUMNS, end);
    constexpr int ahead = S::stages - 1;
    int place = swizzled(threadIdx.x / PIECES, threadIdx.x % PIECES);
#pragma unroll
    for (int stage = 0; stage < ahead; stage++) {
        u8* to = ring + stage * S::stage_bytes + S::a_bytes + place;
        bool columns = in.columns_left > stage * STAGE_COLUMNS;
#pragma unroll
        for (int i = 0; i < S::b_copies; i++) copy<S>(in.b, to, i, in.apart, columns);
        next_stage(in.b, S::b_copies, in.apart);
    }
    grid_release();
    grid_wait();
#pragma unroll
    for (int stage = 0; stage < ahead; stage++) {
        u8* to = ring + stage * S::stage_bytes + place;
        bool columns = in.columns_left > stage * STAGE_COLUMNS;
#pragma unroll
        for (int i = 0; i < S::a_copies; i++) copy<S>(in.a, to, i, in.apart, columns);
        next_stage(in.a, S::a_copies, in.apart);
        copy_async_commit();
    }
    in.columns_left -= ahead * STAGE_COLUMNS;
    copy_async_wait<ahead - 1>();
    __syncthreads();

    Corner corner = corner_of_lane<S>();
    Fragments<S> fragments[S::buffers];
    int reading = 0;
    int writing = ahead * S::stage_bytes;
    load_fragments(fragments[0], ring, 0, corner, 0);
#pragma unroll 1
    for (int stage = 0; stage < stages; stage++) {
        u8* to = ring + writing + place;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            // The other warps have work while this one loads.
            if (S::buffers == 1) multiply<S>(sums, fragments[0]);
            if (step == STEPS - 1) {
                next_stage(in.a, S::a_copies, in.apart);
                next_stage(in.b, S::b_copies, in.apart);
                in.columns_left -= STAGE_COLUMNS;
                // All warps have this stage's last fragments, and the next stage is there.
                copy_async_commit();
                copy_async_wait<ahead - 1>();
                __syncthreads();
                writing = reading;
                reading = reading == ahead * S::stage_bytes ? 0 : reading + S::stage_bytes;
            }
            load_fragments(fragments[(step + 1) % S::buffers], ring, reading, corner, (step + 1) % STEPS);
            // Some copies in each step: many at once would keep the fragments waiting.
#pragma unroll
            for (int i = 0; i < S::copies; i++) {
                if (i / S::copies_a_step != step) continue;
                if (i < S::a_copies) {
                    copy<S>(in.a, to, i, in.apart, in.columns_left > 0);
                } else {
                    copy<S>(in.b, to + S::a_bytes, i - S::a_copies, in.apart, in.columns_left > 0);
                }
            }
            if (S::buffers == 2) multiply<S>(sums, fragments[step % 2]);
        }
    }
    copy_async_wait<0>();
    __syncthreads();
}

// Lays a warp's sums out as rows, in shared memory of its own.
template <class S>
DEVICE void lay_out(const float (&sums)[S::products_m][S::products_n][4], float* sheet) {
    int lane = threadIdx.x % WARP;
    float* to = sheet + lane / 4 * S::sheet_row + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < S::products_m; i++) {
#pragma unroll
        for (int j = 0; j < S::products_n; j++) {
            float* at = to + i * 16 * S::sheet_row + j * 8;
            *(float2*)at = make_float2(sums[i][j][0], sums[i][j][1]);
            *(float2*)(at + 8 * S::sheet_row) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
    __syncwarp();
}

// The four columns of a lane in a strip, of the rows it walks over: the first within the sheet, and within the tile.
struct Walk {
    int row, column, tile_row, tile_column;
};

template <class S>
DEVICE Walk walk_of_lane(int strip) {
    int lane = threadIdx.x % WARP;
    int warp = threadIdx.x / WARP;
    int row = lane / S::lanes_across;
    int column = strip + lane % S::lanes_across * 4;
    return {row, column, warp / S::warps_n * S::warp_m + row, warp % S::warps_n * S::warp_n + column};
}

DEVICE float4 sum4(float4 x, float4 y) { return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w); }

// Whether this block is the last of a tile's to get here; what the others wrote before is seen by the last.
DEVICE bool last_of_tile(u32* counter) {
    SHARED u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == gridDim.z - 1;
        if (last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// Where a lane's part of a tile lies in the workspace, of the first block's sums.
template <class S>
DEVICE float* parts_of_lane(const Product& p, Tile tile, Walk walk) {
    u64 first = (u64)tile.number * gridDim.z * (S::tile_m * S::tile_n);
    return p.workspace + first + walk.tile_row * S::tile_n + walk.tile_column;
}

// Leaves a warp's sums for the block that comes last.
template <class S>
DEVICE void leave(const Product& p, Tile tile, const float* sheet) {
    for (int strip = 0; strip < S::warp_n; strip += S::strip) {
        Walk walk = walk_of_lane<S>(strip);
        int rows = min(p.m - tile.row - walk.tile_row, S::warp_m);
        float* to = parts_of_lane<S>(p, tile, walk) + (u64)blockIdx.z * (S::tile_m * S::tile_n);
        const float* sums = sheet + walk.row * S::sheet_row + walk.column;
#pragma unroll 4
        for (int row = 0; row < rows; row += S::rows_down) {
            *(float4*)(to + row * S::tile_n) = *(const float4*)(sums + row * S::sheet_row);
        }
    }
}

// Adds up what all blocks left of a strip.
template <class S>
DEVICE void gather(const Product& p, Tile tile, int strip, float* sheet) {
    Walk walk = walk_of_lane<S>(strip);
    int rows = min(p.m - tile.row - walk.tile_row, S::warp_m);
    const float* parts = parts_of_lane<S>(p, tile, walk);
    float* sums = sheet + walk.row * S::sheet_row + walk.column;
    for (int row = 0; row < rows; row += S::rows_down * S::vectors) {
        float4 sum[S::vectors] = {};
#pragma unroll 4
        for (int z = 0; z < (int)gridDim.z; z++) {
            const float* part = parts + (u64)z * (S::tile_m * S::tile_n);
#pragma unroll
            for (int i = 0; i < S::vectors; i++) {
                int at = row + i * S::rows_down;
                if (at < rows) sum[i] = sum4(sum[i], *(const float4*)(part + at * S::tile_n));
            }
        }
#pragma unroll
        for (int i = 0; i < S::vectors; i++) *(float4*)(sums + (row + i * S::rows_down) * S::sheet_row) = sum[i];
    }
}

// Brings the sums of a tile's blocks together, in the sheets of the block that comes last.
template <class S>
DEVICE bool merge(const Product& p, Tile tile, float* sheet) {
    leave<S>(p, tile, sheet);
    if (!last_of_tile(p.counters + tile.number)) return false;
#pragma unroll 1
    for (int strip = 0; strip < S::warp_n; strip += S::strip) gather<S>(p, tile, strip, sheet);
    return true;
}

// Up to four numbers of a row; as a vector where rows are made of such.
DEVICE float4 load_columns(const void* from, int kind, u64 at, int count, bool vectors) {
    if (vectors) return load4(from, kind, at);
    return make_float4(load1(from, kind, at), count > 1 ? load1(from, kind, at + 1) : 0.0f,
                       count > 2 ? load1(from, kind, at + 2) : 0.0f, count > 3 ? load1(from, kind, at + 3) : 0.0f);
}

DEVICE void store_columns(void* to, int kind, u64 at, int count, bool vectors, float4 x) {
    if (vectors) {
        store4(to, kind, at, x);
        return;
    }
    store1(to, kind, at, x.x);
    if (count > 1) store1(to, kind, at + 1, x.y);
    if (count > 2) store1(to, kind, at + 2, x.z);
    if (count > 3) store1(to, kind, at + 3, x.w);
}

// What a lane writes: its columns, and of which rows.
struct Output {
    const float* bias;
    u64 first;
    int rows, columns;
};

// Writes a warp's sums, or leaves them where they were if an activation is to follow. Kind and vectors are constants of
// the caller, lest the loads of a batch wait for each other's branches.
template <class S>
DEVICE void write_sums(const Product& p, Output to, float* sums, int kind, bool vectors) {
    float4 bias = to.bias ? load_columns(to.bias, F32, 0, to.columns, vectors) : float4{};
#pragma unroll 1
    for (int row = 0; row < to.rows; row += S::rows_down * S::vectors) {
        float4 before[S::vectors] = {};
#pragma unroll
        for (int i = 0; i < S::vectors; i++) {
            int at = row + i * S::rows_down;
            if (!p.add || at >= to.rows) continue;
            before[i] = load_columns(p.out, kind, to.first + (u64)at * p.n, to.columns, vectors);
        }
        float4 x[S::vectors];
#pragma unroll
        for (int i = 0; i < S::vectors; i++) {
            float4* sum = (float4*)(sums + (row + i * S::rows_down) * S::sheet_row);
            x[i] = sum4(sum4(*sum, bias), before[i]);
            if (p.activation != NONE) *sum = x[i];
        }
        if (p.activation != NONE) continue;
#pragma unroll
        for (int i = 0; i < S::vectors; i++) {
            int at = row + i * S::rows_down;
            if (at >= to.rows) continue;
            store_columns(p.out, kind, to.first + (u64)at * p.n, to.columns, vectors, x[i]);
        }
    }
}

// Writes a warp's sums after their activation: not many at once, for the code of one is long.
template <class S>
DEVICE void write_activated(const Product& p, Output to, const float* sums) {
#pragma unroll 1
    for (int row = 0; row < to.rows; row += S::rows_down) {
        float4 x = *(const float4*)(sums + row * S::sheet_row);
        x = make_float4(activate(p.activation, x.x), activate(p.activation, x.y), activate(p.activation, x.z),
                        activate(p.activation, x.w));
        store_columns(p.out, p.out_kind, to.first + (u64)row * p.n, to.columns, p.n % 4 == 0, x);
    }
}

// Writes a strip of a warp's sums to `out`.
template <class S>
DEVICE void finish(const Product& p, Tile tile, int strip, float* sheet) {
    Walk walk = walk_of_lane<S>(strip);
    int row = tile.row + walk.tile_row;
    int column = tile.column + walk.tile_column;
    if (column >= p.n) return;
    Output to = {p.bias ? p.bias + column : nullptr, (u64)row * p.n + column, min(p.m - row, S::warp_m), p.n - column};
    float* sums = sheet + walk.row * S::sheet_row + walk.column;
    if (p.n % 4 != 0) {
        write_sums<S>(p, to, sums, p.out_kind, false);
    } else if (p.out_kind == F32) {
        write_sums<S>(p, to, sums, F32, true);
    } else {
        write_sums<S>(p, to, sums, BF16, true);
    }
    if (p.activation != NONE) write_activated<S>(p, to, sums);
}

template <class S>
DEVICE void product(const Product& p, u8* ring) {
    Tile tile = tile_of_block<S>();
    u32 stages = (p.k + STAGE_COLUMNS - 1) / STAGE_COLUMNS;
    int first = stages * blockIdx.z / gridDim.z;
    int end = stages * (blockIdx.z + 1) / gridDim.z;
    float sums[S::products_m][S::products_n][4] = {};
    accumulate<S>(sums, p, tile, first, end - first, ring);
    float* sheet = (float*)ring + threadIdx.x / WARP * S::sheet;
    lay_out<S>(sums, sheet);
    if (gridDim.z > 1 && !merge<S>(p, tile, sheet)) return;
#pragma unroll 1
    for (int strip = 0; strip < S::warp_n; strip += S::strip) finish<S>(p, tile, strip, sheet);
}

#define GEMM(name, ...)                                                                                               \
    typedef Shape<__VA_ARGS__> name##_shape;                                                                          \
    KERNEL(name, name##_shape::threads)                                                                               \
    (const bf16* a, const bf16* b, int m, int n, int k, const float* bias, int activation, int add, void* out,        \
     int out_kind, float* workspace, u32* counters) {                                                                 \
        DYNAMIC_SHARED(u8, ring);                                                                                     \
        product<name##_shape>({a, b, m, n, k, bias, activation, add, out, out_kind, workspace, counters}, ring);      \
    }

GEMM(gemm_256_192, 256, 192, 64, 96, 4)
GEMM(gemm_128_256, 128, 256, 64, 64, 4)
GEMM(gemm_128_128, 128, 128, 32, 32, 6)
GEMM(gemm_64_256, 64, 256, 32, 64, 5)
GEMM(gemm_64_128, 64, 128, 32, 32, 4)
GEMM(gemm_64_64, 64, 64, 32, 32, 4)
GEMM(gemm_32_128, 32, 128, 16, 32, 5)
GEMM(gemm_16_128, 16, 128, 16, 32, 4)
GEMM(gemm_16_64, 16, 64, 16, 16, 7)

// Any k, a of any kind, single precision: for shapes and kinds that the others do not take. Tiles of 16 by 16, 256
// threads, grid (ceil(n / 16), ceil(m / 16)).
KERNEL(gemm_any, 256)
(const void* a, int a_kind, const bf16* b, int m, int n, int k, const float* bias, int activation, int add, void* out,
 int out_kind) {
    SHARED float a_tile[16][17];
    SHARED float b_tile[16][17];
    int x = threadIdx.x % 16;
    int y = threadIdx.x / 16;
    int row = blockIdx.y * 16 + y;
    int column = blockIdx.x * 16 + x;
    int b_row = blockIdx.x * 16 + y;
    float sum = 0.0f;
    grid_release();
    grid_wait();
    for (int first = 0; first < k; first += 16) {
        bool inside = first + x < k;
        a_tile[y][x] = inside && row < m ? load1(a, a_kind, (u64)row * k + first + x) : 0.0f;
        b_tile[y][x] = inside && b_row < n ? from_bf16(b[(u64)b_row * k + first + x]) : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; i++) sum += a_tile[y][i] * b_tile[x][i];
        __syncthreads();
    }
    if (row >= m || column >= n) return;
    u64 at = (u64)row * n + column;
    if (bias) sum += bias[column];
    if (add) sum += load1(out, out_kind, at);
    store1(out, out_kind, at, activate(activation, sum));
}
