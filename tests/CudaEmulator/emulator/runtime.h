// runtime.h - the emulator's host side: runs one grid of a kernel and says what went wrong.
#pragma once
#define EMU_HOST_SIDE
#include "emu.h"
#include <string>
#undef __shared__
#undef __noinline__
#undef __global__
#undef __device__
#undef __constant__

enum class emu_order { forward, reverse, random };  // which thread (and block) runs first when several can
enum class emu_copies { late, early };              // when cp.async moves its bytes: at the wait that asks for them, or at once

struct emu_failure {
    std::string message;           // names kernel, block and thread
    bool illegal_address = false;  // then address is where the kernel went
    const void* address = nullptr;
};

void emu_configure(emu_order order, emu_copies copies);
int emu_workers();

// Runs every block of the grid; false when a thread failed, with what happened. One grid runs at a time.
bool emu_launch(const emu_kernel& kernel, emu_uint3 grid, emu_uint3 block, size_t shared_bytes, void** arguments, emu_failure& failure);

// The bytes of static shared memory of the kernel's module.
size_t emu_static_shared_bytes(const emu_kernel& kernel);
