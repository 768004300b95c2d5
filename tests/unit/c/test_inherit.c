/* test_inherit.c: whoever inherits or reads regions is told what is wrong with them, and comes to no harm. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine_fixture.h"

static const hp_config config = {.max_flows = 200, .max_links = 10, .max_addresses = 4, .drop_records = 64, .seed = 1};

static const hp_eni_config two_addresses = {
    .addresses = {ENI_ADDRESS, ENI_ADDRESS + 1}, .address_count = 2, .mtu = 1500};

/* An engine with flows of every kind on two tunnels, and drops. */
static lab *busy_lab(void) {
  lab *l = new_lab(&config, &two_addresses);
  uint32_t second = add_tunnel(l, ENI, 50);
  const uint8_t protocols[] = {HP_UDP, HP_ICMP, HP_TCP};
  for (uint16_t i = 0; i < 60; i++) {
    recipe r = from_inside(protocols[i % 3], (uint16_t)(4000 + i / 2), i % 2 ? 53 : 80);
    HOLD(pass(l, i % 4 ? TUNNEL : second, &r) == HP_FORWARD);
  }
  for (uint16_t i = 0; i < 10; i++) {
    recipe stray = {.source = REMOTE_ADDRESS, .destination = ENI_ADDRESS, .protocol = HP_UDP, .destination_port = i};
    HOLD(pass(l, ENI, &stray) == HP_DROP);
  }
  return l;
}

enum { REGIONS = HP_WORKER_REGIONS + HP_ENGINE_REGIONS };

typedef struct regions {
  hp_region_fd of[HP_MAX_REGIONS];
} regions;

static regions regions_of(const lab *l) {
  regions r;
  assert_int_equal(hp_engine_regions(l->engine, r.of, HP_MAX_REGIONS), REGIONS);
  return r;
}

static hp_region_fd *region(regions *r, const char *name) {
  for (int i = 0; i < REGIONS; i++)
    if (strcmp(r->of[i].name, name) == 0)
      return &r->of[i];
  fail_msg("no region %s", name);
  return NULL;
}

/* The successor of the lab's engine, which is as good as dead: it does nothing more. */
static lab *successor_of(const lab *l) {
  lab *s = calloc(1, sizeof *s);
  regions r = regions_of(l);
  HOLD(s);
  s->engine = hp_engine_inherit(&config, r.of, REGIONS, &s->error);
  if (!s->engine)
    broken(s->error.text, __FILE__, __LINE__);
  s->now = l->now;
  return s;
}

static void claim_all(lab *s) {
  assert_int_equal(hp_eni_claim(s->engine, ENI, &two_addresses, -1, &s->error), ENI);
  assert_int_equal(hp_eni_rules(s->engine, ENI, &(hp_rule){.protocol = 0}, 1, &s->error), 0);
  for (uint32_t tunnel = TUNNEL; tunnel <= TUNNEL + 1; tunnel++) {
    hp_tunnel_config c = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
    assert_int_equal(hp_tunnel_claim(s->engine, tunnel, &c, -1, &s->error), tunnel);
  }
}

/* ---- going on ---- */

static void test_successor_has_all_that_was(void **state) {
  (void)state;
  lab *l = busy_lab();
  hp_status before, after;
  hp_counters link_before, link_after;
  hp_engine_status(l->engine, &before);
  assert_int_equal(hp_link_counters(l->engine, TUNNEL, &link_before, &l->error), 0);
  lab *s = successor_of(l);
  check_engine(s->engine);
  hp_engine_status(s->engine, &after);
  assert_memory_equal(&before, &after, sizeof before);
  assert_int_equal(hp_link_counters(s->engine, TUNNEL, &link_after, &s->error), 0);
  assert_memory_equal(&link_before, &link_after, sizeof link_before);
  assert_int_equal(hp_link_flows(s->engine, TUNNEL), link_after.flows_created);
  assert_int_equal(s->engine->shared->drop_count, 10);
  claim_all(s);
  assert_int_equal(hp_engine_abandon(s->engine, &s->error), 0);
  for (uint16_t i = 0; i < 60; i++) { /* no new flow */
    recipe r = from_inside(i % 3 == 0   ? HP_UDP
                           : i % 3 == 1 ? HP_ICMP
                                        : HP_TCP,
                           (uint16_t)(4000 + i / 2), i % 2 ? 53 : 80);
    assert_int_equal(pass(s, i % 4 ? TUNNEL : TUNNEL + 1, &r), HP_FORWARD);
  }
  hp_engine_status(s->engine, &after);
  assert_int_equal(after.flows, before.flows);
  recipe r = from_inside(HP_UDP, 9999, 9);
  assert_int_equal(pass(s, TUNNEL, &r), HP_FORWARD);
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

static void test_what_nobody_claims_ends(void **state) {
  (void)state;
  lab *l = busy_lab(), *s = successor_of(l);
  assert_int_equal(hp_eni_claim(s->engine, ENI, &two_addresses, -1, &s->error), ENI);
  hp_tunnel_config c = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1400, .max_flows = 7};
  assert_int_equal(hp_tunnel_claim(s->engine, TUNNEL + 1, &c, -1, &s->error), TUNNEL + 1);
  assert_int_equal(s->engine->links[TUNNEL + 1].mtu, 1400);
  uint32_t flows = hp_link_flows(s->engine, TUNNEL);
  assert_true(flows > 0);
  assert_int_equal(hp_engine_abandon(s->engine, &s->error), 1);
  assert_int_equal(hp_engine_abandon(s->engine, &s->error), 0);
  assert_int_equal(sweep(s, 0), flows);
  assert_int_equal(s->engine->links[TUNNEL].kind, HP_LINK_FREE);
  assert_int_equal(add_tunnel(s, ENI, 0), TUNNEL); /* its number is free */
  s->engine->links[TUNNEL + 1].max_flows = 0;      /* it has more already: a limit is for new ones */
  free_lab(s);
  s = successor_of(l); /* of the successor, in truth */
  assert_int_equal(hp_engine_abandon(s->engine, &s->error), 3);
  sweep(s, 0);
  assert_int_equal(live_flows(s), 0);
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

static void test_a_link_that_was_being_removed_goes_on_draining(void **state) {
  (void)state;
  lab *l = busy_lab();
  MUST(l, hp_link_remove(l->engine, TUNNEL, &l->error));
  lab *s = successor_of(l);
  hp_tunnel_config c = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
  assert_int_equal(hp_eni_claim(s->engine, ENI, &two_addresses, -1, &s->error), ENI);
  assert_int_equal(hp_tunnel_claim(s->engine, TUNNEL, &c, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "removed"));
  assert_true(sweep(s, 0) > 0);
  assert_int_equal(s->engine->links[TUNNEL].kind, HP_LINK_FREE);
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

static void test_claims_that_are_refused(void **state) {
  (void)state;
  lab *l = busy_lab(), *s = successor_of(l);
  hp_eni_config e = two_addresses;
  hp_tunnel_config c = {.eni = ENI, .address = INSIDE_ADDRESS, .mtu = 1500};
  assert_int_equal(hp_tunnel_claim(s->engine, TUNNEL, &c, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "claim it first"));
  assert_int_equal(hp_eni_claim(s->engine, TUNNEL, &e, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "no ENI"));
  assert_int_equal(hp_eni_claim(s->engine, 0, &e, -1, &s->error), -1);
  assert_int_equal(hp_eni_claim(s->engine, 9, &e, -1, &s->error), -1);
  assert_int_equal(hp_eni_claim(s->engine, UINT32_MAX, &e, -1, &s->error), -1);
  e.address_count = 1;
  assert_int_equal(hp_eni_claim(s->engine, ENI, &e, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "other addresses"));
  e = two_addresses;
  assert_int_equal(hp_eni_claim(s->engine, ENI, &e, 0, &s->error), -1); /* no TUN */
  assert_int_equal(hp_eni_claim(s->engine, ENI, &e, -1, &s->error), ENI);
  assert_int_equal(hp_eni_claim(s->engine, ENI, &e, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "already"));
  c.address++;
  assert_int_equal(hp_tunnel_claim(s->engine, TUNNEL, &c, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "address"));
  c.address--;
  assert_int_equal(hp_tunnel_claim(s->engine, ENI, &c, -1, &s->error), -1);
  assert_non_null(strstr(s->error.text, "no tunnel"));
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

/* With shorter timers than before a flow does not wait for the old ones. */
static void test_timers_of_a_claim_hold_at_once(void **state) {
  (void)state;
  lab *l = busy_lab(), *s = successor_of(l);
  hp_eni_config e = two_addresses;
  e.timers = (hp_timers){.udp = 1000, .icmp = 1000, .tcp_transitory = 1000, .dns = 1000};
  assert_int_equal(hp_eni_claim(s->engine, ENI, &e, -1, &s->error), ENI);
  assert_int_equal(sweep(s, 999), 0);
  assert_int_equal(sweep(s, 1), 60);
  free_lab(s);
  hp_engine_free(l->engine);
  free(l);
}

/* ---- what is given ---- */

/* Neither a successor nor a reader comes of it; the error says why. */
static void refused(const regions *r, uint32_t count, const hp_config *c, const char *why) {
  hp_error error;
  assert_null(hp_engine_inherit(c, r->of, count, &error));
  if (!strstr(error.text, why))
    fail_msg("\"%s\" does not say \"%s\"", error.text, why);
  assert_null(hp_reader_new(c, r->of, count, &error));
  if (!strstr(error.text, why))
    fail_msg("\"%s\" does not say \"%s\"", error.text, why);
}

static int sealed_memory(size_t bytes, int seals) {
  int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  HOLD(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

static void test_regions_that_are_refused(void **state) {
  (void)state;
  enum { ALL = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };
  lab *l = busy_lab();
  hp_shared *shared = l->engine->shared;
  regions r = regions_of(l);
  refused(&r, REGIONS - 1, &config, "missing");
  refused(&r, 0, &config, "missing");
  refused(&r, REGIONS + 1, &config, "regions were given");
  hp_region_fd *one = region(&r, "hp-counters");
  int fd = one->fd;
  one->fd = region(&r, "hp-drops")->fd;
  refused(&r, REGIONS, &config, "one and the same");
  one->fd = 12345;
  refused(&r, REGIONS, &config, "descriptor 12345");
  one->fd = open("/dev/null", O_RDWR);
  refused(&r, REGIONS, &config, "no memory of an engine");
  close(one->fd);
  int wrong[] = {sealed_memory(l->engine->workers[0].stats_region.bytes, F_SEAL_SHRINK | F_SEAL_GROW),
                 sealed_memory(4096, ALL), sealed_memory(0, ALL),
                 sealed_memory(l->engine->workers[0].stats_region.bytes * 2, ALL)};
  const char *why[] = {"not sealed", "should have", "should have", "should have"};
  for (int i = 0; i < 4; i++) {
    one->fd = wrong[i];
    refused(&r, REGIONS, &config, why[i]);
    close(wrong[i]);
  }
  one->fd = fd;
  memset(one->name, 'x', sizeof one->name); /* without an end */
  refused(&r, REGIONS, &config, "missing");
  r = regions_of(l);
  hp_config other = config;
  other.max_flows++;
  refused(&r, REGIONS, &other, "max_flows 200");
  other = config;
  other.drop_records = 65;
  refused(&r, REGIONS, &other, "same configuration");
  other.max_flows = 0;
  refused(&r, REGIONS, &other, "max_flows is 0");
  shared->layout++;
  refused(&r, REGIONS, &config, "version 3");
  shared->layout--;
  shared->magic++;
  refused(&r, REGIONS, &config, "not that of an engine");
  shared->magic--;
  l->engine->workers[0].flows.control->used = 1000;
  refused(&r, REGIONS, &config, "number 1000");
  l->engine->workers[0].flows.control->used = 60;
  shared->links_used = 12;
  refused(&r, REGIONS, &config, "12 links");
  shared->links_used = 0;
  refused(&r, REGIONS, &config, "0 links");
  shared->links_used = 4;
  free_lab(l);
}

/* ---- what is in them ---- */

static void read_all(hp_engine *engine) {
  hp_error error;
  hp_flow_info flows[16];
  hp_drop drops[16];
  hp_counters counters;
  hp_status status;
  hp_memory memory;
  uint32_t cursor = 0, count;
  uint64_t drop_cursor = 0;
  while ((count = hp_flows(engine, &cursor, flows, 16)))
    for (uint32_t i = 0; i < count; i++)
      HOLD(flows[i].protocol == HP_TCP || flows[i].protocol == HP_UDP || flows[i].protocol == HP_ICMP);
  for (int i = 0; i < 10 && (count = hp_drops(engine, &drop_cursor, drops, 16)); i++)
    for (uint32_t n = 0; n < count; n++)
      HOLD(drops[n].reason < HP_REASON_COUNT);
  for (uint32_t link = 0; link < 20; link++) {
    hp_link_counters(engine, link, &counters, &error);
    hp_link_flows(engine, link);
    hp_link_since(engine, link);
  }
  hp_link_flows(engine, UINT32_MAX);
  hp_engine_status(engine, &status);
  hp_engine_memory(engine, &memory);
}

static void spoil(const hp_engine *engine, uint64_t *random) {
  const hp_region *all[HP_MAX_REGIONS];
  hp_all_regions(engine, all);
  for (uint32_t n = random_below(random, 200) + 1; n; n--) {
    const hp_region *one = all[random_below(random, REGIONS)];
    uint32_t reach = one->bytes < 16384 ? (uint32_t)one->bytes : 16384; /* where something is */
    uint8_t *at = (uint8_t *)one->at + random_below(random, reach);
    *at = random_below(random, 2) ? (uint8_t)next_random(random) : random_below(random, 2) ? 0 : 0xff;
  }
}

/* Memory full of nonsense: refused, or repaired to an engine whose tables are sound. */
static void test_spoilt_memory_does_no_harm(void **state) {
  (void)state;
  uint32_t taken = 0;
  for (uint64_t round = 1; round <= 300; round++) {
    uint64_t random = round;
    lab *l = busy_lab();
    hp_error error;
    regions r = regions_of(l);
    spoil(l->engine, &random);
    hp_engine *reader = hp_reader_new(&config, r.of, REGIONS, &error);
    if (reader)
      read_all(reader);
    lab s = {.engine = hp_engine_inherit(&config, r.of, REGIONS, &error), .now = UINT64_MAX / 4};
    if (s.engine) {
      taken++;
      check_flow_table(&s.engine->workers[0].flows);
      check_mappings(&s.engine->workers[0].mappings);
      read_all(s.engine);
      hp_engine_abandon(s.engine, &error);
      hp_eni_config eni = {.addresses = {0xc0000301}, .address_count = 1, .mtu = 1500};
      int number = hp_eni_add(s.engine, &eni, -1, &error);
      hp_tunnel_config c = {.eni = (uint32_t)number, .address = INSIDE_ADDRESS, .mtu = 1500};
      if (number > 0 && (number = hp_tunnel_add(s.engine, &c, -1, &error)) > 0) {
        recipe packet = from_inside(HP_UDP, 4000, 9);
        hp_packet p = {.data = s.data, .capacity = sizeof s.data, .link = (uint32_t)number};
        p.length = make_packet(s.data, &packet);
        hp_translate(s.engine, &p, 1, s.engine->workers[0].now, &error);
      }
      hp_sweep(s.engine, s.engine->workers[0].now + 1000, &error);
      check_flow_table(&s.engine->workers[0].flows);
      check_mappings(&s.engine->workers[0].mappings);
    }
    hp_engine_free(s.engine);
    hp_engine_free(reader);
    hp_engine_free(l->engine);
    free(l);
  }
  assert_true(taken > 100);
}

/* ---- reading ---- */

static void test_reader_sees_the_same_and_changes_nothing(void **state) {
  (void)state;
  lab *l = busy_lab();
  regions r = regions_of(l);
  hp_error error;
  hp_engine *reader = hp_reader_new(&config, r.of, REGIONS, &error);
  assert_non_null(reader);
  hp_flow_info own[100], seen[100];
  hp_drop own_drops[20], seen_drops[20];
  hp_counters own_counters, seen_counters;
  hp_status own_status, seen_status;
  hp_memory own_memory, seen_memory;
  for (int round = 0; round < 2; round++) {
    uint32_t cursor = 0, other = 0;
    uint64_t drop_cursor = 0, other_drops = 0;
    assert_int_equal(hp_flows(l->engine, &cursor, own, 100), 60 + round);
    assert_int_equal(hp_flows(reader, &other, seen, 100), 60 + round);
    for (uint32_t i = 0; i < cursor; i++) /* what pads the struct does not count */
      assert_memory_equal(&own[i], &seen[i], offsetof(hp_flow_info, state) + 1);
    assert_int_equal(hp_drops(l->engine, &drop_cursor, own_drops, 20), 10);
    assert_int_equal(hp_drops(reader, &other_drops, seen_drops, 20), 10);
    assert_memory_equal(own_drops, seen_drops, 10 * sizeof *own_drops);
    for (uint32_t link = 1; link < 4; link++) {
      assert_int_equal(hp_link_counters(l->engine, link, &own_counters, &error), 0);
      assert_int_equal(hp_link_counters(reader, link, &seen_counters, &error), 0);
      assert_memory_equal(&own_counters, &seen_counters, sizeof own_counters);
      assert_int_equal(hp_link_flows(reader, link), hp_stats(l->engine->workers, link)->flows);
      assert_int_equal(hp_link_since(reader, link), l->engine->links[link].since);
    }
    hp_engine_status(l->engine, &own_status);
    hp_engine_status(reader, &seen_status);
    assert_memory_equal(&own_status, &seen_status, sizeof own_status);
    hp_engine_memory(l->engine, &own_memory);
    hp_engine_memory(reader, &seen_memory);
    assert_memory_equal(&own_memory, &seen_memory, sizeof own_memory);
    recipe packet = from_inside(HP_UDP, 9998, 9);
    assert_int_equal(pass(l, TUNNEL, &packet), HP_FORWARD);
  }
  assert_int_equal(hp_link_counters(reader, 4, &seen_counters, &error), -1);
  assert_int_equal(hp_engine_start(reader, &error), -1);
  assert_non_null(strstr(error.text, "reader"));
  assert_int_equal(hp_sweep(reader, UINT64_MAX / 2, &error), -1);
  assert_int_equal(hp_translate(reader, NULL, 0, UINT64_MAX / 2, &error), -1);
  assert_int_equal(hp_link_remove(reader, TUNNEL, &error), -1);
  assert_int_equal(hp_engine_abandon(reader, &error), -1);
  hp_engine_stop(reader);
  hp_engine_free(reader);
  free_lab(l);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_successor_has_all_that_was),
      cmocka_unit_test(test_what_nobody_claims_ends),
      cmocka_unit_test(test_a_link_that_was_being_removed_goes_on_draining),
      cmocka_unit_test(test_claims_that_are_refused),
      cmocka_unit_test(test_timers_of_a_claim_hold_at_once),
      cmocka_unit_test(test_regions_that_are_refused),
      cmocka_unit_test(test_spoilt_memory_does_no_harm),
      cmocka_unit_test(test_reader_sees_the_same_and_changes_nothing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
