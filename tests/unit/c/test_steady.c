/* test_steady.c: the short way for the packet that nearly all are, against the way for everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "packets.h"

enum { FROM = 0xc6120002, TO = 0xcb007101 };

static const recipe datagram = {
    .source = FROM, .destination = TO, .source_port = 4000, .destination_port = 53, .protocol = HP_UDP, .payload = 13};
static const recipe segment = {.source = FROM,
                               .destination = TO,
                               .source_port = 4000,
                               .destination_port = 443,
                               .protocol = HP_TCP,
                               .flags = HP_ACK | HP_PSH,
                               .tcp_options = 12,
                               .payload = 40};

/* In an allocation of its length: what is read beyond is seen by AddressSanitizer. */
static bool steady(const uint8_t *data, uint32_t length) {
  uint8_t *exact = malloc(length ? length : 1);
  HOLD(exact != NULL);
  memcpy(exact, data, length);
  bool result = check_steady(exact, length);
  free(exact);
  return result;
}

static bool recipe_is_steady(recipe r) {
  uint8_t data[300];
  return steady(data, make_packet(data, &r));
}

static void test_what_is_steady(void **state) {
  (void)state;
  recipe r = datagram;
  assert_true(recipe_is_steady(r));
  r.partial = true;
  assert_true(recipe_is_steady(r));
  r.gso = 5;
  assert_false(recipe_is_steady(r));
  r = (recipe){.source = FROM, .destination = TO, .protocol = HP_ICMP, .flags = HP_ICMP_ECHO};
  assert_false(recipe_is_steady(r));
  r = segment;
  assert_true(recipe_is_steady(r));
  r.payload = 0;
  r.tcp_options = 0;
  assert_true(recipe_is_steady(r));
  r.ip_options = 4;
  assert_false(recipe_is_steady(r));
  const uint8_t ends[] = {HP_SYN, HP_SYN | HP_ACK, HP_FIN | HP_ACK, HP_RST};
  for (unsigned i = 0; i < sizeof ends; i++) {
    r = segment;
    r.flags = ends[i];
    assert_false(recipe_is_steady(r));
  }
}

static void test_every_length(void **state) {
  (void)state;
  const recipe *recipes[] = {&datagram, &segment};
  for (unsigned i = 0; i < 2; i++) {
    uint8_t data[300] = {0};
    uint32_t whole = make_packet(data, recipes[i]);
    for (uint32_t length = 1; length <= sizeof data; length++)
      assert_int_equal(steady(data, length), length >= whole);
  }
}

/* Every value of every byte of the headers, with and without a header checksum made right again. */
static void test_every_byte(void **state) {
  (void)state;
  for (unsigned i = 0; i < 4; i++) {
    recipe r = i & 1 ? segment : datagram;
    r.partial = i & 2;
    uint8_t sound[300], data[300];
    uint32_t length = make_packet(sound, &r);
    for (uint32_t at = 0; at < 2 * (VNET + 40); at++)
      for (unsigned value = 0; value < 256; value++) {
        memcpy(data, sound, length);
        data[at / 2 < length ? at / 2 : 0] = (uint8_t)value;
        if (at & 1 && data[VNET] >> 4 == 4 && (data[VNET] & 15) * 4u <= length - VNET)
          write_ip_checksum(data + VNET);
        steady(data, length);
      }
  }
}

/* What nat.c's way for everything writes, by the functions of packet.h. */
static void plain_rewrite(uint8_t *data, bool outside, uint32_t address, uint16_t port, uint16_t delta_address,
                          uint16_t delta_full) {
  uint8_t *ip = data + VNET, *l4 = ip + 20, *at = l4 + checksum_offset(ip[9]);
  bool partial = data[0] & VIRTIO_NET_HDR_F_NEEDS_CSUM;
  hp_put32(ip + (outside ? 16 : 12), address);
  hp_put16(l4 + (outside ? 2 : 0), port);
  if (partial)
    hp_partial_apply(at, delta_address);
  else
    hp_checksum_translate(at, ip[9], delta_full);
  hp_nat_hop(ip, delta_address);
  struct virtio_net_hdr vnet = {0};
  if (partial)
    vnet = (struct virtio_net_hdr){
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 20, .csum_offset = (uint16_t)checksum_offset(ip[9])};
  memcpy(data, &vnet, sizeof vnet);
}

static void test_rewrite(void **state) {
  (void)state;
  uint64_t random = 5;
  const uint16_t corners[] = {0, 1, 0xfffe, 0xffff};
  for (int round = 0; round < 200000; round++) {
    recipe r = round & 1 ? datagram : segment;
    r.partial = round & 2;
    r.no_checksum = !(round & 1) && random_below(&random, 4) == 0;
    uint8_t here[300], there[300];
    uint32_t length = make_packet(here, &r), address = (uint32_t)next_random(&random);
    uint8_t *checksum = here + VNET + 20 + checksum_offset(r.protocol);
    if (random_below(&random, 2))
      hp_put16(checksum, corners[random_below(&random, 4)]);
    if (random_below(&random, 2))
      here[0] |= VIRTIO_NET_HDR_F_DATA_VALID;
    uint16_t port = (uint16_t)next_random(&random), delta_address = (uint16_t)next_random(&random),
             delta_full = (uint16_t)next_random(&random);
    if (random_below(&random, 4) == 0)
      delta_address = delta_full = corners[random_below(&random, 4)];
    memcpy(there, here, length);
    bool outside = random_below(&random, 2);
    hp_steady_rewrite(here, r.protocol == HP_TCP, outside, address, port, delta_address, delta_full);
    plain_rewrite(there, outside, address, port, delta_address, delta_full);
    assert_memory_equal(here, there, length);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_what_is_steady),
      cmocka_unit_test(test_every_length),
      cmocka_unit_test(test_every_byte),
      cmocka_unit_test(test_rewrite),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
