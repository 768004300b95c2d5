/* test_expire.c: the sweep finds every flow that is over, whatever the order in which time, traffic, timers and links
 * change, and does only so much in one turn of the loop. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"

enum { MANY = 3000, UDP_TIMER = 300000 };

static lab *large_lab(uint32_t tunnels) {
  static const hp_config large = {.max_flows = MANY, .max_links = 40, .max_addresses = 1, .seed = 1};
  static const hp_eni_config shared = {
      .addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500, .udp_mapping = HP_UDP_ENDPOINT_DEPENDENT};
  lab *l = new_lab(&large, &shared);
  for (uint32_t i = 1; i < tunnels; i++)
    add_tunnel(l, ENI, 0);
  return l;
}

static void open_flow(lab *l, uint32_t tunnel, uint16_t port, uint8_t protocol) {
  recipe r = from_inside(protocol, port, protocol == HP_UDP ? 9 : 80);
  pass(l, tunnel, &r);
}

static void fill(lab *l, uint32_t tunnels) {
  for (uint32_t i = 0; i < MANY; i++)
    open_flow(l, TUNNEL + i % tunnels, (uint16_t)(1 + i / tunnels), HP_UDP);
  assert_int_equal(live_flows(l), MANY);
}

static void advance(lab *l, uint64_t ms) { hp_clock_set(l->engine->workers, l->now += ms); }

/* As the worker's loop: devices are there, so others wait for the turn to end. */
static void turn(lab *l) {
  static char device;
  hp_worker *worker = l->engine->workers;
  worker->io = (hp_io *)(void *)&device;
  hp_expire_turn(worker);
  worker->io = NULL;
}

static void test_a_turn_ends_some_and_owes_the_rest(void **state) {
  (void)state;
  lab *l = large_lab(1);
  fill(l, 1);
  advance(l, UDP_TIMER - 1);
  hp_expire(l->engine->workers, UINT32_MAX);
  assert_int_equal(live_flows(l), MANY);
  advance(l, 1000);
  uint32_t turns = 0, left = MANY;
  for (; left; turns++) {
    turn(l);
    assert_true(live_flows(l) < left && left - live_flows(l) <= 512);
    left = live_flows(l);
    assert_true(left == 0 || l->engine->workers->owed);
    check_engine(l->engine);
  }
  assert_true(turns > 3);
  free_lab(l);
}

static void test_flows_that_are_not_due_are_left_alone(void **state) {
  (void)state;
  lab *l = large_lab(1);
  fill(l, 1);
  hp_half *half = &l->engine->workers->flows.flows[77].half[HP_INSIDE];
  half->last_seen = (uint32_t)l->now - 3 * UDP_TIMER; /* it would end if anybody looked */
  advance(l, 1000);
  hp_expire(l->engine->workers, UINT32_MAX);
  assert_int_equal(live_flows(l), MANY);
  half->last_seen = (uint32_t)l->now;
  free_lab(l);
}

static void test_only_flows_of_a_removed_tunnel_end(void **state) {
  (void)state;
  lab *l = large_lab(8);
  fill(l, 8);
  MUST(l, hp_link_remove(l->engine, TUNNEL + 3, &l->error));
  MUST(l, hp_link_drain(l->engine, TUNNEL + 5, HP_DRAIN_RESET, &l->error));
  for (uint32_t turns = 0; l->engine->links[TUNNEL + 3].kind != HP_LINK_FREE; turns++) {
    HOLD(turns < 10000);
    advance(l, 1);
    turn(l);
  }
  check_engine(l->engine);
  assert_int_equal(hp_stats(l->engine->workers, TUNNEL + 5)->flows, 0);
  assert_int_equal(live_flows(l), MANY / 8 * 6);
  free_lab(l);
}

static void test_after_a_jump_of_the_clock_all_end_in_turns(void **state) {
  (void)state;
  lab *l = large_lab(1);
  fill(l, 1);
  hp_worker *worker = l->engine->workers;
  static char device;
  worker->io = (hp_io *)(void *)&device;
  advance(l, 1ull << 33);
  worker->io = NULL;
  assert_int_equal(live_flows(l), MANY);
  turn(l);
  assert_true(live_flows(l) > 0);
  for (uint32_t turns = 0; live_flows(l); turns++) {
    HOLD(turns < 100);
    advance(l, 1);
    turn(l);
  }
  open_flow(l, TUNNEL, 1, HP_UDP);
  turn(l);
  advance(l, 1000);
  turn(l);
  assert_int_equal(live_flows(l), 1); /* new ones are not meant */
  free_lab(l);
}

/* Whatever happened: after a pass at one time nothing is left whose time is over. */
static void test_random_lives(void **state) {
  (void)state;
  uint64_t random = 7;
  lab *l = large_lab(8);
  uint32_t ended = 0;
  for (int step = 0; step < 3000; step++) {
    for (uint32_t i = random_below(&random, 40); i; i--)
      open_flow(l, TUNNEL + random_below(&random, 8), (uint16_t)(1 + random_below(&random, 200)),
                random_below(&random, 2) ? HP_UDP : HP_TCP);
    advance(l, random_below(&random, 3) ? random_below(&random, 2000) : random_below(&random, UDP_TIMER));
    uint32_t before = live_flows(l);
    if (random_below(&random, 2))
      turn(l);
    else
      hp_expire(l->engine->workers, random_below(&random, MANY));
    if (step % 100 == 0) {
      l->engine->workers->cursor = 0;
      hp_expire(l->engine->workers, UINT32_MAX);
      const hp_flow_table *flows = &l->engine->workers->flows;
      for (uint32_t number = 0; number < flows->control->used; number++)
        HOLD(!hp_flow_live(&flows->flows[number]) || (int32_t)(flows->cold[number].deadline - (uint32_t)l->now) > 0);
      check_engine(l->engine);
    }
    ended += before - live_flows(l);
  }
  assert_true(ended > 1000);
  free_lab(l);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_a_turn_ends_some_and_owes_the_rest),
      cmocka_unit_test(test_flows_that_are_not_due_are_left_alone),
      cmocka_unit_test(test_only_flows_of_a_removed_tunnel_end),
      cmocka_unit_test(test_after_a_jump_of_the_clock_all_end_in_turns),
      cmocka_unit_test(test_random_lives),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
