/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the driver uses of Linux 7.3 and Linux 7.2 does not have, or has by another name. Included
 * before all else in each C file.
 */
#ifndef VIRTIO_HMM_LINUX_7_2_NAMES_H
#define VIRTIO_HMM_LINUX_7_2_NAMES_H

/* <linux/swapops.h> uses it but does not include it. */
#include <linux/swap.h>

struct hmm_range;

#define pte_swp_uffd pte_swp_uffd_wp
#define pte_swp_mkuffd pte_swp_mkuffd_wp

/* Defined in shim.c. */
int hmm_range_fault_unlocked_timeout(struct hmm_range *range, unsigned long timeout);

#endif
