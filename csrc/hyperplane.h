/* hyperplane.h: hyperplane.cdef.h for C: includes, guard, and the layouts that must not drift. */
#ifndef HYPERPLANE_H
#define HYPERPLANE_H

#include <stddef.h>
#include <stdint.h>

#include "hyperplane.cdef.h"

_Static_assert((int)HP_REASON_COUNT <= (int)HP_REASONS, "a counter block has room for every reason");
_Static_assert(sizeof(((hp_counters *)0)->drops) == HP_REASONS * 8, "hp_counters.drops is HP_REASONS long");
_Static_assert(sizeof(((hp_error *)0)->text) == HP_ERROR_TEXT, "hp_error.text is HP_ERROR_TEXT long");
_Static_assert(sizeof(((hp_eni_config *)0)->addresses) == HP_ENI_ADDRESSES * 4, "hp_eni_config.addresses");
_Static_assert(sizeof(((hp_eni_config *)0)->queues) == (HP_MAX_WORKERS - 1) * sizeof(int), "hp_eni_config.queues");
_Static_assert(sizeof(((hp_config *)0)->pins) == HP_MAX_WORKERS * 2, "hp_config.pins");
_Static_assert(sizeof(((hp_status *)0)->worker) == HP_MAX_WORKERS * sizeof(hp_worker_status), "hp_status.worker");
_Static_assert(sizeof(((hp_region_fd *)0)->name) == HP_REGION_NAME, "hp_region_fd.name");
_Static_assert(sizeof(hp_rule) == 16, "rules are scanned in a row: four a cache line");
_Static_assert(sizeof(hp_drop) == 40, "drop record");
_Static_assert(sizeof(hp_packet) == 32, "packets are handled in rows of HP_BATCH");

#endif
