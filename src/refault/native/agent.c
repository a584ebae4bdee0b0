/* A thread in the client that changes its mappings when the pager asks for it.
 *
 * Only code that runs in a process can map something into it.  This thread never takes the GIL, so
 * it answers while Python waits in a page fault.  It knows two commands:
 *
 *   OVERLAY  put the pages of a file over a part of a region
 *   RESTORE  put the region's own memory back, registered with the userfaultfd as before
 *
 * When it is not told anything it fills the page tables of the newest window, ahead of the reader.
 * Any other command ends that, and says that it has ended.
 *
 * Both prepare the mapping elsewhere and move it into place with one mremap, so that another thread
 * sees either the old or the new one.  For RESTORE that is a must: memory that is mapped and
 * not registered yet would give a thread that touches it a page of zeros, and put that into
 * the memory that everybody shares.  The registration survives the move because the userfaultfd
 * has EVENT_REMAP; the move then ends when the pager has read that event.
 *
 * All signals are blocked here: Python's handlers belong to its own threads.
 *
 * While the process forks there is no thread: a child must not get what is half done, and Python
 * (3.12 and later) warns of a fork in a process that has threads.  Commands wait in the socket.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { OVERLAY = 1, RESTORE = 2, PIECE = 2 << 20 };

struct command {
    int64_t what;
    uint64_t address, length, offset;
};

struct agent {
    int fd, stop, running;
    pid_t tid;
    pthread_t thread;
    uint64_t ahead, ahead_end; /* what is left to run ahead over, of the newest window */
};

static int place(void *prepared, struct command *c)
{
    void *where = (void *)(uintptr_t)c->address;
    if (madvise(prepared, c->length, MADV_DONTFORK) == 0 &&
        mremap(prepared, c->length, c->length, MREMAP_MAYMOVE | MREMAP_FIXED, where) == where)
        return 0;
    int error = errno;
    munmap(prepared, c->length);
    return error;
}

static int overlay(struct command *c, int file)
{
    void *prepared = mmap(NULL, c->length, PROT_READ, MAP_SHARED, file, c->offset);
    if (prepared == MAP_FAILED)
        return errno;
    madvise(prepared, c->length, MADV_SEQUENTIAL);
    return place(prepared, c);
}

/* Run ahead of the reader, a piece, so that it finds page tables filled; up to pages that are not in
 * memory: two who read the same file in order disturb the kernel's readahead, and are slower than
 * the reader alone. */
static void run_ahead(struct agent *agent)
{
    unsigned char there[PIECE / 4096];
    uint64_t left = agent->ahead_end - agent->ahead, length = left < PIECE ? left : PIECE;
    void *at = (void *)(uintptr_t)agent->ahead;
    if (mincore(at, length, there) || memchr(there, 0, (length + 4095) / 4096) ||
        madvise(at, length, MADV_POPULATE_READ))
        agent->ahead = agent->ahead_end = 0;
    else
        agent->ahead += length;
}

static int restore(struct command *c, int memory, int uffd)
{
    /* MAP_NORESERVE as the rest of the region has it: or the kernel does not join the two again,
     * and a range that crosses from one to the other cannot be answered with one call. */
    void *prepared =
        mmap(NULL, c->length, PROT_READ, MAP_SHARED | MAP_NORESERVE, memory, c->offset);
    if (prepared == MAP_FAILED)
        return errno;
    struct uffdio_register range = {
        .range = {.start = (uintptr_t)prepared, .len = c->length},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
                UFFDIO_REGISTER_MODE_WP};
    if (ioctl(uffd, UFFDIO_REGISTER, &range)) {
        int error = errno;
        munmap(prepared, c->length);
        return error;
    }
    return place(prepared, c);
}

static void *work(void *argument)
{
    struct agent *agent = argument;
    agent->tid = syscall(SYS_gettid);
    struct pollfd waits[2] = {{agent->stop, POLLIN, 0}, {agent->fd, POLLIN, 0}};
    for (;;) {
        int ready = poll(waits, 2, agent->ahead < agent->ahead_end ? 0 : -1);
        if (ready < 0 && errno != EINTR)
            return NULL;
        if (ready == 0)
            run_ahead(agent);
        if (ready <= 0)
            continue;
        if (waits[0].revents)
            return NULL;
        struct command command;
        union {
            char room[CMSG_SPACE(2 * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec part = {.iov_base = &command, .iov_len = sizeof command};
        struct msghdr message = {.msg_iov = &part,
                                 .msg_iovlen = 1,
                                 .msg_control = &control,
                                 .msg_controllen = sizeof control};
        ssize_t got = recvmsg(agent->fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0)
            return NULL;
        int fds[2] = {-1, -1}, count = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
                count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                memcpy(fds, CMSG_DATA(c), count * sizeof(int));
            }
        /* Descriptors that this process may not have are not there. */
        int32_t answer = message.msg_flags & MSG_CTRUNC ? EMFILE : EINVAL;
        if (command.what != OVERLAY &&
            (command.what != RESTORE ||
             (command.address < agent->ahead_end &&
              agent->ahead < command.address + command.length)))
            agent->ahead = agent->ahead_end = 0;
        if (got == sizeof command && command.what == OVERLAY && count == 1)
            answer = overlay(&command, fds[0]);
        else if (got == sizeof command && command.what == RESTORE && count == 2)
            answer = restore(&command, fds[0], fds[1]);
        for (int i = 0; i < count; i++)
            close(fds[i]);
        if (command.what == OVERLAY && answer == 0) {
            agent->ahead = command.address;
            agent->ahead_end = command.address + command.length;
        }
        if (send(agent->fd, &answer, sizeof answer, MSG_NOSIGNAL) < 0)
            return NULL;
    }
}

/* Let the thread run; 0 or an errno. */
int rf_agent_resume(void *handle)
{
    struct agent *agent = handle;
    sigset_t all, before;
    if (agent->running)
        return 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&agent->thread, NULL, work, agent);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    agent->running = error == 0;
    if (!error)
        pthread_setname_np(agent->thread, "refault-agent");
    return error;
}

/* End the thread, when it has done what it is at. */
void rf_agent_pause(void *handle)
{
    struct agent *agent = handle;
    if (!agent->running)
        return;
    eventfd_write(agent->stop, 1);
    pthread_join(agent->thread, NULL);
    agent->running = 0;
    /* For a moment more the kernel counts it. */
    for (int i = 0; i < 1000 && syscall(SYS_tgkill, getpid(), agent->tid, 0) == 0; i++)
        usleep(20);
    eventfd_t count;
    eventfd_read(agent->stop, &count);
}

/* Start a thread that obeys what comes from a socket, which is its own from now on.  Null: errno. */
void *rf_agent_start(int fd)
{
    struct agent *agent = calloc(1, sizeof *agent);
    if (!agent)
        return NULL;
    agent->fd = fd;
    agent->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = agent->stop < 0 ? errno : rf_agent_resume(agent);
    if (!error)
        return agent;
    if (agent->stop >= 0)
        close(agent->stop);
    free(agent);
    errno = error;
    return NULL;
}

/* Forget it all; in a forked child the thread is the parent's, and there is none to end. */
void rf_agent_forget(void *handle)
{
    struct agent *agent = handle;
    close(agent->fd);
    close(agent->stop);
    free(agent);
}
