/* test_packet.c: headers that lie, and sums. test_packet_write.c has what is written into packets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "packets.h"

static const recipe udp = {.source = 0xc6120002,
                           .destination = 0xcb007101,
                           .source_port = 4000,
                           .destination_port = 53,
                           .protocol = HP_UDP,
                           .payload = 13};
static const recipe tcp = {.source = 0xc6120002,
                           .destination = 0xcb007101,
                           .source_port = 4000,
                           .destination_port = 443,
                           .protocol = HP_TCP,
                           .flags = HP_SYN,
                           .tcp_options = 8};
static const recipe echo = {.source = 0xc6120002,
                            .destination = 0xcb007101,
                            .source_port = 77,
                            .protocol = HP_ICMP,
                            .flags = HP_ICMP_ECHO,
                            .payload = 9};

/* ---- sums ---- */

static void test_sum_of_any_length_at_any_address(void **state) {
  (void)state;
  uint8_t bytes[200];
  uint64_t random = 1;
  for (unsigned i = 0; i < sizeof bytes; i++)
    bytes[i] = (uint8_t)next_random(&random);
  for (unsigned start = 0; start < 8; start++)
    for (unsigned length = 0; length + start <= sizeof bytes; length++)
      HOLD(hp_fold(hp_sum(bytes + start, length)) == plain_sum(bytes + start, length, 0));
}

static void test_sum_of_all_ones_does_not_overflow(void **state) {
  (void)state;
  uint8_t *bytes = malloc(65535);
  assert_non_null(bytes);
  memset(bytes, 0xff, 65535);
  assert_int_equal(hp_fold(hp_sum(bytes, 65535)), plain_sum(bytes, 65535, 0));
  assert_int_equal(hp_fold(UINT64_MAX), 0xffff);
  assert_int_equal(hp_fold(0), 0);
  free(bytes);
}

/* Everything modulo 0xffff, where 0 and 0xffff are one number. */
static void test_deltas_are_differences(void **state) {
  (void)state;
  const uint16_t edges[] = {0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff, 0x1234};
  const unsigned count = sizeof edges / sizeof *edges;
  for (unsigned i = 0; i < count; i++)
    for (unsigned j = 0; j < count; j++) {
      uint32_t from = edges[i], to = edges[j];
      HOLD(hp_delta16((uint16_t)from, (uint16_t)to) % 0xffff == (to + 0xffff - from % 0xffff) % 0xffff);
      for (unsigned k = 0; k < count; k++) {
        uint32_t a = from << 16 | edges[k], b = to << 16 | edges[count - 1 - k];
        HOLD(hp_delta32(a, b) % 0xffff == (b % 0xffff + 0xffff - a % 0xffff) % 0xffff);
        HOLD(hp_delta_add((uint16_t)from, (uint16_t)to) % 0xffff == (from + to) % 0xffff);
      }
    }
}

static uint16_t applied(uint16_t checksum, uint16_t delta) {
  uint8_t bytes[2];
  hp_put16(bytes, checksum);
  hp_checksum_apply(bytes, delta);
  return hp_get16(bytes);
}

/* RFC 1624 section 4 has this example: eqn. 2 would give 0xffff. */
static void test_rfc_1624_example(void **state) {
  (void)state;
  assert_int_equal(applied(0xdd2f, hp_delta16(0x5555, 0x3285)), 0x0000);
}

/* For all checksums: what verified before verifies after, and 0xffff (of a sum that is never 0) does not come out. */
static void test_update_of_any_checksum(void **state) {
  (void)state;
  const uint16_t deltas[] = {1, 0x7fff, 0x8000, 0xfffe, 0xffff, 0xfeff};
  for (uint32_t checksum = 0; checksum <= 0xffff; checksum++)
    for (unsigned i = 0; i < sizeof deltas / sizeof *deltas; i++) {
      uint16_t result = applied((uint16_t)checksum, deltas[i]);
      /* ~result = ~checksum + delta */
      HOLD((uint16_t)~result % 0xffff == ((uint16_t)~checksum + (uint32_t)deltas[i]) % 0xffff);
      HOLD(result != 0xffff);
    }
}

static uint16_t translated(uint16_t checksum, uint8_t protocol, uint16_t delta) {
  uint8_t bytes[2];
  hp_put16(bytes, checksum);
  hp_checksum_translate(bytes, protocol, delta);
  return hp_get16(bytes);
}

/* RFC 768: 0 is "none"; a sum that comes out as 0 is sent as 0xffff. */
static void test_udp_checksum_zero(void **state) {
  (void)state;
  assert_int_equal(translated(0, HP_UDP, 0x1234), 0);
  for (uint32_t checksum = 1; checksum <= 0xffff; checksum++)
    HOLD(translated((uint16_t)checksum, HP_UDP, (uint16_t)(checksum * 31)) != 0);
  assert_int_equal(translated(0xdd2f, HP_UDP, hp_delta16(0x5555, 0x3285)), 0xffff);
  assert_int_equal(translated(0xdd2f, HP_TCP, hp_delta16(0x5555, 0x3285)), 0);
  assert_int_equal(translated(0, HP_TCP, 1), 0xfffe);
}

static void test_partial_sum(void **state) {
  (void)state;
  uint8_t bytes[2] = {0x12, 0x34};
  hp_partial_apply(bytes, hp_delta32(0xc6120002, 0xc0000201));
  uint32_t expected = 0x1234u + 0xc000 + 0x0201 + (uint16_t)~0xc612 + (uint16_t)~0x0002;
  assert_int_equal(hp_get16(bytes) % 0xffff, expected % 0xffff);
}

/* ---- parsing ---- */

/* Parses a copy that has exactly that many bytes: a sanitizer sees every read beyond. */
static hp_reason parse(const uint8_t *data, uint32_t length, hp_headers *h) {
  uint8_t *exact = malloc(length ? length : 1);
  assert_non_null(exact);
  memcpy(exact, data, length);
  hp_reason reason = hp_parse(exact, length, h);
  HOLD(memcmp(exact, data, length) == 0);
  free(exact);
  return reason;
}

static hp_reason parse_recipe(const recipe *r, hp_headers *h) {
  static uint8_t data[70000];
  return parse(data, make_packet(data, r), h);
}

static void test_what_is_found_in_sound_packets(void **state) {
  (void)state;
  hp_headers h;
  recipe r = tcp;
  r.ip_options = 12;
  r.ttl = 9;
  r.payload = 5;
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_true(h.source == r.source && h.destination == r.destination && h.ttl == 9 && h.protocol == HP_TCP);
  assert_true(h.source_port == 4000 && h.destination_port == 443 && h.tcp_flags == HP_SYN);
  assert_true(h.header == 32 && h.transport == 28 && h.total == 65 && h.payload == 5);
  assert_true(h.segments == 1 && h.segment == 65 && !h.partial && !h.icmp_error);
  assert_int_equal(parse_recipe(&echo, &h), HP_REASON_NONE);
  assert_true(h.source_port == 77 && h.destination_port == 0 && h.icmp_type == HP_ICMP_ECHO);
}

static void test_super_segments(void **state) {
  (void)state;
  hp_headers h;
  recipe r = tcp;
  r.flags = HP_ACK;
  r.partial = true;
  r.payload = 4001;
  r.gso = 1000;
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_true(h.segments == 5 && h.segment == 20 + 28 + 1000 && h.partial);
  r.payload = 4000;
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_int_equal(h.segments, 4);
  r.payload = 1000; /* no super-segment after all */
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_true(h.segments == 1 && h.segment == h.total);
  r.payload = 65535 - 48;
  r.gso = 8; /* TCP_MIN_GSO_SIZE */
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_int_equal(h.segments, (65535 - 48 + 7) / 8);
  r.gso = 7;
  assert_int_equal(parse_recipe(&r, &h), HP_BAD_VNET_HEADER);
  r.gso = 65535 - 49;
  assert_int_equal(parse_recipe(&r, &h), HP_REASON_NONE);
  assert_true(h.segments == 2 && h.segment == 65534);
}

/* Cut off anywhere: a reason, and no byte beyond is read. */
static void test_packets_cut_off(void **state) {
  (void)state;
  const recipe *recipes[] = {&udp, &tcp, &echo};
  for (int i = 0; i < 3; i++) {
    uint8_t data[200];
    hp_headers h;
    uint32_t length = make_packet(data, recipes[i]);
    for (uint32_t cut = 0; cut < length; cut++)
      HOLD(parse(data, cut, &h) == HP_MALFORMED_IP);
    HOLD(parse(data, length, &h) == HP_REASON_NONE);
    memset(data + length, 0xee, 20); /* padding */
    HOLD(parse(data, length + 20, &h) == HP_REASON_NONE && h.total == length - VNET);
    /* Cut off with a total length that knows of it. */
    for (uint32_t cut = VNET + 20; cut < length; cut++) {
      uint8_t copy[200];
      memcpy(copy, data, length);
      hp_put16(copy + VNET + 2, (uint16_t)(cut - VNET));
      write_ip_checksum(copy + VNET);
      uint32_t least = recipes[i]->protocol == HP_TCP ? 48 : recipes[i]->protocol == HP_UDP ? 41 : 28;
      HOLD(parse(copy, cut, &h) == (cut - VNET < least ? HP_MALFORMED_L4 : HP_REASON_NONE));
    }
  }
}

typedef struct lie {
  const recipe *recipe;
  uint32_t at; /* after the virtio_net_hdr */
  uint8_t value;
  hp_reason reason;
} lie;

static void test_lies(void **state) {
  (void)state;
  const lie lies[] = {
      {&udp, 0, 0x55, HP_MALFORMED_IP}, /* version */
      {&udp, 0, 0x60, HP_UNSUPPORTED_IPV6},
      {&udp, 0, 0x44, HP_MALFORMED_IP}, /* header of 16 bytes */
      {&udp, 0, 0x4f, HP_MALFORMED_IP}, /* header longer than the packet */
      {&udp, 3, 42, HP_MALFORMED_IP},   /* total longer than the packet */
      {&udp, 3, 19, HP_MALFORMED_IP},   /* total shorter than the header */
      {&udp, 6, 0x20, HP_FRAGMENT},     /* more fragments */
      {&udp, 7, 1, HP_FRAGMENT},        /* offset */
      {&udp, 9, 132, HP_UNSUPPORTED_PROTOCOL},
      {&udp, 25, 22, HP_MALFORMED_L4},      /* UDP length beyond */
      {&udp, 25, 7, HP_MALFORMED_L4},       /* UDP length short of its header */
      {&udp, 25, 8, HP_REASON_NONE},        /* shorter than the packet: allowed */
      {&tcp, 32, 0x40, HP_MALFORMED_L4},    /* data offset of 16 bytes */
      {&tcp, 32, 0x80, HP_MALFORMED_L4},    /* beyond the packet */
      {&echo, 20, 5, HP_UNSUPPORTED_ICMP},  /* redirect */
      {&echo, 20, 13, HP_UNSUPPORTED_ICMP}, /* timestamp */
      {&echo, 20, 3, HP_BAD_CHECKSUM},      /* an error; its checksum is verified */
  };
  for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
    uint8_t data[200];
    hp_headers h;
    uint32_t length = make_packet(data, lies[i].recipe);
    data[VNET + lies[i].at] = lies[i].value;
    if (lies[i].reason != HP_MALFORMED_IP && lies[i].reason != HP_UNSUPPORTED_IPV6)
      write_ip_checksum(data + VNET);
    assert_int_equal(parse(data, length, &h), lies[i].reason);
  }
}

static void test_ip_checksum_is_verified(void **state) {
  (void)state;
  uint8_t data[200];
  hp_headers h;
  uint32_t length = make_packet(data, &udp);
  for (uint32_t at = 1; at < 20; at++) {
    if (at == 2 || at == 3)
      continue;
    data[VNET + at] ^= 0x10;
    HOLD(parse(data, length, &h) == HP_BAD_CHECKSUM);
    data[VNET + at] ^= 0x10;
  }
}

static hp_reason with_vnet(const recipe *r, const struct virtio_net_hdr *vnet) {
  uint8_t data[4000];
  hp_headers h;
  uint32_t length = make_packet(data, r);
  memcpy(data, vnet, sizeof *vnet);
  return parse(data, length, &h);
}

static void test_virtio_header_lies(void **state) {
  (void)state;
  enum { CSUM = VIRTIO_NET_HDR_F_NEEDS_CSUM, TCPV4 = VIRTIO_NET_HDR_GSO_TCPV4, USO = VIRTIO_NET_HDR_GSO_UDP_L4 };
  enum { ECN = VIRTIO_NET_HDR_GSO_ECN };
  recipe big = tcp, bulk = udp;
  big.payload = bulk.payload = 3000;
  const struct {
    const recipe *recipe;
    struct virtio_net_hdr vnet;
    bool sound;
  } cases[] = {
      {&tcp, {.flags = CSUM, .csum_start = 20, .csum_offset = 16}, true},
      {&tcp, {.flags = CSUM, .csum_start = 20, .csum_offset = 6}, false},
      {&tcp, {.flags = CSUM, .csum_start = 24, .csum_offset = 16}, false},
      {&tcp, {.flags = CSUM, .csum_start = 0xffff, .csum_offset = 16}, false},
      {&udp, {.flags = CSUM, .csum_start = 20, .csum_offset = 6}, true},
      {&udp, {.flags = CSUM, .csum_start = 20, .csum_offset = 16}, false},
      {&echo, {.flags = CSUM, .csum_start = 20, .csum_offset = 2}, false},
      {&tcp, {.flags = 2}, true},                          /* DATA_VALID */
      {&tcp, {.csum_start = 99, .csum_offset = 99}, true}, /* of no meaning without the flag */
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = TCPV4, .gso_size = 1000}, true},
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = TCPV4 | ECN, .gso_size = 1000}, true},
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = TCPV4, .gso_size = 0}, false},
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = USO, .gso_size = 1000}, false},
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = 4, .gso_size = 1000}, false}, /* TCPV6 */
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = 3, .gso_size = 1000}, false}, /* UFO */
      {&big, {.flags = CSUM, .csum_start = 20, .csum_offset = 16, .gso_type = ECN, .gso_size = 1000}, false},
      {&big, {.gso_type = TCPV4, .gso_size = 1000}, false}, /* whose checksum? */
      {&bulk, {.flags = CSUM, .csum_start = 20, .csum_offset = 6, .gso_type = USO, .gso_size = 1000}, true},
      {&bulk, {.flags = CSUM, .csum_start = 20, .csum_offset = 6, .gso_type = USO | ECN, .gso_size = 1000}, false},
      {&bulk, {.flags = CSUM, .csum_start = 20, .csum_offset = 6, .gso_type = TCPV4, .gso_size = 1000}, false},
      {&echo, {.gso_type = TCPV4, .gso_size = 8}, false},
  };
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
    assert_int_equal(with_vnet(cases[i].recipe, &cases[i].vnet), cases[i].sound ? HP_REASON_NONE : HP_BAD_VNET_HEADER);
}

static void test_a_packet_that_fills_the_buffer_is_truncated(void **state) {
  (void)state;
  uint8_t *data = calloc(1, HP_BUFFER);
  assert_non_null(data);
  hp_headers h;
  make_packet(data, &udp);
  assert_int_equal(hp_parse(data, HP_BUFFER, &h), HP_TRUNCATED);
  assert_int_equal(hp_parse(data, HP_BUFFER - 1, &h), HP_REASON_NONE);
  free(data);
}

/* Bytes changed at random: whatever passes has all headers inside the packet. */
static void test_random_damage(void **state) {
  (void)state;
  const recipe *recipes[] = {&udp, &tcp, &echo};
  uint64_t random = 1;
  uint32_t passed = 0;
  for (int round = 0; round < 60000; round++) {
    uint8_t data[200];
    hp_headers h;
    uint32_t length = make_packet(data, recipes[round % 3]);
    for (uint32_t i = random_below(&random, 4); i; i--)
      data[random_below(&random, length)] = (uint8_t)next_random(&random);
    if (random_below(&random, 4))
      write_ip_checksum(data + VNET);
    if (random_below(&random, 8) == 0)
      length -= random_below(&random, length);
    if (parse(data, length, &h) != HP_REASON_NONE)
      continue;
    passed++;
    HOLD(h.header >= 20 && h.total <= length - VNET && h.header + h.transport + h.payload == h.total);
    HOLD(h.segments >= 1 && h.segment >= h.header + h.transport && h.segment <= h.total);
  }
  assert_true(passed > 10000);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sum_of_any_length_at_any_address),
      cmocka_unit_test(test_sum_of_all_ones_does_not_overflow),
      cmocka_unit_test(test_deltas_are_differences),
      cmocka_unit_test(test_rfc_1624_example),
      cmocka_unit_test(test_update_of_any_checksum),
      cmocka_unit_test(test_udp_checksum_zero),
      cmocka_unit_test(test_partial_sum),
      cmocka_unit_test(test_what_is_found_in_sound_packets),
      cmocka_unit_test(test_super_segments),
      cmocka_unit_test(test_packets_cut_off),
      cmocka_unit_test(test_lies),
      cmocka_unit_test(test_ip_checksum_is_verified),
      cmocka_unit_test(test_virtio_header_lies),
      cmocka_unit_test(test_a_packet_that_fills_the_buffer_is_truncated),
      cmocka_unit_test(test_random_damage),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
