/* handover.c: see handover.h. */
#define _GNU_SOURCE
#include "handover.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "steer.h"

enum {
  RING = 1 << 20,   /* 15 super-segments, or 1,500 small packets */
  LEAST_ROOM = 640, /* of a packet: an ICMP error in its place quotes up to 548 bytes (RFC 1812 4.3.2.3) */
  SKIP = 0          /* a record of that length: the next one is at the beginning */
};

typedef struct record {
  uint32_t length; /* of the packet */
  uint32_t link;
} record;

/* Positions count up and are taken modulo RING; records do not wrap. */
struct hp_ring {
  uint64_t head;     /* the reader's: before it everything is free again */
  uint8_t apart[56]; /* from the writer's line */
  uint64_t tail;     /* the writer's */
  uint8_t *at;
  uint32_t woken; /* whether the reader knows of everything */
  uint32_t reserved;
} __attribute__((aligned(64)));

static hp_ring *ring_between(const hp_engine *engine, uint32_t from, uint32_t to) {
  return &engine->rings[from * engine->config.workers + to];
}

int hp_handover_open(hp_engine *engine, hp_error *error) {
  uint32_t workers = engine->config.workers, count = workers * workers;
  if (workers == 1)
    return 0;
  engine->rings = aligned_alloc(64, count * sizeof *engine->rings);
  if (!engine->rings)
    return hp_fail(error, ENOMEM, "no memory for the rings between %u workers", workers);
  memset(engine->rings, 0, count * sizeof *engine->rings);
  for (uint32_t i = 0; i < count; i++) {
    hp_ring *ring = &engine->rings[i];
    if (i / workers == i % workers)
      continue;
    ring->woken = 1;
    ring->at = mmap(NULL, RING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ring->at == MAP_FAILED) {
      ring->at = NULL;
      hp_handover_close(engine);
      return hp_fail(error, errno, "no memory for the rings between %u workers", workers);
    }
  }
  return 0;
}

void hp_handover_close(hp_engine *engine) {
  uint32_t count = engine->rings ? engine->config.workers * engine->config.workers : 0;
  for (uint32_t i = 0; i < count; i++)
    if (engine->rings[i].at)
      munmap(engine->rings[i].at, RING);
  free(engine->rings);
  engine->rings = NULL;
}

static uint32_t room_for(uint32_t length) {
  uint32_t bytes = length < LEAST_ROOM ? LEAST_ROOM : length;
  return (bytes + (uint32_t)sizeof(record) + 7) & ~7u;
}

static bool put(hp_ring *ring, const hp_packet *packet) {
  uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE), tail = ring->tail;
  uint32_t bytes = room_for(packet->length), at = tail % RING;
  uint32_t skipped = RING - at < bytes ? RING - at : 0;
  if (tail + skipped + bytes - head > RING)
    return false;
  record *one = (record *)(void *)(ring->at + at);
  if (skipped) { /* a multiple of 8, as all records: there is room for one */
    one->length = SKIP;
    one = (record *)(void *)ring->at;
  }
  *one = (record){.length = packet->length, .link = packet->link};
  memcpy(one + 1, packet->data, packet->length);
  __atomic_store_n(&ring->tail, tail + skipped + bytes, __ATOMIC_RELEASE);
  ring->woken = 0;
  return true;
}

bool hp_hand_over(hp_worker *worker, hp_packet *packet, const hp_headers *headers) {
  const hp_engine *engine = worker->engine;
  if (!engine->rings || worker->taking)
    return false;
  uint32_t owner = hp_steer(&worker->ports, &engine->links[packet->link], packet);
  if (owner == worker->number)
    return false;
  if (!put(ring_between(engine, worker->number, owner), packet)) {
    hp_drop_packet(worker, packet, headers, HP_HANDOVER_FULL);
    return true;
  }
  hp_link_stats *stats = hp_stats(worker, packet->link);
  stats->packets_in -= headers->segments;
  stats->bytes_in -= headers->total;
  worker->words->handed_over++;
  packet->verdict = HP_DROP; /* its buffer is free again */
  return true;
}

void hp_handover_wake(hp_worker *worker) {
  const hp_engine *engine = worker->engine;
  for (uint32_t to = 0; to < worker->workers; to++) {
    hp_ring *ring = ring_between(engine, worker->number, to);
    if (to == worker->number || ring->woken)
      continue;
    ring->woken = 1;
    hp_worker_wake(&engine->workers[to]);
  }
}

/* Up to HP_BATCH packets from *position on; moves it behind them. */
static uint32_t get(const hp_ring *ring, uint64_t *position, uint64_t tail, hp_packet *packets) {
  uint32_t count = 0;
  while (*position != tail && count < HP_BATCH) {
    uint32_t at = *position % RING;
    record *one = (record *)(void *)(ring->at + at);
    if (one->length == SKIP) {
      *position += RING - at;
      continue;
    }
    uint32_t bytes = room_for(one->length);
    packets[count++] = (hp_packet){.data = (uint8_t *)(one + 1),
                                   .length = one->length,
                                   .capacity = bytes - (uint32_t)sizeof(record),
                                   .link = one->link};
    *position += bytes;
  }
  return count;
}

static void take_from(hp_worker *worker, hp_ring *ring) {
  hp_packet packets[HP_BATCH];
  uint64_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE), position = ring->head;
  while (position != tail) {
    uint32_t count = get(ring, &position, tail, packets);
    hp_nat_batch(worker, packets, count);
    for (uint32_t i = 0; i < count; i++)
      if (packets[i].verdict != HP_DROP)
        worker->io_ops->inject(worker->io, packets[i].link, packets[i].data, packets[i].length);
    worker->words->taken_over += count;
    __atomic_store_n(&ring->head, position, __ATOMIC_RELEASE);
  }
}

void hp_handover_take(hp_worker *worker) {
  worker->taking = true; /* what is not this worker's either has no flow */
  for (uint32_t from = 0; from < worker->workers; from++)
    if (from != worker->number)
      take_from(worker, ring_between(worker->engine, from, worker->number));
  worker->taking = false;
}
