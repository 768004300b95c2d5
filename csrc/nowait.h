/* nowait.h: reads and writes of TUN descriptors that never wait, whatever the kernel has and whoever holds a duplicate.
 *
 * All calls but hp_nowait_close() come from one thread, which has signals blocked or does not mind one more.
 */
#ifndef HP_NOWAIT_H
#define HP_NOWAIT_H

#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#include "memory.h"

typedef struct hp_nowait {
  bool plain; /* the kernel refuses RWF_NOWAIT */
  bool armed;
  timer_t timer; /* only when plain */
} hp_nowait;

/* Finds out what the kernel has. -1 with *error filled when nothing here would keep a read from waiting. */
int hp_nowait_open(hp_nowait *nowait, hp_error *error);
void hp_nowait_close(hp_nowait *nowait);
/* As read() and writev(), but never wait. ETIMEDOUT: it has waited, for 10 ms at most, because somebody had cleared
 * O_NONBLOCK; that is set again. */
ssize_t hp_nowait_read(hp_nowait *nowait, int fd, void *at, size_t length);
ssize_t hp_nowait_write(hp_nowait *nowait, int fd, const struct iovec *vector, int count);
/* The thread is going to sleep, and nothing shall wake it. */
void hp_nowait_sleep(hp_nowait *nowait);

#endif
