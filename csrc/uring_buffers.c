/* uring_buffers.c: which link reads into which buffers, and which links' reads are armed.
 *
 * Theory of operation. A multishot read goes on as long as its device has packets and its buffer ring has buffers: a
 * flooder empties the ring, and the reads of all others that share it end with ENOBUFS. So most links of a group share
 * a ring, but a link that takes much in one turn gets one of its own, of a few; when there are more such links, the
 * one that has been silent longest goes back to the shared ring. The first read is cancelled then, and armed again on
 * the other ring when it has ended: packets stay in order.
 *
 * How many buffers a link's own ring holds bounds what the link contributes to a turn, and so how long others wait
 * because of it: HOT_BYTES, whether that is eight super-packets or all the small packets that the share has room for.
 * Buffers come from a stack, so few of them are used again and again, and stay in the processor's cache. A ring
 * cannot be emptied, so each has a quota of its own: no link that has fallen silent keeps the buffers of another one.
 *
 * A link whose read is not armed waits in a queue of its group, first come first served, and is armed while the shared
 * ring has a buffer for it: so nobody retries before a buffer came back. A newly added link starts in that queue. There
 * are two queues per group, and those who took little since they were armed are armed before those who took much: what
 * the former have is then read first, the latter get the buffers that are left. If they leave none, they are first in
 * the next turn.
 */
#include <errno.h>

#include "uring.h"

enum {
  HOT_PACKETS = 16,      /* in one turn, or since its read was armed: the link takes much */
  HOT_BYTES = 512 << 10, /* of buffers of a link's own ring; a part of them in one turn: it takes much */
  HOT_SHARE = 4,         /* which part */
  HOT_LEAST = 8,         /* buffers of a link's own ring, */
  HOT_MOST = 128,        /* and no more than that */
  SILENT_TURNS = 64,     /* after which a link's own ring may be given to another one */
  MEMORY = 8             /* packets over which their size is averaged */
};

/* ---- buffers ---- */

void hp_uring_buffer_taken(hp_io *io, const struct uring_link *link) {
  struct uring_ring *ring = &io->rings[link->ring];
  ring->filled--;
  ring->out++;
}

static uint32_t share_of(const hp_io *io, uint32_t number) {
  uint32_t group = hp_buffer_group(&io->buffers, number);
  return group * 2 + (number % io->buffers.per_group >= io->shared);
}

void hp_uring_give_back(hp_io *io, uint32_t number) {
  struct uring_share *share = &io->shares[share_of(io, number)];
  share->free[share->count++] = number;
  io->rings[io->ring_of[number]].out--;
}

static void fill(hp_io *io, uint32_t index, uint32_t window) {
  struct uring_ring *ring = &io->rings[index];
  struct uring_share *share = &io->shares[ring->share];
  uint32_t added = 0;
  while (ring->filled + added < window && ring->filled + added + ring->out < ring->quota && share->count) {
    uint32_t number = share->free[--share->count];
    io->ring_of[number] = (uint8_t)index;
    io_uring_buf_ring_add(ring->ring, hp_buffer(&io->buffers, number), HP_BUFFER, (unsigned short)number,
                          io_uring_buf_ring_mask(ring->entries), (int)added++);
  }
  if (added)
    io_uring_buf_ring_advance(ring->ring, (int)added);
  ring->filled += added;
}

static uint32_t window_of(const struct uring_ring *ring) {
  uint32_t window = HOT_BYTES / (ring->size ? ring->size : 1);
  return window < HOT_LEAST ? HOT_LEAST : window > HOT_MOST ? HOT_MOST : window;
}

/* ---- a ring of its own ---- */

static uint32_t first_hot(uint32_t group) { return HP_GROUPS + group * HP_HOT_RINGS; }

/* Has the read end, so that it can be armed on another ring. */
static void move(hp_io *io, uint32_t number) {
  struct uring_link *link = &io->links[number];
  if (!link->armed) {
    hp_uring_place(io, number);
    return;
  }
  struct io_uring_sqe *sqe = hp_uring_sqe(io);
  if (!sqe)
    return; /* it stays where it is until its read ends by itself */
  io_uring_prep_cancel64(sqe, hp_uring_about(HP_ABOUT_READ, number), 0);
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_NOTHING, 0));
  io->at_once++;
  link->moving = true;
}

/* A ring for the link: one that nobody has, else the one whose owner has been silent longest, and for long enough. NULL
 * when there is none, or when the link has been given one already. */
static struct uring_ring *find_ring(hp_io *io, uint32_t number) {
  struct uring_ring *best = NULL, *ring = &io->rings[first_hot(io->links[number].group)];
  uint32_t silence = SILENT_TURNS;
  for (uint32_t i = 0; i < io->hot_rings; i++, ring++) {
    if (ring->owner == number)
      return NULL;
    if (ring->owner == HP_NO_LINK) {
      silence = UINT32_MAX;
      best = ring;
    } else if (io->turn - ring->turn >= silence && !io->links[ring->owner].moving) {
      silence = io->turn - ring->turn;
      best = ring;
    }
  }
  return best;
}

static void give_own(hp_io *io, uint32_t number) {
  const struct uring_link *link = &io->links[number];
  struct uring_ring *ring = find_ring(io, number);
  if (!ring)
    return;
  uint32_t before = ring->owner;
  ring->owner = number;
  io->owned |= 1u << (ring - io->rings);
  ring->turn = io->turn;
  ring->size = link->bytes / link->packets;
  if (before != HP_NO_LINK)
    move(io, before);
  move(io, number);
}

void hp_uring_took(hp_io *io, uint32_t number, uint32_t length) {
  struct uring_link *link = &io->links[number];
  struct uring_ring *ring = &io->rings[link->ring];
  if (link->turn != io->turn)
    link->packets = link->bytes = 0;
  link->turn = io->turn;
  link->taken++;
  link->packets++;
  link->bytes += length;
  if (ring->owner == number) {
    ring->turn = io->turn;
    ring->size = (ring->size * (MEMORY - 1) + length) / MEMORY;
  } else if (link->packets == HOT_PACKETS ||
             (link->bytes >= HOT_BYTES / HOT_SHARE && link->bytes - length < HOT_BYTES / HOT_SHARE))
    give_own(io, number);
}

void hp_uring_place(hp_io *io, uint32_t number) {
  struct uring_link *link = &io->links[number];
  uint32_t first = first_hot(link->group);
  link->moving = false;
  link->ring = link->group;
  for (uint32_t i = 0; i < io->hot_rings; i++)
    if (io->rings[first + i].owner == number)
      link->ring = (uint8_t)(first + i);
  if (link->ring == link->group)
    hp_uring_enqueue(io, number, link->taken > HOT_PACKETS ? HP_QUEUE_HOT : HP_QUEUE_COLD);
}

void hp_uring_unplace(hp_io *io, uint32_t number) {
  struct uring_link *link = &io->links[number];
  struct uring_ring *ring = &io->rings[first_hot(link->group)];
  for (uint32_t i = 0; i < io->hot_rings; i++, ring++)
    if (ring->owner == number) {
      ring->owner = HP_NO_LINK;
      io->owned &= ~(1u << (ring - io->rings));
    }
  if (link->queued)
    hp_uring_dequeue(io, number);
}

/* ---- links that wait to be armed ---- */

void hp_uring_enqueue(hp_io *io, uint32_t number, int which) {
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

void hp_uring_dequeue(hp_io *io, uint32_t number) {
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
  struct io_uring_sqe *sqe = hp_uring_sqe(io);
  struct uring_link *link = &io->links[number];
  if (!sqe)
    return false;
  io_uring_prep_rw(HP_OP_READ_MULTISHOT, sqe, io->registered ? (int)number : link->fd, NULL, 0, 0);
  sqe->flags |= (uint8_t)(IOSQE_BUFFER_SELECT | (io->registered ? IOSQE_FIXED_FILE : 0));
  sqe->buf_group = link->ring;
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_READ, number));
  link->armed = true;
  link->taken = 0;
  return true;
}

/* Arms the links of a queue, at most *room of them. False when some are left. */
static bool arm_queue(hp_io *io, const struct uring_queue *queue, uint32_t *room) {
  while (queue->head != HP_NO_LINK) {
    uint32_t number = queue->head;
    if (*room == 0 || !arm(io, number))
      return false;
    hp_uring_dequeue(io, number);
    --*room;
  }
  return true;
}

/* False when links are left. */
static bool arm_group(hp_io *io, uint32_t number) {
  struct uring_group *group = &io->groups[number];
  uint32_t filled = io->rings[number].filled, room = filled;
  int second = (group->first + 1) % HP_QUEUES;
  bool all = arm_queue(io, &group->queues[group->first], &room);
  if (arm_queue(io, &group->queues[second], &room))
    group->first = HP_QUEUE_COLD;
  else if (room < filled) /* it got nothing or too little: its turn is next */
    group->first = second;
  return all && group->queues[second].head == HP_NO_LINK;
}

/* False when the ring's owner waits for a buffer. */
static bool arm_owner(hp_io *io, uint32_t index) {
  const struct uring_ring *ring = &io->rings[index];
  const struct uring_link *link = &io->links[ring->owner];
  if (link->armed || link->ring != index)
    return true;
  return ring->filled && arm(io, ring->owner);
}

bool hp_uring_arm(hp_io *io) {
  bool all = true, more = false;
  for (uint32_t group = 0; group < HP_GROUPS; group++) {
    fill(io, group, io->shared);
    bool whole = arm_group(io, group);
    more |= !whole && io->rings[group].filled;
    all &= whole;
  }
  for (uint32_t owned = io->owned; owned; owned &= owned - 1) {
    uint32_t index = (uint32_t)__builtin_ctz(owned);
    fill(io, index, window_of(&io->rings[index]));
    all &= arm_owner(io, index);
  }
  return more || (!all && io->at_once);
}

/* ---- reads that end ---- */

void hp_uring_read_ended(hp_io *io, uint32_t number, int result) {
  struct uring_link *link = &io->links[number];
  bool moved_away = link->moving && result == -ECANCELED;
  link->armed = false;
  if (io->removing == number)
    return;
  if (result == -ENOBUFS)
    io->config.counters->no_buffers++;
  if (result == 0 || hp_io_is_gone(-result)) {
    hp_uring_unplace(io, number);
    hp_reading_ends(&link->reading, &io->config);
    io->config.gone(io->config.context, number);
    return;
  }
  bool failed = result < 0 && result != -ENOBUFS && !moved_away;
  uint32_t length = failed ? hp_reading_failed(&link->reading, &io->config, number, -result) : 0;
  if (length) {
    hp_uring_unplace(io, number);
    hp_rest_begin(&io->rests, number, length);
  } else
    hp_uring_place(io, number);
}
