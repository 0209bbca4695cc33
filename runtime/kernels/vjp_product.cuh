// Seed times features, (channels, channels) times (channels, positions): a tile of ROWS channels times 128 positions.
//
// Seed and features go through two stages in shared memory, DEPTH channels each. The eight warps of a block form a grid
// of 2 x 4, each has ROWS/2 rows times 32 positions. A finished product leaves in quads of neighbouring positions.
#pragma once

#include <mma.h>

#include "tiles.cuh"

namespace impasto {

constexpr int VJP_THREADS = 256, VJP_POSITIONS = 128;

// On tensor cores: the seed is rounded to the features' type.
template <class T, int ROWS_> struct TensorVjp {
    using Seed = T;
    static constexpr int ROWS = ROWS_, DEPTH = 32, SEED_STRIDE = DEPTH + 8, STRIDE = VJP_POSITIONS + 8;
    static constexpr int FRAGMENTS = ROWS / 32;  // 16 x 16, of which a warp has FRAGMENTS x 2
    static constexpr int PATCH_STRIDE = 36, PATCH = 16 * PATCH_STRIDE;  // one row of them, in float32
    static_assert(VJP_THREADS / 32 * PATCH * sizeof(float) <= 2 * (ROWS * SEED_STRIDE + DEPTH * STRIDE) * sizeof(T),
                  "patches take the place of the stages");

    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums[FRAGMENTS][2];
    int row, column;

    __device__ __forceinline__ TensorVjp(int warp) : row(warp / 4 * (ROWS / 2)), column(warp % 4 * 32) {
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) nvcuda::wmma::fill_fragment(sums[i][j], 0.0f);
    }

    // Adds the product over 16 channels of a stage, from its k-th on.
    __device__ __forceinline__ void add(const T *seeds, const T *features, int k) {
        namespace wmma = nvcuda::wmma;
        wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> b[2];
#pragma unroll
        for (int j = 0; j < 2; j++) wmma::load_matrix_sync(b[j], features + k * STRIDE + column + 16 * j, STRIDE);
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
            wmma::load_matrix_sync(a, seeds + (row + 16 * i) * SEED_STRIDE + k, SEED_STRIDE);
#pragma unroll
            for (int j = 0; j < 2; j++) wmma::mma_sync(sums[i][j], a, b[j], sums[i][j]);
        }
    }

    // Calls take(row, column, quad) for everything that the thread is responsible for. How a fragment's elements are
    // dealt out to lanes is not told, so they pass through shared memory: `memory` is free to be written.
    template <class Take> __device__ __forceinline__ void leave(unsigned char *memory, Take take) {
        float *patch = reinterpret_cast<float *>(memory) + threadIdx.x / 32 * PATCH;
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < FRAGMENTS; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++)
                nvcuda::wmma::store_matrix_sync(patch + 16 * j, sums[i][j], PATCH_STRIDE, nvcuda::wmma::mem_row_major);
            __syncwarp();
#pragma unroll 1
            for (int n = 0; n < 16; n += 4) {
                const int r = n + lane / 8, c = lane % 8 * 4;
                const float *quad = patch + r * PATCH_STRIDE + c;
                take(row + 16 * i + r, column + c, *reinterpret_cast<const Quad<float> *>(quad));
            }
            __syncwarp();  // the next fragments take this place
        }
    }
};

// Without tensor cores, the seed in float32. A lane has rows 4 apart, and one quad of each.
template <class T> struct PlainVjp {
    using Seed = float;
    static constexpr int ROWS = 64, DEPTH = 16, SEED_STRIDE = DEPTH + 4, STRIDE = VJP_POSITIONS + 16 / sizeof(T);

    Quad<float> sums[8] = {};
    int row, column;

    __device__ __forceinline__ PlainVjp(int warp)
        : row(warp / 4 * 32 + threadIdx.x % 32 / 8), column(warp % 4 * 32 + threadIdx.x % 8 * 4) {}

    __device__ __forceinline__ void add(const float *seeds, const T *features, int first) {
#pragma unroll
        for (int k = first; k < first + 16; k += 4) {
            Quad<float> b[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const Quad<T> quad = *reinterpret_cast<const Quad<T> *>(features + (k + n) * STRIDE + column);
#pragma unroll
                for (int e = 0; e < 4; e++) b[n].x[e] = widen(quad.x[e]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const Quad<float> a =
                    *reinterpret_cast<const Quad<float> *>(seeds + (row + 4 * i) * SEED_STRIDE + k);
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sums[i].x[e] = __fmaf_rn(a.x[n], b[n].x[e], sums[i].x[e]);
            }
        }
    }

    template <class Take> __device__ __forceinline__ void leave(unsigned char *, Take take) {
#pragma unroll
        for (int i = 0; i < 8; i++) take(row + 4 * i, column, sums[i]);
    }
};

template <class T, int ROWS> struct VjpOf {
    using type = TensorVjp<T, ROWS>;
};
template <> struct VjpOf<float, 64> {
    using type = PlainVjp<float>;
};
#if __CUDA_ARCH__ < 800  // whose tensor cores do not know bfloat16
template <> struct VjpOf<__nv_bfloat16, 64> {
    using type = PlainVjp<__nv_bfloat16>;
};
#endif

}  // namespace impasto
