// CUDA's words for a host compiler: the kernels' text runs on a processor, a fiber a thread, and what a device would
// leave undefined is an error with its place. The rules are in block.cpp.

#pragma once

#include <math.h>
#include <stdio.h>

#include <utility>

#pragma GCC diagnostic ignored "-Wunknown-pragmas"

#define DEVICE static inline __attribute__((unused))
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// Nothing else of the library is local to a thread, so that its block of such variables is a block's static shared
// memory.
#define SHARED static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::dynamic_shared())

struct dim3 {
    unsigned x, y, z;
};

#pragma GCC visibility push(hidden)
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
#pragma GCC visibility pop
static const int warpSize = 32;

#define SHIM_VECTOR(type, of, bytes2, bytes4)                                                                   \
    struct alignas(bytes2) type##2 {                                                                            \
        of x, y;                                                                                                \
    };                                                                                                          \
    struct type##3 {                                                                                            \
        of x, y, z;                                                                                             \
    };                                                                                                          \
    struct alignas(bytes4) type##4 {                                                                            \
        of x, y, z, w;                                                                                          \
    };                                                                                                          \
    static inline type##2 make_##type##2(of x, of y) { return type##2{x, y}; }                                  \
    static inline type##3 make_##type##3(of x, of y, of z) { return type##3{x, y, z}; }                         \
    static inline type##4 make_##type##4(of x, of y, of z, of w) { return type##4{x, y, z, w}; }
SHIM_VECTOR(float, float, 8, 16)
SHIM_VECTOR(int, int, 8, 16)
SHIM_VECTOR(uint, unsigned, 8, 16)
SHIM_VECTOR(short, short, 4, 8)
SHIM_VECTOR(ushort, unsigned short, 4, 8)
SHIM_VECTOR(char, signed char, 2, 4)
SHIM_VECTOR(uchar, unsigned char, 2, 4)
#undef SHIM_VECTOR

struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};
static inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return ulonglong2{x, y}; }

// Every function below that must know its caller takes a place last, and nobody passes one.
#define SHIM_PLACE const char *shim_file = __builtin_FILE(), int shim_line = __builtin_LINE()
#define SHIM_HERE (shim::Place{shim_file, shim_line})

#pragma GCC visibility push(hidden)
namespace shim {

struct Place {
    const char* file;
    int line;
};

// Ends the launch with this message; does not return.
[[noreturn]] void fail(Place place, const char* format, ...) __attribute__((format(printf, 2, 3)));

void* dynamic_shared();

// Waits for all threads of the block, at the same place; how many came with `predicate`.
unsigned barrier(Place place, const char* what, bool predicate);

// What the lanes of a warp brought, and which lanes they are.
struct Lanes {
    void* brought[32];
    unsigned mask;
    Place place;
    template <class T>
    T& of(int lane) const {
        return *static_cast<T*>(brought[lane]);
    }
    bool named(int lane) const { return mask >> lane & 1; }
};

// Waits for all lanes of `mask`, at the same place; the last to come calls `together` for all of them.
void collective(Place place, const char* what, unsigned mask, void* brought, void (*together)(const Lanes& lanes));

// Lane within the warp of who calls.
int lane();

// A kernel as the library's callers see it.
struct Registrar {
    Registrar(const char* name, int threads, const char* kinds, void (*invoke)(void** arguments));
};

template <class T>
struct KindOf {
    static_assert(sizeof(T) == 0, "a kernel's arguments are int, float and pointers");
};
template <>
struct KindOf<int> {
    static const char kind = 'i';
};
template <>
struct KindOf<unsigned> {
    static const char kind = 'i';
};
template <>
struct KindOf<float> {
    static const char kind = 'f';
};
template <class T>
struct KindOf<T*> {
    static const char kind = 'p';
};

template <class... Arguments>
const char* kinds() {
    static const char letters[] = {KindOf<Arguments>::kind..., 0};
    return letters;
}

template <class Tag, class... Arguments, size_t... at>
void call(void** arguments, std::index_sequence<at...>) {
    (void)arguments;
    Tag::template body<Arguments...>(*static_cast<Arguments*>(arguments[at])...);
}

}  // namespace shim
#pragma GCC visibility pop

// A kernel is a specialisation of its tag's `body`. That alone tells its arguments' types, which the functions that
// KERNEL declares and uses before need: naming the body's result instantiates the signature, whose friends they are.
#define KERNEL(name, threads)                                                                                       \
    struct shim_tag_##name;                                                                                         \
    inline void shim_invoke(shim_tag_##name*, void** arguments);                                                    \
    inline const char* shim_kinds(shim_tag_##name*);                                                                \
    template <class... Arguments>                                                                                   \
    struct shim_signature_##name {                                                                                  \
        typedef void result;                                                                                        \
        friend inline void shim_invoke(shim_tag_##name*, void** arguments) {                                        \
            shim::call<shim_tag_##name, Arguments...>(arguments, std::index_sequence_for<Arguments...>());          \
        }                                                                                                           \
        friend inline const char* shim_kinds(shim_tag_##name*) { return shim::kinds<Arguments...>(); }              \
    };                                                                                                              \
    struct shim_tag_##name {                                                                                        \
        template <class... Arguments>                                                                               \
        static typename shim_signature_##name<Arguments...>::result body(Arguments... arguments);                   \
    };                                                                                                              \
    static const shim::Registrar shim_registrar_##name(                                                             \
        #name, (threads), shim_kinds((shim_tag_##name*)nullptr),                                                    \
        [](void** arguments) { shim_invoke((shim_tag_##name*)nullptr, arguments); });                               \
    template <>                                                                                                     \
    void shim_tag_##name::body

#include "shim/builtins.h"
