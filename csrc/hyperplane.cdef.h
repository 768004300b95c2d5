/* hyperplane.cdef.h: the whole contract between the engine (C) and Python.
 *
 * Plain declarations only: cffi parses this file as it stands, hyperplane.h wraps it for C. So it
 * holds no preprocessor condition, no attribute and no inline function.
 *
 * Units and order, everywhere in this file: IPv4 addresses are 32-bit numbers in host byte order
 * (198.18.0.2 is 0xc6120002), ports and ICMP ids are host order too; times are milliseconds; sizes
 * are bytes. A link number names a tunnel or an ENI, both from one space, for as long as it lives.
 */

/* Sizes that both sides rely on. */
enum {
  HP_BATCH = 64,           /* packets translated together */
  HP_VNET_HEADER = 10,     /* struct virtio_net_hdr before every packet, linux/virtio_net.h */
  HP_BUFFER = 69632,       /* one receive buffer: header + 65,535 bytes, and room to reply in place */
  HP_ENI_ADDRESSES = 8,    /* addresses of one ENI */
  HP_SLICE_PORTS = 1024,   /* outside ports leased together */
  HP_SLICES = 63,          /* slices of one ENI address: ports 1024-65535 */
  HP_MAX_FLOWS = 33554430, /* a flow number has 25 bits in an index slot */
  HP_MAX_LINKS = 16777214, /* a link number has 24 bits in a flow key */
  HP_MAX_RULES = 1024,     /* rules of one ENI's security groups together */
  HP_REASONS = 48,         /* room for drop reasons in a counter block */
  HP_REGION_NAME = 32,     /* room for the name of a region, 0 at its end included */
  HP_MAX_REGIONS = 250,    /* an engine's regions, whatever its workers: fit one SCM_RIGHTS message */
  HP_MAX_WORKERS = 16,
  HP_ERROR_TEXT = 240
};

/* What becomes of a packet. */
enum {
  HP_DROP = 0,    /* counted under its reason */
  HP_FORWARD = 1, /* leaves by .link, translated */
  HP_REPLY = 2    /* dropped and counted; the buffer now holds our answer (RST or ICMP) to its sender */
};

/* Why a packet was dropped. One word for one reason, here, in metrics, in the CLI and in docs:
 * hp_reason_name() gives the word. Append only: the numbers are kept in counters. */
typedef enum hp_reason {
  HP_REASON_NONE = 0,
  HP_MALFORMED_IP,         /* version, header length or total length lies */
  HP_MALFORMED_L4,         /* TCP, UDP or ICMP header cut short, or its own lengths lie */
  HP_BAD_VNET_HEADER,      /* checksum offsets or GSO fields do not fit the packet */
  HP_BAD_CHECKSUM,         /* IPv4 header or ICMP checksum wrong (RFC 1812 5.2.2, RFC 5508 REQ-3) */
  HP_TRUNCATED,            /* the packet filled the whole receive buffer */
  HP_FRAGMENT,             /* IPv4 fragment */
  HP_UNSUPPORTED_IPV6,     /* IPv6 packet */
  HP_UNSUPPORTED_PROTOCOL, /* neither TCP, UDP nor ICMP */
  HP_UNSUPPORTED_ICMP,     /* ICMP type that a NAT does not translate */
  HP_SPOOFED_SOURCE,       /* source is not the environment's own address */
  HP_INVALID_DESTINATION,  /* multicast, broadcast, loopback, or the ENI itself */
  HP_SECURITY_GROUP,       /* no egress rule allows it */
  HP_NO_FLOW,              /* from outside, without a flow: nothing may connect in */
  HP_ICMP_NO_FLOW,         /* ICMP error about a packet that no flow sent */
  HP_TCP_OUT_OF_STATE,     /* from inside, TCP without SYN and without a flow */
  HP_FLOW_TABLE_FULL,      /* --max-flows reached */
  HP_FLOW_QUOTA,           /* the tunnel's own limit of flows reached */
  HP_PORTS_EXHAUSTED,      /* every outside port that the tunnel's worker can have is taken for this destination */
  HP_TTL_EXCEEDED,         /* TTL reached 0 here */
  HP_FRAGMENTATION_NEEDED, /* larger than the next link's MTU with DF set */
  HP_LINK_DETACHED,        /* the link it came from or should leave by is gone or drained */
  HP_OUTPUT_FULL,          /* the outgoing link's queue had no room */
  HP_OUTPUT_ERROR,         /* the kernel refused the write */
  HP_SOURCE_ROUTE,         /* IPv4 source route option, a way round the rules (RFC 7126 4.3 and 4.4) */
  HP_HANDOVER_FULL,        /* it arrived at another worker than its flow's, and that one's ring had no room */
  HP_READ_FAILED,          /* reading from the link failed: what it had for us, if anything, is lost */
  HP_LINK_LOCAL,           /* for its own link only (RFC 4291 2.7, RFC 5771 4, RFC 2131): ignored, not a drop */
  HP_REASON_COUNT
} hp_reason;

enum { HP_LINK_FREE = 0, HP_LINK_TUNNEL = 1, HP_LINK_ENI = 2 };
enum { HP_IO_AUTO = 0, HP_IO_URING = 1, HP_IO_EPOLL = 2 };
enum { HP_DRAIN_CLOSE = 1, HP_DRAIN_RESET = 2 };
enum { HP_UDP_ENDPOINT_INDEPENDENT = 0, HP_UDP_ENDPOINT_DEPENDENT = 1 };

/* Connection states as flows() shows them. */
enum {
  HP_STATE_OPENING = 0,     /* TCP: SYN from inside, and its answer not acknowledged yet */
  HP_STATE_ESTABLISHED = 1, /* TCP: SYN seen from both sides, and an ACK from inside */
  HP_STATE_CLOSING = 2,     /* TCP: FIN seen from both sides */
  HP_STATE_RESET = 3,       /* TCP: a valid RST seen */
  HP_STATE_ACTIVE = 4       /* UDP and ICMP */
};

/* Idle times after which a flow ends. 0 means the default that stands here. */
typedef struct hp_timers {
  uint32_t tcp_established; /* 7,440,000: 2 h 4 min, RFC 5382 REQ-5 */
  uint32_t tcp_transitory;  /* 240,000: opening, SYN|ACK or not, RFC 5382 REQ-5 */
  uint32_t tcp_closing;     /* 240,000: after FIN from both sides or RST, RFC 5382 REQ-5, RFC 7857 2.2 */
  uint32_t udp;             /* 300,000: RFC 4787 REQ-5; refreshed from inside only, REQ-6 */
  uint32_t dns;             /* 30,000: UDP to port 53 */
  uint32_t icmp;            /* 60,000: RFC 5508 REQ-2 */
} hp_timers;

typedef struct hp_config {
  uint32_t max_flows;       /* 1..HP_MAX_FLOWS */
  uint32_t max_mappings;    /* 0: as many as there can be, at most max_flows */
  uint32_t max_links;       /* tunnels and ENIs together, 2..HP_MAX_LINKS */
  uint32_t max_addresses;   /* ENI addresses in all */
  uint32_t drop_records;    /* the drop ring's length, rounded up to a power of two */
  uint32_t buffers;         /* receive buffers per group, a power of two; 0: 256 */
  uint32_t io;              /* HP_IO_* */
  uint32_t refusal_rate;    /* RSTs and ICMP errors that we send per second and tunnel; 0: 100 */
  uint32_t port_quarantine; /* ms before the port of an ended mapping is given out again; 0: 30,000 */
  uint32_t huge_pages;      /* 1: ask for them, go on without */
  uint32_t spin;            /* us that a worker looks for packets before it sleeps, where that pays; up to 1,000 */
  uint64_t seed;            /* 0: random hash keys and ports (use this); else reproducible, for tests */
  uint32_t workers;         /* threads, each with its share of max_flows and max_mappings, 1..HP_MAX_WORKERS; 0: 1 */
  uint32_t pin_count;       /* 0: the kernel places them */
  uint16_t pins[16];        /* HP_MAX_WORKERS: worker n runs on CPU pins[n % pin_count] */
} hp_config;

typedef struct hp_eni_config {
  uint32_t addresses[8]; /* HP_ENI_ADDRESSES */
  uint32_t address_count;
  uint32_t mtu;         /* of the ENI's device: the path's MTU as far as we know it */
  uint32_t udp_mapping; /* HP_UDP_* */
  uint32_t silent;      /* 1: refusals are not told to the sender */
  hp_timers timers;
  uint32_t queue_count; /* further queues of the device: workers - 1, so that each has its own; or 0 */
  int queues[15];       /* HP_MAX_WORKERS - 1: descriptors of the same kind as the first; its order is the device's */
  uint32_t steered;     /* 1: .steering is the map of the program that steers the device's packets to queues */
  int steering;         /* descriptor of a BPF array, which the engine maps: see steer.h */
} hp_eni_config;

typedef struct hp_tunnel_config {
  uint32_t eni;     /* link number of the ENI */
  uint32_t address; /* the environment's own (inside) address */
  uint32_t mtu;
  uint32_t max_flows; /* 0: no limit but the engine's */
  uint32_t trusted;   /* the descriptor is hp_device_make()'s, and nobody else has had it: it need not be checked */
} hp_tunnel_config;

/* One egress rule; a packet passes when any rule of its ENI matches. */
typedef struct hp_rule {
  uint32_t network;
  uint32_t mask;
  uint16_t port_low; /* TCP, UDP: destination ports; ICMP: the type, or 0-255 for any */
  uint16_t port_high;
  uint8_t protocol; /* 6, 17, 1, or 0 for any */
  uint8_t reserved[3];
} hp_rule;

/* Counters of one link. "in" is what arrived from it, "out" what left by it. Packets are wire packets:
 * a super-segment counts as the number of its segments. Drops are counted on the link that the packet
 * came from, output_full and output_error on the one it was for. */
typedef struct hp_counters {
  uint64_t packets_in;
  uint64_t bytes_in;
  uint64_t packets_out;
  uint64_t bytes_out;
  uint64_t flows_created;
  uint64_t flows_ended;
  uint64_t flows;         /* live now */
  uint64_t refusals_sent; /* RSTs and ICMP errors that we sent back */
  uint64_t gone;          /* 1: the device behind the link is no more */
  uint64_t read_error;    /* errno of the latest read, while reading fails; 0: it works */
  uint64_t mended;        /* how often its header or offloads, which others had changed, were set again */
  uint64_t drops[48];     /* HP_REASONS, by hp_reason; that of HP_LINK_LOCAL counts what was ignored */
} hp_counters;

/* One dropped packet, newest last in the ring. */
typedef struct hp_drop {
  uint64_t number; /* counts from 1; a gap means records overwritten before they were read */
  uint64_t time;   /* CLOCK_BOOTTIME ms */
  uint32_t link;
  uint32_t source;
  uint32_t destination;
  uint16_t source_port; /* ICMP: type */
  uint16_t destination_port;
  uint16_t length;
  uint8_t protocol;
  uint8_t reason;
  uint32_t reserved;
} hp_drop;

/* One flow as a reader sees it. */
typedef struct hp_flow_info {
  uint64_t id;          /* generation << 32 | flow number: never the same for two flows */
  uint64_t packets_out; /* environment -> VPC */
  uint64_t bytes_out;
  uint64_t packets_in;
  uint64_t bytes_in;
  uint64_t started;   /* CLOCK_BOOTTIME ms */
  uint64_t last_seen; /* CLOCK_BOOTTIME ms, either direction */
  uint64_t expires;   /* CLOCK_BOOTTIME ms, if nothing more is seen */
  uint32_t tunnel;
  uint32_t eni;
  uint32_t inside;
  uint32_t outside; /* the ENI address */
  uint32_t remote;
  uint16_t inside_port; /* ICMP: the id */
  uint16_t outside_port;
  uint16_t remote_port; /* ICMP: 0 */
  uint8_t protocol;
  uint8_t state; /* HP_STATE_* */
} hp_flow_info;

/* One packet for hp_translate(): a virtio_net_hdr, then IPv4. The buffer is changed in place. */
typedef struct hp_packet {
  uint8_t *data;
  uint32_t length;   /* header included */
  uint32_t capacity; /* a reply quotes what fits */
  uint32_t link;     /* in: arrived from; out: leaves by */
  uint16_t verdict;  /* HP_DROP, HP_FORWARD, HP_REPLY */
  uint16_t reason;   /* hp_reason of a drop or reply */
  uint32_t buffer;   /* the I/O layer's own */
  uint32_t reserved;
} hp_packet;

typedef struct hp_error {
  int code;       /* errno, or 0 */
  char text[240]; /* HP_ERROR_TEXT: what failed and what to do, one line */
} hp_error;

typedef struct hp_memory {
  uint64_t bytes;      /* of all regions */
  uint64_t huge_bytes; /* of these on huge pages */
  uint32_t bytes_per_flow;
  uint32_t regions;
} hp_memory;

typedef struct hp_worker_status {
  uint64_t flows;
  uint64_t loops;   /* turns of its loop */
  uint64_t batches; /* of these with packets */
  uint64_t packets; /* received, as read from descriptors */
  uint64_t writes;
  uint64_t handed_over; /* packets that it received for other workers */
  uint64_t taken_over;  /* packets that others received for it */
} hp_worker_status;

/* Sums over all workers, and each by itself. */
typedef struct hp_status {
  uint64_t flows;
  uint64_t flows_high; /* flow numbers that have been used */
  uint64_t mappings;
  uint64_t dense_destinations; /* destinations short of ports */
  uint64_t loops;              /* turns of the workers' loops */
  uint64_t batches;            /* of these with packets */
  uint64_t packets;            /* received, as read from descriptors */
  uint64_t writes;             /* writes to descriptors */
  uint64_t no_buffers;         /* receives ended for want of a buffer */
  uint64_t unreadable;         /* reads that failed */
  uint64_t failing;            /* queues of links that cannot be read now: read_error tells why */
  uint64_t mended;             /* sum over all links, those that were removed too */
  uint32_t io;                 /* HP_IO_* in use, HP_IO_AUTO when not running */
  uint32_t running;
  uint32_t workers;
  uint32_t reserved;
  hp_worker_status worker[16]; /* HP_MAX_WORKERS */
} hp_status;

/* A memfd that holds part of an engine's state. */
typedef struct hp_region_fd {
  char name[32]; /* HP_REGION_NAME */
  int fd;
} hp_region_fd;

typedef struct hp_engine hp_engine;

/* Life. Functions that return int give 0 or a link number, or -1 with *error filled. Those that
 * change something may be called from any thread while the worker runs: they hand a command to it
 * and return when it has been carried out. */
hp_engine *hp_engine_new(const hp_config *config, hp_error *error);
void hp_engine_free(hp_engine *engine);
int hp_engine_start(hp_engine *engine, hp_error *error);
void hp_engine_stop(hp_engine *engine);

/* Regions of an engine, which stay the engine's to close: at most `room` of them, returns how many there are. */
uint32_t hp_engine_regions(hp_engine *engine, hp_region_fd *regions, uint32_t room);
/* A stopped engine that goes on with the regions of one whose process is dead: repaired, all counts and numbers
 * as they were. Sizes in config must be the predecessor's, and other regions are refused; descriptors are duplicated.
 * Its links have neither descriptors nor rules until they are claimed. */
hp_engine *hp_engine_inherit(const hp_config *config, const hp_region_fd *regions, uint32_t count, hp_error *error);
/* Gives a link of inherited regions its descriptor and its configuration; addresses (and a tunnel's ENI) must be
 * those that it has, the ENI is claimed first. Each link once; links that were added need no claim. */
int hp_eni_claim(hp_engine *engine, uint32_t link, const hp_eni_config *config, int fd, hp_error *error);
int hp_tunnel_claim(hp_engine *engine, uint32_t link, const hp_tunnel_config *config, int fd, hp_error *error);
/* Removes every link that nobody claimed; returns how many. */
int hp_engine_abandon(hp_engine *engine, hp_error *error);
/* Maps another process's regions for reading, alive or dead: only the functions under "Reading" and
 * hp_engine_free() work on the result, the others fail. */
hp_engine *hp_reader_new(const hp_config *config, const hp_region_fd *regions, uint32_t count, hp_error *error);

/* An fd of -1 makes a link without a device, for hp_translate(). The engine never closes an fd. */
int hp_eni_add(hp_engine *engine, const hp_eni_config *config, int fd, hp_error *error);
int hp_eni_rules(hp_engine *engine, uint32_t eni, const hp_rule *rules, uint32_t count, hp_error *error);
int hp_tunnel_add(hp_engine *engine, const hp_tunnel_config *config, int fd, hp_error *error);
int hp_link_remove(hp_engine *engine, uint32_t link, hp_error *error);
/* Prepares a tunnel's end; it stays until it is removed, and there is no way back. HP_DRAIN_CLOSE: it takes no new
 * flow, what exists goes on. HP_DRAIN_RESET: its packets are refused in both directions, both sides of each TCP
 * connection are sent an RST within 0.1 s, and after 0.3 s or so all flows have ended: hp_counters.flows says when. */
int hp_link_drain(hp_engine *engine, uint32_t link, uint32_t how, hp_error *error);

/* The packet path in memory: what the worker runs, on packets of the caller. now is CLOCK_BOOTTIME
 * ms and never goes back; only for an engine that is not started. count is any number. */
int hp_translate(hp_engine *engine, hp_packet *packets, uint32_t count, uint64_t now, hp_error *error);
/* Ends what is idle at that time, the whole table; returns how many flows ended. */
int hp_sweep(hp_engine *engine, uint64_t now, hp_error *error);
/* The worker that such a packet is for; 0 also when it is for none. */
uint32_t hp_packet_worker(hp_engine *engine, const hp_packet *packet);
uint64_t hp_now(void);

/* Reading. Never stops the worker; safe from any thread. */
uint32_t hp_flows(hp_engine *engine, uint32_t *cursor, hp_flow_info *flows, uint32_t room);
uint32_t hp_drops(hp_engine *engine, uint64_t *cursor, hp_drop *drops, uint32_t room);
int hp_link_counters(hp_engine *engine, uint32_t link, hp_counters *counters, hp_error *error);
/* Live flows of a link, draining or not; 0 for a number that is no link. */
uint32_t hp_link_flows(hp_engine *engine, uint32_t link);
/* When the link of that number was added, CLOCK_BOOTTIME ms; 0 for a number that never was one. */
uint64_t hp_link_since(hp_engine *engine, uint32_t link);
void hp_engine_status(hp_engine *engine, hp_status *status);
void hp_engine_memory(hp_engine *engine, hp_memory *memory);
const char *hp_reason_name(int reason);
const char *hp_io_name(int io);
/* "" or why that I/O engine cannot run here. */
const char *hp_io_probe(int io);

/* An environment's TUN, made and configured: no part of the engine. */
enum {
  HP_DEVICE_OFFLOADS = 2,
  HP_DEVICE_BATCH = 16384, /* bytes of messages, at most */
  /* Where it failed. */
  HP_DEVICE_ENTER = 1, /* its namespace: no device was made */
  HP_DEVICE_OPEN,      /* no device was made */
  HP_DEVICE_NETLINK    /* sending the batch and getting the answers; a refused message is no failure */
};

typedef struct hp_device {
  char name[16];
  uint32_t offloads[2]; /* TUN_F_, best first: the first set that the kernel takes */
  const uint8_t *batch; /* rtnetlink messages, numbered from 1 on, of which the last asks for an answer */
  uint32_t batch_length;
  uint32_t messages;
  const uint32_t *places; /* where in the batch the device's index is to be written */
  uint32_t place_count;
  int environment; /* descriptor of its network namespace; -1: the one that the calling thread is in */
  int home;        /* that of the calling thread, when it is another one */
  /* Filled in. */
  uint8_t refusals[1024]; /* the kernel's answers to messages that it refused, the first ones */
  uint32_t refusals_length;
  int fd;   /* -1 when no device was made; else the caller's to close, also after a failure */
  int step; /* and errno: where and why it failed */
  int error;
  uint64_t opening_ns;
  uint64_t configuring_ns;
} hp_device;

/* Makes and configures it. 0, or -1 with .step and .error. The calling thread is in its own namespace again; the
 * process ends when it cannot return there. */
int hp_device_make(hp_device *device);

/* ---- For benchmarks: the packet path alone, in an engine of its own ---- */

enum { HP_BENCH_UDP = 0, HP_BENCH_TCP = 1 }; /* 64-byte datagrams; data segments of 64 to 1400 bytes and ACKs */

/* `flows` flows of 1,024 tunnels (fewer when flows are), in an engine and in a bare table of the flow table's shape. */
typedef struct hp_bench hp_bench;
hp_bench *hp_bench_new(uint32_t flows, uint32_t traffic, int huge_pages, hp_error *error);
void hp_bench_free(hp_bench *bench);
/* ns per packet of what hp_translate() does, and of the bare table's lookup and rewrite, over the same `packets` random
 * packets of both directions. Packets are written anew for each batch; that time is taken off. A negative number and
 * *error when it cannot be done. */
double hp_bench_translate(hp_bench *bench, uint32_t packets, hp_error *error);
double hp_bench_table(hp_bench *bench, uint32_t packets, hp_error *error);
/* The engine's regions, and what it derives from them. */
void hp_bench_memory(hp_bench *bench, hp_memory *memory);
/* ns per flow made, from a SYN, in batches, in a table that holds `flows` others. dense: towards one destination where
 * 90 % of the ports are taken; else towards many. */
double hp_bench_create(uint32_t flows, int dense, uint32_t creations, int huge_pages, hp_error *error);
/* ns per flow and second that the sweep takes for flows that are in use, and ns for each that ends. */
double hp_bench_keep(uint32_t flows, int huge_pages, hp_error *error);
double hp_bench_end(uint32_t flows, int huge_pages, hp_error *error);
