// What the shim's own parts say to one another.

#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "shim/shim.h"

#pragma GCC visibility push(hidden)
namespace shim {

struct Kernel {
    const char* name;
    int threads;
    const char* kinds;
    void (*invoke)(void** arguments);
};
std::vector<Kernel>& kernels();

// What a launch is asked to do.
struct Extent {
    unsigned grid[3];
    unsigned threads;
    unsigned shared;
};

// Runs all blocks of the grid; what went wrong, or nothing.
std::string run(const Kernel& kernel, const Extent& extent, void** arguments, uint64_t seed);

// A 16-byte copy to shared memory that has begun.
struct Copy {
    void* to;
    const void* from;
    bool valid;
    int group;
};

// Copies of the thread that runs, and how many groups it has made.
struct Copies {
    std::vector<Copy> begun;
    int groups = 0;
};
Copies& copies();

// The launch fails, wherever it is: only the first message stays. Of a fiber, `leave_for_good` is next.
void record(const std::string& message);
[[noreturn]] void leave_for_good();
bool in_fiber();
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string at(Place place);

// Signals of the processor become failures of the launch while this lives.
class Signals {
  public:
    Signals();
    ~Signals();
};
// The line of the kernels that the last such signal came from, if it can be told.
std::string signal_place();

// The block's shared memory.
void set_dynamic_shared(unsigned bytes);
void poison_shared();
bool is_shared(const void* at, size_t bytes);

// The device's memory.
void* allocate(size_t bytes);
bool release(void* at);
bool is_global(const void* at, size_t bytes);
// Where an address is, in words.
std::string whereabouts(const void* at);
// Whether bytes beside an allocation were written; restores them.
std::string check_margins();

}  // namespace shim
#pragma GCC visibility pop
