// memory.h - the memory of the emulated device: host pages with as much space without access on either side, at least 16 MiB.
//
// A buffer ends as close to the space behind it as its 256-byte alignment allows; the bytes between are filled with a
// pattern and watched. New memory is NaN. Freed memory stays out of reach for a while, so that using it faults.
#pragma once
#include <deque>
#include <map>
#include <stddef.h>
#include <string>

enum class memory_kind { device, managed, pinned, pinned_mapped };

struct allocation {
    char* start;
    size_t bytes;
    memory_kind kind;
    char* mapping;
    size_t mapped_bytes;
    bool on_device() const { return kind == memory_kind::device || kind == memory_kind::managed; }
};

class guarded_memory {
public:
    // Null when the operating system gives no memory.
    const allocation* allocate(size_t bytes, memory_kind kind);
    void release(const allocation* which);
    void release_all();

    // The live allocation that starts at this address, or that contains it; or null.
    const allocation* starting_at(const void* address) const;
    const allocation* containing(const void* address) const;
    bool contains(const void* address, size_t bytes) const;

    // "8 bytes past the end of a buffer of 1024 bytes", or empty when the address is near no buffer.
    std::string describe(const void* address) const;
    // What was written beside a buffer since the last time, or empty. The damage is repaired.
    std::string find_damage() const;

    size_t count(bool on_device) const;
    size_t bytes(memory_kind kind) const;

private:
    std::map<const char*, allocation> live;  // by start
    std::deque<allocation> freed;
};
