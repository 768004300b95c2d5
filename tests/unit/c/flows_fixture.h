/* flows_fixture.h: flows that say who they are: everything in one derives from its stamp, so that a torn or
 * half-made flow shows. */
#ifndef FLOWS_FIXTURE_H
#define FLOWS_FIXTURE_H

#include "invariants.h"

static inline hp_key key_of_stamp(uint32_t stamp, int side) {
  return (hp_key){.link = (1 + stamp % 3 + (uint32_t)side * 4) << 8 | HP_UDP,
                  .source = stamp,
                  .destination = ~stamp,
                  .ports = stamp * 0x9e3779b9u + (uint32_t)side};
}

/* Keeps the sequence of the inside half, as whoever fills in a taken flow must. */
static inline void fill_flow_from_stamp(hp_flow *flow, uint32_t stamp) {
  for (int side = 0; side < 2; side++) {
    hp_half *half = &flow->half[side];
    half->key = key_of_stamp(stamp, side);
    half->address = stamp;
    half->port = (uint16_t)stamp;
    half->delta_address = (uint16_t)(stamp >> 16);
    half->delta_full = (uint16_t)~stamp;
    half->flags = (uint8_t)stamp;
    half->scale = (uint8_t)(stamp >> 8);
    half->out_link = stamp;
    half->last_seen = stamp;
    half->acknowledged = stamp;
    half->packets = stamp;
    half->bytes = stamp;
  }
  flow->half[HP_OUTSIDE].sequence = stamp;
}

/* The flow is whole, and of one stamp. */
static inline bool flow_is_of_stamp(const hp_flow *flow, uint32_t stamp) {
  hp_flow expected;
  memset(&expected, 0, sizeof expected);
  fill_flow_from_stamp(&expected, stamp);
  expected.half[HP_INSIDE].sequence = flow->half[HP_INSIDE].sequence;
  return same_bytes(flow, &expected, sizeof expected);
}

static inline uint32_t find_stamp(const hp_flow_table *table, uint32_t stamp, int side) {
  hp_key key = key_of_stamp(stamp, side);
  return hp_flow_find(table, side, &key, hp_key_hash(table, &key));
}

/* Takes a number and publishes a flow of that stamp; HP_NONE when the table is full. */
static inline uint32_t add_stamp(hp_flow_table *table, uint32_t stamp) {
  uint32_t number = hp_flow_take(table);
  if (number == HP_NONE)
    return HP_NONE;
  fill_flow_from_stamp(&table->flows[number], stamp);
  return hp_flow_publish(table, number, stamp, 1000) ? number : HP_NONE;
}

#endif
