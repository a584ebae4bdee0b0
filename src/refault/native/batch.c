/* The same for many units, or for many ranges: pairs of offset (or address) and length.
 *
 * Each returns for how many it was done.  If not for all, errno says why not for the next one; Python
 * takes it from there, and so it is Python that knows what each error means.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

int64_t rf_punch(int memfd, int shift, const int64_t *units, int64_t count)
{
    int64_t last;
    for (int64_t i = 0; i < count; i = last) {
        for (last = i + 1; last < count && units[last] == units[i] + last - i;)
            last++;
        if (fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, units[i] << shift,
                      (last - i) << shift))
            return i;
    }
    return count;
}

/* What becomes of the state of units whose memory was given back; Python says which bits mean what.
 * Up to the first one that must not be given back. */
struct drop {
    uint8_t forbidden, kept, ahead, most;
    int32_t wasted; /* how many nobody had touched: the touches of the others are counted */
};

int64_t rf_drop(uint8_t *flags, uint8_t *touched, const int64_t *units, int64_t count,
                struct drop *d)
{
    for (int64_t i = 0; i < count; i++) {
        if (i + 8 < count) {
            __builtin_prefetch(&flags[units[i + 8]], 1);
            __builtin_prefetch(&touched[units[i + 8]], 1);
        }
        uint8_t state = flags[units[i]];
        if (state & d->forbidden)
            return i;
        if (state & d->ahead)
            d->wasted++;
        else if (touched[units[i]] < d->most)
            touched[units[i]]++;
        flags[units[i]] = state & d->kept;
    }
    return count;
}

int64_t rf_protect(int uffd, const int64_t *ranges, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        struct uffdio_writeprotect on = {
            .range = {.start = ranges[2 * i], .len = ranges[2 * i + 1]},
            .mode = UFFDIO_WRITEPROTECT_MODE_WP};
        if (ioctl(uffd, UFFDIO_WRITEPROTECT, &on))
            return i;
    }
    return count;
}

/* Copy ranges from one file to the same offsets of another.  `*done`: bytes of the range that
 * failed which had been written before. */
int64_t rf_copy(int from, int to, const int64_t *ranges, int64_t count, int64_t *done)
{
    enum { PIECE = 1 << 20 };
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++)
        most = ranges[2 * i + 1] > most ? ranges[2 * i + 1] : most;
    char *buffer = malloc(most < PIECE ? most : PIECE);
    if (!buffer)
        return 0;
    int64_t i = 0;
    for (; i < count; i++) {
        int64_t at = ranges[2 * i], left = ranges[2 * i + 1];
        *done = 0;
        while (left > 0) {
            ssize_t got = pread(from, buffer, left < PIECE ? left : PIECE, at);
            if (got <= 0) {
                errno = got ? errno : EIO;
                goto out;
            }
            for (ssize_t put = 0; put < got;) {
                ssize_t now = pwrite(to, buffer + put, got - put, at + put);
                if (now < 0 && errno == EINTR)
                    continue;
                if (now <= 0) {
                    errno = now ? errno : EIO;
                    goto out;
                }
                put += now;
                *done += now;
            }
            at += got;
            left -= got;
        }
    }
out:;
    int error = errno;
    free(buffer);
    errno = error;
    return i;
}
