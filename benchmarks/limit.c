/* The yardstick: the least that a page fault served by user space can cost.
 *
 *     limit MODE UNIT UNITS TOUCHES WARM THREADS HANDLER FAULT_CPU HANDLER_CPU [FILE]
 *
 * MODE     copy      MISSING, resolved by UFFDIO_COPY into private anonymous memory
 *          share     MISSING in a memfd, resolved by UFFDIO_COPY
 *          fill      MISSING in a memfd: pwrite to it, then UFFDIO_CONTINUE (the calls refault makes)
 *          continue  MINOR in a memfd that holds everything: UFFDIO_CONTINUE alone
 * HANDLER  process or thread
 * CPU      a number, or -1: wherever the scheduler puts it
 * FILE     read with pread for every page (but not continue); without it the bytes come from memory
 *
 * TOUCHES units, spread evenly over UNITS, are read in a shuffled order, each once, after WARM
 * others that are not counted.  Threads have disjoint parts.  One line of JSON is printed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "touch.c"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

enum mode { COPY, SHARE, FILL, CONTINUE };

static enum mode mode;
static size_t unit, size;
static int uffd, memfd = -1, file = -1, handler_cpu;
static char *region, *staging;

static void die(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static void pin(int cpu)
{
    cpu_set_t set;
    if (cpu < 0)
        return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set))
        die("sched_setaffinity");
}

static void resolve(size_t offset)
{
    if (mode != CONTINUE && file >= 0 && pread(file, staging, unit, offset) != (ssize_t)unit)
        die("pread");
    if (mode == COPY || mode == SHARE) {
        struct uffdio_copy copy = {
            .dst = (uintptr_t)region + offset, .src = (uintptr_t)staging, .len = unit};
        if (ioctl(uffd, UFFDIO_COPY, &copy) && errno != EEXIST)
            die("UFFDIO_COPY");
        return;
    }
    if (mode == FILL && pwrite(memfd, staging, unit, offset) != (ssize_t)unit)
        die("pwrite");
    struct uffdio_continue go = {.range = {.start = (uintptr_t)region + offset, .len = unit}};
    if (ioctl(uffd, UFFDIO_CONTINUE, &go) && errno != EEXIST)
        die("UFFDIO_CONTINUE");
}

static void *handle(void *unused)
{
    struct uffd_msg messages[16];
    (void)unused;
    pin(handler_cpu);
    for (;;) {
        ssize_t got = read(uffd, messages, sizeof messages);
        if (got < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            die("read");
        }
        for (size_t i = 0; i < got / sizeof *messages; i++)
            resolve((messages[i].arg.pagefault.address - (uintptr_t)region) & ~(unit - 1));
    }
    return NULL;
}

static int open_userfaultfd(void)
{
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd = -1;
    if (device >= 0) {
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
        close(device);
    }
    if (fd < 0)
        fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (fd < 0)
        die("userfaultfd");
    return fd;
}

static void set_up(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    uffd = open_userfaultfd();
    if (mode != COPY)
        api.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
    if (ioctl(uffd, UFFDIO_API, &api))
        die("UFFDIO_API");
    /* Whole units: a unit that no page boundary of a larger kind crosses. */
    if (mode == COPY) {
        char *whole = mmap(NULL, size + unit, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (whole == MAP_FAILED)
            die("mmap");
        region = (char *)(((uintptr_t)whole + unit - 1) & ~(unit - 1));
    } else {
        memfd = memfd_create("limit", MFD_CLOEXEC);
        if (memfd < 0 || ftruncate(memfd, size))
            die("memfd");
        char *whole = mmap(NULL, size + unit, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        region = (char *)(((uintptr_t)whole + unit - 1) & ~(unit - 1));
        if (whole == MAP_FAILED || mmap(region, size, PROT_READ | PROT_WRITE,
                                        MAP_SHARED | MAP_FIXED, memfd, 0) == MAP_FAILED)
            die("mmap");
        range.mode |= UFFDIO_REGISTER_MODE_MINOR;
    }
    range.range.start = (uintptr_t)region;
    range.range.len = size;
    if (ioctl(uffd, UFFDIO_REGISTER, &range))
        die("UFFDIO_REGISTER");
    staging = aligned_alloc(4096, unit);
    memset(staging, 7, unit);
}

/* First touch of a guest's memory is slow: let it not be ours. */
static void warm(size_t bytes)
{
    char *pool = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pool == MAP_FAILED)
        die("mmap");
    for (size_t at = 0; at < bytes; at += 4096)
        pool[at] = 1;
    munmap(pool, bytes);
}

struct part {
    uint64_t *offsets, count, begin, end;
    uint32_t *ns;
    pthread_barrier_t *barrier;
};

static void *fault(void *argument)
{
    struct part *part = argument;
    pthread_barrier_wait(part->barrier);
    part->begin = now_ns();
    touch(region, part->offsets, part->count, READ, 1, part->ns);
    part->end = now_ns();
    return NULL;
}

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    if (argc < 10) {
        fprintf(stderr, "usage: limit MODE UNIT UNITS TOUCHES WARM THREADS HANDLER FAULT_CPU "
                        "HANDLER_CPU [FILE]\n");
        return 2;
    }
    static const char *const names[] = {"copy", "share", "fill", "continue"};
    while (mode < CONTINUE && strcmp(argv[1], names[mode]))
        mode++;
    unit = strtoull(argv[2], NULL, 0);
    uint64_t units = strtoull(argv[3], NULL, 0), touches = strtoull(argv[4], NULL, 0);
    uint64_t warm_touches = strtoull(argv[5], NULL, 0), all = touches + warm_touches;
    uint64_t threads = strtoull(argv[6], NULL, 0);
    int process = !strcmp(argv[7], "process"), fault_cpu = atoi(argv[8]);
    handler_cpu = atoi(argv[9]);
    size = unit * units;
    if (argc > 10 && (file = open(argv[10], O_RDONLY | O_CLOEXEC)) < 0)
        die(argv[10]);
    if (all > units || !threads) {
        fprintf(stderr, "limit: more touches than units\n");
        return 2;
    }
    warm(all * unit);
    set_up();
    if (mode == CONTINUE)
        for (uint64_t i = 0; i < units; i++)
            if (pwrite(memfd, staging, unit, i * unit) != (ssize_t)unit)
                die("pwrite");

    uint64_t *offsets = malloc(all * sizeof *offsets), random = 88172645463325252u;
    uint32_t *ns = calloc(all, sizeof *ns);
    memset(ns, 1, all * sizeof *ns);
    for (uint64_t i = 0; i < all; i++)
        offsets[i] = units / all * i * unit;
    for (uint64_t i = all - 1; i > 0; i--) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint64_t j = random % (i + 1), kept = offsets[i];
        offsets[i] = offsets[j], offsets[j] = kept;
    }

    pid_t child = 0, parent = getpid();
    pthread_t thread;
    if (process) {
        child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            handle(NULL);
        }
    } else if (pthread_create(&thread, NULL, handle, NULL)) {
        die("pthread_create");
    }
    pin(fault_cpu);
    touch(region, offsets, warm_touches, READ, 1, ns);

    struct part *parts = calloc(threads, sizeof *parts);
    pthread_t *ids = calloc(threads, sizeof *ids);
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, threads);
    for (uint64_t i = 0; i < threads; i++) {
        uint64_t first = warm_touches + touches * i / threads;
        uint64_t last = warm_touches + touches * (i + 1) / threads;
        parts[i] = (struct part){offsets + first, last - first, 0, 0, ns + first, &barrier};
        if (i && pthread_create(&ids[i], NULL, fault, &parts[i]))
            die("pthread_create");
    }
    fault(&parts[0]);
    uint64_t begin = parts[0].begin, end = parts[0].end;
    double fastest = 1e18, slowest = 0;
    for (uint64_t i = 0; i < threads; i++) {
        if (i)
            pthread_join(ids[i], NULL);
        begin = parts[i].begin < begin ? parts[i].begin : begin;
        end = parts[i].end > end ? parts[i].end : end;
        double mean = (double)(parts[i].end - parts[i].begin) / parts[i].count;
        fastest = mean < fastest ? mean : fastest;
        slowest = mean > slowest ? mean : slowest;
    }
    if (child) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    qsort(ns + warm_touches, touches, sizeof *ns, ascending);
    printf("{\"us\": %.4f, \"p50\": %.3f, \"p99\": %.3f, \"max\": %.3f, \"per_second\": %.1f, "
           "\"unfairness\": %.3f}\n",
           (end - begin) / 1e3 / touches, ns[warm_touches + touches / 2] / 1e3,
           ns[warm_touches + touches * 99 / 100] / 1e3, ns[all - 1] / 1e3,
           touches * 1e9 / (end - begin), slowest / fastest);
    return 0;
}
