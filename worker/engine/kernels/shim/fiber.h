// Threads of execution that hand over to one another by name.

#pragma once

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace shim {

#ifdef __x86_64__
struct Fiber {
    void* stack;
};
#else
struct Fiber {
    ucontext_t context;
};
#endif

// The next switch to `fiber` calls `enter` on stack `number`; whatever was on that stack is forgotten.
void prepare_fiber(Fiber& fiber, unsigned number, void (*enter)());

// Goes on with `to`; returns when somebody switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace shim
