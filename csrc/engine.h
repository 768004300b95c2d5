/* engine.h: what an engine is made of: links, one worker (more later), and what they count.
 *
 * A worker owns its flows, mappings, port slices and drop ring: nothing on the packet path is shared, so
 * nothing there is locked. Links are the engine's; the worker reads their configuration, which changes
 * only by commands that the worker itself carries out between two batches.
 *
 * Everything that must outlive the process is in regions (memory.h): the tables, links, drop ring and hp_shared.
 * What else stands here is derived from them by repair.c, or given anew by whoever claims a link.
 */
#ifndef HP_ENGINE_H
#define HP_ENGINE_H

#include <pthread.h>
#include <semaphore.h>

#include "io.h"
#include "mapping.h"
#include "packet.h"
#include "port.h"

/* A link: a tunnel or an ENI. The first cache line is what every packet touches. */
typedef struct hp_link {
  uint8_t kind;     /* HP_LINK_* */
  uint8_t draining; /* removed; its flows are being swept, its number is not given out yet */
  uint8_t drain;    /* tunnel: 0, HP_DRAIN_CLOSE or HP_DRAIN_RESET */
  uint8_t udp_mapping;
  uint32_t mtu;
  uint64_t packets_in, bytes_in, packets_out, bytes_out;
  uint32_t eni;     /* tunnel: its ENI's link number */
  uint32_t address; /* tunnel: inside address; ENI: its first address */
  uint32_t pool;    /* tunnel: which address of the ENI it uses first (RFC 4787 REQ-2) */
  uint32_t tunnels; /* ENI: how many use it */
  /* second line */
  uint32_t max_flows;
  uint32_t flows;      /* live, of a tunnel or an ENI */
  uint32_t tokens;     /* refusals that may be sent now */
  uint32_t tokens_at;  /* low 32 bits of ms when they were last filled up */
  uint64_t drain_pass; /* the sweep pass after which a removed link has no flow left */
  uint64_t flows_created, flows_ended, refusals_sent;
  uint64_t since; /* ms: added then */
  uint8_t ready;  /* set last when it is added, cleared first when it is freed: else it is half made */
  uint8_t gone;   /* the I/O engine says that the device is no more */
  uint8_t silent;
  uint32_t address_count;
  uint32_t addresses[HP_ENI_ADDRESSES]; /* hp_address numbers */
  hp_timers timers;
  uint64_t drops[HP_REASONS];
} __attribute__((aligned(64))) hp_link;
_Static_assert(offsetof(hp_link, max_flows) == 56, "a packet touches one line of a link");

/* Pointers and descriptors of a link, which a region cannot hold. */
typedef struct hp_link_local {
  hp_rule *rules; /* ENI */
  uint32_t rule_count;
  int fd;      /* -1: none */
  int claimed; /* added or claimed in this process */
} hp_link_local;

enum { HP_LAYOUT = 2 }; /* of all regions together: another number for every change of what is in them */
#define HP_SHARED_MAGIC 0x6d656e616c707968u /* "hyplanem" */

/* The engine's own words, in a region. The worker writes them, readers load them. */
typedef struct hp_shared {
  uint64_t magic; /* written last */
  uint32_t layout;
  uint32_t bytes;   /* of this struct, as its compiler saw it */
  hp_config config; /* with defaults filled in */
  hp_memory memory;
  uint32_t links_used;
  uint32_t running;
  uint32_t io;                               /* HP_IO_* in use */
  uint64_t now __attribute__((aligned(64))); /* CLOCK_BOOTTIME ms of the latest batch or sweep */
  uint64_t drop_count;                       /* drop records written so far */
  uint64_t loops, batches;
  hp_io_counters io_counters;
} hp_shared;

/* A change, carried out by the worker between two batches. */
typedef struct hp_command {
  int (*run)(struct hp_engine *engine, void *arguments, hp_error *error);
  void *arguments;
  hp_error *error;
  int result;
  sem_t done;
} hp_command;

enum { HP_COMMANDS = 64 };

/* What the stages of a batch know of one packet: one cache line. */
typedef struct hp_item {
  hp_headers headers;
  uint16_t candidates; /* slots of the home bucket whose tag fits */
  uint8_t side;
  uint8_t lookup; /* the key and hash are set */
  hp_key key;
  uint64_t hash;
} __attribute__((aligned(64))) hp_item;
_Static_assert(sizeof(hp_item) == 64, "an item is a cache line");

typedef struct hp_worker {
  struct hp_engine *engine;
  hp_shared *shared;
  hp_flow_table flows;
  hp_mapping_table mappings;
  hp_ports ports;
  uint64_t now; /* CLOCK_BOOTTIME ms, of this batch */
  /* sweep */
  uint32_t cursor;
  uint64_t pass; /* complete rounds */
  uint64_t swept_at;
  uint32_t resets; /* flows that this turn of the loop has reset */
  uint32_t owed;   /* numbers that the last turn did not come to, because of them */
  /* the drop ring */
  hp_drop *drops;
  uint64_t drop_mask;
  hp_region drop_region;
  /* the loop */
  pthread_t thread;
  const hp_io_ops *io_ops;
  hp_io *io;
  hp_item items[HP_BATCH];
} hp_worker;

struct hp_engine {
  hp_worker worker;
  hp_config config;
  hp_shared *shared;
  hp_region shared_region;
  hp_link *links; /* by link number; 0 is never used */
  hp_link_local *local;
  hp_region link_region;
  uint32_t *free_links; /* a stack of numbers to use again */
  uint32_t links_used;  /* numbers below this have been given out */
  uint32_t free_count;
  uint32_t draining;  /* links that wait for the sweep */
  uint32_t resetting; /* tunnels that have flows to reset */
  /* commands: many callers, one worker */
  pthread_mutex_t caller;
  hp_command *ring[HP_COMMANDS];
  uint32_t ring_head, ring_tail;
  int wake;
  int running;
  int stop;
  int read_only; /* a reader of what another process has */
  sem_t started;
  hp_error start_error;
};

/* engine.c */
/* Ends draining links whose pass has come. */
void hp_links_drained(hp_engine *engine);
int hp_engine_run(hp_engine *engine, int (*run)(hp_engine *, void *, hp_error *), void *arguments, hp_error *error);
/* With given regions, mapped and checked for what they should be, not repaired; NULL makes new ones. */
hp_engine *hp_engine_open(const hp_config *config, const hp_given *given, hp_error *error);

/* links.c */
/* Frees a link, whole or half made. */
void hp_link_give(hp_engine *engine, uint32_t number);

/* repair.c */
/* Makes sound what a process left that died at any instruction, or what was never sound, and derives what this
 * process keeps for itself: free lists, indices, mappings, port use, counts of flows. */
void hp_engine_repair(hp_engine *engine);
/* Brings forward the deadlines that are later than the timers of now have them. */
void hp_deadlines_check(hp_engine *engine);

/* read.c */
/* The regions of an engine, in an order of their own; those of the flow table first, then the rest. */
enum { HP_FLOW_REGIONS = 6 };
void hp_all_regions(const hp_engine *engine, const hp_region *regions[HP_REGIONS]);

/* worker.c */
int hp_worker_start(hp_engine *engine, hp_error *error);
void hp_worker_stop(hp_engine *engine);

#endif
