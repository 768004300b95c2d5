/* nowait.h: reads and writes of TUN descriptors that never wait, whatever the kernel has and whoever holds a duplicate.
 *
 * All calls but hp_nowait_close() come from one thread, which has signals blocked or does not mind one more. Needs
 * _GNU_SOURCE.
 */
#ifndef HP_NOWAIT_H
#define HP_NOWAIT_H

#include <errno.h>
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
/* By plain calls, once RWF_NOWAIT was refused (errno). */
ssize_t hp_nowait_read_plain(hp_nowait *nowait, int fd, const struct iovec *vector);
ssize_t hp_nowait_write_plain(hp_nowait *nowait, int fd, const struct iovec *vector, int count);

static inline bool hp_nowait_refused(void) { return errno == EOPNOTSUPP || errno == ENOSYS; }

/* As read() and writev(), but never wait. ETIMEDOUT: it has waited, for 10 ms at most, because somebody had cleared
 * O_NONBLOCK; that is set again. */
static inline ssize_t hp_nowait_read(hp_nowait *nowait, int fd, void *at, size_t length) {
  struct iovec vector = {at, length};
  if (!nowait->plain) {
    ssize_t result = preadv2(fd, &vector, 1, -1, RWF_NOWAIT);
    if (result >= 0 || !hp_nowait_refused())
      return result;
  }
  return hp_nowait_read_plain(nowait, fd, &vector);
}

static inline ssize_t hp_nowait_write(hp_nowait *nowait, int fd, const struct iovec *vector, int count) {
  if (!nowait->plain) {
    ssize_t result = pwritev2(fd, vector, count, -1, RWF_NOWAIT);
    if (result >= 0 || !hp_nowait_refused())
      return result;
  }
  return hp_nowait_write_plain(nowait, fd, vector, count);
}
/* The thread is going to sleep, and nothing shall wake it. */
void hp_nowait_sleep(hp_nowait *nowait);

#endif
