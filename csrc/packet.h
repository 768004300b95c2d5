/* packet.h: bytes of one packet: headers, lengths, checksums, GSO metadata. Pure functions, no state.
 *
 * A buffer starts with struct virtio_net_hdr (10 bytes, little endian here), then the IPv4 header. All
 * that a packet says about itself is believed only after hp_parse() checked it against the length that
 * the kernel gave. Fields of struct hp_headers are host byte order; the packet itself is network order.
 */
#ifndef HP_PACKET_H
#define HP_PACKET_H

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <string.h>

#include "hyperplane.h"

#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5 /* linux/virtio_net.h from 6.2 */
#endif

enum { HP_ICMP = 1, HP_TCP = 6, HP_UDP = 17 };
enum { HP_IPV4_HEADER = 20, HP_TCP_HEADER = 20, HP_UDP_HEADER = 8, HP_ICMP_HEADER = 8 };
enum { HP_FIN = 0x01, HP_SYN = 0x02, HP_RST = 0x04, HP_PSH = 0x08, HP_ACK = 0x10 };
enum {
  HP_ICMP_ECHO_REPLY = 0,
  HP_ICMP_UNREACHABLE = 3,
  HP_ICMP_ECHO = 8,
  HP_ICMP_TIME_EXCEEDED = 11,
  HP_ICMP_PARAMETER = 12,
  HP_ICMP_TIMESTAMP = 13,
  HP_ICMP_INFORMATION = 15,
  HP_ICMP_ADDRESS_MASK = 17,
  HP_ICMP_EXTENDED_ECHO = 42 /* RFC 8335 */
};
enum { HP_DNS_PORT = 53 }; /* UDP to it: endpoint-dependent, and a short timer */
enum {
  HP_ICMP_PROTOCOL_UNREACHABLE = 2,
  HP_ICMP_PORT_UNREACHABLE = 3,
  HP_ICMP_FRAGMENTATION_NEEDED = 4,
  HP_ICMP_SOURCE_ROUTE_FAILED = 5,
  HP_ICMP_ADMIN_PROHIBITED = 13
};

/* What hp_parse() found. */
typedef struct hp_headers {
  uint32_t source;
  uint32_t destination;
  uint16_t source_port;      /* ICMP echo: the id; ICMP error: 0 */
  uint16_t destination_port; /* ICMP: 0 */
  uint16_t total;            /* IPv4 total length */
  uint16_t payload;          /* bytes after the transport header */
  uint16_t segments;         /* wire packets: 1, or those of a super-segment */
  uint16_t segment;          /* bytes of the largest wire packet (IPv4 total length) */
  uint8_t protocol;
  uint8_t header;    /* IPv4 header length, bytes */
  uint8_t transport; /* transport header length, bytes */
  uint8_t tcp_flags;
  uint8_t icmp_type;
  bool icmp_error; /* carries another packet */
  bool partial;    /* the transport checksum is the pseudo-header's sum only */
  uint8_t ttl;
} hp_headers;
_Static_assert(sizeof(hp_headers) == 28, "headers, key and hash of a packet share a cache line");

/* Big-endian words at any address. By memcpy: compilers make one load or store of that, and of bytes put together
 * not always. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
static inline uint16_t hp_swap16(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t hp_swap32(uint32_t v) { return __builtin_bswap32(v); }
#else
static inline uint16_t hp_swap16(uint16_t v) { return v; }
static inline uint32_t hp_swap32(uint32_t v) { return v; }
#endif
/* Words as they lie in memory. */
static inline uint16_t hp_load16(const uint8_t *p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline uint32_t hp_load32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline uint64_t hp_load64(const uint8_t *p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline uint16_t hp_get16(const uint8_t *p) { return hp_swap16(hp_load16(p)); }
static inline uint32_t hp_get32(const uint8_t *p) { return hp_swap32(hp_load32(p)); }
static inline void hp_put16(uint8_t *p, uint16_t v) {
  v = hp_swap16(v);
  memcpy(p, &v, sizeof v);
}
static inline void hp_put32(uint8_t *p, uint32_t v) {
  v = hp_swap32(v);
  memcpy(p, &v, sizeof v);
}

/* One's complement arithmetic (RFC 1071). A sum is unfolded 32 bits or more, a delta 16 bits. */
static inline uint16_t hp_fold(uint64_t sum) {
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t)sum;
}
/* The delta that turns one value's contribution to a sum into another's (RFC 1624, eqn. 3). */
static inline uint16_t hp_delta32(uint32_t from, uint32_t to) {
  return hp_fold((uint64_t)(uint16_t) ~(from >> 16) + (uint16_t)~from + (to >> 16) + (uint16_t)to);
}
static inline uint16_t hp_delta16(uint16_t from, uint16_t to) { return hp_fold((uint64_t)(uint16_t)~from + to); }
static inline uint16_t hp_delta_add(uint16_t a, uint16_t b) { return hp_fold((uint64_t)a + b); }
/* RFC 1624: HC' = ~(~HC + delta), on the two bytes at p. */
static inline void hp_checksum_apply(uint8_t *p, uint16_t delta) {
  hp_put16(p, (uint16_t)~hp_fold((uint64_t)(uint16_t)~hp_get16(p) + delta));
}
/* A partial checksum is the sum itself, not its complement. */
static inline void hp_partial_apply(uint8_t *p, uint16_t delta) { hp_put16(p, hp_fold((uint64_t)hp_get16(p) + delta)); }

/* The transport checksum of a packet whose addresses or ports change. UDP: 0 means "none" and stays so, and
 * what comes out as 0 is written as 0xffff (RFC 768). */
static inline void hp_checksum_translate(uint8_t *p, uint8_t protocol, uint16_t delta) {
  if (protocol == HP_UDP && hp_get16(p) == 0)
    return;
  hp_checksum_apply(p, delta);
  if (protocol == HP_UDP && hp_get16(p) == 0)
    hp_put16(p, 0xffff);
}

/* The one's complement sum of bytes, as big-endian 16-bit words, not complemented. */
uint64_t hp_sum(const uint8_t *bytes, size_t length);
uint16_t hp_ipv4_checksum(const uint8_t *ip, size_t header);
/* The pseudo-header's sum (RFC 9293 3.1, RFC 768). */
uint64_t hp_pseudo_sum(uint32_t source, uint32_t destination, uint8_t protocol, uint16_t length);

/* Where the transport checksum stands in its header: 16 for TCP, 6 for UDP. */
static inline uint32_t hp_checksum_offset(uint8_t protocol) { return protocol == HP_TCP ? 16 : 6; }

/* Finds and checks every header of a packet of `length` bytes, virtio_net_hdr included; leaves the
 * packet alone. HP_REASON_NONE, or why it must be dropped; *headers then holds what was read so far,
 * the rest 0. */
hp_reason hp_parse(const uint8_t *data, uint32_t length, hp_headers *headers);

/* The packet inside an ICMP error (RFC 792: its header and at least 8 bytes). */
typedef struct hp_quoted {
  uint8_t *ip; /* inside the buffer */
  uint8_t *transport;
  uint32_t source;
  uint32_t destination;
  uint16_t source_port; /* ICMP echo: the id */
  uint16_t destination_port;
  uint16_t available; /* bytes of the transport header and after that are really there */
  uint8_t protocol;
} hp_quoted;
hp_reason hp_parse_quoted(uint8_t *data, const hp_headers *headers, hp_quoted *quoted);

/* Overwrites the IPv4 options that carry addresses with NOP, as they would name addresses of the inside to the VPC, or
 * the other way round; the header's checksum follows. The header must be whole and its checksum right. */
void hp_blank_options(uint8_t *ip);

/* Lowers the MSS option of a SYN to `mss` (RFC 6691); the checksum follows. */
void hp_clamp_mss(uint8_t *data, const hp_headers *headers, uint16_t mss);
/* The window scale of a SYN (RFC 7323), 0 without the option. */
uint8_t hp_window_scale(const uint8_t *data, const hp_headers *headers);

/* A TCP segment without options and payload, and its length with all headers. */
typedef struct hp_segment {
  uint32_t source, destination;
  uint16_t source_port, destination_port;
  uint32_t sequence, acknowledgment;
  uint8_t flags;
} hp_segment;
enum { HP_SEGMENT = HP_VNET_HEADER + HP_IPV4_HEADER + HP_TCP_HEADER };
uint32_t hp_write_segment(uint8_t *data, const hp_segment *segment);

/* Answers, written over the packet in its own buffer. Each returns the new length, header included. */
/* RFC 9293 3.10.7.1: the RST that answers a segment for which there is no connection. */
uint32_t hp_reply_rst(uint8_t *data, const hp_headers *headers);
/* RFC 792 / RFC 1812 4.3.2: an ICMP error from `from`, quoting at most 548 bytes (576 in all). `extra`
 * is the second word: the next-hop MTU for fragmentation needed (RFC 1191). */
uint32_t hp_reply_icmp(uint8_t *data, uint32_t capacity, const hp_headers *headers, uint32_t from, uint8_t type,
                       uint8_t code, uint32_t extra);
/* RFC 1122 3.2.2, RFC 1812 4.3.2.7: errors are not sent about ICMP errors, nor from or to what is no single host. */
bool hp_may_answer(const hp_headers *headers);
/* Whether an ICMP message of that type asks for something, so that it is surely no error. */
bool hp_icmp_asks(uint8_t type);

#endif
