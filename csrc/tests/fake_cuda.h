// What a test tells the stand-in for libcuda (fake_cuda.cpp), beside what the product calls.
#pragma once

#include <cstddef>

#pragma GCC visibility push(default)
extern "C" {
// The nth call of `name` from now on (1: the next one) answers `code`, and does nothing. "stream": the nth operation
// that runs on a stream fails instead, and with it the device: every later call answers `code`.
void fake_cuda_fail(const char* name, int nth, int code);
void fake_cuda_reset();  // no failures, no areas, the device whole again
// Memory that counts as the device's, beside what was allocated there.
void fake_cuda_device_memory(const void* start, std::size_t bytes);
void fake_cuda_hold(void* stream);  // runs nothing until released
void fake_cuda_release(void* stream);
int fake_cuda_objects();  // streams, events, allocations, registrations and modules that are alive
int fake_cuda_calls(const char* name);
}
#pragma GCC visibility pop
