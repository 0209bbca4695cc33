// F times F transposed over a chunk of positions: the first pass of the Gram matrix.
//
// A block computes one TILE x TILE tile of the lower triangle over one chunk. Panels of TILE channels times DEPTH
// positions go through a ring in shared memory: a tile on the diagonal needs one panel a stage, so it has twice the
// stages. Rows lie 16 bytes further apart than their length, so that eight rows are in eight different groups of banks.
// Warps form a grid of 2 x TILE/32, each has TILE/2 rows times 32 columns of the tile.
#pragma once

#include <mma.h>

#include "tiles.cuh"

namespace impasto {

template <class T, int TILE> struct Ring {
    static constexpr int THREADS = 2 * TILE, WARPS = THREADS / 32;
    static constexpr int DEPTH = TILE == 64 ? 128 / sizeof(T) : 64 / sizeof(T);
    static constexpr int STRIDE = DEPTH + 16 / sizeof(T);
    static constexpr int PANELS = TILE == 64 ? 5 : 4;  // what fits into 48 KB
};

// Kahan's sum: within 2u of the sum of magnitudes, however many terms (Higham, Accuracy and Stability, 4.3).
struct Compensated {
    float sum = 0, carry = 0;

    __device__ __forceinline__ void add(float term) {
        const float corrected = term - carry, next = sum + corrected;
        carry = (next - sum) - corrected;
        sum = next;
    }
};

// On tensor cores. Their float32 accumulators do not round to nearest, so that an error of up to 2^-23 an addition is
// systematic: a chunk of 4096 positions has 256 of them, 3e-5, far below a half's rounding of features, 5e-4.
template <class T, int TILE> struct TensorProduct {
    using R = Ring<T, TILE>;
    static constexpr int ROWS = TILE / 32;  // 16 x 16 fragments, of which a warp has ROWS x 2

    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sums[ROWS][2];
    int row, column;

    __device__ __forceinline__ TensorProduct(int row, int column) : row(row), column(column) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) nvcuda::wmma::fill_fragment(sums[i][j], 0.0f);
    }

    __device__ __forceinline__ void add(const T *left, const T *right) {
        namespace wmma = nvcuda::wmma;
#pragma unroll(TILE == 64 ? R::DEPTH / 16 : 1)  // more would not leave registers enough for two blocks
        for (int k = 0; k < R::DEPTH; k += 16) {
            wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b[2];
#pragma unroll
            for (int j = 0; j < 2; j++)
                wmma::load_matrix_sync(b[j], right + (column + 16 * j) * R::STRIDE + k, R::STRIDE);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
                wmma::load_matrix_sync(a, left + (row + 16 * i) * R::STRIDE + k, R::STRIDE);
#pragma unroll
                for (int j = 0; j < 2; j++) wmma::mma_sync(sums[i][j], a, b[j], sums[i][j]);
            }
        }
    }

    __device__ __forceinline__ void store(float *tile) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                nvcuda::wmma::store_matrix_sync(tile + (row + 16 * i) * TILE + column + 16 * j, sums[i][j], TILE,
                                                nvcuda::wmma::mem_row_major);
    }
};

// Without tensor cores. Eight products at a time are added plainly, these sums with compensation: with u = 2^-24 the
// error is at most 8u + 2u of the sum of magnitudes, 6.0e-7, whatever the number of positions. One level of float32
// would have an error of up to n u, a chunk of 1024 positions 6e-5, which equal features really come near.
// A lane has rows 4 apart and columns 8 apart, so that the rows that eight lanes read are neighbours.
template <class T> struct PlainProduct {
    using R = Ring<T, 64>;

    Compensated sums[8][4];
    int row, column;

    __device__ __forceinline__ PlainProduct(int row, int column)
        : row(row + threadIdx.x % 32 / 8), column(column + threadIdx.x % 8) {}

    __device__ __forceinline__ void add(const T *left, const T *right) {
#pragma unroll 1
        for (int first = 0; first < R::DEPTH; first += 8) {
            float eight[8][4] = {};
#pragma unroll
            for (int k = first; k < first + 8; k += 4) {
                float a[8][4];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const Quad<T> quad = *reinterpret_cast<const Quad<T> *>(left + (row + 4 * i) * R::STRIDE + k);
#pragma unroll
                    for (int e = 0; e < 4; e++) a[i][e] = widen(quad.x[e]);
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const Quad<T> b = *reinterpret_cast<const Quad<T> *>(right + (column + 8 * j) * R::STRIDE + k);
#pragma unroll
                    for (int e = 0; e < 4; e++)
#pragma unroll
                        for (int i = 0; i < 8; i++) eight[i][j] = __fmaf_rn(a[i][e], widen(b.x[e]), eight[i][j]);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j].add(eight[i][j]);
        }
    }

    __device__ __forceinline__ void store(float *tile) {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) tile[(row + 4 * i) * 64 + column + 8 * j] = sums[i][j].sum;
    }
};

template <class T, int TILE> struct ProductOf {
    using type = TensorProduct<T, TILE>;
};
template <> struct ProductOf<float, 64> {
    using type = PlainProduct<float>;
};
#if __CUDA_ARCH__ < 800  // whose tensor cores do not know bfloat16
template <> struct ProductOf<__nv_bfloat16, 64> {
    using type = PlainProduct<__nv_bfloat16>;
};
#endif

// Half a row of a panel, added in four strands: at most 5 roundings for float32, 9 for halves.
template <class T, int TILE> __device__ __forceinline__ float half_row(const T *panel) {
    using R = Ring<T, TILE>;
    const T *row = panel + threadIdx.x / 2 * R::STRIDE + threadIdx.x % 2 * (R::DEPTH / 2);
    float strands[4] = {};
#pragma unroll
    for (int k = 0; k < R::DEPTH / 2; k += 4) {
        const Quad<T> quad = *reinterpret_cast<const Quad<T> *>(row + k);
#pragma unroll
        for (int e = 0; e < 4; e++) strands[e] += widen(quad.x[e]);
    }
    return (strands[0] + strands[1]) + (strands[2] + strands[3]);
}

// Block (tile, split) writes its tile to partials[split][tile][TILE][TILE], only what has elements of the lower
// triangle; a block on the diagonal also writes its rows' sums to sums[split][channels rounded up to TILE].
// `chunk` is a multiple of DEPTH.
template <class T, int TILE>
__device__ __forceinline__ void gram(const T *features, int channels, long long positions, int chunk, float *partials,
                                     float *sums) {
    using R = Ring<T, TILE>;
    __shared__ __align__(128) T panels[R::PANELS * TILE * R::STRIDE];
    constexpr int PANEL = TILE * R::STRIDE;
    const Tile tile = lower_tile(blockIdx.x);
    const bool diagonal = tile.row == tile.column, summed = diagonal && sums != nullptr;
    const int stages = diagonal ? R::PANELS : R::PANELS / 2;
    const long long begin = static_cast<long long>(blockIdx.y) * chunk, end = min(begin + chunk, positions);
    const int steps = static_cast<int>((end - begin + R::DEPTH - 1) / R::DEPTH);
    const int alignment = row_alignment(features, positions * static_cast<long long>(sizeof(T)));

    // Warps above the diagonal and those beyond the last channel have nothing to do. Blocks give their warps different
    // places, for a warp's number decides which of the four schedulers has its work.
    const int warp = (threadIdx.x / 32 + blockIdx.y) % R::WARPS;
    const int row = warp % 2 * (TILE / 2), column = warp / 2 * 32;
    const bool active = tile.row * TILE + row < channels && tile.column * TILE + column < channels &&
                        (!diagonal || row + TILE / 2 > column);

    const auto panel = [&](int step) { return panels + step % stages * (diagonal ? PANEL : 2 * PANEL); };
    const auto fetch = [&](int step) {
        const long long position = begin + static_cast<long long>(step) * R::DEPTH;
        T *to = panel(step);
        fetch_panel<TILE, R::DEPTH, R::STRIDE, R::THREADS>(to, features, channels, positions, tile.row * TILE, position,
                                                           alignment);
        if (!diagonal)
            fetch_panel<TILE, R::DEPTH, R::STRIDE, R::THREADS>(to + PANEL, features, channels, positions,
                                                               tile.column * TILE, position, alignment);
    };

    typename ProductOf<T, TILE>::type product(row, column);
    Compensated half;
    for (int step = 0; step < stages - 1; step++) {
        if (step < steps) fetch(step);
        __pipeline_commit();  // also where it is empty, so that the count below holds
    }
    for (int step = 0; step < steps; step++) {
        if (diagonal)
            __pipeline_wait_prior(R::PANELS - 2);
        else
            __pipeline_wait_prior(R::PANELS / 2 - 2);
        __syncthreads();  // the panel is there, and all are done with the one before, whose place is filled next
        if (step + stages - 1 < steps) fetch(step + stages - 1);
        __pipeline_commit();
        const T *left = panel(step);
        if (active) product.add(left, diagonal ? left : left + PANEL);
        if (summed) half.add(half_row<T, TILE>(left));
    }
    const long long block = static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x;
    if (active) product.store(partials + block * (TILE * TILE));
    if (summed) {
        const float sum = half.sum + __shfl_xor_sync(0xffffffffu, half.sum, 1);
        const int padded = (channels + TILE - 1) / TILE * TILE;
        if (threadIdx.x % 2 == 0)
            sums[static_cast<long long>(blockIdx.y) * padded + tile.row * TILE + threadIdx.x / 2] = sum;
    }
}

}  // namespace impasto
