/* See placement.c. */
#ifndef REFAULT_PLACEMENT_H
#define REFAULT_PLACEMENT_H

#include <stdint.h>

struct placement;

/* The loop is about to wait in epoll: how many milliseconds at most. */
int placement_wait(struct placement *place, int timeout);
/* The loop is back from epoll, with so many events. */
void placement_beat(struct placement *place, int events);
/* A fault of thread `tid` arrived. */
void placement_follow(struct placement *place, int64_t tid);
/* The loop is about to do something else than to serve. */
void placement_leave(struct placement *place);

#endif
