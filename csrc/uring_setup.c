/* uring_setup.c: making and unmaking the io_uring engine's ring, and finding out what the kernel has.
 *
 * Theory of operation: see io_uring.c. Whatever a kernel or sandbox may lack is found out here, when the
 * engine starts, so that nothing has to be asked while packets flow. Kernels differ in one point that no
 * feature bit tells, when a registered file is dropped; drops_files() tries it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "uring.h"

enum {
  SQ_ENTRIES = 256,
  CQ_ENTRIES_MAX = 65536, /* IORING_MAX_CQ_ENTRIES */
  CQ_ENTRIES_MIN = 4 * SQ_ENTRIES,
  REGISTERED_MAX = 1 << 20, /* IORING_MAX_FIXED_FILES */
  HOT_BUFFERS_MIN = 64,     /* buffers of a group with which links get rings of their own */
  HOT_BUFFERS_MAX = 8192,   /* with more their numbers would not have 16 bits */
  HOT_FACTOR = 4            /* times as many there are then; pages come when they are used */
};

/* Whether taking a descriptor out of the table drops its file at once although an older request on
 * another registered descriptor is under way: a pipe whose writing end is in the table only. */
static bool drops_files(hp_io *io) {
  int ends[2], none = -1;
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
    return false;
  struct pollfd reader = {.fd = ends[0]};
  bool drops = io_uring_register_files_update(&io->ring, 0, &ends[0], 1) == 1 &&
               io_uring_register_files_update(&io->ring, 1, &ends[1], 1) == 1;
  struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
  io_uring_prep_poll_add(sqe, 0, POLLIN);
  sqe->flags |= IOSQE_FIXED_FILE;
  io_uring_sqe_set_data64(sqe, hp_uring_about(HP_ABOUT_READ, 0));
  io_uring_submit(&io->ring);
  close(ends[1]);
  io_uring_register_files_update(&io->ring, 1, &none, 1);
  drops = drops && poll(&reader, 1, 0) == 1 && (reader.revents & POLLHUP);
  io_uring_prep_cancel64(io_uring_get_sqe(&io->ring), hp_uring_about(HP_ABOUT_READ, 0), 0);
  io_uring_submit_and_wait(&io->ring, 2); /* the poll's end and the cancellation's */
  io_uring_cq_advance(&io->ring, io_uring_cq_ready(&io->ring));
  io_uring_register_files_update(&io->ring, 0, &none, 1);
  close(ends[0]);
  return drops;
}

static void register_files(hp_io *io) {
  uint32_t count = io->config.max_links < 2 ? 2 : io->config.max_links;
  if (count > REGISTERED_MAX || io_uring_register_files_sparse(&io->ring, count))
    return;
  io->registered = drops_files(io);
  if (!io->registered)
    io_uring_unregister_files(&io->ring);
}

static int new_ring(hp_io *io, uint32_t completions, hp_error *error) {
  struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                            IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
                                   .cq_entries = completions < CQ_ENTRIES_MIN ? CQ_ENTRIES_MIN : completions};
  if (io->config.spin)
    params.flags |= IORING_SETUP_TASKRUN_FLAG; /* to see without a system call that something has come */
  int result = io_uring_queue_init_params(SQ_ENTRIES, &io->ring, &params);
  if (result < 0) {
    io->ring.ring_fd = -1;
    return hp_fail(error, -result, "io_uring: cannot make a ring with %u completions: %s; use epoll", params.cq_entries,
                   strerror(-result));
  }
  return 0;
}

static int new_buffer_ring(hp_io *io, uint32_t index, uint32_t group, bool hot, hp_error *error) {
  struct uring_ring *ring = &io->rings[index];
  uint32_t count = hot ? io->buffers.per_group : io->shared; /* a power of two */
  uint32_t quota = hot ? (io->buffers.per_group - io->shared) / HP_HOT_RINGS : io->shared;
  size_t bytes = count * sizeof(struct io_uring_buf);
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED)
    return hp_fail(error, errno, "io_uring: no memory for a ring of %u buffers: %s", count, strerror(errno));
  *ring = (struct uring_ring){.ring = at,
                              .bytes = bytes,
                              .entries = count,
                              .quota = quota,
                              .owner = HP_NO_LINK,
                              .share = (uint8_t)(group * 2 + hot)};
  struct io_uring_buf_reg registration = {.ring_addr = (uintptr_t)at, .ring_entries = count, .bgid = (uint16_t)index};
  int result = io_uring_register_buf_ring(&io->ring, &registration, 0);
  if (result < 0)
    return hp_fail(error, -result, "io_uring: cannot register a ring of %u buffers: %s; lower buffers or use epoll",
                   count, strerror(-result));
  io_uring_buf_ring_init(at);
  return 0;
}

/* The share's buffers; the first one is the first to be used. */
static int new_share(hp_io *io, uint32_t index, uint32_t first, uint32_t count, hp_error *error) {
  struct uring_share *share = &io->shares[index];
  *share = (struct uring_share){.free = calloc(count + 1, sizeof *share->free), .count = count};
  if (!share->free)
    return hp_fail(error, ENOMEM, "io_uring: no memory for %u buffers; lower buffers", count);
  for (uint32_t i = 0; i < count; i++)
    share->free[i] = first + count - 1 - i;
  return 0;
}

static int new_group(hp_io *io, uint32_t number, hp_error *error) {
  uint32_t first = number * io->buffers.per_group, hot = io->buffers.per_group - io->shared;
  for (int q = 0; q < HP_QUEUES; q++)
    io->groups[number].queues[q] = (struct uring_queue){HP_NO_LINK, HP_NO_LINK};
  if (new_share(io, number * 2, first, io->shared, error) ||
      new_share(io, number * 2 + 1, first + io->shared, hot, error) ||
      new_buffer_ring(io, number, number, false, error))
    return -1;
  for (uint32_t i = 0; i < io->hot_rings; i++)
    if (new_buffer_ring(io, HP_GROUPS + number * HP_HOT_RINGS + i, number, true, error))
      return -1;
  return 0;
}

void hp_uring_free(hp_io *io) {
  if (io->ring.ring_fd >= 0)
    io_uring_queue_exit(&io->ring);
  for (int r = 0; r < HP_RINGS; r++)
    if (io->rings[r].ring)
      munmap(io->rings[r].ring, io->rings[r].bytes);
  for (int s = 0; s < HP_GROUPS * 2; s++)
    free(io->shares[s].free);
  hp_coalesce_close(&io->coalescer);
  hp_rests_close(&io->rests);
  hp_buffers_free(&io->buffers);
  free(io->links);
  free(io->vectors);
  free(io->staged);
  free(io->ring_of);
  free(io->from);
  free(io->kept);
  free(io);
}

static bool allocate(hp_io *io) {
  uint32_t count = io->buffers.count;
  io->links = calloc(io->config.max_links, sizeof *io->links);
  io->vectors = calloc(count, sizeof *io->vectors);
  io->staged = calloc(count, sizeof *io->staged);
  io->ring_of = calloc(count, sizeof *io->ring_of);
  io->from = calloc(count, sizeof *io->from);
  io->kept = calloc(count + 1, sizeof *io->kept); /* there is always room for one more */
  return io->links && io->vectors && io->staged && io->ring_of && io->from && io->kept;
}

static int set_up(hp_io *io, hp_error *error) {
  uint32_t asked = io->config.buffers;
  bool hot = asked >= HOT_BUFFERS_MIN && asked <= HOT_BUFFERS_MAX;
  if (hp_buffers_new(&io->buffers, hot ? HOT_FACTOR * asked : asked, error))
    return -1;
  io->hot_rings = hot ? HP_HOT_RINGS : 0;
  io->shared = hot ? asked / 2 : asked;
  uint64_t completions = (uint64_t)io->buffers.count + io->config.max_links + SQ_ENTRIES;
  if (!allocate(io) || hp_rests_open(&io->rests, io->config.max_links))
    return hp_fail(error, ENOMEM, "io_uring: no memory for %u links; lower max_links", io->config.max_links);
  if (new_ring(io, completions > CQ_ENTRIES_MAX ? CQ_ENTRIES_MAX : (uint32_t)completions, error))
    return -1;
  for (uint32_t g = 0; g < HP_GROUPS; g++)
    if (new_group(io, g, error))
      return -1;
  register_files(io);
  io_uring_register_ring_fd(&io->ring); /* without, every system call looks the descriptor up */
  return 0;
}

hp_io *hp_uring_new(const hp_io_config *config, void (*write_chain)(hp_io *io, uint32_t head), hp_error *error) {
  if (hp_io_check_config(config, error))
    return NULL;
  hp_io *io = calloc(1, sizeof *io);
  if (!io) {
    hp_fail(error, ENOMEM, "io_uring: no memory");
    return NULL;
  }
  io->config = *config;
  io->removing = HP_NO_LINK;
  io->ring.ring_fd = -1;
  if (set_up(io, error) == 0) {
    if (hp_coalesce_open(&io->coalescer, &io->buffers, config->max_links, io, write_chain) == 0)
      return io;
    hp_fail(error, ENOMEM, "io_uring: no memory for %u links; lower max_links", config->max_links);
  }
  hp_uring_free(io);
  return NULL;
}

static const char *probe_ring(struct io_uring *ring) {
  struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
  bool multishot = probe && io_uring_opcode_supported(probe, HP_OP_READ_MULTISHOT);
  io_uring_free_probe(probe);
  return multishot ? "" : "io_uring: this kernel has no multishot reads; use epoll, or Linux 6.7 or newer";
}

const char *hp_uring_probe(void) {
  struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                            IORING_SETUP_SUBMIT_ALL};
  struct io_uring ring;
  switch (-io_uring_queue_init_params(2, &ring, &params)) {
  case 0:
    break;
  case ENOSYS:
    return "io_uring: this kernel was built without it; use epoll";
  case EPERM:
  case EACCES:
    return "io_uring: forbidden here by kernel.io_uring_disabled or a seccomp filter; allow it or use epoll";
  case EINVAL:
    return "io_uring: this kernel is too old; use epoll, or Linux 6.7 or newer";
  case ENOMEM:
    return "io_uring: no memory for a ring; raise RLIMIT_MEMLOCK or the memory limit, or use epoll";
  case EMFILE:
  case ENFILE:
    return "io_uring: no descriptor left for a ring; raise RLIMIT_NOFILE";
  default:
    return "io_uring: a ring cannot be made here; use epoll";
  }
  const char *why = probe_ring(&ring);
  io_uring_queue_exit(&ring);
  return why;
}
