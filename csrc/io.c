/* io.c: choosing an I/O engine, and what both engines share.
 *
 * Theory of operation. Both engines hand out packets in buffers of HP_BUFFER bytes that lie in one
 * anonymous mapping: they hold packets, not state, so a successor process needs none of them and they
 * are no memfd. Pages come when a buffer is first used, small ones: see hp_buffers_new().
 *
 * HP_IO_AUTO means io_uring where the kernel has all that io_uring.c uses (6.7 for multishot reads) and
 * nothing forbids it, else epoll.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io_common.h"

enum {
  SPIN_PACKETS = 2,  /* in one turn, and */
  SPIN_BYTES = 4096, /* of them together: little */
  SPIN_TURNS = 16    /* in a row, before looking for packets may pay */
};

const char *hp_io_name(int io) {
  switch (io) {
  case HP_IO_AUTO:
    return "auto";
  case HP_IO_URING:
    return hp_io_uring.name;
  case HP_IO_EPOLL:
    return hp_io_epoll.name;
  default:
    return "unknown";
  }
}

const char *hp_io_probe(int io) {
  switch (io) {
  case HP_IO_AUTO: /* epoll is always there */
  case HP_IO_EPOLL:
    return hp_io_epoll.probe();
  case HP_IO_URING:
    return hp_io_uring.probe();
  default:
    return "no such I/O engine: choose auto, io_uring or epoll";
  }
}

const hp_io_ops *hp_io_choose(uint32_t io, hp_error *error) {
  if (io == HP_IO_AUTO)
    io = *hp_io_uring.probe() ? HP_IO_EPOLL : HP_IO_URING;
  const char *why = io <= HP_IO_EPOLL ? hp_io_probe((int)io) : hp_io_probe(-1);
  if (*why) {
    hp_fail(error, 0, "%s", why);
    return NULL;
  }
  return io == HP_IO_URING ? &hp_io_uring : &hp_io_epoll;
}

int hp_buffers_new(hp_buffers *buffers, uint32_t per_group, hp_error *error) {
  *buffers = (hp_buffers){0};
  if (per_group == 0 || per_group > 32768 || (per_group & (per_group - 1)))
    return hp_fail(error, EINVAL, "buffers: %u per group: choose a power of two up to 32768", per_group);
  uint32_t count = per_group * HP_GROUPS;
  size_t bytes = (size_t)count * HP_STRIDE;
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED)
    return hp_fail(error, errno, "buffers: cannot map %zu bytes: %s; lower buffers", bytes, strerror(errno));
  /* Huge pages would not make packets faster, but the first ones wait for them: the kernel clears two megabytes when
   * one byte of them is used, which takes milliseconds in a guest whose host has to find the memory first. A device's
   * queue overflows meanwhile. */
  madvise(at, bytes, MADV_NOHUGEPAGE);
  hp_buffer_note *notes = calloc(count, sizeof *notes);
  if (!notes) {
    munmap(at, bytes);
    return hp_fail(error, ENOMEM, "buffers: no memory for %u; lower buffers", count);
  }
  *buffers = (hp_buffers){.at = at, .notes = notes, .per_group = per_group, .count = count};
  return 0;
}

void hp_buffers_free(hp_buffers *buffers) {
  if (buffers->at)
    munmap(buffers->at, (size_t)buffers->count * HP_STRIDE);
  free(buffers->notes);
  *buffers = (hp_buffers){0};
}

int hp_chain_vector(const hp_buffers *buffers, uint32_t head, struct iovec *vector) {
  const hp_buffer_note *note = &buffers->notes[head];
  uint32_t headers = note->headers;
  vector[0] = (struct iovec){hp_buffer(buffers, head), note->length};
  int count = 1;
  for (uint32_t b = note->next; b != HP_NO_BUFFER; b = note->next) {
    note = &buffers->notes[b];
    vector[count++] = (struct iovec){hp_buffer(buffers, b) + headers, note->length - headers};
  }
  return count;
}

uint32_t hp_chain_bytes(const hp_buffers *buffers, uint32_t head) {
  const hp_buffer_note *note = &buffers->notes[head];
  return note->length * note->packets; /* all but the last are as long as the first */
}

void hp_chain_split(const hp_buffers *buffers, uint32_t head, hp_io *io, void (*each)(hp_io *io, uint32_t head)) {
  uint32_t link = buffers->notes[head].link;
  for (uint32_t next, b = head; b != HP_NO_BUFFER; b = next) {
    hp_buffer_note *note = &buffers->notes[b];
    next = note->next;
    note->next = HP_NO_BUFFER;
    note->link = link;
    note->packets = 1;
    each(io, b);
  }
}

/* What a read may end with though nothing is wrong; again and again it must not. */
static bool is_passing(int code) { return code == EAGAIN || code == EINTR || code == ECANCELED; }

uint32_t hp_reading_failed(hp_reading *reading, const hp_io_config *config, uint32_t link, int code) {
  if (reading->failures < UINT8_MAX)
    reading->failures++;
  if (is_passing(code) && reading->failures < HP_PASSING)
    return 0;
  if (code == ETIMEDOUT && reading->waits < UINT8_MAX)
    reading->waits++; /* for good: it costs all others each time, and packets in between excuse nothing */
  if (!reading->failing)
    config->counters->failing++;
  reading->failing = true;
  config->counters->unreadable++;
  config->unreadable(config->context, link, code);
  return reading->failures > reading->waits ? reading->failures : reading->waits;
}

void hp_reading_works(hp_reading *reading, const hp_io_config *config, uint32_t link) {
  reading->failures = 0;
  if (!reading->failing)
    return;
  hp_reading_ends(reading, config);
  config->readable(config->context, link);
}

void hp_reading_ends(hp_reading *reading, const hp_io_config *config) {
  if (reading->failing)
    config->counters->failing--;
  reading->failing = false;
}

/* tun.c answers EBADFD once the device was deleted or the queue detached. */
bool hp_io_is_gone(int code) { return code == EBADFD || code == EBADF || code == ENODEV; }

static hp_reason reason_of(int code) { return code == EAGAIN || code == ENOBUFS ? HP_OUTPUT_FULL : HP_OUTPUT_ERROR; }

void hp_packet_failed(const hp_io_config *config, uint32_t link, int code) {
  config->failed(config->context, link, reason_of(code));
}

void hp_chain_failed(const hp_io_config *config, const hp_buffers *buffers, uint32_t head, int code) {
  hp_reason reason = reason_of(code);
  const hp_buffer_note *note = &buffers->notes[head];
  for (uint32_t i = 0; i < note->packets; i++)
    config->failed(config->context, note->link, reason);
}

void hp_io_clear_wake(int wake) {
  struct pollfd poll_wake = {.fd = wake, .events = POLLIN};
  uint64_t count;
  if (poll(&poll_wake, 1, 0) > 0 && read(wake, &count, sizeof count) < 0)
    return; /* somebody else cleared it */
}

int64_t hp_io_clock(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t hp_io_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

uint32_t hp_spin_for(uint32_t asked, uint32_t workers) {
  cpu_set_t cpus;
  bool few = sched_getaffinity(0, sizeof cpus, &cpus) == 0; /* EINVAL: more of them than the set has room for */
  return few && (uint32_t)CPU_COUNT(&cpus) <= workers ? 0 : asked;
}

void hp_spin_took(hp_spin *spin, const hp_packet *packets, uint32_t count) {
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < count && i < SPIN_PACKETS; i++)
    bytes += packets[i].length;
  if (count > SPIN_PACKETS || bytes > SPIN_BYTES)
    spin->quiet = 0;
  else if (count && spin->quiet < SPIN_TURNS)
    spin->quiet++;
}

int64_t hp_spin_begin(hp_spin *spin, const hp_io_config *config) {
  if (!config->spin)
    return 0;
  spin->started = hp_io_nanoseconds();
  return spin->pays && spin->quiet == SPIN_TURNS ? spin->started + config->spin * 1000LL : 0;
}

void hp_spin_end(hp_spin *spin, const hp_io_config *config) {
  if (config->spin)
    spin->pays = hp_io_nanoseconds() - spin->started <= config->spin * 1000LL;
}

int hp_io_check_config(const hp_io_config *config, hp_error *error) {
  if (config->max_links == 0)
    return hp_fail(error, EINVAL, "max_links is 0; choose as many as there will be tunnels and ENIs");
  if (fcntl(config->wake, F_GETFD) < 0)
    return hp_fail(error, errno, "wake descriptor %d: %s", config->wake, strerror(errno));
  if (config->others_came && fcntl(config->others, F_GETFD) < 0)
    return hp_fail(error, errno, "descriptor %d: %s", config->others, strerror(errno));
  return 0;
}

int hp_io_check_add(const hp_io_config *config, uint32_t link, int fd, int group, bool taken, hp_error *error) {
  if (link >= config->max_links)
    return hp_fail(error, EINVAL, "link %u: only %u links fit; raise max_links", link, config->max_links);
  if (taken)
    return hp_fail(error, EEXIST, "link %u: it has a descriptor already; remove it first", link);
  if (fd < 0)
    return hp_fail(error, EBADF, "link %u: descriptor %d is not open", link, fd);
  if (group < 0 || group > HP_GROUP_NONE)
    return hp_fail(error, EINVAL, "link %u: no buffer group %d; there are %d", link, group, HP_GROUPS);
  return 0;
}
