/* coalesce.c: packets of one flow that follow each other leave as one write.
 *
 * Theory of operation. A write to a TUN costs a microsecond or two, mostly independent of its size, and so does all
 * that the kernel behind it does with a packet. So packets that follow each other in one flow are written as one
 * super-packet (TSO, USO): the first with its headers, then the payloads of the others, gathered by writev() from the
 * buffers that they were received in. Which packets may be joined, so that the receiver gets what was sent, stands in
 * gso.c.
 *
 * Order is kept within a flow and nothing else: a packet that cannot join ends its flow's run and goes behind it. Runs
 * of many flows are open at a time, in a small table of sets; where too many meet they end each other's runs, which
 * costs writes and nothing else. All runs end with hp_coalesce_flush(), so a packet never waits for a later batch.
 *
 * TUNs take super-packets whatever TUNSETOFFLOAD said (that is about reading), but kernels before 6.2 know no USO, and
 * some before 6.9 no more than 64 datagrams of one super-packet: they refuse it with EINVAL. Then the first packet gets
 * its own headers back, all leave by themselves, and it is remembered of the link.
 */
#include "coalesce.h"

#include <errno.h>
#include <stdlib.h>

_Static_assert((int)HP_COALESCE_PACKETS <= (int)HP_BATCH, "hp_chain_vector() promises HP_BATCH elements");

int hp_coalesce_open(hp_coalescer *coalescer, const hp_buffers *buffers, uint32_t max_links, hp_io *io,
                     void (*write)(hp_io *io, uint32_t head)) {
  *coalescer = (hp_coalescer){.buffers = buffers, .io = io, .write = write, .max_links = max_links};
  coalescer->refuses = calloc(max_links, sizeof *coalescer->refuses);
  return coalescer->refuses ? 0 : -1;
}

void hp_coalesce_close(hp_coalescer *coalescer) {
  free(coalescer->refuses);
  coalescer->refuses = NULL;
}

void hp_coalesce_link(hp_coalescer *coalescer, uint32_t link) { coalescer->refuses[link] = 0; }

static uint8_t refusal(uint8_t protocol) { return protocol == HP_TCP ? HP_REFUSES_TCP : HP_REFUSES_UDP; }

static bool same_flow(const hp_piece *a, const hp_piece *b) {
  return a->addresses == b->addresses && a->ports == b->ports && a->channel == b->channel;
}

static hp_run *set_of(hp_coalescer *coalescer, const hp_piece *piece) {
  uint64_t mix = (piece->addresses ^ ((uint64_t)piece->ports << 32 | piece->channel)) * 0x9e3779b97f4a7c15u;
  return &coalescer->runs[(mix >> (64 - HP_COALESCE_BITS)) * HP_COALESCE_WAYS]; /* the bits that all others reach */
}

/* The flow's open run, or NULL. */
static hp_run *find(hp_run *set, const hp_piece *piece) {
  for (int way = 0; way < HP_COALESCE_WAYS; way++)
    if (set[way].joined.packets && same_flow(&set[way].first, piece))
      return &set[way];
  return NULL;
}

static void end_run(hp_coalescer *coalescer, hp_run *run, uint8_t ends) {
  uint8_t *data = hp_buffer(coalescer->buffers, run->head);
  hp_buffer_note *note = &coalescer->buffers->notes[run->head];
  if (run->joined.packets > 1) {
    memcpy(hp_buffer_spare(coalescer->buffers, run->head), data, HP_GSO_HEADERS);
    hp_gso_write(data, &run->first, run->joined.payload, ends);
  }
  note->packets = (uint16_t)run->joined.packets;
  note->headers = (uint16_t)(HP_VNET_HEADER + run->first.headers);
  run->joined.packets = 0;
  coalescer->write(coalescer->io, run->head);
}

/* Whether the checksums of both may be made anew. */
static bool sound(const hp_coalescer *coalescer, hp_run *run, hp_piece *piece, uint32_t number) {
  if (!run->first.sound) /* looked at when a second one comes: most runs have one packet */
    run->first.sound = hp_gso_checksum_right(hp_buffer(coalescer->buffers, run->head), &run->first);
  if (run->first.sound && !piece->sound)
    piece->sound = hp_gso_checksum_right(hp_buffer(coalescer->buffers, number), piece);
  return run->first.sound && piece->sound;
}

static bool join(hp_coalescer *coalescer, hp_run *run, hp_piece *piece, uint32_t number) {
  const hp_buffers *buffers = coalescer->buffers;
  if (run->joined.segments + piece->segments > run->most ||
      !hp_gso_follows(&run->first, hp_buffer(buffers, run->head), &run->joined, piece, hp_buffer(buffers, number)) ||
      !sound(coalescer, run, piece, number))
    return false;
  buffers->notes[run->tail].next = number;
  run->tail = number;
  run->joined.packets++;
  run->joined.segments += piece->segments;
  run->joined.payload += piece->payload;
  if (run->joined.packets == HP_COALESCE_PACKETS || piece->last || piece->payload % run->first.segment)
    end_run(coalescer, run, piece->ends);
  return true;
}

static uint32_t most_segments(const hp_coalescer *coalescer, const hp_piece *piece) {
  if ((uint8_t)piece->channel == HP_TCP)
    return UINT32_MAX;
  bool fewer = coalescer->refuses[piece->channel >> 8] & HP_REFUSES_LONG;
  return fewer ? HP_GSO_UDP_SEGMENTS_ONCE : HP_GSO_UDP_SEGMENTS;
}

static void open_run(hp_coalescer *coalescer, hp_run *set, const hp_piece *piece, uint32_t number) {
  if (coalescer->opened == HP_COALESCE_ORDER)
    hp_coalesce_flush(coalescer);
  hp_run *run = set;
  for (int way = 0; way < HP_COALESCE_WAYS && run->joined.packets; way++)
    run = &set[way];
  if (run->joined.packets) { /* all taken: any will do, as long as they take turns */
    run = &set[number % HP_COALESCE_WAYS];
    end_run(coalescer, run, 0);
  }
  *run = (hp_run){.first = *piece,
                  .head = number,
                  .tail = number,
                  .most = most_segments(coalescer, piece),
                  .joined = {1, piece->segments, piece->payload}};
  coalescer->order[coalescer->opened++] = (uint16_t)(run - coalescer->runs);
}

static void end_runs_of(hp_coalescer *coalescer, uint32_t link) {
  for (uint32_t i = 0; i < coalescer->opened; i++) {
    hp_run *run = &coalescer->runs[coalescer->order[i]];
    if (run->joined.packets && run->first.channel >> 8 == link)
      end_run(coalescer, run, 0);
  }
}

/* True when a run has taken the packet. */
static bool take(hp_coalescer *coalescer, const hp_packet *packet) {
  hp_piece piece;
  hp_gso_fit fit = hp_gso_inspect(packet->data, packet->length, packet->link, &piece);
  if (fit == HP_GSO_UNKNOWN)
    end_runs_of(coalescer, packet->link);
  if (fit == HP_GSO_UNKNOWN || fit == HP_GSO_APART)
    return false;
  hp_run *set = set_of(coalescer, &piece), *run = find(set, &piece);
  if (run && fit == HP_GSO_JOINS && join(coalescer, run, &piece, packet->buffer))
    return true;
  if (run)
    end_run(coalescer, run, 0);
  if (fit != HP_GSO_JOINS || piece.last || coalescer->refuses[packet->link] & refusal((uint8_t)piece.channel))
    return false;
  open_run(coalescer, set, &piece, packet->buffer);
  return true;
}

void hp_coalesce_send(hp_coalescer *coalescer, const hp_packet *packet) {
  hp_buffer_note *note = &coalescer->buffers->notes[packet->buffer];
  *note = (hp_buffer_note){.next = HP_NO_BUFFER, .length = packet->length, .link = packet->link, .packets = 1};
  if (packet->link >= coalescer->max_links || !take(coalescer, packet))
    coalescer->write(coalescer->io, packet->buffer);
}

void hp_coalesce_flush(hp_coalescer *coalescer) {
  uint32_t opened = coalescer->opened;
  coalescer->opened = 0;
  for (uint32_t i = 0; i < opened; i++) {
    hp_run *run = &coalescer->runs[coalescer->order[i]];
    if (run->joined.packets)
      end_run(coalescer, run, 0);
  }
}

bool hp_coalesce_refused(hp_coalescer *coalescer, uint32_t head, int code) {
  const hp_buffer_note *note = &coalescer->buffers->notes[head];
  if (note->packets < 2 || code != EINVAL)
    return false;
  uint8_t *data = hp_buffer(coalescer->buffers, head), protocol = data[HP_VNET_HEADER + 9];
  bool many = protocol == HP_UDP && hp_gso_datagrams(data) > HP_GSO_UDP_SEGMENTS_ONCE;
  memcpy(data, hp_buffer_spare(coalescer->buffers, head), HP_GSO_HEADERS);
  coalescer->refuses[note->link] |= many ? HP_REFUSES_LONG : refusal(protocol);
  return true;
}
