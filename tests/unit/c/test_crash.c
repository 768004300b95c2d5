/* test_crash.c: a process that changes the flow table may die at any instruction.
 *
 * A child process runs one operation, one instruction at a time (ptrace). Its tables are memfds, shared with
 * this process. Whenever an instruction has changed them, they are copied and the copy is repaired, as a
 * successor would do who finds them in that state. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "flows_fixture.h"

enum { CAPACITY = 40, MAX_STEPS = 2000000 };

/* The tables before, while and after. */
typedef struct trial {
  hp_flow_table *table;    /* what the child works on */
  hp_flow_table seen;      /* its last known state */
  hp_flow_table successor; /* repaired copies */
  uint32_t states;         /* different ones */
  uint32_t lost;           /* states in which a flow was lost */
  void (*check)(struct trial *trial);
  const void *context;
} trial;

static void regions_of(const hp_flow_table *table, const hp_region *regions[7]) {
  regions[0] = &table->control_region;
  regions[1] = &table->flow_region;
  regions[2] = &table->cold_region;
  for (int side = 0; side < 2; side++) {
    regions[3 + side * 2] = &table->index[side].bucket_region;
    regions[4 + side * 2] = &table->index[side].passed_region;
  }
}

/* Whether anything was different. */
static bool copy_table(hp_flow_table *to, const hp_flow_table *from) {
  const hp_region *source[7], *target[7];
  bool changed = false;
  regions_of(from, source);
  regions_of(to, target);
  for (int i = 0; i < 7; i++) {
    HOLD(source[i]->bytes == target[i]->bytes);
    if (memcmp(target[i]->at, source[i]->at, source[i]->bytes) == 0)
      continue;
    memcpy(target[i]->at, source[i]->at, source[i]->bytes);
    changed = true;
  }
  memcpy(to->seed, from->seed, sizeof to->seed);
  return changed;
}

/* Every free number can be given out again, once. */
static void check_usable(hp_flow_table *table) {
  uint32_t live = table->control->live, taken = 0, stamp = 0x80000000u;
  while (add_stamp(table, stamp++) != HP_NONE)
    taken++;
  HOLD(taken == table->control->capacity - live);
  check_flow_table(table);
}

static void look(trial *t) {
  if (!copy_table(&t->seen, t->table))
    return;
  copy_table(&t->successor, &t->seen);
  uint32_t lost = hp_flow_repair(&t->successor);
  uint64_t in_transition = t->seen.control->journal; /* number + 1 */
  HOLD(lost == (in_transition != 0));
  HOLD(!in_transition || !hp_flow_live(&t->successor.flows[in_transition - 1]));
  t->lost += lost;
  t->states++;
  check_flow_table(&t->successor);
  t->check(t);
  check_usable(&t->successor);
}

static pid_t stopped_child(void (*operation)(void *), void *argument) {
  pid_t child = fork();
  HOLD(child >= 0);
  if (child == 0) {
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
      _exit(2);
    raise(SIGSTOP);
    operation(argument);
    _exit(0);
  }
  int status;
  HOLD(waitpid(child, &status, 0) == child && WIFSTOPPED(status)); /* else ptrace is not allowed here */
  return child;
}

/* Runs an operation on t->table in a child and looks at every state that it goes through. */
static void step_through(trial *t, void (*operation)(void *), void *argument) {
  hp_error error;
  uint32_t capacity = t->table->control->capacity;
  HOLD(hp_flow_table_new(&t->seen, capacity, 1, false, &error) == 0);
  HOLD(hp_flow_table_new(&t->successor, capacity, 1, false, &error) == 0);
  look(t);
  t->states = t->lost = 0;
  pid_t child = stopped_child(operation, argument);
  int status = 0, steps = 0;
  do {
    HOLD(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
    HOLD(waitpid(child, &status, 0) == child);
    HOLD(++steps < MAX_STEPS);
    look(t);
  } while (WIFSTOPPED(status));
  HOLD(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  hp_flow_table_free(&t->seen);
  hp_flow_table_free(&t->successor);
}

/* ---- one operation on a table with many flows ---- */

typedef struct change {
  hp_flow_table *table;
  uint32_t stamp;  /* of the flow that comes or goes; of all others it is told that they must stay */
  uint32_t number; /* of the one that goes */
  uint32_t others; /* stamps 1 to this are there, but for .stamp */
} change;

/* All other flows are there and whole; the one that comes or goes is there and whole, or is not. */
static void check_others(trial *t) {
  const change *c = t->context;
  uint32_t live = 0;
  for (uint32_t stamp = 1; stamp <= c->others + 1; stamp++) {
    uint32_t number = find_stamp(&t->successor, stamp, HP_INSIDE);
    HOLD(number == find_stamp(&t->successor, stamp, HP_OUTSIDE));
    HOLD(number != HP_NONE || stamp == c->stamp || stamp > c->others);
    HOLD(number == HP_NONE || flow_is_of_stamp(&t->successor.flows[number], stamp));
    live += number != HP_NONE;
  }
  HOLD(live == t->successor.control->live);
}

static void publish(void *argument) {
  const change *c = argument;
  add_stamp(c->table, c->stamp);
}

static void withdraw(void *argument) {
  const change *c = argument;
  hp_flow_remove(c->table, c->number);
}

static void take_and_discard(void *argument) {
  const change *c = argument;
  uint32_t number = hp_flow_take(c->table);
  if (number != HP_NONE)
    fill_flow_from_stamp(&c->table->flows[number], c->stamp);
  hp_flow_discard(c->table, number);
}

static hp_flow_table table_with(uint32_t flows) {
  hp_flow_table table;
  hp_error error;
  assert_int_equal(hp_flow_table_new(&table, CAPACITY, 7, false, &error), 0);
  for (uint32_t stamp = 1; stamp <= flows; stamp++)
    assert_int_not_equal(add_stamp(&table, stamp), HP_NONE);
  return table;
}

/* The table with that many flows goes through the operation; returns through how many states it went. */
static uint32_t try_change(uint32_t flows, uint32_t stamp, void (*operation)(void *), uint32_t *lost) {
  hp_flow_table table = table_with(flows);
  change c = {.table = &table, .stamp = stamp, .others = flows};
  if (stamp <= flows)
    c.number = find_stamp(&table, stamp, HP_INSIDE);
  trial t = {.table = &table, .check = check_others, .context = &c};
  step_through(&t, operation, &c);
  check_flow_table(&table);
  hp_flow_table_free(&table);
  *lost += t.lost;
  return t.states;
}

static void test_crash_while_publishing(void **state) {
  (void)state;
  uint32_t states = 0, lost = 0;
  for (uint32_t flows = 0; flows < CAPACITY; flows += 20)
    states += try_change(flows, flows + 1, publish, &lost);
  assert_true(states > 2 * 10);
  assert_true(lost > 0);
}

static void test_crash_while_removing(void **state) {
  (void)state;
  uint32_t states = 0, lost = 0;
  for (uint32_t stamp = 1; stamp <= CAPACITY; stamp += 15)
    states += try_change(CAPACITY, stamp, withdraw, &lost);
  assert_true(states > 3 * 10);
  assert_true(lost > 0);
}

static void test_crash_while_discarding(void **state) {
  (void)state;
  uint32_t lost = 0;
  assert_true(try_change(20, 21, take_and_discard, &lost) > 5);
  assert_int_equal(lost, 0);
}

/* All flows have the last bucket for their home: it is full, and so is the first. */
static void crowd(hp_flow_table *table) {
  uint64_t random = 1;
  const hp_index *index = &table->index[HP_OUTSIDE];
  while (table->control->live < CAPACITY) {
    uint32_t stamp = (uint32_t)next_random(&random);
    hp_key key = key_of_stamp(stamp, HP_OUTSIDE);
    if (hp_index_home(index, hp_key_hash(table, &key)) == index->count - 1)
      HOLD(add_stamp(table, stamp) != HP_NONE);
  }
  HOLD(index->passed[index->count - 1] == CAPACITY - HP_SLOTS && index->passed[0] == CAPACITY - 2 * HP_SLOTS);
}

static void check_one_is_missing_at_most(trial *t) { HOLD(t->successor.control->live + 1 >= CAPACITY); }

static void test_crash_with_crowded_buckets(void **state) {
  (void)state;
  hp_flow_table table = table_with(0);
  crowd(&table);
  const uint32_t numbers[] = {3, HP_SLOTS - 1, 2 * HP_SLOTS - 1, CAPACITY - 1}; /* two of them in slot 15 */
  for (int i = 0; i < 4; i++) {
    change c = {.table = &table, .number = numbers[i], .stamp = 1000000 + (uint32_t)i};
    trial t = {.table = &table, .check = check_one_is_missing_at_most};
    step_through(&t, withdraw, &c);
    step_through(&t, publish, &c);
    assert_true(t.states > 10);
  }
  hp_flow_table_free(&table);
}

static void test_repair_of_a_sound_table_changes_nothing(void **state) {
  (void)state;
  for (uint32_t flows = 0; flows <= CAPACITY; flows += 20) {
    hp_flow_table table = table_with(flows);
    assert_int_equal(hp_flow_repair(&table), 0);
    check_flow_table(&table);
    assert_int_equal(table.control->live, flows);
    for (uint32_t stamp = 1; stamp <= flows; stamp++) {
      uint32_t number = find_stamp(&table, stamp, HP_INSIDE);
      assert_true(number != HP_NONE && flow_is_of_stamp(&table.flows[number], stamp));
    }
    check_usable(&table);
    hp_flow_table_free(&table);
  }
}

/* ---- the engine's own way of making a flow ---- */

typedef struct sending {
  hp_engine *engine;
  uint16_t port;
} sending;

static void send_datagram(void *argument) {
  const sending *s = argument;
  uint8_t data[HP_VNET_HEADER + 28] = {0}, *ip = data + HP_VNET_HEADER;
  hp_error error;
  ip[0] = 0x45;
  ip[3] = 28;
  ip[8] = 64;
  ip[9] = HP_UDP;
  hp_put32(ip + 12, 0xc6120002);
  hp_put32(ip + 16, 0xcb007101);
  hp_put16(ip + 10, hp_ipv4_checksum(ip, 20));
  hp_put16(ip + 20, s->port);
  hp_put16(ip + 22, 9);
  ip[25] = 8;
  hp_packet packet = {.data = data, .length = sizeof data, .capacity = sizeof data, .link = 2};
  HOLD(hp_translate(s->engine, &packet, 1, s->engine->workers[0].now, &error) == 0);
  HOLD(packet.verdict == HP_FORWARD);
}

/* Whatever flow the successor keeps has all that a packet needs; the two halves tell the same story. */
static void check_halves(trial *t) {
  for (uint32_t number = 0; number < t->successor.control->used; number++) {
    const hp_flow *flow = &t->successor.flows[number];
    const hp_half *inside = &flow->half[HP_INSIDE], *outside = &flow->half[HP_OUTSIDE];
    if (!hp_flow_live(flow))
      continue;
    HOLD(inside->key.link == (2 << 8 | HP_UDP) && outside->key.link == (1 << 8 | HP_UDP));
    HOLD(inside->out_link == 1 && outside->out_link == 2);
    HOLD(inside->key.source == 0xc6120002 && outside->address == 0xc6120002);
    HOLD(inside->key.destination == 0xcb007101 && outside->key.source == 0xcb007101);
    HOLD(inside->address == 0xc0000201 && outside->key.destination == 0xc0000201);
    HOLD(inside->port == (uint16_t)outside->key.ports && inside->key.ports >> 16 == outside->port);
    HOLD(inside->delta_full && outside->delta_full && inside->delta_address && outside->delta_address);
  }
}

static void test_crash_while_the_engine_makes_a_flow(void **state) {
  (void)state;
  hp_error error;
  hp_config config = {.max_flows = CAPACITY, .max_links = 2, .max_addresses = 1, .seed = 1};
  hp_engine *engine = hp_engine_new(&config, &error);
  assert_non_null(engine);
  hp_eni_config eni = {.addresses = {0xc0000201}, .address_count = 1, .mtu = 1500};
  assert_int_equal(hp_eni_add(engine, &eni, -1, &error), 1);
  assert_int_equal(hp_eni_rules(engine, 1, &(hp_rule){0}, 1, &error), 0);
  hp_tunnel_config tunnel = {.eni = 1, .address = 0xc6120002, .mtu = 1500};
  assert_int_equal(hp_tunnel_add(engine, &tunnel, -1, &error), 2);
  sending s = {.engine = engine, .port = 4000};
  send_datagram(&s);
  s.port++;
  trial t = {.table = &engine->workers[0].flows, .check = check_halves};
  step_through(&t, send_datagram, &s);
  assert_true(t.states > 10);
  assert_int_equal(engine->workers[0].flows.control->live, 2); /* the child's, too */
  hp_engine_free(engine);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_crash_while_publishing),
      cmocka_unit_test(test_crash_while_removing),
      cmocka_unit_test(test_crash_while_discarding),
      cmocka_unit_test(test_crash_with_crowded_buckets),
      cmocka_unit_test(test_repair_of_a_sound_table_changes_nothing),
      cmocka_unit_test(test_crash_while_the_engine_makes_a_flow),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
