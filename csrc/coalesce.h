/* coalesce.h: packets of one flow that follow each other leave as one write. */
#ifndef HP_COALESCE_H
#define HP_COALESCE_H

#include "gso.h"
#include "io_common.h"

enum {
  HP_COALESCE_PACKETS = 64, /* of one run, as they were received */
  HP_COALESCE_BITS = 6,
  HP_COALESCE_SETS = 1 << HP_COALESCE_BITS,
  HP_COALESCE_WAYS = 4,   /* open runs of one set */
  HP_COALESCE_ORDER = 512 /* runs that may be opened between two flushes */
};

typedef struct hp_run {
  hp_piece first;
  uint32_t head;
  uint32_t tail;
  uint32_t most;    /* segments that the device takes */
  hp_joined joined; /* no packets: no run */
} hp_run;

typedef struct hp_coalescer {
  const hp_buffers *buffers;
  /* Writes the chain and gives it back. */
  void (*write)(hp_io *io, uint32_t head);
  hp_io *io;
  uint32_t max_links;
  uint8_t *refuses;                  /* by link: which super-packets its device refuses (HP_REFUSES_*) */
  uint32_t opened;                   /* entries of order[] */
  uint16_t order[HP_COALESCE_ORDER]; /* runs in the order in which they were opened, those that have ended too */
  hp_run runs[HP_COALESCE_SETS * HP_COALESCE_WAYS];
} hp_coalescer;

enum { HP_REFUSES_UDP = 1, HP_REFUSES_TCP = 2, HP_REFUSES_LONG = 4 /* more than HP_GSO_UDP_SEGMENTS_ONCE datagrams */ };

/* Returns 0, or -1 without memory. */
int hp_coalesce_open(hp_coalescer *coalescer, const hp_buffers *buffers, uint32_t max_links, hp_io *io,
                     void (*write)(hp_io *io, uint32_t head));
void hp_coalesce_close(hp_coalescer *coalescer);
/* Another device stands behind the link from now on. */
void hp_coalesce_link(hp_coalescer *coalescer, uint32_t link);
/* Writes the packet, at once or together with the next ones, by hp_coalesce_flush() at the latest. */
void hp_coalesce_send(hp_coalescer *coalescer, const hp_packet *packet);
void hp_coalesce_flush(hp_coalescer *coalescer);
/* The write of a chain has failed. True when that was because its device takes no super-packets of its kind, or none
 * with as many datagrams: the packets are again as they were sent, each one of the chain is to be written by itself,
 * and no further such runs are made for that link. */
bool hp_coalesce_refused(hp_coalescer *coalescer, uint32_t head, int code);

#endif
