// bfloat16 as CUDA spells it, for the host: rounding to nearest, ties to even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t wide = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    return {static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __float2bfloat16(x); }
