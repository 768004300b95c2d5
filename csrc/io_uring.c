/* io_uring.c: the I/O engine on io_uring.
 *
 * Theory of operation. One ring per worker, used by its thread only (SINGLE_ISSUER), which also runs all
 * completion work, when it asks for completions (DEFER_TASKRUN).
 *
 * Reading. Every link has one multishot read armed: a request that stays, takes a buffer from the group's
 * provided-buffer ring for each packet and posts a completion for it. An idle link holds no buffer and
 * costs nothing. A multishot read ends when the group has no buffer left (ENOBUFS), when the device is
 * gone (EBADFD), when it is cancelled, or when the kernel sees fit. A link whose read is not armed waits
 * in a queue of its group, first come first served, and is armed while the group has a buffer for it: so
 * nobody retries before a buffer came back. A newly added link starts in that queue.
 *
 * Fairness. Completions are delivered in the order in which they were posted. But the kernel reads from
 * one link as long as it has packets and the group has buffers, then from the next: a flooder empties the
 * group, and the reads of all others that have something end with ENOBUFS too. So there are two queues
 * per group, and those who took little since they were armed are armed before those who took much. What
 * the former have is then read first, the flooder gets the buffers that are left. If they leave none, it
 * is first in the next turn.
 *
 * Writing. A chain of buffers (coalesce.c) is one request, carried out when it is submitted; RWF_NOWAIT
 * makes it fail with EAGAIN rather than wait, also when somebody cleared O_NONBLOCK on a duplicate. Its
 * buffers go back to their rings when it is done.
 *
 * Bounds. A buffer is in its ring, or in one completion, or the caller's, or part of one write; so there
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
#include <string.h>

#include "uring.h"

enum { HOT_PACKETS = 16 }; /* a link that took more since its read was armed is served after the others */

/* Submits what is queued, and with `events` has completions posted. False when the kernel took nothing. */
static bool submit(hp_io *io, bool events) {
  int taken;
  do
    taken = events ? io_uring_submit_and_get_events(&io->ring) : io_uring_submit(&io->ring);
  while (taken == -EINTR);
  if (io_uring_sq_ready(&io->ring) == 0)
    io->vectors_used = 0; /* the kernel copied them (IORING_FEAT_SUBMIT_STABLE) */
  return taken > 0;
}

/* The same, and waits for a completion: at most `timeout` ms, for ever when that is negative. */
static void submit_and_wait(hp_io *io, int64_t timeout) {
  struct __kernel_timespec time = {.tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000};
  struct io_uring_cqe *cqe;
  if (timeout < 0)
    io_uring_submit_and_wait(&io->ring, 1);
  else
    io_uring_submit_and_wait_timeout(&io->ring, &cqe, 1, &time, NULL);
  if (io_uring_sq_ready(&io->ring) == 0)
    io->vectors_used = 0;
}

static struct io_uring_sqe *new_sqe(hp_io *io) {
  struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
  if (!sqe && submit(io, false))
    sqe = io_uring_get_sqe(&io->ring);
  return sqe;
}

/* Fills in which descriptor a request is about. */
static void set_link(const hp_io *io, struct io_uring_sqe *sqe, uint32_t number) {
  sqe->fd = io->registered ? (int)number : io->links[number].fd;
  if (io->registered)
    sqe->flags |= IOSQE_FIXED_FILE;
}

/* ---- buffers and the queue of links to be armed ---- */

void hp_uring_give_back(hp_io *io, uint32_t number) {
  struct uring_group *group = &io->groups[hp_buffer_group(&io->buffers, number)];
  uint32_t per_group = io->buffers.per_group;
  io_uring_buf_ring_add(group->ring, hp_buffer(&io->buffers, number), HP_BUFFER, (unsigned short)(number % per_group),
                        io_uring_buf_ring_mask(per_group), 0);
  io_uring_buf_ring_advance(group->ring, 1);
  group->free++;
}

static void enqueue(hp_io *io, uint32_t number, int which) {
  struct uring_link *link = &io->links[number];
  struct uring_queue *queue = &io->groups[link->group].queues[which];
  link->queue = (uint8_t)which;
  link->queued = true;
  link->next = HP_NO_LINK;
  if (queue->head == HP_NO_LINK)
    queue->head = number;
  else
    io->links[queue->tail].next = number;
  queue->tail = number;
}

static void dequeue(hp_io *io, uint32_t number) {
  struct uring_link *link = &io->links[number];
  struct uring_queue *queue = &io->groups[link->group].queues[link->queue];
  uint32_t before = HP_NO_LINK;
  for (uint32_t at = queue->head; at != number; at = io->links[at].next)
    before = at;
  if (before == HP_NO_LINK)
    queue->head = link->next;
  else
    io->links[before].next = link->next;
  if (queue->tail == number)
    queue->tail = before;
  link->queued = false;
}

static bool arm(hp_io *io, uint32_t number) {
  struct io_uring_sqe *sqe = new_sqe(io);
  if (!sqe)
    return false;
  io_uring_prep_rw(HP_OP_READ_MULTISHOT, sqe, 0, NULL, 0, 0);
  set_link(io, sqe, number);
  sqe->flags |= IOSQE_BUFFER_SELECT;
  sqe->buf_group = io->links[number].group;
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_READ, number));
  io->links[number].armed = true;
  io->links[number].taken = 0;
  return true;
}

/* Arms the links of a queue, at most *room of them. False when some are left. */
static bool arm_queue(hp_io *io, const struct uring_queue *queue, uint32_t *room) {
  while (queue->head != HP_NO_LINK) {
    uint32_t number = queue->head;
    if (*room == 0 || !arm(io, number))
      return false;
    dequeue(io, number);
    --*room;
  }
  return true;
}

/* Arms as many of the links that wait as there are buffers. True when more can be armed after this turn:
 * links that had nothing to read left their buffers. */
static bool arm_waiting(hp_io *io) {
  bool more = false;
  for (int g = 0; g < HP_GROUPS; g++) {
    struct uring_group *group = &io->groups[g];
    uint32_t room = group->free;
    int second = (group->first + 1) % HP_QUEUES;
    bool all = arm_queue(io, &group->queues[group->first], &room);
    if (arm_queue(io, &group->queues[second], &room))
      group->first = HP_QUEUE_COLD;
    else if (room < group->free) /* it got nothing or too little: its turn is next */
      group->first = second;
    more |= group->free && (!all || group->queues[second].head != HP_NO_LINK);
  }
  return more;
}

static void arm_wake(hp_io *io) {
  struct io_uring_sqe *sqe = io->wake_armed ? NULL : new_sqe(io);
  if (!sqe)
    return;
  io_uring_prep_poll_multishot(sqe, io->config.wake, POLLIN);
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_WAKE, 0));
  io->wake_armed = true;
}

/* ---- completions ---- */

/* A multishot read has ended. */
static void read_ended(hp_io *io, uint32_t number, int result) {
  struct uring_link *link = &io->links[number];
  link->armed = false;
  if (io->removing == number)
    return;
  if (result == -ENOBUFS)
    io->config.counters->no_buffers++;
  else if (result < 0)
    link->failures++;
  if (result == 0 || hp_io_is_gone(-result) || link->failures >= HP_READ_FAILURES)
    io->config.gone(io->config.context, number);
  else
    enqueue(io, number, link->taken > HOT_PACKETS ? HP_QUEUE_HOT : HP_QUEUE_COLD);
}

/* True when *packet has been filled. */
static bool read_done(hp_io *io, const struct io_uring_cqe *cqe, hp_packet *packet) {
  uint32_t number = (uint32_t)cqe->user_data;
  struct uring_link *link = &io->links[number];
  bool got = false;
  if (cqe->flags & IORING_CQE_F_BUFFER) {
    uint32_t buffer = link->group * io->buffers.per_group + (cqe->flags >> IORING_CQE_BUFFER_SHIFT);
    io->groups[link->group].free--;
    got = cqe->res > 0 && io->removing != number;
    if (got) {
      *packet = hp_received(&io->buffers, buffer, number, (uint32_t)cqe->res);
      link->failures = 0;
      link->taken++;
    } else
      hp_uring_give_back(io, buffer);
  }
  if (!(cqe->flags & IORING_CQE_F_MORE))
    read_ended(io, number, cqe->res);
  return got;
}

static void write_ended(hp_io *io, uint32_t head, int result) {
  if (result < 0)
    hp_chain_failed(&io->config, &io->buffers, head, -result);
  else
    io->config.counters->writes++;
  for (uint32_t next, b = head; b != HP_NO_BUFFER; b = next) {
    next = io->buffers.notes[b].next;
    hp_uring_give_back(io, b);
  }
}

static bool completed(hp_io *io, const struct io_uring_cqe *cqe, hp_packet *packet) {
  switch (cqe->user_data >> 56) {
  case HP_ABOUT_READ:
    return read_done(io, cqe, packet);
  case HP_ABOUT_WRITE:
    io->links[io->buffers.notes[(uint32_t)cqe->user_data].link].writes--;
    write_ended(io, (uint32_t)cqe->user_data, cqe->res);
    return false;
  case HP_ABOUT_WAKE:
    hp_io_clear_wake(io->config.wake);
    io->woken = true;
    io->wake_armed = cqe->flags & IORING_CQE_F_MORE;
    return false;
  default:
    io->cancelled = true;
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
  io->links[number] = (struct uring_link){.fd = fd, .group = (uint8_t)group, .added = true};
  if (group != HP_GROUP_NONE)
    enqueue(io, number, HP_QUEUE_COLD);
  return 0;
}

/* ---- packets ---- */

static void write_chain(hp_io *io, uint32_t head) {
  hp_buffer_note *note = &io->buffers.notes[head];
  bool known = note->link < io->config.max_links && io->links[note->link].added;
  if (io->vectors_used + note->packets > io->buffers.count)
    submit(io, false);
  bool room = io->vectors_used + note->packets <= io->buffers.count;
  struct io_uring_sqe *sqe = known && room ? new_sqe(io) : NULL;
  if (!sqe) {
    write_ended(io, head, known ? -EAGAIN : -EBADF);
    return;
  }
  if (note->packets == 1) {
    io_uring_prep_write(sqe, 0, hp_buffer(&io->buffers, head), note->length, 0);
  } else {
    struct iovec *vector = &io->vectors[io->vectors_used];
    int count = hp_chain_vector(&io->buffers, head, vector);
    io->vectors_used += (uint32_t)count;
    io_uring_prep_writev(sqe, 0, vector, (unsigned)count, 0);
  }
  set_link(io, sqe, note->link);
  sqe->rw_flags = RWF_NOWAIT;
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_WRITE, head));
  io->links[note->link].writes++;
}

static void uring_send(hp_io *io, const hp_packet *packet) { hp_coalesce_send(&io->coalescer, packet); }

/* Past the ring: this thread would carry out the request as well, and the packet needs no buffer that lives on. */
static void uring_inject(hp_io *io, uint32_t number, const uint8_t *data, uint32_t length) {
  bool known = number < io->config.max_links && io->links[number].added;
  hp_io_inject(&io->config, number, known ? io->links[number].fd : -1, data, length);
}

static void uring_release(hp_io *io, const hp_packet *packet) { hp_uring_give_back(io, packet->buffer); }

/* Has completions posted too, so that the next receive() mostly needs no system call. */
static void uring_flush(hp_io *io) {
  hp_coalesce_flush(&io->coalescer);
  while (io_uring_sq_ready(&io->ring) && submit(io, true))
    ;
}

static uint32_t take_kept(hp_io *io, hp_packet *packets) {
  uint32_t count = io->kept_count < HP_BATCH ? io->kept_count : HP_BATCH;
  memcpy(packets, &io->kept[io->kept_first], count * sizeof *packets);
  io->kept_count -= count;
  io->kept_first = io->kept_count ? io->kept_first + count : 0;
  return count;
}

static uint32_t uring_receive(hp_io *io, hp_packet *packets, int timeout) {
  if (io->woken) /* while a link was removed */
    timeout = 0;
  int64_t left = timeout, deadline = timeout > 0 ? hp_io_clock() + timeout : 0;
  hp_coalesce_flush(&io->coalescer);
  uint32_t count = take_kept(io, packets);
  for (;;) {
    bool more = arm_waiting(io);
    arm_wake(io);
    bool ready = io_uring_cq_ready(&io->ring) > 0;
    if (ready || more || count || left == 0) {
      if (!ready || io_uring_sq_ready(&io->ring))
        submit(io, true);
    } else
      submit_and_wait(io, left);
    count += reap(io, packets + count, HP_BATCH - count);
    if (count || io->woken || timeout == 0)
      break;
    if (timeout > 0 && (left = deadline - hp_io_clock()) <= 0)
      break;
  }
  io->woken = false;
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
  if (link->queued)
    dequeue(io, number);
  drop_kept(io, number);
  while (link->armed || link->writes) {
    struct io_uring_sqe *sqe = link->armed ? new_sqe(io) : NULL;
    /* The read may be at work and not be found: then it is asked for again. */
    if (sqe) {
      io_uring_prep_cancel64(sqe, hp_uring_about(HP_ABOUT_READ, number), 0);
      io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_CANCEL, 0));
    }
    io->cancelled = !sqe;
    do {
      submit_and_wait(io, -1);
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
  return hp_uring_new(config, write_chain, error);
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
