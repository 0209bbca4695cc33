// Asynchronous copies to shared memory, done no sooner than a thread waits for them: until then their place holds NaN.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <stdexcept>
#include <vector>

namespace emulation {

struct Copy {
    void *shared;
    const void *global;
    size_t bytes, zero_fill;
};

struct Pipeline {
    long block = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> committed;
};

inline Pipeline &pipeline() {
    static Pipeline pipelines[1024];
    Pipeline &mine = pipelines[linear(threadIdx)];
    if (mine.block != blocks_run) mine = Pipeline{blocks_run, {}, {}};
    return mine;
}

}  // namespace emulation

inline void __pipeline_memcpy_async(void *shared, const void *global, size_t bytes, size_t zero_fill = 0) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % bytes)
        throw std::runtime_error("an asynchronous copy that is not aligned to its size");
    std::memset(shared, 0xff, bytes);
    emulation::pipeline().open.push_back({shared, global, bytes, zero_fill});
}
inline void __pipeline_commit() {
    emulation::Pipeline &mine = emulation::pipeline();
    mine.committed.push_back(std::move(mine.open));
    mine.open.clear();
}
inline void __pipeline_wait_prior(size_t prior) {
    emulation::Pipeline &mine = emulation::pipeline();
    for (; mine.committed.size() > prior; mine.committed.pop_front())
        for (const emulation::Copy &copy : mine.committed.front()) {
            std::memcpy(copy.shared, copy.global, copy.bytes - copy.zero_fill);
            std::memset(static_cast<char *>(copy.shared) + copy.bytes - copy.zero_fill, 0, copy.zero_fill);
        }
}
