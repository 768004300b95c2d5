/* security.c: see security.h. */
#include "security.h"

bool hp_security_allows(const hp_rule *rules, uint32_t count, const hp_headers *h) {
  uint16_t what = h->protocol == HP_ICMP ? h->icmp_type : h->destination_port;
  for (const hp_rule *rule = rules; rule < rules + count; rule++) {
    if ((h->destination & rule->mask) != rule->network || (rule->protocol && rule->protocol != h->protocol))
      continue;
    if (rule->protocol == 0 || (what >= rule->port_low && what <= rule->port_high))
      return true;
  }
  return false;
}
