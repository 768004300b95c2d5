/* security.h: whether a security group lets a new flow out. Python compiled the groups of an ENI into one
 * array of rules (hp_rule); the first that matches admits. Asked at flow creation only: like EC2's
 * connection tracking, a rule that goes away does not cut what it admitted. */
#ifndef HP_SECURITY_H
#define HP_SECURITY_H

#include "packet.h"

bool hp_security_allows(const hp_rule *rules, uint32_t count, const hp_headers *headers);

#endif
