#include "memory.h"
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

namespace {

const size_t page = 4096, alignment = 256, most_freed = 256;
const unsigned char fill = 0xff;  // NaN as a float and as a bf16

const size_t least_guard = 16 << 20;  // addresses without access on either side; they cost no memory

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

std::string number(size_t n) { return std::to_string(n); }

// The pages of a buffer inside its mapping.
struct page_range {
    char *start, *end;
};
page_range accessible(const allocation& a) {
    char* end = a.start + round_up(a.bytes, alignment);
    return {(char*)((size_t)a.start / page * page), end};
}

// The watched bytes: the last ones in front of the buffer (as far as they are in its first page) and those up to the end of its pages.
struct watched {
    unsigned char *front, *start, *end, *back;
};
watched watched_bytes(const allocation& a) {
    page_range pages = accessible(a);
    char* front = a.start - pages.start > (ptrdiff_t)alignment ? a.start - alignment : pages.start;
    return {(unsigned char*)front, (unsigned char*)a.start, (unsigned char*)a.start + a.bytes, (unsigned char*)pages.end};
}

}  // namespace

const allocation* guarded_memory::allocate(size_t bytes, memory_kind kind) {
    size_t rounded = round_up(bytes, alignment), pages = round_up(rounded, page);
    size_t guard = round_up(bytes > least_guard ? bytes : least_guard, page), mapped = pages + 2 * guard;
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    char *base = (char*)mapping, *first_page = base + guard;
    if (mprotect(first_page, pages, PROT_READ | PROT_WRITE)) {
        munmap(mapping, mapped);
        return nullptr;
    }
    memset(first_page, fill, pages);
    char* start = first_page + pages - rounded;
    return &(live[start] = {start, bytes, kind, base, mapped});
}

void guarded_memory::release(const allocation* which) {
    allocation gone = *which;
    live.erase(gone.start);
    // keeps the addresses, gives the memory back
    mmap(gone.mapping, gone.mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed.push_back(gone);
    if (freed.size() <= most_freed) return;
    munmap(freed.front().mapping, freed.front().mapped_bytes);
    freed.pop_front();
}

void guarded_memory::release_all() {
    while (!live.empty()) release(&live.begin()->second);
}

const allocation* guarded_memory::starting_at(const void* address) const {
    auto found = live.find((const char*)address);
    return found == live.end() ? nullptr : &found->second;
}

const allocation* guarded_memory::containing(const void* address) const {
    auto after = live.upper_bound((const char*)address);
    if (after == live.begin()) return nullptr;
    const allocation& a = std::prev(after)->second;
    return (const char*)address < a.start + a.bytes ? &a : nullptr;
}

bool guarded_memory::contains(const void* address, size_t bytes) const {
    const allocation* a = containing(address);
    return a && bytes <= (size_t)(a->start + a->bytes - (const char*)address);
}

std::string guarded_memory::describe(const void* address) const {
    const char* p = (const char*)address;
    auto inside_mapping = [p](const allocation& a) { return p >= a.mapping && p < a.mapping + a.mapped_bytes; };
    for (auto& entry : live) {
        const allocation& a = entry.second;
        if (!inside_mapping(a)) continue;
        if (p < a.start) return number((size_t)(a.start - p)) + " bytes in front of a buffer of " + number(a.bytes) + " bytes";
        if (p >= a.start + a.bytes) return number((size_t)(p - a.start) - a.bytes) + " bytes past the end of a buffer of " + number(a.bytes) + " bytes";
        return "byte " + number((size_t)(p - a.start)) + " of a buffer of " + number(a.bytes) + " bytes";
    }
    for (const allocation& a : freed)
        if (inside_mapping(a)) return "in a freed buffer of " + number(a.bytes) + " bytes";
    return "";
}

std::string guarded_memory::find_damage() const {
    for (auto& entry : live) {
        const allocation& a = entry.second;
        watched w = watched_bytes(a);
        std::string found;
        for (unsigned char* p = w.front; p < w.start && found.empty(); p++)
            if (*p != fill) found = number((size_t)(w.start - p)) + " bytes in front of a buffer of ";
        for (unsigned char* p = w.end; p < w.back && found.empty(); p++)
            if (*p != fill) found = number((size_t)(p - w.end)) + " bytes past the end of a buffer of ";
        if (found.empty()) continue;
        memset(w.front, fill, (size_t)(w.start - w.front));
        memset(w.end, fill, (size_t)(w.back - w.end));
        return "a write " + found + number(a.bytes) + " bytes";
    }
    return "";
}

size_t guarded_memory::count(bool on_device) const {
    size_t n = 0;
    for (auto& entry : live) n += entry.second.on_device() == on_device;
    return n;
}

size_t guarded_memory::bytes(memory_kind kind) const {
    size_t n = 0;
    for (auto& entry : live)
        if (entry.second.kind == kind) n += entry.second.bytes;
    return n;
}
