/*
 * Depthwise convolution of tokens, forward and backward, zero padding, stride 1.
 *
 * Tokens are (batch, height, width, CHANNELS), which is how the network holds them: no transposition to planes and back.
 * CHANNELS (a multiple of 16) and KERNEL (odd) are compile-time constants; width is a multiple of STRIP. STRIP neighbours
 * are worked on together, so that every weight that is loaded serves all of them.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define STRIP 8
#define HALF (KERNEL / 2)
#define BLOCKS (CHANNELS / LANES)

typedef float vec __attribute__((vector_size(4 * LANES)));

/* One image (height, width, CHANNELS) inside a border of HALF zeros: (height + 2 HALF, width + 2 HALF, CHANNELS). */
static void pad(const float *x, int64_t height, int64_t width, float *padded)
{
    const int64_t stride = (width + 2 * HALF) * CHANNELS;
    memset(padded, 0, HALF * stride * sizeof *x);
    for (int64_t y = 0; y < height; y++) {
        float *row = padded + (y + HALF) * stride;
        memset(row, 0, HALF * CHANNELS * sizeof *x);
        memcpy(row + HALF * CHANNELS, x + y * width * CHANNELS, width * CHANNELS * sizeof *x);
        memset(row + (HALF + width) * CHANNELS, 0, HALF * CHANNELS * sizeof *x);
    }
    memset(padded + (HALF + height) * stride, 0, HALF * stride * sizeof *x);
}

static inline vec load(const float *p)
{
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* out[y][x] = start + sum over the kernel of weight[ky][kx] * padded[y + ky][x + kx], per channel. */
static void correlate(const float *padded, int64_t height, int64_t width, const float *weight, const float *start, float *out)
{
    const int64_t stride = (width + 2 * HALF) * CHANNELS;
    for (int64_t y = 0; y < height; y++) {
        for (int64_t x = 0; x < width; x += STRIP) {
            for (int block = 0; block < BLOCKS; block++) {
                const float *corner = padded + y * stride + x * CHANNELS + block * LANES;
                vec total[STRIP];
#pragma GCC unroll 8
                for (int i = 0; i < STRIP; i++) total[i] = start ? load(start + block * LANES) : (vec){0};
                for (int ky = 0; ky < KERNEL; ky++) {
#pragma GCC unroll 16
                    for (int kx = 0; kx < KERNEL; kx++) {
                        const vec w = load(weight + (ky * KERNEL + kx) * CHANNELS + block * LANES);
#pragma GCC unroll 8
                        for (int i = 0; i < STRIP; i++) {
                            total[i] += w * load(corner + ky * stride + (i + kx) * CHANNELS);
                        }
                    }
                }
#pragma GCC unroll 8
                for (int i = 0; i < STRIP; i++) {
                    memcpy(out + (y * width + x + i) * CHANNELS + block * LANES, &total[i], sizeof(vec));
                }
            }
        }
    }
}

/* dweight[ky][kx] += sum over the image of dout[y][x] * padded[y + ky][x + kx], per channel. */
static void correlate_weights(const float *padded, int64_t height, int64_t width, const float *dout, float *dweight)
{
    const int64_t stride = (width + 2 * HALF) * CHANNELS;
    for (int64_t y = 0; y < height; y++) {
        for (int ky = 0; ky < KERNEL; ky++) {
            for (int block = 0; block < BLOCKS; block++) {
                const float *row = padded + (y + ky) * stride + block * LANES;
                const float *d = dout + y * width * CHANNELS + block * LANES;
                float *sums = dweight + ky * KERNEL * CHANNELS + block * LANES;
                vec total[KERNEL];
#pragma GCC unroll 16
                for (int kx = 0; kx < KERNEL; kx++) total[kx] = load(sums + kx * CHANNELS);
                for (int64_t x = 0; x < width; x += STRIP) {
#pragma GCC unroll 8
                    for (int i = 0; i < STRIP; i++) {
                        const vec own = load(d + (x + i) * CHANNELS);
#pragma GCC unroll 16
                        for (int kx = 0; kx < KERNEL; kx++) total[kx] += own * load(row + (x + i + kx) * CHANNELS);
                    }
                }
#pragma GCC unroll 16
                for (int kx = 0; kx < KERNEL; kx++) memcpy(sums + kx * CHANNELS, &total[kx], sizeof(vec));
            }
        }
    }
}

static float *buffer(int64_t height, int64_t width)
{
    return malloc((height + 2 * HALF) * (width + 2 * HALF) * CHANNELS * sizeof(float));
}

/* x and out (batch, height, width, CHANNELS); weight (KERNEL, KERNEL, CHANNELS); bias (CHANNELS). Returns 0 when out of memory. */
int depthwise_forward(int64_t batch, int64_t height, int64_t width, const float *x, const float *weight, const float *bias,
                      float *out)
{
    float *padded = buffer(height, width);
    if (!padded) return 0;
    const int64_t image = height * width * CHANNELS;
    for (int64_t b = 0; b < batch; b++) {
        pad(x + b * image, height, width, padded);
        correlate(padded, height, width, weight, bias, out + b * image);
    }
    free(padded);
    return 1;
}

/* From dout: dx, and sums added to dweight, which is zero at first. Returns 0 when out of memory. */
int depthwise_backward(int64_t batch, int64_t height, int64_t width, const float *x, const float *weight, const float *dout,
                       float *dx, float *dweight)
{
    float *padded = buffer(height, width);
    if (!padded) return 0;
    float turned[KERNEL * KERNEL * CHANNELS];
    for (int i = 0; i < KERNEL * KERNEL; i++) {
        memcpy(turned + i * CHANNELS, weight + (KERNEL * KERNEL - 1 - i) * CHANNELS, CHANNELS * sizeof(float));
    }
    const int64_t image = height * width * CHANNELS;
    for (int64_t b = 0; b < batch; b++) {
        pad(x + b * image, height, width, padded);
        correlate_weights(padded, height, width, dout + b * image, dweight);
        pad(dout + b * image, height, width, padded);
        correlate(padded, height, width, turned, NULL, dx + b * image);
    }
    free(padded);
    return 1;
}
