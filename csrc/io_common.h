/* io_common.h: what the I/O engines share: receive buffers, the wake descriptor, error words.
 *
 * A buffer has a number; numbers of one group stand together. Buffers begin at different lines of a page, or the
 * headers of a batch would all meet in the same few lines of the processor's cache. What must be known about a buffer
 * while it is written is noted beside the buffers: a write owns a chain of them, named by its first buffer, and gives
 * the whole chain back when it is done. Most chains have one member; coalesce.c makes longer ones.
 */
#ifndef HP_IO_COMMON_H
#define HP_IO_COMMON_H

#include <sys/uio.h>
#include <time.h>

#include "rest.h"

#define HP_NO_BUFFER UINT32_MAX

enum { HP_PASSING = 8 }; /* reads of a link that may end for nothing, in a row, until that is a failure */
enum { HP_SPARE = 192, HP_STRIDE = HP_BUFFER + HP_SPARE }; /* room behind a buffer; from one buffer to the next */

typedef struct hp_buffer_note {
  uint32_t next;    /* in the chain, or HP_NO_BUFFER */
  uint32_t length;  /* of the packet in it */
  uint32_t link;    /* that the chain is for; noted at its head */
  uint16_t packets; /* in the chain; noted at its head */
  uint16_t headers; /* bytes before the payload, the same in all of a chain; noted at its head */
} hp_buffer_note;

typedef struct hp_buffers {
  uint8_t *at;
  hp_buffer_note *notes;
  uint32_t per_group;
  uint32_t count;
} hp_buffers;

/* Returns 0, or -1 with *error filled. */
int hp_buffers_new(hp_buffers *buffers, uint32_t per_group, hp_error *error);
void hp_buffers_free(hp_buffers *buffers);

static inline uint8_t *hp_buffer(const hp_buffers *buffers, uint32_t number) {
  return buffers->at + (size_t)number * HP_STRIDE;
}
/* HP_SPARE bytes that no packet touches. */
static inline uint8_t *hp_buffer_spare(const hp_buffers *buffers, uint32_t number) {
  return hp_buffer(buffers, number) + HP_BUFFER;
}
static inline uint32_t hp_buffer_group(const hp_buffers *buffers, uint32_t number) {
  return number / buffers->per_group;
}

/* A received packet in the caller's words. */
static inline hp_packet hp_received(const hp_buffers *buffers, uint32_t number, uint32_t link, uint32_t length) {
  return (hp_packet){
      .data = hp_buffer(buffers, number), .length = length, .capacity = HP_BUFFER, .link = link, .buffer = number};
}

/* The chain as writev() wants it, at most HP_BATCH elements: the first packet whole, of the others what
 * follows their headers. Returns the number of elements. */
int hp_chain_vector(const hp_buffers *buffers, uint32_t head, struct iovec *vector);
/* What writing the chain moves, about. */
uint32_t hp_chain_bytes(const hp_buffers *buffers, uint32_t head);
/* Makes a chain of each of its buffers and calls `each` with it, in order. */
void hp_chain_split(const hp_buffers *buffers, uint32_t head, hp_io *io, void (*each)(hp_io *io, uint32_t head));

/* How reading from a link has gone of late. */
typedef struct hp_reading {
  uint8_t failures; /* reads that failed since the last packet */
  uint8_t waits;    /* calls that have waited, since it was added */
  bool failing;     /* the caller has been told */
} hp_reading;

/* A read has failed: whether the link is to rest (hp_rest_begin() with the length that comes back); 0: not yet. */
uint32_t hp_reading_failed(hp_reading *reading, const hp_io_config *config, uint32_t link, int code);
/* A read has brought a packet, after failures. */
void hp_reading_works(hp_reading *reading, const hp_io_config *config, uint32_t link);
/* The link is not read from any more. */
void hp_reading_ends(hp_reading *reading, const hp_io_config *config);

/* Whether a read or write failed because the device behind the descriptor is gone for good. */
bool hp_io_is_gone(int code);
/* Tells the caller what became of every packet of a chain. */
void hp_chain_failed(const hp_io_config *config, const hp_buffers *buffers, uint32_t head, int code);
/* Tells the caller that a packet could not be written. */
void hp_packet_failed(const hp_io_config *config, uint32_t link, int code);
/* Clears the eventfd; does not wait when it is clear. */
void hp_io_clear_wake(int wake);
/* CLOCK_MONOTONIC, milliseconds. */
int64_t hp_io_clock(void);
/* CLOCK_MONOTONIC, nanoseconds. */
int64_t hp_io_nanoseconds(void);

/* Looking for packets before sleeping pays where one packet waits for another: request and response, a handshake. So
 * it is done after some turns in a row that brought little, and as long as packets come sooner than sleeping and waking
 * take: a wait that was longer than the spin is followed by waits without it, until one was shorter. An idle engine
 * sleeps, and so does a busy one when it is done: meanwhile its next batch grows, and others have the processor. */
typedef struct hp_spin {
  int64_t started;
  uint32_t quiet; /* turns in a row that brought little */
  bool pays;
} hp_spin;
/* What a turn brought. */
void hp_spin_took(hp_spin *spin, const hp_packet *packets, uint32_t count);
/* A wait begins: until when (hp_io_nanoseconds()) to look for packets, 0: sleep at once. */
int64_t hp_spin_begin(hp_spin *spin, const hp_io_config *config);
/* The wait has ended: something came. */
void hp_spin_end(hp_spin *spin, const hp_io_config *config);

/* Whether an engine can start with it; -1 with *error filled if not. */
int hp_io_check_config(const hp_io_config *config, hp_error *error);
/* Whether link may be added with that descriptor and group; -1 with *error filled if not. */
int hp_io_check_add(const hp_io_config *config, uint32_t link, int fd, int group, bool taken, hp_error *error);

#endif
