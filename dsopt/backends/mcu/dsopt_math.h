/* Float32 mathematics for generated code: no libm, no tables in RAM, no errno.

   Each function reduces its argument to a small interval and evaluates a polynomial that is minimax there: the weighted
   maximum error was made least by Lawson iteration in float64, and the coefficients rounded to float32. Errors are in units in
   the last place (ulp) of the result against float64, the largest seen over a dense sweep of all floats by the project's tests.
   Ordinary single precision is assumed: no -ffast-math. */
#ifndef DSOPT_MATH_H
#define DSOPT_MATH_H

#include <stdbool.h>
#include <stdint.h>

typedef union {
    float value;
    uint32_t bits;
} dsopt_float_bits;

static inline float dsopt_from_bits(uint32_t bits)
{
    dsopt_float_bits u;
    u.bits = bits;
    return u.value;
}

static inline uint32_t dsopt_to_bits(float x)
{
    dsopt_float_bits u;
    u.value = x;
    return u.bits;
}

#define DSOPT_INFINITY dsopt_from_bits(0x7F800000u)
#define DSOPT_NAN dsopt_from_bits(0x7FC00000u)

/* Extremes. A NaN in the first argument is kept. */
static inline float dsopt_max_float32(float a, float b) { return a < b ? b : a; }
static inline float dsopt_min_float32(float a, float b) { return a > b ? b : a; }
static inline int64_t dsopt_max_int64(int64_t a, int64_t b) { return a < b ? b : a; }
static inline int64_t dsopt_min_int64(int64_t a, int64_t b) { return a > b ? b : a; }
static inline int32_t dsopt_max_int32(int32_t a, int32_t b) { return a < b ? b : a; }
static inline int32_t dsopt_min_int32(int32_t a, int32_t b) { return a > b ? b : a; }
static inline int16_t dsopt_max_int16(int16_t a, int16_t b) { return a < b ? b : a; }
static inline int16_t dsopt_min_int16(int16_t a, int16_t b) { return a > b ? b : a; }
static inline int8_t dsopt_max_int8(int8_t a, int8_t b) { return a < b ? b : a; }
static inline int8_t dsopt_min_int8(int8_t a, int8_t b) { return a > b ? b : a; }
static inline uint8_t dsopt_max_uint8(uint8_t a, uint8_t b) { return a < b ? b : a; }
static inline uint8_t dsopt_min_uint8(uint8_t a, uint8_t b) { return a > b ? b : a; }

static inline float dsopt_fabsf(float x) { return dsopt_from_bits(dsopt_to_bits(x) & 0x7FFFFFFFu); }

/* Rounding, exact. From 2^23 on, and for infinities and NaN, every float is its own integer part. */
static inline float dsopt_truncf(float x) { return dsopt_fabsf(x) < 8388608.0f ? (float)(int32_t)x : x; }

static inline float dsopt_floorf(float x)
{
    const float t = dsopt_truncf(x);
    return t > x ? t - 1.0f : t;
}

static inline float dsopt_ceilf(float x)
{
    const float t = dsopt_truncf(x);
    return t < x ? t + 1.0f : t;
}

/* To the nearest integer, halves to even. */
static inline float dsopt_rintf(float x)
{
    const float down = dsopt_floorf(x);
    const float rest = x - down;
    if (!(rest > 0.0f)) {
        return down;
    }
    if (rest != 0.5f) {
        return rest > 0.5f ? down + 1.0f : down;
    }
    return down * 0.5f == dsopt_floorf(down * 0.5f) ? down : down + 1.0f;
}

/* Square root, correctly rounded: the FPU's instruction where there is one, else one bit of the root at a time. */
static inline float dsopt_sqrtf(float x)
{
#if defined(__ARM_FP) && (__ARM_FP & 4) && !defined(__SOFTFP__)
    float y;
    __asm__("vsqrt.f32 %0, %1" : "=t"(y) : "t"(x));
    return y;
#else
    uint32_t bits = dsopt_to_bits(x);
    uint32_t remainder, root = 0u, step;
    int32_t exponent;
    if (!(x > 0.0f) || x == DSOPT_INFINITY) {
        return x == 0.0f || x == DSOPT_INFINITY ? x : DSOPT_NAN;
    }
    exponent = (int32_t)(bits >> 23);
    bits &= 0x007FFFFFu;
    if (exponent == 0) { /* subnormal: shift the leading one into place */
        exponent = 1;
        while ((bits & 0x00800000u) == 0u) {
            bits <<= 1;
            --exponent;
        }
    }
    bits |= 0x00800000u;
    exponent -= 127;
    if ((exponent & 1) != 0) { /* an even exponent, a mantissa in [1, 4) */
        bits <<= 1;
        --exponent;
    }
    /* root * root approaches bits * 2^25 from below, bit by bit: 24 bits of the root and one for rounding */
    remainder = bits << 1;
    bits = 0u;
    for (step = 0x01000000u; step != 0u; step >>= 1) {
        const uint32_t trial = bits + step;
        if (trial <= remainder) {
            bits = trial + step;
            remainder -= trial;
            root += step;
        }
        remainder <<= 1;
    }
    if (remainder != 0u) {
        root += root & 1u;
    }
    return dsopt_from_bits((root >> 1) + ((uint32_t)((exponent / 2) + 126) << 23));
#endif
}

/* 2^n times x, for n in -252..254 and a result that may be subnormal. */
static inline float dsopt_scale(float x, int32_t n)
{
    const int32_t half = n / 2;
    return x * dsopt_from_bits((uint32_t)(half + 127) << 23) * dsopt_from_bits((uint32_t)(n - half + 127) << 23);
}

/* e^x. x = n ln 2 + r with |r| <= ln(2) / 2, e^r = 1 + r + r^2 Q(r). At most 1.0 ulp. */
static inline float dsopt_expf(float x)
{
    float n, r, q;
    if (!(x < 88.72284f)) {
        return x >= 88.72284f ? DSOPT_INFINITY : x;
    }
    if (x < -103.97208f) {
        return 0.0f;
    }
    n = (float)(int32_t)(x * 1.442695f + (x < 0.0f ? -0.5f : 0.5f));
    r = (x - n * 0.6933594f) + n * 0.00021219444f; /* ln 2 in two parts: n times the first is exact */
    q = 0.00019789262f;
    q = q * r + 0.0013945752f;
    q = q * r + 0.008333504f;
    q = q * r + 0.04166628f;
    q = q * r + 0.16666666f;
    q = q * r + 0.5f;
    return dsopt_scale(1.0f + (r + r * r * q), (int32_t)n);
}

/* e^x - 1. By its own polynomial x + x^2 Q(x) for |x| <= 0.5. At most 1.7 ulp. */
static inline float dsopt_expm1f(float x)
{
    float q = 2.4790403e-05f;
    if (!(dsopt_fabsf(x) <= 0.5f)) {
        return dsopt_expf(x) - 1.0f;
    }
    q = q * x + 0.00019978928f;
    q = q * x + 0.001388934f;
    q = q * x + 0.008333126f;
    q = q * x + 0.04166666f;
    q = q * x + 0.16666667f;
    q = q * x + 0.5f;
    return x + x * x * q;
}

/* Remainder of a / b towards zero, exact: the divisor is subtracted from the remainder bit by bit, as in long division. */
static inline float dsopt_fmodf(float a, float b)
{
    uint32_t x = dsopt_to_bits(a), y = dsopt_to_bits(b);
    const uint32_t sign = x & 0x80000000u;
    int32_t ex, ey;
    x &= 0x7FFFFFFFu;
    y &= 0x7FFFFFFFu;
    if (y == 0u || y > 0x7F800000u || x >= 0x7F800000u) {
        return DSOPT_NAN;
    }
    if (x < y) {
        return a;
    }
    ex = (int32_t)(x >> 23);
    ey = (int32_t)(y >> 23);
    x &= 0x007FFFFFu;
    y &= 0x007FFFFFu;
    /* Subnormal numbers have no hidden bit and the exponent of the smallest normal ones. */
    if (ex > 0) {
        x |= 0x00800000u;
    } else {
        ex = 1;
    }
    if (ey > 0) {
        y |= 0x00800000u;
    } else {
        ey = 1;
    }
    x %= y;
    for (; ex > ey; --ex) {
        x <<= 1;
        x = x >= y ? x - y : x;
    }
    if (x == 0u) {
        return dsopt_from_bits(sign);
    }
    while (x < 0x00800000u && ex > 1) {
        x <<= 1;
        --ex;
    }
    if (x >= 0x00800000u) {
        x = (x & 0x007FFFFFu) | ((uint32_t)ex << 23);
    }
    return dsopt_from_bits(sign | x);
}

/* Natural logarithm. x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f - f^2 / 2 + f^3 P(f). At most 1.0 ulp. */
static inline float dsopt_logf(float x)
{
    uint32_t bits;
    int32_t n = 0;
    float f, p, e;
    if (!(x > 0.0f) || x == DSOPT_INFINITY) {
        return x == 0.0f ? -DSOPT_INFINITY : (x < 0.0f ? DSOPT_NAN : x);
    }
    if (x < 1.1754944e-38f) { /* subnormal */
        x *= 8388608.0f;
        n = -23;
    }
    bits = dsopt_to_bits(x) + (0x3F800000u - 0x3F3504F3u);
    n += (int32_t)(bits >> 23) - 127;
    f = dsopt_from_bits((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    p = 0.0674664f;
    p = p * f - 0.11675652f;
    p = p * f + 0.11888162f;
    p = p * f - 0.12405589f;
    p = p * f + 0.14219552f;
    p = p * f - 0.16667996f;
    p = p * f + 0.20002119f;
    p = p * f - 0.2500001f;
    p = p * f + 0.33333313f;
    e = (float)n;
    p = f * f * (f * p - 0.5f) - e * 0.00021219444f;
    return e * 0.6933594f + (f + p);
}

/* log(1 + x): the rounding error of 1 + x is taken back by the quotient (Higham, Accuracy and Stability, section 1.14.1).
   At most 2.5 ulp. */
static inline float dsopt_log1pf(float x)
{
    const float u = 1.0f + x;
    if (u == 1.0f || !(dsopt_fabsf(x) < 16777216.0f)) {
        return u == 1.0f ? x : dsopt_logf(u);
    }
    return x == -1.0f ? -DSOPT_INFINITY : dsopt_logf(u) * (x / (u - 1.0f));
}

/* tanh x = x + x^3 P(x^2) for |x| < 0.55, else 1 - 2 / (e^2|x| + 1). At most 1.5 ulp. */
static inline float dsopt_tanhf(float x)
{
    const float a = dsopt_fabsf(x);
    float t;
    if (a < 0.55f) {
        const float u = x * x;
        float p = -0.0062742396f;
        p = p * u + 0.021071678f;
        p = p * u - 0.05385231f;
        p = p * u + 0.13332586f;
        p = p * u - 0.33333316f;
        return x + x * u * p;
    }
    t = a > 9.1f ? 1.0f : 1.0f - 2.0f / (dsopt_expf(2.0f * a) + 1.0f);
    return x < 0.0f ? -t : (x > 0.0f ? t : x);
}

/* Error function: x P(x^2) for |x| < 0.9, else 1 - e^L(|x|) with L the logarithm of the complement. At most 1.5 ulp. */
static inline float dsopt_erff(float x)
{
    const float a = dsopt_fabsf(x);
    float p;
    if (a < 0.9f) {
        const float u = x * x;
        p = 8.382391e-05f;
        p = p * u - 0.00081455975f;
        p = p * u + 0.005201286f;
        p = p * u - 0.0268595f;
        p = p * u + 0.11283697f;
        p = p * u - 0.37612635f;
        return x + x * (p * u + 0.1283792f);
    }
    if (a > 3.95f) {
        return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x);
    }
    p = -2.0531055e-05f;
    p = p * a + 0.0004279902f;
    p = p * a - 0.0041399645f;
    p = p * a + 0.025038298f;
    p = p * a - 0.10815591f;
    p = p * a - 0.6334585f;
    p = p * a - 1.1294603f;
    p = p * a + 0.00016348908f;
    p = 1.0f - dsopt_expf(p);
    return x < 0.0f ? -p : p;
}

/* x / (pi / 2) for 512 <= |x|: returns the fraction times pi / 2, in -pi/4..pi/4, and the integer part modulo 4. The mantissa is
   multiplied by the 96 bits of 2 / pi that matter: those before them add multiples of 4 (Payne and Hanek 1983). */
static inline float dsopt_reduce_large(float x, uint32_t *quadrant)
{
    static const uint32_t two_over_pi[8] = {0x00000000u, 0xA2F9836Eu, 0x4E441529u, 0xFC2757D1u,
                                            0xF534DDC0u, 0xDB629599u, 0x3C439041u, 0xFE5163ABu};
    const uint32_t bits = dsopt_to_bits(x);
    const uint32_t mantissa = (bits & 0x007FFFFFu) | 0x00800000u;
    const uint32_t skipped = ((bits >> 23) & 0xFFu) - 120u; /* x = mantissa * 2^(exponent - 150), and 32 - 2 zeros come first */
    const uint32_t first = skipped >> 5, offset = skipped & 31u;
    uint32_t words[3];
    uint32_t i;
    uint64_t product;
    int64_t fraction;
    for (i = 0u; i < 3u; ++i) {
        const uint64_t pair = (uint64_t)two_over_pi[first + i] << 32 | two_over_pi[first + i + 1u];
        words[i] = (uint32_t)(pair >> (32u - offset));
    }
    product = ((uint64_t)(mantissa * words[0]) << 32) + (uint64_t)mantissa * words[1] + ((uint64_t)mantissa * words[2] >> 32);
    fraction = (int64_t)(product << 2);
    *quadrant = (uint32_t)(product >> 62) + (fraction < 0 ? 1u : 0u); /* from 1/2 on, count down from the next quadrant */
    return (float)fraction * 8.5153035e-20f; /* (pi / 2) / 2^64 */
}

/* Reduce x to r in -pi/4..pi/4 and the number of quarter turns modulo 4. */
static inline float dsopt_reduce(float x, uint32_t *quadrant)
{
    const float a = dsopt_fabsf(x);
    float r;
    if (a < 512.0f) {
        const int32_t n = (int32_t)(a * 0.63661975f + 0.5f);
        const float turns = (float)n; /* below 2^9: exact times either of the first two parts of pi / 2 */
        r = ((a - turns * 1.5703125f) - turns * 0.0004837513f) - turns * 7.54979e-08f;
        *quadrant = (uint32_t)n;
    } else {
        r = dsopt_reduce_large(a, quadrant);
    }
    if (x < 0.0f) { /* the angle of -x, turned the other way */
        *quadrant = 0u - *quadrant;
        r = -r;
    }
    return r;
}

static inline float dsopt_sin_cos_part(float r, bool cosine)
{
    const float u = r * r;
    if (cosine) {
        return (1.0f - 0.5f * u) + u * u * (0.041666646f + u * (-0.0013887306f + u * 2.4431205e-05f));
    }
    return r + r * u * (-0.16666654f + u * (0.008332131f - u * 0.0001951084f));
}

/* Sine and cosine: reduce to -pi/4..pi/4, r + r^3 P(r^2) or 1 - r^2 / 2 + r^4 P(r^2). At most 3 ulp
   of the larger of the result and 2^-20. */
static inline float dsopt_sinf(float x)
{
    uint32_t quadrant;
    float y;
    if (!(dsopt_fabsf(x) < DSOPT_INFINITY)) {
        return DSOPT_NAN;
    }
    y = dsopt_reduce(x, &quadrant);
    y = dsopt_sin_cos_part(y, (quadrant & 1u) != 0u);
    return (quadrant & 2u) != 0u ? -y : y;
}

static inline float dsopt_cosf(float x)
{
    uint32_t quadrant;
    float y;
    if (!(dsopt_fabsf(x) < DSOPT_INFINITY)) {
        return DSOPT_NAN;
    }
    y = dsopt_reduce(x, &quadrant);
    y = dsopt_sin_cos_part(y, (quadrant & 1u) == 0u);
    return ((quadrant + 1u) & 2u) != 0u ? -y : y;
}

/* Angle of (x, y). atan a = a + a^3 P(a^2) for a = smaller / larger in 0..1. At most 2 ulp. */
static inline float dsopt_atan2f(float y, float x)
{
    const float ay = dsopt_fabsf(y), ax = dsopt_fabsf(x);
    const float larger = ax > ay ? ax : ay, smaller = ax > ay ? ay : ax;
    float a, u, p;
    if (y != y || x != x) {
        return DSOPT_NAN;
    }
    a = larger == 0.0f ? 0.0f : (smaller == DSOPT_INFINITY ? 1.0f : smaller / larger);
    u = a * a;
    p = 0.0011137893f;
    p = p * u - 0.0073179593f;
    p = p * u + 0.022539873f;
    p = p * u - 0.044689946f;
    p = p * u + 0.067415975f;
    p = p * u - 0.08811092f;
    p = p * u + 0.11058224f;
    p = p * u - 0.14279833f;
    p = p * u + 0.19999671f;
    p = p * u - 0.33333328f;
    a = a + a * u * p;
    if (ay > ax) {
        a = 1.5707964f - a;
    }
    if ((dsopt_to_bits(x) >> 31) != 0u) {
        a = 3.1415927f - a;
    }
    return (dsopt_to_bits(y) >> 31) != 0u ? -a : a;
}

/* x^y = e^(y log x), the logarithm and its product in double, since their relative error is multiplied by y log x.
   log x = n ln 2 + 2 atanh(s), s = (m - 1) / (m + 1) for m in [sqrt(1/2), sqrt(2)). At most 1.5 ulp. */
static inline float dsopt_powf(float x, float y)
{
    const float ay = dsopt_fabsf(y);
    const bool whole = ay >= 8388608.0f || dsopt_truncf(ay) == ay;
    const bool odd = whole && ay < 16777216.0f && ((uint32_t)ay & 1u) != 0u;
    const bool negative = (dsopt_to_bits(x) >> 31) != 0u && odd;
    float a = dsopt_fabsf(x), r, q;
    uint32_t bits;
    int32_t n = 0;
    double s, u, p;
    if (y == 0.0f || x == 1.0f || (a == 1.0f && ay == DSOPT_INFINITY)) {
        return 1.0f;
    }
    if (x != x || y != y || (x < 0.0f && a != DSOPT_INFINITY && !whole)) {
        return DSOPT_NAN;
    }
    if (a == 0.0f || a == DSOPT_INFINITY) {
        a = (a == 0.0f) == (y > 0.0f) ? 0.0f : DSOPT_INFINITY;
        return negative ? -a : a;
    }
    if (a < 1.1754944e-38f) {
        a *= 8388608.0f;
        n = -23;
    }
    bits = dsopt_to_bits(a) + (0x3F800000u - 0x3F3504F3u);
    n += (int32_t)(bits >> 23) - 127;
    a = dsopt_from_bits((bits & 0x007FFFFFu) + 0x3F3504F3u);
    s = ((double)a - 1.0) / ((double)a + 1.0);
    u = s * s;
    p = 0.08478900566799225;
    p = p * u + 0.09055412245730778;
    p = p * u + 0.1111191127278987;
    p = p * u + 0.14285704869277394;
    p = p * u + 0.20000000053727574;
    p = p * u + 0.33333333333221316;
    p = (double)y * (2.0 * (s + s * u * p) + (double)n * 0.6931471805599453);
    if (!(p < 88.8)) {
        return negative ? -DSOPT_INFINITY : DSOPT_INFINITY;
    }
    if (p < -104.1) {
        return negative ? -0.0f : 0.0f;
    }
    n = (int32_t)(p * 1.4426950408889634 + (p < 0.0 ? -0.5 : 0.5));
    r = (float)(p - (double)n * 0.6931471805599453);
    q = 0.00019789262f;
    q = q * r + 0.0013945752f;
    q = q * r + 0.008333504f;
    q = q * r + 0.04166628f;
    q = q * r + 0.16666666f;
    q = q * r + 0.5f;
    r = dsopt_scale(1.0f + (r + r * r * q), n);
    return negative ? -r : r;
}

#endif
