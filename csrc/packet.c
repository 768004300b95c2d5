/* packet.c: reading and writing the bytes of one packet.
 *
 * The receive path runs hp_parse() once; all later code trusts the offsets in hp_headers, and nothing
 * else of what the packet says. A super-segment (GSO) is one packet here: its lengths are those of the
 * whole, `segment` is what the largest wire packet will measure.
 */
#include "packet.h"

/* What Linux itself makes at most (TCP_MIN_GSO_SIZE in net/tcp.h, UDP_MAX_SEGMENTS in linux/udp.h). Whoever
 * writes raw frames could ask for more, and the VPC's kernel would have to cut one write into 65,000. */
enum { TCP_LEAST_GSO = 8, UDP_MOST_SEGMENTS = 128 };
/* IPv4 options that carry addresses: of RFC 791 3.1, and those that RFC 6814 has made obsolete. */
enum {
  END_OF_OPTIONS = 0,
  NO_OPTION = 1,
  RECORD_ROUTE = 7,
  TIMESTAMP = 68,
  TRACEROUTE = 82,
  LOOSE_ROUTE = 131,
  STRICT_ROUTE = 137,
  ADDRESS_EXTENSION = 147,
  DIRECTED_BROADCAST = 149
};
enum { MSS_OPTION = 2, SCALE_OPTION = 3, QUOTE_LIMIT = 576 /* RFC 1812 4.3.2.3: of the whole error */ };

uint64_t hp_sum(const uint8_t *bytes, size_t length) {
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + 4 <= length; i += 4) {
    uint32_t word;
    memcpy(&word, bytes + i, 4);
    sum += __builtin_bswap32(word);
  }
  if (i + 2 <= length) {
    sum += (uint64_t)hp_get16(bytes + i);
    i += 2;
  }
  if (i < length)
    sum += (uint64_t)bytes[i] << 8;
  return sum;
}

uint16_t hp_ipv4_checksum(const uint8_t *ip, size_t header) { return (uint16_t)~hp_fold(hp_sum(ip, header)); }

uint64_t hp_pseudo_sum(uint32_t source, uint32_t destination, uint8_t protocol, uint16_t length) {
  return (uint64_t)source + destination + protocol + length;
}

/* ---- parsing ---- */

static hp_reason parse_transport(const uint8_t *l4, uint32_t available, hp_headers *h) {
  if (h->protocol == HP_TCP) {
    if (available < HP_TCP_HEADER)
      return HP_MALFORMED_L4;
    h->transport = (uint8_t)((l4[12] >> 4) * 4);
    if (h->transport < HP_TCP_HEADER || h->transport > available)
      return HP_MALFORMED_L4;
    h->tcp_flags = l4[13] & 0x3f;
  } else if (h->protocol == HP_UDP) {
    if (available < HP_UDP_HEADER || hp_get16(l4 + 4) < HP_UDP_HEADER || hp_get16(l4 + 4) > available)
      return HP_MALFORMED_L4; /* shorter than the packet is allowed: padding, or options */
    h->transport = HP_UDP_HEADER;
  } else {
    return HP_UNSUPPORTED_PROTOCOL;
  }
  h->source_port = hp_get16(l4);
  h->destination_port = hp_get16(l4 + 2);
  return HP_REASON_NONE;
}

static hp_reason parse_icmp(const uint8_t *l4, uint32_t available, hp_headers *h) {
  if (available < HP_ICMP_HEADER)
    return HP_MALFORMED_L4;
  h->transport = HP_ICMP_HEADER;
  h->icmp_type = l4[0];
  switch (h->icmp_type) {
  case HP_ICMP_ECHO:
  case HP_ICMP_ECHO_REPLY:
    h->source_port = hp_get16(l4 + 4);
    return HP_REASON_NONE;
  case HP_ICMP_UNREACHABLE:
  case HP_ICMP_TIME_EXCEEDED:
  case HP_ICMP_PARAMETER:
    h->icmp_error = true;
    return hp_fold(hp_sum(l4, available)) == 0xffff ? HP_REASON_NONE : HP_BAD_CHECKSUM;
  default:
    return HP_UNSUPPORTED_ICMP;
  }
}

/* Of the IPv4 option at `at`. One that lies about its length takes the rest of the header: its receiver drops the
 * packet. */
static uint32_t option_size(const uint8_t *ip, uint32_t header, uint32_t at) {
  if (ip[at] == NO_OPTION)
    return 1;
  bool sound = at + 1 < header && ip[at + 1] >= 2 && ip[at + 1] <= header - at;
  return sound ? ip[at + 1] : header - at;
}

/* Whether the options ask for a route of the sender's own (RFC 791 3.1). */
static bool source_routed(const uint8_t *ip, uint32_t header) {
  for (uint32_t at = HP_IPV4_HEADER; at < header && ip[at] != END_OF_OPTIONS; at += option_size(ip, header, at))
    if (ip[at] == LOOSE_ROUTE || ip[at] == STRICT_ROUTE)
      return true;
  return false;
}

static bool carries_addresses(uint8_t option) {
  return option == RECORD_ROUTE || option == TIMESTAMP || option == TRACEROUTE || option == LOOSE_ROUTE ||
         option == STRICT_ROUTE || option == ADDRESS_EXTENSION || option == DIRECTED_BROADCAST;
}

void hp_blank_options(uint8_t *ip) {
  uint32_t header = (ip[0] & 15u) * 4;
  bool blanked = false;
  for (uint32_t at = HP_IPV4_HEADER; at < header && ip[at] != END_OF_OPTIONS;) {
    uint32_t size = option_size(ip, header, at);
    if (carries_addresses(ip[at])) {
      memset(ip + at, NO_OPTION, size);
      blanked = true;
    }
    at += size;
  }
  if (!blanked)
    return;
  hp_put16(ip + 10, 0);
  hp_put16(ip + 10, hp_ipv4_checksum(ip, header));
}

/* The virtio_net_hdr promises what the kernel shall do for us on the way out; a wrong promise would make
 * it write a checksum over other bytes or cut segments in the wrong place. */
static hp_reason parse_vnet(const struct virtio_net_hdr *vnet, hp_headers *h) {
  h->partial = (vnet->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
  if (h->partial &&
      (h->protocol == HP_ICMP || vnet->csum_start != h->header || vnet->csum_offset != hp_checksum_offset(h->protocol)))
    return HP_BAD_VNET_HEADER;
  h->segments = 1;
  h->segment = h->total;
  uint8_t type = vnet->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
  if (type == VIRTIO_NET_HDR_GSO_NONE)
    return vnet->gso_type ? HP_BAD_VNET_HEADER : HP_REASON_NONE;
  bool fits = (type == VIRTIO_NET_HDR_GSO_TCPV4 && h->protocol == HP_TCP) ||
              (vnet->gso_type == VIRTIO_NET_HDR_GSO_UDP_L4 && h->protocol == HP_UDP);
  if (!fits || !h->partial || vnet->gso_size < (h->protocol == HP_TCP ? TCP_LEAST_GSO : 1))
    return HP_BAD_VNET_HEADER;
  if (h->payload > vnet->gso_size) {
    h->segments = (uint16_t)((h->payload + vnet->gso_size - 1u) / vnet->gso_size);
    h->segment = (uint16_t)(h->header + h->transport + vnet->gso_size);
  }
  return h->protocol == HP_UDP && h->segments > UDP_MOST_SEGMENTS ? HP_BAD_VNET_HEADER : HP_REASON_NONE;
}

hp_reason hp_parse(const uint8_t *data, uint32_t length, hp_headers *h) {
  *h = (hp_headers){0};
  if (length >= HP_BUFFER)
    return HP_TRUNCATED;
  if (length < HP_VNET_HEADER + 1)
    return HP_MALFORMED_IP;
  const uint8_t *ip = data + HP_VNET_HEADER;
  uint32_t available = length - HP_VNET_HEADER;
  if (ip[0] >> 4 == 6)
    return HP_UNSUPPORTED_IPV6;
  if (ip[0] >> 4 != 4 || available < HP_IPV4_HEADER)
    return HP_MALFORMED_IP;
  uint32_t header = (ip[0] & 15u) * 4, total = hp_get16(ip + 2);
  if (header < HP_IPV4_HEADER || header > total || total > available)
    return HP_MALFORMED_IP;
  h->header = (uint8_t)header;
  h->total = (uint16_t)total;
  h->ttl = ip[8];
  h->protocol = ip[9];
  h->source = hp_get32(ip + 12);
  h->destination = hp_get32(ip + 16);
  if (hp_fold(hp_sum(ip, header)) != 0xffff)
    return HP_BAD_CHECKSUM;
  if (header > HP_IPV4_HEADER && source_routed(ip, header))
    return HP_SOURCE_ROUTE;
  if (hp_get16(ip + 6) & 0x3fff)
    return HP_FRAGMENT;
  const uint8_t *l4 = ip + header;
  hp_reason reason =
      h->protocol == HP_ICMP ? parse_icmp(l4, total - header, h) : parse_transport(l4, total - header, h);
  if (reason != HP_REASON_NONE)
    return reason;
  h->payload = (uint16_t)(total - header - h->transport);
  struct virtio_net_hdr vnet;
  memcpy(&vnet, data, sizeof vnet);
  return parse_vnet(&vnet, h);
}

hp_reason hp_parse_quoted(uint8_t *data, const hp_headers *h, hp_quoted *q) {
  uint8_t *ip = data + HP_VNET_HEADER + h->header + HP_ICMP_HEADER;
  uint32_t available = h->payload;
  *q = (hp_quoted){.ip = ip};
  if (available < HP_IPV4_HEADER + 8 || ip[0] >> 4 != 4)
    return HP_MALFORMED_L4;
  uint32_t header = (ip[0] & 15u) * 4;
  if (header < HP_IPV4_HEADER || header + 8 > available || (hp_get16(ip + 6) & 0x1fff))
    return HP_MALFORMED_L4;
  if (hp_fold(hp_sum(ip, header)) != 0xffff)
    return HP_BAD_CHECKSUM; /* RFC 5508 REQ-3 b */
  q->transport = ip + header;
  q->available = (uint16_t)(available - header);
  q->protocol = ip[9];
  q->source = hp_get32(ip + 12);
  q->destination = hp_get32(ip + 16);
  if (q->protocol == HP_TCP || q->protocol == HP_UDP) {
    q->source_port = hp_get16(q->transport);
    q->destination_port = hp_get16(q->transport + 2);
    return HP_REASON_NONE;
  }
  if (q->protocol == HP_ICMP && (q->transport[0] == HP_ICMP_ECHO || q->transport[0] == HP_ICMP_ECHO_REPLY)) {
    q->source_port = hp_get16(q->transport + 4);
    return HP_REASON_NONE;
  }
  return HP_UNSUPPORTED_PROTOCOL;
}

/* ---- TCP options ---- */

/* The option of that kind and length inside the TCP header, or NULL. */
static const uint8_t *tcp_option(const uint8_t *data, const hp_headers *h, uint8_t kind, uint8_t size) {
  const uint8_t *at = data + HP_VNET_HEADER + h->header + HP_TCP_HEADER;
  const uint8_t *end = at + h->transport - HP_TCP_HEADER;
  while (at < end && *at != 0) {
    if (*at == 1) {
      at++;
      continue;
    }
    if (end - at < 2 || at[1] < 2 || at[1] > end - at)
      return NULL;
    if (at[0] == kind)
      return at[1] == size ? at : NULL;
    at += at[1];
  }
  return NULL;
}

void hp_clamp_mss(uint8_t *data, const hp_headers *h, uint16_t mss) {
  const uint8_t *option = tcp_option(data, h, MSS_OPTION, 4);
  if (!option || hp_get16(option + 2) <= mss)
    return;
  uint8_t *l4 = data + HP_VNET_HEADER + h->header;
  uint32_t at = (uint32_t)(option + 2 - l4);
  if (!h->partial) {
    /* An option at an odd offset straddles two words of the sum: its bytes count swapped (RFC 1071 2B). */
    uint16_t from = hp_get16(l4 + at), to = mss;
    if (at & 1) {
      from = __builtin_bswap16(from);
      to = __builtin_bswap16(to);
    }
    hp_checksum_apply(l4 + hp_checksum_offset(HP_TCP), hp_delta16(from, to));
  }
  hp_put16(l4 + at, mss);
}

uint8_t hp_window_scale(const uint8_t *data, const hp_headers *h) {
  const uint8_t *option = tcp_option(data, h, SCALE_OPTION, 3);
  return option ? (uint8_t)(option[2] > 14 ? 14 : option[2]) : 0; /* RFC 7323 2.3 */
}

/* ---- answers ---- */

/* Of one host that others can reach: not this network, loopback, multicast, class E (RFC 1812 5.3.7). */
static bool is_host(uint32_t address) { return address >> 24 != 0 && address >> 24 != 127 && address >> 28 < 14; }

bool hp_may_answer(const hp_headers *h) { return !h->icmp_error && is_host(h->source) && is_host(h->destination); }

bool hp_icmp_asks(uint8_t type) {
  return type == HP_ICMP_ECHO || type == HP_ICMP_TIMESTAMP || type == HP_ICMP_INFORMATION ||
         type == HP_ICMP_ADDRESS_MASK || type == HP_ICMP_EXTENDED_ECHO;
}

/* An IPv4 header of 20 bytes for an answer: TTL 64, DF, id 0 (RFC 6864: atomic). */
static void write_header(uint8_t *data, uint32_t source, uint32_t destination, uint8_t protocol, uint32_t total) {
  uint8_t *ip = data + HP_VNET_HEADER;
  memset(data, 0, HP_VNET_HEADER);
  memset(ip, 0, HP_IPV4_HEADER);
  ip[0] = 0x45;
  hp_put16(ip + 2, (uint16_t)total);
  ip[6] = 0x40;
  ip[8] = 64;
  ip[9] = protocol;
  hp_put32(ip + 12, source);
  hp_put32(ip + 16, destination);
  hp_put16(ip + 10, hp_ipv4_checksum(ip, HP_IPV4_HEADER));
}

uint32_t hp_write_segment(uint8_t *data, const hp_segment *s) {
  write_header(data, s->source, s->destination, HP_TCP, HP_IPV4_HEADER + HP_TCP_HEADER);
  uint8_t *tcp = data + HP_VNET_HEADER + HP_IPV4_HEADER;
  memset(tcp, 0, HP_TCP_HEADER);
  hp_put16(tcp, s->source_port);
  hp_put16(tcp + 2, s->destination_port);
  hp_put32(tcp + 4, s->sequence);
  hp_put32(tcp + 8, s->acknowledgment);
  tcp[12] = HP_TCP_HEADER / 4 << 4;
  tcp[13] = s->flags;
  uint64_t sum = hp_pseudo_sum(s->source, s->destination, HP_TCP, HP_TCP_HEADER) + hp_sum(tcp, HP_TCP_HEADER);
  hp_put16(tcp + 16, (uint16_t)~hp_fold(sum));
  return HP_SEGMENT;
}

uint32_t hp_reply_rst(uint8_t *data, const hp_headers *h) {
  const uint8_t *l4 = data + HP_VNET_HEADER + h->header;
  uint32_t consumed = h->payload + (h->tcp_flags & HP_SYN ? 1u : 0u) + (h->tcp_flags & HP_FIN ? 1u : 0u);
  bool acknowledges = (h->tcp_flags & HP_ACK) != 0;
  hp_segment rst = {.source = h->destination,
                    .destination = h->source,
                    .source_port = h->destination_port,
                    .destination_port = h->source_port,
                    .sequence = acknowledges ? hp_get32(l4 + 8) : 0,
                    .acknowledgment = acknowledges ? 0 : hp_get32(l4 + 4) + consumed,
                    .flags = acknowledges ? HP_RST : HP_RST | HP_ACK};
  return hp_write_segment(data, &rst);
}

uint32_t hp_reply_icmp(uint8_t *data, uint32_t capacity, const hp_headers *h, uint32_t from, uint8_t type, uint8_t code,
                       uint32_t extra) {
  enum { NEW = HP_IPV4_HEADER + HP_ICMP_HEADER };
  uint32_t quote = h->total < QUOTE_LIMIT - NEW ? h->total : QUOTE_LIMIT - NEW;
  uint32_t to = h->source;
  if (capacity < HP_VNET_HEADER + NEW)
    return 0;
  if (quote > capacity - HP_VNET_HEADER - NEW)
    quote = capacity - HP_VNET_HEADER - NEW;
  if (quote < h->total && quote < h->header + 8u) /* RFC 792: the least that its sender can use */
    return 0;
  memmove(data + HP_VNET_HEADER + NEW, data + HP_VNET_HEADER, quote);
  write_header(data, from, to, HP_ICMP, NEW + quote);
  uint8_t *icmp = data + HP_VNET_HEADER + HP_IPV4_HEADER;
  icmp[0] = type;
  icmp[1] = code;
  hp_put16(icmp + 2, 0);
  hp_put32(icmp + 4, extra);
  hp_put16(icmp + 2, (uint16_t)~hp_fold(hp_sum(icmp, HP_ICMP_HEADER + quote)));
  return HP_VNET_HEADER + NEW + quote;
}
