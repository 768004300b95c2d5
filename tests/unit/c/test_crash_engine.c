/* test_crash_engine.c: an engine's process may die at any instruction, whatever it is doing: a successor finds a sound
 * engine.
 *
 * A child process carries out one operation, one instruction at a time (ptrace), on an engine whose regions are shared
 * with this process. Whenever an instruction has changed them, they are copied into another engine's, which is
 * repaired as a successor repairs what it inherits, and must then be sound and usable. test_crash.c looks at the flow
 * table alone, and closer. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine_fixture.h"

enum {
  MAX_STEPS = 2000000,
  QUARANTINED = 16 /* entries that are looked at */,
  RANGES = 64,
  SECOND_ENI = 3,
  SECOND_TUNNEL = 4
};

static hp_config config = {
    .max_flows = 48, .max_links = 6, .max_addresses = 3, .drop_records = 64, .port_quarantine = 1000, .seed = 1};

/* A part of a region: a quarantine is long and hardly used. */
typedef struct range {
  uint8_t *at;
  size_t bytes;
} range;

typedef struct trial {
  lab *l;               /* what the child works on */
  lab seen;             /* its last known state */
  lab successor;        /* a repaired copy */
  uint32_t least, most; /* flows that a successor may have */
  uint32_t states;
} trial;

static uint32_t ranges_of(const hp_engine *engine, range ranges[RANGES]) {
  const hp_region *regions[HP_MAX_REGIONS];
  uint32_t count = 0, all = hp_all_regions(engine, regions);
  for (uint32_t i = 0; i < all; i++) {
    const hp_worker *worker = &engine->workers[i / HP_WORKER_REGIONS % config.workers];
    if (regions[i] == &worker->ports.region) {
      ranges[count++] = (range){regions[i]->at, sizeof(hp_ports_shown)};
      for (uint32_t n = 0; n < config.max_addresses; n++) {
        hp_address *address = &worker->ports.addresses[n];
        ranges[count++] = (range){(void *)address, offsetof(hp_address, quarantine)};
        for (int kind = 0; kind < 2; kind++)
          ranges[count++] = (range){(void *)address->quarantine[kind], QUARANTINED * sizeof(hp_quarantined)};
      }
    } else {
      ranges[count++] = (range){regions[i]->at, regions[i]->bytes};
    }
  }
  HOLD(count <= RANGES);
  return count;
}

/* Whether anything was different. */
static bool copy_engine(const hp_engine *to, const hp_engine *from) {
  range target[RANGES], source[RANGES];
  bool changed = false;
  uint32_t count = ranges_of(from, source);
  HOLD(ranges_of(to, target) == count);
  for (uint32_t i = 0; i < count; i++) {
    if (memcmp(target[i].at, source[i].at, source[i].bytes) == 0)
      continue;
    memcpy(target[i].at, source[i].at, source[i].bytes);
    changed = true;
  }
  return changed;
}

/* What the repair derives for this process, as hp_engine_open() does before it. */
static void become_successor(lab *l) {
  hp_engine *engine = l->engine;
  engine->links_used = engine->shared->links_used;
  for (uint32_t i = 0; i < engine->config.workers; i++)
    engine->workers[i].now = engine->workers[i].swept_at = engine->workers[i].words->now;
  l->now = engine->workers[0].now;
  hp_engine_repair(engine);
}

/* Nothing is lost for ever: every record and number that no link has is free, and no link is half there. */
static void check_nothing_leaks(const hp_engine *engine) {
  uint32_t in_use = 0, held = 0, listed = 0;
  for (uint32_t n = 0; n < engine->workers[0].ports.count; n++)
    in_use += engine->workers[0].ports.addresses[n].eni != 0;
  for (uint32_t n = 1; n < engine->links_used; n++) {
    listed += engine->links[n].address_count;
    held += engine->links[n].kind != HP_LINK_FREE;
    HOLD(n != SECOND_ENI || engine->links[n].kind == HP_LINK_FREE || engine->links[n].address_count == 2);
  }
  HOLD(in_use == listed && held + engine->free_count + 1 == engine->links_used);
  uint64_t last = engine->shared->drop_count;
  HOLD(last == 0 || engine->drops[last & engine->drop_mask].number == last);
}

/* New flows of every kind work, on whatever tunnel there is. */
static void use(lab *l) {
  const hp_engine *engine = l->engine;
  for (uint32_t n = 1; n < engine->links_used; n++) {
    if (engine->links[n].kind != HP_LINK_TUNNEL || engine->links[n].draining || engine->links[n].drain)
      continue;
    if (!engine->local[engine->links[n].eni].rules)
      MUST(l, hp_eni_rules(l->engine, engine->links[n].eni, &(hp_rule){.protocol = 0}, 1, &l->error));
    const uint8_t protocols[] = {HP_UDP, HP_ICMP, HP_TCP};
    for (int i = 0; i < 3; i++) {
      recipe r = from_inside(protocols[i], 900, 901);
      HOLD(pass(l, n, &r) == HP_FORWARD);
    }
  }
  check_engine(l->engine);
  MUST(l, hp_sweep(l->engine, l->now += 100, &l->error));       /* those that are reset are told and wait */
  MUST(l, hp_sweep(l->engine, l->now += 100000000, &l->error)); /* all that is over ends, what drains is freed */
  MUST(l, hp_sweep(l->engine, l->now, &l->error));
  check_engine(l->engine);
  HOLD(live_flows(l) == 0 && engine->draining == 0 && engine->workers[0].mappings.control->live == 0);
}

static void forget_rules(hp_engine *engine) {
  for (uint32_t n = 0; n <= config.max_links; n++)
    free(engine->local[n].rules);
  memset(engine->local, 0, (config.max_links + 1) * sizeof *engine->local);
}

static void look(trial *t) {
  if (!copy_engine(t->seen.engine, t->l->engine))
    return;
  copy_engine(t->successor.engine, t->seen.engine);
  forget_rules(t->successor.engine);
  become_successor(&t->successor);
  check_engine(t->successor.engine);
  check_nothing_leaks(t->successor.engine);
  HOLD(live_flows(&t->successor) >= t->least && live_flows(&t->successor) <= t->most);
  use(&t->successor);
  t->states++;
}

/* Runs an operation in a child and looks at every state that it goes through; then this process is the successor. */
static void step_through(trial *t, void (*operation)(lab *)) {
  pid_t child = fork();
  int status, steps = 0;
  HOLD(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
      _exit(2);
    raise(SIGSTOP);
    operation(t->l);
    _exit(0);
  }
  t->states = 0;
  HOLD(waitpid(child, &status, 0) == child && WIFSTOPPED(status)); /* else ptrace is not allowed here */
  do {
    HOLD(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
    HOLD(waitpid(child, &status, 0) == child);
    HOLD(++steps < MAX_STEPS);
    look(t);
  } while (WIFSTOPPED(status));
  HOLD(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  hp_rules *rules = t->l->engine->local[ENI].rules;
  become_successor(t->l);
  t->l->engine->local[ENI].rules = rules;
  check_engine(t->l->engine);
}

static trial *new_trial(void) {
  trial *t = calloc(1, sizeof *t);
  HOLD(t);
  t->l = new_lab(&config, NULL);
  t->seen.engine = hp_engine_new(&config, &t->seen.error);
  t->successor.engine = hp_engine_new(&config, &t->successor.error);
  HOLD(t->seen.engine && t->successor.engine);
  return t;
}

static void free_trial(trial *t) {
  hp_engine_free(t->seen.engine);
  hp_engine_free(t->successor.engine);
  free_lab(t->l);
  free(t);
}

static void send(lab *l, uint8_t protocol, uint16_t port, uint16_t to) {
  recipe r = from_inside(protocol, port, to);
  HOLD(pass(l, TUNNEL, &r) == HP_FORWARD);
}

static void send_datagram(lab *l) { send(l, HP_UDP, 4000, 9); }
static void send_datagram_elsewhere(lab *l) { send(l, HP_UDP, 4000, 10); }
static void send_echo(lab *l) { send(l, HP_ICMP, 7, 0); }
static void send_syn(lab *l) { send(l, HP_TCP, 5000, 80); }

static void test_crash_while_a_flow_is_made(void **state) {
  (void)state;
  trial *t = new_trial();
  void (*const operations[])(lab *) = {send_datagram, send_datagram_elsewhere, send_echo, send_syn};
  for (uint32_t i = 0; i < 4; i++) {
    t->least = i;
    t->most = i + 1;
    step_through(t, operations[i]);
    assert_true(t->states > 20);
    assert_int_equal(live_flows(t->l), i + 1);
  }
  assert_int_equal(t->l->engine->workers[0].mappings.control->live, 2);
  free_trial(t);
}

static void end_all(lab *l) { MUST(l, hp_sweep(l->engine, l->now + 100000000, &l->error)); }

static void test_crash_while_flows_end(void **state) {
  (void)state;
  trial *t = new_trial();
  send_datagram(t->l);
  send_datagram_elsewhere(t->l);
  send_echo(t->l);
  send_syn(t->l);
  t->most = 4;
  step_through(t, end_all);
  assert_true(t->states > 50);
  assert_int_equal(live_flows(t->l), 0);
  assert_int_equal(t->l->engine->workers[0].ports.addresses[0].tail[HP_PORTS_UDP], 1);
  free_trial(t);
}

static void reject(lab *l) {
  recipe r = {.source = REMOTE_ADDRESS, .destination = ENI_ADDRESS, .protocol = HP_UDP};
  HOLD(pass(l, ENI, &r) == HP_DROP);
}

static void test_crash_while_a_drop_is_recorded(void **state) {
  (void)state;
  trial *t = new_trial();
  for (uint64_t i = 1; i <= 3; i++) {
    step_through(t, reject);
    assert_int_equal(t->l->engine->shared->drop_count, i);
  }
  free_trial(t);
}

static void add_second_eni(lab *l) {
  hp_eni_config eni = {.addresses = {0xc0000202, 0xc0000203}, .address_count = 2, .mtu = 1500};
  HOLD(hp_eni_add(l->engine, &eni, -1, &l->error) == SECOND_ENI);
}
static void add_second_tunnel(lab *l) { HOLD(add_tunnel(l, ENI, 5) == SECOND_TUNNEL); }
static void remove_tunnels(lab *l) {
  MUST(l, hp_link_remove(l->engine, TUNNEL, &l->error));
  MUST(l, hp_link_remove(l->engine, SECOND_TUNNEL, &l->error));
}
static void remove_enis(lab *l) {
  MUST(l, hp_link_remove(l->engine, ENI, &l->error));
  MUST(l, hp_link_remove(l->engine, SECOND_ENI, &l->error));
}

static void test_crash_while_links_come_and_go(void **state) {
  (void)state;
  trial *t = new_trial();
  send_datagram(t->l);
  send_syn(t->l);
  t->least = t->most = 2;
  step_through(t, add_second_eni);
  assert_true(t->states > 10);
  step_through(t, add_second_tunnel);
  assert_true(t->states > 5);
  step_through(t, remove_tunnels); /* flows stay until the sweep */
  assert_true(t->states > 3);
  assert_int_equal(t->l->engine->draining, 2);
  step_through(t, remove_enis);
  t->least = 0;
  step_through(t, end_all);
  assert_int_equal(t->l->engine->draining, 0);
  assert_int_equal(t->l->engine->free_count, 4);
  t->most = 0;
  free(t->l->engine->local[ENI].rules);
  t->l->engine->local[ENI] = (hp_link_local){.fd = -1};
  free_trial(t);
}

static void reset_tunnel(lab *l) { MUST(l, hp_link_drain(l->engine, TUNNEL, HP_DRAIN_RESET, &l->error)); }
static void sweep_once(lab *l) { MUST(l, hp_sweep(l->engine, l->now + 500, &l->error)); }

static void test_crash_while_a_tunnel_is_reset(void **state) {
  (void)state;
  trial *t = new_trial();
  send_datagram(t->l);
  send_syn(t->l);
  t->least = t->most = 2;
  step_through(t, reset_tunnel);
  assert_int_equal(t->l->engine->workers[0].resetting, 1);
  t->least = 0;
  step_through(t, sweep_once); /* the datagram's flow ends, the connection's sides are told */
  assert_true(t->states > 20);
  assert_int_equal(live_flows(t->l), 1);
  step_through(t, sweep_once);
  assert_int_equal(live_flows(t->l) + t->l->engine->workers[0].resetting, 0);
  free_trial(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_crash_while_a_flow_is_made),     cmocka_unit_test(test_crash_while_flows_end),
      cmocka_unit_test(test_crash_while_a_drop_is_recorded), cmocka_unit_test(test_crash_while_links_come_and_go),
      cmocka_unit_test(test_crash_while_a_tunnel_is_reset),
  };
  int failed = 0;
  for (config.workers = 1; config.workers <= 2; config.workers++)
    failed += cmocka_run_group_tests(tests, NULL, NULL);
  return failed;
}
