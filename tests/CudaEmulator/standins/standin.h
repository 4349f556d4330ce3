// standin.h - what the stand-in cuBLASLt uses of the stand-in driver.
#pragma once
#include <functional>
#include <stddef.h>
#include <string>

#define STANDIN_API extern "C" __attribute__((visibility("default")))

// The result of one piece of work on a stream: a CUresult and, when it is not 0, what went wrong.
struct outcome {
    int code = 0;
    std::string message;
};
typedef std::function<outcome()> stream_work;

// Puts work on a stream, or does it at once when the streams are not lazy. Returns a CUresult.
STANDIN_API int lt_internal_enqueue(const char* function, void* stream, stream_work* work);
// 0 when a context is current on this thread and no earlier error sticks.
STANDIN_API int lt_internal_enter(const char* function);
// Whether the range lies inside one live device buffer.
STANDIN_API int lt_internal_device_range(const void* address, size_t bytes);
STANDIN_API void lt_internal_count(const char* what);
// Remembers (and with LT_EMULATOR_VERBOSE=1 prints) what went wrong.
STANDIN_API void lt_internal_note(const char* function, const char* message);
