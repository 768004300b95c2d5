/* Several workers in one engine, in memory: tunnels are spread, packets reach who has their flow, slices of ports move,
 * counts add up, and a successor goes on with all of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine_fixture.h"

#include "slices.h"
#include "steer.h"

enum { WORKERS = 2, TUNNELS = 6 };

static const hp_config two = {
    .max_flows = 2001, .max_links = 20, .max_addresses = 4, .drop_records = 256, .seed = 1, .workers = WORKERS};

/* Tunnels have numbers from TUNNEL on. */
static lab *two_workers(const hp_config *config) {
  lab *l = new_lab(config ? config : &two, NULL);
  for (uint32_t i = 1; i < TUNNELS; i++)
    HOLD(add_tunnel(l, ENI, 0) == TUNNEL + i);
  return l;
}

static hp_worker *worker_of(const lab *l, uint32_t tunnel) {
  return &l->engine->workers[l->engine->links[tunnel].worker];
}

static uint32_t flows_of(const lab *l, uint32_t worker) { return l->engine->workers[worker].flows.control->live; }

static void test_tunnels_are_spread(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  for (uint32_t i = 0; i < TUNNELS; i++)
    assert_int_equal(l->engine->links[TUNNEL + i].worker, i % WORKERS);
  assert_int_equal(l->engine->workers[0].tunnels, TUNNELS / WORKERS);
  MUST(l, hp_link_remove(l->engine, TUNNEL, &l->error));
  MUST(l, hp_link_remove(l->engine, TUNNEL + 2, &l->error));
  for (uint32_t i = 0; i < 2; i++) /* those that come next go where fewest are */
    assert_int_equal(l->engine->links[add_tunnel(l, ENI, 0)].worker, 0);
  free_lab(l);
}

/* Each worker makes the flows of its tunnels, on ports of its own slices; what comes back reaches it. */
static void test_packets_reach_who_has_their_flow(void **state) {
  (void)state;
  const uint8_t protocols[] = {HP_UDP, HP_TCP, HP_ICMP};
  lab *l = two_workers(NULL);
  for (uint32_t i = 0; i < TUNNELS * 3 * 20; i++) {
    uint32_t tunnel = TUNNEL + i % TUNNELS;
    recipe r =
        from_inside(protocols[i / TUNNELS % 3], (uint16_t)(4000 + i), protocols[i / TUNNELS % 3] == HP_ICMP ? 0 : 80);
    assert_int_equal(pass(l, tunnel, &r), HP_FORWARD);
    uint32_t slice = ((uint32_t)outside_port(l) - HP_PORT_FIRST) / HP_SLICE_PORTS;
    assert_int_equal(hp_slice_owner(&l->engine->workers[0].ports, 0, slice), worker_of(l, tunnel)->number + 1);
    recipe answer = answer_to_last(l, HP_SYN | HP_ACK);
    assert_int_equal(pass(l, ENI, &answer), HP_FORWARD);
    assert_int_equal(l->packet.link, tunnel);
  }
  assert_int_equal(flows_of(l, 0), TUNNELS * 3 * 20 / WORKERS);
  assert_int_equal(flows_of(l, 1), TUNNELS * 3 * 20 / WORKERS);
  recipe stray = {.source = REMOTE_ADDRESS, .destination = ENI_ADDRESS, .protocol = HP_UDP, .destination_port = 5};
  assert_int_equal(pass(l, ENI, &stray), HP_DROP);
  assert_int_equal(l->packet.reason, HP_NO_FLOW);
  free_lab(l);
}

/* A batch of packets of all tunnels comes out as its packets would one by one. */
static void test_a_mixed_batch(void **state) {
  (void)state;
  enum { COUNT = 150 };
  static uint8_t data[COUNT][200];
  hp_packet packets[COUNT];
  lab *l = two_workers(NULL);
  for (uint32_t i = 0; i < COUNT; i++) {
    recipe r = from_inside(HP_UDP, (uint16_t)(1000 + i), 9);
    packets[i] = (hp_packet){.data = data[i], .capacity = sizeof data[i], .link = TUNNEL + i * 7 / 3 % TUNNELS};
    packets[i].length = make_packet(data[i], &r);
  }
  MUST(l, hp_translate(l->engine, packets, COUNT, l->now, &l->error));
  for (uint32_t i = 0; i < COUNT; i++)
    assert_true(packets[i].verdict == HP_FORWARD && packets[i].link == ENI);
  free_lab(l);
}

static void test_counts_are_the_sum(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  hp_counters all, one;
  hp_status status;
  uint64_t sent = 0, flows = 0;
  for (uint16_t i = 0; i < 60; i++) {
    recipe r = from_inside(HP_UDP, (uint16_t)(4000 + i), 9);
    assert_int_equal(pass(l, TUNNEL + i % TUNNELS, &r), HP_FORWARD);
  }
  MUST(l, hp_link_counters(l->engine, ENI, &all, &l->error));
  for (uint32_t i = 0; i < TUNNELS; i++) {
    MUST(l, hp_link_counters(l->engine, TUNNEL + i, &one, &l->error));
    assert_int_equal(one.flows, 10);
    sent += one.packets_in;
    flows += hp_link_flows(l->engine, TUNNEL + i);
  }
  assert_int_equal(all.packets_out, sent);
  assert_int_equal(all.flows, flows);
  assert_int_equal(hp_link_flows(l->engine, ENI), flows);
  hp_engine_status(l->engine, &status);
  assert_int_equal(status.workers, WORKERS);
  assert_int_equal(status.flows, 60);
  assert_int_equal(status.worker[0].flows + status.worker[1].flows, 60);
  free_lab(l);
}

/* Numbers of flows tell the worker, and a cursor passes through all of them, a few at a time. */
static void test_readers_see_the_flows_of_all(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  hp_flow_info infos[7];
  uint32_t cursor = 0, count, seen = 0, last = 0;
  for (uint16_t i = 0; i < 60; i++) {
    recipe r = from_inside(HP_UDP, (uint16_t)(4000 + i), 9);
    assert_int_equal(pass(l, TUNNEL + i % TUNNELS, &r), HP_FORWARD);
  }
  while ((count = hp_flows(l->engine, &cursor, infos, 7))) {
    for (uint32_t i = 0; i < count; i++) {
      uint32_t number = (uint32_t)infos[i].id;
      assert_true(seen == 0 || number > last);
      assert_int_equal(number / 1001, l->engine->links[infos[i].tunnel].worker); /* 2001 in two, rounded up */
      last = number;
      seen++;
    }
  }
  assert_int_equal(seen, 60);
  recipe r = from_inside(HP_UDP, 9999, 9);
  assert_int_equal(pass(l, TUNNEL + 1, &r), HP_FORWARD); /* the last worker's: whoever follows sees it */
  assert_int_equal(hp_flows(l->engine, &cursor, infos, 7), 1);
  free_lab(l);
}

static void test_drops_of_all_are_in_one_ring(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  hp_drop drops[100];
  uint64_t cursor = 0;
  for (uint16_t i = 0; i < 40; i++) {
    recipe r = from_inside(HP_UDP, (uint16_t)(4000 + i), 9);
    r.source++;
    assert_int_equal(pass(l, TUNNEL + i % TUNNELS, &r), HP_DROP);
  }
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 100), 40);
  for (uint32_t i = 0; i < 40; i++)
    assert_true(drops[i].number == i + 1 && drops[i].link == TUNNEL + i % TUNNELS);
  free_lab(l);
}

/* A record that is being written is waited for, so that none is lost; one whose writer never comes back is not waited
 * for for ever. */
static void test_a_drop_that_is_being_written_is_waited_for(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  hp_drop drops[300];
  uint64_t cursor = 0;
  recipe r = from_inside(HP_UDP, 4000, 9);
  r.source++;
  for (int i = 0; i < 3; i++)
    pass(l, TUNNEL, &r);
  uint64_t *second = &l->engine->drops[2].number;
  *second = HP_DROP_WRITING;
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 300), 1);
  *second = 2;
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 300), 2);
  *second = HP_DROP_WRITING;
  for (int i = 0; i < 256; i++)
    pass(l, TUNNEL, &r); /* the 258th finds the place occupied */
  cursor = 200;
  assert_int_equal(hp_drops(l->engine, &cursor, drops, 300), 57);
  for (int i = 0; i < 200; i++)
    pass(l, TUNNEL, &r);
  assert_true(hp_drops(l->engine, &cursor, drops, 300) > 100);
  free_lab(l);
}

/* ---- slices ---- */

static uint32_t slices_of(const lab *l, uint32_t worker) {
  uint32_t count = 0;
  for (uint32_t slice = 0; slice < HP_SLICES; slice++)
    count += hp_slice_owner(&l->engine->workers[0].ports, 0, slice) == worker + 1;
  return count;
}

/* Flows of one tunnel towards one destination, until one is refused: how many there were. */
static uint32_t fill(lab *l, uint32_t tunnel, uint32_t most, uint32_t address) {
  for (uint32_t i = 0; i < most; i++) {
    recipe r = from_inside(HP_TCP, (uint16_t)(i + 1), 80);
    r.destination = address;
    if (pass(l, tunnel, &r) != HP_FORWARD)
      return i;
  }
  return most;
}

static const hp_config many = {
    .max_flows = 140000, .max_links = 20, .max_addresses = 4, .seed = 1, .workers = WORKERS, .refusal_rate = 1000000};

static void test_slices_move_to_who_needs_them(void **state) {
  (void)state;
  lab *l = two_workers(&many);
  assert_int_equal(slices_of(l, 0), 16);
  assert_int_equal(slices_of(l, 1), 16);
  /* Asked for, the other one has given back what it did not use, before it was needed. */
  assert_int_equal(fill(l, TUNNEL, 65535, REMOTE_ADDRESS), 62 * HP_SLICE_PORTS);
  assert_int_equal(l->packet.reason, HP_PORTS_EXHAUSTED);
  assert_int_equal(slices_of(l, 0), 62);
  assert_int_equal(slices_of(l, 1), 1);
  check_engine(l->engine);
  /* Its turn: it uses its one, and has to wait until the other's flows are over. */
  assert_int_equal(fill(l, TUNNEL + 1, 2000, REMOTE_ADDRESS), HP_SLICE_PORTS);
  for (int i = 0; i < 100; i++) {
    sweep(l, 1000);
    assert_int_equal(fill(l, TUNNEL + 3, 1, REMOTE_ADDRESS), 0); /* it goes on wanting one */
  }
  assert_int_equal(slices_of(l, 1), 1);
  assert_int_equal(__builtin_popcountll(l->engine->workers[0].ports.addresses[0].retiring), 1);
  recipe r = from_inside(HP_TCP, 65000, 80);
  assert_int_equal(pass(l, TUNNEL, &r), HP_REPLY); /* nor does that one take a port of what it is to give */
  check_engine(l->engine);
  sweep(l, 8000000);
  sweep(l, 1);
  assert_true(slices_of(l, 0) < 62);
  assert_true(fill(l, TUNNEL + 1, 5000, REMOTE_ADDRESS) == 5000);
  free_lab(l);
}

/* Nobody wants anything: each keeps what it has, and the ports of a mapping that rest keep theirs. */
static void test_a_slice_in_use_stays(void **state) {
  (void)state;
  lab *l = two_workers(&many);
  recipe r = from_inside(HP_UDP, 4000, 9);
  assert_int_equal(pass(l, TUNNEL + 1, &r), HP_FORWARD);
  uint32_t slice = ((uint32_t)outside_port(l) - HP_PORT_FIRST) / HP_SLICE_PORTS;
  sweep(l, 400000);
  assert_int_equal(flows_of(l, 1), 0);
  assert_int_equal(slices_of(l, 1), 16);
  assert_true(hp_slice_in_use(&l->engine->workers[1].ports, 0, slice, l->now)); /* the port rests */
  l->engine->workers[0].ports.leases[0].wanted = 1;                             /* by worker 0 */
  hp_slices_turn(&l->engine->workers[1]);
  assert_int_equal(slices_of(l, 1), 1);
  assert_int_equal(hp_slice_owner(&l->engine->workers[0].ports, 0, slice), 2);
  l->now += 40000;
  assert_false(hp_slice_in_use(&l->engine->workers[1].ports, 0, slice, l->now));
  free_lab(l);
}

/* ---- the end of links ---- */

static void test_an_eni_ends_when_all_workers_have_swept(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  for (uint32_t i = 0; i < TUNNELS; i++) {
    recipe r = from_inside(HP_TCP, 5000, 80);
    assert_int_equal(pass(l, TUNNEL + i, &r), HP_FORWARD);
    MUST(l, hp_link_remove(l->engine, TUNNEL + i, &l->error));
  }
  MUST(l, hp_link_remove(l->engine, ENI, &l->error));
  hp_expire(&l->engine->workers[0], 1000);
  assert_int_equal(l->engine->links[ENI].kind, HP_LINK_ENI);
  assert_int_equal(l->engine->links[TUNNEL].kind, HP_LINK_FREE);
  hp_expire(&l->engine->workers[1], 1000);
  assert_int_equal(l->engine->links[ENI].kind, HP_LINK_FREE);
  hp_links_collect(l->engine);
  assert_int_equal(l->engine->free_count, TUNNELS + 1);
  assert_int_equal(flows_of(l, 0) + flows_of(l, 1), 0);
  static const hp_eni_config again = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500};
  add_eni(l, &again);
  assert_int_equal(slices_of(l, 0), 16);
  free_lab(l);
}

static void test_a_tunnel_is_reset_by_its_worker(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  recipe r = from_inside(HP_TCP, 5000, 80);
  assert_int_equal(pass(l, TUNNEL + 1, &r), HP_FORWARD);
  MUST(l, hp_link_drain(l->engine, TUNNEL + 1, HP_DRAIN_RESET, &l->error));
  assert_int_equal(l->engine->workers[0].resetting, 0);
  assert_int_equal(l->engine->workers[1].resetting, 1);
  sweep(l, 100);
  sweep(l, 200);
  assert_int_equal(l->engine->workers[1].resetting + flows_of(l, 1), 0);
  free_lab(l);
}

/* ---- successors ---- */

static void test_a_successor_goes_on_with_all(void **state) {
  (void)state;
  lab *l = two_workers(NULL);
  hp_region_fd regions[HP_MAX_REGIONS];
  for (uint16_t i = 0; i < 60; i++) {
    recipe r = from_inside(i % 2 ? HP_TCP : HP_UDP, (uint16_t)(4000 + i), 80);
    assert_int_equal(pass(l, TUNNEL + i % TUNNELS, &r), HP_FORWARD);
  }
  recipe answer = answer_to_last(l, HP_SYN | HP_ACK);
  MUST(l, hp_link_remove(l->engine, TUNNEL, &l->error));
  uint32_t count = hp_engine_regions(l->engine, regions, HP_MAX_REGIONS);
  assert_int_equal(count, hp_region_count(WORKERS));
  hp_config other = two;
  other.workers = 1;
  assert_null(hp_engine_inherit(&other, regions, count, &l->error));
  other.workers = 3;
  assert_null(hp_engine_inherit(&other, regions, count, &l->error));
  assert_non_null(strstr(l->error.text, "workers 2"));
  lab *s = calloc(1, sizeof *s);
  HOLD(s);
  s->engine = hp_engine_inherit(&two, regions, count, &s->error);
  if (!s->engine)
    broken(s->error.text, __FILE__, __LINE__);
  s->now = l->now;
  check_engine(s->engine);
  for (uint32_t i = 0; i < WORKERS; i++)
    assert_memory_equal(s->engine->workers[0].ports.leases[0].owner, l->engine->workers[0].ports.leases[0].owner,
                        HP_SLICES);
  static const hp_eni_config plain = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500};
  const hp_tunnel_config tunnel = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
  MUST(s, hp_eni_claim(s->engine, ENI, &plain, -1, &s->error));
  MUST(s, hp_eni_rules(s->engine, ENI, &(hp_rule){.protocol = 0}, 1, &s->error));
  for (uint32_t i = 1; i < TUNNELS; i++)
    MUST(s, hp_tunnel_claim(s->engine, TUNNEL + i, &tunnel, -1, &s->error));
  assert_int_equal(pass(s, ENI, &answer), HP_FORWARD);
  assert_int_equal(s->packet.link, TUNNEL + 59 % TUNNELS);
  sweep(s, 1000); /* the removed one goes on draining */
  assert_int_equal(flows_of(s, 0) + flows_of(s, 1), 50);
  assert_int_equal(s->engine->links[TUNNEL].kind, HP_LINK_FREE);
  assert_int_equal(s->engine->workers[0].tunnels, TUNNELS / WORKERS - 1);
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

static void spoil(const hp_engine *engine, uint64_t *random) {
  const hp_region *all[HP_MAX_REGIONS];
  uint32_t count = hp_all_regions(engine, all);
  for (uint32_t n = random_below(random, 200) + 1; n; n--) {
    const hp_region *one = all[random_below(random, count)];
    uint32_t reach = one->bytes < 16384 ? (uint32_t)one->bytes : 16384; /* where something is */
    uint8_t *at = (uint8_t *)one->at + random_below(random, reach);
    *at = random_below(random, 2) ? (uint8_t)next_random(random) : random_below(random, 2) ? 0 : 3;
  }
}

/* What tells workers from each other may be nonsense: the successor is sound all the same, and usable. */
static void test_spoilt_memory_does_no_harm(void **state) {
  (void)state;
  uint32_t taken = 0;
  for (uint64_t round = 1; round <= 150; round++) {
    uint64_t random = round;
    hp_region_fd regions[HP_MAX_REGIONS];
    lab *l = two_workers(NULL), s = {.now = UINT64_MAX / 4};
    for (uint16_t i = 0; i < 60; i++) {
      recipe r = from_inside(i % 2 ? HP_TCP : HP_UDP, (uint16_t)(4000 + i), 80);
      HOLD(pass(l, TUNNEL + i % TUNNELS, &r) == HP_FORWARD);
    }
    uint32_t count = hp_engine_regions(l->engine, regions, HP_MAX_REGIONS);
    spoil(l->engine, &random);
    s.engine = hp_engine_inherit(&two, regions, count, &s.error);
    if (s.engine) {
      taken++;
      hp_engine_abandon(s.engine, &s.error);
      hp_eni_config eni = {.addresses = {0xc0000301}, .address_count = 1, .mtu = 1500};
      int number = hp_eni_add(s.engine, &eni, -1, &s.error);
      for (uint32_t i = 0; i < WORKERS && number > 0; i++) {
        recipe r = from_inside(HP_UDP, 4000, 9);
        hp_packet p = {.data = s.data, .capacity = sizeof s.data, .link = add_tunnel(&s, (uint32_t)number, 0)};
        p.length = make_packet(s.data, &r);
        hp_translate(s.engine, &p, 1, s.engine->workers[0].now, &s.error);
      }
      hp_sweep(s.engine, s.engine->workers[0].now + 1000, &s.error);
      for (uint32_t i = 0; i < WORKERS; i++) {
        check_flow_table(&s.engine->workers[i].flows);
        check_mappings(&s.engine->workers[i].mappings);
      }
    }
    hp_engine_free(s.engine);
    hp_engine_free(l->engine);
    free(l);
  }
  assert_true(taken > 50);
}

static void test_configurations_that_are_refused(void **state) {
  (void)state;
  hp_error error;
  hp_config config = two;
  config.workers = HP_MAX_WORKERS + 1;
  assert_null(hp_engine_new(&config, &error));
  assert_non_null(strstr(error.text, "workers is 17"));
  config = two;
  config.pin_count = HP_MAX_WORKERS + 1;
  assert_null(hp_engine_new(&config, &error));
  assert_non_null(strstr(error.text, "pin_count is 17"));
  config = two;
  config.workers = HP_MAX_WORKERS;
  hp_engine *engine = hp_engine_new(&config, &error);
  assert_non_null(engine);
  assert_int_equal(hp_engine_regions(engine, NULL, 0), hp_region_count(HP_MAX_WORKERS));
  hp_eni_config eni = {.addresses = {ENI_ADDRESS}, .address_count = 1, .mtu = 1500, .queue_count = 1};
  assert_int_equal(hp_eni_add(engine, &eni, 0, &error), -1);
  assert_non_null(strstr(error.text, "16 workers"));
  eni.queue_count = 0;
  eni.steered = 1;
  eni.steering = -1;
  assert_int_equal(hp_eni_add(engine, &eni, -1, &error), -1);
  assert_non_null(strstr(error.text, "BPF_F_MMAPABLE"));
  eni.steered = 0;
  assert_int_equal(hp_eni_add(engine, &eni, -1, &error), ENI);
  check_engine(engine);
  hp_engine_free(engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tunnels_are_spread),
      cmocka_unit_test(test_packets_reach_who_has_their_flow),
      cmocka_unit_test(test_a_mixed_batch),
      cmocka_unit_test(test_counts_are_the_sum),
      cmocka_unit_test(test_readers_see_the_flows_of_all),
      cmocka_unit_test(test_drops_of_all_are_in_one_ring),
      cmocka_unit_test(test_a_drop_that_is_being_written_is_waited_for),
      cmocka_unit_test(test_slices_move_to_who_needs_them),
      cmocka_unit_test(test_a_slice_in_use_stays),
      cmocka_unit_test(test_an_eni_ends_when_all_workers_have_swept),
      cmocka_unit_test(test_a_tunnel_is_reset_by_its_worker),
      cmocka_unit_test(test_a_successor_goes_on_with_all),
      cmocka_unit_test(test_spoilt_memory_does_no_harm),
      cmocka_unit_test(test_configurations_that_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
