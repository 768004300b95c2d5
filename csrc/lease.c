/* lease.c: which slices of an ENI address are whose. One table of bytes is shared by the workers, and changed by
 * compare-and-swap; what a worker chooses from is its own copy of it. See port.h, and slices.c for how they move. */
#include <string.h>

#include "port.h"

enum { FIRST_LEASE = 32 /* slices taken when an address is added, by all workers: entropy for RFC 6056 at once */ };

static void steer(hp_ports *ports, uint32_t number, uint32_t slice) {
  if (ports->steering[number])
    __atomic_store_n(&ports->steering[number][slice], ports->worker, __ATOMIC_RELAXED);
}

static void begin_choosing(hp_ports *ports, uint32_t number, uint32_t slice) {
  hp_address *address = &ports->addresses[number];
  address->slices[address->leased++] = (uint8_t)slice;
  address->chosen |= 1ull << slice;
  steer(ports, number, slice);
}

void hp_address_steer(hp_ports *ports, uint32_t number) {
  for (uint32_t slice = 0; slice < HP_SLICES; slice++)
    if (hp_slice_owner(ports, number, slice) == ports->worker + 1)
      steer(ports, number, slice);
}

static uint32_t free_slices(const hp_ports *ports, uint32_t number) {
  uint32_t count = 0;
  for (uint32_t slice = 0; slice < HP_SLICES; slice++)
    count += hp_slice_owner(ports, number, slice) == 0;
  return count;
}

/* Takes one that is free, unless another worker is faster. */
static bool lease_free(hp_ports *ports, uint32_t number, uint32_t count) {
  hp_lease *lease = &ports->leases[number];
  uint32_t skip = hp_random_below(&ports->random, count);
  for (uint32_t slice = 0; slice < HP_SLICES; slice++) {
    uint8_t nobody = 0;
    if (hp_slice_owner(ports, number, slice) || skip-- != 0)
      continue;
    if (!__atomic_compare_exchange_n(&lease->owner[slice], &nobody, (uint8_t)(ports->worker + 1), false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      return false;
    begin_choosing(ports, number, slice);
    return true;
  }
  return false;
}

void hp_slice_unwant(hp_ports *ports, uint32_t number) {
  uint32_t *wanted = &ports->leases[number].wanted, self = 1u << ports->worker;
  if (__atomic_load_n(wanted, __ATOMIC_RELAXED) & self)
    __atomic_fetch_and(wanted, ~self, __ATOMIC_RELAXED);
}

static void want(hp_ports *ports, uint32_t number) {
  uint32_t *wanted = &ports->leases[number].wanted, self = 1u << ports->worker;
  if (ports->workers > 1 && !(__atomic_fetch_or(wanted, self, __ATOMIC_RELAXED) & self))
    ports->in_need = true;
}

/* Who takes the last one wants the next already: others may have spared one by the time that it is needed. */
bool hp_slice_lease(hp_ports *ports, uint32_t number) {
  uint32_t count;
  while ((count = free_slices(ports, number)) > 0) {
    if (!lease_free(ports, number, count))
      continue;
    if (count > 1)
      hp_slice_unwant(ports, number);
    else
      want(ports, number);
    return true;
  }
  want(ports, number);
  return false;
}

void hp_slice_retire(hp_ports *ports, uint32_t number, uint32_t slice) {
  hp_address *address = &ports->addresses[number];
  for (uint32_t i = 0; i < address->leased; i++)
    if (address->slices[i] == slice)
      address->slices[i] = address->slices[--address->leased];
  address->chosen &= ~(1ull << slice);
  address->retiring |= 1ull << slice;
}

void hp_slice_release(hp_ports *ports, uint32_t number, uint32_t slice) {
  ports->addresses[number].retiring &= ~(1ull << slice);
  __atomic_store_n(&ports->leases[number].owner[slice], 0, __ATOMIC_RELEASE);
}

uint32_t hp_address_reserve(hp_ports *ports, uint32_t eni) {
  for (uint32_t number = 0; number < ports->count; number++) {
    hp_lease *lease = &ports->leases[number];
    if (lease->eni)
      continue;
    memset(lease->owner, 0, sizeof lease->owner);
    lease->wanted = 0;
    lease->eni = eni;
    return number;
  }
  return HP_NONE;
}

void hp_address_set(hp_ports *ports, uint32_t number, uint32_t eni, uint32_t address) {
  hp_address *record = &ports->addresses[number];
  memset((char *)record + offsetof(hp_address, leased), 0,
         offsetof(hp_address, quarantine) - offsetof(hp_address, leased));
  record->address = address;
  record->eni = eni;
  uint32_t first = ports->workers > 1 ? FIRST_LEASE / ports->workers : FIRST_LEASE;
  while (record->leased < first && hp_slice_lease(ports, number))
    ;
}

void hp_address_forget(hp_ports *ports, uint32_t number) {
  hp_address *record = &ports->addresses[number];
  record->retiring = 0;
  record->eni = 0;
  ports->steering[number] = NULL;
}

uint32_t hp_address_add(hp_ports *ports, uint32_t eni, uint32_t address) {
  uint32_t number = hp_address_reserve(ports, eni);
  if (number != HP_NONE)
    hp_address_set(ports, number, eni, address);
  return number;
}

void hp_address_remove(hp_ports *ports, uint32_t number) { ports->leases[number].eni = 0; }

void hp_slices_recall(hp_ports *ports, uint32_t number) {
  hp_address *address = &ports->addresses[number];
  hp_lease *lease = &ports->leases[number];
  address->leased = 0;
  address->chosen = address->retiring = 0;
  for (uint32_t slice = 0; slice < HP_SLICES; slice++) {
    if (lease->owner[slice] == ports->worker + 1)
      begin_choosing(ports, number, slice);
    else if (lease->owner[slice] > ports->workers)
      lease->owner[slice] = 0;
  }
}
