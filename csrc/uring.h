/* uring.h: the state of the io_uring engine, shared by io_uring.c (requests and completions), uring_buffers.c (who
 * reads into which buffers), uring_write.c and uring_setup.c (life). */
#ifndef HP_URING_H
#define HP_URING_H

#include <liburing.h>

#include "coalesce.h"
#include "io_common.h"

enum { HP_OP_READ_MULTISHOT = 49 }; /* IORING_OP_READ_MULTISHOT, linux/io_uring.h from 6.7 */
#define HP_NO_LINK UINT32_MAX

/* user_data: what a completion is about << 56 | link number or first buffer of a chain. */
enum {
  HP_ABOUT_READ = 1,
  HP_ABOUT_WRITE = 2,
  HP_ABOUT_WAKE = 3,
  HP_ABOUT_CANCEL = 4, /* remove()'s */
  HP_ABOUT_TIMER = 5,
  HP_ABOUT_NOTHING = 6, /* a request whose answer nobody waits for */
  HP_ABOUT_OTHERS = 7
};

/* Links whose read is not armed wait in one of their group's queues: first those who took little. */
enum { HP_QUEUE_COLD = 0, HP_QUEUE_HOT = 1, HP_QUEUES = 2 };

/* Buffer rings: one that is shared for each group, and some of their own for links that take much. */
enum { HP_HOT_RINGS = 4, HP_RINGS = HP_GROUPS * (1 + HP_HOT_RINGS) };
_Static_assert((int)HP_RINGS <= 32, "each has a bit");

struct uring_link {
  int fd;
  uint32_t next;         /* in its queue */
  uint32_t writes;       /* under way */
  uint32_t taken;        /* packets since the read was armed */
  uint32_t turn;         /* the latest in which it was read from; of that turn: */
  uint32_t packets;      /* received */
  uint32_t bytes;        /* received */
  uint32_t out_turn;     /* the latest in which packets from it or for it were queued; of that turn: */
  uint32_t out_bytes[2]; /* for it, and from it */
  uint8_t group;
  uint8_t ring; /* that its read takes buffers from */
  uint8_t queue;
  bool added;
  bool armed;
  bool queued;
  bool moving; /* its read is being cancelled, to be armed on another ring */
  hp_reading reading;
};

struct uring_queue {
  uint32_t head;
  uint32_t tail;
};

struct uring_group {
  struct uring_queue queues[HP_QUEUES];
  int first; /* queue to begin with */
};

/* A stack of free buffers: the last used is the warmest. Rings of one share are filled from it. */
struct uring_share {
  uint32_t *free;
  uint32_t count;
};

struct uring_ring {
  struct io_uring_buf_ring *ring;
  size_t bytes;
  uint32_t entries;
  uint32_t filled; /* buffers in it, as far as completions tell */
  uint32_t out;    /* taken from it and not given back yet */
  uint32_t quota;  /* of both together at most */
  uint32_t size;   /* bytes of its link's packets, on average */
  uint32_t owner;  /* the link that has it for itself, or HP_NO_LINK */
  uint32_t turn;   /* the latest in which the owner was read from */
  uint8_t share;
};

struct hp_io {
  struct io_uring ring;
  struct uring_link *links;
  hp_buffers buffers;
  uint8_t *ring_of;      /* by buffer: the ring that it was put into */
  uint32_t *from;        /* by buffer: the link that its packet came from */
  uint32_t *staged;      /* chains not yet made requests */
  struct iovec *vectors; /* of gathered writes not yet submitted: one element per buffer at most */
  uint32_t staged_count;
  uint32_t vectors_used;
  uint32_t came;    /* packets received since the last turn began */
  uint32_t unsent;  /* packets sent since the last submission */
  uint32_t at_once; /* requests not yet submitted that will be answered when they are */
  uint32_t turn;    /* submissions that looked for packets */
  uint32_t shared;  /* buffers of a group that the shared ring has, the rest is for hot links */
  uint32_t owned;   /* bits: the rings that have an owner */
  int timer;        /* ms that it was armed for; 0: it is not armed */
  bool registered;  /* descriptors are, under their link numbers */
  bool cancelled;   /* the cancellation has been answered */
  bool wake_armed;
  bool others_armed;
  bool woken;
  bool rung;       /* the timer has gone off */
  hp_packet *kept; /* packets that remove() came across: at most one per buffer */
  uint32_t kept_first;
  uint32_t kept_count;
  uint32_t removing;  /* link number, HP_NO_LINK when receiving */
  uint32_t hot_rings; /* of each group: HP_HOT_RINGS, or none when there are too few buffers */
  struct uring_group groups[HP_GROUPS];
  struct uring_share shares[HP_GROUPS * 2];
  struct uring_ring rings[HP_RINGS]; /* the shared ones first, by group */
  hp_io_config config;
  hp_rests rests;
  hp_spin spin;
  int64_t stays_until; /* hp_io_nanoseconds(): before, it does not give way */
  struct __kernel_timespec timer_time;
  hp_coalescer coalescer;
};

static inline uint64_t hp_uring_about(int what, uint32_t number) { return (uint64_t)what << 56 | number; }

/* io_uring.c: a request to be filled in, NULL when the kernel takes none. */
struct io_uring_sqe *hp_uring_sqe(hp_io *io);
/* Submits what is queued, and with `events` has completions posted. False when the kernel took nothing. */
bool hp_uring_submit(hp_io *io, bool events);

/* uring_write.c */
/* A chain of the coalescer's, to be written. */
void hp_uring_write_chain(hp_io *io, uint32_t head);
/* Makes requests of all that is to be written. */
void hp_uring_request_writes(hp_io *io);
/* A write has ended: its buffers go back, unless the packets are to be written once more, one by one. */
void hp_uring_write_ended(hp_io *io, uint32_t head, int result);

/* uring_buffers.c */
/* A completion says that the kernel has taken a buffer from the link's ring. */
void hp_uring_buffer_taken(hp_io *io, const struct uring_link *link);
/* Returns a buffer to its share. */
void hp_uring_give_back(hp_io *io, uint32_t number);
/* A packet of `length` bytes has come from the link: whether it deserves a ring of its own, and how large a one. */
void hp_uring_took(hp_io *io, uint32_t number, uint32_t length);
/* The link's multishot read has ended. */
void hp_uring_read_ended(hp_io *io, uint32_t number, int result);
/* The ring that the link's read is armed on next. */
void hp_uring_place(hp_io *io, uint32_t number);
/* The link is gone: its ring is free for another one. */
void hp_uring_unplace(hp_io *io, uint32_t number);
void hp_uring_enqueue(hp_io *io, uint32_t number, int which);
void hp_uring_dequeue(hp_io *io, uint32_t number);
/* Fills the rings, and arms as many of the links that wait as there are buffers. True when links are left that may be
 * armed when writes that are under way have ended, or that wait for buffers of links which may have nothing to read. */
bool hp_uring_arm(hp_io *io);

/* uring_setup.c */
const char *hp_uring_probe(void);
/* An engine with a ring, buffers and no links; NULL with *error filled. `write_chain` is for its coalescer. */
hp_io *hp_uring_new(const hp_io_config *config, void (*write_chain)(hp_io *io, uint32_t head), hp_error *error);
void hp_uring_free(hp_io *io);

#endif
