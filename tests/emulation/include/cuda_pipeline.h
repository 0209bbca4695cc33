// Asynchronous copies to shared memory, done at once.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
inline void __pipeline_memcpy_async(void *shared, const void *global, size_t bytes, size_t zero_fill = 0) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes)
        throw std::runtime_error("an asynchronous copy that is not aligned to its size");
    std::memcpy(shared, global, bytes - zero_fill);
    std::memset(static_cast<char *>(shared) + bytes - zero_fill, 0, zero_fill);
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t) {}
