// Total variation of planar float32 pictures: the loss and its gradient in one pass.
//
// A warp walks ROWS rows of 32 * V neighbouring columns, V = 4 where rows are whole float4, else 1. Every thread loads
// all that it needs before it computes, so that many loads are under way at once; columns to the left and right come
// from the neighbouring lanes, and only the first and the last lane load one more value a row. Two of ROWS + 2 rows are
// read by the warp below or above too, which is mostly a warp of the same block, so that they are in its L1 cache.
//
// The gradient is gathered: each thread computes the slopes of its own differences and of those that end in its
// pixels, so nothing is added atomically and the bits are the same every time.
#include "common.cuh"

namespace impasto {

constexpr int THREADS = 256;
constexpr int ROWS = 4;

// Each form takes the forward differences of a pixel and gives their slopes and the pixel's loss. JOINT forms have
// only pixels with both differences; in the others, a difference that does not exist is zero.

struct Squared {
    static constexpr bool JOINT = false;
    __device__ float operator()(float dx, float dy, float &slope_x, float &slope_y) const {
        slope_x = dx;
        slope_y = dy;
        return 0.5f * (dx * dx + dy * dy);
    }
};

// The sign of zero is zero, that of NaN is NaN.
__device__ __forceinline__ float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }

struct Absolute {
    static constexpr bool JOINT = false;
    __device__ float operator()(float dx, float dy, float &slope_x, float &slope_y) const {
        slope_x = sign(dx);
        slope_y = sign(dy);
        return fabsf(dx) + fabsf(dy);
    }
};

struct Power {
    static constexpr bool JOINT = true;
    float power;
    __device__ float operator()(float dx, float dy, float &slope_x, float &slope_y) const {
        const float squares = dx * dx + dy * dy;
        const float raised = squares == 0 ? 0.0f : powf(squares, power - 1);
        slope_x = 2 * power * raised * dx;
        slope_y = 2 * power * raised * dy;
        return squares * raised;
    }
};

// Power at 1.25, where the fourth root is two reciprocal square roots (also of zero: 1 / inf), far cheaper than powf.
struct FiveQuarters {
    static constexpr bool JOINT = true;
    __device__ float operator()(float dx, float dy, float &slope_x, float &slope_y) const {
        const float squares = dx * dx + dy * dy;
        const float root = rsqrtf(rsqrtf(squares));
        slope_x = 2.5f * root * dx;
        slope_y = 2.5f * root * dy;
        return squares * root;
    }
};

template <int V> __device__ __forceinline__ void load(float (&to)[V], const float *from) {
    if constexpr (V == 4) {
        const float4 four = *reinterpret_cast<const float4 *>(from);
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
        to[0] = *from;
    }
}

template <int V> __device__ __forceinline__ void store(float *to, const float (&from)[V]) {
    if constexpr (V == 4)
        *reinterpret_cast<float4 *>(to) = make_float4(from[0], from[1], from[2], from[3]);
    else
        *to = from[0];
}

// upstream may be null, or gradient itself: a thread has read all of its elements before it writes any.
template <int V, class Form>
__device__ __forceinline__ void total_variation(const float *__restrict__ image, const float *upstream, float *gradient,
                                                double *losses, int height, int width, double weight, float factor,
                                                Form form) {
    constexpr int COLUMNS = 32 * V;
    const int lane = threadIdx.x % 32;
    const int tiles = (width + COLUMNS - 1) / COLUMNS;
    const int x = static_cast<int>(blockIdx.x) % tiles * COLUMNS + lane * V;
    const int y = (static_cast<int>(blockIdx.x) / tiles * (THREADS / 32) + static_cast<int>(threadIdx.x) / 32) * ROWS;
    const long long plane = static_cast<long long>(blockIdx.y) * height * width;
    image += plane;
    gradient += plane;
    const bool owns = x < width;  // V divides the width: all of its columns or none
    const bool on_rim = lane == 0 ? x > 0 : lane == 31 && x + V < width;

    // Rows y - 1 to y + ROWS, columns x to x + V - 1; zeros outside of the picture.
    float pixels[ROWS + 2][V] = {};
    float beside[ROWS + 2] = {};  // column x - 1 of the first lane, x + V of the last
    float own[ROWS][V] = {};
#pragma unroll
    for (int i = 0; i < ROWS + 2; i++) {
        const int row = y - 1 + i;
        if (row < 0 || row >= height) continue;
        const float *at = image + row * width + x;
        if (owns) load<V>(pixels[i], at);
        if (on_rim) beside[i] = at[lane == 0 ? -1 : V];
    }
    if (upstream != nullptr && owns) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (y + i < height) load<V>(own[i], upstream + plane + (y + i) * width + x);
    }

    float left[ROWS + 2], right[ROWS + 2];
#pragma unroll
    for (int i = 0; i < ROWS + 2; i++) {
        const float before = __shfl_up_sync(0xffffffffu, pixels[i][V - 1], 1);
        const float after = __shfl_down_sync(0xffffffffu, pixels[i][0], 1);
        left[i] = lane == 0 ? beside[i] : before;
        right[i] = lane == 31 ? beside[i] : after;
    }

    // The slopes and the loss of the pixel of column x + j in row y - 1 + i.
    auto differentiate = [&](int i, int j, float &slope_x, float &slope_y) {
        const float here = j < 0 ? left[i] : pixels[i][j];
        const float next = j + 1 < V ? pixels[i][j + 1] : right[i];
        const float below = j < 0 ? left[i + 1] : pixels[i + 1][j];
        const int column = x + j, row = y - 1 + i;
        const bool has_x = column >= 0 && column + 1 < width, has_y = row >= 0 && row + 1 < height;
        const bool counts = Form::JOINT ? has_x && has_y : true;
        return form(has_x && counts ? next - here : 0.0f, has_y && counts ? below - here : 0.0f, slope_x, slope_y);
    };

    const float scale = static_cast<float>(weight);
    float above[V];
    float unused;
#pragma unroll
    for (int j = 0; j < V; j++) differentiate(0, j, unused, above[j]);

    double loss = 0;
#pragma unroll
    for (int i = 1; i <= ROWS; i++) {
        float result[V], row_loss = 0, behind;
        differentiate(i, -1, behind, unused);
#pragma unroll
        for (int j = 0; j < V; j++) {
            float slope_x, slope_y;
            row_loss += differentiate(i, j, slope_x, slope_y);
            result[j] = factor * own[i - 1][j] + scale * (behind - slope_x + above[j] - slope_y);
            behind = slope_x;
            above[j] = slope_y;
        }
        loss += row_loss;
        if (owns && y + i - 1 < height) store<V>(gradient + (y + i - 1) * width + x, result);
    }
    const double sum = block_sum<THREADS>(loss);
    if (threadIdx.x == 0) losses[blockIdx.y * gridDim.x + blockIdx.x] = weight * sum;
}

}  // namespace impasto

// Grid: tiles of 32 * V columns and 8 * ROWS rows, by planes; losses has one element a block. Only tv_power heeds the
// power. The bound is 80 registers, so that 24 warps share a multiprocessor, each thread with ten loads under way.
#define TOTAL_VARIATION(name, V, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(impasto::THREADS, 3)                                                  \
        name(const float *image, const float *upstream, float *gradient, double *losses, int height, int width,        \
             double weight, float factor, float power) {                                                               \
        impasto::total_variation<V>(image, upstream, gradient, losses, height, width, weight, factor, __VA_ARGS__);    \
    }

TOTAL_VARIATION(tv_squared, 1, impasto::Squared{})
TOTAL_VARIATION(tv_squared_float4, 4, impasto::Squared{})
TOTAL_VARIATION(tv_absolute, 1, impasto::Absolute{})
TOTAL_VARIATION(tv_absolute_float4, 4, impasto::Absolute{})
TOTAL_VARIATION(tv_five_quarters, 1, impasto::FiveQuarters{})
TOTAL_VARIATION(tv_five_quarters_float4, 4, impasto::FiveQuarters{})
TOTAL_VARIATION(tv_power, 1, impasto::Power{power})
TOTAL_VARIATION(tv_power_float4, 4, impasto::Power{power})

// No total variation: gradient = factor * upstream, or zero where upstream is null, and losses of zero, one a block.
extern "C" __global__ void __launch_bounds__(impasto::THREADS)
    tv_none(const float *upstream, float *gradient, double *losses, long long count, float factor) {
    const long long stride = static_cast<long long>(gridDim.x) * impasto::THREADS;
    for (long long i = static_cast<long long>(blockIdx.x) * impasto::THREADS + threadIdx.x; i < count; i += stride)
        gradient[i] = upstream != nullptr ? factor * upstream[i] : 0.0f;
    if (threadIdx.x == 0) losses[blockIdx.x] = 0;
}
