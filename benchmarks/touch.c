/* Touch memory, one place after the other: the faulting side of every benchmark.
 *
 * Called through ctypes, and so without the GIL; also a part of limit.c, so that the yardstick
 * and what is measured run the same loop.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { READ = 0, WRITE = 1, READ_MODIFY_WRITE = 2 };

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Touch `words` words of 8 bytes at base + offsets[i] for all i; if `ns` is not null, store there
 * how long each took.  Returns a sum of what was read, so that nothing is optimised away. */
uint64_t touch(volatile char *base, const uint64_t *offsets, uint64_t count, int operation,
               uint64_t words, uint32_t *ns)
{
    uint64_t sum = 0;
    uint64_t before = ns ? now_ns() : 0;
    for (uint64_t i = 0; i < count; i++) {
        volatile uint64_t *place = (volatile uint64_t *)(base + offsets[i]);
        for (uint64_t word = 0; word < words; word++) {
            uint64_t found;
            switch (operation) {
            case READ:
                sum += place[word];
                break;
            case WRITE:
                place[word] = offsets[i] / 8 + word;
                break;
            default:
                /* Two accesses, and two faults where a page that was read is write-protected. */
                found = place[word];
                sum += found;
                place[word] = found + 1;
            }
        }
        if (ns) {
            uint64_t after = now_ns();
            ns[i] = after - before < UINT32_MAX ? (uint32_t)(after - before) : UINT32_MAX;
            before = after;
        }
    }
    return sum;
}

/* What another thread tells a writer, and hears from it. */
enum { STOP = 0, HOLD = 1, HELD = 2 };

static void sleep_until(uint64_t ns)
{
    struct timespec t = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0) == EINTR)
        ;
}

/* Write pieces of `bytes` at base + offsets[i], one every `interval` ns or, if that is 0, without a
 * break; until there are `count`, or flags[STOP] is set.  While flags[HOLD] is set nothing is
 * written, and flags[HELD] says so.  Piece i begins with the number first + i, which is written
 * before the rest: that is `content`.  begins[i] and ns[i]: when it was due, or the end of the one before if that was
 * later; and how long it took from then on.  So whatever stops the writer is in it, be it a fault of
 * its stack.  Returns how many were written. */
uint64_t write_pieces(char *base, const uint64_t *offsets, uint64_t count, const char *content,
                      uint64_t bytes, uint64_t first, uint64_t interval, int *flags,
                      uint64_t *begins, uint64_t *ns)
{
    uint64_t start = now_ns(), after = start;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t before = after;
        if (interval && start + i * interval > after) {
            before = start + i * interval;
            sleep_until(before);
        }
        if (__atomic_load_n(&flags[STOP], __ATOMIC_SEQ_CST))
            return i;
        if (__atomic_load_n(&flags[HOLD], __ATOMIC_SEQ_CST)) {
            __atomic_store_n(&flags[HELD], 1, __ATOMIC_SEQ_CST);
            while (__atomic_load_n(&flags[HOLD], __ATOMIC_SEQ_CST))
                sleep_until(now_ns() + 20000);
            __atomic_store_n(&flags[HELD], 0, __ATOMIC_SEQ_CST);
        }
        char *place = base + offsets[i];
        __atomic_store_n((uint64_t *)place, first + i, __ATOMIC_SEQ_CST);
        memcpy(place + 8, content + 8, bytes - 8);
        after = now_ns();
        begins[i] = before;
        ns[i] = after - before;
    }
    return count;
}
