/* mapping.c: see mapping.h. */
#include "mapping.h"

#include <string.h>

int hp_mapping_table_new(hp_mapping_table *table, uint32_t capacity, const uint64_t seed[4], hp_error *error) {
  *table = (hp_mapping_table){.capacity = capacity, .region.fd = -1};
  memcpy(table->seed, seed, sizeof table->seed);
  if (hp_region_new(&table->region, "hp-mappings", (uint64_t)capacity * sizeof(hp_mapping), false, error) ||
      hp_index_new(&table->index, "hp-index-mapping", capacity, false, error)) {
    hp_mapping_table_free(table);
    return -1;
  }
  table->mappings = table->region.at;
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

uint32_t hp_mapping_new(hp_mapping_table *table, const hp_mapping *mapping) {
  uint32_t number;
  if (table->free_head) {
    number = table->free_head - 1;
    table->free_head = table->mappings[number].next_free;
  } else if (table->used < table->capacity) {
    number = table->used++;
  } else {
    return HP_NONE;
  }
  table->mappings[number] = *mapping;
  table->mappings[number].flows = 0;
  hp_index_insert(&table->index, hash_of(table, mapping->link, mapping->inside, mapping->inside_port), number);
  table->live++;
  return number;
}

void hp_mapping_free(hp_mapping_table *table, uint32_t number) {
  hp_mapping *mapping = &table->mappings[number];
  hp_index_remove(&table->index, hash_of(table, mapping->link, mapping->inside, mapping->inside_port), number);
  *mapping = (hp_mapping){.next_free = table->free_head};
  table->free_head = number + 1;
  table->live--;
}

bool hp_mapping_drop(hp_mapping_table *table, uint32_t number, hp_mapping *ended) {
  if (--table->mappings[number].flows)
    return false;
  *ended = table->mappings[number];
  hp_mapping_free(table, number);
  return true;
}
