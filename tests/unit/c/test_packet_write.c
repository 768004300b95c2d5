/* test_packet_write.c: TCP options, quoted packets, and the answers that are written over a packet. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "packets.h"

static const recipe syn = {.source = 0xc6120002,
                           .destination = 0xcb007101,
                           .source_port = 4000,
                           .destination_port = 443,
                           .protocol = HP_TCP,
                           .flags = HP_SYN,
                           .sequence = 0xfffffffe};

/* A buffer of exactly the capacity, so that a sanitizer sees every write beyond. */
typedef struct packet {
  uint8_t *data;
  uint32_t length, capacity;
  hp_headers headers;
} packet;

static packet make(const recipe *r, uint32_t capacity) {
  static uint8_t whole[70000];
  packet p = {.length = make_packet(whole, r)};
  HOLD(hp_parse(whole, p.length, &p.headers) == HP_REASON_NONE);
  p.capacity = capacity ? capacity : p.length;
  HOLD(p.capacity >= p.length);
  p.data = malloc(p.capacity);
  HOLD(p.data);
  memset(p.data, 0xaa, p.capacity);
  memcpy(p.data, whole, p.length);
  return p;
}

static packet make_syn(const uint8_t *option, uint8_t length, bool partial) {
  recipe r = syn;
  r.option = option;
  r.tcp_options = length;
  r.partial = partial;
  return make(&r, 0);
}

/* ---- TCP options ---- */

static void test_mss_is_lowered_at_any_offset(void **state) {
  (void)state;
  for (uint8_t nops = 0; nops <= 8; nops++)
    for (int partial = 0; partial < 2; partial++) {
      uint8_t options[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
      memcpy(options + nops, (uint8_t[]){2, 4, 0x05, 0xb4}, 4); /* 1,460 */
      packet p = make_syn(options, 12, partial != 0);
      hp_clamp_mss(p.data, &p.headers, 1400);
      assert_int_equal(hp_get16(p.data + VNET + 40 + nops + 2), 1400);
      assert_true(transport_checksum_right(p.data));
      hp_clamp_mss(p.data, &p.headers, 1401); /* never raised */
      assert_int_equal(hp_get16(p.data + VNET + 40 + nops + 2), 1400);
      assert_true(transport_checksum_right(p.data));
      free(p.data);
    }
}

static void test_mss_with_any_values(void **state) {
  (void)state;
  uint64_t random = 1;
  for (int round = 0; round < 20000; round++) {
    uint16_t mss = (uint16_t)next_random(&random), limit = (uint16_t)next_random(&random);
    uint8_t options[8] = {1, 2, 4, (uint8_t)(mss >> 8), (uint8_t)mss, 1, 1, 0};
    recipe r = syn;
    r.option = options;
    r.tcp_options = 8;
    r.source = (uint32_t)next_random(&random);
    packet p = make(&r, 0);
    hp_clamp_mss(p.data, &p.headers, limit);
    HOLD(hp_get16(p.data + VNET + 43) == (mss < limit ? mss : limit));
    HOLD(transport_checksum_right(p.data));
    free(p.data);
  }
}

typedef struct option_case {
  uint8_t options[8];
  int mss;   /* offset of the MSS's value that is found, or -1 */
  int scale; /* what hp_window_scale() says */
} option_case;

static void test_options_that_lie(void **state) {
  (void)state;
  const option_case cases[] = {
      {{2, 4, 0xff, 0xff, 3, 3, 7, 0}, 2, 7},
      {{3, 3, 14, 2, 4, 0xff, 0xff, 0}, 5, 14},
      {{3, 3, 15, 0, 0, 0, 0, 0}, -1, 14}, /* RFC 7323 2.3 */
      {{3, 3, 255, 1, 1, 1, 1, 1}, -1, 14},
      {{0, 2, 4, 0xff, 0xff, 3, 3, 7}, -1, 0}, /* behind the end of options */
      {{8, 0, 2, 4, 0xff, 0xff, 0, 0}, -1, 0}, /* length 0 */
      {{8, 1, 2, 4, 0xff, 0xff, 0, 0}, -1, 0}, /* length 1 */
      {{8, 9, 2, 4, 0xff, 0xff, 0, 0}, -1, 0}, /* beyond the header */
      {{1, 1, 1, 1, 1, 1, 1, 2}, -1, 0},       /* kind without length */
      {{1, 1, 1, 1, 1, 1, 2, 4}, -1, 0},       /* without value */
      {{1, 1, 1, 1, 1, 2, 4, 0xff}, -1, 0},    /* half a value */
      {{2, 3, 0xff, 1, 1, 1, 1, 1}, -1, 0},    /* wrong length for an MSS */
      {{2, 6, 0xff, 0xff, 0xff, 0xff, 1, 1}, -1, 0},
      {{3, 2, 1, 1, 1, 1, 1, 1}, -1, 0}, /* wrong length for a window scale */
      {{1, 1, 1, 1, 1, 3, 3, 5}, -1, 5}, /* the last bytes of the header */
      {{1, 1, 1, 1, 2, 4, 0xff, 0xff}, 6, 0},
  };
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    packet p = make_syn(cases[i].options, 8, false);
    assert_int_equal(hp_window_scale(p.data, &p.headers), cases[i].scale);
    hp_clamp_mss(p.data, &p.headers, 1000);
    uint8_t expected[8];
    memcpy(expected, cases[i].options, 8);
    if (cases[i].mss >= 0)
      hp_put16(expected + cases[i].mss, 1000);
    assert_memory_equal(p.data + VNET + 40, expected, 8);
    assert_true(transport_checksum_right(p.data));
    free(p.data);
  }
  packet p = make_syn(NULL, 0, false);
  hp_clamp_mss(p.data, &p.headers, 1000);
  assert_int_equal(hp_window_scale(p.data, &p.headers), 0);
  free(p.data);
}

static void test_random_options(void **state) {
  (void)state;
  uint64_t random = 1;
  for (int round = 0; round < 30000; round++) {
    uint8_t options[40];
    for (unsigned i = 0; i < sizeof options; i++)
      options[i] = (uint8_t)(random_below(&random, 2) ? random_below(&random, 9) : next_random(&random));
    packet p = make_syn(options, (uint8_t)(4 * random_below(&random, 11)), false);
    hp_clamp_mss(p.data, &p.headers, 536);
    HOLD(transport_checksum_right(p.data));
    HOLD(hp_window_scale(p.data, &p.headers) <= 14);
    free(p.data);
  }
}

/* ---- quoted packets ---- */

/* An ICMP error with `quote` bytes of a packet. */
static packet make_error(const recipe *about, uint16_t quote) {
  static uint8_t quoted[2000];
  make_packet(quoted, about);
  recipe error = {.source = 0xcb007101,
                  .destination = 0xc0000201,
                  .protocol = HP_ICMP,
                  .flags = HP_ICMP_UNREACHABLE,
                  .code = 3,
                  .payload = quote,
                  .content = quoted + VNET};
  return make(&error, 0);
}

static void test_what_is_found_in_quoted_packets(void **state) {
  (void)state;
  hp_quoted q;
  recipe about = syn;
  about.ip_options = 8;
  packet p = make_error(&about, 48);
  assert_true(p.headers.icmp_error);
  assert_int_equal(hp_parse_quoted(p.data, &p.headers, &q), HP_REASON_NONE);
  assert_ptr_equal(q.ip, p.data + VNET + 28);
  assert_ptr_equal(q.transport, q.ip + 28);
  assert_true(q.source == syn.source && q.destination == syn.destination && q.protocol == HP_TCP);
  assert_true(q.source_port == 4000 && q.destination_port == 443 && q.available == 20);
  free(p.data);
  about = (recipe){.protocol = HP_ICMP, .flags = HP_ICMP_ECHO, .source_port = 99};
  p = make_error(&about, 28);
  assert_int_equal(hp_parse_quoted(p.data, &p.headers, &q), HP_REASON_NONE);
  assert_true(q.source_port == 99 && q.destination_port == 0 && q.available == 8);
  free(p.data);
}

/* RFC 792: a header and 8 bytes at least. Shorter quotes are dropped, no byte beyond is read. */
static void test_quotes_cut_off(void **state) {
  (void)state;
  for (uint16_t quote = 0; quote <= 40; quote++) {
    hp_quoted q;
    packet p = make_error(&syn, quote);
    assert_int_equal(hp_parse_quoted(p.data, &p.headers, &q), quote < 28 ? HP_MALFORMED_L4 : HP_REASON_NONE);
    free(p.data);
  }
}

static void test_quotes_that_lie(void **state) {
  (void)state;
  const struct {
    uint32_t at;
    uint8_t value;
    hp_reason reason;
  } lies[] = {{0, 0x65, HP_MALFORMED_L4},           {0, 0x44, HP_MALFORMED_L4},
              {0, 0x4f, HP_MALFORMED_L4},           {6, 0x20, HP_REASON_NONE},
              {7, 0x01, HP_MALFORMED_L4},                                      /* a fragment but the first */
              {9, 50, HP_UNSUPPORTED_PROTOCOL},     {3, 0xff, HP_REASON_NONE}, /* the whole was longer than the quote */
              {9, HP_ICMP, HP_UNSUPPORTED_PROTOCOL} /* of type 4000 / 256 */};
  for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
    hp_quoted q;
    packet p = make_error(&syn, 40);
    uint8_t *ip = p.data + VNET + 28;
    ip[lies[i].at] = lies[i].value;
    if (lies[i].at)
      write_ip_checksum(ip);
    assert_int_equal(hp_parse_quoted(p.data, &p.headers, &q), lies[i].reason);
    ip[8] ^= 1;
    if (lies[i].reason != HP_MALFORMED_L4) /* RFC 5508 REQ-3 a */
      assert_int_equal(hp_parse_quoted(p.data, &p.headers, &q), HP_BAD_CHECKSUM);
    free(p.data);
  }
}

/* ---- answers ---- */

static void check_answer(const packet *p, uint32_t length, uint32_t from, uint32_t to, uint8_t protocol) {
  static const uint8_t nothing[VNET];
  const uint8_t *ip = p->data + VNET;
  assert_int_equal(hp_get16(ip + 2), length - VNET);
  assert_true(length <= p->capacity);
  assert_memory_equal(p->data, nothing, VNET);
  assert_true(hp_get32(ip + 12) == from && hp_get32(ip + 16) == to && ip[9] == protocol && ip[8] == 64);
  assert_true(ip[0] == 0x45 && hp_get16(ip + 6) == 0x4000);
  assert_true(ip_checksum_right(ip) && transport_checksum_right(p->data));
}

/* RFC 9293 3.10.7.1: with an ACK its number is the RST's, else the RST acknowledges all that came. */
static void test_rst(void **state) {
  (void)state;
  const struct {
    uint8_t flags, answer;
    uint16_t payload;
    uint32_t sequence, acknowledgment;
  } cases[] = {{HP_SYN, HP_RST | HP_ACK, 0, 0, 0xffffffff},
               {HP_SYN, HP_RST | HP_ACK, 10, 0, 9},
               {HP_FIN, HP_RST | HP_ACK, 0, 0, 0xffffffff},
               {HP_SYN | HP_FIN, HP_RST | HP_ACK, 3, 0, 3},
               {HP_ACK, HP_RST, 100, 0x12345678, 0},
               {HP_SYN | HP_ACK, HP_RST, 0, 0x12345678, 0},
               {0, HP_RST | HP_ACK, 7, 0, 5}};
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++)
    for (uint8_t options = 0; options <= 40; options += 40) {
      recipe r = syn;
      r.flags = cases[i].flags;
      r.payload = cases[i].payload;
      r.acknowledgment = 0x12345678;
      r.ip_options = r.tcp_options = options;
      packet p = make(&r, 0);
      uint32_t length = hp_reply_rst(p.data, &p.headers);
      assert_int_equal(length, VNET + 40);
      check_answer(&p, length, syn.destination, syn.source, HP_TCP);
      const uint8_t *tcp = p.data + VNET + 20;
      assert_true(hp_get16(tcp) == 443 && hp_get16(tcp + 2) == 4000 && tcp[12] == 0x50);
      assert_int_equal(tcp[13], cases[i].answer);
      assert_int_equal(hp_get32(tcp + 4), cases[i].sequence);
      assert_int_equal(hp_get32(tcp + 8), cases[i].acknowledgment);
      free(p.data);
    }
}

/* RFC 1812 4.3.2.3: as much of the packet as fits 576 bytes; RFC 792: header + 8 bytes at least, or nothing. */
static void test_icmp_error_quotes_what_fits(void **state) {
  (void)state;
  for (uint8_t options = 0; options <= 40; options += 20)
    for (uint16_t payload = 0; payload < 700; payload += 77)
      for (uint32_t room = 0; room < 120; room += 1) {
        recipe r = {.source = 0xc6120002,
                    .destination = 0xcb007101,
                    .source_port = 1,
                    .destination_port = 2,
                    .protocol = HP_UDP,
                    .ip_options = options,
                    .payload = payload};
        packet p = make(&r, VNET + 28u + options + payload + room);
        uint8_t original[1000];
        uint32_t total = p.length - VNET, least = options + 28u;
        memcpy(original, p.data + VNET, total);
        uint32_t length = hp_reply_icmp(p.data, p.capacity, &p.headers, 0xc0000201, 3, 4, 1400);
        uint32_t quote = total < 548 ? total : 548;
        if (quote > p.capacity - VNET - 28)
          quote = p.capacity - VNET - 28;
        if (quote < least) {
          HOLD(length == 0 && memcmp(original, p.data + VNET, total) == 0);
        } else {
          HOLD(length == VNET + 28 + quote);
          check_answer(&p, length, 0xc0000201, 0xc6120002, HP_ICMP);
          const uint8_t *icmp = p.data + VNET + 20;
          HOLD(icmp[0] == 3 && icmp[1] == 4 && hp_get32(icmp + 4) == 1400);
          HOLD(memcmp(original, icmp + 8, quote) == 0);
        }
        free(p.data);
      }
}

/* A packet of a protocol that has no header, or one of less than 8 bytes, is quoted whole or not at all. */
static void test_icmp_error_about_a_short_packet(void **state) {
  (void)state;
  for (uint32_t payload = 0; payload < 12; payload++)
    for (uint32_t room = 0; room < 40; room++) {
      uint8_t *data = malloc(VNET + 20 + payload + room), original[32];
      HOLD(data);
      recipe r = {.source = 0xc6120002, .destination = 0xcb007101, .protocol = HP_UDP};
      uint8_t whole[200];
      make_packet(whole, &r);
      whole[VNET + 9] = 47;
      hp_put16(whole + VNET + 2, (uint16_t)(20 + payload));
      write_ip_checksum(whole + VNET);
      memcpy(data, whole, VNET + 20 + payload);
      memcpy(original, data + VNET, 20 + payload);
      hp_headers h;
      HOLD(hp_parse(data, VNET + 20 + payload, &h) == HP_UNSUPPORTED_PROTOCOL);
      uint32_t length = hp_reply_icmp(data, VNET + 20 + payload + room, &h, 0xc0000201, 3, 2, 0);
      uint32_t least = payload < 8 ? payload : 8, fits = room < 28 ? payload + room - 28 : payload;
      if (payload + room < 28 || fits < least) {
        HOLD(length == 0 && memcmp(data + VNET, original, 20 + payload) == 0);
      } else {
        HOLD(length == VNET + 48 + fits && memcmp(data + VNET + 28, original, 20 + fits) == 0);
      }
      free(data);
    }
}

/* RFC 1122 3.2.2, RFC 1812 4.3.2.7 */
static void test_what_is_never_answered_with_an_error(void **state) {
  (void)state;
  const hp_headers fine = {.source = 0xc6120002, .destination = 0xcb007101};
  hp_headers h = fine;
  assert_true(hp_may_answer(&h));
  h.icmp_error = true;
  assert_false(hp_may_answer(&h));
  const uint32_t no_hosts[] = {0, 0x00ffffff, 0x7f000001, 0xe0000001, 0xf0000001, 0xffffffff};
  for (unsigned i = 0; i < sizeof no_hosts / sizeof *no_hosts; i++) {
    h = fine;
    h.source = no_hosts[i];
    assert_false(hp_may_answer(&h));
    h = fine;
    h.destination = no_hosts[i];
    assert_false(hp_may_answer(&h));
  }
  for (unsigned type = 0; type < 256; type++)
    assert_int_equal(hp_icmp_asks((uint8_t)type), type == 8 || type == 13 || type == 15 || type == 17 || type == 42);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mss_is_lowered_at_any_offset),
      cmocka_unit_test(test_mss_with_any_values),
      cmocka_unit_test(test_options_that_lie),
      cmocka_unit_test(test_random_options),
      cmocka_unit_test(test_what_is_found_in_quoted_packets),
      cmocka_unit_test(test_quotes_cut_off),
      cmocka_unit_test(test_quotes_that_lie),
      cmocka_unit_test(test_rst),
      cmocka_unit_test(test_icmp_error_quotes_what_fits),
      cmocka_unit_test(test_icmp_error_about_a_short_packet),
      cmocka_unit_test(test_what_is_never_answered_with_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
