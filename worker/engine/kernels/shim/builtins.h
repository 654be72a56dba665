// CUDA's functions: barriers, warps, atomics, bits, numbers. A launch runs on one thread of the host, so that an atomic
// operation is a plain one.

#pragma once

static inline void __syncthreads(SHIM_PLACE) { shim::barrier(SHIM_HERE, "__syncthreads", false); }
static inline int __syncthreads_or(int x, SHIM_PLACE) {
    return shim::barrier(SHIM_HERE, "__syncthreads_or", x != 0) > 0;
}
static inline int __syncthreads_and(int x, SHIM_PLACE) {
    return shim::barrier(SHIM_HERE, "__syncthreads_and", x == 0) == 0;
}
static inline int __syncthreads_count(int x, SHIM_PLACE) {
    return (int)shim::barrier(SHIM_HERE, "__syncthreads_count", x != 0);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_PLACE) {
    shim::collective(SHIM_HERE, "__syncwarp", mask, nullptr, [](const shim::Lanes&) {});
}

namespace shim {

template <class T>
struct Shuffle {
    T value, result;
    int from;
};

// Every lane gets the value of the lane it names, which must take part.
template <class T>
T shuffle(Place place, const char* what, unsigned mask, T value, int from) {
    Shuffle<T> own = {value, value, from};
    collective(place, what, mask, &own, [](const Lanes& lanes) {
        for (int at = 0; at < 32; at++) {
            if (!lanes.named(at)) continue;
            Shuffle<T>& mine = lanes.of<Shuffle<T>>(at);
            if (!lanes.named(mine.from)) {
                fail(lanes.place, "lane %d reads lane %d, which mask %08x does not name", at, mine.from, lanes.mask);
            }
            mine.result = lanes.of<Shuffle<T>>(mine.from).value;
        }
    });
    return own.result;
}

inline void check_width(Place place, int width) {
    if (width <= 0 || width > 32 || (width & (width - 1)) != 0) fail(place, "a shuffle's width is %d", width);
}

struct Vote {
    unsigned value, result;
};

// Every lane gets what `fold` makes of all the values.
template <class Fold>
unsigned vote(Place place, const char* what, unsigned mask, unsigned value, Fold) {
    Vote own = {value, 0};
    collective(place, what, mask, &own, [](const Lanes& lanes) {
        unsigned result = Fold::first;
        for (int at = 0; at < 32; at++) {
            if (lanes.named(at)) result = Fold::fold(result, lanes.of<Vote>(at).value, at);
        }
        for (int at = 0; at < 32; at++) {
            if (lanes.named(at)) lanes.of<Vote>(at).result = result;
        }
    });
    return own.result;
}

#define SHIM_FOLD(name, begin, expression)                                                    \
    struct name {                                                                             \
        static const unsigned first = begin;                                                  \
        static unsigned fold(unsigned a, unsigned b, int at) { return (void)at, expression; } \
    };
SHIM_FOLD(Ballot, 0, a | (unsigned)(b != 0) << at)
SHIM_FOLD(Sum, 0, a + b)
SHIM_FOLD(Greatest, 0, a > b ? a : b)
SHIM_FOLD(Least, ~0u, a < b ? a : b)
SHIM_FOLD(And, ~0u, a & b)
SHIM_FOLD(Or, 0, a | b)
SHIM_FOLD(Xor, 0, a ^ b)
#undef SHIM_FOLD

template <class T>
struct Same {
    typedef T type;
};

}  // namespace shim

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, SHIM_PLACE) {
    shim::check_width(SHIM_HERE, width);
    int first = shim::lane() & ~(width - 1);
    return shim::shuffle(SHIM_HERE, "__shfl_sync", mask, value, first + (from & (width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SHIM_PLACE) {
    shim::check_width(SHIM_HERE, width);
    int lane = shim::lane(), from = lane ^ lanes;
    if (from < 0 || from >= 32 || (from & ~(width - 1)) > (lane & ~(width - 1))) from = lane;
    return shim::shuffle(SHIM_HERE, "__shfl_xor_sync", mask, value, from);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SHIM_PLACE) {
    shim::check_width(SHIM_HERE, width);
    int lane = shim::lane(), from = lane + (int)lanes;
    if (lanes >= 32 || from > (lane | (width - 1))) from = lane;
    return shim::shuffle(SHIM_HERE, "__shfl_down_sync", mask, value, from);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SHIM_PLACE) {
    shim::check_width(SHIM_HERE, width);
    int lane = shim::lane(), from = lane - (int)lanes;
    if (lanes >= 32 || from < (lane & ~(width - 1))) from = lane;
    return shim::shuffle(SHIM_HERE, "__shfl_up_sync", mask, value, from);
}

static inline unsigned __ballot_sync(unsigned mask, int x, SHIM_PLACE) {
    return shim::vote(SHIM_HERE, "__ballot_sync", mask, x != 0, shim::Ballot());
}
static inline int __any_sync(unsigned mask, int x, SHIM_PLACE) {
    return shim::vote(SHIM_HERE, "__any_sync", mask, x != 0, shim::Or()) != 0;
}
static inline int __all_sync(unsigned mask, int x, SHIM_PLACE) {
    return shim::vote(SHIM_HERE, "__all_sync", mask, x == 0, shim::Or()) == 0;
}

// Signed numbers keep their order when the sign is turned over.
#define SHIM_REDUCE(name, Fold, turned)                                                           \
    static inline unsigned name(unsigned mask, unsigned x, SHIM_PLACE) {                          \
        return shim::vote(SHIM_HERE, #name, mask, x, shim::Fold());                                   \
    }                                                                                             \
    static inline int name(unsigned mask, int x, SHIM_PLACE) {                                    \
        return (int)(shim::vote(SHIM_HERE, #name, mask, (unsigned)x ^ (turned), shim::Fold()) ^ (turned)); \
    }
SHIM_REDUCE(__reduce_add_sync, Sum, 0u)
SHIM_REDUCE(__reduce_max_sync, Greatest, 0x80000000u)
SHIM_REDUCE(__reduce_min_sync, Least, 0x80000000u)
SHIM_REDUCE(__reduce_and_sync, And, 0u)
SHIM_REDUCE(__reduce_or_sync, Or, 0u)
SHIM_REDUCE(__reduce_xor_sync, Xor, 0u)
#undef SHIM_REDUCE

static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {}
static inline void __trap(SHIM_PLACE) { shim::fail(SHIM_HERE, "__trap"); }
#define __builtin_assume(condition) ((void)0)

// Loads and stores with a hint.
namespace shim {
template <class T>
const T* aligned(Place place, const T* at) {
    if ((unsigned long long)at % alignof(T) != 0) {
        fail(place, "%p is misaligned for %d bytes", (const void*)at, (int)sizeof(T));
    }
    return at;
}
}  // namespace shim
#define SHIM_LOAD(name)                                \
    template <class T>                                 \
    T name(const T* at, SHIM_PLACE) {                  \
        return *shim::aligned(SHIM_HERE, at);              \
    }
SHIM_LOAD(__ldg)
SHIM_LOAD(__ldca)
SHIM_LOAD(__ldcg)
SHIM_LOAD(__ldcs)
SHIM_LOAD(__ldlu)
SHIM_LOAD(__ldcv)
#undef SHIM_LOAD
#define SHIM_STORE(name)                                                   \
    template <class T>                                                     \
    void name(T* at, typename shim::Same<T>::type value, SHIM_PLACE) {     \
        *const_cast<T*>(shim::aligned(SHIM_HERE, at)) = value;                 \
    }
SHIM_STORE(__stwb)
SHIM_STORE(__stcg)
SHIM_STORE(__stcs)
SHIM_STORE(__stwt)
#undef SHIM_STORE

#define SHIM_ATOMIC(name, expression)                       \
    template <class T>                                      \
    T name(T* at, typename shim::Same<T>::type x) {         \
        T old = *at;                                        \
        *at = (T)(expression);                              \
        return old;                                         \
    }
SHIM_ATOMIC(atomicAdd, old + x)
SHIM_ATOMIC(atomicSub, old - x)
SHIM_ATOMIC(atomicMax, old > x ? old : x)
SHIM_ATOMIC(atomicMin, old < x ? old : x)
SHIM_ATOMIC(atomicExch, x)
SHIM_ATOMIC(atomicAnd, old & x)
SHIM_ATOMIC(atomicOr, old | x)
SHIM_ATOMIC(atomicXor, old ^ x)
SHIM_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
SHIM_ATOMIC(atomicDec, old == 0 || old > x ? x : old - 1)
#undef SHIM_ATOMIC
template <class T>
T atomicCAS(T* at, typename shim::Same<T>::type expected, typename shim::Same<T>::type x) {
    T old = *at;
    if (old == expected) *at = x;
    return old;
}

namespace shim {
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}
}  // namespace shim
static inline float __uint_as_float(unsigned x) { return shim::same_bits<float>(x); }
static inline float __int_as_float(int x) { return shim::same_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return shim::same_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return shim::same_bits<int>(x); }
static inline long long __double_as_longlong(double x) { return shim::same_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return shim::same_bits<double>(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
static inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline unsigned __brev(unsigned x) {
    unsigned turned = 0;
    for (int bit = 0; bit < 32; bit++) turned |= (x >> bit & 1) << (31 - bit);
    return turned;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned choice) {
    unsigned long long both = (unsigned long long)high << 32 | low;
    unsigned chosen = 0;
    for (int at = 0; at < 4; at++) chosen |= (unsigned)(both >> (choice >> at * 4 & 7) * 8 & 0xff) << at * 8;
    return chosen;
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) << (by & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (by & 31));
}

#define SHIM_PAIR(type)                                                       \
    static inline type min(type a, type b) { return b < a ? b : a; }          \
    static inline type max(type a, type b) { return a < b ? b : a; }
SHIM_PAIR(int)
SHIM_PAIR(unsigned)
SHIM_PAIR(long)
SHIM_PAIR(unsigned long)
SHIM_PAIR(long long)
SHIM_PAIR(unsigned long long)
#undef SHIM_PAIR
static inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
static inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
static inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The host's library has these names for itself.
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __tanhf tanhf
static inline float __saturatef(float x) { return x > 0.0f ? fminf(x, 1.0f) : 0.0f; }
static inline float __fdividef(float x, float y) { return x / y; }
static inline float fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// Never contracted: what is rounded apart stays so.
static inline __attribute__((noinline)) float __fmul_rn(float x, float y) { return x * y; }
static inline __attribute__((noinline)) float __fadd_rn(float x, float y) { return x + y; }
static inline __attribute__((noinline)) float __fsub_rn(float x, float y) { return x - y; }

// The device's conversions keep to the range, and make NaN zero.
static inline int __float2int_rz(float x) {
    if (!(x > -2147483648.0f)) return x != x ? 0 : -2147483647 - 1;
    return x >= 2147483648.0f ? 2147483647 : (int)x;
}
static inline unsigned __float2uint_rz(float x) {
    if (!(x > 0.0f)) return 0;
    return x >= 4294967296.0f ? 0xffffffffu : (unsigned)x;
}
static inline int __float2int_rn(float x) { return __float2int_rz(rintf(x)); }
static inline int __float2int_rd(float x) { return __float2int_rz(floorf(x)); }
static inline int __float2int_ru(float x) { return __float2int_rz(ceilf(x)); }
static inline unsigned __float2uint_rn(float x) { return __float2uint_rz(rintf(x)); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
