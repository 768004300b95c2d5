/* gso.h: what a packet can contribute to a super-packet, and a super-packet's headers (generic segmentation
 * offload). Pure functions on bytes, no state. */
#ifndef HP_GSO_H
#define HP_GSO_H

#include "packet.h"

enum {
  HP_GSO_HEADERS = HP_VNET_HEADER + HP_IPV4_HEADER + 60, /* the longest that are joined: TCP with all its options */
  /* Datagrams of one super-packet: UDP_MAX_SEGMENTS in linux/udp.h, and what it was before 6.9. TUNs hold everybody to
   * it, who get EINVAL. */
  HP_GSO_UDP_SEGMENTS = 128,
  HP_GSO_UDP_SEGMENTS_ONCE = 64
};

typedef enum hp_gso_fit {
  HP_GSO_APART,   /* of no TCP or UDP flow: its place among others does not matter */
  HP_GSO_UNKNOWN, /* of a flow that cannot be told: it stays where it is among those of its link */
  HP_GSO_ALONE,   /* leaves alone, in its place among those of its flow */
  HP_GSO_JOINS    /* may be part of a super-packet */
} hp_gso_fit;

/* A packet, single or super, as part of a super-packet. Of packets that do not join only the first line is set. */
typedef struct hp_piece {
  uint64_t addresses;
  uint32_t ports;
  uint32_t channel; /* link << 8 | protocol: with addresses and ports, the flow in one direction */
  uint32_t header;  /* IPv4: TOS, flags and fragment offset, TTL */
  uint32_t control; /* TCP: data offset, flags but PSH and FIN, window */
  uint32_t sequence;
  uint32_t acknowledgment;
  uint32_t payload; /* bytes, of all its segments */
  uint16_t segment; /* bytes of payload in each wire packet but the last */
  uint16_t segments;
  uint16_t id;
  uint8_t headers; /* bytes of IPv4 and transport header */
  uint8_t ends;    /* TCP: PSH and FIN */
  bool last;       /* nothing may follow it in a super-packet */
  bool sound;      /* the checksum is known to be right, or still to be filled in */
} hp_piece;

/* What has joined so far. */
typedef struct hp_joined {
  uint32_t packets;  /* as they were received */
  uint32_t segments; /* wire packets */
  uint32_t payload;  /* bytes, all together */
} hp_joined;

/* Looks at a translated packet that leaves by `link`; `length` includes the virtio_net_hdr. */
hp_gso_fit hp_gso_inspect(const uint8_t *data, uint32_t length, uint32_t link, hp_piece *piece);
/* Whether `next`, in `next_data`, may follow `first` and what joined it so far. Checksums are not looked at, nor how
 * many datagrams the device takes. */
bool hp_gso_follows(const hp_piece *first, const uint8_t *first_data, const hp_joined *joined, const hp_piece *next,
                    const uint8_t *next_data);
/* The transport checksum of a whole single packet is right. */
bool hp_gso_checksum_right(const uint8_t *data, const hp_piece *piece);
/* How many datagrams the super-packet of UDP in `data` stands for. */
uint32_t hp_gso_datagrams(const uint8_t *data);
/* Turns the headers of the first packet into those of a super-packet of `payload` bytes whose last piece has the TCP
 * flags `ends`. */
void hp_gso_write(uint8_t *data, const hp_piece *first, uint32_t payload, uint8_t ends);

#endif
