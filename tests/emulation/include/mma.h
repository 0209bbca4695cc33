// Tensor-core fragments by plain arithmetic, products and sums in float32. Loads and stores do not wait for each other,
// no more than on a device, where code that needs it has a barrier of its own.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"
namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };

inline float widened(float x) { return x; }
inline float widened(__half x) { return __half2float(x); }
inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

// What a lane holds: of the accumulator half a row, of the left matrix that row, of the right one those columns. On a
// device the layout is another and not told; code that treats every element alike sees no difference.
constexpr int SIDE = 16, HALF = SIDE / 2;
inline int lane_row() { return emulation::lane() / 2; }
inline int lane_column() { return emulation::lane() % 2 * HALF; }

template <class Use> constexpr int ELEMENTS = 0;
template <> inline constexpr int ELEMENTS<matrix_a> = SIDE;
template <> inline constexpr int ELEMENTS<matrix_b> = SIDE * HALF;
template <> inline constexpr int ELEMENTS<accumulator> = HALF;

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    static_assert(M == SIDE && N == SIDE && K == SIDE, "the emulation knows 16 x 16 x 16");
    static constexpr int num_elements = ELEMENTS<Use>;
    T x[num_elements];
};

template <class F, class T> void fill_fragment(F &f, T value) {
    for (auto &element : f.x) element = value;
}

template <class Layout, class T> T element(const T *from, unsigned stride, int row, int column) {
    return std::is_same_v<Layout, col_major> ? from[column * stride + row] : from[row * stride + column];
}

template <int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<matrix_a, M, N, K, T, Layout> &f, const T *from, unsigned stride) {
    for (int k = 0; k < SIDE; k++) f.x[k] = element<Layout>(from, stride, lane_row(), k);
}

template <int M, int N, int K, class T, class Layout>
void load_matrix_sync(fragment<matrix_b, M, N, K, T, Layout> &f, const T *from, unsigned stride) {
    for (int k = 0; k < SIDE; k++)
        for (int j = 0; j < HALF; j++) f.x[k * HALF + j] = element<Layout>(from, stride, k, lane_column() + j);
}

template <int M, int N, int K, class T>
void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *from, unsigned stride, layout_t layout) {
    for (int j = 0; j < HALF; j++) {
        const int row = lane_row(), column = lane_column() + j;
        f.x[j] = layout == mem_row_major ? from[row * stride + column] : from[column * stride + row];
    }
}

template <int M, int N, int K, class T, class LA, class LB>
void mma_sync(fragment<accumulator, M, N, K, float> &d, const fragment<matrix_a, M, N, K, T, LA> &a,
              const fragment<matrix_b, M, N, K, T, LB> &b, const fragment<accumulator, M, N, K, float> &c) {
    float sums[HALF];
    for (int j = 0; j < HALF; j++) sums[j] = c.x[j];
    for (int k = 0; k < SIDE; k++) {
        const float left = widened(a.x[k]);
        for (int j = 0; j < HALF; j++) sums[j] += left * widened(b.x[k * HALF + j]);
    }
    for (int j = 0; j < HALF; j++) d.x[j] = sums[j];
}

template <int M, int N, int K, class T>
void store_matrix_sync(T *to, const fragment<accumulator, M, N, K, T> &f, unsigned stride, layout_t layout) {
    for (int j = 0; j < HALF; j++) {
        const int row = lane_row(), column = lane_column() + j;
        (layout == mem_row_major ? to[row * stride + column] : to[column * stride + row]) = f.x[j];
    }
}

}  // namespace nvcuda::wmma
