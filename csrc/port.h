/* port.h: outside ports and ICMP ids of ENI addresses.
 *
 * The 64,512 ports of an address (1024-65535) are 63 slices of 1,024, each leased to the worker that uses
 * it: the one table that workers share, a byte per slice, changed by compare-and-swap. A worker takes some at first
 * and more when it runs short; when none is left it says so, and others give back what they can spare (slices.c).
 * Two ways to use a port:
 *
 * - Exclusive, for endpoint-independent mappings (RFC 4787 REQ-1): one bit per port and protocol. The
 *   port of an ended mapping stays taken for a while (quarantine), unless ports are short.
 * - Shared per destination (RFC 7857 section 3.2, port overlapping): a port is free towards a destination when
 *   the outside index has no flow with that key. Random probes find one at once while less than most
 *   are taken. When many probes in a row fail, the destination is dense: it gets a bitmap of ports known
 *   to be taken, which is filled by what the probes learn and makes the search exact: "exhausted"
 *   means that every single port is taken.
 */
#ifndef HP_PORT_H
#define HP_PORT_H

#include "flow.h"
#include "random.h"

enum {
  HP_PORT_FIRST = 1024,
  HP_PORT_COUNT = HP_SLICES * HP_SLICE_PORTS,
  HP_PORT_WORDS = HP_PORT_COUNT / 64,
  HP_SLICE_WORDS = HP_SLICE_PORTS / 64,
  HP_QUARANTINE = 65536 /* every port fits */
};
_Static_assert(HP_PORT_FIRST + HP_PORT_COUNT == 65536, "slices end with the last port");

enum { HP_PORTS_UDP = 0, HP_PORTS_ICMP = 1 };

typedef struct hp_quarantined {
  uint32_t since; /* low 32 bits of ms */
  uint16_t port;
  uint16_t reserved;
} hp_quarantined;

/* The leases of one ENI address. */
typedef struct hp_lease {
  uint8_t owner[64]; /* by slice: worker + 1, or 0: not leased */
  uint32_t wanted;   /* a bit for each worker that found none to lease */
  uint32_t eni;      /* link number; 0: this address number is free. The callers' */
} __attribute__((aligned(64))) hp_lease;
_Static_assert(offsetof(hp_lease, wanted) == 64, "the owners of an address are one line");

/* One ENI address as one worker uses it, in a region: a successor finds what is taken. Arrays of two: by HP_PORTS_*. */
typedef struct hp_address {
  uint32_t address;
  uint32_t eni;       /* link number; 0: this record is free */
  uint32_t leased;    /* slices in .slices */
  uint8_t slices[64]; /* those leased to this worker that it chooses from */
  uint64_t chosen;    /* the same as bits */
  uint64_t retiring;  /* leased, but to be given back when nobody uses them any more */
  uint32_t users[64]; /* flows by slice; counted when there are several workers */
  uint32_t head[2];   /* of the quarantine, counting up; taken modulo its length */
  uint32_t tail[2];
  uint64_t taken[2][HP_PORT_WORDS];
  hp_quarantined quarantine[2][HP_QUARANTINE];
} hp_address;

typedef struct hp_dense {
  hp_key destination; /* an outside key with port 0 as its own port */
  uint32_t known;     /* bits set */
  uint32_t next_free;
  uint64_t taken[HP_PORT_WORDS];
} hp_dense;

/* Before the addresses in their region. */
typedef struct hp_ports_shown {
  uint32_t dense; /* dense_live, for readers */
  uint32_t reserved[15];
} hp_ports_shown;

typedef struct hp_ports {
  hp_address *addresses; /* numbers below .count */
  hp_lease *leases;      /* the same for all workers */
  uint64_t **steering;   /* by address: worker by slice, for the ENI's program; NULL: none (steer.h) */
  uint32_t worker;       /* whose ports these are */
  uint32_t workers;
  bool in_need; /* a slice was wanted since this was cleared */
  hp_region lease_region;
  hp_ports_shown *shown;
  uint32_t count;
  uint32_t quarantine; /* ms */
  hp_region region;
  hp_dense *dense; /* derived from the flows, when a destination is short again: not worth a region */
  uint32_t dense_capacity, dense_used, dense_live, dense_free;
  hp_index dense_index;
  hp_random random;
} hp_ports;

/* first: the ports of worker 0, with which the leases are shared; NULL: these are. */
int hp_ports_open(hp_ports *ports, const hp_given *given, const hp_ports *first, uint32_t addresses, uint32_t max_flows,
                  uint32_t quarantine, uint64_t seed, hp_error *error);
static inline int hp_ports_new(hp_ports *ports, uint32_t addresses, uint32_t max_flows, uint32_t quarantine,
                               uint64_t seed, hp_error *error) {
  return hp_ports_open(ports, NULL, NULL, addresses, max_flows, quarantine, seed, error);
}
void hp_ports_free(hp_ports *ports);

/* Address numbers live as long as the ENI, and are the same for all workers: one is reserved, then each worker sets it
 * up for itself. HP_NONE when all records are in use. */
uint32_t hp_address_reserve(hp_ports *ports, uint32_t eni);
void hp_address_set(hp_ports *ports, uint32_t number, uint32_t eni, uint32_t address);
/* A worker's own record, when it can name the address no more. */
void hp_address_forget(hp_ports *ports, uint32_t number);
/* Tells the program of the ENI which slices are this worker's. */
void hp_address_steer(hp_ports *ports, uint32_t number);
/* The same in one, for a worker that is alone. */
uint32_t hp_address_add(hp_ports *ports, uint32_t eni, uint32_t address);
/* When no worker can name it any more: all its slices are free. */
void hp_address_remove(hp_ports *ports, uint32_t number);

/* Leases one more slice of an address, chosen at random; false when there is none, which is then wanted. */
bool hp_slice_lease(hp_ports *ports, uint32_t number);
void hp_slice_unwant(hp_ports *ports, uint32_t number);
static inline uint8_t hp_slice_owner(const hp_ports *ports, uint32_t number, uint32_t slice) {
  return __atomic_load_n(&ports->leases[number].owner[slice], __ATOMIC_RELAXED);
}
/* Takes a slice out of those that are chosen from. */
void hp_slice_retire(hp_ports *ports, uint32_t number, uint32_t slice);
/* Gives back a retiring slice that nobody uses. */
void hp_slice_release(hp_ports *ports, uint32_t number, uint32_t slice);
/* A successor's: chooses from the slices that the table names as this worker's. */
void hp_slices_recall(hp_ports *ports, uint32_t number);
/* Whether a port of a slice has a user or rests. */
bool hp_slice_in_use(hp_ports *ports, uint32_t number, uint32_t slice, uint64_t now);

/* An exclusive port of the parity of `like` if one is free (RFC 4787 REQ-4), 0 when all are taken. */
uint16_t hp_port_take(hp_ports *ports, uint32_t address, int kind, uint16_t like, uint64_t now);
/* Ends exclusive use: into quarantine. */
void hp_port_give(hp_ports *ports, uint32_t address, int kind, uint16_t port, uint64_t now);
/* To rebuild what is taken of an address: nothing is, and its leases are those that name their owner; then
 * every mapping claims its port; then what rests in quarantine and is not claimed is taken again. */
void hp_ports_clear(hp_ports *ports, uint32_t address);
void hp_port_claim(hp_ports *ports, uint32_t address, int kind, uint16_t port);
void hp_ports_restored(hp_ports *ports, uint32_t address);

/* A port that is free towards a destination: `key` is the outside key of the flow to be, and gets the
 * port. Returns it, or 0 when every port is taken there. guess: what hp_port_guess() said, or 0. */
uint16_t hp_port_choose(hp_ports *ports, uint32_t address, const hp_flow_table *flows, hp_key *key, uint16_t guess);
/* Draws a port that may be free there, and has the memory fetched that will tell; 0 when none may be. */
uint16_t hp_port_guess(hp_ports *ports, uint32_t address, const hp_flow_table *flows, const hp_key *key);
/* A flow with this outside key has ended. */
void hp_port_ended(hp_ports *ports, const hp_flow_table *flows, const hp_key *key);
/* Any port of a leased slice. */
uint16_t hp_port_random(hp_ports *ports, uint32_t address);

#endif
