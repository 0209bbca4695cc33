// The solvers' arithmetic on the device, so that the host is told a few numbers an evaluation and no vector travels:
// L-BFGS (Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithms 7.4 and 7.5, in two passes over the history:
// Chen, Wang & Zhou, "Large-scale L-BFGS using MapReduce", 2014), Adam (Kingma & Ba, arXiv:1412.6980), and small things
// that a plan needs. Every sum is one number a block, then a sum of those in a fixed order by one block: the same bits
// every time. Multiplications and additions that must round as NumPy's do are kept from contracting into one.

#include "common.cuh"

using impasto::block_sum;

typedef unsigned long long Index;

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr int ROWS = 8;     // of the history that a block of `products` multiplies at once
constexpr int RUN = 4;      // float32 products that are added in float32 before the sum goes on in float64
constexpr int COLUMNS = 4;  // of the history that a thread of `combine` has under way

// What the report holds, before the losses.
enum { SLOPE, LARGEST, SPOILT, ORIGIN_SLOPE, FIRST_STEP, KEPT, LOSSES };
// What the history's numbers begin with: γ, whether a pair was ever kept, and the number of entries to combine.
enum { GAMMA, PAIRED, LENGTH, NUMBERS };

// One row of the history and what it is multiplied with in a direction.
struct Entry {
    int row;
    float coefficient;
};

// Some partial sums of a term.
struct Segment {
    const double *values;
    Index count;
    Index term;
};

namespace {

__device__ __forceinline__ Index thread() { return Index(blockIdx.x) * THREADS + threadIdx.x; }
__device__ __forceinline__ Index threads() { return Index(gridDim.x) * THREADS; }
__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// As block_sum; NaN is passed over.
__device__ double block_max(double value) {
    __shared__ double parts[WARPS];
    for (int offset = 16; offset > 0; offset /= 2) value = fmax(value, __shfl_down_sync(0xffffffffu, value, offset));
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) value = fmax(value, parts[i]);
    return value;
}

// Writes the block's sum to its place among those of quantity `which`.
__device__ void put_sum(double value, int which, double *partials) {
    value = block_sum<THREADS>(value);
    if (threadIdx.x == 0) partials[Index(which) * gridDim.x + blockIdx.x] = value;
}

__device__ void put_max(double value, int which, double *partials) {
    value = block_max(value);
    if (threadIdx.x == 0) partials[Index(which) * gridDim.x + blockIdx.x] = value;
}

// The sum of what the blocks of an earlier launch put; thread 0 has it.
__device__ double total(const double *partials, int which, int blocks) {
    double sum = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) sum += partials[Index(which) * blocks + i];
    return block_sum<THREADS>(sum);
}

__device__ double maximum(const double *partials, int which, int blocks) {
    double largest = 0;
    for (int i = threadIdx.x; i < blocks; i += THREADS) largest = fmax(largest, partials[Index(which) * blocks + i]);
    return block_max(largest);
}

}  // namespace

// Takes a gradient: `scaled` = scale · gradient (0: nowhere), and of every block the slope Σ scale · gradient · direction
// (0: none), the largest |gradient|, and the number of its elements that are not finite.
extern "C" __global__ void __launch_bounds__(THREADS)
receive(const float *__restrict__ gradient, float scale, const float *__restrict__ direction,
        float *__restrict__ scaled, double *partials, Index n) {
    double slope = 0;
    float largest = 0;
    unsigned spoilt = 0;
#pragma unroll 4
    for (Index i = thread(); i < n; i += threads()) {
        const float raw = gradient[i], value = raw * scale;
        if (scaled) scaled[i] = value;
        if (direction) slope += double(value) * double(direction[i]);
        largest = fmaxf(largest, fabsf(raw));
        spoilt += !is_finite(raw);
    }
    put_sum(slope, 0, partials);
    put_max(largest, 1, partials);
    put_sum(spoilt, 2, partials);
}

// One block: what was received, and the losses, where one download fetches all of it.
extern "C" __global__ void __launch_bounds__(THREADS)
write_report(const double *partials, int blocks, const double *losses, int terms, double *report) {
    const double slope = total(partials, 0, blocks);
    const double largest = maximum(partials, 1, blocks);
    const double spoilt = total(partials, 2, blocks);
    if (threadIdx.x == 0) report[SLOPE] = slope, report[LARGEST] = largest, report[SPOILT] = spoilt;
    for (int i = threadIdx.x; i < terms; i += THREADS) report[LOSSES + i] = losses[i];
}

// Writes the pair of an accepted step, s = trial − x and y = trial_gradient − gradient, with s·y, s·s and y·y of every
// block, and makes the trial x.
extern "C" __global__ void __launch_bounds__(THREADS)
pair(const float *trial, float *x, const float *trial_gradient, const float *gradient, float *step, float *change,
     double *partials, Index n) {
    double sy = 0, ss = 0, yy = 0;
    for (Index i = thread(); i < n; i += threads()) {
        const float to = trial[i], s = to - x[i], y = trial_gradient[i] - gradient[i];
        step[i] = s, change[i] = y, x[i] = to;
        sy += double(s) * double(y), ss += double(s) * double(s), yy += double(y) * double(y);
    }
    put_sum(sy, 0, partials);
    put_sum(ss, 1, partials);
    put_sum(yy, 2, partials);
}

// Products of the gradient with the rows of `pairs` slots, from `first` on around the ring; blockIdx.y counts groups of
// ROWS rows. Row 2k is the step and 2k + 1 the change of the k-th slot from `first`.
extern "C" __global__ void __launch_bounds__(THREADS)
products(const float *history, Index stride, int first, int slots, int pairs, const float *gradient, double *partials,
         Index n) {
    const int begin = ROWS * int(blockIdx.y), rows = 2 * pairs;
    const float *row[ROWS];
    double sums[ROWS] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int k = min(begin + r, rows - 1);  // beyond the last row, that again: it is in the cache
        row[r] = history + stride * Index(2 * ((first + k / 2) % slots) + k % 2);
    }
    for (Index i = thread(); i < n; i += RUN * threads()) {
        float run[ROWS] = {};
#pragma unroll
        for (int u = 0; u < RUN; u++) {
            const Index at = i + u * threads();
            if (at < n) {
                const float g = gradient[at];
#pragma unroll
                for (int r = 0; r < ROWS; r++) run[r] = fmaf(row[r][at], g, run[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[r] += double(run[r]);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const double sum = block_sum<THREADS>(sums[r]);
        if (threadIdx.x == 0 && begin + r < rows) partials[Index(begin + r) * gridDim.x + blockIdx.x] = sum;
    }
}

// One block: decides whether the new pair, in the slot after the `count` pairs from `first` on, is kept (s·y above
// min_cosine · |s||y|), completes the inner products of the pairs, whose y are differences of gradients, by differences
// of products with those gradients, and runs the two-loop recursion. A pair that fills the last slot drops the oldest.
//
// `numbers` holds, of S slots: NUMBERS, products of each row with the last gradient (2S), such products now (2S), α (S),
// a residual (S), and the matrices s_i·y_j for i not newer than j, and y_i·y_j (S² each).
extern "C" __global__ void __launch_bounds__(THREADS)
recursion(const double *pair_sums, int pair_blocks, const double *product_sums, int product_blocks, int first, int count,
          int slots, double min_cosine, double *numbers, Entry *entries, double *report) {
    double *before = numbers + NUMBERS, *now = before + 2 * slots, *alpha = now + 2 * slots, *residual = alpha + slots;
    double *sy = residual + slots, *yy = sy + Index(slots) * slots;
    auto slot = [=](int i) { return (first + i) % slots; };
    auto at = [=](int i, int j) { return Index(i) * slots + j; };

    const int lane = threadIdx.x % 32, rows = 2 * (count + 1);
    for (int k = threadIdx.x / 32; k < rows; k += WARPS) {
        double sum = 0;
        for (int i = lane; i < product_blocks; i += 32) sum += product_sums[Index(k) * product_blocks + i];
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
        if (lane == 0) now[k] = sum;
    }
    __shared__ double curvature[3];
    for (int q = 0; q < 3; q++) {
        const double sum = total(pair_sums, q, pair_blocks);
        if (threadIdx.x == 0) curvature[q] = sum;
    }
    __syncthreads();

    const double least = min_cosine * sqrt(curvature[1] * curvature[2]);
    const bool kept = curvature[0] > least && least > 0;  // not if anything is NaN
    const double gamma = kept ? curvature[0] / curvature[2] : numbers[GAMMA];
    const int fresh = slot(count);
    if (kept) {
        for (int i = threadIdx.x; i < count; i += THREADS) {
            const int old = slot(i);
            sy[at(old, fresh)] = now[2 * i] - before[2 * old];
            yy[at(old, fresh)] = yy[at(fresh, old)] = now[2 * i + 1] - before[2 * old + 1];
        }
        if (threadIdx.x == 0) sy[at(fresh, fresh)] = curvature[0], yy[at(fresh, fresh)] = curvature[2];
    }
    __syncthreads();
    for (int k = threadIdx.x; k < rows; k += THREADS) before[2 * slot(k / 2) + k % 2] = now[k];

    const int dropped = kept && count + 1 == slots, pairs = count + kept;  // pairs `dropped` to `pairs` are in use
    for (int i = dropped + threadIdx.x; i < pairs; i += THREADS) residual[i] = now[2 * i];
    __syncthreads();
    for (int i = pairs - 1; i >= dropped; i--) {
        const double value = residual[i] / sy[at(slot(i), slot(i))];
        if (threadIdx.x == 0) alpha[i] = value;
        for (int j = dropped + threadIdx.x; j < i; j += THREADS) residual[j] -= sy[at(slot(j), slot(i))] * value;
        __syncthreads();
    }
    // y·r for r = γ(g − Σ αy), which the second loop corrects by the steps already added.
    for (int i = dropped + threadIdx.x; i < pairs; i += THREADS) {
        double sum = now[2 * i + 1];
        for (int j = dropped; j < pairs; j++) sum -= yy[at(slot(j), slot(i))] * alpha[j];
        residual[i] = gamma * sum;
        entries[2 * (i - dropped) + 1] = {2 * slot(i) + 1, float(gamma * alpha[i])};
    }
    __syncthreads();
    for (int i = dropped; i < pairs; i++) {
        const double value = alpha[i] - residual[i] / sy[at(slot(i), slot(i))];
        if (threadIdx.x == 0) entries[2 * (i - dropped)] = {2 * slot(i), float(-value)};
        for (int j = i + 1 + threadIdx.x; j < pairs; j += THREADS) residual[j] += sy[at(slot(i), slot(j))] * value;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        if (kept) numbers[GAMMA] = gamma, numbers[PAIRED] = 1;
        numbers[LENGTH] = 2 * (pairs - dropped);
        report[KEPT] = kept;
    }
}

// direction = Σ coefficient · row − γ · gradient, with the slope gradient · direction and the largest |direction| of
// every block.
extern "C" __global__ void __launch_bounds__(THREADS)
combine(const float *history, Index stride, const double *numbers, const Entry *entries, const float *gradient,
        float *direction, double *partials, Index n) {
    const float gamma = float(numbers[GAMMA]);
    const int length = int(numbers[LENGTH]);
    double slope = 0;
    float largest = 0;
    for (Index i = thread(); i < n; i += COLUMNS * threads()) {
        Index at[COLUMNS];
        float g[COLUMNS], sum[COLUMNS] = {};
#pragma unroll
        for (int u = 0; u < COLUMNS; u++) {
            at[u] = i + u * threads() < n ? i + u * threads() : n - 1;
            g[u] = gradient[at[u]];
        }
#pragma unroll 4
        for (int k = 0; k < length; k++) {
            const float *row = history + stride * Index(entries[k].row);
#pragma unroll
            for (int u = 0; u < COLUMNS; u++) sum[u] = fmaf(entries[k].coefficient, row[at[u]], sum[u]);
        }
#pragma unroll
        for (int u = 0; u < COLUMNS; u++)
            if (i + u * threads() < n) {
                const float value = sum[u] - __fmul_rn(gamma, g[u]);
                direction[at[u]] = value;
                slope += double(g[u]) * double(value);
                largest = fmaxf(largest, fabsf(value));
            }
    }
    put_sum(slope, 0, partials);
    put_max(largest, 1, partials);
}

// One block: the slope at the line's origin and the first step along it: 1, or, before any pair was kept, what moves
// the largest element by `first_move`; 0 where the slope is not negative.
extern "C" __global__ void __launch_bounds__(THREADS)
aim(const double *partials, int blocks, const double *numbers, double first_move, double *report) {
    const double slope = total(partials, 0, blocks);
    const double largest = maximum(partials, 1, blocks);
    if (threadIdx.x != 0) return;
    report[ORIGIN_SLOPE] = slope;
    report[FIRST_STEP] = !(slope < 0) ? 0 : numbers[PAIRED] != 0 ? 1 : first_move / largest;
}

// trial = x + step · direction, the step being the report's first one if there is a report; 0 makes the trial x even
// where the direction is not finite.
extern "C" __global__ void __launch_bounds__(THREADS)
move(const float *__restrict__ x, const float *__restrict__ direction, const double *report, double step,
     float *__restrict__ trial, Index n) {
    const float length = float(report ? report[FIRST_STEP] : step);
#pragma unroll 4
    for (Index i = thread(); i < n; i += threads())
        trial[i] = length == 0 ? x[i] : __fadd_rn(x[i], __fmul_rn(length, direction[i]));
}

// One step of Adam from `from`, which `good` becomes, to x; `from` may be either of the two. Each of low and high (0:
// open) has one value for every `block` elements.
extern "C" __global__ void __launch_bounds__(THREADS)
adam(const float *from, float *good, float *x, const float *gradient, float *m, float *v, float scale, float beta1,
     float rest1, float beta2, float rest2, float bias, float eps, float rate, const float *low, const float *high,
     Index block, Index n) {
    for (Index i = thread(); i < n; i += threads()) {
        const float g = gradient[i] * scale, start = from[i];
        const float mean = __fadd_rn(__fmul_rn(m[i], beta1), __fmul_rn(g, rest1));
        const float square = __fadd_rn(__fmul_rn(v[i], beta2), __fmul_rn(__fmul_rn(g, g), rest2));
        float value = start - __fmul_rn(mean / __fadd_rn(sqrtf(square) / bias, eps), rate);
        // Written so that NaN stays: the next evaluation is to fail.
        if (low && value < low[i / block]) value = low[i / block];
        if (high && value > high[i / block]) value = high[i / block];
        m[i] = mean, v[i] = square, good[i] = start, x[i] = value;
    }
}

// Block b adds up the segments of term b.
extern "C" __global__ void __launch_bounds__(THREADS)
sum_segments(const Segment *segments, int count, double *losses) {
    double sum = 0;
    for (int s = 0; s < count; s++)
        if (segments[s].term == blockIdx.x)
            for (Index i = threadIdx.x; i < segments[s].count; i += THREADS) sum += segments[s].values[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

// float32 scalars, `stride` bytes from one to the next, as float64.
extern "C" __global__ void __launch_bounds__(THREADS)
gather_scalars(const char *scalars, Index stride, int count, double *losses) {
    for (int i = threadIdx.x; i < count; i += THREADS)
        losses[i] = *reinterpret_cast<const float *>(scalars + stride * Index(i));
}

// For each feature type: x += y; x = value; and conversions from and to float32, times a factor.
#define VECTOR_KERNELS(T, suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS) accumulate_##suffix(T *x, const T *y, Index n) {             \
        for (Index i = thread(); i < n; i += threads())                                                                \
            x[i] = impasto::narrow<T>(impasto::widen(x[i]) + impasto::widen(y[i]));                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) fill_##suffix(T *x, float value, Index n) {                  \
        for (Index i = thread(); i < n; i += threads()) x[i] = impasto::narrow<T>(value);                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    narrow_##suffix(T *to, const float *from, float factor, Index n) {                                                 \
        for (Index i = thread(); i < n; i += threads()) to[i] = impasto::narrow<T>(from[i] * factor);                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                              \
    widen_##suffix(float *to, const T *from, float factor, Index n) {                                                  \
        for (Index i = thread(); i < n; i += threads()) to[i] = impasto::widen(from[i]) * factor;                      \
    }

VECTOR_KERNELS(float, f32)
VECTOR_KERNELS(__half, f16)
VECTOR_KERNELS(__nv_bfloat16, bf16)
