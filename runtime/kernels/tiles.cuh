// Panels of a matrix in shared memory, and which tile of a symmetric matrix a block computes.
#pragma once

#include <cuda_pipeline.h>

#include "common.cuh"

namespace impasto {

// Four neighbours of a row, read and written at once.
template <class T> struct alignas(4 * sizeof(T)) Quad {
    T x[4];
};

struct Tile {
    int row, column;
};

// The tile of a lower triangle that is counted row by row: (0, 0), (1, 0), (1, 1), (2, 0), ...
__device__ __forceinline__ Tile lower_tile(int index) {
    int row = static_cast<int>((sqrtf(8.0f * index + 1.0f) - 1.0f) / 2.0f);
    while (row * (row + 1) / 2 > index) row--;  // the root may be off by a rounding
    while ((row + 1) * (row + 2) / 2 <= index) row++;
    return {row, index - row * (row + 1) / 2};
}

// To how many bytes every row of a matrix is aligned, at most 16.
__device__ __forceinline__ int row_alignment(const void *matrix, long long row_bytes) {
    const unsigned long long bits = reinterpret_cast<unsigned long long>(matrix) | row_bytes | 16;
    return static_cast<int>(bits & (~bits + 1));
}

template <int ROWS, int COLUMNS, int STRIDE, int THREADS, int BYTES, class T>
__device__ __forceinline__ void fetch_pieces(T *panel, const T *matrix, int rows, long long columns, int row,
                                             long long column) {
    constexpr int LENGTH = BYTES / sizeof(T), PIECES = COLUMNS / LENGTH;
    static_assert(ROWS * PIECES % THREADS == 0, "every thread copies the same number of pieces");
#pragma unroll(BYTES == 16 ? ROWS * PIECES / THREADS : BYTES == 2 ? 4 : 1)
    for (int n = 0; n < ROWS * PIECES / THREADS; n++) {
        const int i = threadIdx.x + n * THREADS, r = i / PIECES, c = i % PIECES * LENGTH;
        const bool inside = row + r < rows && column + c < columns;
        T *to = panel + r * STRIDE + c;
        const T *from = matrix + (row + r) * columns + column + c;
        if constexpr (BYTES < 4)
            *to = inside ? *from : narrow<T>(0.0f);
        else if (inside)
            __pipeline_memcpy_async(to, from, BYTES);
        else
            __pipeline_memcpy_async(to, matrix, BYTES, BYTES);  // only zeros
    }
}

// Brings ROWS x COLUMNS elements of a (rows, columns) matrix, from (row, column) on, to shared memory whose rows lie
// STRIDE elements apart; zeros outside the matrix. `alignment` is that of the rows: a copy never straddles a row's end.
// The block's THREADS threads share the work, which is done after the next commit, wait and barrier.
template <int ROWS, int COLUMNS, int STRIDE, int THREADS, class T>
__device__ __forceinline__ void fetch_panel(T *panel, const T *matrix, int rows, long long columns, int row,
                                            long long column, int alignment) {
    if (alignment == 16)
        fetch_pieces<ROWS, COLUMNS, STRIDE, THREADS, 16>(panel, matrix, rows, columns, row, column);
    else if (alignment == 8)
        fetch_pieces<ROWS, COLUMNS, STRIDE, THREADS, 8>(panel, matrix, rows, columns, row, column);
    else if (alignment == 4)
        fetch_pieces<ROWS, COLUMNS, STRIDE, THREADS, 4>(panel, matrix, rows, columns, row, column);
    else if constexpr (sizeof(T) == 2)  // no asynchronous copy is that small
        fetch_pieces<ROWS, COLUMNS, STRIDE, THREADS, 2>(panel, matrix, rows, columns, row, column);
}

}  // namespace impasto
