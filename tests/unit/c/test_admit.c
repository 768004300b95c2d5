/* test_admit.c: which outside port a new flow gets when ports, mappings or room are short. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"

enum { PORTS = HP_PORT_COUNT };

static lab *wide_lab(uint32_t max_flows, uint32_t addresses) {
  hp_config config = {.max_flows = max_flows, .max_links = 4, .max_addresses = addresses, .seed = 1};
  hp_eni_config eni = {.addresses = {ENI_ADDRESS, ENI_ADDRESS + 1}, .address_count = addresses, .mtu = 1500};
  return new_lab(&config, &eni);
}

/* Opens TCP connections to one destination with source ports from `first` on; how many could be. */
static uint32_t open_tcp(lab *l, uint32_t first, uint32_t count) {
  uint32_t opened = 0;
  for (uint32_t i = first; i < first + count; i++) {
    recipe r = from_inside(HP_TCP, (uint16_t)i, 80);
    opened += pass(l, i >> 16 ? TUNNEL + 1 : TUNNEL, &r) == HP_FORWARD;
  }
  return opened;
}

static void reset_flow(lab *l, uint32_t number) {
  const hp_half *half = &l->engine->workers[0].flows.flows[number].half[HP_OUTSIDE];
  recipe r = {.source = half->key.source,
              .destination = half->key.destination,
              .source_port = (uint16_t)(half->key.ports >> 16),
              .destination_port = (uint16_t)half->key.ports,
              .protocol = HP_TCP,
              .flags = HP_RST | HP_ACK};
  HOLD(pass(l, ENI, &r) == HP_FORWARD);
}

/* RFC 7857 section 3.2: as many connections to one destination as there are ports. When all are taken, ports of
 * connections that are over are used again; live ones are never cut off. */
static void test_ports_of_ended_connections_are_reclaimed(void **state) {
  (void)state;
  lab *l = wide_lab(70000, 1);
  add_tunnel(l, ENI, 0);
  assert_int_equal(open_tcp(l, 0, PORTS), PORTS);
  assert_int_equal(open_tcp(l, PORTS, 1), 0);
  assert_int_equal(l->packet.reason, HP_PORTS_EXHAUSTED);
  assert_int_equal(l->packet.verdict, HP_REPLY);
  for (uint32_t number = 0; number < PORTS; number += 4)
    reset_flow(l, number);
  l->now += 1999; /* a peer may still answer the last segments */
  assert_int_equal(open_tcp(l, PORTS, 1), 0);
  l->now += 1;
  assert_int_equal(open_tcp(l, PORTS, 500), 500);
  assert_int_equal(live_flows(l), PORTS);
  const hp_flow_table *table = &l->engine->workers[0].flows;
  for (uint32_t number = 0; number < PORTS; number++)
    HOLD(number % 4 == 0 || table->flows[number].half[HP_INSIDE].key.ports >> 16 == number);
  check_engine(l->engine);
  assert_int_equal(sweep(l, 240000), PORTS);
  assert_int_equal(l->engine->workers[0].ports.dense_live, 0);
  free_lab(l);
}

/* RFC 6191: the same port, a flow of its own. The bitmap of a crowded destination stays exact. */
static void test_reopened_connection_keeps_its_port(void **state) {
  (void)state;
  lab *l = wide_lab(70000, 1);
  add_tunnel(l, ENI, 0);
  assert_int_equal(open_tcp(l, 0, PORTS), PORTS);
  assert_int_equal(open_tcp(l, PORTS, 1), 0);
  const hp_flow_table *table = &l->engine->workers[0].flows;
  for (uint32_t number = 0; number < PORTS; number += 1001) {
    hp_flow before = table->flows[number];
    uint64_t id = hp_flow_id(&before, number);
    reset_flow(l, number);
    l->now += 5;
    assert_int_equal(open_tcp(l, number, 1), 1);
    const hp_flow *after = &table->flows[number];
    assert_true(hp_flow_id(after, number) > id);
    assert_true(hp_key_equal(&after->half[HP_INSIDE].key, &before.half[HP_INSIDE].key));
    assert_true(hp_key_equal(&after->half[HP_OUTSIDE].key, &before.half[HP_OUTSIDE].key));
    assert_int_equal(after->half[HP_INSIDE].packets, 1);
    assert_int_equal(after->half[HP_OUTSIDE].packets, 0);
    assert_int_equal(table->cold[number].started, l->now);
  }
  assert_int_equal(open_tcp(l, PORTS, 1), 0);
  assert_int_equal(l->packet.reason, HP_PORTS_EXHAUSTED);
  free_lab(l);
}

static void test_tcp_goes_over_to_the_second_address(void **state) {
  (void)state;
  lab *l = wide_lab(140000, 2);
  add_tunnel(l, ENI, 0);
  uint32_t used[2] = {0, 0};
  assert_int_equal(open_tcp(l, 0, 120000), 120000);
  for (uint32_t number = 0; number < 120000; number++)
    used[l->engine->workers[0].flows.flows[number].half[HP_INSIDE].address - ENI_ADDRESS]++;
  assert_int_equal(used[0] + used[1], 120000);
  assert_true(used[0] > 50000 && used[1] > 50000 && used[0] <= PORTS && used[1] <= PORTS);
  free_lab(l);
}

/* ---- UDP when ports are short ---- */

/* Nothing is free but these ports. */
static void leave_ports(lab *l, const uint16_t *ports, uint32_t count) {
  uint64_t *taken = l->engine->workers[0].ports.addresses[0].taken[HP_PORTS_UDP];
  memset(taken, 0xff, sizeof l->engine->workers[0].ports.addresses[0].taken[HP_PORTS_UDP]);
  for (uint32_t i = 0; i < count; i++)
    taken[(ports[i] - HP_PORT_FIRST) / 64] &= ~(1ull << (ports[i] - HP_PORT_FIRST) % 64);
}

/* The bits that leave_ports() set and no mapping stands for. */
static void forget_ports(lab *l, const uint16_t *except, uint32_t count) {
  uint64_t *taken = l->engine->workers[0].ports.addresses[0].taken[HP_PORTS_UDP];
  memset(taken, 0, sizeof l->engine->workers[0].ports.addresses[0].taken[HP_PORTS_UDP]);
  for (uint32_t i = 0; i < count; i++)
    taken[(except[i] - HP_PORT_FIRST) / 64] |= 1ull << (except[i] - HP_PORT_FIRST) % 64;
}

static uint32_t mappings(const lab *l) { return l->engine->workers[0].mappings.control->live; }

static void test_udp_shares_ports_when_they_are_short(void **state) {
  (void)state;
  lab *l = wide_lab(100, 1);
  const uint16_t last = 2000;
  leave_ports(l, &last, 1);
  recipe r = from_inside(HP_UDP, 4000, 9);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(outside_port(l), last);
  r.destination_port = 10; /* the same endpoint: the same port */
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(outside_port(l), last);
  r.source_port = 4001; /* another one: a port that is free towards there */
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(mappings(l), 1);
  recipe answer = answer_to_last(l, 0);
  assert_int_equal(pass(l, ENI, &answer), HP_FORWARD);
  assert_int_equal(hp_get16(l->data + VNET + 22), 4001);
  forget_ports(l, &last, 1);
  free_lab(l);
}

/* A mapping's port may be in use towards a destination by a flow that shares it: that flow stays. */
static void test_mapping_gives_way_to_a_flow_that_was_there_first(void **state) {
  (void)state;
  lab *l = wide_lab(100, 1);
  leave_ports(l, NULL, 0);
  recipe r = from_inside(HP_UDP, 4000, 9);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  const uint16_t shared = outside_port(l);
  leave_ports(l, &shared, 1);
  r.source_port = 5000;
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD); /* would have had the port of the first */
  assert_int_not_equal(outside_port(l), shared);
  assert_int_equal(mappings(l), 0); /* made for nothing: it is gone, and its port rests */
  r.source_port = 4000;
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(outside_port(l), shared);
  l->now += 30000;
  r.source_port = 5000;
  r.destination_port = 10;
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD); /* elsewhere the mapping can be had */
  assert_int_equal(outside_port(l), shared);
  assert_int_equal(mappings(l), 1);
  r.destination_port = 9;
  r.source_port = 5001;
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  r.source_port = 5000; /* has a flow there that shares another port: it goes on with that */
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_not_equal(outside_port(l), shared);
  forget_ports(l, &shared, 1);
  free_lab(l);
}

static void test_udp_shares_ports_when_mappings_are_short(void **state) {
  (void)state;
  hp_config config = {.max_flows = 100, .max_links = 4, .max_addresses = 1, .max_mappings = 2, .seed = 1};
  lab *l = new_lab(&config, NULL);
  for (uint16_t port = 1; port <= 5; port++) {
    recipe r = from_inside(HP_UDP, port, 9);
    assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  }
  assert_int_equal(mappings(l), 2);
  check_engine(l->engine);
  assert_int_equal(sweep(l, 300000), 5);
  assert_int_equal(mappings(l), 0);
  free_lab(l);
}

/* DNS is always endpoint-dependent: one resolver's clients must not eat all ports. */
static void test_dns_takes_no_mapping(void **state) {
  (void)state;
  lab *l = wide_lab(100, 1);
  recipe r = from_inside(HP_UDP, 4000, 53);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(mappings(l), 0);
  free_lab(l);
}

/* An index that is full though the table is not: cannot be, unless something is broken; nothing may leak then. */
static void test_flow_that_cannot_be_published(void **state) {
  (void)state;
  const uint8_t protocols[] = {HP_UDP, HP_TCP};
  for (int i = 0; i < 2; i++) {
    lab *l = wide_lab(20, 1);
    hp_worker *worker = l->engine->workers;
    uint64_t random = 1;
    while (hp_index_insert(&worker->flows.index[HP_OUTSIDE], next_random(&random), 19)) /* a free number */
      ;
    recipe r = from_inside(protocols[i], 4000, 80);
    assert_int_equal(pass(l, TUNNEL, &r), HP_REPLY);
    assert_int_equal(l->packet.reason, HP_FLOW_TABLE_FULL);
    assert_int_equal(live_flows(l), 0);
    assert_int_equal(mappings(l), 0);
    assert_int_equal(hp_stats(l->engine->workers, TUNNEL)->flows, 0);
    check_mappings(&worker->mappings);
    check_exclusive(&worker->ports, &worker->mappings, 0);
    check_dense(&worker->ports, &worker->flows);
    hp_engine_free(l->engine);
    free(l);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ports_of_ended_connections_are_reclaimed),
      cmocka_unit_test(test_reopened_connection_keeps_its_port),
      cmocka_unit_test(test_tcp_goes_over_to_the_second_address),
      cmocka_unit_test(test_udp_shares_ports_when_they_are_short),
      cmocka_unit_test(test_mapping_gives_way_to_a_flow_that_was_there_first),
      cmocka_unit_test(test_udp_shares_ports_when_mappings_are_short),
      cmocka_unit_test(test_dns_takes_no_mapping),
      cmocka_unit_test(test_flow_that_cannot_be_published),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
