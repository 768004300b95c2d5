/* io_uring.c: the I/O engine on io_uring.
 *
 * Theory of operation. One ring per worker, used by its thread only (SINGLE_ISSUER), which also runs all
 * completion work, when it asks for completions (DEFER_TASKRUN).
 *
 * Reading. Every link has one multishot read armed: a request that stays, takes a buffer from a provided-buffer
 * ring for each packet and posts a completion for it. An idle link holds no buffer and costs nothing. A multishot
 * read ends when the ring has no buffer left (ENOBUFS), when the device is gone (EBADFD), when it is cancelled, or
 * when the kernel sees fit. Which ring, and who is armed when, is uring_buffers.c's. When it fails the link rests
 * (rest.c), and is armed again afterwards.
 *
 * Writing is uring_write.c's.
 *
 * System calls. One for each turn: what was sent is submitted together with the wait for more. Requests that are
 * answered at once are counted, so that their answers do not end that wait. Nor is a timer set for each wait: one
 * goes off now and then, and is set again. While completions are left of the last call, packets are taken from these,
 * and what was sent waits for the rest of them, up to MOST_UNSENT packets: a large burst is written in one go.
 *
 * Giving way. A turn that brought many packets ends with sched_yield(): whoever these are for runs, when he waits for
 * this processor, and packets gather meanwhile. Without it the worker is woken by the first packet after each turn,
 * takes the processor from the receiver, and finds few: both wake each other for small portions, and the sender pays.
 * But who yields may give up a whole slice of the scheduler, milliseconds, to a process that only computes. So the time
 * away is measured, and after a long one the worker stays for STAY_FACTOR times as long: that is what it can lose.
 *
 * Bounds. A buffer is free, in a ring, or in one completion, or the caller's, or part of one write; so there
 * are at most as many data and write completions as buffers, and one final completion per link: the
 * completion queue has room for all of them, and the list of packets kept by remove() as well.
 *
 * Removal. remove() cancels the read and reaps until it has ended and no write to the link is under way.
 * Packets of other links met meanwhile are kept for the next receive(). Descriptors are registered, which
 * needs a kernel that drops a file as soon as it is taken out of the table. One that does so only when every
 * older request on any registered file has ended would, with multishot reads, perhaps never do it. open()
 * tries it out (uring_setup.c), and uses plain descriptors with such a kernel, or when the table does not
 * fit RLIMIT_NOFILE; all else is the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <string.h>

#include "uring.h"

enum {
  MOST_UNSENT = 256,  /* packets sent that may wait for the rest of a burst */
  MANY = 16,          /* packets of one turn, after which others are let run */
  LONG_AWAY = 100000, /* ns: they took more than a moment */
  STAY_FACTOR = 8     /* for how many times as long nobody is let run then */
};

/* ---- requests ---- */

static void submitted(hp_io *io) {
  if (io_uring_sq_ready(&io->ring))
    return;
  io->vectors_used = 0; /* the kernel copied them (IORING_FEAT_SUBMIT_STABLE) */
  io->at_once = 0;
  io->unsent = 0;
}

bool hp_uring_submit(hp_io *io, bool events) {
  int taken;
  do
    taken = events ? io_uring_submit_and_get_events(&io->ring) : io_uring_submit(&io->ring);
  while (taken == -EINTR);
  submitted(io);
  return taken > 0;
}

/* The same, and waits for a completion that none of the requests brings at once. */
static void submit_and_wait(hp_io *io) {
  io_uring_submit_and_wait(&io->ring, io->at_once + 1);
  submitted(io);
}

struct io_uring_sqe *hp_uring_sqe(hp_io *io) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
  if (!sqe && hp_uring_submit(io, false))
    sqe = io_uring_get_sqe(&io->ring);
  return sqe;
}

/* Has completions about `what` posted whenever the descriptor becomes readable. */
static void watch(hp_io *io, int fd, int what, bool *armed) {
  struct io_uring_sqe *sqe = *armed ? NULL : hp_uring_sqe(io);
  if (!sqe)
    return;
  io_uring_prep_poll_multishot(sqe, fd, POLLIN);
  io_uring_sqe_set_data64(sqe, hp_uring_about(what, 0));
  *armed = true;
}

static void watch_all(hp_io *io) {
  watch(io, io->config.wake, HP_ABOUT_WAKE, &io->wake_armed);
  if (io->config.others_came)
    watch(io, io->config.others, HP_ABOUT_OTHERS, &io->others_armed);
}

/* Something comes within `timeout` ms. A timer that was armed for less may stay. */
static void set_timer(hp_io *io, int timeout) {
  struct io_uring_sqe *sqe = io->timer && io->timer <= timeout ? NULL : hp_uring_sqe(io);
  if (!sqe)
    return;
  io->timer_time = (struct __kernel_timespec){.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000};
  if (io->timer) {
    io_uring_prep_timeout_update(sqe, &io->timer_time, hp_uring_about(HP_ABOUT_TIMER, 0), 0);
    io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_NOTHING, 0));
    io->at_once++;
  } else {
    io_uring_prep_timeout(sqe, &io->timer_time, 0, 0);
    io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_TIMER, 0));
  }
  io->timer = timeout;
}

/* ---- completions ---- */

/* True when *packet has been filled. */
static bool read_done(hp_io *io, const struct io_uring_cqe *cqe, hp_packet *packet) {
  uint32_t number = (uint32_t)cqe->user_data;
  struct uring_link *link = &io->links[number];
  bool got = false;
  if (cqe->flags & IORING_CQE_F_BUFFER) {
    uint32_t buffer = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    hp_uring_buffer_taken(io, link);
    got = cqe->res > 0 && io->removing != number;
    if (got) {
      *packet = hp_received(&io->buffers, buffer, number, (uint32_t)cqe->res);
      io->from[buffer] = number;
      if (link->reading.failures)
        hp_reading_works(&link->reading, &io->config, number);
      hp_uring_took(io, number, (uint32_t)cqe->res);
      io->came++;
    } else
      hp_uring_give_back(io, buffer);
  }
  if (!(cqe->flags & IORING_CQE_F_MORE))
    hp_uring_read_ended(io, number, cqe->res);
  return got;
}

static bool completed(hp_io *io, const struct io_uring_cqe *cqe, hp_packet *packet) {
  uint32_t number = (uint32_t)cqe->user_data;
  switch (cqe->user_data >> 56) {
  case HP_ABOUT_READ:
    return read_done(io, cqe, packet);
  case HP_ABOUT_WRITE:
    io->links[io->buffers.notes[number].link].writes--;
    hp_uring_write_ended(io, number, cqe->res);
    return false;
  case HP_ABOUT_WAKE:
    hp_io_clear_wake(io->config.wake);
    io->woken = true;
    io->wake_armed = cqe->flags & IORING_CQE_F_MORE;
    return false;
  case HP_ABOUT_OTHERS:
    io->config.others_came(io->config.context);
    io->woken = true;
    io->others_armed = cqe->flags & IORING_CQE_F_MORE;
    return false;
  case HP_ABOUT_CANCEL:
    io->cancelled = true;
    return false;
  case HP_ABOUT_TIMER:
    io->timer = 0;
    io->rung = true;
    return false;
  default:
    return false;
  }
}

/* Takes completions until `room` packets have come; the rest stay where they are. */
static uint32_t reap(hp_io *io, hp_packet *packets, uint32_t room) {
  struct io_uring_cqe *cqe;
  unsigned head, seen = 0;
  uint32_t count = 0;
  io_uring_for_each_cqe(&io->ring, head, cqe) {
    if (count == room)
      break;
    count += completed(io, cqe, &packets[count]);
    seen++;
  }
  io_uring_cq_advance(&io->ring, seen);
  return count;
}

static int uring_add(hp_io *io, uint32_t number, int fd, int group, hp_error *error) {
  bool taken = number < io->config.max_links && io->links[number].added;
  if (hp_io_check_add(&io->config, number, fd, group, taken, error))
    return -1;
  if (io->registered) {
    int result = io_uring_register_files_update(&io->ring, number, &fd, 1);
    if (result < 0)
      return hp_fail(error, -result, "link %u: io_uring does not take descriptor %d: %s", number, fd,
                     strerror(-result));
  }
  io->links[number] = (struct uring_link){.fd = fd, .group = (uint8_t)group, .ring = (uint8_t)group, .added = true};
  hp_coalesce_link(&io->coalescer, number);
  if (group != HP_GROUP_NONE)
    hp_uring_enqueue(io, number, HP_QUEUE_COLD);
  return 0;
}

/* ---- packets ---- */

static void uring_send(hp_io *io, const hp_packet *packet) {
  io->unsent++;
  hp_coalesce_send(&io->coalescer, packet);
}

/* Past the ring: this thread would carry out the request as well, and the packet needs no buffer that lives on. */
static void uring_inject(hp_io *io, uint32_t number, const uint8_t *data, uint32_t length) {
  struct iovec vector = {(void *)(uintptr_t)data, length};
  bool known = number < io->config.max_links && io->links[number].added;
  if (pwritev2(known ? io->links[number].fd : -1, &vector, 1, -1, RWF_NOWAIT) < 0)
    hp_packet_failed(&io->config, number, errno);
  else
    io->config.counters->writes++;
}

static void uring_release(hp_io *io, const hp_packet *packet) { hp_uring_give_back(io, packet->buffer); }

static void uring_flush(hp_io *io) {
  hp_coalesce_flush(&io->coalescer);
  hp_uring_request_writes(io);
  while (io_uring_sq_ready(&io->ring) && hp_uring_submit(io, true))
    ;
}

static uint32_t take_kept(hp_io *io, hp_packet *packets) {
  uint32_t count = io->kept_count < HP_BATCH ? io->kept_count : HP_BATCH;
  memcpy(packets, &io->kept[io->kept_first], count * sizeof *packets);
  io->kept_count -= count;
  io->kept_first = io->kept_count ? io->kept_first + count : 0;
  return count;
}

/* Whether the kernel has something for us: a completion, or work that it does when it is asked for completions. */
static bool something_came(const hp_io *io) {
  return io_uring_cq_ready(&io->ring) || (IO_URING_READ_ONCE(*io->ring.sq.kflags) & IORING_SQ_TASKRUN);
}

/* Looks for packets until `end`; false when none came. */
static bool look(hp_io *io, int64_t end) {
  if (io_uring_sq_ready(&io->ring))
    hp_uring_submit(io, true);
  while (!something_came(io))
    if (hp_io_nanoseconds() >= end)
      return false;
  if (!io_uring_cq_ready(&io->ring))
    io_uring_get_events(&io->ring);
  return true;
}

/* Submits, and lets others run; false when it is not the time for that. */
static bool give_way(hp_io *io) {
  bool many = io->came >= MANY;
  io->came = 0;
  int64_t start = many ? hp_io_nanoseconds() : 0;
  if (!many || start < io->stays_until)
    return false;
  hp_uring_submit(io, false);
  sched_yield();
  int64_t end = hp_io_nanoseconds();
  if (end - start > LONG_AWAY)
    io->stays_until = end + (end - start) * STAY_FACTOR;
  hp_uring_submit(io, true);
  return true;
}

/* Sends what there is to send, arms what can be armed, and waits until something happens: at most `timeout` ms, for
 * ever when that is negative. */
static void next_turn(hp_io *io, int timeout) {
  hp_coalesce_flush(&io->coalescer);
  hp_uring_request_writes(io);
  if (io->rests.count) {
    hp_rest_over(&io->rests, io, hp_uring_place);
    timeout = hp_rest_within(&io->rests, timeout);
  }
  bool more = hp_uring_arm(io);
  watch_all(io);
  io->turn++;
  if (give_way(io))
    return;
  if (more || timeout == 0 || io_uring_cq_ready(&io->ring)) {
    hp_uring_submit(io, true);
    return;
  }
  if (timeout > 0)
    set_timer(io, timeout);
  int64_t spin_end = hp_spin_begin(&io->spin, &io->config);
  if (!spin_end || !look(io, spin_end))
    submit_and_wait(io);
  hp_spin_end(&io->spin, &io->config);
}

static uint32_t uring_receive(hp_io *io, hp_packet *packets, int timeout) {
  uint32_t count = take_kept(io, packets);
  if (io->unsent < MOST_UNSENT)
    count += reap(io, packets + count, HP_BATCH - count);
  io->rung = false;
  while (!count && !io->woken) {
    next_turn(io, timeout);
    count = reap(io, packets, HP_BATCH);
    if (timeout == 0 || (timeout > 0 && io->rung))
      break;
  }
  io->woken = false;
  hp_spin_took(&io->spin, packets, count);
  io->config.counters->packets += count;
  return count;
}

/* ---- removal ---- */

/* Puts the kept packets to the front of their array, without those of one link. */
static void drop_kept(hp_io *io, uint32_t number) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < io->kept_count; i++) {
    hp_packet packet = io->kept[io->kept_first + i];
    if (packet.link == number)
      hp_uring_give_back(io, packet.buffer);
    else
      io->kept[count++] = packet;
  }
  io->kept_first = 0;
  io->kept_count = count;
}

static void keep(hp_io *io) {
  io->kept_count += reap(io, &io->kept[io->kept_count], io->buffers.count + 1 - io->kept_count);
}

static void uring_remove(hp_io *io, uint32_t number) {
  if (number >= io->config.max_links || !io->links[number].added)
    return;
  struct uring_link *link = &io->links[number];
  uring_flush(io);
  io->removing = number;
  hp_uring_unplace(io, number);
  hp_rest_end(&io->rests, number);
  hp_reading_ends(&link->reading, &io->config);
  drop_kept(io, number);
  while (link->armed || link->writes || io->staged_count) { /* staged: refused as super-packets */
    struct io_uring_sqe *sqe = link->armed ? hp_uring_sqe(io) : NULL;
    /* The read may be at work and not be found: then it is asked for again. */
    if (sqe) {
      io_uring_prep_cancel64(sqe, hp_uring_about(HP_ABOUT_READ, number), 0);
      io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_CANCEL, 0));
    }
    io->cancelled = !sqe;
    hp_uring_request_writes(io);
    do {
      io_uring_submit_and_wait(&io->ring, 1);
      submitted(io);
      keep(io);
    } while (!io->cancelled);
  }
  int none = -1;
  if (io->registered)
    io_uring_register_files_update(&io->ring, number, &none, 1);
  *link = (struct uring_link){0};
  io->removing = HP_NO_LINK;
}

static void uring_close(hp_io *io) {
  for (uint32_t number = 0; number < io->config.max_links; number++)
    uring_remove(io, number);
  hp_uring_free(io);
}

static hp_io *uring_open(const hp_io_config *config, hp_error *error) {
  return hp_uring_new(config, hp_uring_write_chain, error);
}

const hp_io_ops hp_io_uring = {.name = "io_uring",
                               .probe = hp_uring_probe,
                               .open = uring_open,
                               .close = uring_close,
                               .add = uring_add,
                               .remove = uring_remove,
                               .receive = uring_receive,
                               .send = uring_send,
                               .inject = uring_inject,
                               .release = uring_release,
                               .flush = uring_flush};
