/*
 * Softmax attention inside groups of tokens, forward and backward, without storing the attention matrix.
 *
 * Tokens are rows of qkv (rows, 3 * channels); head h owns columns h * HEAD .. h * HEAD + HEAD - 1 of q, k and v.
 * Slot p of a group reads token source[p]; its result goes to row target[p] of the output, or nowhere if that is < 0.
 *
 *     logits[i][j] = scale * q[i] . k[j]  +  bias[head][i][j]  +  (region[i] == region[j] ? 0 : -100)
 *     out[i]       = softmax_j(logits[i]) . v
 *
 * Bias and region are optional. Sizes: `slots` per group, a multiple of 16 and at most MAX_SLOTS. HEAD (at most 16) is
 * a compile-time constant, so that the compiler unrolls. BLOCK rows are worked on together: their logits stay in the
 * first-level cache, and every key and value that is loaded serves all of them. One call does heads first..last-1;
 * different heads write different columns, so calls for different heads may run at the same time.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16
#define BLOCK 8
#define MAX_SLOTS 256
#define MAX_VECTORS (MAX_SLOTS / LANES)
#define ACROSS -100.0f

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

typedef struct {
    const float *qkv;
    const int32_t *source, *target;
    const float *bias;
    const uint8_t *region;
    int64_t groups, slots, channels, heads;
    float scale;
} Problem;

/*
 * One head of one group. Transposed copies have channels as rows, so that lanes are slots. A Group is static, hence zero
 * at first, and lanes from HEAD on stay zero.
 */
typedef struct {
    vec kt[HEAD][MAX_VECTORS], vt[HEAD][MAX_VECTORS];
    vec k[MAX_SLOTS], v[MAX_SLOTS];
    float q[MAX_SLOTS][LANES];
    float region[MAX_SLOTS] __attribute__((aligned(64)));
    int masked;
} Group;

static inline vec splat(float x) { return x - (vec){0}; }

static inline vec load(const float *p)
{
    vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

/* Lanes moved round by half, a quarter, an eighth and a sixteenth of a vector: a reduction in four steps. */
static const ivec TURNS[4] = {
    {8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7},
    {4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11},
    {2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13},
    {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14},
};

static inline float sum(vec x)
{
    for (int i = 0; i < 4; i++) x += __builtin_shuffle(x, TURNS[i]);
    return x[0];
}

static inline vec larger(vec a, vec b)
{
    const ivec first = a > b;
    return (vec)((first & (ivec)a) | (~first & (ivec)b));
}

static inline float largest(vec x)
{
    for (int i = 0; i < 4; i++) x = larger(x, __builtin_shuffle(x, TURNS[i]));
    return x[0];
}

/*
 * exp(x) for x <= 0 within 2 ulp; 0 below -60, where a weight vanishes beside the largest one in any case. Carried on,
 * such weights would make denormal products, and those cost a hundred times as much.
 */
static inline vec exponential(vec x)
{
    const ivec kept = x > splat(-60.0f);
    x = (vec)(kept & (ivec)x);
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number */
    const vec n = (x * 1.44269504f + magic) - magic;
    x = x - n * 0.693359375f;
    x = x + n * 2.12194440e-4f;
    vec y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * (x * x) + x + 1.0f;
    const ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)(kept & (ivec)(y * (vec)power));
}

static void gather(const Problem *p, int64_t group, int64_t head, Group *g)
{
    const int64_t width = 3 * p->channels;
    const int32_t *source = p->source + group * p->slots;
    float(*kt)[MAX_SLOTS] = (float(*)[MAX_SLOTS])g->kt, (*vt)[MAX_SLOTS] = (float(*)[MAX_SLOTS])g->vt;
    float(*k)[LANES] = (float(*)[LANES])g->k, (*v)[LANES] = (float(*)[LANES])g->v;
    for (int64_t i = 0; i < p->slots; i++) {
        const float *q = p->qkv + source[i] * width + head * HEAD;
        for (int d = 0; d < HEAD; d++) {
            g->q[i][d] = q[d] * p->scale;
            kt[d][i] = k[i][d] = q[p->channels + d];
            vt[d][i] = v[i][d] = q[2 * p->channels + d];
        }
    }
    g->masked = 0;
    if (p->region) {
        const uint8_t *region = p->region + group * p->slots;
        for (int64_t i = 0; i < p->slots; i++) {
            g->region[i] = region[i];
            g->masked |= region[i] != region[0];
        }
    }
}

/* out[r][j] = rows[r] . columns[:, j] for BLOCK rows. */
static inline void products(float (*rows)[LANES], vec (*columns)[MAX_VECTORS], int64_t vectors, vec (*out)[MAX_VECTORS])
{
    for (int64_t j = 0; j < vectors; j++) {
        vec total[BLOCK];
        for (int r = 0; r < BLOCK; r++) total[r] = splat(0.0f);
#pragma GCC unroll 16
        for (int d = 0; d < HEAD; d++) {
            const vec column = columns[d][j];
#pragma GCC unroll 8
            for (int r = 0; r < BLOCK; r++) total[r] += rows[r][d] * column;
        }
        for (int r = 0; r < BLOCK; r++) out[r][j] = total[r];
    }
}

/* out[r] = sum_j weights[r][j] * rows[j] for BLOCK rows. */
static inline void mixture(vec (*weights)[MAX_VECTORS], const vec *rows, int64_t slots, float (*out)[LANES])
{
    const float(*w)[MAX_SLOTS] = (const float(*)[MAX_SLOTS])weights;
    vec total[BLOCK];
    for (int r = 0; r < BLOCK; r++) total[r] = splat(0.0f);
    for (int64_t j = 0; j < slots; j++) {
        const vec row = rows[j];
#pragma GCC unroll 8
        for (int r = 0; r < BLOCK; r++) total[r] += w[r][j] * row;
    }
    memcpy(out, total, sizeof total);
}

/* sums[d][j] += sum_r rows[r][d] * weights[r][j] over BLOCK rows. */
static inline void accumulate(float (*rows)[LANES], vec (*weights)[MAX_VECTORS], int64_t vectors, vec (*sums)[MAX_VECTORS])
{
    for (int64_t j = 0; j < vectors; j++) {
        vec w[BLOCK];
        for (int r = 0; r < BLOCK; r++) w[r] = weights[r][j];
#pragma GCC unroll 16
        for (int d = 0; d < HEAD; d++) {
            vec total = sums[d][j];
#pragma GCC unroll 8
            for (int r = 0; r < BLOCK; r++) total += rows[r][d] * w[r];
            sums[d][j] = total;
        }
    }
}

static inline void logits(const Problem *p, Group *g, int64_t head, int64_t first, vec (*out)[MAX_VECTORS])
{
    const int64_t vectors = p->slots / LANES;
    products(g->q + first, g->kt, vectors, out);
    for (int r = 0; r < BLOCK; r++) {
        if (p->bias) {
            const float *bias = p->bias + (head * p->slots + first + r) * p->slots;
            for (int64_t j = 0; j < vectors; j++) out[r][j] += load(bias + j * LANES);
        }
        if (g->masked) {
            const vec own = splat(g->region[first + r]);
            for (int64_t j = 0; j < vectors; j++) {
                const ivec other = load(g->region + j * LANES) != own;
                out[r][j] += (vec)(other & (ivec)splat(ACROSS));
            }
        }
    }
}

/* out (rows, channels); lse (heads, groups * slots) keeps the logarithm of every softmax denominator. */
void attention_forward(const Problem *p, int64_t first, int64_t last, float *out, float *lse)
{
    static __thread Group g;
    const int64_t slots = p->slots, vectors = slots / LANES;
    vec s[BLOCK][MAX_VECTORS];
    float mixed[BLOCK][LANES];
    for (int64_t head = first; head < last; head++) {
        for (int64_t group = 0; group < p->groups; group++) {
            gather(p, group, head, &g);
            for (int64_t i = 0; i < slots; i += BLOCK) {
                float total[BLOCK];
                logits(p, &g, head, i, s);
                for (int r = 0; r < BLOCK; r++) {
                    vec top = s[r][0], sums = splat(0.0f);
                    for (int64_t j = 1; j < vectors; j++) top = larger(s[r][j], top);
                    const float peak = largest(top);
                    for (int64_t j = 0; j < vectors; j++) {
                        s[r][j] = exponential(s[r][j] - peak);
                        sums += s[r][j];
                    }
                    total[r] = sum(sums);
                    lse[(head * p->groups + group) * slots + i + r] = peak + __builtin_logf(total[r]);
                }
                mixture(s, g.v, slots, mixed);
                for (int r = 0; r < BLOCK; r++) {
                    const int64_t row = p->target[group * slots + i + r];
                    if (row < 0) continue;
                    float *o = out + row * p->channels + head * HEAD;
                    for (int d = 0; d < HEAD; d++) o[d] = mixed[r][d] / total[r];
                }
            }
        }
    }
}

/*
 * From dout (rows, channels) and the results of attention_forward: adds to dqkv (rows, 3 * channels), dbias
 * (heads, slots, slots; may be NULL) and dscale (heads), which are zero at first.
 */
void attention_backward(const Problem *p, int64_t first, int64_t last, const float *out, const float *lse,
                        const float *dout, float *dqkv, float *dbias, float *dscale)
{
    static __thread Group g;
    static __thread vec dkt[HEAD][MAX_VECTORS], dvt[HEAD][MAX_VECTORS];
    const int64_t slots = p->slots, vectors = slots / LANES, width = 3 * p->channels;
    vec s[BLOCK][MAX_VECTORS], ds[BLOCK][MAX_VECTORS];
    float dmixed[BLOCK][LANES], dq[BLOCK][LANES];
    for (int64_t head = first; head < last; head++) {
        double scaled = 0;
        for (int64_t group = 0; group < p->groups; group++) {
            const int32_t *source = p->source + group * slots, *target = p->target + group * slots;
            gather(p, group, head, &g);
            memset(dkt, 0, sizeof dkt);
            memset(dvt, 0, sizeof dvt);
            for (int64_t i = 0; i < slots; i += BLOCK) {
                float product[BLOCK];
                int used = 0;
                for (int r = 0; r < BLOCK; r++) {
                    const int64_t row = target[i + r];
                    product[r] = 0;
                    for (int d = 0; d < LANES; d++) {
                        const int64_t at = row * p->channels + head * HEAD + d;
                        dmixed[r][d] = row < 0 || d >= HEAD ? 0.0f : dout[at];
                        if (row >= 0 && d < HEAD) product[r] += dout[at] * out[at];
                    }
                    used |= row >= 0;
                }
                if (!used) continue;
                logits(p, &g, head, i, s);
                products(dmixed, g.vt, vectors, ds);
                for (int r = 0; r < BLOCK; r++) {
                    const float norm = lse[(head * p->groups + group) * slots + i + r];
                    for (int64_t j = 0; j < vectors; j++) {
                        s[r][j] = exponential(s[r][j] - norm);
                        ds[r][j] = s[r][j] * (ds[r][j] - product[r]);
                    }
                    if (dbias) {
                        float *sums = dbias + (head * slots + i + r) * slots;
                        for (int64_t j = 0; j < vectors; j++) {
                            const vec total = load(sums + j * LANES) + ds[r][j];
                            memcpy(sums + j * LANES, &total, sizeof total);
                        }
                    }
                }
                accumulate(dmixed, s, vectors, dvt);
                accumulate(g.q + i, ds, vectors, dkt);
                mixture(ds, g.k, slots, dq);
                for (int r = 0; r < BLOCK; r++) {
                    float *row = dqkv + source[i + r] * width + head * HEAD;
                    for (int d = 0; d < HEAD; d++) {
                        row[d] += p->scale * dq[r][d];
                        scaled += (double)dq[r][d] * g.q[i + r][d];
                    }
                }
            }
            const float(*dk)[MAX_SLOTS] = (const float(*)[MAX_SLOTS])dkt, (*dv)[MAX_SLOTS] = (const float(*)[MAX_SLOTS])dvt;
            for (int64_t i = 0; i < slots; i++) {
                float *row = dqkv + source[i] * width + head * HEAD;
                for (int d = 0; d < HEAD; d++) {
                    row[p->channels + d] += dk[d][i];
                    row[2 * p->channels + d] += dv[d][i];
                }
            }
        }
        dscale[head] += (float)(scaled / p->scale);
    }
}
