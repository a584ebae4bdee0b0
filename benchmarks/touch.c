/* Touch memory, one place after the other: the faulting side of every benchmark.
 *
 * Called through ctypes, and so without the GIL; also a part of limit.c, so that the yardstick
 * and what is measured run the same loop.
 */
#include <stdint.h>
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
