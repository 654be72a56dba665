// What the library exports: its kernels by number, their launches, and memory for them.

#include <string.h>

#include <mutex>

#include "shim/inside.h"

namespace shim {

std::vector<Kernel>& kernels() {
    static std::vector<Kernel>* all = new std::vector<Kernel>();
    return *all;
}

Registrar::Registrar(const char* name, int threads, const char* kinds, void (*invoke)(void** arguments)) {
    kernels().push_back(Kernel{name, threads, kinds, invoke});
}

namespace {

// What a device would refuse.
std::string refusal(const Kernel& kernel, const Extent& extent) {
    const unsigned* grid = extent.grid;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0) return "a grid with a zero";
    if (grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) return "a grid that is too large";
    if ((unsigned long long)grid[0] * grid[1] * grid[2] > 0xffffffffull) return "more blocks than the shim runs";
    if (extent.threads == 0 || extent.threads % 32 != 0) return text("%u threads, not whole warps", extent.threads);
    if (extent.threads > (unsigned)kernel.threads || extent.threads > 1024) {
        return text("%u threads, where %d are the most", extent.threads, kernel.threads);
    }
    if (extent.shared > 227 << 10) return text("%u bytes of shared memory", extent.shared);
    return "";
}

std::string launch(const Kernel& kernel, const Extent& extent, void** arguments, uint64_t seed) {
    // Fibers, shared memory and handlers of signals are one set.
    static std::mutex one;
    std::lock_guard<std::mutex> hold(one);
    std::string wrong = refusal(kernel, extent);
    if (!wrong.empty()) return std::string(kernel.name) + ": " + wrong;
    {
        Signals signals;
        wrong = run(kernel, extent, arguments, seed);
    }
    if (!wrong.empty()) {
        std::string place = signal_place();
        return place.empty() ? wrong : wrong + " at " + place;
    }
    wrong = check_margins();
    return wrong.empty() ? wrong : std::string(kernel.name) + ": " + wrong;
}

}  // namespace

}  // namespace shim

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int shim_kernels() { return (int)shim::kernels().size(); }
EXPORT const char* shim_kernel_name(int index) { return shim::kernels()[(size_t)index].name; }
EXPORT int shim_kernel_threads(int index) { return shim::kernels()[(size_t)index].threads; }
// A letter an argument: i, f or p.
EXPORT const char* shim_kernel_kinds(int index) { return shim::kernels()[(size_t)index].kinds; }

// 0, or 1 and what went wrong in `error`.
EXPORT int shim_launch(int index, const unsigned* grid, unsigned threads, unsigned shared, void** arguments,
                       uint64_t seed, char* error, size_t error_bytes) {
    shim::Extent extent = {{grid[0], grid[1], grid[2]}, threads, shared};
    std::string wrong = shim::launch(shim::kernels()[(size_t)index], extent, arguments, seed);
    snprintf(error, error_bytes, "%s", wrong.c_str());
    return wrong.empty() ? 0 : 1;
}

EXPORT void* shim_allocate(size_t bytes) { return shim::allocate(bytes); }
EXPORT int shim_release(void* at) { return shim::release(at); }
// Whether so many bytes from there on are one allocation's.
EXPORT int shim_holds(const void* at, size_t bytes) { return shim::is_global(at, bytes); }
