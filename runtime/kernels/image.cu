// Pictures of 8-bit RGB pixels to planar float32 in a pixel space, and back, with the bits of the host's arithmetic:
// float64, each operation rounded by itself, so that no multiplication is contracted with the addition after it.
#include "common.cuh"

namespace impasto {

constexpr int THREADS = 256;

// x = (scale * rgb - mean) / std, by colour; plane is where the space has that colour.
struct Colour {
    int plane;
    double mean, std;
};

__device__ __forceinline__ float encoded(unsigned char level, double scale, Colour colour) {
    const double rgb = __fdiv_rn(level, 255.0f);
    return static_cast<float>(__dadd_rn(__dmul_rn(rgb, scale), -colour.mean) / colour.std);
}

// Clamped, then rounded, ties to even; NaN is 0, which fmaxf prefers to it.
__device__ __forceinline__ unsigned char decoded(float value, double scale, Colour colour) {
    const float rgb = static_cast<float>(__dadd_rn(__dmul_rn(value, colour.std), colour.mean) / scale);
    return static_cast<unsigned char>(__float2int_rn(fminf(fmaxf(rgb, 0.0f), 1.0f) * 255.0f));
}

}  // namespace impasto

// One thread a pixel.
extern "C" __global__ void __launch_bounds__(impasto::THREADS)
    image_to_planar(const unsigned char *rgb, float *planar, long long pixels, double scale, int red, double red_mean,
                    double red_std, int green, double green_mean, double green_std, int blue, double blue_mean,
                    double blue_std) {
    const long long i = static_cast<long long>(blockIdx.x) * impasto::THREADS + threadIdx.x;
    if (i >= pixels) return;
    const impasto::Colour colours[] = {
        {red, red_mean, red_std}, {green, green_mean, green_std}, {blue, blue_mean, blue_std}};
#pragma unroll
    for (int c = 0; c < 3; c++)
        planar[colours[c].plane * pixels + i] = impasto::encoded(rgb[3 * i + c], scale, colours[c]);
}

// One thread a pixel of the result, which is the picture of height x width without its margin.
extern "C" __global__ void __launch_bounds__(impasto::THREADS)
    image_to_rgb(const float *planar, unsigned char *rgb, long long height, long long width, long long margin,
                 double scale, int red, double red_mean, double red_std, int green, double green_mean, double green_std,
                 int blue, double blue_mean, double blue_std) {
    const long long i = static_cast<long long>(blockIdx.x) * impasto::THREADS + threadIdx.x;
    const long long rows = height - 2 * margin, columns = width - 2 * margin;
    if (i >= rows * columns) return;
    const long long at = (i / columns + margin) * width + i % columns + margin;
    const impasto::Colour colours[] = {
        {red, red_mean, red_std}, {green, green_mean, green_std}, {blue, blue_mean, blue_std}};
#pragma unroll
    for (int c = 0; c < 3; c++)
        rgb[3 * i + c] = impasto::decoded(planar[colours[c].plane * height * width + at], scale, colours[c]);
}
