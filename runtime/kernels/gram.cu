// The Gram matrix or covariance of features, compared with a target: loss, and what the gradient is made of.
//
// Features F' = s F are (channels, positions), planar. Two passes, deterministic: tiles of partial products over chunks
// of positions (gram_partials.cuh), then their sum in float64, in a fixed order. Runs of kernels: gram, then for
// covariances gram_mean, then gram_compare or gram_product, then for covariances gram_bias.

#include "gram_partials.cuh"

#define IMPASTO_GRAM(NAME, T, TILE, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(2 * TILE, BLOCKS)                                                  \
        NAME(const T *features, int channels, long long positions, int chunk, float *partials, float *sums) {       \
        impasto::gram<T, TILE>(features, channels, positions, chunk, partials, sums);                               \
    }

IMPASTO_GRAM(gram_f32, float, 64, 2)
IMPASTO_GRAM(gram_f16, __half, 64, 4)
IMPASTO_GRAM(gram_wide_f16, __half, 128, 2)
IMPASTO_GRAM(gram_bf16, __nv_bfloat16, 64, 2)
#if __CUDA_ARCH__ >= 800 || !defined(__CUDA_ARCH__)
IMPASTO_GRAM(gram_wide_bf16, __nv_bfloat16, 128, 2)
#endif

namespace impasto {

constexpr int THREADS = 256;

struct Cell {
    int row, column;
    bool owned;  // by this thread, and of the lower triangle
    double value;
};

// The element of F F^T / (N s^2), less the product of means, that the thread is responsible for. A block has
// THREADS / groups elements; the splits of each are dealt out to `groups` threads.
__device__ __forceinline__ Cell summed_cell(const float *partials, int channels, int tile, int splits, int groups,
                                            double over, const double *means) {
    __shared__ double parts[THREADS];
    const int width = THREADS / groups, group = threadIdx.x / width, area = tile * tile;
    const long long cell = static_cast<long long>(blockIdx.x) * width + threadIdx.x % width;
    const long long stride = static_cast<long long>(gridDim.x) * width;
    const Tile place = lower_tile(static_cast<int>(cell / area));
    const int inside = static_cast<int>(cell % area);
    Cell found{place.row * tile + inside / tile, place.column * tile + inside % tile, false, 0.0};
    const bool lower = found.row < channels && found.column <= found.row;
    double sum = 0;
    if (lower)
#pragma unroll 4
        for (int split = group; split < splits; split += groups) sum += partials[split * stride + cell];
    parts[threadIdx.x] = sum;
    __syncthreads();
    found.owned = lower && group == 0;
    if (!found.owned) return found;
    for (int other = 1; other < groups; other++) sum += parts[other * width + threadIdx.x];
    found.value = sum * over;
    if (means != nullptr) found.value -= means[found.row] * means[found.column];
    return found;
}

__device__ __forceinline__ void write_symmetric(float *matrix, int channels, const Cell &cell, float value) {
    matrix[cell.row * channels + cell.column] = value;
    matrix[cell.column * channels + cell.row] = value;
}

}  // namespace impasto

// product = G, (channels, channels).
extern "C" __global__ void __launch_bounds__(256)
    gram_product(const float *partials, int channels, int tile, int splits, int groups, double over,
                 const double *means, float *product) {
    const impasto::Cell cell = impasto::summed_cell(partials, channels, tile, splits, groups, over, means);
    if (cell.owned) impasto::write_symmetric(product, channels, cell, static_cast<float>(cell.value));
}

// D = G - target; seed = factor D, (channels, channels); losses[block] = weight times its share of the sum of D^2;
// peaks[block] = the largest |seed| of the block, NaN left out, unless null. Of the target the lower triangle is read.
extern "C" __global__ void __launch_bounds__(256)
    gram_compare(const float *partials, int channels, int tile, int splits, int groups, double over,
                 const double *means, const float *target, double weight, double factor, float *seed, double *losses,
                 float *peaks) {
    const impasto::Cell cell = impasto::summed_cell(partials, channels, tile, splits, groups, over, means);
    double loss = 0;
    float peak = 0;
    if (cell.owned) {
        const double difference = cell.value - target[cell.row * channels + cell.column];
        const float value = static_cast<float>(factor * difference);
        impasto::write_symmetric(seed, channels, cell, value);
        loss = (cell.row == cell.column ? weight : 2 * weight) * difference * difference;
        peak = fabsf(value);
    }
    loss = impasto::block_sum<impasto::THREADS>(loss);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
    if (peaks == nullptr) return;
    peak = impasto::block_max<impasto::THREADS>(peak);
    if (threadIdx.x == 0) peaks[blockIdx.x] = peak;
}

// means = mu = over times the sum of the splits' sums, (channels,), 32 channels a block; rounded to float32 as well
// unless `rounded` is null. losses[block] = weight times its share of the sum of (mu - target)^2, unless null.
extern "C" __global__ void __launch_bounds__(256)
    gram_mean(const float *sums, int channels, int stride, int splits, double over, double *means, float *rounded,
              const float *target, double weight, double *losses) {
    __shared__ double parts[impasto::THREADS];
    const int channel = blockIdx.x * 32 + threadIdx.x % 32, group = threadIdx.x / 32;
    double sum = 0;
    if (channel < channels)
        for (int split = group; split < splits; split += 8)
            sum += sums[static_cast<long long>(split) * stride + channel];
    parts[threadIdx.x] = sum;
    __syncthreads();
    double loss = 0;
    if (group == 0 && channel < channels) {
        for (int other = 1; other < 8; other++) sum += parts[other * 32 + threadIdx.x];
        const double mean = sum * over;
        means[channel] = mean;
        if (rounded != nullptr) rounded[channel] = static_cast<float>(mean);
        if (losses != nullptr) {
            const double difference = mean - target[channel];
            loss = weight * difference * difference;
        }
    }
    if (losses == nullptr) return;
    loss = impasto::block_sum<impasto::THREADS>(loss);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
}

// bias = level (mu - target) - seed (s mu), (channels,), one warp a channel.
extern "C" __global__ void __launch_bounds__(256)
    gram_bias(const float *seed, const double *means, int channels, const float *target, double level, double scale,
              float *bias) {
    const int channel = blockIdx.x * (impasto::THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (channel >= channels) return;  // the whole warp
    double sum = 0;
    for (int other = lane; other < channels; other += 32)
        sum += seed[channel * channels + other] * means[other];
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (lane == 0) bias[channel] = static_cast<float>(level * (means[channel] - target[channel]) - scale * sum);
}
