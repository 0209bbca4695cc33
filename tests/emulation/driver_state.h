// What the stand-in for the CUDA driver keeps: contexts with their memory, and streams whose work waits.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace stand_in {

using Work = std::function<CUresult()>;
using Lock = std::lock_guard<std::recursive_mutex>;
using Launch = int (*)(const char *, const unsigned *, const unsigned *, const void *, char *, size_t);

constexpr size_t GUARD = 256;
constexpr char PATTERN = '\xA5';
constexpr int MAX_DEVICES = 4;

struct Function {
    std::string name;
    Launch launch;
};

struct Context;

struct Module {
    Context *context;
    Launch launch;
    std::map<std::string, Function> functions;
};

using Graph = std::vector<Work>;

struct Executable {
    Context *context;
    std::shared_ptr<Graph> graph;
};

struct Stream {
    std::vector<Work> queue;
    std::unique_ptr<Graph> capture;
    bool invalidated = false;
};

struct Allocation {
    std::unique_ptr<char[]> memory;
    size_t size;
};

struct Context {
    int device = 0, users = 0, kernels = 0;
    CUresult failure = CUDA_SUCCESS;  // stays until the context goes
    std::map<CUdeviceptr, Allocation> memory;
    std::map<char *, Allocation> pinned;
    std::set<Stream *> streams;
    int executables = 0, modules = 0;
    Stream legacy;
};

inline std::recursive_mutex mutex;
inline Context contexts[MAX_DEVICES];
inline bool initialised = false;
inline thread_local std::vector<Context *> stack;
inline thread_local Stream *captured = nullptr;
inline thread_local CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

inline long setting(const char *name, long otherwise) {
    const char *text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}
inline int device_count() { return static_cast<int>(std::min<long>(setting("EMULATED_DEVICES", 1), MAX_DEVICES)); }
inline size_t total_memory() { return static_cast<size_t>(setting("EMULATED_MEMORY", 1l << 30)); }

// The current context, if there is one that works; `status` tells otherwise.
inline Context *current(CUresult &status) {
    status = CUDA_SUCCESS;
    if (!initialised)
        status = CUDA_ERROR_NOT_INITIALIZED;
    else if (stack.empty())
        status = CUDA_ERROR_INVALID_CONTEXT;
    else if (!stack.back()->users)
        status = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    else
        status = stack.back()->failure;
    return status ? nullptr : stack.back();
}

inline CUresult spoil(Stream &stream) {
    stream.invalidated = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

// The same for calls that a capture does not record; in the thread that captures they spoil it, unless it is relaxed.
inline Context *current_outside_capture(CUresult &status) {
    Context *context = current(status);
    if (!context || !captured || mode == CU_STREAM_CAPTURE_MODE_RELAXED) return context;
    status = spoil(*captured);
    return nullptr;
}

inline Stream *stream_of(Context &context, CUstream handle) {
    if (!handle) return &context.legacy;
    Stream *stream = reinterpret_cast<Stream *>(handle);
    return context.streams.count(stream) ? stream : nullptr;
}

inline CUresult enqueue(CUstream handle, Work work) {
    CUresult status;
    Context *context = current(status);
    if (!context) return status;
    Stream *stream = stream_of(*context, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    (stream->capture ? *stream->capture : stream->queue).push_back(std::move(work));
    return CUDA_SUCCESS;
}

// Runs what waits on a stream; what comes after a failure is lost.
inline CUresult drain(Context &context, Stream &stream) {
    std::vector<Work> queue;
    queue.swap(stream.queue);
    for (Work &work : queue)
        if (!context.failure) context.failure = work();
    return context.failure;
}

inline CUresult drain_all(Context &context) {
    drain(context, context.legacy);
    for (Stream *stream : context.streams) drain(context, *stream);
    return context.failure;
}

// Whether memory is all part of one allocation that has not been freed.
template <class Address> bool within(const std::map<Address, Allocation> &memory, Address address, size_t size) {
    auto next = memory.upper_bound(address);
    if (next == memory.begin()) return false;
    const auto &[start, allocation] = *std::prev(next);
    return address + size <= start + allocation.size;
}

// Memory between guards, aligned to 256 bytes and filled with NaN.
inline std::pair<char *, Allocation> allocate(size_t size) {
    Allocation allocation{std::make_unique<char[]>(size + 3 * GUARD), size};
    std::memset(allocation.memory.get(), PATTERN, size + 3 * GUARD);
    size_t start = (reinterpret_cast<size_t>(allocation.memory.get()) + 2 * GUARD - 1) / GUARD * GUARD;
    std::memset(reinterpret_cast<char *>(start), 0xFF, size);
    return {reinterpret_cast<char *>(start), std::move(allocation)};
}

inline void check_guards(const char *start, const Allocation &allocation) {
    const char *begin = allocation.memory.get(), *end = begin + allocation.size + 3 * GUARD;
    auto is_whole = [](char byte) { return byte == PATTERN; };
    if (std::all_of(begin, start, is_whole) && std::all_of(start + allocation.size, end, is_whole)) return;
    std::fprintf(stderr, "something wrote beyond device memory of %zu bytes\n", allocation.size);
    std::abort();
}

// What is left in a context that works was forgotten.
inline void destroy(Context &context) {
    for (auto &[address, allocation] : context.memory) check_guards(reinterpret_cast<char *>(address), allocation);
    size_t left = context.memory.size() + context.pinned.size() + context.streams.size();
    left += static_cast<size_t>(context.executables + context.modules);
    if (left && !context.failure) {
        std::fprintf(stderr, "%zu objects were left in a context that was destroyed\n", left);
        std::abort();
    }
    context.memory.clear();
    context.pinned.clear();
    context.streams.clear();
    context.legacy.queue.clear();
    context.failure = CUDA_SUCCESS;
    context.kernels = context.executables = context.modules = 0;
}

}  // namespace stand_in
