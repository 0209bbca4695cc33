// A tile of a tap's cotangent: seed times features, and what joins it element by element.
#pragma once

#include "vjp_product.cuh"

namespace impasto {

template <class T> struct Terms {
    const T *features, *target, *upstream;
    T *cotangent;
    const float *bias;
    int channels;
    long long positions;
    float content;
    int masked;
    bool quads;  // rows are aligned to four elements

    __device__ __forceinline__ Quad<T> read(const T *from, int count) const {
        if (quads) return *reinterpret_cast<const Quad<T> *>(from);
        Quad<T> quad;
#pragma unroll
        for (int e = 0; e < 4; e++) quad.x[e] = e < count ? from[e] : narrow<T>(0.0f);
        return quad;
    }

    // Writes four neighbours, given seed F' of them; returns their sum of (F' - P')^2.
    __device__ __forceinline__ double finish(int row, long long position, const Quad<float> &product,
                                             float unscale) const {
        if (row >= channels || position >= positions) return 0;
        const long long at = static_cast<long long>(row) * positions + position;
        const int count = static_cast<int>(min(positions - position, 4LL));
        const float shift = bias != nullptr ? bias[row] : 0.0f;
        Quad<float> value;
#pragma unroll
        for (int e = 0; e < 4; e++) value.x[e] = product.x[e] * unscale + shift;
        float squares = 0;
        const Quad<T> own = target != nullptr || masked ? read(features + at, count) : Quad<T>();
        if (target != nullptr) {
            const Quad<T> wanted = read(target + at, count);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float difference = widen(own.x[e]) - widen(wanted.x[e]);
                squares += difference * difference;
                value.x[e] += content * difference;
            }
        }
        if (upstream != nullptr) {
            const Quad<T> above = read(upstream + at, count);
#pragma unroll
            for (int e = 0; e < 4; e++) value.x[e] += widen(above.x[e]);
        }
        Quad<T> result;
#pragma unroll
        for (int e = 0; e < 4; e++) result.x[e] = narrow<T>(masked && !(widen(own.x[e]) > 0.0f) ? 0.0f : value.x[e]);
        if (quads)
            *reinterpret_cast<Quad<T> *>(cotangent + at) = result;
        else
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (e < count) cotangent[at + e] = result.x[e];
        return squares;
    }
};

// The exponent of the power of two that brings the seed's peak to [2^14, 2^15), where a half has its full precision.
// Nothing to bring there, or nothing finite, is left as it is.
__device__ __forceinline__ int seed_exponent(const float *peaks, int count) {
    float peak = 0;
    for (int i = threadIdx.x; i < count; i += VJP_THREADS) peak = fmaxf(peak, peaks[i]);
    peak = block_max<VJP_THREADS>(peak);
    if (!(peak > 0.0f && peak <= 3.4028235e38f)) return 0;
    int exponent;
    frexpf(peak, &exponent);
    return min(15 - exponent, 126);  // its inverse is a normal number
}

template <class T, int ROWS>
__device__ __forceinline__ void gram_vjp(const Terms<T> &terms, const float *seed, const float *peaks, int peak_count,
                                         double weight, double *losses) {
    using Product = typename VjpOf<T, ROWS>::type;
    using Seed = typename Product::Seed;
    constexpr int DEPTH = Product::DEPTH, HELD = ROWS * 16 / VJP_THREADS;
    constexpr int SEEDS = ROWS * Product::SEED_STRIDE * sizeof(Seed), FEATURES = DEPTH * Product::STRIDE * sizeof(T);
    __shared__ __align__(128) unsigned char memory[2 * (SEEDS + FEATURES)];
    const int channels = terms.channels, row_tiles = (channels + ROWS - 1) / ROWS;
    const int first_row = blockIdx.x % row_tiles * ROWS;
    const long long first_position = static_cast<long long>(blockIdx.x / row_tiles) * VJP_POSITIONS;
    const int steps = seed != nullptr ? (channels + DEPTH - 1) / DEPTH : 0;
    const int alignment = row_alignment(terms.features, terms.positions * static_cast<long long>(sizeof(T)));
    const int exponent = peaks != nullptr ? seed_exponent(peaks, peak_count) : 0;
    const float scale = ldexpf(1.0f, exponent);

    const auto seeds = [&](int step) { return reinterpret_cast<Seed *>(memory + step % 2 * SEEDS); };
    const auto features = [&](int step) { return reinterpret_cast<T *>(memory + 2 * SEEDS + step % 2 * FEATURES); };
    float held[HELD];  // sixteen channels of the next stage's seeds, on their way
    const auto read_seeds = [&](int step, int first) {
#pragma unroll
        for (int n = 0; n < HELD; n++) {
            const int i = threadIdx.x + n * VJP_THREADS, row = first_row + i / 16, k = step * DEPTH + first + i % 16;
            const bool inside = row < channels && k < channels;
            held[n] = inside ? seed[row * channels + k] : 0.0f;
        }
    };
    const auto write_seeds = [&](int step, int first) {
#pragma unroll
        for (int n = 0; n < HELD; n++) {
            const int i = threadIdx.x + n * VJP_THREADS;
            seeds(step)[i / 16 * Product::SEED_STRIDE + first + i % 16] = narrow<Seed>(held[n] * scale);
        }
    };
    const auto fetch_features = [&](int step) {
        fetch_panel<DEPTH, VJP_POSITIONS, Product::STRIDE, VJP_THREADS>(features(step), terms.features, channels,
                                                                        terms.positions, step * DEPTH, first_position,
                                                                        alignment);
        __pipeline_commit();
    };

    Product product(threadIdx.x / 32);
    if (steps > 0) {
        fetch_features(0);
        for (int k = 0; k < DEPTH; k += 16) {
            read_seeds(0, k);
            write_seeds(0, k);
        }
    }
    for (int step = 0; step < steps; step++) {
        __pipeline_wait_prior(0);
        __syncthreads();  // the stage is there, and all are done with the one before, whose place is filled next
        const bool more = step + 1 < steps;
        if (more) fetch_features(step + 1);
#pragma unroll 1  // more would not leave registers enough for two blocks
        for (int k = 0; k < DEPTH; k += 16) {
            if (more) read_seeds(step + 1, k);
            product.add(seeds(step), features(step), k);
            if (more) write_seeds(step + 1, k);
        }
    }
    __syncthreads();
    double loss = 0;
    const float unscale = ldexpf(1.0f, -exponent);
    product.leave(memory, [&](int row, int column, const Quad<float> &quad) {
        loss += terms.finish(first_row + row, first_position + column, quad, unscale);
    });
    if (terms.target == nullptr) return;
    loss = block_sum<VJP_THREADS>(loss);
    if (threadIdx.x == 0) losses[blockIdx.x] = weight * loss;
}

}  // namespace impasto
