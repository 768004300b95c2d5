/* flow.c: the life of flows in their table.
 *
 * A number is free, taken (its flow is being filled in, nobody finds it), live (published in both
 * indices), then free again. The order of writes makes a crash at any instruction repairable: the
 * journal is written before a flow enters the indices or leaves them and cleared after, and a flow
 * outside its transition is either in both indices or in none.
 */
#include "flow.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define LOAD(word) __atomic_load_n(&(word), __ATOMIC_ACQUIRE)
#define STORE(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELEASE)

/* splitmix64: turns one reproducible seed into four. */
static uint64_t spread(uint64_t *state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static int make_seed(uint64_t seed[4], uint64_t from, hp_error *error) {
  if (from == 0) {
    if (getrandom(seed, 32, 0) != 32)
      return hp_fail(error, 0, "no random numbers for the flow table's hash: getrandom failed");
    return 0;
  }
  for (int i = 0; i < 4; i++)
    seed[i] = spread(&from);
  return 0;
}

static int set_up(hp_flow_table *table, uint32_t capacity, uint64_t seed, hp_error *error) {
  hp_flow_control *control = table->control_region.at;
  control->capacity = capacity;
  return make_seed(control->seed, seed, error);
}

static int check(const hp_flow_table *table, uint32_t capacity, hp_error *error) {
  const hp_flow_control *control = table->control_region.at;
  if (control->capacity != capacity || LOAD(control->used) > capacity)
    return hp_fail(error, EBADMSG, "the flow table was made for %u flows and used to number %u, not for %u",
                   control->capacity, control->used, capacity);
  return 0;
}

static int open_sweep(hp_flow_sweep *sweep, uint32_t capacity, bool huge, hp_error *error) {
  uint64_t chunks = (uint64_t)capacity / HP_CHUNK + 1;
  if (hp_region_new(&sweep->soonest_region, "hp-soonest", chunks * sizeof *sweep->soonest, huge, error) ||
      hp_region_new(&sweep->owner_region, "hp-owners", (uint64_t)capacity * sizeof *sweep->owners, huge, error))
    return -1;
  sweep->soonest = sweep->soonest_region.at;
  sweep->owners = sweep->owner_region.at;
  return 0;
}

int hp_flow_table_open(hp_flow_table *table, const hp_given *given, uint32_t capacity, uint64_t seed, bool huge,
                       hp_error *error) {
  *table = (hp_flow_table){.flow_region.fd = -1, .cold_region.fd = -1, .control_region.fd = -1};
  uint64_t flows = (uint64_t)capacity * sizeof(hp_flow), cold = (uint64_t)capacity * sizeof(hp_flow_cold);
  if (hp_region_open(&table->control_region, given, "hp-flow-control", sizeof(hp_flow_control), false, error) ||
      hp_region_open(&table->flow_region, given, "hp-flows", flows, huge, error) ||
      hp_region_open(&table->cold_region, given, "hp-flows-cold", cold, huge, error) ||
      hp_index_open(&table->index[HP_INSIDE], given, "hp-index-inside", capacity, huge, error) ||
      hp_index_open(&table->index[HP_OUTSIDE], given, "hp-index-outside", capacity, huge, error) ||
      (!(given && given->read_only) && open_sweep(&table->sweep, capacity, huge, error)) ||
      (given ? check(table, capacity, error) : set_up(table, capacity, seed, error))) {
    hp_flow_table_free(table);
    return -1;
  }
  table->flows = table->flow_region.at;
  table->cold = table->cold_region.at;
  table->control = table->control_region.at;
  memcpy(table->seed, table->control->seed, sizeof table->seed);
  table->seed[3] |= 1; /* so that multiplying by it loses nothing */
  return 0;
}

void hp_flow_table_free(hp_flow_table *table) {
  hp_index_free(&table->index[HP_INSIDE]);
  hp_index_free(&table->index[HP_OUTSIDE]);
  hp_region_free(&table->sweep.soonest_region);
  hp_region_free(&table->sweep.owner_region);
  hp_region_free(&table->cold_region);
  hp_region_free(&table->flow_region);
  hp_region_free(&table->control_region);
  *table = (hp_flow_table){0};
}

uint32_t hp_flow_find(const hp_flow_table *table, int side, const hp_key *key, uint64_t hash) {
  hp_walk walk;
  uint32_t number;
  hp_index_begin(&table->index[side], hash, &walk);
  while ((number = hp_index_next(&table->index[side], &walk)) != HP_NONE)
    if (hp_key_equal(&table->flows[number].half[side].key, key))
      return number;
  return HP_NONE;
}

/* What the next flow will be made of: by then it has come. */
static void fetch_next(const hp_flow_table *table) {
  uint32_t next = table->control->free_head ? table->control->free_head - 1 : table->control->used;
  __builtin_prefetch(&table->flows[next].half[HP_INSIDE], 1);
  __builtin_prefetch(&table->flows[next].half[HP_OUTSIDE], 1);
  __builtin_prefetch(&table->cold[next], 1);
}

uint32_t hp_flow_take(hp_flow_table *table) {
  hp_flow_control *control = table->control;
  uint32_t number;
  if (control->free_head) {
    number = control->free_head - 1;
    control->free_head = table->cold[number].next_free;
  } else if (control->used < control->capacity) {
    number = control->used;
    STORE(control->used, number + 1);
  } else {
    return HP_NONE;
  }
  fetch_next(table);
  uint32_t *sequence = &table->flows[number].half[HP_INSIDE].sequence;
  STORE(*sequence, *sequence | 1);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  return number;
}

/* Makes the flow all zero but its sequence, which becomes even and new, and its number free. */
static void give_back(hp_flow_table *table, uint32_t number) {
  hp_flow *flow = &table->flows[number];
  uint32_t sequence = flow->half[HP_INSIDE].sequence | 1;
  STORE(flow->half[HP_INSIDE].sequence, sequence);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  memset(&flow->half[HP_OUTSIDE], 0, sizeof(hp_half));
  memset(&flow->half[HP_INSIDE], 0, offsetof(hp_half, sequence));
  flow->half[HP_INSIDE].packets = 0;
  flow->half[HP_INSIDE].bytes = 0;
  STORE(flow->half[HP_INSIDE].sequence, sequence + 1);
  table->sweep.owners[number] = 0;
  table->cold[number].next_free = table->control->free_head;
  table->control->free_head = number + 1;
}

void hp_flow_discard(hp_flow_table *table, uint32_t number) { give_back(table, number); }

static uint64_t half_hash(const hp_flow_table *table, uint32_t number, int side) {
  return hp_key_hash(table, &table->flows[number].half[side].key);
}

bool hp_flow_publish(hp_flow_table *table, uint32_t number, uint64_t now, uint32_t timeout) {
  hp_flow *flow = &table->flows[number];
  table->cold[number].started = now;
  hp_flow_due(table, number, (uint32_t)now + timeout);
  table->sweep.owners[number] = hp_flow_owner(flow->half[HP_OUTSIDE].out_link);
  STORE(table->control->journal, (uint64_t)number + 1);
  STORE(flow->half[HP_INSIDE].sequence, flow->half[HP_INSIDE].sequence + 1);
  uint64_t inside = half_hash(table, number, HP_INSIDE);
  bool published = hp_index_insert(&table->index[HP_INSIDE], inside, number);
  if (published && !hp_index_insert(&table->index[HP_OUTSIDE], half_hash(table, number, HP_OUTSIDE), number)) {
    hp_index_remove(&table->index[HP_INSIDE], inside, number);
    published = false;
  }
  if (published)
    STORE(table->control->live, table->control->live + 1);
  else
    give_back(table, number);
  STORE(table->control->journal, 0);
  return published;
}

void hp_flow_remove(hp_flow_table *table, uint32_t number) {
  STORE(table->control->journal, (uint64_t)number + 1);
  hp_index_remove(&table->index[HP_INSIDE], half_hash(table, number, HP_INSIDE), number);
  hp_index_remove(&table->index[HP_OUTSIDE], half_hash(table, number, HP_OUTSIDE), number);
  give_back(table, number);
  STORE(table->control->live, table->control->live - 1);
  STORE(table->control->journal, 0);
}

HP_LOOKS_ON bool hp_flow_read(const hp_flow_table *table, uint32_t number, hp_flow *copy, hp_flow_cold *cold) {
  const hp_flow *flow = &table->flows[number];
  for (int attempt = 0; attempt < 100; attempt++) {
    uint32_t before = LOAD(flow->half[HP_INSIDE].sequence);
    if (before & 1)
      continue;
    *copy = *flow;
    *cold = table->cold[number];
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (LOAD(flow->half[HP_INSIDE].sequence) == before)
      return hp_flow_live(copy);
  }
  return false;
}

uint32_t hp_flow_repair(hp_flow_table *table) {
  hp_flow_control *control = table->control;
  uint64_t broken = control->journal; /* number + 1 */
  uint32_t lost = 0;
  hp_index_clear(&table->index[HP_INSIDE]);
  hp_index_clear(&table->index[HP_OUTSIDE]);
  control->free_head = 0;
  control->live = 0;
  for (uint32_t number = control->used; number-- > 0;) {
    hp_flow *flow = &table->flows[number];
    bool whole = number + 1 != broken && (flow->half[HP_INSIDE].sequence & 1) == 0 && hp_flow_live(flow);
    if (whole && hp_index_insert(&table->index[HP_INSIDE], half_hash(table, number, HP_INSIDE), number) &&
        hp_index_insert(&table->index[HP_OUTSIDE], half_hash(table, number, HP_OUTSIDE), number)) {
      control->live++;
      table->sweep.owners[number] = hp_flow_owner(flow->half[HP_OUTSIDE].out_link);
      hp_flow_due(table, number, table->cold[number].deadline);
    } else {
      lost += number + 1 == broken;
      give_back(table, number);
    }
  }
  STORE(control->journal, 0);
  return lost;
}
