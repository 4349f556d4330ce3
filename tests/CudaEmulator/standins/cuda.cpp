// cuda.cpp - a stand-in for libcuda.so.1: the device's memory is host memory, kernels run in the emulator.
//
// It is stricter than the real driver: what there is undefined, or shows up later and elsewhere, is an error here, at once.
// Streams can be lazy: work stays queued until something waits for it, so that a missing wait shows as a wrong result.
// Work that is captured into a graph keeps its order on each stream, and between streams only what events say.
// Control functions (see README.md): lt_standin_configure, lt_standin_count, lt_standin_reset_counts, lt_standin_last_error.
#include "../emulator/runtime.h"
#include "memory.h"
#include "standin.h"
#include <algorithm>
#include <chrono>
#include <deque>
#include <dlfcn.h>
#include <memory>
#include <mutex>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
typedef int CUdevice;
#define API STANDIN_API CUresult

namespace {

enum : CUresult {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    ECC_UNCORRECTABLE = 214,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
    UNKNOWN = 999,
};
struct error_name {
    CUresult code;
    const char *name, *meaning;
};
const error_name error_names[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const int max_dynamic_shared = 163 * 1024, default_dynamic_shared = 48 * 1024;  // compute capability 8.0

// What was captured: a sequence for each stream that took part, the first one that of the stream where the capture began.
struct node {
    stream_work work;       // empty: waits
    size_t branch = 0;      // for all of this sequence ...
    size_t position = 0;    // ... before this node
    bool is_kernel = false;
};
struct graph {
    std::vector<std::vector<node>> branches;
    std::vector<std::pair<size_t, size_t>> order;  // as it was captured: branch and position
    size_t kernels = 0;
};
typedef std::shared_ptr<graph> graph_ref;

struct capture {
    graph_ref captured = std::make_shared<graph>();
    void* origin;
    unsigned mode;
    const char* thread;  // that began it
    bool invalid = false;
    std::vector<std::vector<size_t>> knows;  // of each branch: so many nodes of each other come before what it does next
};
typedef std::shared_ptr<capture> capture_ref;

struct stream {
    std::deque<stream_work> queue;
    unsigned long long done = 0, submitted = 0;
    bool blocking = true;  // ordered with the default stream
    capture_ref capturing;
    size_t branch = 0;     // of what is captured
};
typedef std::shared_ptr<stream> stream_ref;

struct event {
    stream_ref recorded_on;
    std::weak_ptr<capture> captured_in;  // last recorded there, when it was captured
    bool captured = false;
    size_t branch = 0, node_position = 0;
    std::vector<size_t> knows;  // what of the other branches the branch had waited for
    unsigned long long position = 0;
    bool recorded = false, done = false, timed = true;
    double seconds = 0;
    int queries = 0;
};
typedef std::shared_ptr<event> event_ref;

struct kernel_function {
    const emu_kernel* kernel;
    int max_dynamic = default_dynamic_shared;
};
struct module {
    void* library;
    std::map<std::string, std::unique_ptr<kernel_function>> functions;
};

int environment_number(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}
std::string environment_text(const char* name) {
    const char* value = getenv(name);
    return value ? value : "";
}
size_t environment_bytes(const char* name, size_t otherwise) {
    const char* value = getenv(name);
    return value && *value ? (size_t)strtoull(value, nullptr, 10) : otherwise;
}

struct driver {
    std::recursive_mutex mutex;
    bool initialized = false;
    int lazy = environment_number("LT_EMULATOR_LAZY", 0);  // 0 at once, 1 when something waits for it, 2 so but copies from the host at once
    bool verbose = environment_number("LT_EMULATOR_VERBOSE", 0) != 0;
    size_t memory_bytes = environment_bytes("LT_EMULATOR_MEMORY", (size_t)8 << 30);
    int driver_version = environment_number("LT_EMULATOR_DRIVER", 13000);
    int capability = environment_number("LT_EMULATOR_CAPABILITY", 80);
    // Misfortunes: a kernel's launch of this number faults ("swiglu_forward:3", or with another error than an illegal address: "swiglu_forward:3:719"), and the device is
    // lost at its launch of that number, whatever the kernel ("2500"; with a file, "2500:/tmp/lost", which is made then, no process finds a device any more).
    std::string faulty_kernel, lost_mark;
    CUresult fault_code = ILLEGAL_ADDRESS;
    long long fault_at = 0, lost_at = environment_number("LT_EMULATOR_LOST", 0), launches = 0, faulty_launches = 0;
    // What the code of each loaded module takes of the device's memory.
    size_t module_bytes = environment_bytes("LT_EMULATOR_MODULES", 0);
    size_t pinned_bytes = environment_bytes("LT_EMULATOR_PINNED", (size_t)1 << 40);
    guarded_memory memory;
    int context_references = 0;
    char* context = nullptr;  // a new address for each life of the primary context
    CUresult sticky = SUCCESS;
    std::string sticky_message;
    stream_ref default_stream = std::make_shared<stream>();
    std::map<void*, stream_ref> streams;
    std::map<void*, event_ref> events;
    std::map<void*, std::unique_ptr<module>> modules;
    std::set<void*> functions;
    std::map<void*, graph_ref> graphs, executables;
    std::set<capture_ref> captures;
    std::string graph_misfortune = environment_text("LT_EMULATOR_GRAPH");  // refuse, or wrong
    std::map<std::string, long long> counts;
    driver() {
        if (const char* fault = getenv("LT_EMULATOR_FAULT")) {
            const char* colon = strchr(fault, ':');
            faulty_kernel = colon ? std::string(fault, colon) : fault;
            fault_at = colon ? atoll(colon + 1) : 1;
            if (const char* code = colon ? strchr(colon + 1, ':') : nullptr) fault_code = atoi(code + 1);
        }
        const char* lost = getenv("LT_EMULATOR_LOST");
        if (const char* mark = lost ? strchr(lost, ':') : nullptr) lost_mark = mark + 1;
        emu_configure((emu_order)environment_number("LT_EMULATOR_ORDER", 0), (emu_copies)environment_number("LT_EMULATOR_COPIES", 0));
    }
};

// Never destroyed: threads of the host may call while the process ends.
driver& it = *new driver();
thread_local char* current_context;
thread_local CUresult last_code;
thread_local std::string last_message;
thread_local const char* current_function = "";
thread_local char this_thread;  // its address names the thread

// ---- errors ----
CUresult fail(CUresult code, const std::string& message) {
    last_code = code;
    last_message = std::string(current_function) + ": " + message;
    if (it.verbose) fprintf(stderr, "CUDA emulator: error %d: %s\n", code, last_message.c_str());
    return code;
}

// What a real device reports from then on, until its context is gone.
CUresult fail_for_good(const outcome& bad) {
    it.sticky = bad.code;
    it.sticky_message = bad.message;
    return fail(bad.code, bad.message);
}

enum class needs { nothing, driver, context };
CUresult enter(needs what, const char* function) {
    current_function = function;
    if (what == needs::nothing) return SUCCESS;
    if (!it.initialized) return fail(NOT_INITIALIZED, "cuInit has not been called");
    if (what == needs::driver) return SUCCESS;
    if (!current_context) return fail(INVALID_CONTEXT, "no context is current on this thread");
    if (current_context != it.context) return fail(INVALID_CONTEXT, "the context that is current on this thread has been released");
    if (it.sticky) return fail(it.sticky, "an earlier error sticks: " + it.sticky_message);
    return SUCCESS;
}
#define ENTER(what)                                         \
    std::lock_guard<std::recursive_mutex> lock(it.mutex);   \
    it.counts[__func__]++;                                  \
    if (CUresult bad = enter(needs::what, __func__)) return bad
#define REQUIRE(condition, code, message) \
    if (!(condition)) return fail(code, message)

// ---- streams ----
double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Does the stream's work up to a position; stops at the first error.
CUresult drain(const stream_ref& s, unsigned long long position) {
    while (s->done < position && !s->queue.empty() && !it.sticky) {
        stream_work work = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        outcome result = work();
        if (result.code && !it.sticky) fail_for_good(result);
    }
    return it.sticky;
}
CUresult drain(const stream_ref& s) { return drain(s, s->submitted); }
CUresult drain_all() {
    drain(it.default_stream);
    for (auto& s : it.streams) drain(s.second);
    return it.sticky;
}

stream_ref find_stream(void* handle) {
    if (!handle || handle == (void*)1) return it.default_stream;  // 1 is CU_STREAM_LEGACY
    auto found = it.streams.find(handle);
    return found == it.streams.end() ? nullptr : found->second;
}

// ---- captures ----
// A call that a capture does not bear spoils it, as on a device: it fails, and the capture ends without a graph.
CUresult spoil(CUresult code, const std::string& message) {
    for (auto& c : it.captures) c->invalid = true;
    return fail(code, message);
}

// Calls that wait, allocate or load are forbidden to a thread that captures, unless it began with the relaxed mode; global captures forbid them to all.
CUresult unsafe_call() {
    for (auto& c : it.captures) {
        const unsigned global = 0, relaxed = 2;
        if (c->mode != relaxed && (c->mode == global || c->thread == &this_thread)) return spoil(CAPTURE_UNSUPPORTED, "this call is not permitted while work is captured");
    }
    return SUCCESS;
}
#define REFUSE_IN_CAPTURE \
    if (CUresult bad = unsafe_call()) return bad

CUresult append(const stream_ref& s, node&& what) {
    capture& c = *s->capturing;
    if (c.invalid) return fail(CAPTURE_INVALIDATED, "the capture was spoilt before");
    auto& branch = c.captured->branches[s->branch];
    c.captured->order.emplace_back(s->branch, branch.size());
    c.captured->kernels += what.is_kernel;
    branch.push_back(std::move(what));
    return SUCCESS;
}

// The stream takes part in the capture from now on, behind what the event stands for.
CUresult join(const stream_ref& s, event& e) {
    capture_ref c = e.captured_in.lock();
    if (!c || !it.captures.count(c)) {
        if (!s->capturing) return fail(INVALID_VALUE, "the event was last recorded in a capture that has ended");
        return spoil(CAPTURE_ISOLATION, "the event was last recorded in a capture that has ended");
    }
    if (s->capturing && s->capturing != c) return spoil(CAPTURE_MERGE, "the event belongs to another capture");
    if (!s->capturing) {
        s->capturing = c;
        s->branch = c->captured->branches.size();
        c->captured->branches.emplace_back();
        for (auto& knows : c->knows) knows.resize(c->captured->branches.size());
        c->knows.emplace_back(c->captured->branches.size());
    }
    auto& knows = c->knows[s->branch];
    for (size_t i = 0; i < e.knows.size(); i++) knows[i] = std::max(knows[i], e.knows[i]);
    knows[e.branch] = std::max(knows[e.branch], e.node_position);
    node wait;
    wait.branch = e.branch;
    wait.position = e.node_position;
    return append(s, std::move(wait));
}

void end_capture(const capture_ref& c) {
    for (auto& s : it.streams)
        if (s.second->capturing == c) s.second->capturing = nullptr;
    it.captures.erase(c);
}

// Does a captured graph's work: as it was captured, or with lazy streams that of each other branch as late as the first one's waits allow.
struct replay {
    const graph& g;
    std::vector<size_t> done = std::vector<size_t>(g.branches.size());
    size_t kernels_left_out;  // from the end
    size_t kernels = 0;
    outcome run(size_t branch, size_t position) {
        while (done[branch] < position) {
            const node& n = g.branches[branch][done[branch]++];
            if (!n.work) {
                outcome bad = run(n.branch, n.position);
                if (bad.code) return bad;
                continue;
            }
            if (n.is_kernel && ++kernels > g.kernels - kernels_left_out) continue;
            outcome bad = n.work();
            if (bad.code) return bad;
        }
        return {};
    }
};
outcome launch_graph(const graph& g) {
    replay all{g, std::vector<size_t>(g.branches.size()), it.graph_misfortune == "wrong" ? 1u : 0u};
    if (it.lazy) return all.run(0, g.branches[0].size());
    for (auto& at : g.order) {
        outcome bad = all.run(at.first, at.second + 1);
        if (bad.code) return bad;
    }
    return {};
}

enum class kind { other, kernel, upload };
CUresult enqueue(const stream_ref& s, stream_work work, kind what = kind::other) {
    if (s->capturing) {
        node n;
        n.work = std::move(work);
        n.is_kernel = what == kind::kernel;
        return append(s, std::move(n));
    }
    if (s == it.default_stream)
        for (auto& other : it.streams)
            if (other.second->blocking && other.second->capturing) return spoil(CAPTURE_IMPLICIT, "a blocking stream is capturing");
    // The default stream waits for the blocking streams, and they for it.
    if (s == it.default_stream) {
        for (auto& other : it.streams)
            if (other.second->blocking) drain(other.second);
    } else if (s->blocking) {
        drain(it.default_stream);
    }
    if (it.sticky) return it.sticky;
    s->queue.push_back(std::move(work));
    s->submitted++;
    return it.lazy == 1 || (it.lazy == 2 && what != kind::upload) ? SUCCESS : drain(s);
}

CUresult no_stream() { return fail(INVALID_HANDLE, "not a stream, or one that was destroyed"); }

CUresult enqueue(void* handle, stream_work work, kind what = kind::other) {
    stream_ref s = find_stream(handle);
    return s ? enqueue(s, std::move(work), what) : no_stream();
}

CUresult synchronize(const stream_ref& s) {
    it.counts["synchronizations"]++;
    if (s->capturing) return spoil(CAPTURE_UNSUPPORTED, "the stream is capturing");
    return drain(s);
}

// ---- memory ----
size_t device_bytes() { return it.memory.bytes(memory_kind::device) + it.modules.size() * it.module_bytes; }
CUresult allocate(CUdeviceptr* out, size_t bytes, memory_kind kind) {
    REQUIRE(out && bytes, INVALID_VALUE, "no place for the result, or zero bytes");
    REFUSE_IN_CAPTURE;
    it.counts["allocations"]++;
    if (kind == memory_kind::device) {
        size_t used = device_bytes();
        if (bytes > it.memory_bytes || used > it.memory_bytes - bytes)
            return fail(OUT_OF_MEMORY, std::to_string(bytes) + " bytes asked for, " + std::to_string(used) + " of " + std::to_string(it.memory_bytes) + " in use");
    }
    const allocation* a = it.memory.allocate(bytes, kind);
    REQUIRE(a, OUT_OF_MEMORY, "the host has no memory for the emulated device");
    *out = (CUdeviceptr)a->start;
    return SUCCESS;
}

CUresult release(const void* address, bool on_device) {
    REFUSE_IN_CAPTURE;
    const allocation* a = it.memory.starting_at(address);
    if (!a || a->on_device() != on_device) {
        std::string where = it.memory.describe(address);
        return fail(INVALID_VALUE, "not the start of a live allocation of this kind" + (where.empty() ? "" : ": the address is " + where));
    }
    drain_all();  // queued work may still use it, and the real call waits too
    it.memory.release(a);
    return SUCCESS;
}

std::string range_error(const char* role, CUdeviceptr address, size_t bytes) {
    std::string where = it.memory.describe((const void*)address);
    return std::string(role) + " of " + std::to_string(bytes) + " bytes is not inside one device buffer; it starts " +
           (where.empty() ? "outside device memory" : where);
}
bool device_range(CUdeviceptr address, size_t bytes) {
    const allocation* a = it.memory.containing((const void*)address);
    return a && a->on_device() && bytes <= (size_t)(a->start + a->bytes - (char*)address);
}

// A host range must not be device memory, and must stay inside its buffer when it is pinned.
bool host_range(const void* address, size_t bytes) {
    if (!address) return false;
    const allocation* a = it.memory.containing(address);
    if (!a) return true;
    return a->kind != memory_kind::device && it.memory.contains(address, bytes);
}

struct copy_end {
    CUdeviceptr address;
    bool on_device;
};
CUresult copy(const char* counter, copy_end to, copy_end from, size_t bytes, void* stream_handle, bool wait) {
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    it.counts[counter]++;
    if (wait) {
        REFUSE_IN_CAPTURE;
    }
    if (!bytes) return SUCCESS;
    // The real call returns when a copy from or to memory that is not page-locked has been made.
    bool pageable = (!to.on_device && !it.memory.containing((const void*)to.address)) || (!from.on_device && !it.memory.containing((const void*)from.address));
    if (wait || pageable) it.counts["blocking_copies"]++;
    if (s->capturing && pageable) return spoil(CAPTURE_UNSUPPORTED, "host memory that is not page-locked is not there any more when the graph is launched");
    for (auto& end : {to, from}) {
        const char* role = &end == &to ? "the destination" : "the source";
        if (end.on_device && !device_range(end.address, bytes)) return fail(INVALID_VALUE, range_error(role, end.address, bytes));
    }
    for (auto& end : {to, from})
        if (!end.on_device && !host_range((const void*)end.address, bytes))
            return fail(INVALID_VALUE, "the host address is null, is device memory, or leaves its pinned buffer");
    CUresult result = enqueue(s, [=] {
        memmove((void*)to.address, (const void*)from.address, bytes);
        return outcome{};
    }, from.on_device ? kind::other : kind::upload);
    return result || !wait ? result : synchronize(s);
}

CUresult fill(CUdeviceptr address, unsigned value, size_t count, size_t width, void* stream_handle) {
    it.counts["memsets"]++;
    REQUIRE(address % width == 0, INVALID_VALUE, "the address is not aligned");
    if (!count) return SUCCESS;
    REQUIRE(device_range(address, count * width), INVALID_VALUE, range_error("the range", address, count * width));
    return enqueue(stream_handle, [=] {
        if (width == 1) memset((void*)address, (int)value, count);
        else std::fill_n((unsigned*)address, count, value);
        return outcome{};
    });
}

// ---- launches ----
bool mapped(const void* address) {
    return msync((void*)((uintptr_t)address & ~(uintptr_t)4095), 1, MS_ASYNC) == 0;
}

std::string pointer_error(CUdeviceptr address) {
    const void* p = (const void*)address;
    if (!p) return "";
    const allocation* a = it.memory.containing(p);
    if (a) return a->kind == memory_kind::pinned ? "a pinned host address without CU_MEMHOSTALLOC_DEVICEMAP" : "";
    if (it.memory.containing((const char*)p - 1)) return "";  // the end of a range; nothing is accessed yet
    std::string where = it.memory.describe(p);
    if (!where.empty()) return "an address " + where;
    return "not a device address";
}

// A pointer in a structure has no type here. A word that is a readable address of the host, and no device address, is a mistake;
// two integers side by side are practically never such a word.
std::string struct_pointer_error(const unsigned char* bytes, size_t size) {
    for (size_t at = 0; at + 8 <= size; at += 8) {
        CUdeviceptr word;
        memcpy(&word, bytes + at, 8);
        if (word < 0x10000 || word >> 47) continue;
        const allocation* a = it.memory.containing((const void*)word);
        std::string bad;
        if (a) bad = pointer_error(word);
        else if (mapped((const void*)word) && it.memory.describe((const void*)word).empty()) bad = "a host address";
        if (!bad.empty()) return "the pointer at byte " + std::to_string(at) + " is " + bad;
    }
    return "";
}

struct argument_copy {
    std::vector<unsigned char> bytes;
    std::vector<void*> pointers;
};

// Takes the arguments now, as the real call does, by the sizes of the kernel's own signature.
std::shared_ptr<argument_copy> take_arguments(const emu_kernel& k, void** parameters, std::string& bad) {
    auto copied = std::make_shared<argument_copy>();
    size_t total = 0;
    std::vector<size_t> offsets;
    for (int i = 0; i < k.argument_count; i++) {
        total = (total + 15) & ~(size_t)15;
        offsets.push_back(total);
        total += k.sizes[i];
    }
    copied->bytes.resize(total + 16);
    unsigned char* base = (unsigned char*)(((uintptr_t)copied->bytes.data() + 15) & ~(uintptr_t)15);
    for (int i = 0; i < k.argument_count; i++) {
        unsigned char* to = base + offsets[(size_t)i];
        if (!parameters[i]) {
            bad = "argument " + std::to_string(i) + " is missing";
            return copied;
        }
        memcpy(to, parameters[i], k.sizes[i]);
        copied->pointers.push_back(to);
        std::string error;
        if (k.is_pointer[i]) {
            CUdeviceptr address;
            memcpy(&address, to, 8);
            error = pointer_error(address);
        } else if (k.sizes[i] > 8) {
            error = struct_pointer_error(to, k.sizes[i]);
        }
        if (!error.empty()) {
            bad = "argument " + std::to_string(i) + ": " + error;
            return copied;
        }
    }
    copied->pointers.push_back(nullptr);
    return copied;
}

std::string size_error(const emu_uint3& grid, const emu_uint3& block) {
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return "the grid (" + std::to_string(grid.x) + "," + std::to_string(grid.y) + "," + std::to_string(grid.z) + ") is out of range";
    if (!block.x || !block.y || !block.z || block.x > 1024 || block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024)
        return "the block (" + std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z) + ") is out of range";
    return "";
}

outcome run_kernel(const emu_kernel& kernel, const emu_uint3& grid, const emu_uint3& block, size_t shared_bytes, argument_copy& arguments) {
    if (it.lost_at && ++it.launches >= it.lost_at) {
        if (FILE* mark = it.lost_mark.empty() ? nullptr : fopen(it.lost_mark.c_str(), "w")) fclose(mark);
        return {UNKNOWN, "the device is lost, as LT_EMULATOR_LOST asks for"};
    }
    if (it.fault_at && it.faulty_kernel == kernel.name && ++it.faulty_launches == it.fault_at)
        return {it.fault_code, std::string(kernel.name) + ": launch " + std::to_string(it.fault_at) + " faults, as LT_EMULATOR_FAULT asks for"};
    emu_failure failure;
    if (!emu_launch(kernel, grid, block, shared_bytes, arguments.pointers.data(), failure)) {
        if (!failure.illegal_address) return {LAUNCH_FAILED, failure.message};
        std::string where = it.memory.describe(failure.address);
        return {ILLEGAL_ADDRESS, failure.message + (where.empty() ? "" : ": " + where)};
    }
    std::string damage = it.memory.find_damage();
    if (!damage.empty()) return {ILLEGAL_ADDRESS, damage + " [kernel " + kernel.name + "]"};
    return {};
}

kernel_function* find_function(void* handle) { return it.functions.count(handle) ? (kernel_function*)handle : nullptr; }

// ---- the context's end ----
void destroy_context() {
    it.sticky = SUCCESS;
    it.default_stream = std::make_shared<stream>();
    it.streams.clear();
    it.events.clear();
    it.graphs.clear();
    it.executables.clear();
    it.captures.clear();
    it.functions.clear();
    it.modules.clear();  // the libraries stay loaded: a worker thread keeps thread-local memory of each
    it.memory.release_all();
    it.context = nullptr;
}

const char* lasting(const std::string& text) {
    static std::set<std::string> texts;
    return texts.insert(text).first->c_str();
}
const error_name* find_error(CUresult code) {
    for (auto& e : error_names)
        if (e.code == code) return &e;
    return nullptr;
}

}  // namespace

// ---- control ----
STANDIN_API void lt_standin_configure(int order, int copies, int lazy) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    drain_all();
    emu_configure((emu_order)order, (emu_copies)copies);
    it.lazy = lazy;
}
STANDIN_API long long lt_standin_count(const char* name) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    std::string what = name;
    if (what == "live_allocations") return (long long)it.memory.count(true);
    if (what == "live_host_allocations") return (long long)it.memory.count(false);
    if (what == "allocated_bytes") return (long long)(it.memory.bytes(memory_kind::device) + it.memory.bytes(memory_kind::managed));
    if (what == "live_streams") return (long long)it.streams.size();
    if (what == "live_events") return (long long)it.events.size();
    if (what == "live_modules") return (long long)it.modules.size();
    if (what == "live_graphs") return (long long)(it.graphs.size() + it.executables.size());
    if (what == "context_references") return it.context_references;
    auto found = it.counts.find(what);
    return found == it.counts.end() ? 0 : found->second;
}
STANDIN_API void lt_standin_reset_counts() {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    it.counts.clear();
}
STANDIN_API const char* lt_standin_last_error() {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    return lasting(last_message);
}

// ---- for the stand-in cuBLASLt ----
STANDIN_API int lt_internal_enqueue(const char* function, void* stream_handle, stream_work* work) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    if (CUresult bad = enter(needs::context, function)) return bad;
    return enqueue(stream_handle, std::move(*work));
}
STANDIN_API int lt_internal_enter(const char* function) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    return enter(needs::context, function);
}
STANDIN_API int lt_internal_device_range(const void* address, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    return device_range((CUdeviceptr)address, bytes);
}
STANDIN_API void lt_internal_count(const char* what) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    it.counts[what]++;
}
STANDIN_API void lt_internal_note(const char* function, const char* message) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    current_function = function;
    fail(INVALID_VALUE, message);
}

// ---- device and context ----
API cuInit(unsigned flags) {
    ENTER(nothing);
    REQUIRE(!flags, INVALID_VALUE, "flags must be 0");
    REQUIRE(it.lost_mark.empty() || access(it.lost_mark.c_str(), F_OK), NO_DEVICE, "the device was lost, as LT_EMULATOR_LOST asks for");
    it.initialized = true;
    return SUCCESS;
}
API cuDriverGetVersion(int* version) {
    ENTER(nothing);
    REQUIRE(version, INVALID_VALUE, "no place for the result");
    *version = it.driver_version;
    return SUCCESS;
}
API cuDeviceGetCount(int* count) {
    ENTER(driver);
    REQUIRE(count, INVALID_VALUE, "no place for the result");
    *count = 1;
    return SUCCESS;
}
API cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER(driver);
    REQUIRE(device, INVALID_VALUE, "no place for the result");
    REQUIRE(ordinal == 0, INVALID_DEVICE, "there is one device, number 0");
    *device = 0;
    return SUCCESS;
}
API cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER(driver);
    REQUIRE(name && length > 0, INVALID_VALUE, "no place for the result");
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    snprintf(name, (size_t)length, "Emulated device (CPU)");
    return SUCCESS;
}
API cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice device) {
    ENTER(driver);
    REQUIRE(uuid, INVALID_VALUE, "no place for the result");
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    memcpy(uuid, "emulated-device0", 16);
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    ENTER(driver);
    REQUIRE(bytes, INVALID_VALUE, "no place for the result");
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    *bytes = it.memory_bytes;
    return SUCCESS;
}
API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    ENTER(driver);
    REQUIRE(value, INVALID_VALUE, "no place for the result");
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    static const std::map<int, int> values = {
        {1, 1024},                     // MAX_THREADS_PER_BLOCK
        {2, 1024}, {3, 1024}, {4, 64}, // MAX_BLOCK_DIM_X, Y, Z
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},  // MAX_GRID_DIM_X, Y, Z
        {8, default_dynamic_shared},   // MAX_SHARED_MEMORY_PER_BLOCK
        {9, 65536},                    // TOTAL_CONSTANT_MEMORY
        {10, 32},                      // WARP_SIZE
        {12, 65536},                   // MAX_REGISTERS_PER_BLOCK
        {13, 1410000},                 // CLOCK_RATE, kHz
        {19, 1},                       // CAN_MAP_HOST_MEMORY
        {31, 1},                       // CONCURRENT_KERNELS
        {36, 1215000},                 // MEMORY_CLOCK_RATE, kHz
        {37, 5120},                    // GLOBAL_MEMORY_BUS_WIDTH
        {38, 40 << 20},                // L2_CACHE_SIZE
        {39, 2048},                    // MAX_THREADS_PER_MULTIPROCESSOR
        {40, 1},                       // ASYNC_ENGINE_COUNT
        {41, 1},                       // UNIFIED_ADDRESSING
        {81, 164 * 1024},              // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        {82, 65536},                   // MAX_REGISTERS_PER_MULTIPROCESSOR
        {83, 1},                       // MANAGED_MEMORY
        {89, 1},                       // CONCURRENT_MANAGED_ACCESS
        {97, max_dynamic_shared},      // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    };
    if (attribute == 75 || attribute == 76) {  // COMPUTE_CAPABILITY_MAJOR, MINOR
        *value = attribute == 75 ? it.capability / 10 : it.capability % 10;
        return SUCCESS;
    }
    if (attribute == 16) {  // MULTIPROCESSOR_COUNT
        *value = emu_workers();
        return SUCCESS;
    }
    REQUIRE(attribute > 0 && attribute < 150, INVALID_VALUE, "no such attribute");
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void** context, CUdevice device) {
    ENTER(driver);
    REQUIRE(context, INVALID_VALUE, "no place for the result");
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    if (it.context_references++ == 0) it.context = new char();  // never freed, so no two contexts look alike
    *context = it.context;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(driver);
    REQUIRE(device == 0, INVALID_DEVICE, "there is one device, number 0");
    REQUIRE(it.context_references > 0, INVALID_CONTEXT, "the primary context is not retained");
    if (it.context_references == 1) {
        drain_all();
        destroy_context();
    }
    it.context_references--;
    return SUCCESS;
}
API cuCtxSetCurrent(void* context) {
    ENTER(driver);
    REQUIRE(!context || context == it.context, INVALID_CONTEXT, "not a live context");
    current_context = (char*)context;
    return SUCCESS;
}
API cuCtxGetCurrent(void** context) {
    ENTER(driver);
    REQUIRE(context, INVALID_VALUE, "no place for the result");
    *context = current_context;
    return SUCCESS;
}
API cuCtxSynchronize() {
    ENTER(context);
    it.counts["synchronizations"]++;
    REFUSE_IN_CAPTURE;
    return drain_all();
}

// ---- memory ----
API cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER(context);
    REQUIRE(available && total, INVALID_VALUE, "no place for the result");
    *total = it.memory_bytes;
    *available = it.memory_bytes - device_bytes();
    return SUCCESS;
}
API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    ENTER(context);
    return allocate(address, bytes, memory_kind::device);
}
API cuMemFree_v2(CUdeviceptr address) {
    ENTER(context);
    return address ? release((const void*)address, true) : SUCCESS;
}
API cuMemAllocManaged(CUdeviceptr* address, size_t bytes, unsigned flags) {
    ENTER(context);
    REQUIRE(flags == 1 || flags == 2, INVALID_VALUE, "flags must be CU_MEM_ATTACH_GLOBAL or CU_MEM_ATTACH_HOST");
    it.counts["managed_allocations"]++;
    return allocate(address, bytes, memory_kind::managed);
}
API cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    ENTER(context);
    REQUIRE(!(flags & ~7u), INVALID_VALUE, "unknown flags");
    const unsigned device_map = 2;
    size_t used = it.memory.bytes(memory_kind::pinned) + it.memory.bytes(memory_kind::pinned_mapped);
    REQUIRE(bytes <= it.pinned_bytes && used <= it.pinned_bytes - bytes, OUT_OF_MEMORY, std::to_string(bytes) + " page-locked bytes asked for, " + std::to_string(used) + " of " + std::to_string(it.pinned_bytes) + " in use");
    return allocate((CUdeviceptr*)address, bytes, flags & device_map ? memory_kind::pinned_mapped : memory_kind::pinned);
}
API cuMemFreeHost(void* address) {
    ENTER(context);
    return release(address, false);
}

static CUresult prefetch(CUdeviceptr address, size_t bytes, void* stream_handle) {
    const allocation* a = it.memory.containing((const void*)address);
    REQUIRE(a && a->kind == memory_kind::managed, INVALID_VALUE, "not managed memory");
    REQUIRE(device_range(address, bytes), INVALID_VALUE, range_error("the range", address, bytes));
    stream_ref s = find_stream(stream_handle);
    if (s && s->capturing) return spoil(CAPTURE_UNSUPPORTED, "prefetching cannot be captured");
    it.counts["prefetches"]++;
    it.counts["prefetched_bytes"] += (long long)bytes;
    return enqueue(stream_handle, [] { return outcome{}; });
}
API cuMemPrefetchAsync(CUdeviceptr address, size_t bytes, CUdevice device, void* stream_handle) {
    ENTER(context);
    REQUIRE(device == 0 || device == -1, INVALID_DEVICE, "the destination is neither the device nor the host");
    return prefetch(address, bytes, stream_handle);
}
struct CUmemLocation {
    int type, id;
};
API cuMemPrefetchAsync_v2(CUdeviceptr address, size_t bytes, CUmemLocation location, unsigned flags, void* stream_handle) {
    ENTER(context);
    const int on_device = 1, on_host = 2;
    REQUIRE(!flags, INVALID_VALUE, "flags must be 0");
    REQUIRE((location.type == on_device && location.id == 0) || location.type == on_host, INVALID_DEVICE, "the destination is neither the device nor the host");
    return prefetch(address, bytes, stream_handle);
}

API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER(context);
    return copy("copies_to_device", {to, true}, {(CUdeviceptr)from, false}, bytes, nullptr, true);
}
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER(context);
    return copy("copies_to_host", {(CUdeviceptr)to, false}, {from, true}, bytes, nullptr, true);
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER(context);
    return copy("copies_on_device", {to, true}, {from, true}, bytes, nullptr, false);
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream_handle) {
    ENTER(context);
    return copy("copies_to_device", {to, true}, {(CUdeviceptr)from, false}, bytes, stream_handle, false);
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream_handle) {
    ENTER(context);
    return copy("copies_to_host", {(CUdeviceptr)to, false}, {from, true}, bytes, stream_handle, false);
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream_handle) {
    ENTER(context);
    return copy("copies_on_device", {to, true}, {from, true}, bytes, stream_handle, false);
}
API cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t count) {
    ENTER(context);
    return fill(address, value, count, 1, nullptr);
}
API cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, void* stream_handle) {
    ENTER(context);
    return fill(address, value, count, 1, stream_handle);
}
API cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, void* stream_handle) {
    ENTER(context);
    return fill(address, value, count, 4, stream_handle);
}

// ---- streams and events ----
API cuStreamCreate(void** handle, unsigned flags) {
    ENTER(context);
    REQUIRE(handle, INVALID_VALUE, "no place for the result");
    REQUIRE(flags <= 1, INVALID_VALUE, "unknown flags");
    auto created = std::make_shared<stream>();
    created->blocking = flags == 0;
    it.streams[created.get()] = created;
    *handle = created.get();
    return SUCCESS;
}
API cuStreamDestroy_v2(void* handle) {
    ENTER(context);
    auto found = it.streams.find(handle);
    if (found == it.streams.end()) return no_stream();
    stream_ref s = found->second;
    if (s->capturing) return spoil(CAPTURE_UNSUPPORTED, "the stream is capturing");
    drain(s);  // the real one lets queued work finish
    it.streams.erase(handle);
    return SUCCESS;
}
API cuStreamSynchronize(void* handle) {
    ENTER(context);
    stream_ref s = find_stream(handle);
    return s ? synchronize(s) : no_stream();
}
API cuStreamQuery(void* handle) {
    ENTER(context);
    stream_ref s = find_stream(handle);
    if (!s) return no_stream();
    if (s->capturing) return spoil(CAPTURE_UNSUPPORTED, "the stream is capturing");
    if (s->queue.empty()) return SUCCESS;
    drain(s, s->done + 1);  // a host that asks again and again sees progress
    return NOT_READY;
}

static event_ref find_event(void* handle) {
    auto found = it.events.find(handle);
    return found == it.events.end() ? nullptr : found->second;
}
#define FIND_EVENT(name, handle)            \
    event_ref name = find_event(handle);    \
    REQUIRE(name, INVALID_HANDLE, "not an event, or one that was destroyed")

API cuEventCreate(void** handle, unsigned flags) {
    ENTER(context);
    REQUIRE(handle, INVALID_VALUE, "no place for the result");
    REQUIRE(flags <= 7, INVALID_VALUE, "unknown flags");
    const unsigned disable_timing = 2;
    auto created = std::make_shared<event>();
    created->timed = !(flags & disable_timing);
    it.events[created.get()] = created;
    *handle = created.get();
    return SUCCESS;
}
API cuEventDestroy_v2(void* handle) {
    ENTER(context);
    FIND_EVENT(e, handle);
    it.events.erase(handle);
    return SUCCESS;
}
API cuEventRecord(void* handle, void* stream_handle) {
    ENTER(context);
    FIND_EVENT(e, handle);
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    e->recorded = true;
    e->done = false;
    e->queries = 0;
    e->recorded_on = s;
    e->captured = s->capturing != nullptr;
    if (e->captured) {
        capture& c = *s->capturing;
        if (c.invalid) return fail(CAPTURE_INVALIDATED, "the capture was spoilt before");
        e->captured_in = s->capturing;
        e->branch = s->branch;
        e->node_position = c.captured->branches[s->branch].size();
        e->knows = c.knows[s->branch];
        return SUCCESS;
    }
    e->position = s->submitted + 1;
    unsigned long long position = e->position;
    return enqueue(s, [e, position] {
        if (e->position == position) e->done = true;  // else it has been recorded again since
        e->seconds = now();
        return outcome{};
    });
}
API cuEventSynchronize(void* handle) {
    ENTER(context);
    FIND_EVENT(e, handle);
    it.counts["synchronizations"]++;
    if (e->captured) return spoil(CAPTURED_EVENT, "the event was last recorded in a capture");
    return e->recorded && !e->done ? drain(e->recorded_on, e->position) : SUCCESS;
}
API cuEventQuery(void* handle) {
    ENTER(context);
    FIND_EVENT(e, handle);
    if (e->captured) return spoil(CAPTURED_EVENT, "the event was last recorded in a capture");
    if (!e->recorded || e->done) return SUCCESS;
    if (++e->queries < 3) return NOT_READY;
    return drain(e->recorded_on, e->position);  // a host that asks again and again sees progress
}
API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    ENTER(context);
    REQUIRE(milliseconds, INVALID_VALUE, "no place for the result");
    FIND_EVENT(from, start);
    FIND_EVENT(to, end);
    REQUIRE(from->timed && to->timed, INVALID_HANDLE, "an event was created without timing");
    REQUIRE(from->recorded && to->recorded, INVALID_HANDLE, "an event has not been recorded");
    if (!from->done || !to->done) return NOT_READY;
    *milliseconds = (float)((to->seconds - from->seconds) * 1e3);
    return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* start, void* end) { return cuEventElapsedTime_v2(milliseconds, start, end); }
API cuStreamWaitEvent(void* stream_handle, void* handle, unsigned flags) {
    ENTER(context);
    FIND_EVENT(e, handle);
    REQUIRE(flags <= 1, INVALID_VALUE, "unknown flags");
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    if (e->captured) return join(s, *e);
    if (s->capturing) return spoil(CAPTURE_ISOLATION, "the event stands for work that is not captured");
    if (!e->recorded) return SUCCESS;
    stream_ref other = e->recorded_on;
    unsigned long long position = e->position;
    return enqueue(s, [other, position] {
        drain(other, position);
        return outcome{};  // an error there sticks already
    });
}

// ---- modules ----
// The image is what the stand-in NVRTC hands out: it names the library that holds the kernels.
API cuModuleLoadData(void** handle, const void* image) {
    ENTER(context);
    REQUIRE(handle && image, INVALID_VALUE, "no image, or no place for the result");
    REFUSE_IN_CAPTURE;
    const char* text = (const char*)image;
    const char tag[] = "LT-EMULATOR-MODULE\n";
    REQUIRE(!strncmp(text, tag, sizeof tag - 1), INVALID_IMAGE, "the image was not made by the stand-in NVRTC");
    REQUIRE(device_bytes() + it.module_bytes <= it.memory_bytes, OUT_OF_MEMORY, "the module's code does not fit");
    const char* path = text + sizeof tag - 1;
    std::string file(path, strcspn(path, "\n"));
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library, INVALID_IMAGE, dlerror());
    auto* kernels = (const emu_kernel* const*)dlsym(library, "emu_module_kernels");
    REQUIRE(kernels, INVALID_IMAGE, file + " has no kernel table");
    auto loaded = std::make_unique<module>();
    loaded->library = library;
    for (; *kernels; kernels++) {
        // a kernel without extern "C" would have another name in a real image
        if (!dlsym(library, (*kernels)->name)) continue;
        auto function = std::make_unique<kernel_function>();
        function->kernel = *kernels;
        loaded->functions[(*kernels)->name] = std::move(function);
    }
    *handle = loaded.get();
    it.modules[loaded.get()] = std::move(loaded);
    return SUCCESS;
}
API cuModuleLoadDataEx(void** handle, const void* image, unsigned, int*, void**) { return cuModuleLoadData(handle, image); }
API cuModuleUnload(void* handle) {
    ENTER(context);
    auto found = it.modules.find(handle);
    REQUIRE(found != it.modules.end(), INVALID_HANDLE, "not a module, or one that was unloaded");
    drain_all();
    for (auto& f : found->second->functions) it.functions.erase(f.second.get());
    it.modules.erase(found);
    return SUCCESS;
}
API cuModuleGetFunction(void** handle, void* module_handle, const char* name) {
    ENTER(context);
    REQUIRE(handle && name, INVALID_VALUE, "no name, or no place for the result");
    auto found = it.modules.find(module_handle);
    REQUIRE(found != it.modules.end(), INVALID_HANDLE, "not a module, or one that was unloaded");
    auto function = found->second->functions.find(name);
    REQUIRE(function != found->second->functions.end(), NOT_FOUND, std::string("the module has no extern \"C\" kernel named ") + name);
    *handle = function->second.get();
    it.functions.insert(*handle);
    return SUCCESS;
}

// ---- functions ----
#define FIND_FUNCTION(name, handle)                     \
    kernel_function* name = find_function(handle);      \
    REQUIRE(name, INVALID_HANDLE, "not a function of a loaded module")

enum function_attribute { MAX_THREADS_PER_BLOCK = 0, SHARED_SIZE_BYTES = 1, NUM_REGS = 4, PTX_VERSION = 5, BINARY_VERSION = 6, MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, PREFERRED_SHARED_MEMORY_CARVEOUT = 9 };

API cuFuncSetAttribute(void* handle, int attribute, int value) {
    ENTER(context);
    FIND_FUNCTION(f, handle);
    if (attribute == PREFERRED_SHARED_MEMORY_CARVEOUT) return SUCCESS;
    REQUIRE(attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES, INVALID_VALUE, "the attribute cannot be set");
    REQUIRE(value >= 0 && value <= max_dynamic_shared, INVALID_VALUE,
            std::string(f->kernel->name) + ": " + std::to_string(value) + " bytes of dynamic shared memory are more than the device's " + std::to_string(max_dynamic_shared));
    f->max_dynamic = value;
    return SUCCESS;
}
API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    ENTER(context);
    REQUIRE(value, INVALID_VALUE, "no place for the result");
    FIND_FUNCTION(f, handle);
    REQUIRE(attribute >= 0 && attribute <= PREFERRED_SHARED_MEMORY_CARVEOUT, INVALID_VALUE, "no such attribute");
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *value = f->kernel->max_threads; break;
    case SHARED_SIZE_BYTES: *value = (int)emu_static_shared_bytes(*f->kernel); break;  // of the whole module: an upper bound
    case NUM_REGS: *value = 32; break;
    case PTX_VERSION: case BINARY_VERSION: *value = 80; break;
    case MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = f->max_dynamic; break;
    default: *value = 0;
    }
    return SUCCESS;
}
API cuFuncGetParamInfo(void* handle, size_t index, size_t* offset, size_t* size) {
    ENTER(context);
    FIND_FUNCTION(f, handle);
    const emu_kernel& k = *f->kernel;
    REQUIRE(offset, INVALID_VALUE, "no place for the result");
    if (index >= (size_t)k.argument_count) return INVALID_VALUE;  // how a caller finds the end; not worth a message
    size_t at = 0;
    for (size_t i = 0;; i++) {
        at = (at + k.alignments[i] - 1) / k.alignments[i] * k.alignments[i];
        if (i == index) break;
        at += k.sizes[i];
    }
    *offset = at;
    if (size) *size = k.sizes[index];
    return SUCCESS;
}
API cuLaunchKernel(void* handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared_bytes, void* stream_handle, void** parameters, void** extra) {
    ENTER(context);
    FIND_FUNCTION(f, handle);
    const emu_kernel& kernel = *f->kernel;
    std::string name = std::string(kernel.name) + ": ";
    emu_uint3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    std::string bad = size_error(grid, block);
    REQUIRE(bad.empty(), INVALID_VALUE, name + bad);
    REQUIRE((int)(block_x * block_y * block_z) <= kernel.max_threads, LAUNCH_OUT_OF_RESOURCES,
            name + std::to_string(block_x * block_y * block_z) + " threads are more than its __launch_bounds__ of " + std::to_string(kernel.max_threads));
    REQUIRE(shared_bytes <= (unsigned)f->max_dynamic, INVALID_VALUE,
            name + std::to_string(shared_bytes) + " bytes of dynamic shared memory are more than the " + std::to_string(f->max_dynamic) + " allowed for this function");
    REQUIRE(!extra && (parameters || !kernel.argument_count), INVALID_VALUE, name + "arguments are passed by kernelParams only");
    std::shared_ptr<argument_copy> arguments = take_arguments(kernel, parameters, bad);
    REQUIRE(bad.empty(), INVALID_VALUE, name + bad);
    it.counts[kernel.name]++;
    return enqueue(stream_handle, [&kernel, grid, block, shared_bytes, arguments] { return run_kernel(kernel, grid, block, shared_bytes, *arguments); }, kind::kernel);
}

// ---- graphs ----
API cuStreamBeginCapture_v2(void* stream_handle, int mode) {
    ENTER(context);
    REQUIRE(mode >= 0 && mode <= 2, INVALID_VALUE, "unknown mode");
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    REQUIRE(s != it.default_stream, CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
    REQUIRE(!s->capturing, ILLEGAL_STATE, "the stream is capturing already");
    auto begun = std::make_shared<capture>();
    begun->origin = stream_handle;
    begun->mode = (unsigned)mode;
    begun->thread = &this_thread;
    begun->captured->branches.resize(1);
    begun->knows.assign(1, std::vector<size_t>(1));
    s->capturing = begun;
    s->branch = 0;
    it.captures.insert(begun);
    return SUCCESS;
}
API cuStreamEndCapture(void* stream_handle, void** handle) {
    ENTER(context);
    REQUIRE(handle, INVALID_VALUE, "no place for the result");
    *handle = nullptr;
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    REQUIRE(s->capturing, ILLEGAL_STATE, "the stream is not capturing");
    capture_ref c = s->capturing;
    const unsigned thread_local_mode = 1;
    if (c->origin != stream_handle) return spoil(CAPTURE_UNMATCHED, "the capture began on another stream");
    if (c->mode == thread_local_mode && c->thread != &this_thread) return fail(CAPTURE_WRONG_THREAD, "the capture began on another thread");
    end_capture(c);
    REQUIRE(!c->invalid, CAPTURE_INVALIDATED, "a call during the capture was not permitted");
    REQUIRE(it.graph_misfortune != "refuse", CAPTURE_INVALIDATED, "as LT_EMULATOR_GRAPH asks for");
    for (size_t i = 1; i < c->captured->branches.size(); i++)
        REQUIRE(c->knows[0][i] >= c->captured->branches[i].size(), CAPTURE_UNJOINED, "work of another stream was not waited for before the capture ended");
    it.graphs[c->captured.get()] = c->captured;
    *handle = c->captured.get();
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void** handle, void* graph_handle, unsigned long long flags) {
    ENTER(context);
    REQUIRE(handle, INVALID_VALUE, "no place for the result");
    REQUIRE(!flags, INVALID_VALUE, "flags are not supported");
    auto found = it.graphs.find(graph_handle);
    REQUIRE(found != it.graphs.end(), INVALID_VALUE, "not a graph, or one that was destroyed");
    char* executable = new char();  // never freed, so no two look alike
    it.executables[executable] = found->second;
    *handle = executable;
    return SUCCESS;
}
API cuGraphLaunch(void* handle, void* stream_handle) {
    ENTER(context);
    auto found = it.executables.find(handle);
    REQUIRE(found != it.executables.end(), INVALID_VALUE, "not an executable graph, or one that was destroyed");
    stream_ref s = find_stream(stream_handle);
    if (!s) return no_stream();
    if (s->capturing) return spoil(CAPTURE_UNSUPPORTED, "graphs in graphs are not supported");
    graph_ref launched = found->second;
    return enqueue(s, [launched] { return launch_graph(*launched); });
}
API cuGraphExecDestroy(void* handle) {
    ENTER(context);
    REQUIRE(it.executables.erase(handle), INVALID_VALUE, "not an executable graph, or one that was destroyed");
    return SUCCESS;
}
API cuGraphDestroy(void* handle) {
    ENTER(context);
    REQUIRE(it.graphs.erase(handle), INVALID_VALUE, "not a graph, or one that was destroyed");
    return SUCCESS;
}

// ---- error texts ----
API cuGetErrorName(CUresult code, const char** name) {
    const error_name* e = find_error(code);
    if (name) *name = e ? e->name : nullptr;
    return e && name ? SUCCESS : INVALID_VALUE;
}
// The real driver's text, and after it what the stand-in knows about the error that this thread met last.
API cuGetErrorString(CUresult code, const char** meaning) {
    std::lock_guard<std::recursive_mutex> lock(it.mutex);
    const error_name* e = find_error(code);
    if (meaning) *meaning = !e ? nullptr : code && code == last_code && !last_message.empty() ? lasting(e->meaning + (" (" + last_message + ")")) : e->meaning;
    return e && meaning ? SUCCESS : INVALID_VALUE;
}
