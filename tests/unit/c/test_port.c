/* test_port.c: outside ports: how many there are, in which order they go, and that "exhausted" is exact. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "invariants.h"

enum { MAX_FLOWS = 70000, QUARANTINE = 30000, ADDRESS = 0xc0000201, ENI = 1 };

typedef struct bench {
  hp_ports ports;
  hp_flow_table flows;
  uint32_t address; /* its number */
  uint64_t random;
} bench;

static void bench_new(bench *b, uint32_t addresses) {
  hp_error error;
  *b = (bench){.random = 1};
  assert_int_equal(hp_ports_new(&b->ports, addresses, MAX_FLOWS, QUARANTINE, 1, &error), 0);
  assert_int_equal(hp_flow_table_new(&b->flows, MAX_FLOWS, 1, false, &error), 0);
  b->address = hp_address_add(&b->ports, ENI, ADDRESS);
  assert_int_equal(b->address, 0);
}

static void bench_free(bench *b) {
  hp_ports_free(&b->ports);
  hp_flow_table_free(&b->flows);
}

/* ---- exclusive ports ---- */

static uint16_t take(bench *b, int kind, uint16_t like, uint64_t now) {
  uint16_t port = hp_port_take(&b->ports, b->address, kind, like, now);
  HOLD(port == 0 || port >= HP_PORT_FIRST);
  return port;
}

/* Takes ports until there are none; each but those in `held` is had once. Returns how many. */
static uint32_t take_all(bench *b, int kind, uint64_t held[HP_PORT_WORDS], uint64_t now) {
  uint32_t taken = 0;
  for (uint16_t port; (port = take(b, kind, (uint16_t)next_random(&b->random), now)) != 0; taken++) {
    HOLD(!port_taken(held, port));
    held[(port - HP_PORT_FIRST) / 64] |= 1ull << (port - HP_PORT_FIRST) % 64;
  }
  return taken;
}

static void test_every_exclusive_port_is_had_once_for_each_protocol(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  for (int kind = 0; kind < 2; kind++) {
    uint64_t held[HP_PORT_WORDS] = {0};
    assert_int_equal(take_all(&b, kind, held, 0), 64512);
    assert_int_equal(take(&b, kind, 0, 1000000), 0);
  }
  check_slices(&b.ports, 0);
  bench_free(&b);
}

/* RFC 4787 REQ-4 */
static void test_parity_is_kept_as_long_as_there_are_such_ports(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  for (uint32_t i = 0; i < 64512 / 2; i++)
    HOLD(take(&b, HP_PORTS_UDP, 4001, 0) % 2 == 1);
  assert_int_equal(take(&b, HP_PORTS_UDP, 4001, 0) % 2, 0); /* all others are taken */
  for (uint32_t i = 1; i < 64512 / 2; i++)
    HOLD(take(&b, HP_PORTS_UDP, 4000, 0) % 2 == 0);
  assert_int_equal(take(&b, HP_PORTS_UDP, 4000, 0), 0);
  bench_free(&b);
}

static void test_slices_are_leased_when_they_are_needed(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  const hp_address *address = &b.ports.addresses[0];
  uint32_t before = address->leased;
  assert_true(before >= 16 && before < HP_SLICES); /* RFC 6056: enough to choose from at once */
  for (uint32_t i = 0; i < before * HP_SLICE_PORTS / 2; i++)
    HOLD(take(&b, HP_PORTS_UDP, 4000, 0) != 0);
  assert_int_equal(address->leased, before);
  assert_int_not_equal(take(&b, HP_PORTS_UDP, 4000, 0), 0);
  assert_int_equal(address->leased, before + 1);
  check_slices(&b.ports, 0);
  bench_free(&b);
}

static void test_slices_of_other_workers_are_left_alone(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  hp_lease *lease = &b.ports.leases[0];
  uint32_t others = 0;
  for (uint32_t slice = 0; slice < HP_SLICES && others < 10; slice++)
    if (lease->owner[slice] == 0) {
      lease->owner[slice] = 2;
      others++;
    }
  uint64_t held[HP_PORT_WORDS] = {0};
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64512 - 10 * HP_SLICE_PORTS);
  for (uint32_t port = HP_PORT_FIRST; port <= 0xffff; port++)
    HOLD(port_taken(held, port) == (lease->owner[(port - HP_PORT_FIRST) / HP_SLICE_PORTS] == 1));
  bench_free(&b);
}

static void test_quarantine_keeps_a_port_for_its_time(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  uint64_t resting[HP_PORT_WORDS] = {0};
  uint64_t now = UINT32_MAX - 1000ull; /* the low 32 bits turn over meanwhile */
  for (uint32_t i = 0; i < 2000; i++) {
    uint16_t port = take(&b, HP_PORTS_UDP, (uint16_t)i, now);
    hp_port_give(&b.ports, b.address, HP_PORTS_UDP, port, now);
    resting[(port - HP_PORT_FIRST) / 64] |= 1ull << (port - HP_PORT_FIRST) % 64;
  }
  for (uint32_t i = 0; i < 64512 - 2000; i++) /* all others, up to the last ms */
    HOLD(!port_taken(resting, take(&b, HP_PORTS_UDP, 0, now + QUARANTINE - 1)));
  const hp_address *address = &b.ports.addresses[0];
  assert_int_equal(address->tail[HP_PORTS_UDP] - address->head[HP_PORTS_UDP], 2000);
  HOLD(port_taken(resting, take(&b, HP_PORTS_UDP, 0, now + QUARANTINE)));
  assert_int_equal(address->tail[HP_PORTS_UDP], address->head[HP_PORTS_UDP]); /* all have rested long enough, at once */
  uint64_t held[HP_PORT_WORDS] = {0};
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, now + QUARANTINE), 1999);
  bench_free(&b);
}

static void test_quarantine_gives_way_oldest_first_when_ports_are_short(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  uint64_t held[HP_PORT_WORDS] = {0};
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64512);
  for (uint16_t port = 5000; port < 5100; port++)
    hp_port_give(&b.ports, b.address, HP_PORTS_UDP, port, port);
  for (uint16_t port = 5000; port < 5100; port++)
    assert_int_equal(take(&b, HP_PORTS_UDP, (uint16_t)~port, 5200), port); /* whatever its parity */
  assert_int_equal(take(&b, HP_PORTS_UDP, 0, 5200), 0);
  bench_free(&b);
}

/* A want of UDP ports takes nothing from the rest of ICMP ids, and the other way round. */
static void test_quarantine_of_the_other_protocol_stays(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  uint64_t held[HP_PORT_WORDS] = {0};
  uint16_t id = take(&b, HP_PORTS_ICMP, 0, 0);
  hp_port_give(&b.ports, b.address, HP_PORTS_ICMP, id, 0);
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64512);
  assert_true(port_taken(b.ports.addresses[0].taken[HP_PORTS_ICMP], id));
  memset(held, 0, sizeof held);
  assert_int_equal(take_all(&b, HP_PORTS_ICMP, held, 10), 64512);
  bench_free(&b);
}

static void test_random_churn_of_exclusive_ports(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  static uint16_t ports[2][3000];
  uint32_t count[2] = {0, 0};
  uint64_t expected[2][HP_PORT_WORDS] = {{0}};
  for (uint64_t now = 0; now < 200000; now++) {
    int kind = (int)random_below(&b.random, 2);
    if (random_below(&b.random, 2) && count[kind] < 3000) {
      uint16_t port = take(&b, kind, (uint16_t)now, now);
      HOLD(port && (port ^ now) % 2 == 0 && !port_taken(expected[kind], port));
      expected[kind][(port - HP_PORT_FIRST) / 64] |= 1ull << (port - HP_PORT_FIRST) % 64;
      ports[kind][count[kind]++] = port;
    } else if (count[kind]) {
      uint32_t i = random_below(&b.random, count[kind]);
      uint16_t port = ports[kind][i];
      hp_port_give(&b.ports, b.address, kind, port, now);
      expected[kind][(port - HP_PORT_FIRST) / 64] &= ~(1ull << (port - HP_PORT_FIRST) % 64);
      ports[kind][i] = ports[kind][--count[kind]];
    }
  }
  const hp_address *address = &b.ports.addresses[0];
  for (int kind = 0; kind < 2; kind++)
    for (uint32_t at = address->head[kind]; at != address->tail[kind]; at++) {
      const hp_quarantined *q = &address->quarantine[kind][at % HP_QUARANTINE];
      HOLD(200000 - q->since <= QUARANTINE + 10 && !port_taken(expected[kind], q->port));
      expected[kind][(q->port - HP_PORT_FIRST) / 64] |= 1ull << (q->port - HP_PORT_FIRST) % 64;
    }
  assert_memory_equal(address->taken, expected, sizeof expected);
  bench_free(&b);
}

static void test_claimed_port_is_not_given_out(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 1);
  uint64_t held[HP_PORT_WORDS] = {0};
  hp_port_claim(&b.ports, b.address, HP_PORTS_UDP, 1024);
  hp_port_claim(&b.ports, b.address, HP_PORTS_UDP, 65535);
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64510);
  assert_false(port_taken(held, 1024) || port_taken(held, 65535));
  bench_free(&b);
}

/* ---- addresses ---- */

static void test_addresses_are_numbered_and_reused_clean(void **state) {
  (void)state;
  bench b;
  bench_new(&b, 2);
  uint64_t held[HP_PORT_WORDS] = {0};
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64512);
  hp_port_give(&b.ports, b.address, HP_PORTS_UDP, 2000, 0);
  assert_int_equal(hp_address_add(&b.ports, 2, ADDRESS + 1), 1);
  assert_int_equal(hp_address_add(&b.ports, 3, ADDRESS + 2), HP_NONE);
  hp_address_remove(&b.ports, 0);
  assert_int_equal(hp_address_add(&b.ports, 3, ADDRESS + 2), 0);
  assert_int_equal(b.ports.addresses[0].address, ADDRESS + 2);
  assert_int_equal(b.ports.addresses[0].head[HP_PORTS_UDP], b.ports.addresses[0].tail[HP_PORTS_UDP]);
  memset(held, 0, sizeof held);
  assert_int_equal(take_all(&b, HP_PORTS_UDP, held, 0), 64512);
  bench_free(&b);
}

/* RFC 6056 3: with another seed other ports, and no run of neighbours. */
static void test_ports_are_unpredictable(void **state) {
  (void)state;
  hp_ports ports[2];
  hp_error error;
  uint32_t same = 0, near = 0;
  for (int i = 0; i < 2; i++) {
    assert_int_equal(hp_ports_new(&ports[i], 1, 100, QUARANTINE, 0, &error), 0);
    assert_int_equal(hp_address_add(&ports[i], ENI, ADDRESS), 0);
  }
  uint16_t last = 0;
  for (int i = 0; i < 1000; i++) {
    uint16_t port = hp_port_take(&ports[0], 0, HP_PORTS_UDP, 0, 0), other = hp_port_random(&ports[1], 0);
    HOLD(ports[1].leases[0].owner[(other - HP_PORT_FIRST) / HP_SLICE_PORTS] == 1);
    same += port == other;
    near += (uint16_t)(port - last + 8) <= 16;
    last = port;
  }
  assert_true(same < 10 && near < 20);
  hp_ports_free(&ports[0]);
  hp_ports_free(&ports[1]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_exclusive_port_is_had_once_for_each_protocol),
      cmocka_unit_test(test_parity_is_kept_as_long_as_there_are_such_ports),
      cmocka_unit_test(test_slices_are_leased_when_they_are_needed),
      cmocka_unit_test(test_slices_of_other_workers_are_left_alone),
      cmocka_unit_test(test_quarantine_keeps_a_port_for_its_time),
      cmocka_unit_test(test_quarantine_gives_way_oldest_first_when_ports_are_short),
      cmocka_unit_test(test_quarantine_of_the_other_protocol_stays),
      cmocka_unit_test(test_random_churn_of_exclusive_ports),
      cmocka_unit_test(test_claimed_port_is_not_given_out),
      cmocka_unit_test(test_addresses_are_numbered_and_reused_clean),
      cmocka_unit_test(test_ports_are_unpredictable),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
