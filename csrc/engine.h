/* engine.h: what an engine is made of: workers, the links that they share, and what is counted.
 *
 * A worker owns its flows, mappings, ports and counters: nothing on the packet path is shared, so nothing there is
 * locked. A tunnel belongs to one worker, and with it all its flows; an ENI has a queue for each. Links are shared
 * configuration: callers write them, one at a time (`caller`), workers only read. What a worker has to take part in
 * is a command that it carries out between two batches while the others go on.
 *
 * Everything that must outlive the process is in regions (memory.h): the tables, links, counters, drop ring and
 * hp_shared. What else stands here is derived from them by repair.c, or given anew by whoever claims a link.
 */
#ifndef HP_ENGINE_H
#define HP_ENGINE_H

#include <pthread.h>
#include <semaphore.h>

#include "io.h"
#include "keeper.h"
#include "mapping.h"
#include "packet.h"
#include "port.h"

/* A link: a tunnel or an ENI, as it was configured. Written while no worker can name it, but for .draining, .gone,
 * .read_error and .timers, which are single words, .drain, which is its worker's, and .mended, which is the keeper's.
 * The first line is what a packet touches. */
typedef struct hp_link {
  uint8_t kind;     /* HP_LINK_* */
  uint8_t draining; /* removed; its flows are being swept, its number is not given out yet */
  uint8_t drain;    /* tunnel: 0, HP_DRAIN_CLOSE or HP_DRAIN_RESET */
  uint8_t udp_mapping;
  uint32_t mtu;
  uint32_t eni;     /* tunnel: its ENI's link number */
  uint32_t address; /* tunnel: inside address; ENI: its first address */
  uint32_t pool;    /* tunnel: which address of the ENI it uses first (RFC 4787 REQ-2) */
  uint32_t max_flows;
  uint8_t ready;  /* set last when it is added, cleared first when it is freed: else it is half made */
  uint8_t gone;   /* the I/O engine says that the device is no more */
  uint8_t silent; /* ENI */
  uint8_t worker; /* tunnel: whose it is */
  uint32_t address_count;
  uint32_t addresses[HP_ENI_ADDRESSES]; /* hp_address numbers */
  hp_timers timers;
  uint32_t tunnels;    /* ENI: how many use it; the callers' */
  uint64_t since;      /* ms: added then */
  uint32_t read_error; /* errno, while reading from it fails */
  uint32_t mended;     /* how often the keeper has set its header or offloads */
} __attribute__((aligned(64))) hp_link;
_Static_assert(offsetof(hp_link, addresses) <= 64, "a packet touches one line of a link");

#define HP_DROP_WRITING UINT64_MAX /* the number of a drop record that is being written */

/* What one worker counts of a link. The first line is what a packet touches. */
typedef struct hp_link_stats {
  uint64_t packets_in, bytes_in, packets_out, bytes_out;
  uint64_t flows_created, flows_ended;
  uint32_t flows;      /* live, of a tunnel or an ENI */
  uint32_t tokens;     /* refusals that may be sent now */
  uint32_t tokens_at;  /* low 32 bits of ms when they were last filled up */
  uint32_t doubted_at; /* low 32 bits of ms when the keeper was last asked to look at it */
  /* second line */
  uint64_t refusals_sent;
  uint64_t drops[HP_REASONS];
} __attribute__((aligned(64))) hp_link_stats;
_Static_assert(offsetof(hp_link_stats, refusals_sent) == 64, "a packet touches one line of counters");

/* A table of rules never changes: another one takes its place. */
typedef struct hp_rules {
  uint32_t count;
  hp_rule rules[];
} hp_rules;

/* Pointers and descriptors of a link, which a region cannot hold. */
typedef struct hp_link_local {
  hp_rules *rules;    /* ENI; NULL: none */
  int *fds;           /* ENI with a queue for each worker: theirs; else NULL */
  uint64_t *steering; /* ENI: the map of the program that steers its return packets (steer.h), or NULL */
  int fd;             /* -1: none */
  uint32_t awaiting;  /* of a removed link: workers that may still name it */
  uint32_t next;      /* in hp_engine.returned */
  int claimed;        /* added or claimed in this process */
  int newcomer;       /* in its worker's set */
} hp_link_local;

enum { HP_LAYOUT = 3 }; /* of all regions together: another number for every change of what is in them */
#define HP_SHARED_MAGIC 0x6d656e616c707968u /* "hyplanem" */

/* The engine's own words, in a region. */
typedef struct hp_shared {
  uint64_t magic; /* written last */
  uint32_t layout;
  uint32_t bytes;   /* of this struct, as its compiler saw it */
  hp_config config; /* with defaults filled in */
  hp_memory memory;
  uint32_t links_used;
  uint32_t running;
  uint32_t io;         /* HP_IO_* in use */
  uint64_t drop_count; /* drop records begun so far, by all workers */
  uint64_t mended;     /* sum over all links; the keeper's */
} hp_shared;

/* A worker's own words, before its counters in their region. It writes them, readers load them. */
typedef struct hp_worker_words {
  uint64_t now; /* CLOCK_BOOTTIME ms of the latest batch or sweep */
  uint64_t loops, batches;
  uint64_t handed_over; /* packets that it received for another worker */
  uint64_t taken_over;  /* packets that another one received for it */
  hp_io_counters io_counters;
} __attribute__((aligned(64))) hp_worker_words;

struct hp_worker;

/* A change, carried out by a worker between two batches. */
typedef struct hp_command {
  int (*run)(struct hp_worker *worker, void *arguments, hp_error *error);
  void *arguments;
  hp_error *error;
  int result;
  sem_t done;
  struct hp_command *next;
} hp_command;

/* What the stages of a batch know of one packet: one cache line. */
enum { HP_LOOKUP_NONE = 0, HP_LOOKUP_PARSED = 1, HP_LOOKUP_STEADY = 2 /* of headers only the total */ };
typedef struct hp_item {
  hp_headers headers;
  uint8_t side;
  uint8_t lookup; /* HP_LOOKUP_*; if not NONE, what follows is set */
  uint16_t port;  /* that admission shall try first, or 0 */
  hp_key key;
  uint64_t hash;
  union {
    const hp_bucket *home; /* until stage 2: of the hash */
    hp_half *near;         /* from then on: of the flow that it may be, or NULL */
  };
} __attribute__((aligned(64))) hp_item;
_Static_assert(sizeof(hp_item) == 64, "an item is a cache line");

/* A removed link whose flows a worker has yet to end. */
typedef struct hp_leaving {
  uint32_t link;
  uint64_t pass; /* the sweep pass after which there is none left */
} hp_leaving;

typedef struct hp_worker {
  struct hp_engine *engine;
  hp_shared *shared;
  hp_worker_words *words;
  hp_link_stats *stats; /* by link number */
  hp_flow_table flows;
  hp_mapping_table mappings;
  hp_ports ports;
  uint64_t now; /* CLOCK_BOOTTIME ms, of this batch */
  uint32_t number;
  uint32_t workers; /* how many there are */
  /* sweep */
  uint32_t cursor;
  uint64_t pass; /* complete rounds */
  uint64_t swept_at;
  uint32_t resets;    /* flows that this turn of the loop has reset */
  uint32_t owed;      /* numbers that the last turn did not come to, because of them */
  uint32_t resetting; /* tunnels that have flows to reset */
  uint32_t leaving_count;
  int asked;   /* by other workers, for slices */
  bool taking; /* packets that others have handed over */
  hp_leaving *leaving;
  hp_region stats_region;
  uint32_t stale;          /* flows below this number are over: the clock has jumped */
  uint32_t drained_for[2]; /* .leaving_count and .resetting when .drained was made */
  bool drains;             /* .drained is not empty */
  uint64_t drained[1024];  /* by hp_flow_owner(): tunnels whose flows the sweep looks for */
  /* the loop */
  pthread_t thread;
  int wake;
  int newcomers;        /* newcomers.c: an epoll set, -1 while it does not run */
  bool newcomers_came;  /* some of them have something to say */
  uint32_t tunnels;     /* that it has; the callers' */
  hp_command *commands; /* the latest first */
  const hp_io_ops *io_ops;
  hp_io *io;
  sem_t started;
  hp_error start_error;
  int opened;
  hp_item items[HP_BATCH];
} hp_worker;

typedef struct hp_ring hp_ring;

struct hp_engine {
  hp_worker *workers;
  hp_ring *rings; /* from worker * workers + to worker: handover.h; NULL when there is one worker, or they do not run */
  hp_config config;    /* with defaults filled in */
  uint32_t flows_each; /* capacity of one worker's table: flow numbers of worker w begin at w times that */
  hp_shared *shared;
  hp_region shared_region;
  hp_link *links;  /* by link number; 0 is never used */
  uint32_t *gates; /* by link number: see hp_gate() */
  hp_link_local *local;
  hp_region link_region;
  hp_drop *drops;
  uint64_t drop_mask;
  hp_region drop_region;
  uint32_t *free_links; /* a stack of numbers to use again */
  uint32_t links_used;  /* numbers below this have been given out */
  uint32_t free_count;
  uint32_t returned; /* the first of a list of links that the last worker let go; workers put in, callers take out */
  uint32_t draining; /* links that wait for the sweep */
  hp_random random;  /* the callers' */
  pthread_mutex_t caller;
  hp_keeper keeper;
  int running;
  int stop;
  int read_only; /* a reader of what another process has */
};

static inline hp_link_stats *hp_stats(const hp_worker *worker, uint32_t link) { return &worker->stats[link]; }
/* It changes while workers look at it. */
static inline bool hp_link_draining(const hp_link *link) { return __atomic_load_n(&link->draining, __ATOMIC_RELAXED); }

/* A link in one word, so that a thousand of them fit a first-level cache: its kind << 16 | its MTU, 0 when packets do
 * not just pass: half made, removed, drained. Made from the link whenever that changes. */
static inline uint32_t hp_gate(const hp_engine *engine, uint32_t link) {
  return __atomic_load_n(&engine->gates[link], __ATOMIC_RELAXED);
}

/* engine.c */
/* Whether it is an engine of this process; -1 with *error filled when it is a reader. */
int hp_engine_check_own(const hp_engine *engine, hp_error *error);
/* Runs a change with the callers' lock held. */
int hp_engine_run(hp_engine *engine, int (*run)(hp_engine *, void *, hp_error *), void *arguments, hp_error *error);
/* With given regions, mapped and checked for what they should be, not repaired; NULL makes new ones. */
hp_engine *hp_engine_open(const hp_config *config, const hp_given *given, hp_error *error);

/* command.c: within such a change */
/* Has a worker carry out a command, between two batches while it runs. */
int hp_worker_run(hp_worker *worker, int (*run)(hp_worker *, void *, hp_error *), void *arguments, hp_error *error);
/* The worker's own: whether there are any; carries them out, in the order in which they came. */
bool hp_commands_wait(const hp_worker *worker);
void hp_commands_run(hp_worker *worker);

/* newcomers.c */
/* Before and after the worker runs. Failure: -1 with *error filled. */
int hp_newcomers_open(hp_worker *worker, hp_error *error);
void hp_newcomers_close(hp_worker *worker);
/* By a caller, while it runs: a tunnel that it shall receive from as soon as that has a packet. False when it cannot be
 * put into the set. */
bool hp_newcomer_add(const hp_worker *worker, uint32_t link);
/* The worker's own. False when the link is no newcomer (any more). */
bool hp_newcomer_remove(const hp_worker *worker, uint32_t link);
/* Receives from now on from those that have packets. */
void hp_newcomers_take(hp_worker *worker);

/* links.c, removal.c */
/* Has the link's word follow the link. */
void hp_gate_set(hp_engine *engine, uint32_t number);
/* Frees a link, whole or half made, that no worker can name. */
void hp_link_give(hp_engine *engine, uint32_t number);
/* Frees what this process keeps of a link. */
void hp_link_forget(hp_engine *engine, uint32_t number);
/* A pass is complete: lets go of the removed links that it was the last one for. */
void hp_links_left(hp_worker *worker);
/* Takes back the numbers that workers have let go. The callers'. */
void hp_links_collect(hp_engine *engine);
/* The descriptor that a worker sends to, and whether it receives from it. */
int hp_link_fd(const hp_engine *engine, uint32_t link, uint32_t worker, bool *receives);

/* repair.c */
/* Makes sound what a process left that died at any instruction, or what was never sound, and derives what this
 * process keeps for itself: free lists, indices, mappings, port use, counts of flows. */
void hp_engine_repair(hp_engine *engine);
/* Brings forward the deadlines that are later than the timers of now have them. */
void hp_deadlines_check(hp_worker *worker);

/* read.c */
/* The regions of an engine, in an order of their own: of each worker those of the flow table first, then the rest;
 * then the engine's. There are hp_region_count() of them. */
enum { HP_FLOW_REGIONS = 6, HP_WORKER_REGIONS = 12, HP_ENGINE_REGIONS = 4 };
_Static_assert(HP_MAX_WORKERS *HP_WORKER_REGIONS + HP_ENGINE_REGIONS <= HP_MAX_REGIONS, "every region has a place");
static inline uint32_t hp_region_count(uint32_t workers) { return workers * HP_WORKER_REGIONS + HP_ENGINE_REGIONS; }
uint32_t hp_all_regions(const hp_engine *engine, const hp_region *regions[HP_MAX_REGIONS]);
void hp_worker_regions(const hp_worker *worker, const hp_region *regions[HP_WORKER_REGIONS]);

/* worker.c */
int hp_workers_start(hp_engine *engine, hp_error *error);
void hp_workers_stop(hp_engine *engine);
/* Starts receiving from a link. The worker's own. */
int hp_worker_connect(hp_worker *worker, uint32_t link, hp_error *error);
/* Has a worker come back from receive(). */
void hp_worker_wake(const hp_worker *worker);

#endif
