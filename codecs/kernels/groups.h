/* int8 and int4 in groups of 8 blocks, for AVX2 and AVX-512: what blocks are coded with, and the loop over groups.
 *
 * While one group is coded the ends of the next one are sought. Scales are a long chain of sums and divisions; where blocks
 * are short nothing may wait for that, so the next group's are computed an eighth after each block, and ends are sought one
 * group further ahead. Who includes this defines wide_seen, in which a NaN among the values leaves its trace. */
#include "wide_avx2.h"

/* Least and greatest of 8 blocks, spread over 8 lanes each. */
typedef struct wide_ends {
    __m256 low[8];
    __m256 high[8];
} wide_ends;

typedef struct wide_scales {
    float low[8];
    float step[8];
    float inverse[8];
    uint32_t halves[8]; /* low and step as bf16 */
    int sound;
} wide_scales;

/* How blocks of one kind are coded. Seeking ends and writing codes take different units of the processor, so the two are
 * done in turns: `code` also seeks the ends of block i of a later group. */
typedef struct wide_kind {
    size_t block;
    size_t size;  /* of an encoded block */
    size_t ahead; /* 1 or 2: how many groups from what is coded to what is sought */
    float levels;
    int half; /* whether low and step are bf16 */
    void (*seek)(wide_ends *e, size_t i, const f32u *x);
    void (*code)(const f32u *x, const wide_scales *s, size_t i, uint8_t *out, wide_seen *seen, wide_ends *e,
                 const f32u *later);
    int (*strange)(wide_seen seen);
} wide_kind;

/* Rows to columns, joined by OP: lane i of the result is that of all lanes of m[i]. */
#define REDUCE(OP, m)                                                                                                  \
    do {                                                                                                               \
        __m256 pair[4];                                                                                                \
        for (size_t i = 0; i < 4; i++) {                                                                               \
            pair[i] = OP(_mm256_unpacklo_ps((m)[2 * i], (m)[2 * i + 1]),                                               \
                         _mm256_unpackhi_ps((m)[2 * i], (m)[2 * i + 1]));                                              \
        }                                                                                                              \
        for (size_t i = 0; i < 4; i += 2) {                                                                            \
            pair[i] = OP(_mm256_shuffle_ps(pair[i], pair[i + 1], 0x44), _mm256_shuffle_ps(pair[i], pair[i + 1], 0xee)); \
        }                                                                                                              \
        (m)[0] = OP(_mm256_permute2f128_ps(pair[0], pair[2], 0x20), _mm256_permute2f128_ps(pair[0], pair[2], 0x31));   \
        /* adding 0 turns -0 into 0 */                                                                                 \
        (m)[0] = _mm256_add_ps((m)[0], _mm256_setzero_ps());                                                           \
    } while (0)

/* The next bf16 away from 0, for values with the sign `away` (all ones: negative ones) or 0. */
static inline __m256 wide_bf16_away(__m256 values, __m256i away)
{
    __m256i bits = _mm256_castps_si256(values);
    bits = _mm256_add_epi32(bits, _mm256_and_si256(away, _mm256_set1_epi32(0xffff)));
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000u)));
}

static inline __m256 wide_step(__m256 width, const wide_kind *kind)
{
    __m256 step = _mm256_div_ps(width, _mm256_set1_ps(kind->levels));
    return kind->half ? wide_bf16_away(step, _mm256_set1_epi32(-1)) : step;
}

static inline void wide_settle(wide_scales *s, __m256 low, __m256 width, __m256 step, __m256 inverse)
{
    __m256 normal = _mm256_cmp_ps(step, _mm256_set1_ps(0x1p-126f), _CMP_GE_OQ);
    __m256 fits = _mm256_cmp_ps(width, _mm256_set1_ps(0x1.fffffep127f), _CMP_LE_OQ);
    __m256 rises = _mm256_cmp_ps(width, _mm256_setzero_ps(), _CMP_GE_OQ);
    step = _mm256_and_ps(step, normal);
    _mm256_storeu_ps(s->low, low);
    _mm256_storeu_ps(s->step, step);
    _mm256_storeu_ps(s->inverse, _mm256_and_ps(inverse, normal));
    __m256i bits = _mm256_srli_epi32(_mm256_castps_si256(low), 16);
    wide_store(s->halves, _mm256_or_si256(bits, _mm256_castps_si256(step)));
    s->sound = _mm256_movemask_ps(_mm256_and_ps(fits, rises)) == 0xff;
}

/* One eighth of what it takes to compute scales of ends; afterwards the ends hold what is half done. */
static inline __attribute__((always_inline)) void wide_eighth(size_t i, wide_ends *e, wide_scales *s,
                                                              const wide_kind *kind)
{
    __m256 *low = e->low, *high = e->high, *width = e->high + 1, *step = e->high + 2, *inverse = e->high + 3;
    switch (i) {
    case 0:
        REDUCE(_mm256_min_ps, e->low);
        break;
    case 1:
        REDUCE(_mm256_max_ps, e->high);
        break;
    case 2:
        *low = kind->half ? wide_bf16_away(*low, _mm256_srai_epi32(_mm256_castps_si256(*low), 31)) : *low;
        *width = _mm256_sub_ps(*high, *low);
        break;
    case 3:
        *step = wide_step(*width, kind);
        break;
    case 5:
        *inverse = _mm256_div_ps(_mm256_set1_ps(1), *step);
        break;
    case 7:
        wide_settle(s, *low, *width, *step, *inverse);
        break;
    default: /* the divisions take their time */
        break;
    }
}

static inline void wide_scales_of(wide_ends *e, wide_scales *s, const wide_kind *kind)
{
    for (size_t i = 0; i < 8; i++) {
        wide_eighth(i, e, s, kind);
    }
}

static inline void wide_seek(wide_ends *e, const f32u *x, const wide_kind *kind)
{
    for (size_t i = 0; i < 8; i++) {
        kind->seek(e, i, x + i * kind->block);
    }
}

static inline __attribute__((always_inline)) size_t groups_wide(const f32u *x, size_t n, uint8_t *out,
                                                                const wide_kind *kind)
{
    const size_t group = 8 * kind->block;
    wide_ends ends[2];
    wide_scales scales[2];
    size_t done = 0;
    if (n < group) {
        return 0;
    }
    wide_seek(&ends[1], x, kind);
    wide_scales_of(&ends[1], &scales[0], kind);
    if (kind->ahead > 1) {
        wide_seek(&ends[0], n < 2 * group ? x : x + group, kind);
    }
    for (unsigned turn = 0; done + group <= n; done += group, turn ^= 1) {
        const f32u *here = x + done;
        const f32u *next = done + (kind->ahead + 1) * group <= n ? here + kind->ahead * group : here;
        wide_seen seen = {0};
#pragma GCC unroll 8 /* so that each eighth stands where it is due, without a jump */
        for (size_t i = 0; i < 8; i++, out += kind->size) {
            const f32u *later = next + i * kind->block;
            kind->code(here + i * kind->block, &scales[turn], i, out, &seen, &ends[turn ^ 1], later);
            if (kind->ahead > 1) {
                wide_eighth(i, &ends[turn], &scales[turn ^ 1], kind);
            }
        }
        if (!scales[turn].sound || kind->strange(seen)) {
            break;
        }
        if (kind->ahead == 1) {
            wide_scales_of(&ends[turn ^ 1], &scales[turn ^ 1], kind);
        }
    }
    return done;
}
