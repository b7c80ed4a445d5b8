/* Offsets for buffers with fixed lives: a branch-and-bound search for a packing within a capacity.

   packing_twin.py does the same, step by step, and is tested to give the same offsets and node counts. packing.py explains the
   search, and makes and checks the arguments. Times are sections: step ranges over which one largest set of buffers is
   alive, so that two buffers are alive together exactly if they share a section. All bytes are 64-bit; the caller makes sure that
   the sum of all sizes and the capacity are below 2^61. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { EXHAUSTED = 0, SOLVED = 1, OUT_OF_NODES = 2, NO_MEMORY = -1 };
enum { ROUNDS = 2 };         /* of bounds over sections for each node: a third finds little */
enum { MOST_ITEMS = 1 << 21 }; /* on the path to a node, all nodes together: 80 MB */

/* A buffer without a place. floor: the highest end of the placed buffers it meets; low: no packing has it lower; head: the lowest
   end that another one without a place could have beside it; barred: decided not to lie on its floor. */
typedef struct {
    int64_t floor, low, head;
    int32_t id, part;
    uint8_t barred, forced;
} Item;

/* A node with its items in the pool. With one part, it tries item `chosen` on its floor and then barred (`stage` counts); with
   several, it solves part after part. */
typedef struct {
    size_t begin, end;
    int32_t count, parts, chosen, stage;
} Frame;

/* Of the items in a section: the two lowest `low` and ends, the sum of sizes, and the end if all are stacked as low as they go. */
typedef struct {
    int64_t low, second_low, top, second_top, total, full;
    int32_t low_id, top_id;
} Section;

typedef struct {
    const int32_t *first, *last, *same;
    const int64_t *size;
    int64_t capacity, budget, nodes, *offsets;
    Item *pool;
    size_t room;
    Frame *frames;
    size_t depth, frame_room;
    Section *sections;
    int32_t section_count, *part_of;
    uint8_t *present;
} Search;

/* Make room for items at the end of the pool; returns SOLVED, or why there is none. */
static int32_t reserve(Search *s, size_t items)
{
    if (items > MOST_ITEMS) {
        return OUT_OF_NODES;
    }
    if (items > s->room) {
        size_t room = s->room * 2 > items ? s->room * 2 : items;
        Item *pool = realloc(s->pool, room * sizeof *pool);
        if (!pool) {
            return NO_MEMORY;
        }
        s->pool = pool;
        s->room = room;
    }
    return SOLVED;
}

static Frame *push(Search *s, size_t begin, int32_t count)
{
    if (s->depth == s->frame_room) {
        size_t room = s->frame_room * 2 + 64;
        Frame *frames = realloc(s->frames, room * sizeof *frames);
        if (!frames) {
            return NULL;
        }
        s->frames = frames;
        s->frame_room = room;
    }
    Frame *frame = &s->frames[s->depth++];
    memset(frame, 0, sizeof *frame);
    frame->begin = begin;
    frame->count = count;
    frame->end = begin + (size_t)count;
    return frame;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Put a buffer on its floor: whatever it meets lies above it. */
static void place(Search *s, const Item *placed, Item *items, int32_t count)
{
    int64_t top = placed->floor + s->size[placed->id];
    s->offsets[placed->id] = placed->floor;
    for (Item *x = items; x < items + count; ++x) {
        int meets = s->first[x->id] < s->last[placed->id] && s->first[placed->id] < s->last[x->id];
        if (meets && x->id != placed->id && x->floor < top) {
            x->floor = top;
            x->low = larger(x->low, top);
            x->barred = 0;
        }
    }
}

static void span(const Search *s, const Item *items, int32_t count, int32_t *from, int32_t *to)
{
    *from = s->section_count;
    *to = 0;
    for (int32_t i = 0; i < count; ++i) {
        *from = s->first[items[i].id] < *from ? s->first[items[i].id] : *from;
        *to = s->last[items[i].id] > *to ? s->last[items[i].id] : *to;
    }
}

static void keep_two(int64_t value, int32_t id, int64_t *lowest, int64_t *second, int32_t *lowest_id)
{
    if (value < *lowest) {
        *second = *lowest;
        *lowest = value;
        *lowest_id = id;
    } else if (value < *second) {
        *second = value;
    }
}

static void fill_sections(Search *s, const Item *items, int32_t count)
{
    const Section empty = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, 0, 0, -1, -1};
    int32_t from, to;
    span(s, items, count, &from, &to);
    for (int32_t t = from; t < to; ++t) {
        s->sections[t] = empty;
    }
    for (int32_t i = 0; i < count; ++i) {
        int32_t id = items[i].id;
        int64_t low = items[i].low, top = low + s->size[id];
        for (Section *c = s->sections + s->first[id]; c < s->sections + s->last[id]; ++c) {
            c->total += s->size[id];
            keep_two(low, id, &c->low, &c->second_low, &c->low_id);
            keep_two(top, id, &c->top, &c->second_top, &c->top_id);
        }
    }
}

/* Raise what must lie higher, and mark what may be placed at once. Returns 0 if there is no packing; sets *changed. */
static int tighten(Search *s, Item *items, int32_t count, int *changed)
{
    *changed = 0;
    for (int32_t i = 0; i < count; ++i) {
        Item *x = &items[i];
        int64_t size = s->size[x->id], others_low = INT64_MAX, head = INT64_MAX, raised = x->low;
        for (const Section *c = s->sections + s->first[x->id]; c < s->sections + s->last[x->id]; ++c) {
            int64_t low = c->low_id == x->id ? c->second_low : c->low;
            int64_t top = c->top_id == x->id ? c->second_top : c->top;
            others_low = low < others_low ? low : others_low;
            head = top < head ? top : head;
            if (x->low + c->total > s->capacity && top > raised) {
                raised = top; /* it cannot be the lowest here, so it lies above another */
            }
        }
        int fits_below_all = x->floor + size <= others_low;
        if (x->barred || x->low > x->floor) {
            if (fits_below_all) {
                return 0; /* moved down to its floor it would disturb nobody: that packing is looked for elsewhere */
            }
            raised = larger(head, raised);
        }
        x->forced = (uint8_t)fits_below_all;
        x->head = head;
        if (raised > s->capacity - size) {
            return 0;
        }
        *changed |= raised != x->low;
        x->low = raised;
    }
    return 1;
}

static int32_t place_forced(Search *s, Item *items, int32_t count)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < count; ++i) {
        if (items[i].forced) {
            place(s, &items[i], items, count);
        }
    }
    for (int32_t i = 0; i < count; ++i) {
        items[kept] = items[i];
        kept += !items[i].forced;
    }
    return kept;
}

/* Sort by (low, id); nearly sorted already. */
static void sort_items(Item *items, int32_t count)
{
    for (int32_t i = 1; i < count; ++i) {
        Item x = items[i];
        int32_t j = i;
        for (; j > 0 && (x.low < items[j - 1].low || (x.low == items[j - 1].low && x.id < items[j - 1].id)); --j) {
            items[j] = items[j - 1];
        }
        items[j] = x;
    }
}

/* Stack the items of each section in order of `low`: the least end that they can have (one machine with release dates). */
static int sections_fit(Search *s, const Item *items, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        int32_t id = items[i].id;
        for (Section *c = s->sections + s->first[id]; c < s->sections + s->last[id]; ++c) {
            c->full = larger(c->full, items[i].low) + s->size[id];
            if (c->full > s->capacity) {
                return 0;
            }
        }
    }
    return 1;
}

/* Returns how many items are left, sorted; -1 if there is no packing. */
static int32_t propagate(Search *s, Item *items, int32_t count)
{
    for (int forced = 1; forced && count;) {
        int changed = 1;
        forced = 0;
        for (int round = 0; round < ROUNDS && changed && !forced; ++round) {
            fill_sections(s, items, count);
            if (!tighten(s, items, count, &changed)) {
                return -1;
            }
            for (int32_t i = 0; i < count; ++i) {
                forced |= items[i].forced;
            }
        }
        if (forced) {
            count = place_forced(s, items, count);
        }
    }
    sort_items(items, count);
    return sections_fit(s, items, count) ? count : -1;
}

/* Number the parts that no item crosses the border of, in order of time. Returns how many there are. */
static int32_t number_parts(Search *s, Item *items, int32_t count)
{
    int32_t from, to, parts = 0, alive = 0;
    span(s, items, count, &from, &to);
    memset(s->part_of + from, 0, (size_t)(to - from) * sizeof *s->part_of);
    for (int32_t i = 0; i < count; ++i) {
        s->part_of[s->first[items[i].id]]++;
        s->part_of[s->last[items[i].id] - 1]--;
    }
    for (int32_t t = from; t < to; ++t) {
        alive += s->part_of[t];
        s->part_of[t] = parts;
        parts += alive == 0 && s->sections[t].total > 0;
    }
    for (int32_t i = 0; i < count; ++i) {
        items[i].part = s->part_of[s->first[items[i].id]];
    }
    return parts;
}

/* Choose the lowest item that can lie on its floor and below which nothing else fits; -1 if there is none. */
static int32_t pick(Search *s, const Item *items, int32_t count)
{
    int32_t found = -1;
    for (int32_t i = 0; i < count; ++i) {
        s->present[items[i].id] = 1;
    }
    for (int32_t i = 0; i < count && found < 0; ++i) {
        const Item *x = &items[i];
        int32_t same = s->same[x->id]; /* of equal buffers, the first in order lies lowest */
        if (!x->barred && x->low == x->floor && x->head > x->floor && !(same >= 0 && s->present[same])) {
            found = i;
        }
    }
    for (int32_t i = 0; i < count; ++i) {
        s->present[items[i].id] = 0;
    }
    return found;
}

/* Open a node for the items at the end of the pool, unless they have no packing. Sets *done if nothing is left to place. Returns 0
   without memory. */
static int open_node(Search *s, size_t begin, int32_t count, int *done)
{
    count = propagate(s, s->pool + begin, count);
    *done = count == 0;
    if (count <= 0) {
        return 1;
    }
    int32_t parts = number_parts(s, s->pool + begin, count);
    Frame *frame = push(s, begin, count);
    if (!frame) {
        return 0;
    }
    frame->parts = parts;
    *done = parts > 1; /* as if a part before the first one were */
    frame->chosen = parts > 1 ? -1 : pick(s, s->pool + begin, count);
    return 1;
}

/* Copy the next part of a node to the end of the pool. Returns its size, 0 if all are solved. */
static int32_t next_part(Search *s, Frame *frame)
{
    int32_t count = 0;
    for (size_t i = frame->begin; i < frame->end; ++i) {
        if (s->pool[i].part == frame->stage) {
            s->pool[frame->end + (size_t)count++] = s->pool[i];
        }
    }
    ++frame->stage;
    return count;
}

/* Copy the items of a node's next child to the end of the pool. Returns their number. */
static int32_t next_child(Search *s, Frame *frame)
{
    Item *items = s->pool + frame->end, chosen = s->pool[frame->begin + (size_t)frame->chosen];
    int32_t count = frame->count;
    memcpy(items, s->pool + frame->begin, (size_t)count * sizeof *items);
    if (frame->stage++ == 0) {
        place(s, &chosen, items, count);
        --count;
        memmove(items + frame->chosen, items + frame->chosen + 1, (size_t)(count - frame->chosen) * sizeof *items);
    } else {
        items[frame->chosen].barred = 1;
    }
    ++s->nodes;
    return count;
}

static int32_t run(Search *s, int32_t count)
{
    size_t begin = 0;
    int32_t status = reserve(s, (size_t)count);
    if (status != SOLVED) {
        return status;
    }
    memset(s->pool, 0, (size_t)count * sizeof *s->pool);
    for (int32_t i = 0; i < count; ++i) {
        s->pool[i].id = i;
    }
    for (;;) {
        int done = 0;
        if (!open_node(s, begin, count, &done)) {
            return NO_MEMORY;
        }
        for (count = 0; count == 0;) { /* until there are items for another node */
            if (!s->depth) {
                return done ? SOLVED : EXHAUSTED;
            }
            Frame *frame = &s->frames[s->depth - 1];
            begin = frame->end;
            if ((frame->parts > 1) != done || (!done && (frame->stage == 2 || frame->chosen < 0))) {
                --s->depth; /* solved, or one of its parts or both of its branches have no packing */
                continue;
            }
            if (!done && s->nodes == s->budget) {
                return OUT_OF_NODES;
            }
            status = reserve(s, frame->end + (size_t)frame->count);
            if (status != SOLVED) {
                return status;
            }
            count = done ? next_part(s, frame) : next_child(s, frame);
            s->depth -= done && count == 0;
        }
    }
}

/* Search for offsets below `capacity`. Buffers are numbered in the order in which ties are broken; buffer i lives in sections
   first[i] to last[i] - 1; same[i] is the buffer before it with equal life and size, or -1. */
int32_t pack_search(int32_t count, int32_t section_count, const int32_t *first, const int32_t *last, const int64_t *size,
                           const int32_t *same, int64_t capacity, int64_t budget, int64_t *offsets, int64_t *nodes)
{
    Search s = {.first = first, .last = last, .same = same, .size = size, .capacity = capacity, .budget = budget};
    int32_t status = NO_MEMORY;
    s.offsets = offsets;
    s.section_count = section_count;
    s.sections = calloc((size_t)section_count, sizeof *s.sections);
    s.part_of = calloc((size_t)section_count, sizeof *s.part_of);
    s.present = calloc((size_t)count, 1);
    if (s.sections && s.part_of && s.present) {
        status = run(&s, count);
    }
    *nodes = s.nodes;
    free(s.sections);
    free(s.part_of);
    free(s.present);
    free(s.pool);
    free(s.frames);
    return status;
}
