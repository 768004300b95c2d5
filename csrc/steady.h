/* steady.h: the packet that nearly all are: IPv4 without options, whole, UDP or TCP, no super-segment, no SYN, FIN or
 * RST; plain, or with a partial checksum at the right place.
 *
 * hp_steady_parse() finds that out with a few wide loads and hardly a branch. What it says no to is not wrong: it goes
 * to hp_parse(), which knows everything, and nothing has been changed yet. What it says yes to, hp_parse() accepts too,
 * and finds the same (tests/fuzz and tests/unit/c/test_steady.c hold them against each other).
 *
 * Only for little-endian machines: what a big-endian one does with these packets is right as well, and slower.
 */
#ifndef HP_STEADY_H
#define HP_STEADY_H

#include "packet.h"

enum { HP_TTL_STEP = 0xfeff /* one's complement of 0x0100: what a TTL one lower changes in the sum */ };

/* Where TCP's flags end: shorter ones, datagrams with less than 6 bytes, take the other way. */
enum { HP_STEADY_LEAST = HP_VNET_HEADER + HP_IPV4_HEADER + 14 };

/* What is known of such a packet, in host byte order. */
typedef struct hp_steady {
  uint64_t addresses; /* source << 32, so that it can be joined with the link as hp_key has them in memory */
  uint64_t remote;    /* destination | ports << 32, likewise */
  uint32_t protocol;
  uint32_t total;
} hp_steady;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

/* One's complement sums of the halves of a word: what is carried out of the upper half by adding the word to itself,
 * halves changed over, comes in again at the lower one. */
static inline uint32_t hp_fold64(uint64_t sum) { return (uint32_t)((sum + (sum << 32 | sum >> 32)) >> 32); }
static inline uint32_t hp_fold32(uint32_t sum) { return (sum + (sum << 16 | sum >> 16)) >> 16; }

/* Conditions are gathered and tested once: each of them alone hardly ever fails, and a branch for each would cost more
 * than its arithmetic. Nor is there a branch on the protocol, which traffic mixes. */
static inline bool hp_steady_parse(const uint8_t *data, uint32_t length, hp_steady *s) {
  const uint8_t *ip = data + HP_VNET_HEADER;
  if (length - HP_STEADY_LEAST >= HP_BUFFER - HP_STEADY_LEAST)
    return false;
  uint64_t first = hp_load64(ip), second = hp_load64(ip + 8), third = hp_load64(ip + 16);
  uint32_t protocol = (uint8_t)(second >> 8), tcp = protocol == HP_TCP;
  if (!tcp && protocol != HP_UDP)
    return false;
  uint64_t bad = (first & 0xff3f0000000000ffu) ^ 0x45; /* version 4, five words, no fragment */
  /* The header's sum, of its words as they lie in memory: neither the order of bytes nor the width of words matters
   * to it (RFC 1071 2 A, B). `first` is small, unless the packet is bad. */
  uint64_t sum = first + (uint32_t)third;
  sum += second;
  sum += sum < second;
  bad |= hp_fold32(hp_fold64(sum)) ^ 0xffff;
  /* UDP's length, or TCP's header length and flags: two bytes either way. A difference is negative when what it says
   * does not fit. */
  uint32_t total = hp_swap16((uint16_t)(first >> 16)), word = hp_load16(ip + HP_IPV4_HEADER + 4 + tcp * 8);
  uint32_t offset = (word & 0xf0) >> 2, claimed = tcp ? offset : hp_swap16((uint16_t)word);
  uint32_t least = HP_UDP_HEADER + tcp * (HP_TCP_HEADER - HP_UDP_HEADER);
  bad |= ((length - HP_VNET_HEADER - total) | (claimed - least) | (total - HP_IPV4_HEADER - claimed)) & 0x80000000u;
  bad |= word >> 8 & (HP_SYN | HP_FIN | HP_RST) & -tcp;
  /* of virtio_net_hdr: flags and gso_type; csum_start and csum_offset */
  uint32_t offload = hp_load16(data), partial = offload & VIRTIO_NET_HDR_F_NEEDS_CSUM;
  bad |= (offload & 0xff00) | ((hp_load32(data + 6) ^ (HP_IPV4_HEADER | (6 + tcp * 10) << 16)) & -partial);
  uint64_t turned = __builtin_bswap64(third);
  s->addresses = __builtin_bswap64(second) << 32;
  s->remote = turned << 32 | turned >> 32;
  s->protocol = protocol;
  s->total = total;
  return bad == 0;
}

/* Address, port, checksums, time to live: what rewrite() in nat.c does, for such a packet. `side` is where it comes
 * from: from outside its destination changes, from inside its source. As few branches as when parsing. */
static inline void hp_steady_rewrite(uint8_t *data, uint32_t tcp, uint32_t side, uint32_t address, uint16_t port,
                                     uint32_t delta_address, uint32_t delta_full) {
  uint8_t *ip = data + HP_VNET_HEADER, *at = ip + HP_IPV4_HEADER + 6 + tcp * 10;
  uint32_t partial = data[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM, keep = -partial;
  hp_put32(ip + 12 + 4 * side, address);
  hp_put16(ip + HP_IPV4_HEADER + 2 * side, port);
  uint32_t checksum = hp_get16(at), flip = ~keep & 0xffff; /* a partial one is the sum, not its complement */
  uint32_t fixed = hp_fold32((checksum ^ flip) + (delta_full ^ ((delta_full ^ delta_address) & keep))) ^ flip;
  if (!(tcp | partial)) { /* RFC 768: 0 says that there is none */
    fixed = fixed == 0 ? 0xffff : fixed;
    fixed = checksum == 0 ? 0 : fixed;
  }
  hp_put16(at, (uint16_t)fixed);
  uint32_t hop = hp_get32(ip + 8); /* time to live, protocol, checksum */
  uint32_t sum = ~hp_fold32((~hop & 0xffff) + delta_address + HP_TTL_STEP);
  hp_put32(ip + 8, ((hop & 0xffff0000u) - 0x01000000u) | (sum & 0xffff));
  /* The virtio_net_hdr says where a partial checksum is, else nothing. */
  uint64_t vnet = (VIRTIO_NET_HDR_F_NEEDS_CSUM | (uint64_t)HP_IPV4_HEADER << 48) & -(uint64_t)partial;
  uint16_t offset = (uint16_t)((6 + tcp * 10) & keep);
  memcpy(data, &vnet, sizeof vnet);
  memcpy(data + 8, &offset, sizeof offset);
}

#else
static inline bool hp_steady_parse(const uint8_t *data, uint32_t length, hp_steady *s) {
  (void)data, (void)length;
  *s = (hp_steady){0};
  return false;
}
static inline void hp_steady_rewrite(uint8_t *data, uint32_t tcp, uint32_t side, uint32_t address, uint16_t port,
                                     uint32_t delta_address, uint32_t delta_full) {
  (void)data, (void)tcp, (void)side, (void)address, (void)port, (void)delta_address, (void)delta_full;
}
#endif

#endif
