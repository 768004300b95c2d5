/* gso.c: reading packets as parts of super-packets, and writing a super-packet's headers.
 *
 * Theory of operation. A super-packet is one the kernel cuts again (tcp_gso_segment(), __udp_gso_segment()) where
 * somebody must see single packets. What it makes then follows from the super-packet's headers alone, so packets may
 * be joined only if they are what it will make:
 *
 * - Addresses, ports, TTL, TOS, DF are copied to all; so are TCP's acknowledgment, window, options and all flags but
 *   PSH and FIN, which only the last one gets. So these must be the same, and PSH or FIN end a super-packet. SYN, RST,
 *   URG and CWR are never joined. That is what the kernel's own receive offload asks for (tcp_gro_receive()).
 * - Sequence numbers go on from the first one's: no gap, no reordering.
 * - Ids go on from the first one's too. With DF set the id means nothing (RFC 6864 4.1). Without DF a packet joins
 *   only if its id is the one that it will be given again; or if it is a train of datagrams (UDP_SEGMENT) as Linux
 *   numbers them. That counts each train of s datagrams as one, so that ids come back s - 1 datagrams later, in the
 *   next train. n trains that are joined leave with ids that go on: each still comes back as often, but n(s - 1)
 *   datagrams later, and those that the sender chose are among them. Linux sets no DF on a train longer than the MTU.
 * - All payloads are equally long; a shorter one may be the last.
 * - Checksums are made anew. That would repair one that arrived wrong, so a packet joins only if its checksum is
 *   partial already, was checked by the kernel (VIRTIO_NET_HDR_F_DATA_VALID) or proves right here. UDP without a
 *   checksum (0) stays alone.
 *
 * A packet that is a super-packet already joins like the single ones that it stands for.
 */
#include "gso.h"

enum {
  CWR = 0x80,
  URG = 0x20,
  TCP_LEAST_SEGMENT = 8, /* TCP_MIN_GSO_SIZE in net/tcp.h: hp_parse() takes no super-packet with less */
  MOST_PAYLOAD = 65000   /* of one super-packet: IPv4 ends at 65,535 */
};

/* The virtio_net_hdr promises what the headers say, or nothing. */
static bool vnet_fits(const struct virtio_net_hdr *vnet, uint8_t protocol) {
  uint8_t gso = protocol == HP_TCP ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4;
  if (vnet->gso_type != VIRTIO_NET_HDR_GSO_NONE && (vnet->gso_type != gso || vnet->gso_size == 0))
    return false;
  if (vnet->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    return vnet->csum_start == HP_IPV4_HEADER && vnet->csum_offset == hp_checksum_offset(protocol);
  return vnet->gso_type == VIRTIO_NET_HDR_GSO_NONE;
}

static bool read_udp(const uint8_t *udp, uint32_t available, bool partial, hp_piece *piece) {
  piece->headers = HP_IPV4_HEADER + HP_UDP_HEADER;
  return available > HP_UDP_HEADER && hp_get16(udp + 4) == available && (partial || hp_get16(udp + 6) != 0);
}

static bool read_tcp(const uint8_t *tcp, uint32_t available, hp_piece *piece) {
  if (available <= HP_TCP_HEADER)
    return false;
  uint32_t header = (tcp[12] >> 4) * 4u;
  if (header < HP_TCP_HEADER || header >= available)
    return false;
  bool plain = (tcp[12] & 0xf) == 0 && (tcp[13] & (HP_SYN | HP_RST | URG | CWR | HP_ACK)) == HP_ACK;
  piece->headers = (uint8_t)(HP_IPV4_HEADER + header);
  piece->ends = tcp[13] & (HP_PSH | HP_FIN);
  piece->sequence = hp_get32(tcp + 4);
  piece->acknowledgment = hp_get32(tcp + 8);
  piece->control = (uint32_t)tcp[12] << 24 | (uint32_t)(tcp[13] & ~(HP_PSH | HP_FIN)) << 16 | hp_get16(tcp + 14);
  return plain;
}

/* How the payload is cut into wire packets. */
static void read_segments(const struct virtio_net_hdr *vnet, uint8_t protocol, hp_piece *piece) {
  bool super = vnet->gso_type != VIRTIO_NET_HDR_GSO_NONE && vnet->gso_size < piece->payload;
  piece->segment = super ? vnet->gso_size : (uint16_t)piece->payload;
  piece->segments = (uint16_t)((piece->payload + piece->segment - 1u) / piece->segment);
  piece->last =
      piece->ends || piece->payload % piece->segment != 0 || (protocol == HP_TCP && piece->segment < TCP_LEAST_SEGMENT);
}

hp_gso_fit hp_gso_inspect(const uint8_t *data, uint32_t length, uint32_t link, hp_piece *piece) {
  const uint8_t *ip = data + HP_VNET_HEADER, *l4 = ip + HP_IPV4_HEADER;
  struct virtio_net_hdr vnet;
  if (length < HP_VNET_HEADER + HP_IPV4_HEADER + 4 || (ip[9] != HP_UDP && ip[9] != HP_TCP))
    return HP_GSO_APART;
  if (ip[0] != 0x45 || (hp_get16(ip + 6) & 0x3fff)) /* options; fragments */
    return HP_GSO_UNKNOWN;
  *piece = (hp_piece){.channel = link << 8 | ip[9]};
  memcpy(&piece->addresses, ip + 12, 8);
  memcpy(&piece->ports, l4, 4);
  memcpy(&vnet, data, sizeof vnet);
  bool partial = vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
  uint32_t available = length - HP_VNET_HEADER - HP_IPV4_HEADER;
  if (hp_get16(ip + 2) != length - HP_VNET_HEADER || !vnet_fits(&vnet, ip[9]))
    return HP_GSO_ALONE;
  if (ip[9] == HP_UDP ? !read_udp(l4, available, partial, piece) : !read_tcp(l4, available, piece))
    return HP_GSO_ALONE;
  piece->header = (uint32_t)ip[1] << 24 | (uint32_t)hp_get16(ip + 6) << 8 | ip[8];
  piece->id = hp_get16(ip + 4);
  piece->payload = available + HP_IPV4_HEADER - piece->headers;
  piece->sound = partial || (vnet.flags & VIRTIO_NET_HDR_F_DATA_VALID);
  read_segments(&vnet, ip[9], piece);
  return HP_GSO_JOINS;
}

/* The ids that its packets are going to have are fit for `next`. */
static bool numbered(const hp_piece *first, const hp_joined *joined, const hp_piece *next) {
  bool df = first->header & 0x400000, train = (uint8_t)next->channel == HP_UDP && next->segments > 1;
  return df || next->id == (uint16_t)(first->id + joined->segments) ||
         (train && first->segments > 1 && next->id == (uint16_t)(first->id + joined->packets));
}

bool hp_gso_follows(const hp_piece *first, const uint8_t *first_data, const hp_joined *joined, const hp_piece *next,
                    const uint8_t *next_data) {
  if (first->header != next->header || first->headers != next->headers || first->control != next->control ||
      first->acknowledgment != next->acknowledgment)
    return false;
  if (next->segments > 1 ? next->segment != first->segment : next->payload > first->segment)
    return false;
  if (joined->payload + next->payload > MOST_PAYLOAD || !numbered(first, joined, next))
    return false;
  if ((uint8_t)first->channel == HP_UDP)
    return true;
  enum { OPTIONS = HP_VNET_HEADER + HP_IPV4_HEADER + HP_TCP_HEADER };
  uint32_t options = first->headers - (uint32_t)(HP_IPV4_HEADER + HP_TCP_HEADER);
  return next->sequence == first->sequence + joined->payload &&
         memcmp(first_data + OPTIONS, next_data + OPTIONS, options) == 0;
}

bool hp_gso_checksum_right(const uint8_t *data, const hp_piece *piece) {
  const uint8_t *ip = data + HP_VNET_HEADER;
  uint16_t length = (uint16_t)(piece->headers - HP_IPV4_HEADER + piece->payload);
  uint64_t sum = hp_pseudo_sum(hp_get32(ip + 12), hp_get32(ip + 16), (uint8_t)piece->channel, length);
  return hp_fold(sum + hp_sum(ip + HP_IPV4_HEADER, length)) == 0xffff;
}

uint32_t hp_gso_datagrams(const uint8_t *data) {
  struct virtio_net_hdr vnet;
  memcpy(&vnet, data, sizeof vnet);
  uint32_t payload = hp_get16(data + HP_VNET_HEADER + HP_IPV4_HEADER + 4) - (uint32_t)HP_UDP_HEADER;
  return (payload + vnet.gso_size - 1u) / vnet.gso_size;
}

void hp_gso_write(uint8_t *data, const hp_piece *first, uint32_t payload, uint8_t ends) {
  uint8_t protocol = (uint8_t)first->channel;
  bool tcp = protocol == HP_TCP;
  struct virtio_net_hdr vnet = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                .gso_type = tcp ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4,
                                .hdr_len = first->headers,
                                .gso_size = first->segment,
                                .csum_start = HP_IPV4_HEADER,
                                .csum_offset = (uint16_t)hp_checksum_offset(protocol)};
  memcpy(data, &vnet, sizeof vnet);
  uint8_t *ip = data + HP_VNET_HEADER, *l4 = ip + HP_IPV4_HEADER;
  uint16_t length = (uint16_t)(first->headers - HP_IPV4_HEADER + payload);
  hp_put16(ip + 2, (uint16_t)(HP_IPV4_HEADER + length));
  hp_put16(ip + 10, 0);
  hp_put16(ip + 10, hp_ipv4_checksum(ip, HP_IPV4_HEADER));
  if (tcp)
    l4[13] |= ends;
  else
    hp_put16(l4 + 4, length);
  hp_put16(l4 + hp_checksum_offset(protocol),
           hp_fold(hp_pseudo_sum(hp_get32(ip + 12), hp_get32(ip + 16), protocol, length)));
}
