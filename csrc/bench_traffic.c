/* bench_traffic.c: flows and packets of the benchmarks in memory. See bench.h. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "bench.h"
#include "packet.h"
#include "random.h"

enum { IDS = 1 << 20, DATAGRAM = 64, LEAST_DATA = 64, MOST_DATA = 1400, TCP_HEADERS = HP_IPV4_HEADER + HP_TCP_HEADER };

double hp_bench_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

void hp_traffic_free(hp_traffic *t) {
  free(t->ids);
  free(t->buffers);
}

int hp_traffic_new(hp_traffic *t, uint32_t flows, uint32_t shift, bool tcp, hp_error *error) {
  *t = (hp_traffic){.flows = flows, .tunnels = HP_BENCH_TUNNELS, .shift = shift, .tcp = tcp, .mask = IDS - 1};
  while (t->tunnels > flows)
    t->tunnels /= 2;
  t->ids = calloc(IDS, sizeof *t->ids);
  t->buffers = aligned_alloc(64, sizeof *t->buffers * HP_BATCH);
  if (!t->ids || !t->buffers) {
    hp_traffic_free(t);
    hp_fail(error, ENOMEM, "no memory for the packets of %u flows", flows);
    return -1;
  }
  hp_random random;
  hp_random_init(&random, 88172645463325252u);
  for (uint32_t i = 0; i < IDS; i++)
    t->ids[i] = hp_random_below(&random, 2 * flows);
  return 0;
}

static uint16_t header_checksum(uint32_t total, uint32_t protocol, uint32_t source, uint32_t destination) {
  uint64_t sum = 0x4500ull + total + 0x4000 + 0x4000 + protocol + (source >> 16) + (source & 0xffff) +
                 (destination >> 16) + (destination & 0xffff);
  return (uint16_t)~hp_fold(sum);
}

static uint32_t write_datagram(uint8_t *data) {
  memset(data, 0, HP_VNET_HEADER);
  hp_put32(data + HP_VNET_HEADER + 24, (DATAGRAM - HP_IPV4_HEADER) << 16 | 0x1234);
  return DATAGRAM;
}

/* One packet in two is an ACK, with a whole checksum; data comes as a local sender leaves it, with a partial one. */
static uint32_t write_segment(uint8_t *data, uint32_t id) {
  uint32_t mixed = id * 0x9e3779b1u, total = TCP_HEADERS;
  struct virtio_net_hdr vnet = {0};
  if (mixed & 0x80000000u) {
    total += LEAST_DATA + ((mixed >> 8 & 0xffff) * (MOST_DATA - LEAST_DATA + 1) >> 16);
    vnet = (struct virtio_net_hdr){.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
                                   .hdr_len = TCP_HEADERS,
                                   .csum_start = HP_IPV4_HEADER,
                                   .csum_offset = (uint16_t)hp_checksum_offset(HP_TCP)};
  }
  memcpy(data, &vnet, HP_VNET_HEADER);
  uint8_t *tcp = data + HP_VNET_HEADER + HP_IPV4_HEADER;
  hp_put32(tcp + 4, mixed);
  hp_put32(tcp + 8, mixed >> 1);
  hp_put32(tcp + 12, 0x50100000u | 0xffff);
  hp_put32(tcp + 16, 0x12340000);
  return total;
}

void hp_traffic_write(const hp_traffic *t, uint32_t id, hp_packet *packet) {
  uint32_t flow = id >> 1, remote = hp_traffic_remote(t, flow), port = hp_traffic_port(t, flow);
  bool outside = id & 1;
  uint32_t source = outside ? remote : HP_BENCH_INSIDE, destination = outside ? HP_BENCH_OUTSIDE : remote;
  uint32_t protocol = t->tcp ? HP_TCP : HP_UDP;
  uint32_t total = t->tcp ? write_segment(packet->data, id) : write_datagram(packet->data);
  uint8_t *ip = packet->data + HP_VNET_HEADER;
  hp_put32(ip, 0x45000000u | total);
  hp_put32(ip + 4, 0x4000);
  hp_put32(ip + 8, 0x40000000u | protocol << 16 | header_checksum(total, protocol, source, destination));
  hp_put32(ip + 12, source);
  hp_put32(ip + 16, destination);
  hp_put32(ip + 20, outside ? HP_BENCH_REMOTE_PORT << 16 | port : port << 16 | HP_BENCH_REMOTE_PORT);
  packet->link = outside ? HP_BENCH_ENI : hp_traffic_tunnel(t, flow);
  packet->length = HP_VNET_HEADER + total;
  packet->capacity = HP_BENCH_STRIDE;
}

void hp_traffic_write_batch(hp_traffic *t, uint32_t first) {
  for (uint32_t i = 0; i < HP_BATCH; i++) {
    t->packets[i].data = t->buffers[i];
    hp_traffic_write(t, t->ids[(first + i) & t->mask], &t->packets[i]);
  }
}
