// Blocks run one after the other, their threads as fibers of one thread of the host. A fiber runs until it waits at a
// barrier or for its warp. The order of blocks, warps and lanes follows the seed: 0 forward, 1 backward, others by
// chance, so that what lacks a barrier comes out differently. A barrier that not all threads reach at the same place,
// or a warp's function that not all lanes of its mask call at the same place, ends the launch.

#include <stdarg.h>
#include <string.h>

#include "shim/fiber.h"
#include "shim/inside.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

namespace {

const unsigned WARP_LANES = 32;

enum class State { Ready, Barrier, Collective, Done };

struct Thread {
    Fiber fiber;
    State state;
    const char* what;
    Place place;
    unsigned mask;
    void* brought;
    bool predicate;
    unsigned came;
    Copies copies;
};

struct Random {
    uint64_t state;
    unsigned below(unsigned bound) {
        uint64_t x = state += 0x9e3779b97f4a7c15u;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        return (unsigned)(((x ^ x >> 31) >> 32) * bound >> 32);
    }
};

struct Machine {
    const Kernel* kernel;
    void** arguments;
    uint64_t seed;
    Random random;
    Fiber scheduler;
    std::vector<Thread> threads;
    // A bit a lane that waits for its warp, a word a warp.
    std::vector<unsigned> waiting;
    unsigned current;
    bool running;
    bool failed;
    bool waited;
    std::string message;
};
Machine& machine = *new Machine();

Thread& running() { return machine.threads[machine.current]; }

void leave() { switch_fiber(running().fiber, machine.scheduler); }

void enter() {
    machine.kernel->invoke(machine.arguments);
    running().state = State::Done;
    leave();
}

void resume(unsigned thread) {
    Machine& all = machine;
    all.current = thread;
    threadIdx = dim3{thread, 0, 0};
    all.running = true;
    switch_fiber(all.scheduler, all.threads[thread].fiber);
    all.running = false;
}

bool same(const char* one, const char* other) { return one == other || strcmp(one, other) == 0; }

bool same(const Thread& one, const Thread& other) {
    return one.state == other.state && one.mask == other.mask && one.place.line == other.place.line &&
           same(one.place.file, other.place.file) && same(one.what, other.what);
}

std::string doing(const Thread& thread) {
    if (thread.state == State::Done) return "has ended";
    if (thread.state == State::Ready) return "runs";
    std::string mask = thread.state == State::Collective ? text(" with mask %08x", thread.mask) : "";
    return text("waits at %s: %s%s", at(thread.place).c_str(), thread.what, mask.c_str());
}

// `seed`'s order of `count` things.
void order(std::vector<unsigned>& places, unsigned count) {
    Machine& all = machine;
    places.resize(count);
    for (unsigned at = 0; at < count; at++) places[at] = all.seed == 1 ? count - 1 - at : at;
    if (all.seed <= 1) return;
    for (unsigned left = count; left > 1; left--) std::swap(places[left - 1], places[all.random.below(left)]);
}

bool has_ready(unsigned warp) {
    const Thread* lanes = &machine.threads[warp * WARP_LANES];
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        if (lanes[lane].state == State::Ready) return true;
    }
    return false;
}

// Which warp runs next: mostly the last one again, so that warps drift apart as far as barriers let them. -1: none can.
int choose_warp(int last) {
    Machine& all = machine;
    unsigned warps = (unsigned)all.threads.size() / WARP_LANES;
    bool stay = all.seed <= 1 || all.random.below(8) != 0;
    if (last >= 0 && stay && has_ready((unsigned)last)) return last;
    unsigned first = all.seed <= 1 ? 0 : all.random.below(warps);
    for (unsigned at = 0; at < warps; at++) {
        unsigned warp = all.seed == 1 ? warps - 1 - at : (first + at) % warps;
        if (has_ready(warp)) return (int)warp;
    }
    return -1;
}

void run_warp(unsigned warp) {
    Machine& all = machine;
    static std::vector<unsigned> lanes;
    order(lanes, WARP_LANES);
    for (unsigned at = 0; at < WARP_LANES && !all.failed; at++) {
        unsigned thread = warp * WARP_LANES + lanes[at];
        if (all.threads[thread].state == State::Ready) resume(thread);
    }
}

// Why nobody can go on: a thread that waits, and one that it waits for.
void report_stuck() {
    std::vector<Thread>& threads = machine.threads;
    for (unsigned at = 0; at < threads.size(); at++) {
        if (threads[at].state == State::Done) continue;
        bool warp = threads[at].state == State::Collective;
        unsigned first = warp ? at / WARP_LANES * WARP_LANES : 0;
        unsigned end = warp ? first + WARP_LANES : (unsigned)threads.size();
        for (unsigned other = first; other < end; other++) {
            if (warp && !(threads[at].mask >> other % WARP_LANES & 1)) continue;
            if (same(threads[at], threads[other])) continue;
            return record(text("threads diverge: thread %u %s; thread %u %s", at, doing(threads[at]).c_str(), other,
                               doing(threads[other]).c_str()));
        }
    }
}

// Lets the threads past a barrier; `false` if not all are at the same one.
bool release_barrier() {
    std::vector<Thread>& threads = machine.threads;
    unsigned came = 0;
    for (const Thread& thread : threads) {
        if (thread.state != State::Barrier || !same(thread, threads[0])) return false;
        came += thread.predicate;
    }
    for (Thread& thread : threads) {
        thread.state = State::Ready;
        thread.came = came;
    }
    return true;
}

bool all_done() {
    for (const Thread& thread : machine.threads) {
        if (thread.state != State::Done) return false;
    }
    return true;
}

void run_block() {
    Machine& all = machine;
    poison_shared();
    all.waiting.assign(all.threads.size() / WARP_LANES, 0);
    for (unsigned at = 0; at < all.threads.size(); at++) {
        Thread& thread = all.threads[at];
        thread.state = State::Ready;
        thread.copies.begun.clear();
        thread.copies.groups = 0;
        prepare_fiber(thread.fiber, at, enter);
    }
    for (int warp = -1; !all.failed;) {
        warp = choose_warp(warp);
        if (warp >= 0) {
            run_warp((unsigned)warp);
        } else if (all_done()) {
            return;
        } else if (!release_barrier()) {
            report_stuck();
        }
    }
}

}  // namespace

std::string run(const Kernel& kernel, const Extent& extent, void** arguments, uint64_t seed) {
    Machine& all = machine;
    all.kernel = &kernel;
    all.arguments = arguments;
    all.seed = seed;
    all.random.state = seed;
    all.failed = all.waited = all.running = false;
    all.message.clear();
    all.threads.resize(extent.threads);
    gridDim = dim3{extent.grid[0], extent.grid[1], extent.grid[2]};
    blockDim = dim3{extent.threads, 1, 1};
    set_dynamic_shared(extent.shared);
    std::vector<unsigned> blocks;
    order(blocks, extent.grid[0] * extent.grid[1] * extent.grid[2]);
    for (size_t at = 0; at < blocks.size() && !all.failed; at++) {
        unsigned block = blocks[at];
        blockIdx = dim3{block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        run_block();
    }
    if (!all.failed && !all.waited) record("no thread called grid_wait");
    return all.message;
}

unsigned barrier(Place place, const char* what, bool predicate) {
    Thread& own = running();
    own.state = State::Barrier;
    own.what = what;
    own.place = place;
    own.mask = 0;
    own.predicate = predicate;
    leave();
    return own.came;
}

void collective(Place place, const char* what, unsigned mask, void* brought, void (*together)(const Lanes& lanes)) {
    Thread& own = running();
    Thread* warp = &own - lane();
    unsigned& waiting = machine.waiting[machine.current / WARP_LANES];
    if (!(mask >> lane() & 1)) fail(place, "%s: lane %d is not in the mask %08x it gives", what, lane(), mask);
    own.state = State::Collective;
    own.what = what;
    own.place = place;
    own.mask = mask;
    own.brought = brought;
    waiting |= 1u << lane();
    if ((mask & ~waiting) != 0) return leave();
    Lanes lanes = {{}, mask, place};
    for (unsigned at = 0; at < WARP_LANES; at++) {
        if (!lanes.named((int)at)) continue;
        if (!same(warp[at], own)) return leave();
        lanes.brought[at] = warp[at].brought;
    }
    together(lanes);
    for (unsigned at = 0; at < WARP_LANES; at++) {
        if (lanes.named((int)at)) warp[at].state = State::Ready;
    }
    waiting &= ~mask;
    leave();
}

int lane() { return (int)(machine.current % WARP_LANES); }

Copies& copies() { return running().copies; }

void grid_wait() { machine.waited = true; }

bool in_fiber() { return machine.running; }

void record(const std::string& message) {
    Machine& all = machine;
    if (all.failed) return;
    all.failed = true;
    all.message = text("%s: block (%u, %u, %u)", all.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z);
    if (all.running) all.message += text(", thread %u", all.current);
    all.message += ": " + message;
}

void leave_for_good() {
    leave();
    __builtin_trap();
}

void fail(Place place, const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    char words[512];
    vsnprintf(words, sizeof(words), format, rest);
    va_end(rest);
    record(at(place) + ": " + words);
    leave_for_good();
}

}  // namespace shim
