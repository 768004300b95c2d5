/* inherit.c: an engine over the regions of another process: a successor's, which goes on with them, or a
 * reader's.
 *
 * What is given may be anything. Sizes and seals are checked before a byte is read (memory.h), then the version
 * of the layout and the sizes that the maker had; contents are repaired by a successor (repair.c), and
 * looked at with care by a reader (read.c). Nothing tells whether the maker is dead: that is for the caller
 * to know, who has its pidfd.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "engine.h"

/* One memfd for two regions would have each written over by the other. */
static int check_apart(const hp_config *config, const hp_region_fd *regions, uint32_t count, hp_error *error) {
  struct stat files[HP_MAX_REGIONS];
  uint32_t workers = config->workers ? config->workers : 1, most = hp_region_count(workers);
  if (count > most || count > HP_MAX_REGIONS)
    return hp_fail(error, EBADMSG, "%u regions were given, an engine of %u workers has %u; give those of one engine",
                   count, workers, most);
  for (uint32_t i = 0; i < count; i++) {
    if (fstat(regions[i].fd, &files[i]))
      return hp_fail(error, errno, "%.31s: descriptor %d: %s; give open descriptors", regions[i].name, regions[i].fd,
                     strerror(errno));
    for (uint32_t j = 0; j < i; j++)
      if (files[i].st_ino == files[j].st_ino && files[i].st_dev == files[j].st_dev)
        return hp_fail(error, EBADMSG, "%.31s and %.31s are one and the same memory; give each region's own",
                       regions[j].name, regions[i].name);
  }
  return 0;
}

uint32_t hp_engine_regions(hp_engine *engine, hp_region_fd *regions, uint32_t room) {
  const hp_region *all[HP_MAX_REGIONS];
  uint32_t count = hp_all_regions(engine, all);
  for (uint32_t i = 0; i < count && i < room; i++) {
    regions[i].fd = all[i]->fd;
    memcpy(regions[i].name, all[i]->name, sizeof regions[i].name);
  }
  return count;
}

hp_engine *hp_engine_inherit(const hp_config *config, const hp_region_fd *regions, uint32_t count, hp_error *error) {
  const hp_given given = {.regions = regions, .count = count};
  if (check_apart(config, regions, count, error))
    return NULL;
  hp_engine *engine = hp_engine_open(config, &given, error);
  if (engine)
    hp_engine_repair(engine);
  return engine;
}

hp_engine *hp_reader_new(const hp_config *config, const hp_region_fd *regions, uint32_t count, hp_error *error) {
  const hp_given given = {.regions = regions, .count = count, .read_only = true};
  return check_apart(config, regions, count, error) ? NULL : hp_engine_open(config, &given, error);
}
