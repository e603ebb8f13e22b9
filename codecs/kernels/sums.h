/* Sums of float64 that lose nothing: what a sum rounds off is kept beside it (TwoSum of Knuth). */
#include "memory.h"

typedef double f64u __attribute__((aligned(1), may_alias));

/* Adds weight * x[i] to sums[i]; rests[i] becomes, exactly, what rounding left out. Tells whether any rest is not 0.
 * The product must be exact: a weight of 29 bits at most. Each sum and each rest is its own; they overlap nothing. */
static int add_exactly(const uint8_t *src, size_t n, double weight, uint8_t *sums, uint8_t *rests)
{
    const f32u *x = (const f32u *)(const void *)src;
    f64u *restrict sum = (f64u *)(void *)sums;
    f64u *restrict rest = (f64u *)(void *)rests;
    uint64_t left = 0;
    for (size_t i = 0; i < n; i++) {
        double term = (double)x[i] * weight;
        double total = sum[i] + term;
        double back = total - sum[i];
        double lost = (sum[i] - (total - back)) + (term - back);
        sum[i] = total;
        rest[i] = lost;
        left |= (uint64_t)(lost != 0); /* also where it is not a number */
    }
    return left != 0;
}
