/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the driver uses of Linux 7.3 and Linux 7.2 does not have, or has by another name, and what
 * Rust calls for the same reason. Included before all else in each C file.
 */
#ifndef VIRTIO_HMM_LINUX_7_2_NAMES_H
#define VIRTIO_HMM_LINUX_7_2_NAMES_H

#include <linux/spinlock_types.h>
/* <linux/swapops.h> uses it but does not include it. */
#include <linux/swap.h>

struct hmm_range;
struct lock_class_key;
struct srcu_struct;

#define pte_swp_uffd pte_swp_uffd_wp
#define pte_swp_mkuffd pte_swp_mkuffd_wp

/* All functions are defined in shim.c. */
int hmm_range_fault_unlocked_timeout(struct hmm_range *range, unsigned long timeout);

/* sync.rs */
unsigned long linux_7_2_spin_lock_irqsave(spinlock_t *lock);
bool linux_7_2_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void linux_7_2_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);

/* sync/srcu.rs */
int linux_7_2_init_srcu(struct srcu_struct *srcu, const char *name, struct lock_class_key *key);
int linux_7_2_srcu_read_lock(struct srcu_struct *srcu);
void linux_7_2_srcu_read_unlock(struct srcu_struct *srcu, int index);

#endif
