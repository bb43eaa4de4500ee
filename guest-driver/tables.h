/* SPDX-License-Identifier: GPL-2.0 */
/* What both tables.c and quirks.c need to walk page tables. Not visible to Rust. */
#ifndef VIRTIO_HMM_TABLES_H
#define VIRTIO_HMM_TABLES_H

#include <linux/pgtable.h>
#include <linux/types.h>

struct mm_struct;

pmd_t *virtio_hmm_find_pmd(struct mm_struct *mm, unsigned long address,
			   unsigned long end, unsigned long *next);
bool virtio_hmm_has_table(pmd_t pmd);

#endif
