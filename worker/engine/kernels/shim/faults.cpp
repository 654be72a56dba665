// What goes wrong in the kernels' text: the calls that -fsanitize=undefined puts in, and signals of the processor. Both
// end the launch, not the process. The sanitizer's own library is not linked: these are all of it.

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "shim/inside.h"

namespace shim {

std::string text(const char* format, ...) {
    va_list rest;
    va_start(rest, format);
    char words[512];
    vsnprintf(words, sizeof(words), format, rest);
    va_end(rest);
    return words;
}

std::string at(Place place) {
    const char* name = strrchr(place.file, '/');
    return text("%s:%d", name == nullptr ? place.file : name + 1, place.line);
}

namespace {

// As GCC lays it out.
struct Source {
    const char* file;
    unsigned line, column;
};

void undefined(const Source* source, const std::string& what) {
    Place place = {source->file, (int)source->line};
    if (in_fiber()) fail(place, "%s", what.c_str());
    fprintf(stderr, "%s: %s\n", at(place).c_str(), what.c_str());
    abort();
}

struct TypeName {
    unsigned short kind, info;
    char name[1];
};
struct Mismatch {
    Source source;
    const TypeName* type;
    unsigned char log_alignment, check;
};

void mismatch(const Mismatch* data, uintptr_t address) {
    uintptr_t alignment = (uintptr_t)1 << data->log_alignment;
    std::string where = whereabouts((const void*)address);
    const char* how = address == 0 ? "null" : address % alignment != 0 ? "misaligned" : "too little room";
    undefined(&data->source, text("%s for %s: %s", how, data->type->name, where.c_str()));
}

}  // namespace

}  // namespace shim

#define HANDLER extern "C" __attribute__((visibility("hidden"))) void
#define UNDEFINED(name, what)                                                                            \
    HANDLER __ubsan_handle_##name(const shim::Source* source) { shim::undefined(source, what); }         \
    HANDLER __ubsan_handle_##name##_abort(const shim::Source* source) { shim::undefined(source, what); }

HANDLER __ubsan_handle_type_mismatch_v1(const shim::Mismatch* data, uintptr_t address) {
    shim::mismatch(data, address);
}
HANDLER __ubsan_handle_type_mismatch_v1_abort(const shim::Mismatch* data, uintptr_t address) {
    shim::mismatch(data, address);
}
HANDLER __ubsan_handle_out_of_bounds(const shim::Source* source, uintptr_t index) {
    shim::undefined(source, shim::text("index %lld is out of bounds", (long long)index));
}
HANDLER __ubsan_handle_out_of_bounds_abort(const shim::Source* source, uintptr_t index) {
    __ubsan_handle_out_of_bounds(source, index);
}
UNDEFINED(add_overflow, "a sum overflows")
UNDEFINED(sub_overflow, "a difference overflows")
UNDEFINED(mul_overflow, "a product overflows")
UNDEFINED(negate_overflow, "a negation overflows")
UNDEFINED(divrem_overflow, "a division by zero, or one that overflows")
UNDEFINED(shift_out_of_bounds, "a shift by too much, or of a negative number")
UNDEFINED(pointer_overflow, "a pointer overflows")
UNDEFINED(load_invalid_value, "a bool or enum holds no value of its type")
UNDEFINED(builtin_unreachable, "what cannot be reached was")
UNDEFINED(missing_return, "a function ends without its value")
UNDEFINED(vla_bound_not_positive, "an array of no length")
UNDEFINED(invalid_builtin, "a builtin with zero")
UNDEFINED(nonnull_arg, "null where it may not be")
UNDEFINED(nonnull_return_v1, "null where it may not be")
UNDEFINED(float_cast_overflow, "a conversion overflows")

namespace shim {

namespace {

const int CAUGHT[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
const int CAUGHT_COUNT = 4;
// Room for a handler on a stack of its own: a fiber's may be what is exhausted.
const size_t HANDLER_BYTES = 256 << 10;

struct sigaction before[CAUGHT_COUNT];
stack_t stack_before;
pthread_t launcher;
uintptr_t instruction;

uintptr_t program_counter(const void* context) {
#ifdef __x86_64__
    return (uintptr_t)((const ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#else
    (void)context;
    return 0;
#endif
}

void caught(int signal, siginfo_t* info, void* context) {
    if (!in_fiber() || !pthread_equal(pthread_self(), launcher)) {
        // Not ours: the instruction faults again, for whoever was there before.
        for (int at = 0; at < CAUGHT_COUNT; at++) {
            if (CAUGHT[at] == signal) sigaction(signal, &before[at], nullptr);
        }
        return;
    }
    instruction = program_counter(context);
    const char* what = signal == SIGFPE ? "an integer division by zero" : signal == SIGILL ? "a trap" : nullptr;
    record(what != nullptr ? what : "reads or writes " + whereabouts(info->si_addr));
    leave_for_good();
}

}  // namespace

Signals::Signals() {
    static char* const room = (char*)malloc(HANDLER_BYTES);
    stack_t stack = {};
    stack.ss_sp = room;
    stack.ss_size = HANDLER_BYTES;
    sigaltstack(&stack, &stack_before);
    launcher = pthread_self();
    instruction = 0;
    struct sigaction action = {};
    action.sa_sigaction = caught;
    // The handler does not return, so that its signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int at = 0; at < CAUGHT_COUNT; at++) sigaction(CAUGHT[at], &action, &before[at]);
}

Signals::~Signals() {
    for (int at = 0; at < CAUGHT_COUNT; at++) sigaction(CAUGHT[at], &before[at], nullptr);
    sigaltstack(&stack_before, nullptr);
}

std::string signal_place() {
    Dl_info library;
    if (instruction == 0 || dladdr((void*)instruction, &library) == 0) return "";
    size_t offset = instruction - (uintptr_t)library.dli_fbase;
    std::string command = text("addr2line -i -e '%s' 0x%zx 2>/dev/null", library.dli_fname, offset);
    FILE* lines = popen(command.c_str(), "r");
    if (lines == nullptr) return "";
    std::string places;
    char line[512];
    while (fgets(line, sizeof(line), lines) != nullptr) {
        const char* name = strrchr(line, '/');
        std::string place = name == nullptr ? line : name + 1;
        places += (places.empty() ? "" : " from ") + place.substr(0, place.find_first_of(" \n"));
    }
    pclose(lines);
    return places;
}

}  // namespace shim
