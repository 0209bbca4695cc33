// Compiles CUDA C++ for the host: every thread of a block is a fiber, and blocks run one after the other.
//
// A fiber runs until it reaches a barrier (of the block, or of its warp for shuffles) or its end; then another one runs,
// in an order that is drawn anew every time, so that results differ where a barrier is missing between a write and a
// read. A barrier that some threads of the block never reach is an error here, as it is a defect on a device.
// Shared memory is static: it holds whatever the block before left there, as on a device.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#include <ucontext.h>

#define IMPASTO_EMULATION 1
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct uchar4 { unsigned char x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

constexpr size_t STACK = 128 << 10;
constexpr unsigned WARP = 32;

struct Fiber {
    ucontext_t start;
    jmp_buf state;
    std::vector<char> stack;
    bool started = false, ended = false;
    uint3 index;
    long barriers = 0, warp_barriers = 0;
};

struct Warp {
    uint64_t values[WARP];
    long arrived = 0;
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline jmp_buf scheduler;
inline Fiber *current;
inline std::function<void()> body;
inline std::string failure;
inline long progress;  // barriers reached and fibers ended, so far
inline long blocks_run;
inline std::minstd_rand dice;

inline void run_body() {
    try {
        body();
    } catch (const std::exception &error) {
        failure = error.what();
    }
    current->ended = true;
    progress++;
    _longjmp(scheduler, 1);
}

inline void resume(Fiber &fiber) {
    current = &fiber;
    threadIdx = fiber.index;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.data();
    fiber.start.uc_stack.ss_size = fiber.stack.size();
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_body, 0);
    setcontext(&fiber.start);
}

inline void pause() {
    if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

inline unsigned linear(uint3 index) { return index.x + blockDim.x * (index.y + blockDim.y * index.z); }
inline unsigned lane() { return linear(threadIdx) % WARP; }
inline Warp &warp() { return warps[linear(threadIdx) / WARP]; }

// How many lanes the thread's warp has: the last one of a block may be short.
inline unsigned lanes() {
    unsigned first = linear(threadIdx) / WARP * WARP, threads = blockDim.x * blockDim.y * blockDim.z;
    return threads - first < WARP ? threads - first : WARP;
}

inline void warp_barrier() {
    Warp &mine = warp();
    long goal = ++current->warp_barriers * lanes();
    mine.arrived++;
    progress++;
    while (mine.arrived < goal) pause();
}

template <class T> T shuffle(T value, unsigned source) {
    static_assert(sizeof(T) <= 8);
    Warp &mine = warp();
    std::memcpy(&mine.values[lane()], &value, sizeof(T));
    warp_barrier();
    T result;
    std::memcpy(&result, &mine.values[source < lanes() ? source : lane()], sizeof(T));
    warp_barrier();
    return result;
}

// Runs one block; returns an empty text or what went wrong.
inline std::string run_block(unsigned threads) {
    blocks_run++;
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        fiber.started = fiber.ended = false;
        fiber.barriers = fiber.warp_barriers = 0;
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    for (Warp &warp : warps) warp.arrived = 0;
    failure.clear();
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned ended = 0; ended < threads;) {
        long before = progress;
        ended = 0;
        std::shuffle(order.begin(), order.end(), dice);
        for (unsigned i : order) {
            if (!fibers[i].ended) resume(fibers[i]);
            if (!failure.empty()) return failure;
            ended += fibers[i].ended;
        }
        if (progress == before)
            return std::to_string(ended) + " of " + std::to_string(threads) +
                   " threads ended while the others wait at different barriers";
    }
    return "";
}

template <class... Arguments> std::string launch(void (*kernel)(Arguments...), dim3 grid, dim3 block, const void *packed) {
    std::tuple<std::decay_t<Arguments>...> arguments;
    const char *begin = static_cast<const char *>(packed);
    size_t offset = 0;
    auto unpack = [&](auto &argument) {
        constexpr size_t alignment = alignof(std::decay_t<decltype(argument)>);
        offset = (offset + alignment - 1) / alignment * alignment;
        std::memcpy(&argument, begin + offset, sizeof(argument));
        offset += sizeof(argument);
    };
    std::apply([&](auto &...argument) { (unpack(argument), ...); }, arguments);
    gridDim = grid, blockDim = block;
    unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024) return "a block of " + std::to_string(threads) + " threads";
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned i = 0; i < threads; i++) fibers[i].stack.resize(STACK);
    warps.resize((threads + WARP - 1) / WARP);
    body = [&] { std::apply(kernel, arguments); };
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                std::string error = run_block(threads);
                if (!error.empty()) return error;
            }
    return "";
}

struct Entry {
    const char *name;
    std::string (*launch)(dim3 grid, dim3 block, const void *packed);
};

}  // namespace emulation

inline void __syncthreads() {
    using namespace emulation;
    unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    long mine = ++current->barriers;
    progress++;
    for (;;) {
        bool all = true;
        for (unsigned i = 0; i < threads && all; i++) all = fibers[i].barriers >= mine;
        if (all) return;
        pause();
    }
}
inline void __syncwarp(unsigned = ~0u) { emulation::warp_barrier(); }
template <class T> T __shfl_sync(unsigned, T value, int source) { return emulation::shuffle(value, source); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) { return emulation::shuffle(value, emulation::lane() ^ mask); }
template <class T> T __shfl_up_sync(unsigned, T value, unsigned delta) { return emulation::shuffle(value, emulation::lane() - delta); }
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta) { return emulation::shuffle(value, emulation::lane() + delta); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __uint_as_float(unsigned bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; std::memcpy(&bits, &value, 4); return bits; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
template <class T> T __ldg(const T *address) { return *address; }
inline float rsqrtf(float value) { return 1 / std::sqrt(value); }
