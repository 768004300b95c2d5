/* test_gso.c: what the coalescer joins, cut again as a kernel would cut it, is what went in. The splitter here knows
 * nothing of the engine's code; what it does is tcp_gso_segment() and __udp_gso_segment() in the kernel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../../csrc/coalesce.h"
#include "packets.h"

enum { BUFFERS = 128, PACKETS = 90, FLOWS = 6, ALL_LINKS = 8, WIRE = 20000, ROUNDS = 3000, CWR = 0x80, ECE = 0x40 };

/* A wire packet: no virtio_net_hdr, the checksum filled in. */
struct wire {
  uint32_t flow;
  uint32_t length;
  uint16_t id;
  uint8_t bytes[1600];
};
struct wires {
  uint32_t count;
  struct wire at[WIRE];
};

static hp_buffers buffers;
static hp_coalescer coalescer;
static struct wires went_in, came_out;
static uint32_t writes;
static uint64_t seed = 1;

static uint32_t below(uint32_t limit) { /* splitmix64 */
  uint64_t z = seed += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (uint32_t)((z ^ (z >> 31)) % limit);
}
static bool one_in(uint32_t n) { return below(n) == 0; }

/* Where a flow is; most packets go on from there. */
struct sender {
  uint32_t link;
  uint8_t protocol, ttl, tos;
  uint16_t port, id, window, segment;
  uint32_t sequence, acknowledgment;
  uint8_t options[12];
  bool df, partial;
  bool counts_trains; /* as one each, as Linux does: without DF, the engine may number them anew */
};
static struct sender senders[FLOWS];

/* The flow of a link and a port. */
static const struct sender *sender_of(uint32_t flow) {
  uint32_t f = 0;
  while (senders[f].link << 16 != (flow & 0xffff0000) || senders[f].port != (uint16_t)flow)
    assert_true(++f < FLOWS);
  return &senders[f];
}

/* ---- the reference ---- */

static void emit(struct wires *wires, uint32_t flow, const uint8_t *frame, uint32_t length) {
  assert_true(wires->count < WIRE && length - VNET <= sizeof wires->at->bytes);
  struct wire *wire = &wires->at[wires->count++];
  *wire = (struct wire){.flow = flow, .length = length - VNET, .id = hp_get16(frame + VNET + 4)};
  memcpy(wire->bytes, frame + VNET, length - VNET);
  /* An id with DF means nothing (RFC 6864): neither it nor its part of the checksum. */
  if (frame[VNET + 6] & 0x40 || sender_of(flow)->counts_trains)
    memset(wire->bytes + 4, 0, 2), memset(wire->bytes + 10, 0, 2);
}

static void emit_segment(struct wires *wires, uint32_t flow, const uint8_t *frame, uint32_t headers, uint32_t at,
                         uint32_t size, uint32_t number, bool last) {
  uint8_t segment[2000];
  memcpy(segment, frame, headers);
  memcpy(segment + headers, frame + headers + at, size);
  uint8_t *ip = segment + VNET, *l4 = ip + 20;
  hp_put16(ip + 2, (uint16_t)(headers - VNET + size));
  hp_put16(ip + 4, (uint16_t)(hp_get16(ip + 4) + number));
  write_ip_checksum(ip);
  if (ip[9] == HP_TCP) {
    hp_put32(l4 + 4, hp_get32(l4 + 4) + at);
    l4[13] &= (uint8_t) ~((last ? 0 : HP_PSH | HP_FIN) | (number ? CWR : 0));
  } else
    hp_put16(l4 + 4, (uint16_t)(8 + size));
  write_checksum(segment, false);
  emit(wires, flow, segment, headers + size);
}

/* Cuts a frame as its virtio_net_hdr says. */
static void split(struct wires *wires, uint32_t flow, uint8_t *frame, uint32_t length) {
  struct virtio_net_hdr vnet;
  const uint8_t *ip = frame + VNET;
  memcpy(&vnet, frame, sizeof vnet);
  uint32_t headers = VNET + 20u + (ip[9] == HP_TCP ? (ip[32] >> 4) * 4u : 8u), payload = length - headers;
  assert_int_equal(hp_get16(ip + 2), length - VNET);
  assert_true(ip_checksum_right(ip));
  if (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
    assert_int_equal(vnet.csum_start, 20);
    assert_int_equal(vnet.csum_offset, checksum_offset(ip[9]));
    assert_true(transport_checksum_right(frame));
  }
  if (vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE) {
    if (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
      write_checksum(frame, false);
    emit(wires, flow, frame, length);
    return;
  }
  assert_int_equal(vnet.gso_type, ip[9] == HP_TCP ? VIRTIO_NET_HDR_GSO_TCPV4 : VIRTIO_NET_HDR_GSO_UDP_L4);
  assert_true(vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM);
  assert_true(vnet.gso_size > 0 && (ip[9] == HP_UDP || vnet.gso_size >= 8));
  assert_true(ip[9] == HP_TCP || payload <= 128u * vnet.gso_size);
  for (uint32_t at = 0, number = 0; at < payload; at += vnet.gso_size, number++) {
    uint32_t size = payload - at < vnet.gso_size ? payload - at : vnet.gso_size;
    emit_segment(wires, flow, frame, headers, at, size, number, at + size == payload);
  }
}

/* ---- packets at random ---- */

static struct sender new_sender(uint32_t number) {
  struct sender s = {.link = 1 + number % 2,
                     .protocol = number % 3 ? HP_TCP : HP_UDP,
                     .ttl = 63,
                     .port = (uint16_t)(4000 + number / 2),
                     .id = (uint16_t)below(65536),
                     .window = 500,
                     .segment = (uint16_t)(one_in(4) ? 1 + below(20) : 20 + below(1400)),
                     .sequence = one_in(4) ? 0u - below(3000) : below(1000000),
                     .acknowledgment = 7,
                     .df = !one_in(3),
                     .partial = !one_in(3)};
  s.counts_trains = s.protocol == HP_UDP && !s.df && one_in(2);
  return s;
}

/* Something of a flow changes now and then: each must end what is joined. */
static void change(struct sender *s) {
  switch (below(24)) {
  case 0:
    s->ttl--;
    break;
  case 1:
    s->tos ^= 1;
    break;
  case 2:
    s->window++;
    break;
  case 3:
    s->acknowledgment++;
    break;
  case 4:
    s->sequence += 10;
    break;
  case 5:
    s->id += 5;
    break;
  case 6:
    s->options[4]++;
    break;
  case 7:
    s->partial = !s->partial;
    break;
  case 8:
    s->segment = (uint16_t)(1 + below(1400));
    break;
  default:
    break;
  }
}

static uint8_t pick_flags(void) {
  static const uint8_t rare[] = {
      HP_ACK | HP_FIN, HP_ACK | CWR, HP_ACK | ECE, HP_ACK | 0x20, HP_SYN, HP_RST | HP_ACK, 0};
  return one_in(12) ? rare[below(sizeof rare)] : one_in(8) ? HP_ACK | HP_PSH : HP_ACK;
}

static uint32_t make_random(struct sender *s, uint8_t *data) {
  static uint8_t content[65536];
  bool tcp = s->protocol == HP_TCP, super = s->partial && s->segment >= 8 && one_in(4);
  uint32_t segments = 2 + below(s->segment < 200 && one_in(2) ? 40 : 8);
  uint32_t payload = super        ? s->segment * segments - (one_in(3) ? below(s->segment) : 0)
                     : one_in(10) ? below(s->segment + 2u)
                                  : s->segment;
  if (!tcp && payload == 0)
    payload = 1;
  for (uint32_t i = 0; i < payload; i++)
    content[i] = (uint8_t)below(256);
  recipe r = {.source = 0xc6120002,
              .destination = 0xc6130002,
              .source_port = s->port,
              .destination_port = 7000,
              .protocol = s->protocol,
              .flags = tcp ? pick_flags() : 0,
              .ttl = s->ttl,
              .may_fragment = !s->df,
              .tcp_options = one_in(6) ? 0 : 12,
              .option = s->options,
              .payload = (uint16_t)payload,
              .content = content,
              .partial = s->partial,
              .gso = super ? s->segment : 0,
              .no_checksum = !tcp && !s->partial && one_in(6),
              .sequence = s->sequence,
              .acknowledgment = s->acknowledgment};
  uint32_t length = make_packet(data, &r);
  uint8_t *ip = data + VNET;
  ip[1] = s->tos;
  hp_put16(ip + 4, s->id);
  write_ip_checksum(ip);
  if (tcp) {
    hp_put16(ip + 34, s->window);
    write_checksum(data, s->partial);
  }
  if (!s->partial && one_in(10)) /* wrong: stays wrong */
    ip[20 + checksum_offset(s->protocol)] ^= 0x55;
  s->id = (uint16_t)(s->id + (super && !s->counts_trains ? (payload + s->segment - 1) / s->segment : 1));
  s->sequence += payload;
  return length;
}

static void note_write(hp_io *io, uint32_t head) {
  static uint8_t frame[80000];
  struct iovec vector[HP_BATCH];
  uint32_t length = 0;
  int count = hp_chain_vector(&buffers, head, vector);
  assert_null(io);
  for (int i = 0; i < count; i++) {
    memcpy(frame + length, vector[i].iov_base, vector[i].iov_len);
    length += (uint32_t)vector[i].iov_len;
  }
  writes++;
  split(&came_out, buffers.notes[head].link << 16 | hp_get16(frame + VNET + 20), frame, length);
}

static bool next_of(const struct wires *wires, uint32_t flow, uint32_t *at) {
  while (*at < wires->count && wires->at[*at].flow != flow)
    ++*at;
  return *at < wires->count;
}

/* Where datagrams are numbered anew, the ids that they had are among those that they get. */
static void compare_ids(uint32_t flow) {
  static uint16_t came[65536];
  memset(came, 0, sizeof came);
  for (uint32_t at = 0; next_of(&came_out, flow, &at); at++)
    came[came_out.at[at].id]++;
  for (uint32_t at = 0; next_of(&went_in, flow, &at); at++)
    assert_true(came[went_in.at[at].id]);
}

/* Of every flow, the same packets in the same order. */
static void compare(void) {
  assert_int_equal(came_out.count, went_in.count);
  for (uint32_t f = 0; f < FLOWS; f++) {
    uint32_t flow = senders[f].link << 16 | senders[f].port, in = 0, out = 0;
    for (; next_of(&went_in, flow, &in); in++, out++) {
      assert_true(next_of(&came_out, flow, &out));
      assert_int_equal(came_out.at[out].length, went_in.at[in].length);
      assert_memory_equal(came_out.at[out].bytes, went_in.at[in].bytes, went_in.at[in].length);
    }
    if (senders[f].counts_trains)
      compare_ids(flow);
  }
}

static void one_round(void) {
  static uint8_t copy[80000];
  uint32_t count = 1 + below(PACKETS), flows = 1 + below(FLOWS);
  went_in.count = came_out.count = 0;
  for (uint32_t f = 0; f < FLOWS; f++)
    senders[f] = new_sender(f);
  for (uint32_t number = 0, f = 0; number < count; number++) {
    if (one_in(3))
      f = below(flows);
    struct sender *s = &senders[f];
    uint8_t *data = hp_buffer(&buffers, number);
    change(s);
    uint32_t length = make_random(s, data);
    memcpy(copy, data, length);
    split(&went_in, s->link << 16 | s->port, copy, length);
    hp_packet packet = {.data = data, .length = length, .capacity = HP_BUFFER, .link = s->link, .buffer = number};
    hp_coalesce_send(&coalescer, &packet);
    if (one_in(50))
      hp_coalesce_flush(&coalescer);
  }
  hp_coalesce_flush(&coalescer);
  compare();
}

static void test_random_mixes(void **state) {
  uint32_t packets = 0;
  (void)state;
  writes = 0;
  for (uint32_t round = 0; round < ROUNDS; round++) {
    seed = round * 7919 + 1;
    one_round();
    packets += went_in.count;
  }
  assert_true(writes < packets / 2);
}

static int open_all(void **state) {
  hp_error error;
  (void)state;
  return hp_buffers_new(&buffers, BUFFERS, &error) ||
         hp_coalesce_open(&coalescer, &buffers, ALL_LINKS, NULL, note_write);
}

static int close_all(void **state) {
  (void)state;
  hp_coalesce_close(&coalescer);
  hp_buffers_free(&buffers);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_mixes)};
  return cmocka_run_group_tests_name("super-packets", tests, open_all, close_all);
}
