/* uring_write.c: how chains of packets become write requests, and in which order.
 *
 * Theory of operation. A chain of buffers (coalesce.c) is one request, carried out when it is submitted; RWF_NOWAIT
 * makes it fail with EAGAIN rather than wait, also when somebody cleared O_NONBLOCK on a duplicate. Its buffers go back
 * when it is done. Chains are staged first: at the end of a turn those of tunnels that moved little in it are written
 * before those of tunnels that moved much, so that a small packet does not wait while another tunnel's super-packets
 * are copied and received. What one tunnel sends, or gets, stays in order.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "uring.h"

enum { SMALL_BYTES = 16 << 10 }; /* that a tunnel may move in a turn to be written before those that move more */

static void stage(hp_io *io, uint32_t head) { io->staged[io->staged_count++] = head; }

/* What a tunnel has moved in this turn in the direction of a chain. */
static uint32_t *moved(hp_io *io, uint32_t head) {
  uint32_t from = io->from[head], to = io->buffers.notes[head].link;
  bool outwards = io->links[from].group == HP_GROUP_TUNNELS;
  struct uring_link *tunnel = &io->links[outwards ? from : to];
  if (tunnel->out_turn != io->turn)
    tunnel->out_bytes[0] = tunnel->out_bytes[1] = 0;
  tunnel->out_turn = io->turn;
  return &tunnel->out_bytes[outwards];
}

void hp_uring_write_ended(hp_io *io, uint32_t head, int result) {
  if (result < 0) {
    if (hp_coalesce_refused(&io->coalescer, head, -result)) {
      hp_chain_split(&io->buffers, head, io, stage);
      return;
    }
    hp_chain_failed(&io->config, &io->buffers, head, -result);
  } else
    io->config.counters->writes++;
  for (uint32_t next, b = head; b != HP_NO_BUFFER; b = next) {
    next = io->buffers.notes[b].next;
    hp_uring_give_back(io, b);
  }
}

void hp_uring_write_chain(hp_io *io, uint32_t head) {
  uint32_t link = io->buffers.notes[head].link;
  if (link >= io->config.max_links || !io->links[link].added) {
    hp_uring_write_ended(io, head, -EBADF);
    return;
  }
  *moved(io, head) += hp_chain_bytes(&io->buffers, head);
  stage(io, head);
}

static void request_write(hp_io *io, uint32_t head) {
  const hp_buffer_note *note = &io->buffers.notes[head];
  struct uring_link *link = &io->links[note->link];
  if (io->vectors_used + note->packets > io->buffers.count)
    hp_uring_submit(io, false);
  bool room = io->vectors_used + note->packets <= io->buffers.count;
  struct io_uring_sqe *sqe = link->added && room ? hp_uring_sqe(io) : NULL;
  if (!sqe) {
    hp_uring_write_ended(io, head, link->added ? -EAGAIN : -EBADF);
    return;
  }
  int fd = io->registered ? (int)note->link : link->fd;
  if (note->packets == 1) {
    io_uring_prep_write(sqe, fd, hp_buffer(&io->buffers, head), note->length, 0);
  } else {
    struct iovec *vector = &io->vectors[io->vectors_used];
    int count = hp_chain_vector(&io->buffers, head, vector);
    io->vectors_used += (uint32_t)count;
    io_uring_prep_writev(sqe, fd, vector, (unsigned)count, 0);
  }
  if (io->registered)
    sqe->flags |= IOSQE_FIXED_FILE;
  sqe->rw_flags = RWF_NOWAIT;
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_WRITE, head));
  io->at_once++;
  link->writes++;
}

void hp_uring_request_writes(hp_io *io) {
  uint32_t count = io->staged_count, rest = 0;
  for (uint32_t i = 0; i < count; i++) {
    uint32_t head = io->staged[i];
    if (*moved(io, head) > SMALL_BYTES)
      io->staged[rest++] = head;
    else
      request_write(io, head);
  }
  for (uint32_t i = 0; i < rest; i++)
    request_write(io, io->staged[i]);
  io->staged_count = 0;
}
