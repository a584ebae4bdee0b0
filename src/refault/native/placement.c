/* The loop runs where the faults come from, and under a policy that leaves them there.
 *
 * A fault that is served on the CPU it came from costs two switches between processes.  Served on
 * another, idle CPU it costs waking that CPU up (an interrupt; in a virtual machine an exit to the
 * host and back).  Measured, a page of 4 KiB, two CPUs, nothing else running: 4.1 us against 70.
 * The scheduler prefers the idle one.  So the loop is bound to the CPU of the last faulting thread,
 * and follows it: /proc says where it is (10 us).
 *
 * The thread does not stay: select_task_rq_fair() puts whoever is woken on the idle CPU, and the
 * loop runs after it.  50 to 80 us a fault.  But select_idle_sibling() also takes a CPU for idle
 * if all that runs there is SCHED_IDLE, and asks the thread's own CPU first.  So while the loop is
 * SCHED_IDLE, the thread that it wakes stays, and preempts it: 4.4 us, and nobody's threads
 * had to be bound.
 *
 * Under SCHED_IDLE everything else goes first.  So:
 *   - only during a burst, and only in native code.  Whatever Python does is done as ever;
 *   - only if the way back is open: it needs CAP_SYS_NICE or RLIMIT_NICE.  A thread that ends
 *     at once tries it;
 *   - only while the loop is bound to a CPU; else it is itself woken on the idle one;
 *   - only if no more threads want to run than there are CPUs, of which the loop is one; else there
 *     is no idle CPU that the thread could be moved to;
 *   - a watching thread of the usual policy raises the loop if there is something to do and the
 *     loop does not come to it between two looks, 10 ms apart; or if at several looks in a row
 *     faults wait, and the loop had less than a quarter of the time: what shares its CPU leaves
 *     it a little.  Then bursts are served as ever for a while, which grows with every such case
 *     from 0.1 to 10 seconds, and shrinks with every other.
 *
 * Who changes the policy: the loop lowers itself (NORMAL to LOW); the loop (LOW to NORMAL) or the
 * watch (LOW to RAISING to NORMAL) raises it.  The loop sets the usual policy before it says
 * so, and after it has lowered itself it looks whether it was raised meanwhile: a loop that is
 * SCHED_IDLE is always watched, but for these few instructions.
 */
#define _GNU_SOURCE
#include "placement.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NORMAL, LOW, RAISING };
/* A burst: epoll had something so many times in a row, each within GAP of the one before, or
 * within AWAY if the loop did something else meanwhile. */
enum { BURST = 8 };
/* The loop is raised if there is nothing to do for so long. */
enum { CALM_MS = 5 };
static const int64_t GAP = 1000000, AWAY = 20000000, LOOK = 10000000;
/* A fault that is served in time waits for a part of the time that its service takes, and that is
 * less than a quarter: so often at looks in a row it does not wait by chance. */
enum { STARVED = 3, SHARE = 4 };
static const int64_t LEAST_PAUSE = 100000000, MOST_PAUSE = 10000000000;
/* Where a thread is, is looked up after so long; sooner, if some CPU is idle and faults come more
 * slowly than the same CPU would serve them: after so many in a row, twice as many whenever it
 * had not moved. */
static const int64_t LOOK_UP = 5000000, SLOW = 20000;
enum { FEWEST = 2, MOST = 1024 };

struct placement {
    cpu_set_t allowed;
    int cpu, enabled, anywhere;
    int64_t looked_up, slow, slow_needed;

    int cpus, loadavg, some_idle;
    int64_t counted;

    int may_lower, away;
    _Atomic int32_t policy;
    _Atomic int32_t waits; /* in epoll */
    _Atomic int64_t beats; /* how often it came back from there */
    _Atomic int64_t not_before, raised;
    _Atomic int64_t pause;
    int64_t lowered, now, last, row;
    pid_t loop;
    clockid_t clock; /* what time the loop has had */
    int epoll;
};

static int64_t ns_of(clockid_t clock)
{
    struct timespec t = {0};
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now_ns(void)
{
    return ns_of(CLOCK_MONOTONIC);
}

static int set_policy(pid_t tid, int policy)
{
    struct sched_param none = {0};
    return sched_setscheduler(tid, policy, &none);
}

/* The CPU that a thread ran on last, or -1. */
static int cpu_of(int64_t tid)
{
    char text[1024], name[64];
    snprintf(name, sizeof name, "/proc/%d/task/%d/stat", (int)tid, (int)tid);
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    /* Field 39; the second one may hold blanks, and ends with the last bracket. */
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 39; field++)
        at = strchr(at + 1, ' ');
    return at ? atoi(at + 1) : -1;
}

static void bind_to(struct placement *place, int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one))
        place->enabled = 0;
    else
        place->cpu = cpu;
}

/* Whether some CPU may have nothing to run, looked up now and then.  The fourth field of the file: how
 * many threads run or want to. */
static int some_cpu_is_idle(struct placement *place)
{
    char text[128];
    if (place->now - place->counted < LOOK_UP)
        return place->some_idle;
    place->counted = place->now;
    ssize_t length = pread(place->loadavg, text, sizeof text - 1, 0);
    text[length > 0 ? length : 0] = 0;
    char *at = text;
    for (int field = 1; at && field < 4; field++)
        at = strchr(at + 1, ' ');
    return place->some_idle = !at || atoi(at + 1) <= place->cpus;
}

void placement_follow(struct placement *place, int64_t tid)
{
    if (!place || !place->enabled || place->anywhere)
        return;
    int64_t now = place->now;
    if (now - place->looked_up < LOOK_UP &&
        (place->slow < place->slow_needed || !some_cpu_is_idle(place)))
        return;
    int cpu = cpu_of(tid), moved = cpu != place->cpu;
    place->looked_up = now;
    place->slow = 0;
    place->slow_needed = moved ? FEWEST : place->slow_needed * 2;
    if (place->slow_needed > MOST)
        place->slow_needed = MOST;
    if (moved && cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &place->allowed))
        bind_to(place, cpu);
}

static void lower(struct placement *place)
{
    atomic_store(&place->policy, LOW);
    syscall(SYS_futex, &place->policy, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    set_policy(0, SCHED_IDLE);
    if (atomic_load(&place->policy) != LOW)
        set_policy(0, SCHED_OTHER);
    place->lowered++;
}

void placement_leave(struct placement *place)
{
    int32_t low = LOW;
    if (!place)
        return;
    place->away = 1;
    if (atomic_load(&place->policy) == NORMAL)
        return;
    set_policy(0, SCHED_OTHER);
    if (atomic_compare_exchange_strong(&place->policy, &low, NORMAL)) {
        place->pause -= place->pause > LEAST_PAUSE ? place->pause / 16 : 0;
        return;
    }
    while (atomic_load(&place->policy) == RAISING)
        sched_yield();
}

int placement_wait(struct placement *place, int timeout)
{
    if (!place)
        return timeout;
    atomic_store(&place->waits, 1);
    if (atomic_load(&place->policy) != LOW)
        return timeout;
    return timeout >= 0 && timeout < CALM_MS ? timeout : CALM_MS;
}

void placement_beat(struct placement *place, int events)
{
    if (!place)
        return;
    atomic_store(&place->waits, 0);
    atomic_fetch_add(&place->beats, 1);
    if (!events) {
        place->row = 0;
        placement_leave(place);
        return;
    }
    int64_t now = place->now = now_ns(), gap = now - place->last;
    place->last = now;
    place->row = gap < (place->away ? AWAY : GAP) ? place->row + 1 : 0;
    if (gap > SLOW && gap < GAP) {
        place->slow += !place->away;
    } else {
        place->slow = 0;
        place->slow_needed = FEWEST;
    }
    place->away = 0;
    if (place->row >= BURST && place->may_lower && place->cpu >= 0 &&
        atomic_load(&place->policy) == NORMAL && now >= atomic_load(&place->not_before) &&
        some_cpu_is_idle(place))
        lower(place);
}

static int something_waits(struct placement *place)
{
    struct epoll_event event;
    return epoll_wait(place->epoll, &event, 1, 0) > 0;
}

static void raise_other(struct placement *place)
{
    int32_t low = LOW;
    if (!atomic_compare_exchange_strong(&place->policy, &low, RAISING))
        return;
    set_policy(place->loop, SCHED_OTHER);
    place->pause = place->pause * 2 < MOST_PAUSE ? place->pause * 2 : MOST_PAUSE;
    atomic_store(&place->not_before, now_ns() + place->pause);
    atomic_fetch_add(&place->raised, 1);
    atomic_store(&place->policy, NORMAL);
}

static void *watch(void *argument)
{
    struct placement *place = argument;
    const struct timespec look = {.tv_nsec = LOOK};
    int64_t before = -1, had = 0, at = 0;
    int starved = 0;
    for (;;) {
        if (atomic_load(&place->policy) != LOW)
            before = -1, starved = 0;
        while (atomic_load(&place->policy) != LOW)
            syscall(SYS_futex, &place->policy, FUTEX_WAIT_PRIVATE, NORMAL, NULL, NULL, 0);
        if (!starved)
            had = ns_of(place->clock), at = now_ns();
        nanosleep(&look, NULL);
        int64_t beats = atomic_load(&place->beats);
        int waits = something_waits(place), late = waits || !atomic_load(&place->waits);
        starved = waits && (ns_of(place->clock) - had) * SHARE < now_ns() - at ? starved + 1 : 0;
        if ((late && beats == before) || starved == STARVED)
            raise_other(place), starved = 0;
        before = late ? beats : -1;
    }
    return NULL;
}

static void *try_both_ways(void *result)
{
    *(int *)result = !set_policy(0, SCHED_IDLE) && !set_policy(0, SCHED_OTHER);
    return NULL;
}

static int can_lower(struct placement *place)
{
    int both_ways = 0;
    pthread_t thread;
    if (sched_getscheduler(0) != SCHED_OTHER ||
        pthread_create(&thread, NULL, try_both_ways, &both_ways))
        return 0;
    pthread_join(thread, NULL);
    if (!both_ways || pthread_create(&thread, NULL, watch, place))
        return 0;
    pthread_detach(thread);
    return 1;
}

/* For the calling thread, the loop; it lasts as long as the process.  `cpus` are there: with 0 it
 * is never lowered, with more than there are without asking whether one is idle.  Null without
 * memory. */
struct placement *rf_placement_new(int epoll, int cpus)
{
    struct placement *place = calloc(1, sizeof *place);
    if (!place)
        return NULL;
    place->cpu = -1;
    place->slow_needed = FEWEST;
    place->enabled = !sched_getaffinity(0, sizeof place->allowed, &place->allowed) &&
                     CPU_COUNT(&place->allowed) > 1;
    place->epoll = epoll;
    place->loop = syscall(SYS_gettid);
    int no_clock = pthread_getcpuclockid(pthread_self(), &place->clock);
    place->pause = LEAST_PAUSE / 2;
    place->loadavg = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    place->cpus = cpus;
    place->may_lower = cpus && place->enabled && !no_clock && can_lower(place);
    return place;
}

/* Bind the loop to no CPU, until it is called with 0. */
void rf_placement_anywhere(struct placement *place, int anywhere)
{
    place->anywhere = anywhere;
    if (anywhere && place->cpu >= 0) {
        sched_setaffinity(0, sizeof place->allowed, &place->allowed);
        place->cpu = -1;
    }
}

/* How many bursts were served under SCHED_IDLE, and how many of them the watch had to end. */
void rf_placement_counts(struct placement *place, int64_t *counts)
{
    counts[0] = place->lowered;
    counts[1] = atomic_load(&place->raised);
}
