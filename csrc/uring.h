/* uring.h: the state of the io_uring engine, shared by io_uring.c (packets) and uring_setup.c (life). */
#ifndef HP_URING_H
#define HP_URING_H

#include <liburing.h>

#include "coalesce.h"
#include "io_common.h"

enum { HP_OP_READ_MULTISHOT = 49 }; /* IORING_OP_READ_MULTISHOT, linux/io_uring.h from 6.7 */
#define HP_NO_LINK UINT32_MAX

/* user_data: what a completion is about << 56 | link number or first buffer of a chain. */
enum { HP_ABOUT_READ = 1, HP_ABOUT_WRITE = 2, HP_ABOUT_WAKE = 3, HP_ABOUT_CANCEL = 4 };

/* Links whose read is not armed wait in one of their group's queues: first those who took little. */
enum { HP_QUEUE_COLD = 0, HP_QUEUE_HOT = 1, HP_QUEUES = 2 };

struct uring_link {
  int fd;
  uint32_t next;   /* in its queue */
  uint32_t writes; /* under way */
  uint32_t taken;  /* packets since the read was armed */
  uint8_t group;
  uint8_t queue;
  uint8_t failures; /* reads that failed since the last packet */
  bool added;
  bool armed;
  bool queued;
};

struct uring_queue {
  uint32_t head;
  uint32_t tail;
};

struct uring_group {
  struct io_uring_buf_ring *ring;
  size_t ring_bytes;
  uint32_t free; /* buffers in the ring, as far as completions tell */
  struct uring_queue queues[HP_QUEUES];
  int first; /* queue to begin with */
};

struct hp_io {
  hp_io_config config;
  struct io_uring ring;
  hp_buffers buffers;
  hp_coalescer coalescer;
  struct uring_group groups[HP_GROUPS];
  struct uring_link *links;
  struct iovec *vectors; /* of gathered writes not yet submitted: one element per buffer at most */
  uint32_t vectors_used;
  hp_packet *kept; /* packets that remove() came across: at most one per buffer */
  uint32_t kept_first;
  uint32_t kept_count;
  uint32_t removing; /* link number, HP_NO_LINK when receiving */
  bool registered;   /* descriptors are, under their link numbers */
  bool cancelled;    /* the cancellation has been answered */
  bool wake_armed;
  bool woken;
};

static inline uint64_t hp_uring_about(int what, uint32_t number) { return (uint64_t)what << 56 | number; }

/* Returns a buffer to its ring. */
void hp_uring_give_back(hp_io *io, uint32_t number);

const char *hp_uring_probe(void);
/* An engine with a ring, buffers and no links; NULL with *error filled. `write_chain` is for its coalescer. */
hp_io *hp_uring_new(const hp_io_config *config, void (*write_chain)(hp_io *io, uint32_t head), hp_error *error);
void hp_uring_free(hp_io *io);

#endif
