/* Greedy offsets: buffers in a given order, each into a gap between those already placed that are alive with it.

   packing_twin.py does the same and is tested to give the same offsets; packing.py makes and checks the arguments. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FITTED = 1, NO_MEMORY = -1 };

typedef struct {
    int64_t start, end;
} Span;

/* Which buffers are alive with buffer b: near[from[b]] to near[from[b + 1] - 1]. */
typedef struct {
    int64_t *from;
    int32_t *near;
} Neighbours;

static int compare_spans(const void *left, const void *right)
{
    const Span *a = left, *b = right;
    return (a->start > b->start) - (a->start < b->start);
}

static void sort_spans(Span *spans, int64_t count)
{
    if (count > 32) {
        qsort(spans, (size_t)count, sizeof *spans, compare_spans);
        return;
    }
    for (int64_t i = 1; i < count; ++i) {
        Span x = spans[i];
        int64_t j = i;
        for (; j > 0 && x.start < spans[j - 1].start; --j) {
            spans[j] = spans[j - 1];
        }
        spans[j] = x;
    }
}

/* Find the first gap of at least `size` bytes between sorted spans, or with `best` the smallest; above all where there is none. */
static int64_t choose_gap(const Span *spans, int64_t count, int64_t size, int best)
{
    int64_t top = 0, found = -1, smallest = INT64_MAX;
    for (int64_t i = 0; i < count; ++i) {
        int64_t gap = spans[i].start - top;
        if (gap >= size && gap < smallest) {
            found = top;
            smallest = gap;
            if (!best) {
                return found;
            }
        }
        top = spans[i].end > top ? spans[i].end : top;
    }
    return found < 0 ? top : found;
}

/* Sweep over the buffers by first section, with those that are alive in a list. `room` is that of `near`. */
static int find_neighbours(int32_t count, const int32_t *first, const int32_t *last, const int32_t *by_first, int64_t room,
                           Neighbours *found)
{
    int32_t *alive = malloc((size_t)count * sizeof *alive);
    int64_t *next = calloc((size_t)count + 1, sizeof *next);
    found->from = calloc((size_t)count + 1, sizeof *found->from);
    found->near = malloc((size_t)(room ? room : 1) * sizeof *found->near);
    int done = alive && next && found->from && found->near;
    for (int fill = 0; done && fill < 2; ++fill) {
        int32_t live = 0;
        for (int32_t i = 0; i < count; ++i) {
            int32_t b = by_first[i], kept = 0;
            for (int32_t j = 0; j < live; ++j) {
                int32_t a = alive[j];
                if (last[a] <= first[b]) {
                    continue;
                }
                alive[kept++] = a;
                if (fill) {
                    found->near[next[a]++] = b;
                    found->near[next[b]++] = a;
                } else {
                    ++found->from[a + 1];
                    ++found->from[b + 1];
                }
            }
            live = kept;
            alive[live++] = b;
        }
        for (int32_t i = 0; !fill && i < count; ++i) {
            found->from[i + 1] += found->from[i];
        }
        done = found->from[count] <= room;
        memcpy(next, found->from, ((size_t)count + 1) * sizeof *next);
    }
    free(alive);
    free(next);
    return done;
}

/* Fit the buffers in each of `order_count` orders, into first and into smallest gaps, until the end is at most `enough`. Writes the
   offsets with the lowest end, which is kept in *height. Buffer i lives in sections first[i] to last[i] - 1; `by_first` lists the
   buffers by first section; `pairs` counts the pairs that are alive together. */
int32_t pack_greedily(int32_t count, const int32_t *first, const int32_t *last, const int64_t *size,
                             const int32_t *by_first, int64_t pairs, int32_t order_count, const int32_t *orders, int64_t enough,
                             int64_t *offsets, int64_t *height)
{
    Neighbours n = {NULL, NULL};
    Span *spans = malloc((size_t)count * sizeof *spans);
    int64_t *current = malloc((size_t)count * sizeof *current);
    int32_t status = NO_MEMORY;
    *height = INT64_MAX;
    if (spans && current && find_neighbours(count, first, last, by_first, pairs * 2, &n)) {
        status = FITTED;
        for (int32_t attempt = 0; attempt < order_count * 2 && *height > enough; ++attempt) {
            const int32_t *order = orders + (size_t)(attempt / 2) * (size_t)count;
            int64_t top = 0;
            for (int32_t i = 0; i < count; ++i) {
                current[i] = -1;
            }
            for (int32_t i = 0; i < count && top < *height; ++i) {
                int32_t b = order[i];
                int64_t found = 0;
                for (int64_t j = n.from[b]; j < n.from[b + 1]; ++j) {
                    int32_t a = n.near[j];
                    if (current[a] >= 0) {
                        Span span = {current[a], current[a] + size[a]};
                        spans[found++] = span;
                    }
                }
                sort_spans(spans, found);
                current[b] = choose_gap(spans, found, size[b], attempt % 2);
                top = current[b] + size[b] > top ? current[b] + size[b] : top;
            }
            if (top < *height) {
                *height = top;
                memcpy(offsets, current, (size_t)count * sizeof *offsets);
            }
        }
    }
    free(spans);
    free(current);
    free(n.from);
    free(n.near);
    return status;
}
