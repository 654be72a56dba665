// Attention of single rows over the paged cache: a row's tokens are cut among blocks, a block's pages among its warps,
// and what they find is merged, by the last block to finish where there are several.
//
// decode_W takes queries that are turned, of tokens that are in the cache. turn_decode_W takes rows as the product left
// them, and does what rope_write does on the way: every block turns its queries for itself, and the blocks that see the
// newest token turn its key and value too, and use them from shared memory. One of them writes them to the cache, where
// no block of the launch reads them.
//
// A block takes up to 8 query heads of one key-value head, so that a group reads its keys and values once. The sums are
// matrix instructions for every size of group: they are a tenth of the instructions that lanes would need, and then
// only memory is waited for. Keys and values go from memory into the registers that the instructions take them from:
// within a sum the order of the numbers is free, and so it is the order in which 16-byte loads leave them.
//
// With row = lane / 4 and column = lane % 4, of a page of 16 tokens a lane holds
//   keys    of tokens row and row + 8: 8 numbers from column * 8 on, of every 32
//   values  of tokens column * 2 + {0, 1, 8, 9}: 8 numbers from row * 8 on, of every 64
//   scores  of query head row: tokens column * 2 + {0, 1, 8, 9}
//   sums    of query heads column * 2 + {0, 1}: the numbers that its values are
//
// Launch: grid (splits, kv_heads * ceil(query_heads / kv_heads / 8), rows), 256 threads (W = 256: 128), no dynamic
// shared memory.
//   width <= W, a multiple of 8; row_width a multiple of 4; 1 <= splits <= 128; all buffers 16-byte aligned.
//   workspace: rows * query_heads * splits * (width + 2) floats, of any contents; null when splits is 1.
//   counters: rows * grid.y, zeros before the first launch, and left zeros; null when splits is 1.
//
// Before grid_wait, while the launch before is still at work, both read rows, positions, table_start and tables, and
// turn_decode_W also its constants and the tokens that the cache has: no launch since the last copy or other full stop
// of the stream may have written any of these, but for other layers of the cache. Rows of turn_decode_W are of
// different sequences.

#include "device.cuh"

namespace decode {

// Query heads of a block: columns of a matrix instruction.
constexpr int HEADS = 8;

template <int W>
struct Shape {
    // As many as have a page's keys and values in registers.
    static constexpr int WARPS = W <= 128 ? 8 : 4;
    static constexpr int THREADS = WARPS * WARP;
    // Pages that one block goes through sooner than several would merge what they found.
    static constexpr int ALONE = (W <= 64 ? 4 : 2) * WARPS;
    static constexpr int KEY_LOADS = W / 32;
    static constexpr int VALUE_LOADS = W / 64;
    // Lanes that turn a head together, heads that are turned at once, and fours of numbers of each lane.
    static constexpr int TURNERS = W <= 128 ? 16 : 32;
    static constexpr int TURNED = THREADS / TURNERS;
    static constexpr int FOURS = W / (TURNERS * 4);
    // Numbers between rows of shared memory.
    static constexpr int STRIDE = W + 4;
};

constexpr int SPLITS_MAX = 128;
// Splits whose sums a thread has on their way at once.
constexpr int SPLITS_AT_ONCE = 8;
constexpr float LOG2_E = 1.44269504088896341f;

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

// What both kernels are given.
struct Input {
    const void* qkv;
    int kind, row_width, query_heads, kv_heads, width;
    const u32 *rows, *positions, *table_start, *tables;
    bf16* kv;
    int layer, layers, window, splits;
    float* workspace;
    u32* counters;
    void* out;
    int out_kind;
};

// What rows are turned by; bias and norms may be null.
struct Turning {
    const float *bias, *query_norm, *key_norm;
    float epsilon;
    const float* rope;
    int rope_width;
};

struct Lane {
    int warp, row, column;
};

DEVICE Lane this_lane() {
    u32 lane = threadIdx.x % WARP;
    return {(int)(threadIdx.x / WARP), (int)lane / 4, (int)lane % 4};
}

// The query heads of a block, and which of the pieces of the key-value head's group they are.
struct Heads {
    int first, count, key, piece;
};

DEVICE Heads heads_of_block(u32 query_heads, u32 kv_heads) {
    u32 group = query_heads / kv_heads, pieces = (group + HEADS - 1) / HEADS;
    int key = blockIdx.y / pieces, piece = blockIdx.y % pieces;
    return {key * (int)group + piece * HEADS, min(HEADS, (int)group - piece * HEADS), key, piece};
}

// The tokens of a split, the page of the first, and how many splits have any.
struct Span {
    int first, end, first_page, splits;
};

DEVICE bool holds(const Span& span, int token) { return token >= span.first && token < span.end; }
DEVICE bool holds_page(const Span& span, int page) { return page * BLOCK_TOKENS < span.end; }

// Of a row that is not there, no tokens: its position and 1 are 0. Splits are whole steps of a block: less than that
// would not be faster.
template <int W>
DEVICE Span span_of(u32 position, int window, u32 splits) {
    int end = position + 1, first = max(0, end - window);
    u32 first_page = first / BLOCK_TOKENS, pages = (end + BLOCK_TOKENS - 1) / BLOCK_TOKENS - first_page;
    u32 part = Shape<W>::ALONE;
    if (pages > part) part = ((pages + splits - 1) / splits + Shape<W>::WARPS - 1) / Shape<W>::WARPS * Shape<W>::WARPS;
    Span span;
    span.splits = (pages + part - 1) / part;
    span.first_page = first_page + blockIdx.x * part;
    span.first = max(first, span.first_page * BLOCK_TOKENS);
    span.end = min(end, (span.first_page + (int)part) * BLOCK_TOKENS);
    return span;
}

// One key-value head of one layer of the cache, as its pages are numbered, and the blocks of one sequence.
struct Cache {
    bf16* kv;
    const u32* tables;
    u32 table;
    // Pages of a block, of all layers, which of them has the head's keys, and how many further its values are.
    u32 block, keys, values;
    int width;
};

DEVICE Cache cache_of(const Input& in, u32 table, int head) {
    u32 layer = 2 * in.kv_heads;
    return {in.kv, in.tables, table, in.layers * layer, in.layer * layer + head, (u32)in.kv_heads, in.width};
}

DEVICE u32 keys_of(const Cache& cache, u32 block) { return block * cache.block + cache.keys; }

DEVICE bf16* page_at(bf16* kv, u32 number, int width) { return kv + (u64)number * (u32)(BLOCK_TOKENS * width); }

DEVICE u32 block_at(const Cache& cache, const Span& span, int page) {
    return holds_page(span, page) ? cache.tables[cache.table + page] : 0;
}

DEVICE uint4 load_if(const bf16* from, bool valid) {
    uint4 x = make_uint4(0, 0, 0, 0);
    if (valid) x = *(const uint4*)from;
    return x;
}

// The page that a warp has in registers.
template <int W>
struct Page {
    uint4 keys[2][Shape<W>::KEY_LOADS];
    uint4 values[4][Shape<W>::VALUE_LOADS];
};

// Tokens of page `page`, which is block `block`, as far as `span` holds them.
template <int W>
DEVICE void load_keys(Page<W>& to, const Cache& cache, const Span& span, int page, u32 block, Lane lane) {
    const bf16* keys = page_at(cache.kv, keys_of(cache, block), cache.width);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int slot = half * 8 + lane.row;
        bool seen = holds(span, page * BLOCK_TOKENS + slot);
#pragma unroll
        for (int i = 0; i < Shape<W>::KEY_LOADS; i++) {
            int at = i * 32 + lane.column * 8;
            to.keys[half][i] = load_if(keys + slot * cache.width + at, seen && at < cache.width);
        }
    }
}

// Values that are not seen are zeros: their weights are zero, but zero times what is not a number is not.
template <int W>
DEVICE void load_values(Page<W>& to, const Cache& cache, const Span& span, int page, u32 block, Lane lane) {
    const bf16* values = page_at(cache.kv, keys_of(cache, block) + cache.values, cache.width);
#pragma unroll
    for (int part = 0; part < 4; part++) {
        int slot = part / 2 * 8 + lane.column * 2 + part % 2;
        bool seen = holds(span, page * BLOCK_TOKENS + slot);
#pragma unroll
        for (int i = 0; i < Shape<W>::VALUE_LOADS; i++) {
            int at = i * 64 + lane.row * 8;
            to.values[part][i] = load_if(values + slot * cache.width + at, seen && at < cache.width);
        }
    }
}

// What of a row the lanes that turn a head together have.
enum Part { QUERY, KEY, VALUE, NOTHING };

struct Head {
    Part part;
    // Among all heads of the row.
    int number;
};

// The block's queries come first, and then, where the newest token is seen, its key and value.
DEVICE Head head_of(int task, const Input& in, const Heads& heads, bool newest) {
    if (task < heads.count) return {QUERY, heads.first + task};
    if (newest && task == heads.count) return {KEY, in.query_heads + heads.key};
    if (newest && task == heads.count + 1) return {VALUE, in.query_heads + in.kv_heads + heads.key};
    return {NOTHING, 0};
}

// A lane's numbers of a head: four from `column(i)` on for each i.
template <int W>
struct Fours {
    float4 x[Shape<W>::FOURS];
};

template <int W>
DEVICE int column(int i) {
    return (i * Shape<W>::TURNERS + (int)(threadIdx.x % Shape<W>::TURNERS)) * 4;
}

DEVICE float4 all(float x) { return make_float4(x, x, x, x); }

DEVICE float4 scaled(float factor, float4 x) {
    return make_float4(factor * x.x, factor * x.y, factor * x.z, factor * x.w);
}

// What is not there is zeros.
template <int W>
DEVICE Fours<W> load_head(const void* from, int kind, u64 first, int width, bool valid) {
    Fours<W> head;
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        head.x[i] = all(0.0f);
        if (valid && column<W>(i) < width) head.x[i] = load4(from, kind, first + column<W>(i));
    }
    return head;
}

// What a lane's numbers of a head are turned by, in registers before the numbers are.
template <int W>
struct Turn {
    Head head;
    Fours<W> bias, norm, angles;
    bool normed;
};

template <int W>
DEVICE Turn<W> turn_of(const Turning& by, Head head, u32 position, int width) {
    Turn<W> turn;
    const float* norm = head.part == QUERY ? by.query_norm : head.part == KEY ? by.key_norm : nullptr;
    const float* angles = by.rope + (u64)position * by.rope_width;
    turn.head = head;
    turn.normed = norm != nullptr;
    turn.bias = load_head<W>(by.bias, F32, head.number * width, width, by.bias && head.part != NOTHING);
    turn.norm = load_head<W>(norm, F32, 0, width, turn.normed);
    int turned = head.part == QUERY || head.part == KEY ? by.rope_width : 0;
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        // Of two pairs, one may be past the rotated numbers, and the angles of a position only 8-byte aligned.
        float2 first = make_float2(1.0f, 0.0f), second = first;
        if (column<W>(i) < turned) first = *(const float2*)(angles + column<W>(i));
        if (column<W>(i) + 2 < turned) second = *(const float2*)(angles + column<W>(i) + 2);
        turn.angles.x[i] = make_float4(first.x, first.y, second.x, second.y);
    }
    return turn;
}

template <int W>
DEVICE void add_bias(Fours<W>& head, const Fours<W>& bias) {
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        float4& x = head.x[i];
        x = make_float4(x.x + bias.x[i].x, x.y + bias.x[i].y, x.z + bias.x[i].z, x.w + bias.x[i].w);
    }
}

// x / rms(x) * weight over the head; all lanes of a warp call it, for their shuffles.
template <int W>
DEVICE void norm_head(Fours<W>& head, const Turn<W>& turn, int width, float epsilon) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        float4 x = head.x[i];
        squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
    }
#pragma unroll
    for (int lanes = Shape<W>::TURNERS / 2; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(FULL, squares, lanes);
    if (!turn.normed) return;
    float factor = rsqrtf(__fdividef(squares, width) + epsilon);
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        float4 &x = head.x[i], weight = turn.norm.x[i];
        x = make_float4(x.x * factor * weight.x, x.y * factor * weight.y, x.z * factor * weight.z,
                        x.w * factor * weight.w);
    }
}

DEVICE float2 rotated(float x, float y, float cosine, float sine) {
    return make_float2(x * cosine - y * sine, x * sine + y * cosine);
}

template <int W>
DEVICE void rotate(Fours<W>& head, const Fours<W>& angles) {
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        float4 x = head.x[i], angle = angles.x[i];
        float2 first = rotated(x.x, x.y, angle.x, angle.y), second = rotated(x.z, x.w, angle.z, angle.w);
        head.x[i] = make_float4(first.x, first.y, second.x, second.y);
    }
}

// The queries as the matrix instructions want them, scaled so that scores are powers of 2: an instruction takes 16
// numbers of 8 heads. Its rows 8 to 15 would idle: they hold what rounding to bf16 lost, so that scores are as good as
// of single precision. Heads that are not there hold anything: no sum is of two heads.
template <int W>
struct Queries {
    uint4 x[W / 16][WARP];
};

template <int W>
DEVICE void put_query(Queries<W>& queries, int head, const Fours<W>& query, int width) {
    float factor = LOG2_E * rsqrtf((float)width);
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        int at = column<W>(i), sum = at / 32 * 2 + at / 4 % 2, place = at / 8 % 4;
        float4 x = scaled(factor, query.x[i]);
        u32 first = pack_bf16(x.x, x.y), second = pack_bf16(x.z, x.w);
        queries.x[sum][head * 4 + place] = make_uint4(first, pack_bf16(x.x - low(first), x.y - high(first)), second,
                                                      pack_bf16(x.z - low(second), x.w - high(second)));
    }
}

// The newest token as the cache has it.
template <int W>
struct Newest {
    uint4 key[W / 8], value[W / 8];
};

template <int W>
DEVICE void put_rounded(uint4* to, const Fours<W>& head) {
#pragma unroll
    for (int i = 0; i < Shape<W>::FOURS; i++) {
        float4 x = head.x[i];
        ((uint2*)to)[column<W>(i) / 4] = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
    }
}

// The newest token takes its place in the page that it is in; `slot` may be past this one.
template <int W>
DEVICE void take_newest(Page<W>& page, const Newest<W>& newest, int slot, Lane lane) {
    if (slot >= BLOCK_TOKENS) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int i = 0; i < Shape<W>::KEY_LOADS; i++) {
            if (slot == half * 8 + lane.row) page.keys[half][i] = newest.key[i * 4 + lane.column];
        }
    }
#pragma unroll
    for (int part = 0; part < 4; part++) {
#pragma unroll
        for (int i = 0; i < Shape<W>::VALUE_LOADS; i++) {
            int own = part / 2 * 8 + lane.column * 2 + part % 2;
            if (slot == own) page.values[part][i] = newest.value[i * 8 + lane.row];
        }
    }
}

DEVICE void multiply(float (&sums)[4], const uint4& a, u32 b0, u32 b1) {
    const u32 left[4] = {a.x, a.y, a.z, a.w};
    const u32 right[2] = {b0, b1};
    mma_bf16(sums, left, right);
}

// What a warp knows of the tokens that it saw. Peaks are powers of 2; a lane's total is of its own tokens.
template <int W>
struct Found {
    float peak, total;
    float sums[Shape<W>::VALUE_LOADS][4][4];
};

// scores[i]: of token column * 2 + {0, 1, 8, 9}[i], as a power of 2; those not seen are minus infinity.
template <int W>
DEVICE void score(float (&scores)[4], const Page<W>& keys, const Queries<W>& queries, const Span& span, int page,
                  Lane lane) {
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < Shape<W>::KEY_LOADS; i++) {
        uint4 even = queries.x[i * 2][threadIdx.x % WARP];
        multiply(sums[0], even, keys.keys[0][i].x, keys.keys[0][i].y);
        multiply(sums[1], even, keys.keys[1][i].x, keys.keys[1][i].y);
        uint4 odd = queries.x[i * 2 + 1][threadIdx.x % WARP];
        multiply(sums[0], odd, keys.keys[0][i].z, keys.keys[0][i].w);
        multiply(sums[1], odd, keys.keys[1][i].z, keys.keys[1][i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int token = page * BLOCK_TOKENS + i / 2 * 8 + lane.column * 2 + i % 2;
        float sum = sums[i / 2][i % 2] + sums[i / 2][i % 2 + 2];
        scores[i] = holds(span, token) ? sum : minus_infinity();
    }
}

// Scores become weights; what was found before is brought to the new peak.
template <int W>
DEVICE void weigh(float (&scores)[4], Found<W>& found, Lane lane) {
    float peak = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    peak = fmaxf(peak, __shfl_xor_sync(FULL, peak, 1));
    peak = fmaxf(found.peak, fmaxf(peak, __shfl_xor_sync(FULL, peak, 2)));
    float before = exp2_fast(found.peak - peak);
    found.peak = peak;
    found.total *= before;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        scores[i] = exp2_fast(scores[i] - peak);
        found.total += scores[i];
    }
    float even = __shfl_sync(FULL, before, lane.column * 8), odd = __shfl_sync(FULL, before, lane.column * 8 + 4);
#pragma unroll
    for (int i = 0; i < Shape<W>::VALUE_LOADS; i++) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            found.sums[i][pair][0] *= even;
            found.sums[i][pair][1] *= odd;
            found.sums[i][pair][2] *= even;
            found.sums[i][pair][3] *= odd;
        }
    }
}

DEVICE u32 word(const uint4& x, int at) { return at == 0 ? x.x : at == 1 ? x.y : at == 2 ? x.z : x.w; }
DEVICE u32 low_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 high_halves(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// Adds the values by their weights. An instruction takes one word, two numbers, of each load: of 16 tokens, of 8 rows.
template <int W>
DEVICE void add_values(Found<W>& found, const Page<W>& page, const float (&weights)[4]) {
    u32 first = pack_bf16(weights[0], weights[1]), second = pack_bf16(weights[2], weights[3]);
#pragma unroll
    for (int i = 0; i < Shape<W>::VALUE_LOADS; i++) {
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            u32 a = word(page.values[0][i], pair), b = word(page.values[1][i], pair);
            u32 c = word(page.values[2][i], pair), d = word(page.values[3][i], pair);
            uint4 values = make_uint4(low_halves(a, b), high_halves(a, b), low_halves(c, d), high_halves(c, d));
            multiply(found.sums[i][pair], values, first, second);
        }
    }
}

// What each warp found; sums are read and written four at a time.
template <int W>
struct __align__(16) Findings {
    float peak[Shape<W>::WARPS][HEADS];
    float total[Shape<W>::WARPS][HEADS];
    float sums[Shape<W>::WARPS][HEADS][Shape<W>::STRIDE];
};

template <int W>
DEVICE void tell(Findings<W>& findings, const Found<W>& found) {
    Lane lane = this_lane();
    float total = found.total + __shfl_xor_sync(FULL, found.total, 1);
    total += __shfl_xor_sync(FULL, total, 2);
    if (lane.column == 0) {
        findings.peak[lane.warp][lane.row] = found.peak;
        findings.total[lane.warp][lane.row] = total;
    }
#pragma unroll
    for (int i = 0; i < Shape<W>::VALUE_LOADS; i++) {
#pragma unroll
        for (int head = 0; head < 2; head++) {
            const auto& x = found.sums[i];
            float4* to = (float4*)&findings.sums[lane.warp][lane.column * 2 + head][i * 64 + lane.row * 8];
            to[0] = make_float4(x[0][head], x[0][head + 2], x[1][head], x[1][head + 2]);
            to[1] = make_float4(x[2][head], x[2][head + 2], x[3][head], x[3][head + 2]);
        }
    }
}

DEVICE float4 add_scaled(float4 sum, float factor, float4 x) {
    return make_float4(sum.x + factor * x.x, sum.y + factor * x.y, sum.z + factor * x.z, sum.w + factor * x.w);
}

// Four numbers of a head's sums, with the peak and the total that belong to them.
struct Merged {
    float peak, total;
    float4 sums;
};

DEVICE Merged nothing_merged() { return {minus_infinity(), 0.0f, all(0.0f)}; }

DEVICE float4 weighted_mean(const Merged& merged) { return scaled(__fdividef(1.0f, merged.total), merged.sums); }

// Takes several in at once, so that they are read together.
template <int count>
DEVICE void merge(Merged& into, const Merged (&parts)[count]) {
    float peak = into.peak;
#pragma unroll
    for (int i = 0; i < count; i++) peak = fmaxf(peak, parts[i].peak);
    float before = exp2_fast(into.peak - peak);
    into = {peak, before * into.total, scaled(before, into.sums)};
#pragma unroll
    for (int i = 0; i < count; i++) {
        float factor = exp2_fast(parts[i].peak - peak);
        into.total += factor * parts[i].total;
        into.sums = add_scaled(into.sums, factor, parts[i].sums);
    }
}

template <int W>
DEVICE Merged merge_warps(const Findings<W>& findings, int head, int at) {
    Merged parts[Shape<W>::WARPS], merged = nothing_merged();
#pragma unroll
    for (int warp = 0; warp < Shape<W>::WARPS; warp++) {
        parts[warp] = {findings.peak[warp][head], findings.total[warp][head],
                       *(const float4*)&findings.sums[warp][head][at]};
    }
    merge(merged, parts);
    return merged;
}

// Where splits leave what they found: sums of every (row, head, split), then pairs of peak and total.
struct Workspace {
    float* sums;
    float2* pairs;
    int splits, width;
};

DEVICE Workspace workspace_of(const Input& in, int first_head) {
    u64 heads = (u64)gridDim.z * in.query_heads * in.splits;
    u64 head = (u64)first_head * in.splits;
    return {in.workspace + head * in.width, (float2*)(in.workspace + heads * in.width) + head, in.splits, in.width};
}

DEVICE void leave(const Workspace& space, int head, int at, const Merged& merged) {
    u64 slot = (u64)head * space.splits + blockIdx.x;
    *(float4*)(space.sums + slot * space.width + at) = merged.sums;
    if (at == 0) space.pairs[slot] = make_float2(merged.peak, merged.total);
}

// Whether all `blocks` that count here have come; the counter is then ready for the next launch.
DEVICE bool last_to_arrive(u32* counter, int blocks) {
    __threadfence();
    __syncthreads();
    bool last = threadIdx.x == 0 && atomicAdd(counter, 1u) == (u32)blocks - 1;
    if (last) *counter = 0;
    return __syncthreads_or(last);
}

// Other blocks wrote them, so that the first cache may be stale: __ldcg reads past it.
DEVICE Merged merge_splits(const Workspace& space, int head, int at, int splits) {
    Merged merged = nothing_merged();
#pragma unroll 1
    for (int first = 0; first < splits; first += SPLITS_AT_ONCE) {
        Merged parts[SPLITS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < SPLITS_AT_ONCE; i++) {
            parts[i] = nothing_merged();
            if (first + i >= splits) continue;
            u64 slot = (u64)head * space.splits + first + i;
            float2 pair = __ldcg(space.pairs + slot);
            parts[i] = {pair.x, pair.y, __ldcg((const float4*)(space.sums + slot * space.width + at))};
        }
        merge(merged, parts);
    }
    return merged;
}

// Calls `body` with a head of the block and the first of four of its numbers, for all that this thread has to write.
template <int W, class Body>
DEVICE void each_four(int heads, int width, Body body) {
    constexpr int ROUND = Shape<W>::THREADS * 4;
#pragma unroll 1
    for (int round = 0; round < (HEADS * W + ROUND - 1) / ROUND; round++) {
        u32 i = round * ROUND + threadIdx.x * 4;
        int head = i / W, at = i % W;
        if (head < heads && at < width) body(head, at);
    }
}

// A row of the block's, and its part of it.
struct Work {
    u32 row, position;
    Heads heads;
    Span span;
    Cache cache;
    bool newest;
};

template <int W>
DEVICE Work work_of_block(const Input& in) {
    Work work;
    work.row = in.rows[blockIdx.z];
    work.position = in.positions[work.row];
    u32 table = in.table_start[work.row];
    work.heads = heads_of_block(in.query_heads, in.kv_heads);
    work.span = span_of<W>(work.position, in.window, in.splits);
    work.cache = cache_of(in, table, work.heads.key);
    work.newest = (int)blockIdx.x == work.span.splits - 1;
    return work;
}

// Queries that are turned already, to where the instructions take them from.
template <int W>
DEVICE void take_queries(Queries<W>& queries, const Input& in, const Work& work) {
    for (int task = threadIdx.x / Shape<W>::TURNERS; task < work.heads.count; task += Shape<W>::TURNED) {
        u64 first = (u64)work.row * in.row_width + (work.heads.first + task) * in.width;
        put_query<W>(queries, task, load_head<W>(in.qkv, in.kind, first, in.width, true), in.width);
    }
}

// The head of one task, of a row that is as the product left it, to where it is needed.
template <int W>
DEVICE void turn_head(Queries<W>& queries, Newest<W>& newest, const Input& in, const Work& work, const Turn<W>& turn,
                      float epsilon, int task) {
    Head head = turn.head;
    u64 first = (u64)work.row * in.row_width + head.number * in.width;
    Fours<W> x = load_head<W>(in.qkv, in.kind, first, in.width, head.part != NOTHING);
    add_bias<W>(x, turn.bias);
    norm_head<W>(x, turn, in.width, epsilon);
    if (head.part == QUERY || head.part == KEY) rotate<W>(x, turn.angles);
    if (head.part == QUERY) put_query<W>(queries, task, x, in.width);
    if (head.part == KEY) put_rounded<W>(newest.key, x);
    if (head.part == VALUE) put_rounded<W>(newest.value, x);
}

// The heads of the block beyond the first round.
template <int W>
DEVICE void turn_others(Queries<W>& queries, Newest<W>& newest, const Input& in, const Work& work, const Turning& by) {
    constexpr int TURNED = Shape<W>::TURNED;
    int own = threadIdx.x / Shape<W>::TURNERS, heads = work.heads.count + (work.newest ? 2 : 0);
#pragma unroll 1
    for (int first = TURNED; first < heads; first += TURNED) {
        Head head = head_of(first + own, in, work.heads, work.newest);
        Turn<W> turn = turn_of<W>(by, head, work.position, in.width);
        turn_head<W>(queries, newest, in, work, turn, by.epsilon, first + own);
    }
}

// Everything of the row that is to be turned: a round of heads whose `turn` is known, and what is left.
template <int W>
DEVICE void turn_row(Queries<W>& queries, Newest<W>& newest, const Input& in, const Work& work, const Turning& by,
                     const Turn<W>& turn) {
    turn_head<W>(queries, newest, in, work, turn, by.epsilon, threadIdx.x / Shape<W>::TURNERS);
    if (Shape<W>::TURNED < HEADS + 2) turn_others<W>(queries, newest, in, work, by);
}

// Every load is under way for a whole round: keys of the next page as soon as these are used, values likewise, and the
// block of the page after it.
template <int W, bool turns>
DEVICE void see(Found<W>& found, Page<W>& own, u32 next, const Queries<W>& queries, const Newest<W>& newest,
                const Work& work, const Span& cached) {
    constexpr int STEP = Shape<W>::WARPS;
    Lane lane = this_lane();
    const Span& span = work.span;
    // Only the first page of a span may have tokens before it.
    Span rest = cached;
    rest.first = 0;
    for (int page = span.first_page + lane.warp; holds_page(span, page); page += STEP) {
        float scores[4];
        if (turns) take_newest<W>(own, newest, cached.end - page * BLOCK_TOKENS, lane);
        score<W>(scores, own, queries, span, page, lane);
        load_keys<W>(own, work.cache, rest, page + STEP, next, lane);
        weigh<W>(scores, found, lane);
        add_values<W>(found, own, scores);
        load_values<W>(own, work.cache, rest, page + STEP, next, lane);
        next = block_at(work.cache, span, page + 2 * STEP);
    }
}

// Where what a block makes goes: it waits in shared memory, for registers are short in between.
struct Target {
    // The first of the block's heads, among those of all rows of the output, and of the launch's rows.
    int to, workspace;
    int heads, splits;
    // Page of the newest token's key and its slot; negative where this block does not write it.
    u32 page;
    int slot;
};

// Of the blocks that see the newest token, that of the group's first piece writes it.
template <bool turns>
DEVICE Target target_of(const Input& in, const Work& work) {
    int first = work.heads.first;
    Target target = {(int)work.row * in.query_heads + first, (int)blockIdx.z * in.query_heads + first,
                     work.heads.count, work.span.splits, 0, -1};
    if (turns && work.newest && work.heads.piece == 0) {
        target.page = keys_of(work.cache, block_at(work.cache, work.span, work.position / BLOCK_TOKENS));
        target.slot = work.position % BLOCK_TOKENS;
    }
    return target;
}

// The newest token to the cache, for later steps.
template <int W>
DEVICE void write_newest(const Newest<W>& newest, const Input& in, const Target& target) {
    int half = threadIdx.x / (W / 8), at = threadIdx.x % (W / 8) * 8;
    if (target.slot < 0 || half >= 2 || at >= in.width) return;
    bf16* to = page_at(in.kv, target.page + half * in.kv_heads, in.width) + target.slot * in.width;
    const uint4* from = half == 0 ? newest.key : newest.value;
    *(uint4*)(to + at) = from[at / 8];
}

// To the output, or to the workspace and by the last block to the output.
template <int W>
DEVICE void finish(const Findings<W>& findings, const Input& in, Target target) {
    u64 to = (u64)target.to * in.width;
    Workspace space = workspace_of(in, target.workspace);
    bool alone = target.splits == 1;
    each_four<W>(target.heads, in.width, [&](int head, int at) {
        Merged merged = merge_warps<W>(findings, head, at);
        if (alone) {
            store4(in.out, in.out_kind, to + head * in.width + at, weighted_mean(merged));
        } else {
            leave(space, head, at, merged);
        }
    });
    if (alone || !last_to_arrive(in.counters + blockIdx.z * gridDim.y + blockIdx.y, target.splits)) return;
    each_four<W>(target.heads, in.width, [&](int head, int at) {
        Merged merged = merge_splits(space, head, at, target.splits);
        store4(in.out, in.out_kind, to + head * in.width + at, weighted_mean(merged));
    });
}

template <int W>
DEVICE void load_page(Page<W>& to, const Cache& cache, const Span& span, int page, u32 block) {
    load_keys<W>(to, cache, span, page, block, this_lane());
    load_values<W>(to, cache, span, page, block, this_lane());
}

// All that need not wait for the launch before comes first: for rows to turn, that is all but the rows themselves.
template <int W, bool turns>
DEVICE void attend(const Input& in, const Turning& by) {
    SHARED Findings<W> findings;
    SHARED Queries<W> queries;
    SHARED Newest<W> newest;
    SHARED Target target;

    grid_release();
    Work work = work_of_block<W>(in);
    bool idle = (int)blockIdx.x >= work.span.splits;
    // What the cache has: not the newest token, where this launch brings it.
    Span cached = work.span;
    if (turns && work.newest) cached.end--;
    int page = work.span.first_page + this_lane().warp;
    u32 block = block_at(work.cache, work.span, page), next = block_at(work.cache, work.span, page + Shape<W>::WARPS);
    Page<W> own;
    Turn<W> turn;
    if (turns && !idle) {
        Head head = head_of(threadIdx.x / Shape<W>::TURNERS, in, work.heads, work.newest);
        turn = turn_of<W>(by, head, work.position, in.width);
        load_page<W>(own, work.cache, cached, page, block);
    }
    if (threadIdx.x == 0) target = target_of<turns>(in, work);
    // Blocks that have nothing to do wait too: a launch is not over before those before it.
    grid_wait();
    if (idle) return;
    if (turns) {
        turn_row<W>(queries, newest, in, work, by, turn);
    } else {
        load_page<W>(own, work.cache, cached, page, block);
        take_queries<W>(queries, in, work);
    }
    __syncthreads();
    Found<W> found = {minus_infinity(), 0.0f, {}};
    see<W, turns>(found, own, next, queries, newest, work, cached);
    tell<W>(findings, found);
    if (turns) write_newest<W>(newest, in, target);
    __syncthreads();
    finish<W>(findings, in, target);
}

}  // namespace decode

#define PARAMETERS                                                                                                     \
    const void *qkv, int kind, int row_width, int query_heads, int kv_heads, int width, const u32 *rows,               \
        const u32 *positions, const u32 *table_start, const u32 *tables, bf16 *kv, int layer, int layers, int window,  \
        int splits, float *workspace, u32 *counters, void *out, int out_kind
#define INPUT                                                                                                          \
    {qkv, kind, row_width, query_heads, kv_heads, width, rows, positions, table_start, tables, kv, layer, layers,      \
     window, splits, workspace, counters, out, out_kind}

// The bound is of registers: 128 for widths up to 128, so that two blocks fit a multiprocessor.
#define DECODE(W, bound)                                                                                               \
    KERNEL(decode_##W, bound)(PARAMETERS) { decode::attend<W, false>(INPUT, {}); }                                     \
    KERNEL(turn_decode_##W, bound)                                                                                     \
    (PARAMETERS, const float* bias, const float* query_norm, const float* key_norm, float epsilon, const float* rope,  \
     int rope_width) {                                                                                                 \
        decode::attend<W, true>(INPUT, {bias, query_norm, key_norm, epsilon, rope, rope_width});                       \
    }

DECODE(64, 512)
DECODE(128, 512)
DECODE(256, 256)
