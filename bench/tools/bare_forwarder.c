/* bare_forwarder.c: the least that a TUN data plane in user space can do, and so the ceiling for one.
 *
 *   bare_forwarder NAMESPACE NAMESPACE [NAMESPACE NAMESPACE]...       paths; prints "ready", ends with its input
 *
 * In each namespace it makes a TUN, bare0, bare1, ... in the order given, and copies what comes out of one of a pair
 * into the other. It changes nothing, so the addresses of both sides must be such that no NAT is needed.
 *
 * One thread does all of it: a multishot read armed on every device takes buffers from one ring, each packet read is
 * written as it is, and one system call a turn submits the writes of the last turn and waits for more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  BUFFERS = 512,
  BUFFER_SIZE = 68 << 10, /* 65,535 bytes and a header, in whole pages */
  GROUP = 1,
  LINKS = 8,
  ENTRIES = 1024,
  COMPLETIONS = 16384,
  READ_MULTISHOT = 49,                                           /* liburing 2.3 does not know it */
  OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | 0x20 | 0x40, /* TUN_F_USO4, TUN_F_USO6 */
  RING_FLAGS = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE
};

/* What a completion is about: a read of the link in the low bits, or the write of the buffer in them, or the input. */
static const uint64_t OF_READ = 1ull << 32, OF_INPUT = 1ull << 33;

static struct io_uring ring;
static struct io_uring_buf_ring *free_buffers;
static uint8_t *memory;
static bool armed[LINKS];

static _Noreturn void fail(const char *what) {
  perror(what);
  exit(1);
}

static void check(int result, const char *what) {
  if (result < 0) {
    errno = -result;
    fail(what);
  }
}

static void enter(const char *path) {
  int place = open(path, O_RDONLY | O_CLOEXEC);
  if (place < 0 || setns(place, CLONE_NEWNET))
    fail(path);
  close(place);
}

static int open_tun(int number) {
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
  int header = sizeof(struct virtio_net_hdr), fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0)
    fail("/dev/net/tun");
  snprintf(request.ifr_name, sizeof request.ifr_name, "bare%d", number);
  if (ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETVNETHDRSZ, &header) ||
      ioctl(fd, TUNSETOFFLOAD, (unsigned long)OFFLOADS))
    fail(request.ifr_name);
  return fd;
}

static void *map(size_t size) {
  void *mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (mapped == MAP_FAILED)
    fail("mmap");
  return mapped;
}

static uint8_t *buffer(unsigned number) { return memory + (size_t)number * BUFFER_SIZE; }

/* Takes effect with the next io_uring_buf_ring_advance(); `place` counts from the last. */
static void give_back(unsigned number, int place) {
  io_uring_buf_ring_add(free_buffers, buffer(number), BUFFER_SIZE, (unsigned short)number,
                        io_uring_buf_ring_mask(BUFFERS), place);
}

static void set_up(const int *fds, unsigned links) {
  struct io_uring_params parameters = {.flags = RING_FLAGS, .cq_entries = COMPLETIONS};
  check(io_uring_queue_init_params(ENTRIES, &ring, &parameters), "io_uring_setup");
  check(io_uring_register_files(&ring, fds, links), "IORING_REGISTER_FILES");
  memory = map((size_t)BUFFERS * BUFFER_SIZE);
  free_buffers = map(BUFFERS * sizeof(struct io_uring_buf));
  struct io_uring_buf_reg group = {
      .ring_addr = (uint64_t)(uintptr_t)free_buffers, .ring_entries = BUFFERS, .bgid = GROUP};
  check(io_uring_register_buf_ring(&ring, &group, 0), "IORING_REGISTER_PBUF_RING");
  io_uring_buf_ring_init(free_buffers);
  for (unsigned i = 0; i < BUFFERS; i++)
    give_back(i, (int)i);
  io_uring_buf_ring_advance(free_buffers, BUFFERS);
}

static struct io_uring_sqe *new_request(void) {
  struct io_uring_sqe *request = io_uring_get_sqe(&ring);
  if (!request) {
    check(io_uring_submit(&ring), "io_uring_submit");
    request = io_uring_get_sqe(&ring);
  }
  return request;
}

static void arm(unsigned link) {
  struct io_uring_sqe *read = new_request();
  io_uring_prep_rw(READ_MULTISHOT, read, (int)link, NULL, 0, 0);
  read->flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
  read->buf_group = GROUP;
  read->user_data = OF_READ | link;
  armed[link] = true;
}

static void copy(unsigned link, unsigned number, unsigned length) {
  struct io_uring_sqe *write = new_request();
  io_uring_prep_write(write, (int)(link ^ 1), buffer(number), length, 0);
  write->flags = IOSQE_FIXED_FILE;
  write->user_data = number;
}

static void watch_input(void) {
  struct io_uring_sqe *request = new_request();
  io_uring_prep_poll_add(request, STDIN_FILENO, 0); /* POLLHUP is always told */
  request->user_data = OF_INPUT;
}

/* One completion; returns how many buffers it gave back. */
static int take(const struct io_uring_cqe *event, int place) {
  if (event->user_data == OF_INPUT)
    exit(0);
  if (!(event->user_data & OF_READ)) {
    give_back((unsigned)event->user_data, place);
    return 1;
  }
  unsigned link = (unsigned)event->user_data;
  if (event->res > 0)
    copy(link, event->flags >> IORING_CQE_BUFFER_SHIFT, (unsigned)event->res);
  else if (event->res != -ENOBUFS) /* no buffer left: it goes on when some came back */
    check(event->res ? event->res : -EIO, "read of a TUN");
  if (!(event->flags & IORING_CQE_F_MORE))
    armed[link] = false;
  return 0;
}

static _Noreturn void forward(unsigned links) {
  watch_input();
  for (;;) {
    for (unsigned link = 0; link < links; link++)
      if (!armed[link])
        arm(link);
    int result = io_uring_submit_and_wait(&ring, 1);
    if (result != -EINTR)
      check(result, "io_uring_submit_and_wait");
    struct io_uring_cqe *event;
    unsigned head, taken = 0;
    int returned = 0;
    io_uring_for_each_cqe(&ring, head, event) {
      returned += take(event, returned);
      taken++;
    }
    io_uring_cq_advance(&ring, taken);
    io_uring_buf_ring_advance(free_buffers, returned);
  }
}

int main(int count, char **words) {
  int fds[LINKS];
  unsigned links = (unsigned)count - 1;
  if (links < 2 || links % 2 || links > LINKS) {
    fprintf(stderr, "usage: bare_forwarder NAMESPACE NAMESPACE [NAMESPACE NAMESPACE]...\n");
    return 2;
  }
  for (unsigned link = 0; link < links; link++) {
    enter(words[link + 1]);
    fds[link] = open_tun((int)link);
  }
  set_up(fds, links);
  printf("ready\n");
  fflush(stdout);
  forward(links);
}
