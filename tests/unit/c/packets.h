/* packets.h: makes packets as a kernel would hand them over, and looks at the engine's with sums of its own. */
#ifndef PACKETS_H
#define PACKETS_H

#include "invariants.h"
#include "steady.h"

enum { MAX_OPTIONS = 40, VNET = HP_VNET_HEADER };

typedef struct recipe {
  uint32_t source, destination;
  uint16_t source_port, destination_port; /* ICMP echo: the id is the first */
  uint8_t protocol;
  uint8_t flags;            /* TCP; ICMP: the type */
  uint8_t code;             /* ICMP */
  uint8_t ttl;              /* 0: 64 */
  bool may_fragment;        /* without DF */
  uint8_t ip_options;       /* bytes, a multiple of 4 */
  const uint8_t *ip_option; /* these; NULL: all NOP */
  uint8_t tcp_options;      /* bytes, a multiple of 4 */
  const uint8_t *option;    /* these; NULL: all NOP */
  uint16_t payload;         /* bytes */
  const uint8_t *content;
  bool partial; /* the checksum is left to the kernel */
  uint16_t gso; /* segment size of a super-segment */
  bool no_checksum;
  uint32_t sequence, acknowledgment; /* TCP; ICMP error: second word is .sequence */
} recipe;

/* One's complement sum, word by word (RFC 1071 1), folded. */
static inline uint16_t plain_sum(const uint8_t *bytes, size_t length, uint32_t sum) {
  for (size_t i = 0; i < length; i++) {
    sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return (uint16_t)sum;
}

static inline uint32_t pseudo_sum(const uint8_t *ip, uint32_t length) {
  uint32_t sum = plain_sum(ip + 12, 8, 0);
  return sum + ip[9] + length;
}

static inline uint8_t *transport_of(uint8_t *data) { return data + VNET + (data[VNET] & 15) * 4; }

static inline uint32_t write_transport(uint8_t *l4, const recipe *r) {
  hp_put16(l4, r->source_port);
  hp_put16(l4 + 2, r->destination_port);
  if (r->protocol == HP_UDP) {
    hp_put16(l4 + 4, (uint16_t)(8 + r->payload));
    return 8;
  }
  if (r->protocol == HP_TCP) {
    hp_put32(l4 + 4, r->sequence);
    hp_put32(l4 + 8, r->acknowledgment);
    l4[12] = (uint8_t)((20 + r->tcp_options) / 4 << 4);
    l4[13] = r->flags;
    hp_put16(l4 + 14, 0xfaf0);
    if (r->option)
      memcpy(l4 + 20, r->option, r->tcp_options);
    else
      memset(l4 + 20, 1, r->tcp_options);
    return 20u + r->tcp_options;
  }
  l4[0] = r->flags;
  l4[1] = r->code;
  hp_put16(l4 + 2, 0);
  bool echo = r->flags == HP_ICMP_ECHO || r->flags == HP_ICMP_ECHO_REPLY;
  hp_put32(l4 + 4, echo ? (uint32_t)r->source_port << 16 | 1 : r->sequence);
  return 8;
}

static inline uint32_t checksum_offset(uint8_t protocol) {
  return protocol == HP_TCP ? 16 : protocol == HP_UDP ? 6 : 2;
}

/* Fills in the transport checksum of a whole packet. */
static inline void write_checksum(uint8_t *data, bool partial) {
  uint8_t *ip = data + VNET, *l4 = transport_of(data);
  uint32_t length = hp_get16(ip + 2) - (uint32_t)(l4 - ip), at = checksum_offset(ip[9]);
  uint32_t pseudo = ip[9] == HP_ICMP ? 0 : pseudo_sum(ip, length);
  hp_put16(l4 + at, 0);
  uint16_t sum = partial ? plain_sum(l4, 0, (pseudo & 0xffff) + (pseudo >> 16)) : plain_sum(l4, length, pseudo);
  uint16_t checksum = partial ? sum : (uint16_t)~sum;
  hp_put16(l4 + at, ip[9] == HP_UDP && checksum == 0 && !partial ? 0xffff : checksum);
}

static inline void write_ip_checksum(uint8_t *ip) {
  hp_put16(ip + 10, 0);
  hp_put16(ip + 10, (uint16_t)~plain_sum(ip, (ip[0] & 15u) * 4, 0));
}

/* Returns the length, virtio_net_hdr included. */
static inline uint32_t make_packet(uint8_t *data, const recipe *r) {
  uint32_t header = 20u + r->ip_options;
  uint8_t *ip = data + VNET, *l4 = ip + header;
  memset(data, 0, VNET + header + 60);
  ip[0] = (uint8_t)(0x40 | header / 4);
  hp_put16(ip + 4, 0x1234);
  ip[6] = r->may_fragment ? 0 : 0x40;
  ip[8] = r->ttl ? r->ttl : 64;
  ip[9] = r->protocol;
  hp_put32(ip + 12, r->source);
  hp_put32(ip + 16, r->destination);
  if (r->ip_option)
    memcpy(ip + 20, r->ip_option, r->ip_options);
  else
    memset(ip + 20, 1, r->ip_options);
  uint32_t transport = write_transport(l4, r);
  for (uint32_t i = 0; i < r->payload; i++)
    l4[transport + i] = r->content ? r->content[i] : (uint8_t)(i * 7);
  hp_put16(ip + 2, (uint16_t)(header + transport + r->payload));
  write_ip_checksum(ip);
  if (!r->no_checksum)
    write_checksum(data, r->partial);
  if (r->partial) {
    struct virtio_net_hdr vnet = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                  .csum_start = (uint16_t)header,
                                  .csum_offset = (uint16_t)checksum_offset(r->protocol),
                                  .gso_size = r->gso};
    if (r->gso)
      vnet.gso_type = r->protocol == HP_TCP ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4;
    memcpy(data, &vnet, sizeof vnet);
  }
  return VNET + header + transport + r->payload;
}

/* A walk of its own: whether an option of that header may hold addresses. */
static inline bool shows_addresses(const uint8_t *ip) {
  static const uint8_t carrying[] = {7, 68, 82, 131, 137, 147, 149};
  const uint8_t *at = ip + 20, *end = ip + (ip[0] & 15) * 4;
  while (at < end && *at != 0) {
    if (*at == 1) {
      at++;
      continue;
    }
    if (memchr(carrying, *at, sizeof carrying))
      return true;
    if (end - at < 2 || at[1] < 2 || at[1] > end - at)
      return false;
    at += at[1];
  }
  return false;
}

static inline bool ip_checksum_right(const uint8_t *ip) { return plain_sum(ip, (ip[0] & 15u) * 4, 0) == 0xffff; }

/* Of a whole packet whose lengths are right. A UDP checksum of 0 is right (RFC 768), a partial one holds the
 * pseudo-header's sum. */
static inline bool transport_checksum_right(const uint8_t *data) {
  struct virtio_net_hdr vnet;
  const uint8_t *ip = data + VNET, *l4 = ip + (ip[0] & 15u) * 4;
  uint32_t length = hp_get16(ip + 2) - (uint32_t)(l4 - ip);
  uint16_t checksum = hp_get16(l4 + checksum_offset(ip[9]));
  memcpy(&vnet, data, sizeof vnet);
  if (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    return (checksum % 0xffff) == pseudo_sum(ip, length) % 0xffff;
  if (ip[9] == HP_UDP && checksum == 0)
    return true;
  return plain_sum(l4, length, ip[9] == HP_ICMP ? 0 : pseudo_sum(ip, length)) == 0xffff;
}

/* Where the short way applies it finds what the general parser finds: true when it does. Where it does not apply the
 * packet must be none that nearly all are. */
static inline bool check_steady(const uint8_t *data, uint32_t length) {
  hp_steady s = {0};
  hp_headers h;
  bool steady = hp_steady_parse(data, length, &s), sound = hp_parse(data, length, &h) == HP_REASON_NONE;
  bool common = sound && length >= HP_STEADY_LEAST && h.header == HP_IPV4_HEADER &&
                (h.protocol == HP_TCP || h.protocol == HP_UDP) && data[1] == VIRTIO_NET_HDR_GSO_NONE &&
                !(h.tcp_flags & (HP_SYN | HP_FIN | HP_RST));
  HOLD(steady == common);
  if (!steady)
    return false;
  HOLD(s.addresses == (uint64_t)h.source << 32 && (uint32_t)s.remote == h.destination);
  HOLD(s.remote >> 32 == ((uint32_t)h.source_port << 16 | h.destination_port));
  HOLD(s.total == h.total && s.protocol == h.protocol);
  HOLD(h.segments == 1 && h.segment == h.total && !h.icmp_error);
  return true;
}

#endif
