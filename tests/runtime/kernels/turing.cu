// The bfloat16 kernels as sm_75 has them, without tensor cores, for tests on the host.
#undef __CUDA_ARCH__
#define __CUDA_ARCH__ 750
#include "gram_partials.cuh"
#include "gram_vjp.cuh"

extern "C" __global__ void turing_gram(const __nv_bfloat16 *features, int channels, long long positions, int chunk,
                                       float *partials, float *sums) {
    impasto::gram<__nv_bfloat16, 64>(features, channels, positions, chunk, partials, sums);
}

extern "C" __global__ void turing_gram_vjp(const __nv_bfloat16 *features, __nv_bfloat16 *cotangent, int channels,
                                           long long positions, const float *seed) {
    impasto::gram_vjp<__nv_bfloat16, 64>(
        {features, nullptr, nullptr, cotangent, nullptr, channels, positions, 0.0f, 0, false}, seed, nullptr, 0, 0.0,
        nullptr);
}
