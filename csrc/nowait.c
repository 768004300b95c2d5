/* nowait.c: reads and writes of TUN descriptors that never wait.
 *
 * Theory of operation. preadv2() and pwritev2() with RWF_NOWAIT do not wait, whatever anybody does to the descriptor.
 * The kernel takes them for a TUN from 6.4 on (drivers/net/tun.c, FMODE_NOWAIT); before, it answers EOPNOTSUPP. Then
 * there is only O_NONBLOCK, which belongs to the open file: whoever holds a duplicate may clear it at any moment, also
 * between looking and reading, and drain the queue as well, so that readiness says nothing either. A second open file
 * of the same queue there is not.
 *
 * So on such a kernel reads and writes are plain ones, and a timer guards them: as long as the thread is at work it is
 * sent a signal every 10 ms, which does nothing but end a call that waits (tun_ring_recv() and sock_alloc_send_pskb()
 * wait interruptibly). It goes on, rather than going off once, since a signal that comes just before the call would
 * end nothing. The descriptor is made non-blocking again, and the caller told: who does that again and again is read
 * from less and less. The signal is one that nobody in this process has a use for, sent to this thread alone.
 *
 * What a kernel takes is found out by asking it, not by its version: distributions carry changes back.
 */
#define _GNU_SOURCE
#include "nowait.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { WAITS_MOST = 10 * 1000 * 1000 }; /* ns */

#ifndef sigev_notify_thread_id /* not in every glibc */
#define sigev_notify_thread_id _sigev_un._tid
#endif

static pthread_mutex_t choosing = PTHREAD_MUTEX_INITIALIZER;
static int chosen; /* the signal; 0: none yet */

static void nothing(int number) { (void)number; }

/* The last real-time signal that nobody handles; 0 when there is none. */
static int choose_signal(void) {
  struct sigaction ours = {.sa_handler = nothing}, before; /* no SA_RESTART: it is to end what waits */
  pthread_mutex_lock(&choosing);
  for (int number = SIGRTMAX; !chosen && number >= SIGRTMIN; number--)
    if (sigaction(number, NULL, &before) == 0 && before.sa_handler == SIG_DFL && sigaction(number, &ours, NULL) == 0)
      chosen = number;
  pthread_mutex_unlock(&choosing);
  return chosen;
}

/* From now on by plain calls; false and errno when these cannot be guarded. */
static bool go_plain(hp_nowait *nowait) {
  int number = choose_signal();
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number};
  sigset_t signals;
  if (!number) {
    errno = EBUSY;
    return false;
  }
  event.sigev_notify_thread_id = gettid();
  if (timer_create(CLOCK_MONOTONIC, &event, &nowait->timer))
    return false;
  sigemptyset(&signals);
  sigaddset(&signals, number);
  pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
  nowait->plain = true;
  return true;
}

/* An open file that is no device yet answers EBADFD, when the kernel lets the read come so far. */
static bool kernel_refuses(void) {
  char byte;
  struct iovec vector = {&byte, 1};
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return false; /* it will show with the first read */
  bool refuses = preadv2(fd, &vector, 1, -1, RWF_NOWAIT) < 0 && hp_nowait_refused();
  close(fd);
  return refuses;
}

int hp_nowait_open(hp_nowait *nowait, hp_error *error) {
  struct utsname system;
  *nowait = (hp_nowait){0};
  if (!kernel_refuses() || go_plain(nowait))
    return 0;
  int code = errno;
  return hp_fail(
      error, code,
      "epoll: Linux %s cannot read a TUN without waiting (RWF_NOWAIT, from 6.4 on), and no timer can be made "
      "to end reads: %s; allow timer_create(), or use Linux 6.4 or newer",
      uname(&system) ? "?" : system.release, strerror(code));
}

void hp_nowait_close(hp_nowait *nowait) {
  if (nowait->plain)
    timer_delete(nowait->timer);
  *nowait = (hp_nowait){0};
}

static void set_timer(hp_nowait *nowait, long interval) {
  struct itimerspec times = {.it_value.tv_nsec = interval, .it_interval.tv_nsec = interval};
  timer_settime(nowait->timer, 0, &times, NULL);
  nowait->armed = interval != 0;
}

void hp_nowait_sleep(hp_nowait *nowait) {
  if (nowait->armed)
    set_timer(nowait, 0);
}

/* Ready for plain calls; false when there are none. errno stays then. */
static bool guard(hp_nowait *nowait) {
  int code = errno;
  if (!nowait->plain && !go_plain(nowait)) {
    errno = code;
    return false;
  }
  if (!nowait->armed)
    set_timer(nowait, WAITS_MOST);
  return true;
}

/* Whether a plain call was ended by a signal, and has not waited. Has waited: errno is ETIMEDOUT. */
static bool undone(int fd, ssize_t result) {
  if (result >= 0 || errno != EINTR)
    return false;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_NONBLOCK))
    return flags >= 0;
  fcntl(fd, F_SETFL, flags | O_NONBLOCK);
  errno = ETIMEDOUT;
  return false;
}

ssize_t hp_nowait_read_plain(hp_nowait *nowait, int fd, const struct iovec *vector) {
  ssize_t result = -1;
  if (guard(nowait))
    do
      result = readv(fd, vector, 1);
    while (undone(fd, result));
  return result;
}

ssize_t hp_nowait_write_plain(hp_nowait *nowait, int fd, const struct iovec *vector, int count) {
  ssize_t result = -1;
  if (guard(nowait))
    do
      result = writev(fd, vector, count);
    while (undone(fd, result));
  return result;
}
