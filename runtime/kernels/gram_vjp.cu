// The cotangent of a tap: of its Gram matrix (or covariance), its content term and what comes from above, in one pass.
//
// cotangent = mask (seed F' + bias + f (F' - P') + upstream); seed and bias are gram.cu's. A block has 128 positions of
// ROWS channels and reads these positions of all channels; blocks of the same positions follow each other, so that F'
// comes from memory once and from the cache after. Every element of `upstream` is read by the thread that writes that
// element of `cotangent`, before it does, so the two may be one; no other pair of arguments may overlap.

#include "gram_vjp.cuh"

// losses[block] = weight times its share of the sum of (F' - P')^2, unless there is no target. `content` is f. Null
// are allowed: seed, peaks (the seed is not scaled then), bias, target, upstream.
#define IMPASTO_GRAM_VJP(NAME, T, ROWS)                                                                              \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                             \
        NAME(const T *features, T *cotangent, int channels, long long positions, const float *seed,                  \
             const float *peaks, int peak_count, const float *bias, const T *target, double weight, float content,   \
             const T *upstream, double *losses, int masked) {                                                        \
        const unsigned long long bits = reinterpret_cast<unsigned long long>(features) |                             \
                                        reinterpret_cast<unsigned long long>(cotangent) |                            \
                                        reinterpret_cast<unsigned long long>(target) |                               \
                                        reinterpret_cast<unsigned long long>(upstream) | positions * sizeof(T);      \
        const bool quads = bits % (4 * sizeof(T)) == 0;                                                              \
        impasto::gram_vjp<T, ROWS>({features, target, upstream, cotangent, bias, channels, positions, content,       \
                                    masked, quads}, seed, peaks, peak_count, weight, losses);                        \
    }

IMPASTO_GRAM_VJP(gram_vjp_f32, float, 64)
IMPASTO_GRAM_VJP(gram_vjp_f16, __half, 64)
IMPASTO_GRAM_VJP(gram_vjp_wide_f16, __half, 128)
IMPASTO_GRAM_VJP(gram_vjp_bf16, __nv_bfloat16, 64)
#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
IMPASTO_GRAM_VJP(gram_vjp_wide_bf16, __nv_bfloat16, 128)
#endif
