/* Serves page faults that need not wait.
 *
 * There is no rule of the fault path in here.  What a fault comes to is read from a table that the
 * fault path itself has filled in (refault.fault.outcomes): for the state byte of the unit and the
 * kind of the fault, what to call and which state follows.  Where the table says nothing, or a call
 * does not go as the table expects, nothing has been changed, and the fault is given to Python.
 *
 * Nothing runs at the same time in Python's part of the loop: rf_serve is called by the thread that
 * owns all states, and returns to it.  Python's worker threads run meanwhile; they own the bytes of
 * units that are locked, and no state.
 *
 * How content comes in.  For a read: UFFDIO_COPY, write-protected.  Fewer calls than to write it to
 * the memfd and map it, and what is mapped half way cannot be written to; so if it fails half
 * way, a hole takes it all back.  For a write: pwrite to the memfd first, which nobody sees,
 * then UFFDIO_CONTINUE, which maps what is whole.
 *
 * The source of a copy is the page cache itself, mapped here, if the file is in memory (MAP_SOURCE);
 * that saves one of two copies.  Whether it is in memory is asked of mincore, except on
 * filesystems that are nothing else.  A file that was cut short: the copy fails with EFAULT, and
 * Python finds out why.
 *
 * What a snapshot needs is copied from the memfd to a slot that Python has lent, before the unit is
 * mapped writable, or its protection taken away, anywhere.  Such a copy counts from then on, whatever
 * fails afterwards: it may be that a part of the unit can be written already.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "placement.h"

#ifndef UFFDIO_CONTINUE
#define UFFDIO_CONTINUE 0xC020AA07
struct uffdio_continue {
    struct uffdio_range range;
    uint64_t mode;
    int64_t mapped;
};
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

enum { PAGE = 4096, MESSAGES = 64, EVENTS = 64, OUTCOMES = 32 };
enum { BEGINNINGS = 8, STREAMS = 16, NEAR = 8 };
enum { SMALLEST_SHIFT = 12, SIZES = 10 };
enum { CONTINUE_WP = 2, COPY_WP = 2, WRITE = 1, WP = 2 };
enum { COPY_TRIES = 64 };
static const int64_t SOURCE_MOST = 32 << 20;

/* What an entry of the table asks for. */
enum { KNOWN = 1, READS = 2, WRITABLE = 4, MAPS = 8, UNPROTECTS = 16, COPIES = 32 };
/* Whether somebody wants to know who writes, or must copy before. */
enum { TRACKED = 1, PROTECTED = 2 };
/* Where bytes come from. */
enum { NOTHING, CONSTANT_SOURCE, FILE_SOURCE, CACHED_FILE_SOURCE, MAP_SOURCE, CACHED_MAP_SOURCE };

struct entry {
    uint8_t asks, state, outcome, unused;
};

struct account {
    int64_t usage, peak, limit, mark;
};

struct mapping {
    uint8_t *flags;
    uint8_t *copied; /* not 0: the newest snapshot has a copy of the unit; null: not known */
    int64_t whole; /* units that are not the last, partial one */
    int64_t number;
    struct account *budget, *parent;
    int64_t *heads; /* of the streams of readahead, or null */
    char *source;   /* the file, mapped, or constant bytes */
    int64_t source_size;
    int64_t source_touched;
    int32_t shift, memfd, fd, kind, enabled, touched, tracked, unused;
    uint64_t uses[OUTCOMES];
};

struct vma {
    uint64_t start, end, offset;
    struct mapping *mapping;
    int64_t writable;
};

struct client {
    struct vma *vmas;
    int64_t count, last;
    int64_t uffd;
};

struct slow {
    uint64_t event, flags, address, tid;
    int32_t fd, entry;
};

struct note {
    uint64_t address;
    int32_t fd, unused;
};

struct other {
    int32_t fd, events;
};

/* Room for a copy, and of what it has been made. */
struct slot {
    char *bytes;
    int64_t number, index;
};

struct room {
    struct slot *slots;
    int64_t count, taken;
};

struct server {
    struct entry *table;
    struct client **clients;
    struct mapping **touched; /* whose uses are not 0 */
    int64_t *log; /* number and index of units that came in; -number: of units that are written */
    struct slow *slow;
    struct note *notes;
    struct other *others;
    char *staging;
    struct room *rooms; /* one for each size of a unit */
    int64_t log_size, touched_size, slow_size, notes_size;
    int64_t clients_count, touched_count, log_count, slow_count, notes_count, others_count;
    int64_t copies_count, dry; /* how many copies; which rooms have no more slots, a bit each */
    int64_t messages, pressed; /* how many; whether a budget is used beyond its mark */
    struct placement *placement;
    int32_t epoll, around;
};

int64_t rf_sizes(int which)
{
    static const int64_t sizes[] = {sizeof(struct entry),  sizeof(struct mapping),
                                    sizeof(struct vma),    sizeof(struct client),
                                    sizeof(struct slow),   sizeof(struct note),
                                    sizeof(struct other),  sizeof(struct slot),
                                    sizeof(struct room),   sizeof(struct server)};
    return which < (int)(sizeof sizes / sizeof *sizes) ? sizes[which] : -1;
}

static struct vma *find_vma(struct client *client, uint64_t address)
{
    struct vma *vmas = client->vmas;
    int64_t low = 0, high = client->count;
    if (client->last < high && vmas[client->last].start <= address &&
        address < vmas[client->last].end)
        return &vmas[client->last];
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (vmas[middle].end <= address)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == client->count || address < vmas[low].start)
        return NULL;
    client->last = low;
    return &vmas[low];
}

static int wake(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};
    return ioctl(uffd, UFFDIO_WAKE, &range);
}

static int punch(int memfd, int64_t offset, int64_t length)
{
    return fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

/* Map bytes that the memfd holds.  A page of them may be mapped already, by a fault that came at the
 * same time: then only the page that is needed counts.  0, or -1 and nothing that cannot be
 * done again. */
static int map_range(int uffd, uint64_t start, uint64_t length, uint64_t mode, uint64_t needed)
{
    struct uffdio_continue go = {.range = {.start = start, .len = length}, .mode = mode};
    if (ioctl(uffd, UFFDIO_CONTINUE, &go) == 0)
        return 0;
    if (errno != EEXIST)
        return -1;
    struct uffdio_continue one = {.range = {.start = needed, .len = PAGE}, .mode = mode};
    if (ioctl(uffd, UFFDIO_CONTINUE, &one) && errno != EEXIST)
        return -1;
    return wake(uffd, start, length);
}

static int unprotect(int uffd, uint64_t start, uint64_t length)
{
    struct uffdio_writeprotect off = {.range = {.start = start, .len = length}, .mode = 0};
    return ioctl(uffd, UFFDIO_WRITEPROTECT, &off);
}

/* Drop what the mapping of a source has gathered: it counts as memory of ours, and has page tables. */
static int forget_source(struct mapping *m)
{
    m->source_touched = 0;
    void *again = mmap(m->source, m->source_size, PROT_READ, MAP_SHARED | MAP_FIXED, m->fd, 0);
    return again == MAP_FAILED ? -1 : 0;
}

/* Where `length` bytes of the object are in our memory, or null. */
static char *content(struct server *s, struct mapping *m, int64_t offset, int64_t length)
{
    unsigned char there[512];
    if (m->kind == CONSTANT_SOURCE)
        return m->source;
    if (m->kind == MAP_SOURCE || m->kind == CACHED_MAP_SOURCE) {
        if (offset + length > m->source_size)
            return NULL;
        if (m->kind == CACHED_MAP_SOURCE) {
            int64_t pages = length / PAGE;
            if (pages > (int64_t)sizeof there || mincore(m->source + offset, length, there))
                return NULL;
            for (int64_t i = 0; i < pages; i++)
                if (!(there[i] & 1))
                    return NULL;
        }
        m->source_touched += length;
        if (m->source_touched > SOURCE_MOST && forget_source(m))
            return NULL;
        return m->source + offset;
    }
    struct iovec part = {.iov_base = s->staging, .iov_len = length};
    int flags = m->kind == CACHED_FILE_SOURCE ? RWF_NOWAIT : 0;
    return preadv2(m->fd, &part, 1, offset, flags) == length ? s->staging : NULL;
}

/* Copy a unit that nobody can write to, and say so where faults and Python look.  0, or -1 and
 * nothing is copied. */
static int copy_before_write(struct server *s, struct mapping *m, int64_t index)
{
    int64_t length = (int64_t)1 << m->shift;
    int row = m->shift - SMALLEST_SHIFT;
    if (!s->rooms || !m->copied || row < 0 || row >= SIZES)
        return -1;
    struct room *room = &s->rooms[row];
    if (room->taken == room->count) {
        s->dry |= (int64_t)1 << row;
        return -1;
    }
    struct slot *slot = &room->slots[room->taken];
    if (pread(m->memfd, slot->bytes, length, index << m->shift) != length)
        return -1;
    slot->number = m->number;
    slot->index = index;
    if (++room->taken == room->count)
        s->dry |= (int64_t)1 << row;
    s->copies_count++;
    m->copied[index] = 1;
    return 0;
}

/* Put content into a unit that is absent, and map it.  0, or -1 and it is absent as before. */
static int fill(struct server *s, struct mapping *m, int uffd, uint64_t start, int64_t offset,
                char *bytes, int asks)
{
    int64_t length = (int64_t)1 << m->shift;
    if (asks & WRITABLE) {
        if (pwrite(m->memfd, bytes, length, offset) != length ||
            (asks & COPIES && copy_before_write(s, m, offset >> m->shift))) {
            punch(m->memfd, offset, length);
            return -1;
        }
        struct uffdio_continue go = {.range = {.start = start, .len = length}};
        /* If that fails, the content is whole all the same: whoever faults next maps the rest. */
        if (ioctl(uffd, UFFDIO_CONTINUE, &go))
            wake(uffd, start, length);
        return 0;
    }
    int64_t done = 0;
    for (int tries = 0; tries < COPY_TRIES; tries++) {
        struct uffdio_copy copy = {.dst = start + done,
                                   .src = (uintptr_t)bytes + done,
                                   .len = length - done,
                                   .mode = COPY_WP};
        if (ioctl(uffd, UFFDIO_COPY, &copy) == 0)
            return 0;
        if (errno != EAGAIN)
            break;
        done += copy.copy > 0 ? copy.copy : 0;
    }
    punch(m->memfd, offset, length);
    return -1;
}

static int charge(struct server *s, struct mapping *m)
{
    int64_t size = (int64_t)1 << m->shift;
    struct account *a = m->budget, *p = m->parent;
    if (a->usage + size > a->limit || (p && p->usage + size > p->limit))
        return -1;
    a->usage += size;
    if (a->usage > a->peak)
        a->peak = a->usage;
    if (p) {
        p->usage += size;
        if (p->usage > p->peak)
            p->peak = p->usage;
    }
    if (a->usage > a->mark)
        s->pressed = 1;
    return 0;
}

static void uncharge(struct mapping *m)
{
    int64_t size = (int64_t)1 << m->shift;
    m->budget->usage -= size;
    if (m->parent)
        m->parent->usage -= size;
}

/* Whether a fault belongs to a stream of readahead, or is within its bounds by chance.  Of each
 * stream: its low and high bound, and its marker, or -1 if it is new. */
enum { NO_STREAM, BY_CHANCE, FOLLOWS };
static int follows(int64_t *heads, int64_t index)
{
    for (int64_t *head = heads + 3 * (STREAMS - 1); head >= heads; head -= 3)
        if (head[0] <= index && index <= head[1])
            return index == head[0] || index == head[1] ||
                           (index >= head[2] - NEAR && index <= head[2] + NEAR)
                       ? FOLLOWS
                       : BY_CHANCE;
    return NO_STREAM;
}

static void begin_stream(int64_t *heads, int64_t index)
{
    int64_t stream = heads[3 * STREAMS];
    heads[3 * STREAMS] = (stream + 1) % BEGINNINGS;
    heads[3 * stream] = index - 1;
    heads[3 * stream + 1] = index + 1;
    heads[3 * stream + 2] = -1;
}

/* The state of a unit.  Most states are changed once they have been looked at; so this counts as a
 * write from the beginning, for where no unit was ever touched, a read would map the page of zeros,
 * and the write after it would be another page fault of our own, which takes that away again. */
static uint8_t state_of(struct mapping *m, int64_t index)
{
    uint8_t state = 0;
    __atomic_compare_exchange_n(&m->flags[index], &state, 0, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return state;
}

static void log_unit(struct server *s, int64_t number, int64_t index)
{
    s->log[2 * s->log_count] = number;
    s->log[2 * s->log_count + 1] = index;
    s->log_count++;
}

/* Serve one message.  The entry of the table that did not do, or -1; OUT: served. */
enum { OUT = -2 };
static int serve_fault(struct server *s, struct client *client, struct uffd_msg *message)
{
    uint64_t address = message->arg.pagefault.address & ~(uint64_t)(PAGE - 1);
    int kind = message->arg.pagefault.flags & 7;
    struct vma *vma = find_vma(client, address);
    if (!vma || !vma->mapping->enabled)
        return -1;
    struct mapping *m = vma->mapping;
    int uffd = client->uffd;
    int64_t index = (address - vma->start + vma->offset) >> m->shift;
    int64_t size = (int64_t)1 << m->shift, offset = index << m->shift;
    uint64_t start = vma->start + offset - vma->offset;
    if (index >= m->whole || offset < (int64_t)vma->offset || start + size > vma->end)
        return -1;
    int writes = (kind & (WRITE | WP)) != 0;
    int held = writes && m->tracked == PROTECTED && !(m->copied && m->copied[index]);
    int which = held << 12 | (vma->writable != 0) << 11 | kind << 8 | state_of(m, index);
    struct entry entry = s->table[which];
    if (!entry.asks)
        return which;
    if (m->tracked && !writes && entry.asks & WRITABLE)
        return -1;
    if (!writes &&
        (((index + 1 < m->whole) && (m->flags[index + 1] & s->around)) ||
         (index && (m->flags[index - 1] & s->around))))
        return which;
    if (s->notes_count == s->notes_size || s->log_count + 2 > s->log_size ||
        s->touched_count == s->touched_size)
        return which;
    if (entry.asks & READS) {
        if (m->kind == NOTHING)
            return which;
        if (charge(s, m))
            return which;
        char *bytes = content(s, m, offset, size);
        if (!bytes || fill(s, m, uffd, start, offset, bytes, entry.asks)) {
            uncharge(m);
            return which;
        }
        log_unit(s, m->number, index);
    } else {
        if (entry.asks & COPIES && copy_before_write(s, m, index))
            return which;
        if (entry.asks & MAPS &&
            map_range(uffd, start, size, entry.asks & WRITABLE ? 0 : CONTINUE_WP, address))
            return which;
        if (entry.asks & UNPROTECTS && unprotect(uffd, start, size))
            return which;
    }
    if (m->tracked && writes)
        log_unit(s, -m->number, index);
    m->flags[index] = entry.state;
    m->uses[entry.outcome]++;
    if (!m->touched) {
        m->touched = 1;
        s->touched[s->touched_count++] = m;
    }
    if (m->heads && !(kind & WP)) {
        int found = follows(m->heads, index);
        if (found == FOLLOWS)
            s->notes[s->notes_count++] =
                (struct note){.address = address, .fd = uffd};
        else if (found == NO_STREAM)
            begin_stream(m->heads, index);
    }
    return OUT;
}

static void serve_client(struct server *s, struct client *client)
{
    struct uffd_msg messages[MESSAGES];
    ssize_t got = read(client->uffd, messages, sizeof messages);
    for (ssize_t i = 0; i < got / (ssize_t)sizeof *messages; i++) {
        struct uffd_msg *message = &messages[i];
        int left = -1;
        if (message->event == UFFD_EVENT_PAGEFAULT) {
            s->messages++;
            placement_follow(s->placement, message->arg.pagefault.feat.ptid);
            left = serve_fault(s, client, message);
        }
        if (left == OUT)
            continue;
        s->slow[s->slow_count++] = (struct slow){.event = message->event,
                                                 .flags = message->arg.pagefault.flags,
                                                 .address = message->arg.pagefault.address,
                                                 .tid = message->arg.pagefault.feat.ptid,
                                                 .fd = client->uffd,
                                                 .entry = left};
        if (message->event != UFFD_EVENT_PAGEFAULT) {
            struct slow *slow = &s->slow[s->slow_count - 1];
            memcpy(&slow->flags, &message->arg, 3 * sizeof(uint64_t));
        }
    }
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int serve(struct server *s, int timeout, int64_t most)
{
    struct epoll_event events[EVENTS];
    int64_t end = timeout > 0 ? now_ms() + timeout : 0;
    for (;;) {
        int wait = placement_wait(s->placement, timeout);
        int count = epoll_wait(s->epoll, events, EVENTS, wait);
        placement_beat(s->placement, count);
        if (count < 0)
            return errno == EINTR ? 0 : -errno;
        for (int i = 0; i < count; i++) {
            struct client *client = NULL;
            if (events[i].events == EPOLLIN)
                for (int64_t c = 0; c < s->clients_count && !client; c++)
                    if (s->clients[c]->uffd == events[i].data.fd)
                        client = s->clients[c];
            if (client && s->slow_count + MESSAGES <= s->slow_size)
                serve_client(s, client);
            else
                s->others[s->others_count++] =
                    (struct other){.fd = events[i].data.fd, .events = events[i].events};
        }
        if ((!count && wait == timeout) || s->others_count || s->slow_count || s->notes_count ||
            s->dry || s->pressed || s->messages >= most || s->log_count + 2 * MESSAGES > s->log_size ||
            s->touched_count + MESSAGES > s->touched_size)
            return 0;
        if (timeout > 0) {
            int64_t left = end - now_ms();
            if (left <= 0)
                return 0;
            timeout = left;
        }
    }
}

/* Serve until there is something for Python: a descriptor of its own, a fault that is not in the
 * table, a stream of readahead that goes on, a log that is full, no slot that is left, a budget
 * beyond its mark, `most` messages, or the time (ms, -1: none) is over. */
int rf_serve(struct server *s, int timeout, int64_t most)
{
    s->messages = s->slow_count = s->notes_count = s->others_count = 0;
    s->copies_count = s->dry = s->pressed = 0;
    int error = serve(s, timeout, most);
    placement_leave(s->placement);
    return error;
}

/* Map `size` bytes of a file to copy from; null if that is not possible. */
void *rf_map_source(int fd, int64_t size)
{
    void *source = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    return source == MAP_FAILED ? NULL : source;
}

void rf_unmap_source(void *source, int64_t size)
{
    munmap(source, size);
}

