// Attention of many rows: a block takes a tile of queries of one head, a warp 16 or 32 of them, and sees the keys 64 at
// a time, with a running softmax of single precision. Keys and values to come are on their way to shared memory
// meanwhile.
//
// With row = lane / 4 and pair = lane % 4 * 2, a lane holds of 16 queries row and row + 8: scores of keys pair and
// pair + 1, and sums of numbers pair and pair + 1, of every 8.
//
// Launch: 128 threads; W is the greatest head width, width a multiple of 8, outputs 16-byte aligned.
//   prefill_W  grid (query_heads, tiles); buffers 16-byte aligned
//   encode_W   grid (heads, tiles); queries, keys and values of any alignment: each is copied fast where its address is
//              a multiple of 16 bytes and its stride one of 8
//   both       tiles of up to 64 queries, W = 128: 128; dynamic shared memory, in bytes: W = 32: 20480, 64: 36864,
//              128: 69632, 256: 101376
//   attend_plain       grid (heads, tiles); tiles of any size, any width, kind and alignment; slow
//   attention_weights  grid (query_count); likewise
// The bounds of prefill and encode are of registers: so many threads, in blocks of 128, fit a multiprocessor at once.

#include "device.cuh"

namespace attend {

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
// Keys of a tile.
constexpr int KEYS = 64;
// Queries that a matrix instruction takes.
constexpr int GROUP = 16;
constexpr float LOG2_E = 1.44269504088896341f;

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

template <int W>
struct Shape {
    // Groups of queries of a warp. With two, keys and values are read half as often from the second cache and from
    // shared memory, which would bound the matrix instructions; with one, few queries still make many blocks.
    static constexpr int GROUPS = W == 128 ? 2 : 1;
    // Queries of a warp and of a block.
    static constexpr int ROWS = GROUPS * GROUP;
    static constexpr int QUERIES = ROWS * WARPS;
    // Numbers between rows of shared memory: the 8 rows that a load takes lie in different banks.
    static constexpr int STRIDE = W + 8;
    // Numbers of a tile's keys, then as many values.
    static constexpr int HALF = KEYS * STRIDE;
    static constexpr int STAGE = 2 * HALF;
    // With two stages a whole tile comes while the one before it is seen. With one, its values come while scores are
    // found, and the next keys while values are added: more fits a multiprocessor.
    static constexpr int STAGES = W <= 64 ? 2 : 1;
    // Whether registers hold the queries. Until they do these lie where the second tile will.
    static constexpr bool HELD = W <= 64;
    static constexpr int QUERIES_AT = STAGE;
    // Matrices on their way from shared memory, so that the matrix instructions need not wait for each.
    static constexpr int AHEAD = GROUPS == 2 ? 1 : 3;
    // Rows that the block copies at once, 16 bytes a thread.
    static constexpr int COPIED = THREADS / (W / 8);
};

// Query i of a tile sees keys max(0, begin + i) to min(keys, end + i) - 1.
struct Sight {
    int begin, end, keys;
};

DEVICE int begin_of(const Sight& sight, int query) { return max(0, sight.begin + query); }
DEVICE int end_of(const Sight& sight, int query) { return min(sight.keys, sight.end + query); }

// The keys that any query of a tile sees.
struct Range {
    int first, end;
};

// 8 numbers as bf16, wherever they lie.
DEVICE uint4 load8(const void* from, int kind, u64 at) {
    u32 pairs[4];
    for (int i = 0; i < 4; i++) pairs[i] = pack_bf16(load1(from, kind, at + i * 2), load1(from, kind, at + i * 2 + 1));
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Rows of numbers, of which a tile takes those from `row` and `column` on.
struct Matrix {
    const void* from;
    int kind, stride;
    u32 row;
    int column;
};

// Whether 16 bytes can be copied at a time.
DEVICE bool aligned(const Matrix& matrix) {
    return matrix.kind == BF16 && ((u64)matrix.from | (u64)matrix.stride * 2) % 16 == 0;
}

// Copies rows first to first + count - 1; those from `end` on, and columns from `width` on, are zeros.
template <int W, int count>
DEVICE void copy_rows(bf16* to, const Matrix& from, int first, int end, int width) {
    int row = threadIdx.x / (W / 8), column = threadIdx.x % (W / 8) * 8;
    to += row * Shape<W>::STRIDE + column;
    u64 at = (u64)(from.row + first + row) * (u32)from.stride + (from.column + column);
    int present = column < width ? end - first - row : 0;
    if (aligned(from)) {
#pragma unroll
        for (int i = 0; i < count; i += Shape<W>::COPIED) {
            const bf16* source = (const bf16*)from.from + at + (u64)i * (u32)from.stride;
            copy_async16(to + i * Shape<W>::STRIDE, source, i < present);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < count; i += Shape<W>::COPIED) {
            uint4 numbers = make_uint4(0, 0, 0, 0);
            if (i < present) numbers = load8(from.from, from.kind, at + (u64)i * (u32)from.stride);
            *(uint4*)(to + i * Shape<W>::STRIDE) = numbers;
        }
    }
}

// Keys and values that lie row by row.
struct Rows {
    Matrix keys, values;
};

template <int W>
DEVICE void copy_keys(bf16* to, const Rows& from, Range range, int tile, int width) {
    copy_rows<W, KEYS>(to, from.keys, tile, range.end, width);
}

template <int W>
DEVICE void copy_values(bf16* to, const Rows& from, Range range, int tile, int width) {
    copy_rows<W, KEYS>(to + Shape<W>::HALF, from.values, tile, range.end, width);
}

// Keys and values of one head and layer of the paged cache.
struct Pages {
    const bf16* keys;
    const u32* table;
    // Numbers from a block to the next, and from a block's keys to its values.
    u32 block, values;
};

// The blocks of a tile. Nothing is read of a table's entries outside the range.
DEVICE void find_blocks(u32 (&blocks)[KEYS / BLOCK_TOKENS], const Pages& from, Range range, int tile) {
#pragma unroll
    for (int i = 0; i < KEYS / BLOCK_TOKENS; i++) {
        int token = tile + i * BLOCK_TOKENS;
        bool seen = token < range.end && token + BLOCK_TOKENS > range.first;
        blocks[i] = seen ? from.table[token / BLOCK_TOKENS] : 0;
    }
}

// Copies a tile of the keys or of the values, whose first number is at `half`; tokens that no query sees, and columns
// from `width` on, are zeros.
template <int W>
DEVICE void copy_pages(bf16* to, const bf16* half, const Pages& from, Range range, int tile, int width) {
    typedef Shape<W> S;
    static_assert(S::COPIED <= BLOCK_TOKENS, "what is copied at once lies in one block");
    int row = threadIdx.x / (W / 8), column = threadIdx.x % (W / 8) * 8;
    u32 present = column < width ? range.end - range.first : 0, key = tile - range.first + row;
    u32 blocks[KEYS / BLOCK_TOKENS];
    find_blocks(blocks, from, range, tile);
    to += row * S::STRIDE + column;
    half += row % BLOCK_TOKENS * width + column;
#pragma unroll
    for (int i = 0; i < KEYS; i += S::COPIED) {
        const bf16* block = half + (u64)blocks[i / BLOCK_TOKENS] * from.block;
        copy_async16(to + i * S::STRIDE, block + i % BLOCK_TOKENS * width, key + i < present);
    }
}

template <int W>
DEVICE void copy_keys(bf16* to, const Pages& from, Range range, int tile, int width) {
    copy_pages<W>(to, from.keys, from, range, tile, width);
}

template <int W>
DEVICE void copy_values(bf16* to, const Pages& from, Range range, int tile, int width) {
    copy_pages<W>(to + Shape<W>::HALF, from.keys + from.values, from, range, tile, width);
}

// A warp's queries as the matrix instructions take them, 16 numbers at a time.
template <int W>
struct Queries {
    u32 held[Shape<W>::HELD ? W / 16 : 1][Shape<W>::GROUPS][4];
    const bf16* shared;
};

template <int W>
DEVICE void load_queries(u32 (&to)[Shape<W>::GROUPS][4], const bf16* shared, int column) {
#pragma unroll
    for (int group = 0; group < Shape<W>::GROUPS; group++) {
        load_matrix4(to[group], shared + group * GROUP * Shape<W>::STRIDE + column);
    }
}

template <int W>
DEVICE Queries<W> queries_of(const bf16* shared, int warp) {
    int lane = threadIdx.x % WARP;
    Queries<W> queries;
    queries.shared = shared + (warp * Shape<W>::ROWS + lane % 16) * Shape<W>::STRIDE + lane / 16 * 8;
    if constexpr (Shape<W>::HELD) {
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < W / 16; i++) load_queries<W>(queries.held[i], queries.shared, i * 16);
    }
    return queries;
}

// Loads matrix after matrix, some steps before it is used.
template <int steps, int ahead, class Load, class Use>
DEVICE void load_ahead(Load load, Use use) {
    u32 matrices[ahead + 1][4];
#pragma unroll
    for (int i = 0; i < ahead; i++) load(matrices[i], i);
#pragma unroll
    for (int i = 0; i < steps; i++) {
        if (i + ahead < steps) load(matrices[(i + ahead) % (ahead + 1)], i + ahead);
        use(matrices[i % (ahead + 1)], i);
    }
}

// What is known of 16 queries after the tiles that they saw; a lane's totals are of its own keys.
template <int W>
struct Found {
    float peak[2], total[2];
    float sums[W / 8][4];
};

DEVICE void multiply(float (&even)[4], float (&odd)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    const u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_bf16(even, a, first);
    mma_bf16(odd, a, second);
}

// Scores of 16 queries.
typedef float Scores[KEYS / 8][4];

template <int W>
DEVICE void score(Scores (&scores)[Shape<W>::GROUPS], const Queries<W>& queries, const bf16* keys) {
    typedef Shape<W> S;
    constexpr int ACROSS = KEYS / 16;
    int lane = threadIdx.x % WARP;
    keys += (lane / 16 * 8 + lane % 8) * S::STRIDE + lane / 8 % 2 * 8;
    u32 query[S::GROUPS][4];
    auto load = [&](u32(&key)[4], int step) {
        load_matrix4(key, keys + step % ACROSS * 16 * S::STRIDE + step / ACROSS * 16);
    };
    auto use = [&](const u32(&key)[4], int step) {
        int i = step / ACROSS, n = step % ACROSS;
        if constexpr (!S::HELD) {
            if (n == 0) load_queries<W>(query, queries.shared, i * 16);
        }
#pragma unroll
        for (int group = 0; group < S::GROUPS; group++) {
            const auto& rows = S::HELD ? queries.held[S::HELD ? i : 0] : query;
            multiply(scores[group][n * 2], scores[group][n * 2 + 1], rows[group], key);
        }
    };
    load_ahead<W / 16 * ACROSS, S::AHEAD>(load, use);
}

// Scores of keys that a query does not see become minus infinity.
DEVICE void mask(Scores& scores, const Sight& sight, int query, int tile) {
    int pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int begin = begin_of(sight, query + half * 8) - tile - pair;
        int end = end_of(sight, query + half * 8) - tile - pair;
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            int key = i / 2 * 8 + i % 2;
            float& score = scores[i / 2][half * 2 + i % 2];
            score = key >= begin && key < end ? score : minus_infinity();
        }
    }
}

// Scores become weights; what was found before is brought to the new peaks. A query may have seen nothing yet.
template <int W>
DEVICE void weigh(Scores& scores, Found<W>& found, float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = found.peak[half];
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            peak = fmaxf(peak, fmaxf(scores[i][half * 2], scores[i][half * 2 + 1]));
        }
        peak = fmaxf(peak, __shfl_xor_sync(FULL, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(FULL, peak, 2));
        float base = peak == minus_infinity() ? 0.0f : peak * factor;
        float before = exp2_fast(found.peak[half] * factor - base);
        float total = found.total[half] * before;
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
            for (int j = half * 2; j < half * 2 + 2; j++) {
                scores[i][j] = exp2_fast(scores[i][j] * factor - base);
                total += scores[i][j];
            }
        }
#pragma unroll
        for (int i = 0; i < W / 8; i++) {
            found.sums[i][half * 2] *= before;
            found.sums[i][half * 2 + 1] *= before;
        }
        found.peak[half] = peak;
        found.total[half] = total;
    }
}

// Weights of 16 queries, for 16 keys, as the matrix instructions take them.
DEVICE void pack(u32 (&weight)[4], const Scores& weights, int keys) {
    const auto &even = weights[keys * 2], &odd = weights[keys * 2 + 1];
    weight[0] = pack_bf16(even[0], even[1]);
    weight[1] = pack_bf16(even[2], even[3]);
    weight[2] = pack_bf16(odd[0], odd[1]);
    weight[3] = pack_bf16(odd[2], odd[3]);
}

template <int W>
DEVICE void add_values(Found<W> (&found)[Shape<W>::GROUPS], const Scores (&weights)[Shape<W>::GROUPS],
                       const bf16* values) {
    typedef Shape<W> S;
    constexpr int ACROSS = W / 16;
    int lane = threadIdx.x % WARP;
    values += lane % 16 * S::STRIDE + lane / 16 * 8;
    u32 weight[S::GROUPS][4];
    auto load = [&](u32(&value)[4], int step) {
        load_matrix4_turned(value, values + step / ACROSS * 16 * S::STRIDE + step % ACROSS * 16);
    };
    auto use = [&](const u32(&value)[4], int step) {
        int n = step % ACROSS;
#pragma unroll
        for (int group = 0; group < S::GROUPS; group++) {
            if (n == 0) pack(weight[group], weights[group], step / ACROSS);
            multiply(found[group].sums[n * 2], found[group].sums[n * 2 + 1], weight[group], value);
        }
    };
    load_ahead<KEYS / 16 * ACROSS, S::AHEAD>(load, use);
}

// Asked of the block's queries and not of a warp's, so that what follows is plainly no divergence.
DEVICE bool sees_all(const Sight& sight, int queries, int tile) {
    return tile >= begin_of(sight, queries - 1) && tile + KEYS <= end_of(sight, 0);
}

template <int W>
DEVICE void see(Found<W> (&found)[Shape<W>::GROUPS], Scores (&scores)[Shape<W>::GROUPS], const bf16* values,
                const Sight& sight, int queries, int tile, float factor) {
    constexpr int GROUPS = Shape<W>::GROUPS;
    if (!sees_all(sight, queries, tile)) {
        int query = threadIdx.x / WARP * Shape<W>::ROWS + threadIdx.x % WARP / 4;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) mask(scores[i], sight, query + i * GROUP, tile);
    }
#pragma unroll
    for (int i = 0; i < GROUPS; i++) weigh<W>(scores[i], found[i], factor);
    add_values<W>(found, scores, values);
}

// Where a tile's outputs go.
struct Output {
    void* to;
    int kind, stride;
    u32 row;
    int column;
};

// The number that is `column` of the tile's `query`.
DEVICE u64 place(const Output& out, int query, int column) {
    return (u64)(out.row + query) * out.stride + out.column + column;
}

// One over a lane's two totals, or zero where a query saw nothing.
template <int W>
DEVICE void invert(float (&inverse)[2], const Found<W>& found) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = found.total[half] + __shfl_xor_sync(FULL, found.total[half], 1);
        total += __shfl_xor_sync(FULL, total, 2);
        inverse[half] = total > 0.0f ? 1.0f / total : 0.0f;
    }
}

// The outputs of 16 queries from `first_row` on, those that are there. Whole rows of bf16 are put together in shared
// memory that no other warp uses, so that 16 bytes are stored at a time.
template <int W>
DEVICE void store(const Found<W>& found, bf16* shared, int first_row, int queries, int width, const Output& out) {
    int lane = threadIdx.x % WARP, row = lane / 4, pair = lane % 4 * 2;
    float inverse[2];
    invert(inverse, found);
#pragma unroll
    for (int i = 0; i < W / 8; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float first = found.sums[i][half * 2] * inverse[half], second = found.sums[i][half * 2 + 1] * inverse[half];
            int query = first_row + row + half * 8, column = i * 8 + pair;
            if (out.kind == BF16) {
                *(u32*)(shared + (row + half * 8) * Shape<W>::STRIDE + column) = pack_bf16(first, second);
            } else if (query < queries && column < width) {
                *(float2*)((float*)out.to + place(out, query, column)) = make_float2(first, second);
            }
        }
    }
    if (out.kind != BF16) return;
    __syncwarp();
    for (int i = lane; i < GROUP * (W / 8); i += WARP) {
        int query = first_row + i / (W / 8), column = i % (W / 8) * 8;
        if (query >= queries || column >= width) continue;
        *(uint4*)((bf16*)out.to + place(out, query, column)) =
            *(const uint4*)(shared + i / (W / 8) * Shape<W>::STRIDE + column);
    }
}

// What this thread copied has come, and after the barrier what the others did; all warps are done with what they read.
DEVICE void arrive() {
    copy_async_wait<0>();
    __syncthreads();
}

// What comes while scores of `tile` are found: the whole next tile, or this one's values.
template <int W, class Source>
DEVICE void copy_early(bf16* shared, int stage, const Source& source, Range range, int tile, int width) {
    typedef Shape<W> S;
    if constexpr (S::STAGES == 2) {
        if (tile + KEYS >= range.end) return;
        bf16* next = shared + (stage ^ 1) * S::STAGE;
        copy_keys<W>(next, source, range, tile + KEYS, width);
        copy_values<W>(next, source, range, tile + KEYS, width);
    } else {
        copy_values<W>(shared, source, range, tile, width);
    }
    copy_async_commit();
}

// With one stage: this tile's values are here, and the next keys come while they are added.
template <int W, class Source>
DEVICE void copy_late(bf16* shared, const Source& source, Range range, int tile, int width) {
    if constexpr (Shape<W>::STAGES == 1) {
        arrive();
        if (tile + KEYS >= range.end) return;
        copy_keys<W>(shared, source, range, tile + KEYS, width);
        copy_async_commit();
    }
}

// The queries and the first tile, or its keys.
template <int W, class Source>
DEVICE void copy_first(bf16* shared, const Matrix& query_rows, int queries, const Source& source, Range range, int tile,
                       int width) {
    typedef Shape<W> S;
    copy_rows<W, S::QUERIES>(shared + S::QUERIES_AT, query_rows, 0, queries, width);
    copy_keys<W>(shared, source, range, tile, width);
    if constexpr (S::STAGES == 2) copy_values<W>(shared, source, range, tile, width);
    copy_async_commit();
}

template <int W, class Source>
DEVICE void attend(const Matrix& query_rows, const Source& source, const Sight& sight, int queries, int width,
                   const Output& out) {
    typedef Shape<W> S;
    DYNAMIC_SHARED(bf16, shared);
    Range range = {begin_of(sight, 0), end_of(sight, queries - 1)};
    int warp = threadIdx.x / WARP;
    float factor = LOG2_E * rsqrtf((float)width);

    int tile = range.first / KEYS * KEYS;
    copy_first<W>(shared, query_rows, queries, source, range, tile, width);
    Queries<W> held = queries_of<W>(shared + S::QUERIES_AT, warp);
    Found<W> found[S::GROUPS];
#pragma unroll
    for (int i = 0; i < S::GROUPS; i++) found[i] = {{minus_infinity(), minus_infinity()}, {}, {}};

    for (int stage = 0; tile < range.end; tile += KEYS, stage ^= S::STAGES - 1) {
        const bf16* keys = shared + stage * S::STAGE;
        Scores scores[S::GROUPS] = {};
        arrive();
        copy_early<W>(shared, stage, source, range, tile, width);
        score<W>(scores, held, keys);
        copy_late<W>(shared, source, range, tile, width);
        see<W>(found, scores, keys + S::HALF, sight, queries, tile, factor);
    }

    arrive();
#pragma unroll
    for (int i = 0; i < S::GROUPS; i++) {
        int row = warp * S::ROWS + i * GROUP;
        store<W>(found[i], shared + S::QUERIES_AT + row * S::STRIDE, row, queries, width, out);
    }
}

template <int W>
DEVICE void prefill(const void* qkv, int kind, int row_width, int query_heads, int kv_heads, int width,
                    const uint4* tiles, const u32* tables, const bf16* kv, int layer, int layers, int window, void* out,
                    int out_kind) {
    grid_wait();
    grid_release();
    // The last tiles of a sequence see the most keys: they begin first.
    uint4 tile = tiles[gridDim.y - 1 - blockIdx.y];
    int head = blockIdx.x, queries = tile.y, position = tile.z;
    u32 half = kv_heads * BLOCK_TOKENS * width;
    const bf16* keys = kv + (u64)layer * 2 * half + head / (query_heads / kv_heads) * BLOCK_TOKENS * width;
    Pages pages = {keys, tables + tile.w, layers * 2 * half, half};
    Output output = {out, out_kind, query_heads * width, tile.x, head * width};
    Sight sight = {position + 1 - window, position + 1, 0x7fffffff};
    attend<W>({qkv, kind, row_width, tile.x, head * width}, pages, sight, queries, width, output);
}

// What a tile of `limits` sees: without, all keys. No query is so far from its tile's first that it sees less.
DEVICE Sight sight_of(const uint4& tile, const u32* limits) {
    int keys = tile.w;
    return {-(1 << 20), limits == nullptr ? keys : (int)limits[blockIdx.y], keys};
}

template <int W>
DEVICE void encode(const bf16* queries, int query_stride, const bf16* keys, int key_stride, const bf16* values,
                   int value_stride, int heads, int width, const uint4* tiles, const u32* limits, void* out,
                   int out_kind) {
    grid_wait();
    grid_release();
    uint4 tile = tiles[blockIdx.y];
    int column = blockIdx.x * width;
    Rows rows = {{keys, BF16, key_stride, tile.z, column}, {values, BF16, value_stride, tile.z, column}};
    Output output = {out, out_kind, heads * width, tile.x, column};
    attend<W>({queries, BF16, query_stride, tile.x, column}, rows, sight_of(tile, limits), tile.y, width, output);
}

// A number of rows of any kind and alignment.
struct Numbers {
    const void* from;
    int kind;
    u64 first;
};

DEVICE float number(const Numbers& numbers, u64 at) { return load1(numbers.from, numbers.kind, numbers.first + at); }

DEVICE float dot(const Numbers& a, u64 a_at, const Numbers& b, u64 b_at, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; i++) sum += number(a, a_at + i) * number(b, b_at + i);
    return sum;
}

// Columns of the output that a warp sums at once.
constexpr int COLUMNS = 8;

// Columns `first` on of one query, by one warp.
DEVICE void attend_one(const Numbers& query, const Numbers& keys, int key_stride, const Numbers& values,
                       int value_stride, int count, int width, int first, void* out, int out_kind, u64 to) {
    int lane = threadIdx.x % WARP;
    float factor = LOG2_E * rsqrtf((float)width), peak = minus_infinity(), total = 0.0f, sums[COLUMNS] = {};
    for (int base = 0; base < count; base += WARP) {
        bool seen = base + lane < count;
        float score = seen ? dot(query, 0, keys, (u64)(base + lane) * key_stride, width) * factor : minus_infinity();
        float higher = fmaxf(peak, warp_max(score)), before = exp2_fast(peak - higher);
        float weight = exp2_fast(score - higher);
        peak = higher;
        total = total * before + weight;
        for (int i = 0; i < COLUMNS; i++) sums[i] *= before;
        for (int key = 0; key < min(WARP, count - base); key++) {
            float share = __shfl_sync(FULL, weight, key);
            for (int i = 0; i < COLUMNS; i++) {
                int column = first + i * WARP + lane;
                if (column < width) sums[i] += share * number(values, (u64)(base + key) * value_stride + column);
            }
        }
    }
    total = warp_sum(total);
    for (int i = 0; i < COLUMNS; i++) {
        int column = first + i * WARP + lane;
        if (column < width) store1(out, out_kind, to + column, total > 0.0f ? sums[i] / total : 0.0f);
    }
}

}  // namespace attend

#define PREFILL(W, bound)                                                                                        \
    KERNEL(prefill_##W, bound)                                                                                   \
    (const void* qkv, int kind, int row_width, int query_heads, int kv_heads, int width, const uint4* tiles,     \
     const u32* tables, const bf16* kv, int layer, int layers, int window, void* out, int out_kind) {            \
        attend::prefill<W>(qkv, kind, row_width, query_heads, kv_heads, width, tiles, tables, kv, layer, layers, \
                           window, out, out_kind);                                                               \
    }

#define ENCODE(W, bound)                                                                                            \
    KERNEL(encode_##W, bound)                                                                                       \
    (const bf16* queries, int query_stride, const bf16* keys, int key_stride, const bf16* values, int value_stride, \
     int heads, int width, const uint4* tiles, const u32* limits, void* out, int out_kind) {                        \
        attend::encode<W>(queries, query_stride, keys, key_stride, values, value_stride, heads, width, tiles,       \
                          limits, out, out_kind);                                                                   \
    }

PREFILL(64, 512)
PREFILL(128, 256)
PREFILL(256, 256)
ENCODE(32, 512)
ENCODE(64, 512)
ENCODE(128, 256)

KERNEL(attend_plain, 128)
(const void* queries, int query_kind, int query_stride, const void* keys, int key_kind, int key_stride,
 const void* values, int value_kind, int value_stride, int heads, int width, const uint4* tiles, const u32* limits,
 void* out, int out_kind) {
    grid_wait();
    grid_release();
    uint4 tile = tiles[blockIdx.y];
    attend::Sight sight = attend::sight_of(tile, limits);
    int column = blockIdx.x * width;
    attend::Numbers key = {keys, key_kind, (u64)tile.z * key_stride + column};
    attend::Numbers value = {values, value_kind, (u64)tile.z * value_stride + column};
    for (int i = threadIdx.x / WARP; i < (int)tile.y; i += attend::WARPS) {
        u64 row = tile.x + i;
        attend::Numbers query = {queries, query_kind, row * query_stride + column};
        for (int first = 0; first < width; first += attend::COLUMNS * WARP) {
            attend::attend_one(query, key, key_stride, value, value_stride, attend::end_of(sight, i), width, first, out,
                               out_kind, row * heads * width + column);
        }
    }
}

// What one query of one head gives to each key: (queries, keys); a block a query, whose threads keep to their keys.
KERNEL(attention_weights, 128)
(const void* queries, int query_kind, int query_stride, const void* keys, int key_kind, int key_stride, int width,
 int head, int first_query, int query_count, int first_key, int key_count, float* out) {
    SHARED float peaks[attend::WARPS], totals[attend::WARPS];
    grid_wait();
    grid_release();
    int column = head * width;
    attend::Numbers query = {queries, query_kind, (u64)(first_query + blockIdx.x) * query_stride + column};
    attend::Numbers rows = {keys, key_kind, (u64)first_key * key_stride + column};
    float factor = attend::LOG2_E * rsqrtf((float)width), peak = attend::minus_infinity(), total = 0.0f;
    out += (u64)blockIdx.x * key_count;
    for (int key = threadIdx.x; key < key_count; key += blockDim.x) {
        out[key] = attend::dot(query, 0, rows, (u64)key * key_stride, width) * factor;
        peak = fmaxf(peak, out[key]);
    }
    peak = warp_max(peak);
    if (threadIdx.x % WARP == 0) peaks[threadIdx.x / WARP] = peak;
    __syncthreads();
    for (int warp = 0; warp < attend::WARPS; warp++) peak = fmaxf(peak, peaks[warp]);
    for (int key = threadIdx.x; key < key_count; key += blockDim.x) {
        out[key] = exp2_fast(out[key] - peak);
        total += out[key];
    }
    float inverse = 1.0f / block_sum(total, totals);
    for (int key = threadIdx.x; key < key_count; key += blockDim.x) out[key] *= inverse;
}
