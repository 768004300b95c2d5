/* test_engine.c: links, time, limits and readers of an engine; tests/packet has the rules of translation. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"

/* ---- configuration ---- */

static void test_values_out_of_range_are_named(void **state) {
  (void)state;
  const struct {
    hp_config config;
    const char *named;
  } cases[] = {
      {{.max_flows = 0, .max_links = 2, .max_addresses = 1}, "max_flows"},
      {{.max_flows = HP_MAX_FLOWS + 1, .max_links = 2, .max_addresses = 1}, "max_flows"},
      {{.max_flows = 1, .max_links = 1, .max_addresses = 1}, "max_links"},
      {{.max_flows = 1, .max_links = 2, .max_addresses = 0}, "max_addresses"},
      {{.max_flows = 1, .max_links = 2, .max_addresses = 1, .max_mappings = HP_MAX_FLOWS + 1}, "max_mappings"},
      {{.max_flows = 1, .max_links = 2, .max_addresses = 1, .refusal_rate = 1000001}, "refusal_rate"},
      {{.max_flows = 1, .max_links = 2, .max_addresses = 1, .buffers = 3}, "buffers"},
      {{.max_flows = 1, .max_links = 2, .max_addresses = 1, .io = 9}, "io"},
  };
  for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
    hp_error error = {0};
    assert_null(hp_engine_new(&cases[i].config, &error));
    assert_non_null(strstr(error.text, cases[i].named));
    assert_null(strchr(error.text, '\n'));
  }
}

/* Every capacity works, also one: the table is no power of two. */
static void test_smallest_engine(void **state) {
  (void)state;
  hp_config config = {.max_flows = 1, .max_links = 2, .max_addresses = 1, .seed = 1};
  lab *l = new_lab(&config, NULL);
  recipe r = from_inside(HP_UDP, 4000, 9);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  r.source_port++;
  assert_int_equal(pass(l, TUNNEL, &r), HP_REPLY);
  assert_int_equal(l->packet.reason, HP_FLOW_TABLE_FULL);
  assert_int_equal(sweep(l, 300000), 1);
  r.source_port++;
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  free_lab(l);
}

/* ---- links ---- */

static void test_links_run_out_and_come_back(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  hp_tunnel_config config = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
  for (uint32_t number = TUNNEL + 1; number <= 10; number++)
    assert_int_equal(add_tunnel(l, ENI, 0), number);
  assert_int_equal(hp_tunnel_add(l->engine, &config, -1, &l->error), -1);
  assert_non_null(strstr(l->error.text, "max_links"));
  assert_int_equal(hp_link_remove(l->engine, 5, &l->error), 0);
  assert_int_equal(hp_tunnel_add(l->engine, &config, -1, &l->error), -1); /* it still drains */
  sweep(l, 0);
  assert_int_equal(add_tunnel(l, ENI, 0), 5);
  free_lab(l);
}

static void test_what_cannot_be_added_or_removed(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  hp_tunnel_config tunnel = {.eni = TUNNEL, .address = INSIDE_ADDRESS, .mtu = 1500};
  assert_int_equal(hp_tunnel_add(l->engine, &tunnel, -1, &l->error), -1); /* a tunnel is no ENI */
  tunnel = (hp_tunnel_config){.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 100};
  assert_int_equal(hp_tunnel_add(l->engine, &tunnel, -1, &l->error), -1);
  hp_eni_config eni = {.addresses = {1, 2, 3, 4, 5}, .address_count = 5, .mtu = 1500};
  assert_int_equal(hp_eni_add(l->engine, &eni, -1, &l->error), -1);
  assert_non_null(strstr(l->error.text, "max_addresses"));
  eni.address_count = 3; /* one of four is used: what the failed one took is free again */
  assert_true(hp_eni_add(l->engine, &eni, -1, &l->error) > 0);
  assert_int_equal(hp_link_remove(l->engine, ENI, &l->error), -1);
  assert_non_null(strstr(l->error.text, "tunnels"));
  assert_int_equal(hp_link_remove(l->engine, 0, &l->error), -1);
  assert_int_equal(hp_link_remove(l->engine, 77, &l->error), -1);
  assert_int_equal(hp_link_remove(l->engine, TUNNEL, &l->error), 0);
  assert_int_equal(hp_link_remove(l->engine, TUNNEL, &l->error), -1); /* once is enough */
  assert_int_equal(hp_link_remove(l->engine, ENI, &l->error), 0);
  free_lab(l);
}

static void test_removed_tunnel_drains(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  uint32_t other = add_tunnel(l, ENI, 0);
  recipe r = from_inside(HP_UDP, 4000, 9);
  assert_int_equal(pass(l, other, &r), HP_FORWARD);
  recipe kept = answer_to_last(l, 0);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  recipe answer = answer_to_last(l, 0);
  hp_flow_info infos[3];
  uint32_t cursor = 0;
  assert_int_equal(hp_flows(l->engine, &cursor, infos, 3), 2);
  assert_int_equal(hp_link_remove(l->engine, TUNNEL, &l->error), 0);
  cursor = 0;
  assert_int_equal(hp_flows(l->engine, &cursor, infos, 3), 1); /* for readers its flows are gone at once */
  assert_int_equal(infos[0].tunnel, other);
  assert_int_equal(pass(l, TUNNEL, &r), HP_DROP);
  assert_int_equal(l->packet.reason, HP_LINK_DETACHED);
  assert_int_equal(pass(l, ENI, &answer), HP_DROP);
  assert_int_equal(l->packet.reason, HP_LINK_DETACHED);
  /* It is left half-way through the table: its end must wait for a whole pass. */
  hp_expire(l->engine->workers, 1);
  assert_int_equal(live_flows(l), 2); /* it has come past the other's flow only */
  assert_int_equal(sweep(l, 0), 1);
  assert_int_equal(live_flows(l), 1);
  assert_int_equal(pass(l, ENI, &answer), HP_DROP);
  assert_int_equal(l->packet.reason, HP_NO_FLOW);
  assert_int_equal(pass(l, ENI, &kept), HP_FORWARD);
  assert_int_equal(l->packet.link, other);
  free_lab(l);
}

/* A number is not given out again while a flow can name it, wherever the sweep stands. */
static void test_number_of_a_removed_tunnel_waits_for_a_whole_pass(void **state) {
  (void)state;
  for (uint32_t ahead = 0; ahead < 5; ahead++) {
    lab *l = new_lab(NULL, NULL);
    for (uint16_t port = 1; port <= 5; port++) {
      recipe r = from_inside(HP_TCP, port, 80);
      assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
    }
    hp_expire(l->engine->workers, ahead);
    assert_int_equal(hp_link_remove(l->engine, TUNNEL, &l->error), 0);
    for (int i = 0; i < 40 && l->engine->links[TUNNEL].kind != HP_LINK_FREE; i++) {
      hp_expire(l->engine->workers, 1);
      check_engine(l->engine); /* among others: no flow names a free link */
    }
    assert_int_equal(l->engine->links[TUNNEL].kind, HP_LINK_FREE);
    assert_int_equal(live_flows(l), 0);
    free_lab(l);
  }
}

static void test_quota_of_a_tunnel(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  uint32_t few = add_tunnel(l, ENI, 3);
  for (uint16_t port = 1; port <= 4; port++) {
    recipe r = from_inside(HP_TCP, port, 80);
    assert_int_equal(pass(l, few, &r), port <= 3 ? HP_FORWARD : HP_REPLY);
  }
  assert_int_equal(l->packet.reason, HP_FLOW_QUOTA);
  recipe r = from_inside(HP_TCP, 9, 80);
  assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
  assert_int_equal(sweep(l, 240000), 4);
  assert_int_equal(pass(l, few, &r), HP_FORWARD);
  free_lab(l);
}

/* ---- refusals ---- */

/* A second's worth at once, then by the millisecond, across the turn of the low 32 bits of time. */
static void test_rate_of_refusals(void **state) {
  (void)state;
  hp_config config = {.max_flows = 10, .max_links = 4, .max_addresses = 1, .refusal_rate = 20, .seed = 1};
  lab *l = new_lab(&config, NULL);
  assert_int_equal(hp_eni_rules(l->engine, ENI, NULL, 0, &l->error), 0);
  recipe r = from_inside(HP_TCP, 1, 80);
  const uint64_t times[] = {1000000, 0xfffffff0, 0x100000500};
  for (int i = 0; i < 3; i++) {
    l->now = times[i];
    for (int packet = 0; packet < 30; packet++)
      assert_int_equal(pass(l, TUNNEL, &r), packet < 20 ? HP_REPLY : HP_DROP);
    l->now += 49;
    assert_int_equal(pass(l, TUNNEL, &r), HP_DROP);
    l->now += 1;
    assert_int_equal(pass(l, TUNNEL, &r), HP_REPLY);
    assert_int_equal(pass(l, TUNNEL, &r), HP_DROP);
    assert_int_equal(l->packet.reason, HP_SECURITY_GROUP);
  }
  free_lab(l);
}

/* ---- time ---- */

static void test_time_does_not_go_back(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  hp_packet none;
  assert_int_equal(hp_translate(l->engine, &none, 0, l->now - 1, &l->error), -1);
  assert_int_equal(hp_sweep(l->engine, l->now - 1, &l->error), -1);
  assert_non_null(strstr(l->error.text, "goes back"));
  free_lab(l);
}

/* Wherever the low 32 bits of ms turn over: a flow ends when its timer says, not before and not after. */
static void test_timers_across_the_turn_of_the_clock(void **state) {
  (void)state;
  const struct {
    uint8_t protocol;
    uint16_t port;
    uint64_t timer;
  } cases[] = {{HP_UDP, 9, 300000}, {HP_UDP, 53, 30000}, {HP_ICMP, 0, 60000}, {HP_TCP, 80, 240000}};
  for (uint64_t start = 0x100000000 - 400000; start < 0x100000000 + 1000; start += 99989)
    for (int i = 0; i < 4; i++) {
      lab *l = new_lab(NULL, NULL);
      l->now = l->engine->workers[0].now = start;
      recipe r = from_inside(cases[i].protocol, 4000, cases[i].port);
      assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
      assert_int_equal(sweep(l, cases[i].timer - 1), 0);
      assert_int_equal(sweep(l, 1), 1);
      free_lab(l);
    }
}

/* An echo that nobody answers, for 60 days: the other side's silence must not come to look like news. */
static void test_a_side_that_is_silent_for_weeks(void **state) {
  (void)state;
  enum { DAY = 86400000 };
  hp_eni_config eni = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500, .timers = {.icmp = DAY}};
  lab *l = new_lab(NULL, &eni);
  recipe r = from_inside(HP_ICMP, 7, 0);
  for (int half_days = 0; half_days < 120; half_days++) {
    hp_flow_info info;
    uint32_t cursor = 0;
    assert_int_equal(pass(l, TUNNEL, &r), HP_FORWARD);
    assert_int_equal(sweep(l, DAY / 2), 0);
    assert_int_equal(hp_flows(l->engine, &cursor, &info, 1), 1);
    assert_int_equal(info.last_seen, l->now - DAY / 2);
    assert_int_equal(info.expires, l->now + DAY / 2);
    check_engine(l->engine);
  }
  assert_int_equal(sweep(l, DAY / 2), 1);
  free_lab(l);
}

/* ---- reading ---- */

static void test_drop_ring_keeps_the_newest(void **state) {
  (void)state;
  lab *l = new_lab(NULL, NULL);
  recipe r = {.source = REMOTE_ADDRESS, .destination = ENI_ADDRESS, .protocol = HP_UDP};
  hp_drop drops[100];
  uint64_t cursor = 0;
  for (uint16_t i = 1; i <= 200; i++) {
    r.destination_port = i;
    assert_int_equal(pass(l, ENI, &r), HP_DROP);
    if (i == 10)
      assert_int_equal(hp_drops(l->engine, &cursor, drops, 100), 10);
  }
  assert_int_equal(cursor, 10);
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 50), 50);
  assert_int_equal(drops[0].number, 200 - 64 + 1); /* the gap shows what was missed */
  assert_int_equal(hp_drops(l->engine, &cursor, drops + 50, 50), 14);
  for (uint32_t i = 0; i < 64; i++) {
    assert_int_equal(drops[i].number, 137 + i);
    assert_int_equal(drops[i].destination_port, 137 + i);
    assert_int_equal(drops[i].reason, HP_NO_FLOW);
    assert_int_equal(drops[i].source, REMOTE_ADDRESS);
    assert_int_equal(drops[i].length, 28);
  }
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 100), 0);
  free_lab(l);
}

enum { ROUNDS = 4000 };

/* Flows and drops are read while they come and go: none is ever half of one and half of another. */
static void *reader(void *argument) {
  lab *l = argument;
  uint64_t drop_cursor = 0, last = 0;
  uint32_t read = 0;
  while (!__atomic_load_n(&l->engine->stop, __ATOMIC_ACQUIRE) || read < 100) {
    hp_flow_info infos[32];
    hp_drop drops[32];
    uint32_t flow_cursor = 0, count = hp_flows(l->engine, &flow_cursor, infos, 32);
    for (uint32_t i = 0; i < count; i++) {
      HOLD(infos[i].remote == REMOTE_ADDRESS + infos[i].inside_port && infos[i].inside == INSIDE_ADDRESS);
      HOLD((infos[i].remote_port ^ infos[i].inside_port) == 0xffff && infos[i].outside == ENI_ADDRESS);
      HOLD(infos[i].tunnel == TUNNEL && infos[i].eni == ENI && infos[i].outside_port >= HP_PORT_FIRST);
      HOLD(infos[i].protocol == HP_UDP && infos[i].started >= 1000000);
    }
    read += count;
    count = hp_drops(l->engine, &drop_cursor, drops, 32);
    for (uint32_t i = 0; i < count; i++) {
      HOLD(drops[i].number > last && drops[i].source == REMOTE_ADDRESS + drops[i].destination_port);
      HOLD((drops[i].source_port ^ drops[i].destination_port) == 0xffff);
      last = drops[i].number;
    }
  }
  return NULL;
}

static void test_readers_see_whole_flows_and_drops(void **state) {
  (void)state;
  hp_config config = {.max_flows = 8, .max_links = 2, .max_addresses = 1, .seed = 1};
  lab *l = new_lab(&config, NULL);
  pthread_t thread;
  uint16_t made = 0;
  assert_int_equal(pthread_create(&thread, NULL, reader, l), 0);
  for (uint32_t round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < 8; i++) {
      made++;
      recipe r = from_inside(HP_UDP, made, (uint16_t)~made);
      r.destination += made;
      pass(l, TUNNEL, &r);
      recipe stray = {.source = REMOTE_ADDRESS + made,
                      .destination = ENI_ADDRESS,
                      .source_port = (uint16_t)~made,
                      .destination_port = made,
                      .protocol = HP_UDP};
      pass(l, ENI, &stray);
    }
    if (round + 1 < ROUNDS)
      sweep(l, 300000);
  }
  __atomic_store_n(&l->engine->stop, 1, __ATOMIC_RELEASE); /* with flows left for the reader to have seen some */
  pthread_join(thread, NULL);
  free_lab(l);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_values_out_of_range_are_named),
      cmocka_unit_test(test_smallest_engine),
      cmocka_unit_test(test_links_run_out_and_come_back),
      cmocka_unit_test(test_what_cannot_be_added_or_removed),
      cmocka_unit_test(test_removed_tunnel_drains),
      cmocka_unit_test(test_number_of_a_removed_tunnel_waits_for_a_whole_pass),
      cmocka_unit_test(test_quota_of_a_tunnel),
      cmocka_unit_test(test_rate_of_refusals),
      cmocka_unit_test(test_time_does_not_go_back),
      cmocka_unit_test(test_timers_across_the_turn_of_the_clock),
      cmocka_unit_test(test_a_side_that_is_silent_for_weeks),
      cmocka_unit_test(test_drop_ring_keeps_the_newest),
      cmocka_unit_test(test_readers_see_whole_flows_and_drops),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
