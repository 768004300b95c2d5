/* io.h: how a worker gets packets from descriptors and back to them. Two engines behind one table of
 * functions: io_uring (multishot reads into provided-buffer rings) and epoll.
 *
 * Buffers belong to the engine; a received packet holds one until it is sent or released. All calls
 * come from the worker's thread, the one that called open(); only probe() may be called by any.
 */
#ifndef HP_IO_H
#define HP_IO_H

#include "memory.h"

typedef struct hp_io hp_io;

/* Links of one kind share receive buffers, so that a flood from tunnels leaves the ENIs theirs. */
enum { HP_GROUP_TUNNELS = 0, HP_GROUP_ENIS = 1, HP_GROUPS = 2, HP_GROUP_NONE = 2 /* is only sent to */ };

typedef struct hp_io_counters {
  uint64_t packets;    /* received */
  uint64_t writes;     /* write operations that took place */
  uint64_t no_buffers; /* receives that ended for want of a buffer */
  uint64_t unreadable; /* reads that failed */
  uint64_t failing;    /* links whose latest read failed, now */
} hp_io_counters;

typedef struct hp_io_config {
  uint32_t max_links;
  uint32_t buffers; /* per group, a power of two */
  uint32_t spin;    /* us that receive() looks for packets before it sleeps, where that pays; 0: none */
  int wake;         /* eventfd: readable means "come back from receive()" */
  int others;       /* readable means the same, and that others_came() is called */
  /* All are called from within send(), inject(), flush(), receive(), remove() and close(), and must not call
   * back into the engine. */
  /* A queued packet could not be written: HP_OUTPUT_FULL or HP_OUTPUT_ERROR, of the link it was for. */
  void (*failed)(void *context, uint32_t link, hp_reason reason);
  /* A read from the link failed, with this errno. It is read again after a while: 10 ms, and up to a second when that
   * fails as well. */
  void (*unreadable)(void *context, uint32_t link, int code);
  /* A read from such a link has brought a packet. */
  void (*readable)(void *context, uint32_t link);
  /* The descriptor of a link is dead (its device was deleted): no more packets will come from it. Once per link; it
   * stays added until remove(). */
  void (*gone)(void *context, uint32_t link);
  /* `others` has become readable: the caller sees to it that it does not stay so. NULL: there is no such descriptor. */
  void (*others_came)(void *context);
  void *context;
  hp_io_counters *counters;
} hp_io_config;

typedef struct hp_io_ops {
  const char *name;
  /* "" or why this engine cannot run here, in one line. */
  const char *(*probe)(void);
  hp_io *(*open)(const hp_io_config *config, hp_error *error);
  /* Frees everything, waits for what is under way. */
  void (*close)(hp_io *io);
  /* Starts receiving from fd, unless its group is HP_GROUP_NONE. The caller keeps fd open until remove() has returned.
   */
  int (*add)(hp_io *io, uint32_t link, int fd, int group, hp_error *error);
  /* On return nothing refers to the descriptor any more: closing it is the caller's, and the last
   * close of a TUN takes milliseconds, so it must not be this thread's. */
  void (*remove)(hp_io *io, uint32_t link);
  /* Up to HP_BATCH packets, sets .data .length .capacity .link .buffer of each. Waits at most
   * timeout ms (-1: for ever, 0: not at all) for the first; may return early with none, and does so when
   * woken. Clears the eventfd. What was sent before is on its way when it waits. Frames that fill the whole buffer
   * come with .length == HP_BUFFER. */
  uint32_t (*receive)(hp_io *io, hp_packet *packets, int timeout);
  /* Takes the packet's buffer; packet->link is where to. Order is kept within each flow. */
  void (*send)(hp_io *io, const hp_packet *packet);
  /* Writes a packet of the caller's own, after all that was flushed; it is the caller's again on return. */
  void (*inject)(hp_io *io, uint32_t link, const uint8_t *data, uint32_t length);
  /* Gives a buffer back unsent. */
  void (*release)(hp_io *io, const hp_packet *packet);
  /* All that was sent is on its way when this returns. Needed only when something else than receive() comes next. */
  void (*flush)(hp_io *io);
} hp_io_ops;

extern const hp_io_ops hp_io_uring;
extern const hp_io_ops hp_io_epoll;

/* HP_IO_URING or HP_IO_EPOLL for HP_IO_AUTO; NULL and *error filled when it cannot run here. */
const hp_io_ops *hp_io_choose(uint32_t io, hp_error *error);

/* Microseconds to spin, of those asked for: none unless there are more processors than workers, or whoever is to send
 * the next packet would wait for the one that looks for it. */
uint32_t hp_spin_for(uint32_t asked, uint32_t workers);

#endif
