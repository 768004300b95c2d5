/* mapping.h: endpoint-independent mappings (RFC 4787 REQ-1) and ICMP query ids (RFC 5508 REQ-1): one
 * inside endpoint, one outside port, any number of flows. Reference-counted by its flows; when the last
 * ends, so does the mapping. A flow keeps its mapping's number, and repair.c
 * rebuilds this table from the flows: a successor trusts nothing here but how far it was used. */
#ifndef HP_MAPPING_H
#define HP_MAPPING_H

#include "flow.h"

typedef struct hp_mapping {
  uint32_t link; /* tunnel << 8 | protocol; 0: free */
  uint32_t inside;
  uint16_t inside_port; /* ICMP: the id */
  uint16_t outside_port;
  uint32_t address;   /* hp_address number */
  uint32_t flows;     /* references */
  uint32_t next_free; /* number + 1 */
  uint32_t reserved[2];
} hp_mapping;
_Static_assert(sizeof(hp_mapping) == 32, "two a cache line");

/* The table's own words, before the mappings in their region. */
typedef struct hp_mapping_control {
  uint32_t used; /* numbers below this have been given out */
  uint32_t live;
  uint32_t free_head; /* number + 1 */
  uint32_t reserved[13];
} hp_mapping_control;
_Static_assert(sizeof(hp_mapping_control) == 64, "mappings keep to their cache lines");

typedef struct hp_mapping_table {
  hp_mapping *mappings;
  hp_mapping_control *control;
  uint32_t capacity;
  uint64_t seed[4];
  hp_index index;
  hp_region region;
} hp_mapping_table;

int hp_mapping_table_open(hp_mapping_table *table, const hp_given *given, uint32_t capacity, const uint64_t seed[4],
                          hp_error *error);
static inline int hp_mapping_table_new(hp_mapping_table *table, uint32_t capacity, const uint64_t seed[4],
                                       hp_error *error) {
  return hp_mapping_table_open(table, NULL, capacity, seed, error);
}
void hp_mapping_table_free(hp_mapping_table *table);

/* The mapping of an inside endpoint, or HP_NONE. */
uint32_t hp_mapping_find(const hp_mapping_table *table, uint32_t link, uint32_t inside, uint16_t inside_port);
/* Has the memory fetched that hp_mapping_find() will want. */
void hp_mapping_fetch(const hp_mapping_table *table, uint32_t link, uint32_t inside, uint16_t inside_port);
/* A mapping without references yet; HP_NONE when the table is full. */
uint32_t hp_mapping_new(hp_mapping_table *table, const hp_mapping *mapping);
static inline void hp_mapping_hold(hp_mapping_table *table, uint32_t number) { table->mappings[number].flows++; }
/* Drops a reference; true when it was the last: *ended is what the mapping was, its number is free. */
bool hp_mapping_drop(hp_mapping_table *table, uint32_t number, hp_mapping *ended);
/* Frees a mapping that has no references. */
void hp_mapping_free(hp_mapping_table *table, uint32_t number);

/* To rebuild the table: empty it, put back each mapping under its number as often as a flow refers to it, then
 * list what is free. False when another mapping has that number. */
void hp_mapping_clear(hp_mapping_table *table);
bool hp_mapping_restore(hp_mapping_table *table, uint32_t number, const hp_mapping *mapping);
void hp_mapping_restored(hp_mapping_table *table);

#endif
