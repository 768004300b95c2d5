/* port.c: choosing outside ports. See port.h for the two ways of using one. */
#include "port.h"

#include <stdlib.h>
#include <string.h>

enum {
  PROBES = 16, /* random probes before a destination counts as dense: 1.5e-5 at half full */
  GROUP = 4,   /* ports whose lines in the index are fetched together */
  LINEAR_PROBES = 4096
};

static int open_regions(hp_ports *ports, const hp_given *given, const hp_ports *first, uint32_t addresses,
                        hp_error *error) {
  uint64_t bytes = sizeof(hp_ports_shown) + (uint64_t)addresses * sizeof(hp_address);
  if (hp_region_open(&ports->region, given, "hp-addresses", bytes, false, error))
    return -1;
  ports->shown = ports->region.at;
  ports->addresses = (void *)(ports->shown + 1);
  if (!first &&
      hp_region_open(&ports->lease_region, given, "hp-leases", (uint64_t)addresses * sizeof(hp_lease), false, error))
    return -1;
  ports->leases = first ? first->leases : ports->lease_region.at;
  return 0;
}

static int make_own(hp_ports *ports, uint64_t seed, hp_error *error) {
  if (hp_index_new(&ports->dense_index, "hp-index-dense", ports->dense_capacity, false, error))
    return -1;
  ports->dense = calloc(ports->dense_capacity, sizeof(hp_dense));
  ports->steering = calloc(ports->count, sizeof *ports->steering);
  if (!ports->dense || !ports->steering)
    return hp_fail(error, 12, "no memory for port bitmaps; lower max_flows");
  ports->shown->dense = 0;
  hp_random_init(&ports->random, seed);
  return 0;
}

int hp_ports_open(hp_ports *ports, const hp_given *given, const hp_ports *first, uint32_t addresses, uint32_t max_flows,
                  uint32_t quarantine, uint64_t seed, hp_error *error) {
  *ports = (hp_ports){.count = addresses,
                      .quarantine = quarantine,
                      .workers = 1,
                      .region.fd = -1,
                      .lease_region.fd = -1,
                      .dense_capacity = max_flows / HP_SLICE_PORTS + 16};
  if (open_regions(ports, given, first, addresses, error) ||
      (!(given && given->read_only) && make_own(ports, seed, error))) {
    hp_ports_free(ports);
    return -1;
  }
  return 0;
}

void hp_ports_free(hp_ports *ports) {
  free(ports->dense);
  free(ports->steering);
  hp_index_free(&ports->dense_index);
  hp_region_free(&ports->lease_region);
  hp_region_free(&ports->region);
  *ports = (hp_ports){0};
}

uint16_t hp_port_random(hp_ports *ports, uint32_t address) {
  const hp_address *record = &ports->addresses[address];
  uint32_t slice = record->slices[hp_random_below(&ports->random, record->leased)];
  uint32_t offset = hp_random_below(&ports->random, HP_SLICE_PORTS);
  return (uint16_t)(HP_PORT_FIRST + slice * HP_SLICE_PORTS + offset);
}

static uint64_t bit_of(uint16_t port) { return 1ull << ((port - HP_PORT_FIRST) & 63); }
static uint64_t *word_of(uint64_t *words, uint16_t port) { return &words[(port - HP_PORT_FIRST) >> 6]; }

/* A port of the leased slices whose bit is clear, among the bits of `allowed`, from a random place on;
 * 0 when there is none. The search goes on at *cursor, counting words looked at. */
static uint16_t clear_port(hp_ports *ports, const hp_address *address, const uint64_t *words, uint64_t allowed) {
  uint32_t total = address->leased * HP_SLICE_WORDS;
  uint32_t start = hp_random_below(&ports->random, total);
  uint32_t turn = hp_random_below(&ports->random, 64) & ~1u; /* even: parity masks stay */
  for (uint32_t i = 0; i < total; i++) {
    uint32_t at = start + i < total ? start + i : start + i - total;
    uint32_t word = address->slices[at / HP_SLICE_WORDS] * HP_SLICE_WORDS + at % HP_SLICE_WORDS;
    uint64_t free_bits = ~words[word] & allowed;
    if (free_bits == 0)
      continue;
    uint64_t turned = turn ? free_bits >> turn | free_bits << (64 - turn) : free_bits;
    uint32_t bit = ((uint32_t)__builtin_ctzll(turned) + turn) & 63;
    return (uint16_t)(HP_PORT_FIRST + word * 64 + bit);
  }
  return 0;
}

/* ---- exclusive ports ---- */

static void release_oldest(hp_address *address, int kind) {
  uint16_t port = address->quarantine[kind][address->head[kind]++ % HP_QUARANTINE].port;
  *word_of(address->taken[kind], port) &= ~bit_of(port);
}

static void release_due(hp_ports *ports, hp_address *address, int kind, uint64_t now) {
  while (address->head[kind] != address->tail[kind] &&
         (uint32_t)now - address->quarantine[kind][address->head[kind] % HP_QUARANTINE].since >= ports->quarantine)
    release_oldest(address, kind);
}

static uint16_t take(hp_ports *ports, hp_address *address, int kind, uint64_t allowed) {
  uint16_t port = clear_port(ports, address, address->taken[kind], allowed);
  if (port)
    *word_of(address->taken[kind], port) |= bit_of(port);
  return port;
}

uint16_t hp_port_take(hp_ports *ports, uint32_t number, int kind, uint16_t like, uint64_t now) {
  hp_address *address = &ports->addresses[number];
  const uint64_t parity = like & 1 ? 0xaaaaaaaaaaaaaaaau : 0x5555555555555555u;
  uint16_t port;
  release_due(ports, address, kind, now);
  do {
    if ((port = take(ports, address, kind, parity)))
      return port;
  } while (hp_slice_lease(ports, number));
  if ((port = take(ports, address, kind, ~0ull)))
    return port;
  while (address->head[kind] != address->tail[kind]) {
    release_oldest(address, kind);
    if ((port = take(ports, address, kind, ~0ull)))
      return port;
  }
  return 0;
}

void hp_port_give(hp_ports *ports, uint32_t number, int kind, uint16_t port, uint64_t now) {
  hp_address *address = &ports->addresses[number];
  address->quarantine[kind][address->tail[kind]++ % HP_QUARANTINE] = (hp_quarantined){(uint32_t)now, port, 0};
}

void hp_port_claim(hp_ports *ports, uint32_t number, int kind, uint16_t port) {
  *word_of(ports->addresses[number].taken[kind], port) |= bit_of(port);
}

void hp_ports_clear(hp_ports *ports, uint32_t number) {
  hp_address *address = &ports->addresses[number];
  memset(address->taken, 0, sizeof address->taken);
  memset(address->users, 0, sizeof address->users);
  hp_slices_recall(ports, number);
}

bool hp_slice_in_use(hp_ports *ports, uint32_t number, uint32_t slice, uint64_t now) {
  hp_address *address = &ports->addresses[number];
  uint64_t taken = 0;
  for (int kind = 0; kind < 2; kind++) {
    release_due(ports, address, kind, now);
    for (uint32_t word = 0; word < HP_SLICE_WORDS; word++)
      taken |= address->taken[kind][slice * HP_SLICE_WORDS + word];
  }
  return address->users[slice] || taken;
}

/* An entry that was being written when the writer died may name any port: it counts when nobody has it. */
void hp_ports_restored(hp_ports *ports, uint32_t number) {
  hp_address *address = &ports->addresses[number];
  for (int kind = 0; kind < 2; kind++) {
    uint32_t from = address->head[kind], end = address->tail[kind], to = from;
    if (end - from > HP_QUARANTINE)
      end = from;
    for (; from != end; from++) {
      const hp_quarantined rests = address->quarantine[kind][from % HP_QUARANTINE];
      if (rests.port < HP_PORT_FIRST || *word_of(address->taken[kind], rests.port) & bit_of(rests.port))
        continue;
      *word_of(address->taken[kind], rests.port) |= bit_of(rests.port);
      address->quarantine[kind][to++ % HP_QUARANTINE] = rests;
    }
    address->tail[kind] = to;
  }
}

/* ---- ports shared per destination ---- */

static hp_key destination_of(const hp_key *key) {
  hp_key destination = *key;
  destination.ports &= 0xffff0000u;
  return destination;
}

static hp_dense *dense_find(const hp_ports *ports, const hp_flow_table *flows, const hp_key *destination) {
  hp_walk walk;
  uint32_t number;
  hp_index_begin(&ports->dense_index, hp_key_hash(flows, destination), &walk);
  while ((number = hp_index_next(&ports->dense_index, &walk)) != HP_NONE)
    if (hp_key_equal(&ports->dense[number].destination, destination))
      return &ports->dense[number];
  return NULL;
}

static hp_dense *dense_new(hp_ports *ports, const hp_flow_table *flows, const hp_key *destination) {
  uint32_t number;
  if (ports->dense_free) {
    number = ports->dense_free - 1;
    ports->dense_free = ports->dense[number].next_free;
  } else if (ports->dense_used < ports->dense_capacity) {
    number = ports->dense_used++;
  } else {
    return NULL;
  }
  hp_dense *dense = &ports->dense[number];
  memset(dense, 0, sizeof *dense);
  dense->destination = *destination;
  ports->shown->dense = ++ports->dense_live;
  hp_index_insert(&ports->dense_index, hp_key_hash(flows, destination), number); /* as large as the pool */
  return dense;
}

static void dense_remove(hp_ports *ports, const hp_flow_table *flows, hp_dense *dense) {
  uint32_t number = (uint32_t)(dense - ports->dense);
  hp_index_remove(&ports->dense_index, hp_key_hash(flows, &dense->destination), number);
  dense->next_free = ports->dense_free;
  ports->dense_free = number + 1;
  ports->shown->dense = --ports->dense_live;
}

static void learn(hp_dense *dense, uint16_t port) {
  *word_of(dense->taken, port) |= bit_of(port);
  dense->known++;
}

static bool port_free(const hp_flow_table *flows, hp_key *key, uint16_t port) {
  key->ports = (key->ports & 0xffff0000u) | port;
  return hp_flow_find(flows, HP_OUTSIDE, key, hp_key_hash(flows, key)) == HP_NONE;
}

static uint64_t fetch_port(const hp_flow_table *flows, hp_key *key, uint16_t port) {
  const hp_index *index = &flows->index[HP_OUTSIDE];
  key->ports = (key->ports & 0xffff0000u) | port;
  uint64_t hash = hp_key_hash(flows, key);
  __builtin_prefetch(&index->buckets[hp_index_home(index, hash)], 1);
  return hash;
}

/* Which of the ports is free, the first; `count` when none is. Their lines are waited for once, not one by one. */
static uint32_t first_free(const hp_flow_table *flows, hp_key *key, const uint16_t *group, uint32_t count) {
  uint64_t hashes[GROUP];
  uint32_t i;
  for (i = 0; i < count; i++)
    hashes[i] = fetch_port(flows, key, group[i]);
  for (i = 0; i < count; i++) {
    key->ports = (key->ports & 0xffff0000u) | group[i];
    if (hp_flow_find(flows, HP_OUTSIDE, key, hashes[i]) == HP_NONE)
      break;
  }
  return i;
}

/* Up to GROUP ports that are not known to be taken; they count as known from now on. */
static uint32_t draw(hp_ports *ports, const hp_address *address, hp_dense *dense, uint16_t *group) {
  uint32_t count = 0;
  for (uint16_t port; count < GROUP && (port = clear_port(ports, address, dense->taken, ~0ull)); count++)
    learn(dense, group[count] = port);
  return count;
}

static void unlearn(hp_dense *dense, uint16_t port) {
  *word_of(dense->taken, port) &= ~bit_of(port);
  dense->known--;
}

static uint16_t choose_dense(hp_ports *ports, uint32_t number, const hp_flow_table *flows, hp_key *key,
                             hp_dense *dense) {
  const hp_address *address = &ports->addresses[number];
  uint16_t group[GROUP];
  do {
    for (uint32_t count; (count = draw(ports, address, dense, group));) {
      uint32_t found = first_free(flows, key, group, count);
      for (uint32_t i = found + 1; i < count; i++)
        unlearn(dense, group[i]); /* not looked at */
      if (found < count)
        return group[found];
    }
  } while (hp_slice_lease(ports, number));
  return 0;
}

static uint16_t choose_random(hp_ports *ports, uint32_t number, const hp_flow_table *flows, hp_key *key) {
  uint16_t group[GROUP];
  for (int probes = 0; probes < PROBES; probes += GROUP) {
    for (uint32_t i = 0; i < GROUP; i++)
      group[i] = hp_port_random(ports, number);
    uint32_t found = first_free(flows, key, group, GROUP);
    if (found < GROUP)
      return group[found];
  }
  return 0;
}

/* Without a bitmap to be had: from a random port on, as far as is bearable in one go; then a new slice. */
static uint16_t choose_linear(hp_ports *ports, uint32_t number, const hp_flow_table *flows, hp_key *key) {
  hp_address *address = &ports->addresses[number];
  uint32_t port = hp_port_random(ports, number);
  for (int i = 0; i < LINEAR_PROBES; i++) {
    bool ours = address->chosen >> (port - HP_PORT_FIRST) / HP_SLICE_PORTS & 1;
    if (ours && port_free(flows, key, (uint16_t)port))
      return (uint16_t)port;
    if (++port == HP_PORT_FIRST + HP_PORT_COUNT)
      port = HP_PORT_FIRST;
  }
  if (!hp_slice_lease(ports, number))
    return 0;
  port = address->slices[address->leased - 1] * (uint32_t)HP_SLICE_PORTS + HP_PORT_FIRST;
  port += hp_random_below(&ports->random, HP_SLICE_PORTS);
  return port_free(flows, key, (uint16_t)port) ? (uint16_t)port : 0;
}

uint16_t hp_port_guess(hp_ports *ports, uint32_t number, const hp_flow_table *flows, const hp_key *key) {
  if (ports->addresses[number].leased == 0)
    return 0;
  hp_key outside = destination_of(key);
  const hp_dense *dense = ports->dense_live ? dense_find(ports, flows, &outside) : NULL;
  uint16_t port =
      dense ? clear_port(ports, &ports->addresses[number], dense->taken, ~0ull) : hp_port_random(ports, number);
  if (port)
    fetch_port(flows, &outside, port);
  return port;
}

uint16_t hp_port_choose(hp_ports *ports, uint32_t number, const hp_flow_table *flows, hp_key *key, uint16_t guess) {
  if (ports->addresses[number].leased == 0 && !hp_slice_lease(ports, number))
    return 0;
  hp_key destination = destination_of(key);
  hp_dense *dense = ports->dense_live ? dense_find(ports, flows, &destination) : NULL;
  if (guess && port_free(flows, key, guess)) {
    if (dense && !(*word_of(dense->taken, guess) & bit_of(guess)))
      learn(dense, guess);
    return guess;
  }
  if (!dense) {
    uint16_t port = choose_random(ports, number, flows, key);
    if (port)
      return port;
    dense = dense_new(ports, flows, &destination);
  }
  return dense ? choose_dense(ports, number, flows, key, dense) : choose_linear(ports, number, flows, key);
}

void hp_port_ended(hp_ports *ports, const hp_flow_table *flows, const hp_key *key) {
  if (!ports->dense_live)
    return;
  uint16_t port = (uint16_t)key->ports;
  hp_key destination = destination_of(key);
  hp_dense *dense = dense_find(ports, flows, &destination);
  if (!dense || port < HP_PORT_FIRST || !(*word_of(dense->taken, port) & bit_of(port)))
    return;
  unlearn(dense, port);
  if (dense->known == 0)
    dense_remove(ports, flows, dense);
}
