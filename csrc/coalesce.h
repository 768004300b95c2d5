/* coalesce.h: runs of equal UDP datagrams leave as one write. */
#ifndef HP_COALESCE_H
#define HP_COALESCE_H

#include "io_common.h"

enum {
  HP_COALESCE_HEADERS = HP_VNET_HEADER + 20 + 8, /* before the payload: virtio_net_hdr, IPv4 without options, UDP */
  HP_COALESCE_PACKETS = 64,                      /* UDP_MAX_SEGMENTS was 64 before Linux 6.9; also HP_BATCH */
  HP_COALESCE_BYTES = 65000,                     /* payload of one super-packet: IPv4 ends at 65,535 */
  HP_COALESCE_RUNS = 16                          /* links with an open run at a time */
};

/* What must be the same in all datagrams of a run. */
typedef struct hp_datagram {
  uint64_t addresses;
  uint32_t ports;
  uint32_t header;  /* version, header length, TOS; flags, fragment offset; TTL, protocol */
  uint32_t payload; /* bytes */
  uint16_t id;
  bool sound; /* the checksum is known to be right, or still to be filled in */
} hp_datagram;

typedef struct hp_run {
  hp_datagram first;
  uint32_t link;
  uint32_t head;
  uint32_t tail;
  uint32_t packets; /* 0: no run */
  uint32_t payload; /* bytes, all together */
} hp_run;

typedef struct hp_coalescer {
  const hp_buffers *buffers;
  /* Writes the chain and gives it back. */
  void (*write)(hp_io *io, uint32_t head);
  hp_io *io;
  bool enabled;
  uint32_t open; /* a bit for each of runs that has packets */
  hp_run runs[HP_COALESCE_RUNS];
} hp_coalescer;

void hp_coalesce_init(hp_coalescer *coalescer, const hp_buffers *buffers, hp_io *io,
                      void (*write)(hp_io *io, uint32_t head));
/* Writes the packet, at once or together with the next ones, by hp_coalesce_flush() at the latest. */
void hp_coalesce_send(hp_coalescer *coalescer, const hp_packet *packet);
void hp_coalesce_flush(hp_coalescer *coalescer);

#endif
