/* Lists of page units: what refault.memory.unitlists does, on the same memory.
 *
 * Which unit is evicted next is decided there and above.  What is here is what is to be done for
 * every unit; each step is the same as in Python.  A unit that was not used for long is in no cache,
 * nor is what is known of it: so the numbers of units that come next are fetched ahead. */
#include <stdint.h>

enum { LEVELS = 4, GHOSTS = LEVELS, FREE, LISTS };
enum { LIST = 7, CAME_IN_AT = 3, AHEAD = 8 };

struct node {
    uint32_t unit, next, previous, kind;
};

/* Places are counted in numbers, not in nodes. */
enum { NODE = sizeof(struct node) / sizeof(uint32_t) };

/* `mask`: 0, or there is not a place for each unit, but a hash table of mask + 1 places, of which no more
 * than half are in use: the unit is looked up where its hash says, and from there on. */
struct lists {
    uint32_t *nodes, *places;
    int64_t *counts;
    int64_t newest, mask;
};

static struct node *at(struct lists *l, uint32_t place)
{
    return (struct node *)(l->nodes + place);
}

static int64_t home(struct lists *l, uint32_t unit)
{
    return (int64_t)(unit * UINT64_C(0x9E3779B97F4A7C15) >> 32) & l->mask;
}

/* Where the place of a unit is written, or is to be written. */
static uint32_t *place_of(struct lists *l, uint32_t unit)
{
    if (!l->mask)
        return &l->places[unit];
    int64_t i = home(l, unit);
    while (l->places[i] && at(l, l->places[i])->unit != unit)
        i = (i + 1) & l->mask;
    return &l->places[i];
}

/* A unit has no place any more.  Those behind it move up, or nobody would find them. */
static void forget_place(struct lists *l, uint32_t unit)
{
    uint32_t *place = place_of(l, unit);
    if (l->mask && *place) {
        int64_t gap = place - l->places;
        for (int64_t i = gap; l->places[i = (i + 1) & l->mask];) {
            int64_t from = home(l, at(l, l->places[i])->unit);
            if (((i - from) & l->mask) >= ((i - gap) & l->mask)) {
                l->places[gap] = l->places[i];
                gap = i;
            }
        }
        place = &l->places[gap];
    }
    *place = 0;
}

static void move(struct lists *l, uint32_t place, uint32_t list, uint32_t came_in)
{
    struct node *node = at(l, place), *end = at(l, list * NODE);
    at(l, node->previous)->next = node->next;
    at(l, node->next)->previous = node->previous;
    l->counts[node->kind & LIST]--;
    node->previous = end->previous;
    node->next = list * NODE;
    at(l, end->previous)->next = place;
    end->previous = place;
    node->kind = list | came_in << CAME_IN_AT;
    l->counts[list]++;
}

static void drop(struct lists *l, uint32_t place)
{
    forget_place(l, at(l, place)->unit);
    move(l, place, FREE, 0);
}

static void fetch_ahead(struct lists *l, const int64_t *indexes, int64_t i, int64_t count)
{
    if (i + 2 * AHEAD < count)
        __builtin_prefetch(&l->places[l->mask ? home(l, indexes[i + 2 * AHEAD])
                                              : indexes[i + 2 * AHEAD]], 1);
    if (i + AHEAD < count)
        __builtin_prefetch(at(l, l->places[l->mask ? home(l, indexes[i + AHEAD])
                                                   : indexes[i + AHEAD]]), 1);
}

uint32_t rf_lists_find(struct lists *l, uint32_t unit)
{
    return *place_of(l, unit);
}

/* `place` 0: it has none. */
void rf_lists_put(struct lists *l, uint32_t unit, uint32_t place)
{
    if (place)
        *place_of(l, unit) = place;
    else
        forget_place(l, unit);
}

/* Enter in `places` where all units are; there are none yet. */
void rf_lists_find_places(struct lists *l, int64_t nodes)
{
    for (int64_t place = LISTS * NODE; place < nodes * NODE; place += NODE)
        if ((at(l, place)->kind & LIST) != FREE)
            *place_of(l, at(l, place)->unit) = place;
}

/* There are nodes enough.  `had`: for each level, how many had a ghost and had come in there. */
void rf_lists_enter(struct lists *l, const int64_t *indexes, int64_t count, int64_t *had)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t index = indexes[i], *found = place_of(l, index), place = *found, level = 0;
        fetch_ahead(l, indexes, i, count);
        if (!place) {
            place = at(l, FREE * NODE)->next;
            *found = place;
            at(l, place)->unit = index;
        } else if ((at(l, place)->kind & LIST) == GHOSTS) {
            level = at(l, place)->kind >> CAME_IN_AT;
            had[level]++;
            level += level + 1 < LEVELS;
        } else {
            continue;
        }
        move(l, place, level, level);
        l->newest = index;
    }
}

void rf_lists_leave(struct lists *l, const int64_t *indexes, int64_t count, int ghost)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t place = *place_of(l, indexes[i]), kind = at(l, place)->kind;
        fetch_ahead(l, indexes, i, count);
        if (!place || (kind & LIST) >= GHOSTS)
            continue;
        if (ghost)
            move(l, place, GHOSTS, kind >> CAME_IN_AT);
        else
            drop(l, place);
    }
}

int64_t rf_lists_forget(struct lists *l, int64_t count, uint32_t high)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t place = at(l, GHOSTS * NODE)->next;
        found += at(l, place)->kind >> CAME_IN_AT >= high;
        drop(l, place);
    }
    return found;
}

void rf_lists_hand_down(struct lists *l, uint32_t level, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t place = at(l, level * NODE)->next;
        move(l, place, level - 1, at(l, place)->kind >> CAME_IN_AT);
    }
}

/* Returns how many were found. */
int64_t rf_lists_oldest(struct lists *l, int64_t *found, int64_t count)
{
    int64_t many = 0;
    for (uint32_t end = 0; end < LEVELS * NODE; end += NODE)
        for (uint32_t place = at(l, end)->next; place != end && many < count;) {
            found[many++] = at(l, place)->unit;
            place = at(l, place)->next;
        }
    return many;
}
