#include "shim/fiber.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

namespace shim {

namespace {

const size_t STACK_BYTES = 256 << 10;

// Stacks are never given back: the next block needs as many. Below each lies a page that nobody may touch.
char* stack_end(unsigned number) {
    static std::vector<char*>* stacks = new std::vector<char*>();
    while (stacks->size() <= number) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void* all = mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (all == MAP_FAILED) __builtin_trap();
        mprotect(all, page, PROT_NONE);
        stacks->push_back((char*)all + page + STACK_BYTES);
    }
    // Apart in the processor's caches as well, which the same place in every page would not be.
    return (*stacks)[number] - number % 32 * 128;
}

}  // namespace

#ifdef __x86_64__

// The registers that a called function keeps go on the old stack, and come from the new one.
extern "C" void shim_switch_stacks(void** from, void* to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .globl shim_switch_stacks
    .hidden shim_switch_stacks
    .type shim_switch_stacks, @function
shim_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size shim_switch_stacks, . - shim_switch_stacks
)");

void prepare_fiber(Fiber& fiber, unsigned number, void (*enter)()) {
    // Six registers, where to go, and where `enter` would return to: entered so, the stack is as after a call.
    void** top = (void**)stack_end(number) - 8;
    for (int at = 0; at < 6; at++) top[at] = nullptr;
    top[6] = (void*)enter;
    top[7] = nullptr;
    fiber.stack = top;
}

void switch_fiber(Fiber& from, Fiber& to) { shim_switch_stacks(&from.stack, to.stack); }

#else

void prepare_fiber(Fiber& fiber, unsigned number, void (*enter)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack_end(number) - (STACK_BYTES - 4096);
    fiber.context.uc_stack.ss_size = (STACK_BYTES - 4096);
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace shim
