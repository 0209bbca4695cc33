// What the kernels share: conversions between feature types and float, and sums and maxima over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace impasto {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> struct Narrow;
template <> struct Narrow<float> {
    static __device__ __forceinline__ float from(float x) { return x; }
};
template <> struct Narrow<__half> {
    static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <> struct Narrow<__nv_bfloat16> {
    static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

// Rounds a float to a feature type: ties to even, NaN stays NaN.
template <class T> __device__ __forceinline__ T narrow(float x) { return Narrow<T>::from(x); }

// The sum over all threads of a block of THREADS, the same bits every time; thread 0 has it. All threads must call it.
template <int THREADS> __device__ double block_sum(double value) {
    __shared__ double parts[THREADS / 32];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    __syncthreads();  // the block may still be reading the parts of the call before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < THREADS / 32; i++) sum += parts[i];
    return sum;
}

// The largest value of all threads of a block of THREADS, NaN left out; every thread has it. All threads must call it.
template <int THREADS> __device__ float block_max(float value) {
    __shared__ float parts[THREADS / 32];
    for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    __syncthreads();  // the block may still be reading the parts of the call before
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++) value = fmaxf(value, parts[i]);
    return value;
}

}  // namespace impasto
