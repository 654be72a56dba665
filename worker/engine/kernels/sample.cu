// Logits to token, as `sampler.rs` does it and with its choice, bit for bit. A block of 1024 threads a row.
//
// Nothing is sorted but a few: the likeliest of each thread's own share bound from below what the k-th likeliest of all
// can be, so one more pass finds the few tokens that matter. Only where many matter are thresholds searched for in the
// whole row, digit by digit. A token's code is its rank among all: greater is likelier, of equals the lower id.

#include "device.cuh"

#define THREADS 1024
#define WARPS (THREADS / WARP)  // as many as a warp has lanes

#define GREATEST 3.402823466e+38f
#define LOWEST (-GREATEST)

// Fraction bits of a weight; beyond so many octaves below the likeliest a token weighs nothing.
#define WEIGHT_BITS 40

// Thread maxima that bound the tokens to be ranked: half of a list, so that it seldom overflows.
#define RANKED 512

// u32 numbers of a row of parameters.
#define PARAMETERS 12
#define NO_MASK 0xffffffffu

// Bins of a histogram, and its copies, so that the lanes of a warp seldom meet.
#define DIGITS 256
#define COPIES 8

// Logits of a token each, cut into fours at 16-byte boundaries: `before` numbers of the first four are not the row's. A
// mask has a bit a token, set where it is allowed.
struct Row {
    const float* logits;
    const u32* mask;
    int vocabulary, before;
};

// What the threads of a block share.
struct Scratch {
    u64 warps[WARPS];
    u64 found;
    u32 count;
};

// How weights are cut.
struct Cut {
    float greatest, factor;  // octaves are (logit - greatest) * factor
    u64 least;
    float top_p;
    int top_k;  // 0: all
    u64 random;
};

DEVICE Row row_of(const float* logits, const u32* mask, int vocabulary, int row) {
    logits += (u64)row * vocabulary;
    return {logits, mask, vocabulary, (int)((u64)logits / sizeof(float) % 4)};
}

// As a number that can be compared: NaN becomes the lowest, and there is one zero.
DEVICE float finite(float x) { return __fadd_rn(fminf(fmaxf(x, LOWEST), GREATEST), 0.0f); }

DEVICE float forbidden() { return __uint_as_float(0xff800000u); }

// Keys are in the order of the numbers.
DEVICE u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

DEVICE float number_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

DEVICE u64 code_of(float logit, int token) { return (u64)key_of(logit) << 32 | (u32)~token; }

DEVICE int token_of(u64 code) { return (int)~(u32)code; }

DEVICE float logit_of(u64 code) { return number_of((u32)(code >> 32)); }

DEVICE float logit_at(const Row& row, int token) {
    if (token < 0 || token >= row.vocabulary) return forbidden();
    if (row.mask && !(row.mask[token / 32] >> (token % 32) & 1)) return forbidden();
    return finite(row.logits[token]);
}

// Of four logits of the row, what is allowed.
DEVICE float4 allowed_of(const Row& row, int token, float4 four) {
    u32 bits = 15;
    if (row.mask) bits = __funnelshift_r(row.mask[token / 32], row.mask[(token + 3) / 32], token % 32);
    return make_float4(bits & 1 ? finite(four.x) : forbidden(), bits & 2 ? finite(four.y) : forbidden(),
                       bits & 4 ? finite(four.z) : forbidden(), bits & 8 ? finite(four.w) : forbidden());
}

// Numbers of a warp's share of the row, whole fours: warps take runs of it, in order.
DEVICE int share_of(const Row& row) { return (row.before + row.vocabulary + WARPS * 4 - 1) / (WARPS * 4) * 4; }

// Calls `visit` with each token and its logit; every thread has others, in ascending order. `ahead` fours are loaded at
// once: the less is computed of each, the more.
template <int ahead = 2, class Visit>
DEVICE void each_logit(const Row& row, Visit visit) {
    const int step = WARP * 4;
    int lane = threadIdx.x % WARP, share = share_of(row);
    int begin = threadIdx.x / WARP * share - row.before, end = min(begin + share, row.vocabulary);
    if (begin < 0 && lane < 4) visit(begin + lane, logit_at(row, begin + lane));
    for (int token = begin + lane * 4; token < end; token += ahead * step) {
        float4 fours[ahead];
        bool whole[ahead];
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            int at = token + i * step;
            whole[i] = at >= 0 && at + 4 <= end;
            if (whole[i]) fours[i] = *(const float4*)(row.logits + at);
        }
#pragma unroll
        for (int i = 0; i < ahead; i++) {
            if (!whole[i]) continue;
            int at = token + i * step;
            float4 four = allowed_of(row, at, fours[i]);
            visit(at, four.x);
            visit(at + 1, four.y);
            visit(at + 2, four.z);
            visit(at + 3, four.w);
        }
    }
    int last = row.vocabulary - (row.before + row.vocabulary) % 4 + lane;
    if (begin < end && end == row.vocabulary && lane < 4 && last - lane >= 0) visit(last, logit_at(row, last));
}

// The greatest code of this thread's tokens; that of token 0 where nothing is allowed.
DEVICE u64 likeliest_of_share(const Row& row) {
    float best = forbidden();
    int from = 0;
    each_logit<4>(row, [&](int token, float logit) {
        if (logit > best) {
            best = logit;
            from = token;
        }
    });
    return code_of(best, from);
}

DEVICE u64 warp_max(u64 x) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(FULL, x, lanes));
    return x;
}

DEVICE u64 block_max(u64 x, Scratch& scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch.warps[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_max(scratch.warps[threadIdx.x % WARP]);
}

// The sum up to this lane, its own included.
DEVICE u64 warp_scan(u64 x) {
    int lane = threadIdx.x % WARP;
    for (int lanes = 1; lanes < WARP; lanes *= 2) {
        u64 below = __shfl_up_sync(FULL, x, lanes);
        if (lane >= lanes) x += below;
    }
    return x;
}

// The sum up to this thread, its own included, and the total of the block; leaves the sums of the warps in the scratch.
DEVICE u64 block_scan(u64 x, Scratch& scratch, u64& total) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = warp_scan(x);
    __syncthreads();
    if (lane == WARP - 1) scratch.warps[warp] = x;
    __syncthreads();
    u64 own = scratch.warps[lane], upto = warp_scan(own);
    total = __shfl_sync(FULL, upto, WARP - 1);
    return x + __shfl_sync(FULL, upto - own, warp);
}

// The greatest key that `count` threads reach.
DEVICE u32 reached_by(u32 key, int count) {
    u32 bar = 0;
    for (u32 bit = 1u << 31; bit != 0; bit >>= 1) {
        if (__syncthreads_count(key >= (bar | bit)) >= count) bar |= bit;
    }
    return bar;
}

// Sorts the first `count` of a list, the greatest first; the list has room up to the next power of two.
DEVICE void sort(u64* list, int count) {
    int size = 1;
    while (size < count) size *= 2;
    __syncthreads();
    if (threadIdx.x >= count && threadIdx.x < size) list[threadIdx.x] = 0;
    for (int run = 2; run <= size; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            __syncthreads();
            if (threadIdx.x >= size / 2) continue;
            int a = 2 * threadIdx.x - (threadIdx.x & (apart - 1)), b = a + apart;
            u64 first = list[a], second = list[b];
            if ((first < second) == ((a & run) == 0)) {
                list[a] = second;
                list[b] = first;
            }
        }
    }
    __syncthreads();
}

// 2^octaves in fixed point. Every step is rounded by itself, as the host rounds it.
DEVICE u64 weight(float octaves) {
    if (!(octaves >= -WEIGHT_BITS)) return 0;
    const float rounder = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the nearest whole number
    float rounded = __fadd_rn(octaves, rounder);
    float rest = __fadd_rn(octaves, -__fadd_rn(rounded, -rounder));
    const float terms[] = {0.0013300605f, 0.009669691f, 0.055505585f, 0.24022283f, 0.6931472f, 1.0f};
    float power = 0.0f;
#pragma unroll
    for (float term : terms) power = __fadd_rn(__fmul_rn(power, rest), term);
    u32 bits = __float_as_uint(power) + (__float_as_uint(rounded) << 23);
    u64 mantissa = (bits & 0x7fffffu) | 0x800000u;
    return (mantissa << (WEIGHT_BITS - 23)) >> (127 - (bits >> 23));
}

DEVICE u64 weigh(const Cut& cut, float logit) { return weight(__fmul_rn(__fadd_rn(logit, -cut.greatest), cut.factor)); }

DEVICE u64 weigh_kept(const Cut& cut, float logit) {
    u64 weight = weigh(cut, logit);
    return weight >= cut.least ? weight : 0;
}

// A part of the total, at least the likeliest token.
DEVICE u64 part_of(u64 total, float part) {
    double product = (double)total * (double)part;
    return product >= 1.0 ? (u64)product : 1;
}

// A number below the total.
DEVICE u64 below(u64 total, u64 random) { return __umul64hi(random, total); }

// The token on which a number below the total falls when weights are laid end to end by token id; `choose` makes it of
// the total, which is not zero.
template <class Weigh, class Choose>
DEVICE int pick(const Row& row, Scratch& scratch, Weigh weigh, Choose choose) {
    u64 sum = 0, total;
    each_logit(row, [&](int token, float logit) { sum += weigh(token, logit); });
    block_scan(sum, scratch, total);
    u64 left = choose(total);
    int warp = 0;
    while (warp < WARPS - 1 && left >= scratch.warps[warp]) left -= scratch.warps[warp++];

    int share = share_of(row), own = (share + THREADS - 1) / THREADS, first = warp * share - row.before;
    int token = first + min((int)threadIdx.x * own, share), end = first + min((int)(threadIdx.x + 1) * own, share);
    sum = 0;
    for (int at = token; at < end; at++) sum += weigh(at, logit_at(row, at));
    u64 upto = block_scan(sum, scratch, total);
    if (upto - sum <= left && left < upto) {
        left -= upto - sum;
        for (u64 next; left >= (next = weigh(token, logit_at(row, token))); token++) left -= next;
        scratch.found = token;
    }
    __syncthreads();
    return (int)scratch.found;
}

// Adds to one copy of a bin: two words, as shared memory adds only words at once.
DEVICE void add_to(uint2* bins, u32 digit, u64 x) {
    uint2* bin = bins + digit * COPIES + threadIdx.x % COPIES;
    u32 before = atomicAdd(&bin->x, (u32)x);
    u32 high = (u32)(x >> 32) + (before + (u32)x < before);
    if (high) atomicAdd(&bin->y, high);
}

// The code of the last token of the shortest run of the likeliest that together measure `wanted`, not zero; 0 where all
// measure less.
DEVICE u64 last_of_run(const Row& row, Scratch& scratch, uint2* bins, const Cut& cut, bool weighed, u64 wanted) {
    auto measure = [&](float logit) { return weighed ? weigh(cut, logit) : (u64)(logit >= LOWEST); };
    u32 key = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int i = threadIdx.x; i < DIGITS * COPIES; i += THREADS) bins[i] = make_uint2(0, 0);
        if (threadIdx.x == 0) scratch.count = DIGITS;
        __syncthreads();
        each_logit(row, [&](int, float logit) {
            u32 own = key_of(logit);
            if ((own ^ key) >> shift >> 8 != 0) return;
            u64 more = measure(logit);
            if (more) add_to(bins, own >> shift & (DIGITS - 1), more);
        });
        __syncthreads();
        u64 sum = 0, total;
        u32 digit = DIGITS - 1 - threadIdx.x;
        for (int i = 0; i < COPIES && threadIdx.x < DIGITS; i++) {
            uint2 bin = bins[digit * COPIES + i];
            sum += (u64)bin.y << 32 | bin.x;
        }
        u64 upto = block_scan(sum, scratch, total);
        if (upto >= wanted && upto - sum < wanted) {
            scratch.count = digit;
            scratch.found = wanted - (upto - sum);
        }
        __syncthreads();
        if (scratch.count == DIGITS) return 0;
        key |= scratch.count << shift;
        wanted = scratch.found;
    }
    // Equals measure the same: so many of them are needed, by token id.
    float last = number_of(key);
    u64 each = measure(last), needed = (wanted + each - 1) / each;
    int token = pick(
        row, scratch, [&](int, float logit) { return (u64)(logit == last); }, [&](u64) { return needed - 1; });
    return code_of(last, token);
}

// The least code that is kept, where a list is too short to tell: thresholds are searched for in the whole row.
DEVICE u64 least_kept(const Row& row, Scratch& scratch, uint2* bins, const Cut& cut) {
    u64 least = 0, wanted = cut.top_k;
    for (int weighed = 0; weighed < 2; weighed++) {
        if (weighed && cut.top_p < 1.0f) {
            u64 sum = 0, total;
            each_logit(row, [&](int token, float logit) {
                if (code_of(logit, token) >= least) sum += weigh(cut, logit);
            });
            block_scan(sum, scratch, total);
            wanted = part_of(total, cut.top_p);
        }
        if (wanted) least = max(least, last_of_run(row, scratch, bins, cut, weighed, wanted));
        wanted = 0;
    }
    return least;
}

// Draws of a list of codes, the likeliest of all tokens, whose total weight is given; -1 where the list is too short to
// tell where top_p cuts.
DEVICE int draw_listed(u64* list, int count, u64 total, Scratch& scratch, const Cut& cut) {
    sort(list, count);
    if (cut.top_k) count = min(count, cut.top_k);
    bool kept = threadIdx.x < count;
    u64 code = kept ? list[threadIdx.x] : 0;
    u64 own = kept ? weigh(cut, logit_of(code)) : 0;
    u64 listed, upto = block_scan(own, scratch, listed);
    if (cut.top_p < 1.0f) {
        u64 wanted = part_of(cut.top_k ? listed : total, cut.top_p);
        if (listed < wanted) return -1;
        kept = kept && upto - own < wanted;
    }
    count = __syncthreads_count(kept);
    // By token id now, with the key behind it.
    if (kept) list[threadIdx.x] = code << 32 | code >> 32;
    sort(list, count);
    kept = threadIdx.x < count;
    code = kept ? list[threadIdx.x] : 0;
    own = kept ? weigh_kept(cut, number_of((u32)code)) : 0;
    upto = block_scan(own, scratch, listed);
    u64 left = below(listed, cut.random);
    if (upto - own <= left && left < upto) scratch.found = (u32)~(code >> 32);
    __syncthreads();
    return (int)scratch.found;
}

// Lists the codes of logits from `bar` on, and how many those are; the total weight where top_k does not do without.
DEVICE int list_from(const Row& row, float bar, u64* list, Scratch& scratch, const Cut& cut, u64& total) {
    u64 sum = 0;
    bool weighed = cut.top_k == 0;
    if (threadIdx.x == 0) scratch.count = 0;
    __syncthreads();
    each_logit<4>(row, [&](int token, float logit) {
        if (weighed) sum += weigh(cut, logit);
        if (logit >= bar) {
            u32 at = atomicAdd(&scratch.count, 1u);
            if (at < THREADS) list[at] = code_of(logit, token);
        }
    });
    block_scan(sum, scratch, total);
    return scratch.count;
}

// Draws by the cut; `likeliest` is the greatest key of this thread.
DEVICE int draw(const Row& row, u32 likeliest, Scratch& scratch, u64* shared, const Cut& cut) {
    u64 least = 0;
    if (cut.top_k || cut.top_p < 1.0f) {
        u32 key = reached_by(likeliest, cut.top_k ? min(cut.top_k, RANKED) : RANKED);
        bool all = key <= key_of(forbidden());
        if (all || cut.top_k <= RANKED) {
            u64 total;
            int count = list_from(row, all ? LOWEST : number_of(key), shared, scratch, cut, total);
            int token = count <= THREADS ? draw_listed(shared, count, total, scratch, cut) : -1;
            if (token >= 0) return token;
        }
        least = least_kept(row, scratch, (uint2*)shared, cut);
    }
    return pick(
        row, scratch,
        [&](int token, float logit) { return code_of(logit, token) < least ? 0 : weigh_kept(cut, logit); },
        [&](u64 total) { return below(total, cut.random); });
}

// Penalises each token of the history once; `seen` has a bit a token.
DEVICE void penalise(float* logits, int vocabulary, float penalty, const u32* history, u32 count, u32* seen) {
    for (int i = threadIdx.x; i < (vocabulary + 31) / 32; i += THREADS) seen[i] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        u32 token = history[i], bit = 1u << token % 32;
        if (token >= vocabulary || atomicOr(&seen[token / 32], bit) & bit) continue;
        float logit = finite(logits[token]);
        logits[token] = finite(logit > 0.0f ? __fdiv_rn(logit, penalty) : __fmul_rn(logit, penalty));
    }
    __syncthreads();
}

// Philox4x32-10: the first two numbers of the block at `position`.
DEVICE u64 random_bits(u32 seed_low, u32 seed_high, u32 position) {
    u32 a = position, b = 0, c = 0, d = 0;
    for (int round = 0; round < 10; round++) {
        u64 first = 0xd2511f53ull * a, second = 0xcd9e8d57ull * c;
        a = (u32)(second >> 32) ^ b ^ seed_low;
        c = (u32)(first >> 32) ^ d ^ seed_high;
        b = (u32)second;
        d = (u32)first;
        seed_low += 0x9e3779b9u;
        seed_high += 0xbb67ae85u;
    }
    return (u64)b << 32 | a;
}

DEVICE Cut cut_of(const u32* parameters, float greatest, int vocabulary) {
    Cut cut;
    cut.greatest = greatest;
    cut.factor = fminf(__fdiv_rn(1.44269504f, __uint_as_float(parameters[0])), GREATEST);
    cut.top_p = __uint_as_float(parameters[1]);
    cut.top_k = parameters[2] < (u32)vocabulary ? parameters[2] : 0;
    cut.least = (u64)(fminf(__uint_as_float(parameters[3]), 1.0f) * (float)(1ull << WEIGHT_BITS));
    cut.random = random_bits(parameters[5], parameters[6], parameters[7]);
    return cut;
}

// The greatest logit's token, of equals the lowest. Grid rows.
KERNEL(argmax, 1024)(const float* logits, int rows, int vocabulary, u32* chosen) {
    SHARED Scratch scratch;
    grid_wait();
    grid_release();
    Row row = row_of(logits, nullptr, vocabulary, blockIdx.x);
    u64 best = block_max(likeliest_of_share(row), scratch);
    if (threadIdx.x == 0) chosen[blockIdx.x] = token_of(best);
}

// Chooses a token of each row of logits, which are used up. Grid rows; dynamic shared memory of 16384 bytes, and at
// least a bit for each token of the vocabulary. Parameters of a row, 12 words:
//    0 temperature, 1 top_p                 floats
//    2 top_k                                0: all
//    3 min_p, 4 repetition penalty          floats
//    5 low and 6 high half of the seed, 7 position
//    8 first and 9 count of the tokens in `history` that are penalised
//   10 first word of the mask in `masks`    0xffffffff: none; else vocabulary / 32 words, rounded up
//   11 nothing
KERNEL(sample, 1024)
(float* logits, int rows, int vocabulary, const u32* parameters, const u32* history, const u32* masks, u32* chosen) {
    SHARED Scratch scratch;
    SHARED Row row;
    SHARED Cut cut;
    DYNAMIC_SHARED(u64, shared);
    grid_wait();
    grid_release();
    const u32* of = parameters + blockIdx.x * PARAMETERS;
    float temperature = __uint_as_float(of[0]), penalty = __uint_as_float(of[4]);
    if (penalty != 1.0f) {
        penalise(logits + (u64)blockIdx.x * vocabulary, vocabulary, penalty, history + of[8], of[9], (u32*)shared);
    }
    if (threadIdx.x == 0) row = row_of(logits, of[10] == NO_MASK ? nullptr : masks + of[10], vocabulary, blockIdx.x);
    __syncthreads();
    u64 likeliest = likeliest_of_share(row);
    u64 best = block_max(likeliest, scratch);
    int token = token_of(best);
    // Where everything is forbidden a choice is due all the same.
    if (temperature > 0.0f && logit_of(best) >= LOWEST) {
        if (threadIdx.x == 0) cut = cut_of(of, logit_of(best), vocabulary);
        __syncthreads();
        token = draw(row, (u32)(likeliest >> 32), scratch, shared, cut);
    }
    if (threadIdx.x == 0) chosen[blockIdx.x] = token;
}
