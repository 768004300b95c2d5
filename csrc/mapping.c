/* mapping.c: see mapping.h. */
#include "mapping.h"

#include <string.h>

int hp_mapping_table_open(hp_mapping_table *table, const hp_given *given, uint32_t capacity, const uint64_t seed[4],
                          hp_error *error) {
  *table = (hp_mapping_table){.capacity = capacity, .region.fd = -1};
  memcpy(table->seed, seed, sizeof table->seed);
  uint64_t bytes = sizeof(hp_mapping_control) + (uint64_t)capacity * sizeof(hp_mapping);
  if (hp_region_open(&table->region, given, "hp-mappings", bytes, false, error) ||
      hp_index_open(&table->index, given, "hp-index-mapping", capacity, false, error)) {
    hp_mapping_table_free(table);
    return -1;
  }
  table->control = table->region.at;
  table->mappings = (void *)(table->control + 1);
  return 0;
}

void hp_mapping_table_free(hp_mapping_table *table) {
  hp_index_free(&table->index);
  hp_region_free(&table->region);
  *table = (hp_mapping_table){0};
}

static uint64_t hash_of(const hp_mapping_table *table, uint32_t link, uint32_t inside, uint16_t inside_port) {
  return hp_hash(table->seed, (uint64_t)link << 32 | inside, inside_port);
}

uint32_t hp_mapping_find(const hp_mapping_table *table, uint32_t link, uint32_t inside, uint16_t inside_port) {
  hp_walk walk;
  uint32_t number;
  hp_index_begin(&table->index, hash_of(table, link, inside, inside_port), &walk);
  while ((number = hp_index_next(&table->index, &walk)) != HP_NONE) {
    const hp_mapping *mapping = &table->mappings[number];
    if (mapping->link == link && mapping->inside == inside && mapping->inside_port == inside_port)
      return number;
  }
  return HP_NONE;
}

void hp_mapping_fetch(const hp_mapping_table *table, uint32_t link, uint32_t inside, uint16_t inside_port) {
  uint64_t home = hp_index_home(&table->index, hash_of(table, link, inside, inside_port));
  __builtin_prefetch(&table->index.buckets[home]);
}

uint32_t hp_mapping_new(hp_mapping_table *table, const hp_mapping *mapping) {
  hp_mapping_control *control = table->control;
  uint32_t number;
  if (control->free_head) {
    number = control->free_head - 1;
    control->free_head = table->mappings[number].next_free;
  } else if (control->used < table->capacity) {
    number = control->used++;
  } else {
    return HP_NONE;
  }
  table->mappings[number] = *mapping;
  table->mappings[number].flows = 0;
  hp_index_insert(&table->index, hash_of(table, mapping->link, mapping->inside, mapping->inside_port), number);
  control->live++;
  return number;
}

void hp_mapping_free(hp_mapping_table *table, uint32_t number) {
  hp_mapping_control *control = table->control;
  hp_mapping *mapping = &table->mappings[number];
  hp_index_remove(&table->index, hash_of(table, mapping->link, mapping->inside, mapping->inside_port), number);
  *mapping = (hp_mapping){.next_free = control->free_head};
  control->free_head = number + 1;
  control->live--;
}

bool hp_mapping_drop(hp_mapping_table *table, uint32_t number, hp_mapping *ended) {
  if (--table->mappings[number].flows)
    return false;
  *ended = table->mappings[number];
  hp_mapping_free(table, number);
  return true;
}

void hp_mapping_clear(hp_mapping_table *table) {
  hp_mapping_control *control = table->control;
  uint32_t used = control->used < table->capacity ? control->used : table->capacity;
  memset(table->mappings, 0, used * sizeof(hp_mapping));
  hp_index_clear(&table->index);
  *control = (hp_mapping_control){.used = used};
}

static bool same_mapping(const hp_mapping *a, const hp_mapping *b) {
  return a->link == b->link && a->inside == b->inside && a->inside_port == b->inside_port && a->address == b->address &&
         a->outside_port == b->outside_port;
}

bool hp_mapping_restore(hp_mapping_table *table, uint32_t number, const hp_mapping *mapping) {
  hp_mapping *own = &table->mappings[number];
  if (number >= table->control->used)
    return false;
  if (own->link == 0) {
    uint64_t hash = hash_of(table, mapping->link, mapping->inside, mapping->inside_port);
    *own = *mapping;
    own->flows = 0;
    hp_index_insert(&table->index, hash, number);
    table->control->live++;
  }
  if (!same_mapping(own, mapping))
    return false;
  own->flows++;
  return true;
}

void hp_mapping_restored(hp_mapping_table *table) {
  hp_mapping_control *control = table->control;
  for (uint32_t number = control->used; number-- > 0;) {
    if (table->mappings[number].link)
      continue;
    table->mappings[number] = (hp_mapping){.next_free = control->free_head};
    control->free_head = number + 1;
  }
}
