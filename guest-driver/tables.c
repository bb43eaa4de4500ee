// SPDX-License-Identifier: GPL-2.0
/*
 * Finds pages in page tables and takes pages away there, because the kernel exports no functions
 * for that to modules. Declared in shim.h.
 */
#include <linux/hugetlb.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/swapops.h>

#include "shim.h"
#include "tables.h"

/*
 * The page middle directory entry of an address, or NULL if there is none. *next is the first
 * address with a different entry, or where one would be, but not beyond the end. The caller must
 * hold a lock that keeps the page tables of the VMA.
 */
pmd_t *virtio_hmm_find_pmd(struct mm_struct *mm, unsigned long address,
			   unsigned long end, unsigned long *next)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d;
	pud_t *pud;

	*next = pgd_addr_end(address, end);
	if (pgd_none(*pgd) || pgd_bad(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, address);
	*next = p4d_addr_end(address, end);
	if (p4d_none(*p4d) || p4d_bad(*p4d))
		return NULL;
	pud = pud_offset(p4d, address);
	*next = pud_addr_end(address, end);
	if (pud_none(*pud) || !pud_present(*pud) || pud_leaf(*pud))
		return NULL;
	*next = pmd_addr_end(address, end);
	return pmd_offset(pud, address);
}

/* Whether a page middle directory entry points to a table of small pages. */
bool virtio_hmm_has_table(pmd_t pmd)
{
	return !pmd_none(pmd) && pmd_present(pmd) && !pmd_leaf(pmd) && !pmd_bad(pmd);
}

static bool is_in(unsigned long pfn, unsigned long first_pfn, unsigned long frames)
{
	return pfn >= first_pfn && pfn - first_pfn < frames;
}

static bool is_private_in(softleaf_t entry, unsigned long first_pfn, unsigned long frames)
{
	return softleaf_is_device_private(entry) &&
	       is_in(softleaf_to_pfn(entry), first_pfn, frames);
}

/* virtio_hmm_find_page() within one page table. */
static bool find_entry(pmd_t pmd, unsigned long *at, unsigned long end,
		       unsigned long first_pfn, unsigned long frames, bool inside)
{
	pte_t *entry = pte_offset_kernel(&pmd, *at);

	for (; *at < end; *at += PAGE_SIZE, entry++) {
		pte_t pte = ptep_get_lockless(entry);

		if (pte_none(pte))
			continue;
		if (!pte_present(pte)) {
			if (inside && is_private_in(softleaf_from_pte(pte), first_pfn, frames))
				return true;
		} else if (is_in(pte_pfn(pte), first_pfn, frames) == inside &&
			   !is_zero_pfn(pte_pfn(pte))) {
			return true;
		}
	}
	return false;
}

/* How many entries and tables one call looks at. */
#define MOST_ENTRIES (1 << 14)

/*
 * Finds the first page of the process at or after *at: a page in these frames or, if not inside, a
 * page that is present elsewhere and is not the zero page. Advances *at to it, or to the end of
 * what was searched.
 *
 * The result may be outdated when it is used. The caller must hold the mmap lock, so that upper
 * tables stay. A page table that is freed meanwhile stays until the RCU read section ends.
 */
bool virtio_hmm_find_page(struct mm_struct *mm, unsigned long *at, unsigned long end,
			  unsigned long first_pfn, unsigned long frames, bool inside)
{
	unsigned long address, next;
	int left = MOST_ENTRIES;
	bool found = false;

	rcu_read_lock();
	for (address = *at; address < end && left > 0; address = next, left--) {
		pmd_t *entry = virtio_hmm_find_pmd(mm, address, end, &next);
		pmd_t pmd;

		if (!entry)
			continue;
		pmd = pmdp_get_lockless(entry);
		if (pmd_none(pmd))
			continue;
		if (!pmd_present(pmd)) {
			found = inside && is_private_in(softleaf_from_pmd(pmd), first_pfn, frames);
		} else if (pmd_leaf(pmd)) {
			found = is_in(pmd_pfn(pmd), first_pfn, frames) == inside;
		} else if (!pmd_bad(pmd)) {
			left -= (next - address) >> PAGE_SHIFT;
			found = find_entry(pmd, &address, next, first_pfn, frames, inside);
		}
		if (found)
			break;
	}
	rcu_read_unlock();
	*at = address;
	return found;
}

/*
 * Takes a page in device memory away from a process, and leaves a marker there: a thread that
 * accesses it gets a SIGBUS. The caller must hold the locks of the address space and of the VMA
 * for writing.
 */
static void poison_entry(struct vm_area_struct *vma, unsigned long address)
{
	struct mm_struct *mm = vma->vm_mm;
	pmd_t *pmd, table;
	unsigned long next;
	spinlock_t *lock;
	pte_t *pte;

	/* The kernel replaces the entry of a huge page with a preallocated table. */
	zap_vma_range(vma, address, PAGE_SIZE);
	pmd = virtio_hmm_find_pmd(mm, address, address + PAGE_SIZE, &next);
	if (!pmd)
		return;
	table = pmdp_get_lockless(pmd);
	if (!virtio_hmm_has_table(table))
		return;
	lock = pte_lockptr(mm, &table);
	spin_lock(lock);
	pte = pte_offset_kernel(&table, address);
	if (!pte_present(ptep_get(pte)))
		set_pte_at(mm, address, pte, make_pte_marker(PTE_MARKER_POISONED));
	spin_unlock(lock);
}

/* The frame of a page that is present or in private device memory; ULONG_MAX if there is none. */
static unsigned long frame_at(struct mm_struct *mm, unsigned long address)
{
	unsigned long next, offset = (address & ~PMD_MASK) >> PAGE_SHIFT;
	unsigned long pfn = ULONG_MAX;
	softleaf_t entry;
	pmd_t *at, pmd;
	pte_t pte;

	rcu_read_lock();
	at = virtio_hmm_find_pmd(mm, address, address + PAGE_SIZE, &next);
	if (!at)
		goto unlock;
	pmd = pmdp_get_lockless(at);
	if (virtio_hmm_has_table(pmd)) {
		pte = ptep_get_lockless(pte_offset_kernel(&pmd, address));
		if (pte_present(pte)) {
			pfn = pte_pfn(pte);
		} else if (!pte_none(pte)) {
			entry = softleaf_from_pte(pte);
			if (softleaf_is_device_private(entry))
				pfn = softleaf_to_pfn(entry);
		}
	} else if (!pmd_none(pmd) && !pmd_present(pmd)) {
		entry = softleaf_from_pmd(pmd);
		if (softleaf_is_device_private(entry))
			pfn = softleaf_to_pfn(entry) + offset;
	} else if (!pmd_none(pmd) && pmd_leaf(pmd)) {
		pfn = pmd_pfn(pmd) + offset;
	}
unlock:
	rcu_read_unlock();
	return pfn;
}

/* Whether a frame is in a sorted list: each entry is a first frame and how many there are. */
static bool is_listed(unsigned long pfn, const unsigned long (*list)[2], unsigned long entries)
{
	unsigned long middle;

	while (entries) {
		middle = entries / 2;
		if (pfn < list[middle][0]) {
			entries = middle;
		} else if (pfn - list[middle][0] < list[middle][1]) {
			return true;
		} else {
			list += middle + 1;
			entries -= middle + 1;
		}
	}
	return false;
}

/*
 * Takes pages in these frames away from a process, and their contents are lost: all of them, or
 * those in a sorted list. Returns the number of pages. Allocates no memory. Takes the locks of the
 * address space and of its VMAs.
 */
unsigned long virtio_hmm_poison_frames(struct mm_struct *mm, unsigned long first_pfn,
				       unsigned long frames,
				       const unsigned long (*list)[2],
				       unsigned long entries)
{
	unsigned long at, count = 0;
	struct vm_area_struct *vma;

	mmap_write_lock(mm);
	for (vma = find_vma(mm, 0); vma; vma = find_vma(mm, vma->vm_end)) {
		if (vma->vm_flags & (VM_HUGETLB | VM_PFNMAP | VM_IO))
			continue;
		/* Otherwise a fault could map a page of zeros before the marker is there. */
		vma_start_write(vma);
		at = vma->vm_start;
		while (at < vma->vm_end) {
			if (virtio_hmm_find_page(mm, &at, vma->vm_end, first_pfn, frames, true)) {
				if (!list || is_listed(frame_at(mm, at), list, entries)) {
					poison_entry(vma, at);
					count++;
				}
				at += PAGE_SIZE;
			}
			cond_resched();
		}
	}
	mmap_write_unlock(mm);
	return count;
}
