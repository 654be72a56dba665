// The device's memory and a block's shared memory. An allocation ends at pages that nobody may touch, so that reading
// or writing past it is a signal; what remains before them, for alignment, must keep its bytes. All begins as NaN.

#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "shim/inside.h"

namespace shim {

namespace {

const size_t ALIGNMENT = 256;
// Nobody may touch so much on either side: more than an index that is wrong by a row or two reaches.
const size_t GUARD = 4 << 20;
const unsigned char POISON = 0xff;
// What a block may have on Hopper, less what the system keeps.
const size_t SHARED_MAX = 227 << 10;

struct Allocation {
    size_t bytes;
    char* pages;
    char* pages_end;
};

struct Memory {
    std::mutex lock;
    std::map<const char*, Allocation> allocations;
};
Memory& memory() {
    static Memory* one = new Memory();
    return *one;
}

size_t page() { return (size_t)sysconf(_SC_PAGESIZE); }
size_t up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// Readable pages with room for `bytes`, between such as are not.
char* guarded(size_t bytes) {
    size_t room = up(bytes, page());
    char* all = (char*)mmap(nullptr, room + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    if (room > 0 && mprotect(all + GUARD, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
    return all + GUARD;
}

bool restore(char* from, const char* end) {
    bool touched = false;
    for (; from < end; from++) {
        touched |= (unsigned char)*from != POISON;
        *from = (char)POISON;
    }
    return touched;
}

}  // namespace

void* allocate(size_t bytes) {
    size_t room = up(bytes == 0 ? 1 : bytes, ALIGNMENT);
    char* pages = guarded(room);
    if (pages == nullptr) return nullptr;
    char* end = pages + up(room, page());
    memset(pages, POISON, (size_t)(end - pages));
    std::lock_guard<std::mutex> hold(memory().lock);
    memory().allocations[end - room] = Allocation{bytes, pages, end};
    return end - room;
}

bool release(void* at) {
    std::lock_guard<std::mutex> hold(memory().lock);
    auto found = memory().allocations.find((char*)at);
    if (found == memory().allocations.end()) return false;
    munmap(found->second.pages - GUARD, (size_t)(found->second.pages_end - found->second.pages) + 2 * GUARD);
    memory().allocations.erase(found);
    return true;
}

bool is_global(const void* at, size_t bytes) {
    std::lock_guard<std::mutex> hold(memory().lock);
    auto next = memory().allocations.upper_bound((const char*)at);
    if (next == memory().allocations.begin()) return false;
    auto found = std::prev(next);
    size_t offset = (size_t)((const char*)at - found->first);
    return offset <= found->second.bytes && bytes <= found->second.bytes - offset;
}

std::string whereabouts(const void* at) {
    if ((uintptr_t)at < 4096) return text("null + %d", (int)(uintptr_t)at);
    std::unique_lock<std::mutex> hold(memory().lock, std::try_to_lock);
    if (!hold.owns_lock()) return text("%p", at);
    for (const auto& entry : memory().allocations) {
        long long offset = (const char*)at - entry.first;
        if (offset < -(long long)GUARD || offset > (long long)(entry.second.bytes + GUARD)) continue;
        return text("byte %lld of an allocation of %zu", offset, entry.second.bytes);
    }
    return text("%p, which is in no allocation", at);
}

std::string check_margins() {
    std::lock_guard<std::mutex> hold(memory().lock);
    std::string found;
    for (auto& entry : memory().allocations) {
        char* begin = const_cast<char*>(entry.first);
        if (restore(entry.second.pages, begin)) {
            found = text("bytes before an allocation of %zu were written", entry.second.bytes);
        }
        if (restore(begin + entry.second.bytes, entry.second.pages_end)) {
            found = text("bytes after an allocation of %zu were written", entry.second.bytes);
        }
    }
    return found;
}

namespace {

struct Span {
    char* begin;
    size_t bytes;
};
Span dynamic_span = {nullptr, 0};
thread_local char anchor;

// The block of this library's variables that are local to a thread.
Span static_span() {
    static volatile char touched;
    touched = anchor;
    Span found = {nullptr, 0};
    auto visit = [](dl_phdr_info* info, size_t, void* to) {
        for (int at = 0; at < info->dlpi_phnum; at++) {
            const ElfW(Phdr)& part = info->dlpi_phdr[at];
            char* begin = (char*)info->dlpi_tls_data;
            if (part.p_type != PT_TLS || begin == nullptr) continue;
            if (&anchor < begin || &anchor >= begin + part.p_memsz) continue;
            *(Span*)to = Span{begin, part.p_memsz};
            return 1;
        }
        return 0;
    };
    dl_iterate_phdr(visit, &found);
    return found;
}
Span statics = {nullptr, 0};

bool within(const Span& span, const void* at, size_t bytes) {
    return (const char*)at >= span.begin && (const char*)at + bytes <= span.begin + span.bytes;
}

}  // namespace

void set_dynamic_shared(unsigned bytes) {
    static char* const end = guarded(SHARED_MAX) + up(SHARED_MAX, page());
    size_t room = up(bytes, 16);
    dynamic_span = Span{end - room, room};
    statics = static_span();
}

void poison_shared() {
    memset(dynamic_span.begin, POISON, dynamic_span.bytes);
    memset(statics.begin, POISON, statics.bytes);
}

void* dynamic_shared() { return dynamic_span.begin; }

bool is_shared(const void* at, size_t bytes) { return within(dynamic_span, at, bytes) || within(statics, at, bytes); }

}  // namespace shim
