/* io_poll.c: the I/O engine on epoll, for kernels and sandboxes without io_uring.
 *
 * Theory of operation. One epoll set per buffer group, level-triggered, and one poll() over the sets and
 * the descriptors that wake it to wait on. A group without a free buffer is left out of that poll(): there is
 * nothing to spin on, and the other group goes on. A packet is read into a buffer of its link's group
 * with one system call and written with another, when it is sent.
 *
 * Fairness. A ready link has at most TURN_PACKETS packets or TURN_BYTES in a row; then the next ready one has its turn.
 * The list of ready links is worked off over as many receive() calls as that takes, and only then asked
 * for anew; the groups take turns in being first.
 *
 * Reads and writes never wait (nowait.c): whoever holds a duplicate of a descriptor may clear its O_NONBLOCK, and that
 * must not stop the worker.
 *
 * A link whose read fails is taken out of its set and rests (rest.c), then it is put back. One that made a call wait is
 * not written to meanwhile either.
 *
 * epoll keeps no reference to a file, so remove() has nothing to wait for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "coalesce.h"
#include "io_common.h"
#include "nowait.h"

enum { WAKE = HP_GROUPS, OTHERS, WATCHED }; /* descriptors that it waits for, after a set for each group */
enum { TURN_PACKETS = 16, TURN_BYTES = 256 << 10, READY_LINKS = 64 };
#define NO_LINK UINT32_MAX

struct link {
  int fd;
  uint8_t group;
  bool added;
  bool watched; /* in the epoll set: neither gone nor resting */
  bool resting;
  hp_reading reading;
};

struct group {
  int epoll;
  uint32_t *free; /* a stack of buffer numbers: the last used is the warmest */
  uint32_t free_count;
  struct epoll_event ready[READY_LINKS];
  int ready_count;
  int ready_next; /* before it: had their turn */
};

struct hp_io {
  hp_io_config config;
  hp_buffers buffers;
  hp_coalescer coalescer;
  struct group groups[HP_GROUPS];
  struct link *links;
  hp_rests rests;
  hp_nowait nowait;
  hp_spin spin;
  int first; /* group that is first in the next receive() */
};

static void give_back(hp_io *io, uint32_t number) {
  struct group *group = &io->groups[hp_buffer_group(&io->buffers, number)];
  group->free[group->free_count++] = number;
}

/* ---- life ---- */

static const char *poll_probe(void) { return ""; }

static void free_all(hp_io *io) {
  for (int g = 0; g < HP_GROUPS; g++) {
    if (io->groups[g].epoll >= 0)
      close(io->groups[g].epoll);
    free(io->groups[g].free);
  }
  hp_nowait_close(&io->nowait);
  hp_coalesce_close(&io->coalescer);
  hp_buffers_free(&io->buffers);
  hp_rests_close(&io->rests);
  free(io->links);
  free(io);
}

static void write_chain(hp_io *io, uint32_t head);

static int set_up(hp_io *io, hp_error *error) {
  if (hp_nowait_open(&io->nowait, error) || hp_buffers_new(&io->buffers, io->config.buffers, error))
    return -1;
  io->links = calloc(io->config.max_links, sizeof *io->links);
  if (!io->links || hp_rests_open(&io->rests, io->config.max_links) ||
      hp_coalesce_open(&io->coalescer, &io->buffers, io->config.max_links, io, write_chain))
    return hp_fail(error, ENOMEM, "epoll: no memory for %u links; lower max_links", io->config.max_links);
  for (int g = 0; g < HP_GROUPS; g++) {
    struct group *group = &io->groups[g];
    group->free = calloc(io->buffers.per_group, sizeof *group->free);
    if (!group->free)
      return hp_fail(error, ENOMEM, "epoll: no memory for %u buffers; lower buffers", io->buffers.per_group);
    group->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (group->epoll < 0)
      return hp_fail(error, errno, "epoll: cannot make an epoll set: %s; raise RLIMIT_NOFILE", strerror(errno));
    for (uint32_t i = io->buffers.per_group; i-- > 0;)
      give_back(io, (uint32_t)g * io->buffers.per_group + i);
  }
  return 0;
}

static hp_io *poll_open(const hp_io_config *config, hp_error *error) {
  if (hp_io_check_config(config, error))
    return NULL;
  hp_io *io = calloc(1, sizeof *io);
  if (!io) {
    hp_fail(error, ENOMEM, "epoll: no memory");
    return NULL;
  }
  io->config = *config;
  for (int g = 0; g < HP_GROUPS; g++)
    io->groups[g].epoll = -1;
  if (set_up(io, error)) {
    free_all(io);
    return NULL;
  }
  return io;
}

static int poll_add(hp_io *io, uint32_t number, int fd, int group, hp_error *error) {
  bool taken = number < io->config.max_links && io->links[number].added;
  if (hp_io_check_add(&io->config, number, fd, group, taken, error))
    return -1;
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
  bool receives = group != HP_GROUP_NONE;
  if (receives && epoll_ctl(io->groups[group].epoll, EPOLL_CTL_ADD, fd, &event)) {
    const char *remedy = errno == ENOSPC ? "; raise fs.epoll.max_user_watches" : "";
    return hp_fail(error, errno, "link %u: epoll does not take descriptor %d: %s%s", number, fd, strerror(errno),
                   remedy);
  }
  io->links[number] = (struct link){.fd = fd, .group = (uint8_t)group, .added = true, .watched = receives};
  hp_coalesce_link(&io->coalescer, number);
  return 0;
}

static void unwatch(hp_io *io, uint32_t number) {
  struct link *link = &io->links[number];
  if (link->group == HP_GROUP_NONE)
    return;
  struct group *group = &io->groups[link->group];
  if (link->watched)
    epoll_ctl(group->epoll, EPOLL_CTL_DEL, link->fd, NULL);
  link->watched = false;
  for (int i = group->ready_next; i < group->ready_count; i++)
    if (group->ready[i].data.u32 == number)
      group->ready[i].data.u32 = NO_LINK;
}

static void poll_remove(hp_io *io, uint32_t number) {
  if (number >= io->config.max_links || !io->links[number].added)
    return;
  struct link *link = &io->links[number];
  hp_coalesce_flush(&io->coalescer);
  unwatch(io, number);
  if (link->resting)
    hp_rest_end(&io->rests, number);
  hp_reading_ends(&link->reading, &io->config);
  *link = (struct link){0};
}

static void poll_close(hp_io *io) {
  hp_coalesce_flush(&io->coalescer);
  free_all(io);
}

/* ---- resting ---- */

static void failed(hp_io *io, uint32_t number, int code) {
  struct link *link = &io->links[number];
  uint32_t length = link->resting ? 0 : hp_reading_failed(&link->reading, &io->config, number, code);
  if (!length)
    return;
  unwatch(io, number);
  link->resting = true;
  hp_rest_begin(&io->rests, number, length);
}

static void rested(hp_io *io, uint32_t number) {
  struct link *link = &io->links[number];
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = number};
  link->resting = false;
  if (link->group == HP_GROUP_NONE)
    return;
  if (epoll_ctl(io->groups[link->group].epoll, EPOLL_CTL_ADD, link->fd, &event))
    failed(io, number, errno);
  else
    link->watched = true;
}

/* ---- sending ---- */

/* As hp_nowait_write(). A link that makes others wait is written to no more than it is read from. */
static ssize_t write_to(hp_io *io, uint32_t number, const struct iovec *vector, int count) {
  struct link *link = &io->links[number];
  if (link->resting && link->reading.waits) {
    errno = EAGAIN;
    return -1;
  }
  ssize_t written = hp_nowait_write(&io->nowait, link->fd, vector, count);
  if (written < 0 && errno == ETIMEDOUT) {
    failed(io, number, ETIMEDOUT);
    errno = EAGAIN;
  }
  return written;
}

static void write_chain(hp_io *io, uint32_t head) {
  struct iovec vector[HP_BATCH];
  const hp_buffer_note *note = &io->buffers.notes[head];
  ssize_t written = -1;
  errno = EBADF;
  if (note->link < io->config.max_links && io->links[note->link].added) {
    int count = hp_chain_vector(&io->buffers, head, vector);
    written = write_to(io, note->link, vector, count);
  }
  if (written < 0 && hp_coalesce_refused(&io->coalescer, head, errno)) {
    hp_chain_split(&io->buffers, head, io, write_chain);
    return;
  }
  if (written < 0)
    hp_chain_failed(&io->config, &io->buffers, head, errno);
  else
    io->config.counters->writes++;
  for (uint32_t next, b = head; b != HP_NO_BUFFER; b = next) {
    next = io->buffers.notes[b].next;
    give_back(io, b);
  }
}

static void poll_send(hp_io *io, const hp_packet *packet) { hp_coalesce_send(&io->coalescer, packet); }

static void poll_inject(hp_io *io, uint32_t number, const uint8_t *data, uint32_t length) {
  struct iovec vector = {(void *)(uintptr_t)data, length};
  bool known = number < io->config.max_links && io->links[number].added;
  errno = EBADF;
  if (!known || write_to(io, number, &vector, 1) < 0)
    hp_packet_failed(&io->config, number, errno);
  else
    io->config.counters->writes++;
}

static void poll_release(hp_io *io, const hp_packet *packet) { give_back(io, packet->buffer); }

static void poll_flush(hp_io *io) { hp_coalesce_flush(&io->coalescer); }

/* ---- receiving ---- */

static void read_failed(hp_io *io, uint32_t number, int code, bool hung_up) {
  struct link *link = &io->links[number];
  if (code == EINTR || (code == EAGAIN && !hung_up))
    return;
  if (code == EAGAIN || code == 0 || hp_io_is_gone(code)) {
    unwatch(io, number);
    hp_reading_ends(&link->reading, &io->config);
    io->config.gone(io->config.context, number);
  } else
    failed(io, number, code);
}

/* A link's turn: up to `room` packets. */
static uint32_t read_link(hp_io *io, const struct epoll_event *event, hp_packet *packets, uint32_t room) {
  uint32_t number = event->data.u32, count = 0, bytes = 0;
  if (number == NO_LINK)
    return 0;
  struct link *link = &io->links[number];
  struct group *group = &io->groups[link->group];
  while (count < room && count < TURN_PACKETS && bytes < TURN_BYTES) {
    if (group->free_count == 0) {
      io->config.counters->no_buffers++;
      break;
    }
    uint32_t buffer = group->free[group->free_count - 1];
    ssize_t length = hp_nowait_read(&io->nowait, link->fd, hp_buffer(&io->buffers, buffer), HP_BUFFER);
    if (length <= 0) {
      read_failed(io, number, length ? errno : 0, event->events & (EPOLLERR | EPOLLHUP));
      break;
    }
    if (link->reading.failures)
      hp_reading_works(&link->reading, &io->config, number);
    group->free_count--;
    bytes += (uint32_t)length;
    packets[count++] = hp_received(&io->buffers, buffer, number, (uint32_t)length);
  }
  return count;
}

/* Whether the group has ready links that have not had their turn, and a buffer for them. */
static bool has_ready(const struct group *group) { return group->ready_next < group->ready_count && group->free_count; }

static uint32_t read_group(hp_io *io, struct group *group, bool ask, hp_packet *packets, uint32_t room) {
  uint32_t count = 0;
  if (ask && group->ready_next == group->ready_count) {
    int ready = epoll_wait(group->epoll, group->ready, READY_LINKS, 0);
    group->ready_count = ready > 0 ? ready : 0;
    group->ready_next = 0;
  }
  while (has_ready(group) && count < room)
    count += read_link(io, &group->ready[group->ready_next++], packets + count, room - count);
  return count;
}

static void wait_for(hp_io *io, struct pollfd *fds, int timeout) {
  int64_t spin_end = timeout ? hp_spin_begin(&io->spin, &io->config) : 0;
  int ready = 0;
  while (spin_end && !ready && hp_io_nanoseconds() < spin_end)
    ready = poll(fds, WATCHED, 0);
  if (!ready && timeout)
    hp_nowait_sleep(&io->nowait);
  if (!ready)
    poll(fds, WATCHED, timeout);
  if (timeout)
    hp_spin_end(&io->spin, &io->config);
}

/* Waits for at most `timeout` ms until there is something to read, and reads it. True when woken. */
static bool take_turn(hp_io *io, int timeout, hp_packet *packets, uint32_t *count) {
  struct pollfd fds[WATCHED];
  for (int g = 0; g < HP_GROUPS; g++) {
    fds[g] = (struct pollfd){.fd = io->groups[g].free_count ? io->groups[g].epoll : -1, .events = POLLIN};
    if (has_ready(&io->groups[g]))
      timeout = 0;
  }
  fds[WAKE] = (struct pollfd){.fd = io->config.wake, .events = POLLIN};
  fds[OTHERS] = (struct pollfd){.fd = io->config.others_came ? io->config.others : -1, .events = POLLIN};
  if (io->rests.count) {
    hp_rest_over(&io->rests, io, rested);
    timeout = hp_rest_within(&io->rests, timeout);
  }
  wait_for(io, fds, timeout);
  for (int i = 0; i < HP_GROUPS; i++) {
    int g = (io->first + i) % HP_GROUPS;
    *count += read_group(io, &io->groups[g], fds[g].revents, packets + *count, HP_BATCH - *count);
  }
  io->first = (io->first + 1) % HP_GROUPS;
  if (fds[WAKE].revents)
    hp_io_clear_wake(io->config.wake);
  if (fds[OTHERS].revents && io->config.others_came)
    io->config.others_came(io->config.context);
  return fds[WAKE].revents || fds[OTHERS].revents;
}

static uint32_t poll_receive(hp_io *io, hp_packet *packets, int timeout) {
  int64_t left = timeout, deadline = timeout > 0 ? hp_io_clock() + timeout : 0;
  uint32_t count = 0;
  hp_coalesce_flush(&io->coalescer);
  while (!take_turn(io, (int)left, packets, &count) && !count) {
    if (timeout == 0 || (timeout > 0 && (left = deadline - hp_io_clock()) <= 0))
      break;
  }
  hp_spin_took(&io->spin, packets, count);
  io->config.counters->packets += count;
  return count;
}

const hp_io_ops hp_io_epoll = {.name = "epoll",
                               .probe = poll_probe,
                               .open = poll_open,
                               .close = poll_close,
                               .add = poll_add,
                               .remove = poll_remove,
                               .receive = poll_receive,
                               .send = poll_send,
                               .inject = poll_inject,
                               .release = poll_release,
                               .flush = poll_flush};
