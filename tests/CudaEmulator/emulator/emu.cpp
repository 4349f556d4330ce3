// emu.cpp - runs a grid of a kernel on the CPU with the block and warp semantics of the device.
//
// A worker (an operating system thread) takes one block at a time. Every CUDA thread of the block is a fiber that runs until
// it has to wait: at a barrier, or in a warp operation that other lanes have not reached. Then it switches straight to the
// next thread that can run. Which one that is, the order decides (forward, reverse, random); a correct kernel gives the same
// result in each. Nothing is preempted, so a kernel whose blocks wait for each other hangs; a watchdog ends it.
#include "runtime.h"
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <dlfcn.h>
#include <link.h>
#include <mutex>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <thread>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

#if !defined(__x86_64__)
#error "the context switch below is x86-64; another machine needs its own"
#endif

namespace {

const int max_threads = 1024, warp_lanes = 32, max_warps = max_threads / warp_lanes;
const size_t page = 4096, stack_bytes = 64 * 1024;
const size_t max_dynamic_shared = 227 * 1024 / page * page + page;  // what the largest device allows, in whole pages
const size_t guard_bytes = 256;                                      // watched bytes in front of dynamic shared memory
const size_t no_access = 4 << 20;                                    // addresses on either side of dynamic shared memory; they cost no memory
const unsigned char poison = 0xff;                                   // NaN as a float and as a bf16, -1 as an integer

struct place {
    const char* what = nullptr;
    const char* file = nullptr;
    int line = 0;
};

struct pending_copy {
    void* destination;
    const void* source;
    int bytes;
    int group;
};

struct fiber : emu_thread {
    int index, warp, stack;
    void* stack_pointer;  // null until the thread first runs
    const place* waiting;  // where it waits; means nothing while it can run
    std::vector<pending_copy> copies;
    int copy_group;
};

// Lanes that have arrived in one warp operation. Up to four disjoint groups of a warp may be on their way at once.
struct lane_group {
    unsigned mask, arrived;
    place at;
    emu_warp_operation operation;
    void* slot[warp_lanes];
};

struct warp {
    unsigned ready, alive;
    lane_group groups[4];
};

struct memory_range {
    char* start = nullptr;
    size_t bytes = 0;
};

struct worker {
    fiber threads[max_threads];
    warp warps[max_warps];
    emu_block block;
    unsigned warps_ready, alive, at_barrier;
    int thread_count, warp_count;
    place barrier;
    const emu_kernel* kernel;
    void** arguments;
    void* scheduler;        // stack pointer of the worker's own stack while fibers run
    char* stacks;
    std::vector<int> free_stacks;
    char* dynamic_end;      // dynamic shared memory ends here, in front of addresses without access
    size_t dynamic_bytes;
    memory_range static_shared;
    bool failed;
    emu_failure failure;
    unsigned long long random;
    pthread_t handle;
};

struct grid_run {
    const emu_kernel* kernel;
    emu_uint3 grid, block;
    size_t shared_bytes;
    void** arguments;
    unsigned long long blocks, stride, offset;
    std::atomic<unsigned long long> next;
    std::atomic<bool> failed;
    emu_failure failure;
};

struct worker_pool {
    std::mutex mutex;
    std::condition_variable work, finished;
    std::vector<worker*> workers;
    long long generation = 0;
    int wanted = 0, running = 0;
    grid_run run;
};

worker_pool* pool;
emu_order order = emu_order::forward;
emu_copies copies = emu_copies::late;
unsigned long long launches;
__thread worker* here;

// ---- the context switch: saves the callee-saved registers on the old stack, takes them from the new one ----
asm(R"(
.text
.type emu_switch,@function
emu_switch:
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
.size emu_switch,.-emu_switch
)");
extern "C" void emu_switch(void** save, void* load) __attribute__((visibility("hidden")));

void run_threads();  // what a fresh stack starts with

fiber* current() { return (fiber*)emu_cur; }

// ---- choosing the next thread ----
unsigned next_random(worker* w) {
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(w->random >> 33);
}

int pick_bit(worker* w, unsigned bits) {
    if (order == emu_order::forward) return __builtin_ctz(bits);
    if (order == emu_order::reverse) return 31 - __builtin_clz(bits);
    for (unsigned skip = next_random(w) % (unsigned)__builtin_popcount(bits); skip; skip--) bits &= bits - 1;
    return __builtin_ctz(bits);
}

void make_ready(worker* w, int warp_index, unsigned lanes) {
    if (!lanes) return;
    w->warps[warp_index].ready |= lanes;
    w->warps_ready |= 1u << warp_index;
}

// Takes a thread out of the ready ones: of the warp that ran last if it can go on, so that warp operations complete quickly.
fiber* take_ready(worker* w, int last_warp) {
    if (!w->warps_ready) return nullptr;
    int warp_index = last_warp;
    if (last_warp < 0 || !w->warps[last_warp].ready || order == emu_order::random) warp_index = pick_bit(w, w->warps_ready);
    warp& of = w->warps[warp_index];
    int lane = pick_bit(w, of.ready);
    of.ready &= ~(1u << lane);
    if (!of.ready) w->warps_ready &= ~(1u << warp_index);
    return &w->threads[warp_index * warp_lanes + lane];
}

void start_stack(worker* w, fiber* thread) {
    thread->stack = w->free_stacks.back();
    w->free_stacks.pop_back();
    // The tops are staggered by cache lines; else the same variable of all fibers would fall into the same cache sets.
    char* top = w->stacks + (size_t)(thread->stack + 1) * stack_bytes - 256 - (size_t)(thread->stack % 59) * 64;
    void** frame = (void**)((uintptr_t)top & ~(uintptr_t)15);
    *--frame = nullptr;
    *--frame = (void*)run_threads;
    for (int saved_register = 0; saved_register < 6; saved_register++) *--frame = nullptr;
    thread->stack_pointer = frame;
}

void resume(worker* w, fiber* next, void** save) {
    if (!next->stack_pointer) start_stack(w, next);
    emu_cur = next;
    emu_switch(save, next->stack_pointer);
}

[[noreturn]] void leave_block(worker* w) {
    void* abandoned;
    emu_cur = nullptr;
    emu_switch(&abandoned, w->scheduler);
    abort();
}

// ---- failures ----
std::string format_text(const char* format, va_list values) {
    char text[1024];
    vsnprintf(text, sizeof text, format, values);
    return text;
}

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::string result = format_text(format, values);
    va_end(values);
    return result;
}

[[noreturn]] void fail_block(worker* w, const std::string& message) {
    w->failed = true;
    w->failure.message = message;
    leave_block(w);
}

std::string block_name(worker* w) {
    const emu_uint3& b = w->block.bidx;
    return text("kernel %s, block (%u,%u,%u)", w->kernel->name, b.x, b.y, b.z);
}

[[noreturn]] void fail_thread(worker* w, const std::string& message) {
    const emu_uint3& t = emu_cur->tid;
    fail_block(w, message + " [" + block_name(w) + text(", thread (%u,%u,%u)]", t.x, t.y, t.z));
}

bool same_place(const place& a, const place& b) { return a.what == b.what && a.line == b.line && !strcmp(a.file, b.file); }

// No thread can run and some have not ended: every place where threads wait, with how many and the first of them.
[[noreturn]] void fail_deadlock(worker* w) {
    std::vector<std::pair<const fiber*, int>> places;
    for (int i = 0; i < w->thread_count; i++) {
        const fiber& thread = w->threads[i];
        if (!(w->warps[thread.warp].alive >> thread.lane & 1)) continue;
        auto known = std::find_if(places.begin(), places.end(), [&](auto& p) { return same_place(*p.first->waiting, *thread.waiting); });
        if (known == places.end()) places.push_back({&thread, 1});
        else known->second++;
    }
    std::string message = "deadlock:";
    for (auto& p : places)
        message += text(" %d threads (first (%u,%u,%u)) wait in %s at %s:%d;", p.second, p.first->tid.x, p.first->tid.y, p.first->tid.z,
                        p.first->waiting->what, p.first->waiting->file, p.first->waiting->line);
    fail_block(w, message + text(" %d threads have ended [", w->thread_count - (int)w->alive) + block_name(w) + "]");
}

// ---- waiting ----
void wait_at(worker* w, fiber* me, const place& at) {
    me->waiting = &at;
    fiber* next = take_ready(w, me->warp);
    if (!next) fail_deadlock(w);
    if (next != me) resume(w, next, &me->stack_pointer);
}

// Every live thread is at the barrier.
void release_barrier(worker* w) {
    w->at_barrier = 0;
    for (int i = 0; i < w->warp_count; i++) make_ready(w, i, w->warps[i].alive);
}

lane_group* find_group(worker* w, warp& of, unsigned mask, const place& at, emu_warp_operation operation) {
    lane_group* unused = nullptr;
    for (lane_group& group : of.groups) {
        if (!group.arrived) {
            unused = &group;
            continue;
        }
        if (group.mask == mask) {
            if (group.at.line != at.line || group.at.what != at.what)
                fail_thread(w, text("%s at %s:%d while lanes of the same mask wait in %s at %s:%d", at.what, at.file, at.line, group.at.what,
                                    group.at.file, group.at.line));
            return &group;
        }
        if (group.mask & mask)
            fail_thread(w, text("%s at %s:%d with mask %08x while lanes wait with the overlapping mask %08x in %s at %s:%d", at.what, at.file,
                                at.line, mask, group.mask, group.at.what, group.at.file, group.at.line));
    }
    if (!unused) fail_thread(w, text("%s at %s:%d: more than four groups of lanes of one warp on their way", at.what, at.file, at.line));
    unused->mask = mask;
    unused->at = at;
    unused->operation = operation;
    return unused;
}

// ---- the life of a thread ----
void end_thread(worker* w, fiber* thread) {
    warp& of = w->warps[thread->warp];
    of.alive &= ~(1u << thread->lane);
    w->alive--;
    // Ended threads do not count, so this one may have been the last that others waited for.
    if (w->alive && w->at_barrier == w->alive) release_barrier(w);
    for (lane_group& group : of.groups) {
        unsigned live = group.mask & of.alive;
        if (!group.arrived || group.arrived != live) continue;
        group.arrived = 0;
        group.operation(live, group.slot);
        make_ready(w, thread->warp, live);
    }
}

// Runs threads from their beginning on this stack until one waits for another that already has a stack of its own.
void run_threads() {
    worker* w = here;
    for (;;) {
        fiber* thread = current();
        w->kernel->call(w->arguments);
        end_thread(w, thread);
        if (!w->alive) leave_block(w);
        fiber* next = take_ready(w, thread->warp);
        if (!next) fail_deadlock(w);
        if (next->stack_pointer) {
            w->free_stacks.push_back(thread->stack);
            resume(w, next, &thread->stack_pointer);
            abort();
        }
        next->stack = thread->stack;
        next->stack_pointer = thread->stack_pointer;  // not null: it has begun
        emu_cur = next;
    }
}

void prepare_block(worker* w, const emu_uint3& size) {
    w->thread_count = (int)(size.x * size.y * size.z);
    w->warp_count = (w->thread_count + warp_lanes - 1) / warp_lanes;
    w->alive = (unsigned)w->thread_count;
    w->at_barrier = w->warps_ready = 0;
    w->failed = false;
    w->free_stacks.clear();
    for (int i = w->thread_count - 1; i >= 0; i--) w->free_stacks.push_back(i);
    unsigned x = 0, y = 0, z = 0;
    for (int i = 0; i < w->thread_count; i++) {
        fiber& thread = w->threads[i];
        thread.tid = {x, y, z};
        thread.lane = (unsigned)i % warp_lanes;
        thread.warp = i / warp_lanes;
        thread.index = i;
        thread.blk = &w->block;
        thread.stack_pointer = nullptr;
        thread.copies.clear();
        thread.copy_group = 0;
        if (++x == size.x) {
            x = 0;
            if (++y == size.y) y = 0, z++;
        }
    }
    for (int i = 0; i < w->warp_count; i++) {
        int lanes = std::min(warp_lanes, w->thread_count - i * warp_lanes);
        w->warps[i].alive = lanes == warp_lanes ? 0xffffffffu : (1u << lanes) - 1;
        w->warps[i].ready = 0;
        for (lane_group& group : w->warps[i].groups) group.arrived = 0;
        make_ready(w, i, w->warps[i].alive);
    }
}

// Shared memory of a block starts as NaN, so that reading what nobody wrote shows.
void poison_shared(worker* w, size_t dynamic_bytes) {
    if (w->static_shared.bytes) memset(w->static_shared.start, poison, w->static_shared.bytes);
    w->dynamic_bytes = dynamic_bytes;
    size_t rounded = (dynamic_bytes + 15) & ~(size_t)15;
    w->block.dyn = (unsigned char*)w->dynamic_end - rounded;
    memset(w->block.dyn - guard_bytes, poison, rounded + guard_bytes);
}

void check_shared_guards(worker* w) {
    const unsigned char* start = w->block.dyn;
    for (size_t i = 1; i <= guard_bytes; i++)
        if (start[-(ptrdiff_t)i] != poison) {
            w->failed = true;
            w->failure.message = text("a write %zu bytes in front of dynamic shared memory [", i) + block_name(w) + "]";
            return;
        }
    for (const unsigned char* p = start + w->dynamic_bytes; p < (unsigned char*)w->dynamic_end; p++)
        if (*p != poison) {
            w->failed = true;
            w->failure.message = text("a write %zu bytes past the end of the %zu bytes of dynamic shared memory [",
                                      (size_t)(p - start) - w->dynamic_bytes, w->dynamic_bytes) + block_name(w) + "]";
            return;
        }
}

void run_block(worker* w, const grid_run& run) {
    poison_shared(w, run.shared_bytes);
    prepare_block(w, run.block);
    resume(w, take_ready(w, -1), &w->scheduler);
    emu_cur = nullptr;
    if (!w->failed) check_shared_guards(w);
}

// ---- faults of a kernel become failures of its block ----
struct sigaction previous_action[65];
int watchdog_signal;

// The source line of an address inside a kernel module, from its debug information; empty when that cannot be had.
std::string source_place(const void* address) {
    Dl_info info;
    if (!dladdr(address, &info) || !info.dli_fname) return "";
    std::string command = text("addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, (size_t)((const char*)address - (const char*)info.dli_fbase));
    FILE* output = popen(command.c_str(), "r");
    if (!output) return "";
    char line[512];
    std::string found;
    while (fgets(line, sizeof line, output)) {
        std::string at = line;
        at.resize(at.find_last_not_of("\n\r ") + 1);
        size_t note = at.find(" (discriminator");
        if (note != std::string::npos) at.resize(note);
        if (at.find('?') != std::string::npos || at.find("/emu.h:") != std::string::npos) continue;
        size_t slash = at.rfind('/');
        if (slash != std::string::npos) at.erase(0, slash + 1);
        if (found.find(at) == std::string::npos) found += (found.empty() ? "" : ", called from ") + at;
    }
    pclose(output);
    return found;
}

const void* fault_instruction;  // of the failure being reported; looked up after the block was left

void on_fault(int signal_number, siginfo_t* info, void* context) {
    worker* w = here;
    if (w && emu_cur) {
        // a failing fiber never returns from here, so nothing else would unblock the signal
        sigset_t this_signal;
        sigemptyset(&this_signal);
        sigaddset(&this_signal, signal_number);
        pthread_sigmask(SIG_UNBLOCK, &this_signal, nullptr);
        __atomic_store_n(&fault_instruction, (const void*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP], __ATOMIC_RELAXED);
        const char* address = (const char*)info->si_addr;
        const char* stack = w->stacks + (size_t)current()->stack * stack_bytes;
        if (signal_number == watchdog_signal) fail_thread(w, "the kernel does not come to an end");
        if (signal_number == SIGFPE) fail_thread(w, "integer division by zero");
        if (signal_number == SIGILL || signal_number == SIGTRAP) fail_thread(w, "trap: undefined behaviour (a misaligned or null address, an index past an array, an overflow)");
        if (address >= stack && address < stack + page) fail_thread(w, "stack overflow");
        w->failure.illegal_address = true;
        w->failure.address = address;
        // the processor does not say which address it was
        if (info->si_code == SI_KERNEL) fail_thread(w, "illegal address (outside the address space, or misaligned for a vector instruction)");
        fail_thread(w, text("illegal address %p", info->si_addr));
    }
    if (signal_number == watchdog_signal) return;
    const struct sigaction& previous = previous_action[signal_number];
    if (previous.sa_flags & SA_SIGINFO) previous.sa_sigaction(signal_number, info, context);
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) previous.sa_handler(signal_number);
    else signal(signal_number, SIG_DFL);
}

void install_fault_handlers() {
    watchdog_signal = SIGRTMAX - 3;
    for (int signal_number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, watchdog_signal}) {
        struct sigaction action {};
        action.sa_sigaction = on_fault;
        // Only an overflow of the stack needs another one. The handlers of a host such as .NET, which are called for the faults of its own
        // threads, count on the faulting thread's stack for the other signals.
        action.sa_flags = SA_SIGINFO | SA_RESTART | (signal_number == SIGSEGV ? SA_ONSTACK : 0);
        sigaction(signal_number, &action, &previous_action[signal_number]);
    }
}

// ---- workers ----
void* map_pages(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        perror("CUDA emulator: mmap");
        abort();
    }
    return at;
}

void prepare_worker(worker* w) {
    w->handle = pthread_self();
    w->stacks = (char*)map_pages(max_threads * stack_bytes);
    madvise(w->stacks, max_threads * stack_bytes, MADV_NOHUGEPAGE);
    for (int i = 0; i < max_threads; i++) mprotect(w->stacks + (size_t)i * stack_bytes, page, PROT_NONE);
    char* dynamic = (char*)map_pages(no_access + max_dynamic_shared + no_access);
    w->dynamic_end = dynamic + no_access + max_dynamic_shared;
    mprotect(dynamic, no_access - page, PROT_NONE);
    mprotect(w->dynamic_end, no_access, PROT_NONE);
    stack_t handler_stack{};
    handler_stack.ss_size = 64 * 1024;
    handler_stack.ss_sp = map_pages(handler_stack.ss_size);
    sigaltstack(&handler_stack, nullptr);
}

// The static shared variables are the thread-local memory of the kernel's module: this thread's copy of it.
memory_range find_static_shared(const emu_kernel& kernel) {
    struct search {
        char* probe;
        memory_range found;
    } s{(char*)kernel.shared_probe(), {}};
    dl_iterate_phdr([](dl_phdr_info* module, size_t, void* data) {
        auto* s = (search*)data;
        for (int i = 0; i < module->dlpi_phnum; i++) {
            if (module->dlpi_phdr[i].p_type != PT_TLS) continue;
            char* base = (char*)module->dlpi_tls_data;
            size_t bytes = module->dlpi_phdr[i].p_memsz;
            if (!base || s->probe < base || s->probe >= base + bytes) continue;
            s->found = {base, bytes};
            return 1;
        }
        return 0;
    }, &s);
    return s.found;
}

// The order of blocks follows the order of threads; random is a stride without common divisor, so each block comes once.
emu_uint3 block_index(const grid_run& run, unsigned long long number) {
    if (order == emu_order::reverse) number = run.blocks - 1 - number;
    if (order == emu_order::random) number = (unsigned long long)(((unsigned __int128)number * run.stride + run.offset) % run.blocks);
    return {(unsigned)(number % run.grid.x), (unsigned)(number / run.grid.x % run.grid.y),
            (unsigned)(number / run.grid.x / run.grid.y)};
}

void work_on(worker* w, grid_run& run) {
    w->kernel = run.kernel;
    w->arguments = run.arguments;
    w->block.bdim = run.block;
    w->block.gdim = run.grid;
    w->static_shared = find_static_shared(*run.kernel);
    unsigned long long number;
    while (!run.failed && (number = run.next++) < run.blocks) {
        w->block.bidx = block_index(run, number);
        w->random = number * 0x9e3779b97f4a7c15ull + launches;  // the same whichever worker takes the block
        run_block(w, run);
        if (!w->failed) continue;
        std::lock_guard<std::mutex> lock(pool->mutex);
        if (!run.failed) run.failure = w->failure;
        run.failed = true;
        w->failure = {};
    }
}

void worker_main(worker* w, int number) {
    here = w;
    prepare_worker(w);
    long long seen = 0;
    std::unique_lock<std::mutex> lock(pool->mutex);
    for (;;) {
        pool->work.wait(lock, [&] { return pool->generation != seen; });
        seen = pool->generation;
        if (number >= pool->wanted) continue;
        lock.unlock();
        work_on(w, pool->run);
        lock.lock();
        if (--pool->running == 0) pool->finished.notify_all();
    }
}

int environment_number(const char* name, int otherwise) {
    const char* value = getenv(name);
    return value && *value ? atoi(value) : otherwise;
}

void start_pool() {
    pool = new worker_pool();  // lives as long as the process
    install_fault_handlers();
    // Only faults may reach a fiber's small stack: signals meant for the process go to its other threads.
    sigset_t all, before;
    sigfillset(&all);
    for (int signal_number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, watchdog_signal}) sigdelset(&all, signal_number);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < emu_workers(); i++) {
        worker* w = new worker();
        pool->workers.push_back(w);
        std::thread(worker_main, w, i).detach();
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void choose_block_order(grid_run& run) {
    unsigned long long x = (launches + 1) * 0x9e3779b97f4a7c15ull;
    run.stride = (x >> 20) % run.blocks | 1;
    run.offset = (x >> 7) % run.blocks;
    auto divisor = [](unsigned long long a, unsigned long long b) {
        while (b) {
            unsigned long long rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    };
    while (divisor(run.stride, run.blocks) != 1) run.stride += 2;
}

bool in_shared(worker* w, const void* address, size_t bytes) {
    const char* p = (const char*)address;
    const char* dynamic = (const char*)w->block.dyn;
    if (p >= dynamic && p + bytes <= dynamic + w->dynamic_bytes) return true;
    return p >= w->static_shared.start && p + bytes <= w->static_shared.start + w->static_shared.bytes;
}

void require_shared(worker* w, const char* what, const void* address, size_t bytes) {
    if ((uintptr_t)address % bytes) fail_thread(w, text("%s: the shared address %p is not aligned to %zu bytes", what, address, bytes));
    if (!in_shared(w, address, bytes)) fail_thread(w, text("%s: %p is not an address in shared memory", what, address));
}

}  // namespace

// ---- what kernels call ----
__thread emu_thread* emu_cur;

void emu_fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    std::string message = format_text(format, values);
    va_end(values);
    fail_thread(here, message);
}

void emu_syncthreads(const char* file, int line) {
    worker* w = here;
    fiber* me = current();
    place at{"__syncthreads", file, line};
    if (w->at_barrier == 0) w->barrier = at;
    else if (w->barrier.line != line || strcmp(w->barrier.file, file))
        fail_thread(w, text("__syncthreads at %s:%d while other threads wait at the one at %s:%d", file, line, w->barrier.file, w->barrier.line));
    // The last to arrive lets all go, itself included: who goes on first is for the order to say.
    if (++w->at_barrier == w->alive) release_barrier(w);
    wait_at(w, me, w->barrier);
}

void emu_collective(const char* what, unsigned mask, emu_warp_operation operation, void* operands, const char* file, int line) {
    worker* w = here;
    fiber* me = current();
    warp& of = w->warps[me->warp];
    unsigned bit = 1u << me->lane;
    if (!(mask & bit)) fail_thread(w, text("%s at %s:%d: the mask %08x does not name the calling lane %u", what, file, line, mask, me->lane));
    lane_group* group = &of.groups[0];
    // nearly always the lanes of a warp meet in one place
    if (!group->arrived || group->mask != mask || group->at.line != line || group->at.what != what)
        group = find_group(w, of, mask, {what, file, line}, operation);
    group->arrived |= bit;
    group->slot[me->lane] = operands;
    unsigned live = mask & of.alive;
    if (group->arrived != live) {
        wait_at(w, me, group->at);
        return;
    }
    group->arrived = 0;
    operation(live, group->slot);
    make_ready(w, me->warp, live & ~bit);
}

// ---- cp.async: moves its bytes as late, or as early, as the rules allow ----
void emu_cp_async(void* destination, const void* source, int bytes) {
    worker* w = here;
    fiber* me = current();
    require_shared(w, "cp.async", destination, (size_t)bytes);
    if ((uintptr_t)source % (size_t)bytes) fail_thread(w, text("cp.async: the global address %p is not aligned to %d bytes", source, bytes));
    if (in_shared(w, source, 1)) fail_thread(w, "cp.async: the source is in shared memory");
    if (copies == emu_copies::early) {
        memcpy(destination, source, (size_t)bytes);
        return;
    }
    // A source that cannot be read is to be found here, and not at a wait in another place.
    *(volatile const char*)source;
    me->copies.push_back({destination, source, bytes, me->copy_group});
}

void emu_cp_async_commit() { current()->copy_group++; }

void emu_cp_async_wait(int groups_left) {
    fiber* me = current();
    size_t kept = 0;
    for (const pending_copy& copy : me->copies) {
        if (copy.group < me->copy_group - groups_left) memcpy(copy.destination, copy.source, (size_t)copy.bytes);
        else me->copies[kept++] = copy;
    }
    me->copies.resize(kept);
}

// ---- the warp operations ----
void emu_nothing(unsigned, void**) {}

void emu_shuffle_operation(unsigned live, void** slot) {
    for (unsigned rest = live; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        auto* reader = (emu_shuffle_operands*)slot[lane];
        // a source lane that does not take part gives what the manual calls undefined: here NaN, or -1
        bool there = reader->source >= 0 && reader->source < warp_lanes && (live >> reader->source & 1);
        reader->result = there ? ((emu_shuffle_operands*)slot[reader->source])->value : ~0ull;
    }
}

void emu_ballot_operation(unsigned live, void** slot) {
    unsigned result = 0;
    for (unsigned rest = live; rest; rest &= rest - 1) result |= ((emu_ballot_operands*)slot[__builtin_ctz(rest)])->predicate << __builtin_ctz(rest);
    for (unsigned rest = live; rest; rest &= rest - 1) ((emu_ballot_operands*)slot[__builtin_ctz(rest)])->result = result;
}

// D (16x8, fp32) = A (16x16, bf16) B (16x8, bf16) + C. Fragments as the PTX manual gives them for mma.m16n8k16 with .bf16:
// lane = 4 g + t. A: register 0 holds row g, columns 2t and 2t+1; register 1 row g+8; registers 2 and 3 the same rows,
// columns 8 further. B: register 0 holds rows 2t and 2t+1 of column g, register 1 rows 8 further. C and D: numbers 0 and 1 are
// row g, columns 2t and 2t+1; numbers 2 and 3 row g+8. The lower half of a register is the element with the lower index.
void emu_mma_operation(unsigned live, void** slot) {
    if (live != 0xffffffffu) emu_fail("mma.sync with lanes missing (live lanes %08x)", live);
    typedef float row8 __attribute__((vector_size(32)));
    typedef unsigned bits8 __attribute__((vector_size(32)));
    unsigned a[16][8], b[8][8];  // [row][pair of columns], [pair of rows][column]
    float c[16][8] __attribute__((aligned(32)));
    for (int lane = 0; lane < warp_lanes; lane++) {
        const auto* operands = (const emu_mma_operands*)slot[lane];
        int g = lane >> 2, t = lane & 3;
        a[g][t] = operands->a[0];
        a[g + 8][t] = operands->a[1];
        a[g][t + 4] = operands->a[2];
        a[g + 8][t + 4] = operands->a[3];
        b[t][g] = operands->b[0];
        b[t + 4][g] = operands->b[1];
        memcpy(&c[g][2 * t], operands->c, 8);
        memcpy(&c[g + 8][2 * t], operands->c + 2, 8);
    }
    row8 even[8], odd[8];  // rows 2p and 2p+1 of B
    for (int p = 0; p < 8; p++) {
        bits8 words;
        memcpy(&words, b[p], 32);
        even[p] = (row8)(words << 16);
        odd[p] = (row8)(words & 0xffff0000u);
    }
    for (int row = 0; row < 16; row++) {
        row8 sum;
        memcpy(&sum, c[row], 32);
        for (int p = 0; p < 8; p++) {
            sum += even[p] * emu_bits<float>(a[row][p] << 16);
            sum += odd[p] * emu_bits<float>(a[row][p] & 0xffff0000u);
        }
        memcpy(c[row], &sum, 32);
    }
    for (int lane = 0; lane < warp_lanes; lane++) {
        const auto* operands = (const emu_mma_operands*)slot[lane];
        int g = lane >> 2, t = lane & 3;
        memcpy(operands->d, &c[g][2 * t], 8);
        memcpy(operands->d + 2, &c[g + 8][2 * t], 8);
    }
}

// Lane 8j + i gives the address of row i of matrix j (8x8 of 16 bits). Lane 4r + p receives elements 2p and 2p+1 of row r of each
// matrix; with .trans, of column r.
void emu_ldmatrix_operation(unsigned live, void** slot) {
    if (live != 0xffffffffu) emu_fail("ldmatrix with lanes missing (live lanes %08x)", live);
    const auto* first = (const emu_ldmatrix_operands*)slot[0];
    for (int j = 0; j < first->count; j++) {
        unsigned short m[8][8];
        for (int i = 0; i < 8; i++) {
            const unsigned char* row = ((const emu_ldmatrix_operands*)slot[8 * j + i])->row;
            if ((uintptr_t)row % 16 || !in_shared(here, row, 16))
                emu_fail("ldmatrix: the row address %p of lane %d is not 16 aligned bytes in shared memory", (const void*)row, 8 * j + i);
            memcpy(m[i], row, 16);
        }
        for (int lane = 0; lane < warp_lanes; lane++) {
            int r = lane >> 2, p = 2 * (lane & 3);
            unsigned low = first->transposed ? m[p][r] : m[r][p], high = first->transposed ? m[p + 1][r] : m[r][p + 1];
            ((const emu_ldmatrix_operands*)slot[lane])->registers[j] = low | high << 16;
        }
    }
}

// ---- what the host calls ----
void emu_configure(emu_order new_order, emu_copies new_copies) {
    order = new_order;
    copies = new_copies;
}

int emu_workers() {
    static const int count = [] {
        int cores = (int)std::thread::hardware_concurrency();
        return std::clamp(environment_number("LT_EMULATOR_WORKERS", std::clamp(cores, 1, 8)), 1, 64);
    }();
    return count;
}

size_t emu_static_shared_bytes(const emu_kernel& kernel) { return find_static_shared(kernel).bytes; }

bool emu_launch(const emu_kernel& kernel, emu_uint3 grid, emu_uint3 block, size_t shared_bytes, void** arguments, emu_failure& failure) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> alone(one_at_a_time);
    if (!pool) start_pool();
    static const int seconds = environment_number("LT_EMULATOR_TIMEOUT", 300);
    std::unique_lock<std::mutex> lock(pool->mutex);
    grid_run& run = pool->run;
    run.kernel = &kernel;
    run.grid = grid;
    run.block = block;
    run.shared_bytes = shared_bytes;
    run.arguments = arguments;
    run.blocks = (unsigned long long)grid.x * grid.y * grid.z;
    run.next = 0;
    run.failed = false;
    run.failure = {};
    launches++;
    choose_block_order(run);
    pool->wanted = (int)std::min<unsigned long long>(run.blocks, pool->workers.size());
    pool->running = pool->wanted;
    pool->generation++;
    pool->work.notify_all();
    auto patience = std::chrono::seconds(seconds);
    while (!pool->finished.wait_for(lock, patience, [] { return pool->running == 0; })) {
        for (int i = 0; i < pool->wanted; i++) pthread_kill(pool->workers[(size_t)i]->handle, watchdog_signal);
        patience = std::chrono::seconds(1);  // a worker between two threads did not notice
    }
    if (!run.failed) return true;
    failure = run.failure;
    lock.unlock();
    if (const void* instruction = __atomic_exchange_n(&fault_instruction, nullptr, __ATOMIC_RELAXED)) {
        std::string at = source_place(instruction);
        if (!at.empty()) failure.message += " at " + at;
    }
    return false;
}
