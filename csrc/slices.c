/* slices.c: see slices.h. */
#include "slices.h"

void hp_slices_count(hp_worker *worker, const hp_key *outside, int by) {
  const hp_link *eni = &worker->engine->links[outside->link >> 8];
  uint32_t slice = ((outside->ports & 0xffff) - HP_PORT_FIRST) / HP_SLICE_PORTS;
  for (uint32_t i = 0; i < eni->address_count; i++) {
    hp_address *address = &worker->ports.addresses[eni->addresses[i]];
    if (address->address == outside->destination) {
      address->users[slice] += (uint32_t)by;
      return;
    }
  }
}

static void release_idle(hp_worker *worker, uint32_t number) {
  uint64_t retiring = worker->ports.addresses[number].retiring;
  for (uint32_t slice = 0; retiring >> slice; slice++)
    if (retiring >> slice & 1 && !hp_slice_in_use(&worker->ports, number, slice, worker->now))
      hp_slice_release(&worker->ports, number, slice);
}

/* Retires all slices that nobody uses, but keeps one to choose from. */
static void retire_idle(hp_worker *worker, uint32_t number) {
  hp_address *address = &worker->ports.addresses[number];
  for (uint32_t i = address->leased; i-- > 0 && address->leased > 1;)
    if (!hp_slice_in_use(&worker->ports, number, address->slices[i], worker->now))
      hp_slice_retire(&worker->ports, number, address->slices[i]);
}

static void retire_least_used(hp_worker *worker, uint32_t number) {
  const hp_address *address = &worker->ports.addresses[number];
  uint32_t least = address->slices[0];
  for (uint32_t i = 1; i < address->leased; i++)
    if (address->users[address->slices[i]] < address->users[least])
      least = address->slices[i];
  hp_slice_retire(&worker->ports, number, least);
}

static uint32_t slices_of(const hp_worker *worker, uint32_t number, uint8_t owner) {
  uint32_t count = 0;
  for (uint32_t slice = 0; slice < HP_SLICES; slice++)
    count += hp_slice_owner(&worker->ports, number, slice) == owner;
  return count;
}

/* The one that has the fewest of those who want one; HP_NONE when nobody does. */
static uint32_t poorest(const hp_worker *worker, uint32_t number) {
  uint32_t wanted = __atomic_load_n(&worker->ports.leases[number].wanted, __ATOMIC_RELAXED);
  uint32_t least = HP_NONE;
  for (uint32_t other = 0; other < worker->workers; other++) {
    if (other == worker->number || !(wanted >> other & 1))
      continue;
    uint32_t slices = slices_of(worker, number, (uint8_t)(other + 1));
    least = slices < least ? slices : least;
  }
  return least;
}

static void spare(hp_worker *worker, uint32_t number) {
  hp_address *address = &worker->ports.addresses[number];
  uint32_t least = poorest(worker, number);
  if (least == HP_NONE)
    return;
  retire_idle(worker, number);
  if (!address->retiring && address->leased > 1 && slices_of(worker, number, (uint8_t)(worker->number + 1)) > least + 1)
    retire_least_used(worker, number);
}

/* The first address number that was never used: nothing is touched that was not. */
static uint32_t used_addresses(const hp_ports *ports) {
  uint32_t number = 0;
  while (number < ports->count && (ports->addresses[number].address || ports->addresses[number].eni))
    number++;
  return number;
}

void hp_slices_turn(hp_worker *worker) {
  for (uint32_t number = used_addresses(&worker->ports); number-- > 0;)
    if (worker->ports.addresses[number].eni) {
      spare(worker, number);
      release_idle(worker, number);
    }
}

void hp_slices_pass(hp_worker *worker) {
  for (uint32_t number = used_addresses(&worker->ports); number-- > 0;)
    if (worker->ports.addresses[number].eni) {
      hp_slice_unwant(&worker->ports, number);
      release_idle(worker, number);
    }
}
