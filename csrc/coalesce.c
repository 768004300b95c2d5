/* coalesce.c: runs of equal UDP datagrams leave as one write.
 *
 * Theory of operation. A write to a TUN costs a microsecond or two, mostly independent of its size, so
 * datagrams that follow each other in one flow are written as one super-packet (USO,
 * VIRTIO_NET_HDR_GSO_UDP_L4): the first with its headers, then the payloads of the others, gathered by
 * writev() from the buffers they were received in. The kernel splits it again where somebody must see
 * single datagrams (udp_gso.c), so what the receiver gets is what was sent:
 *
 * - All of the IPv4 header but length, id and checksum is the same in a run; so are the ports.
 * - Ids: the kernel numbers the datagrams from the first one's id on. With DF set the id means nothing
 *   (RFC 6864 4.1). Without DF a datagram joins only if its id is the one it will be given again.
 * - All payloads are equally long; a shorter one may be the last and ends the run.
 * - The super-packet's checksum is partial: the kernel fills it in for every datagram. That would repair
 *   one that arrived wrong, so a datagram joins only if its checksum is partial already, was checked by
 *   the kernel (VIRTIO_NET_HDR_F_DATA_VALID) or proves right here. "No checksum" (0) stays alone.
 *
 * One run is open per link, and whatever else goes to that link ends it, so the order of a link's packets
 * is kept. Runs of different links lie side by side in a small table, found by the link's number; two
 * that meet there end each other's runs, which costs writes and nothing else.
 *
 * The kernel takes USO from a TUN since 6.2, whatever TUNSETOFFLOAD said (that is about reading).
 */
#define _GNU_SOURCE
#include "coalesce.h"

#include <stdlib.h>
#include <sys/utsname.h>

#include "packet.h"

_Static_assert((int)HP_COALESCE_PACKETS <= (int)HP_BATCH, "hp_chain_vector() promises HP_BATCH elements");

static bool kernel_has_uso(void) {
  struct utsname name;
  char *end;
  if (uname(&name))
    return false;
  unsigned long major = strtoul(name.release, &end, 10);
  unsigned long minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
  return major > 6 || (major == 6 && minor >= 2);
}

void hp_coalesce_init(hp_coalescer *coalescer, const hp_buffers *buffers, hp_io *io,
                      void (*write)(hp_io *io, uint32_t head)) {
  *coalescer = (hp_coalescer){.buffers = buffers, .io = io, .write = write, .enabled = kernel_has_uso()};
}

/* Whether the packet could be part of a run. It has been translated, but is believed no more than before. */
static bool inspect(const uint8_t *data, uint32_t length, hp_datagram *datagram) {
  struct virtio_net_hdr vnet;
  const uint8_t *ip = data + HP_VNET_HEADER, *udp = ip + HP_IPV4_HEADER;
  if (length <= HP_COALESCE_HEADERS || ip[0] != 0x45 || ip[9] != HP_UDP)
    return false;
  memcpy(&vnet, data, sizeof vnet);
  if (vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE || (hp_get16(ip + 6) & 0xbfff)) /* a fragment */
    return false;
  if (hp_get16(ip + 2) != length - HP_VNET_HEADER || hp_get16(udp + 4) != length - HP_VNET_HEADER - HP_IPV4_HEADER)
    return false;
  bool partial = vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM;
  if (partial ? vnet.csum_start != HP_IPV4_HEADER || vnet.csum_offset != 6 : hp_get16(udp + 6) == 0)
    return false;
  memcpy(&datagram->addresses, ip + 12, 8);
  memcpy(&datagram->ports, udp, 4);
  datagram->header = (uint32_t)ip[1] << 24 | (uint32_t)ip[6] << 16 | (uint32_t)ip[8] << 8 | ip[9];
  datagram->payload = length - HP_COALESCE_HEADERS;
  datagram->id = hp_get16(ip + 4);
  datagram->sound = partial || (vnet.flags & VIRTIO_NET_HDR_F_DATA_VALID);
  return true;
}

/* The UDP checksum of a whole datagram is right (RFC 768). */
static bool checksum_right(const uint8_t *data, uint32_t length) {
  const uint8_t *ip = data + HP_VNET_HEADER;
  uint16_t udp_length = (uint16_t)(length - HP_VNET_HEADER - HP_IPV4_HEADER);
  uint64_t sum = hp_pseudo_sum(hp_get32(ip + 12), hp_get32(ip + 16), HP_UDP, udp_length);
  return hp_fold(sum + hp_sum(ip + HP_IPV4_HEADER, udp_length)) == 0xffff;
}

static bool joins(const hp_coalescer *coalescer, hp_run *run, const hp_datagram *datagram, uint32_t number) {
  hp_datagram *first = &run->first;
  bool same =
      first->addresses == datagram->addresses && first->ports == datagram->ports && first->header == datagram->header;
  bool numbered = (first->header & 0x400000) || datagram->id == (uint16_t)(first->id + run->packets);
  if (!same || !numbered || datagram->payload > first->payload || run->payload + datagram->payload > HP_COALESCE_BYTES)
    return false;
  const hp_buffer_note *notes = coalescer->buffers->notes;
  if (!first->sound) /* looked at when a second one comes: most runs have one packet */
    first->sound = checksum_right(hp_buffer(coalescer->buffers, run->head), notes[run->head].length);
  return first->sound &&
         (datagram->sound || checksum_right(hp_buffer(coalescer->buffers, number), notes[number].length));
}

/* Turns the headers of the first datagram into the super-packet's. */
static void make_super_packet(uint8_t *data, const hp_run *run) {
  struct virtio_net_hdr vnet = {.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                .gso_type = VIRTIO_NET_HDR_GSO_UDP_L4,
                                .hdr_len = HP_IPV4_HEADER + HP_UDP_HEADER,
                                .gso_size = (uint16_t)run->first.payload,
                                .csum_start = HP_IPV4_HEADER,
                                .csum_offset = 6};
  memcpy(data, &vnet, sizeof vnet);
  uint8_t *ip = data + HP_VNET_HEADER, *udp = ip + HP_IPV4_HEADER;
  uint16_t udp_length = (uint16_t)(HP_UDP_HEADER + run->payload);
  hp_put16(ip + 2, (uint16_t)(HP_IPV4_HEADER + udp_length));
  hp_put16(ip + 10, 0);
  hp_put16(ip + 10, (uint16_t)~hp_fold(hp_sum(ip, HP_IPV4_HEADER)));
  hp_put16(udp + 4, udp_length);
  hp_put16(udp + 6, hp_fold(hp_pseudo_sum(hp_get32(ip + 12), hp_get32(ip + 16), HP_UDP, udp_length)));
}

static void end_run(hp_coalescer *coalescer, hp_run *run) {
  if (run->packets > 1)
    make_super_packet(hp_buffer(coalescer->buffers, run->head), run);
  coalescer->buffers->notes[run->head].packets = run->packets;
  coalescer->open &= ~(1u << (run - coalescer->runs));
  run->packets = 0;
  coalescer->write(coalescer->io, run->head);
}

void hp_coalesce_send(hp_coalescer *coalescer, const hp_packet *packet) {
  uint32_t number = packet->buffer;
  hp_buffer_note *notes = coalescer->buffers->notes;
  notes[number] = (hp_buffer_note){.next = HP_NO_BUFFER, .length = packet->length, .link = packet->link, .packets = 1};
  hp_run *run = &coalescer->runs[packet->link % HP_COALESCE_RUNS];
  hp_datagram datagram;
  bool able = coalescer->enabled && inspect(packet->data, packet->length, &datagram);
  bool mine = run->packets && run->link == packet->link;
  if (mine && able && joins(coalescer, run, &datagram, number)) {
    notes[run->tail].next = number;
    run->tail = number;
    run->packets++;
    run->payload += datagram.payload;
    if (run->packets == HP_COALESCE_PACKETS || datagram.payload < run->first.payload)
      end_run(coalescer, run);
    return;
  }
  if (run->packets && (mine || able))
    end_run(coalescer, run);
  if (!able) {
    coalescer->write(coalescer->io, number);
    return;
  }
  *run = (hp_run){.first = datagram,
                  .link = packet->link,
                  .head = number,
                  .tail = number,
                  .packets = 1,
                  .payload = datagram.payload};
  coalescer->open |= 1u << (run - coalescer->runs);
}

void hp_coalesce_flush(hp_coalescer *coalescer) {
  while (coalescer->open)
    end_run(coalescer, &coalescer->runs[__builtin_ctz(coalescer->open)]);
}
