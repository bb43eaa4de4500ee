// SPDX-License-Identifier: GPL-2.0
/*
 * Workarounds for bugs of Linux 7.3 and 7.2, for quirks/. Each part names the finding of
 * docs/kernel-findings.md that it is for, and can go when the kernel is fixed. Declared in shim.h.
 */
#include <linux/ksm.h>
#include <linux/leafops.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/rcupdate.h>
#include <linux/swapops.h>
#include <linux/virtio_config.h>
#include <linux/wait_bit.h>

#include "shim.h"
#include "tables.h"

/*
 * "A huge device page that is unmapped while it migrates loses a reference too many"
 */

/*
 * Whether the range contains a whole huge page that is not present: in device memory, or under
 * migration. The caller must hold a lock that keeps the page tables of its VMAs.
 */
bool virtio_hmm_has_large_entry(struct mm_struct *mm, unsigned long start,
				unsigned long end)
{
	unsigned long address, next;

	for (address = round_up(start, PMD_SIZE);
	     address >= start && address < end && end - address >= PMD_SIZE; address = next) {
		pmd_t *entry = virtio_hmm_find_pmd(mm, address, end, &next);
		pmd_t pmd;

		if (!entry)
			continue;
		pmd = pmdp_get_lockless(entry);
		if (!pmd_none(pmd) && !pmd_present(pmd))
			return true;
	}
	return false;
}

/*
 * Fixes the counts of a large folio without entries; returns how many entries were lost in error.
 */
static int forget_taken(struct folio *folio)
{
	/* The value of one entire mapping in _nr_pages_mapped: mm/internal.h. */
	const int entirely_mapped = 0x800000;
	int taken;

	if (!folio_test_large(folio))
		return 0;
	taken = -folio_entire_mapcount(folio);
	if (taken <= 0)
		return 0;
	atomic_add(taken, &folio->_entire_mapcount);
	atomic_add(taken, &folio->_large_mapcount);
	if (!IS_ENABLED(CONFIG_NO_PAGE_MAPCOUNT))
		atomic_add(taken * entirely_mapped, &folio->_nr_pages_mapped);
	return taken;
}

/* More references than processes can drop while a migration ends. */
#define SPARE_REFERENCES 1024

void virtio_hmm_take_extra_refs(struct page *page)
{
	/* During a migration: the reference of the fault and that of the migration. */
	const int held = 2;
	struct folio *folio = page_folio(page);

	/*
	 * Restores the references that are held, instead of adding those that were dropped:
	 * installing the new memory sets the count to zero for a moment, and then back to what
	 * it was.
	 */
	if (forget_taken(folio))
		folio_ref_add(folio, max(held - folio_ref_count(folio), 0));
	folio_ref_add(folio, SPARE_REFERENCES);
}

void virtio_hmm_settle_extra_refs(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_ref_add(folio, forget_taken(folio));
	folio_ref_sub(folio, SPARE_REFERENCES);
}

/*
 * "A huge device page on which a CPU faults cannot be split"
 *
 * A CPU fault drops its reference to a folio for a while. The folio's lock, which the fault keeps,
 * says so: no other user of a folio drops its last reference without unlocking it before.
 * zone_device_data of the first page, which is the driver's, says whether the folio was freed
 * meanwhile.
 */

void virtio_hmm_put_fault_ref(struct page *page)
{
	page->zone_device_data = NULL;
	put_page(page);
}

/*
 * Called when the last reference to a folio is gone. If a fault is to have it back, gives it the
 * only reference and returns true.
 */
bool virtio_hmm_revive_for_fault(struct folio *folio)
{
	if (!folio_test_locked(folio))
		return false;
	/* free_zone_device_folio() will drop those of a free folio. */
	percpu_ref_get_many(&folio->pgmap->ref, folio_nr_pages(folio));
	folio->page.zone_device_data = folio;
	/* Now the fault may go on, and free the folio. */
	folio_ref_unfreeze(folio, 1);
	wake_up_var(&folio->_refcount);
	return true;
}

/*
 * Takes the reference again; returns whether the folio was freed meanwhile. A freed folio is no
 * longer mapped by any process.
 */
bool virtio_hmm_get_fault_ref(struct page *page)
{
	struct folio *folio = page_folio(page);
	bool is_taken = folio_try_get(folio);

	if (!is_taken) {
		/*
		 * Another thread has dropped the last reference and is about to revive it. On the
		 * way there it waits for nothing.
		 */
		wait_var_event(&folio->_refcount, folio_ref_count(folio));
		return true;
	}
	if (!READ_ONCE(page->zone_device_data))
		return false;
	/* The only reference was the fault's already. */
	folio_put(folio);
	return true;
}

/*
 * "KSM pages move into device memory, and ksmd reads them there" and "A device page that is moved
 * to system memory twice makes the kernel spin"
 */

bool virtio_hmm_may_move(unsigned long pfn)
{
	struct folio *folio = page_folio(pfn_to_page(pfn));

	/*
	 * A page that KSM has merged would move for all processes that share it. Then ksmd would
	 * compare others with it: by CPU, in memory that no CPU can read.
	 */
	if (folio_test_ksm(folio))
		return false;
	/*
	 * A page that has already moved away but is still referenced has passed its charge to its
	 * successor. A second successor would have none, and putting it on an LRU list would spin
	 * for ever looking for its lruvec (folio_lruvec_lock()).
	 */
	return mem_cgroup_disabled() || !folio_is_zone_device(folio) ||
	       folio_memcg_charged(folio);
}

/*
 * "Write tracking misses writes to device pages"
 */

/*
 * Returns the entry write-protected if it is writable and refers to a page in private device
 * memory, or to one on its way from there; otherwise returns it unchanged.
 */
static pte_t without_write(pte_t pte)
{
	softleaf_t entry;
	pte_t without;

	if (pte_none(pte) || pte_present(pte))
		return pte;
	entry = softleaf_from_pte(pte);
	if (softleaf_is_device_private_write(entry))
		entry = make_readable_device_private_entry(swp_offset(entry));
	else if (softleaf_is_migration_write(entry) &&
		 is_device_private_page(pfn_to_page(softleaf_to_pfn(entry))))
		entry = make_readable_exclusive_migration_entry(swp_offset(entry));
	else
		return pte;
	without = softleaf_to_pte(entry);
	if (pte_swp_soft_dirty(pte))
		without = pte_swp_mksoft_dirty(without);
	if (pte_swp_uffd(pte))
		without = pte_swp_mkuffd(without);
	return without;
}

/* virtio_hmm_protect_private() within one page table. */
static void protect_table(struct mm_struct *mm, pmd_t *pmd, unsigned long start,
			  unsigned long end)
{
	spinlock_t *lock;
	pmd_t table;
	pte_t *pte;

	/*
	 * The kernel frees such tables after a grace period, and takes their lock to detach them.
	 */
	rcu_read_lock();
	for (;;) {
		table = pmdp_get_lockless(pmd);
		if (!virtio_hmm_has_table(table))
			break;
		lock = pte_lockptr(mm, &table);
		spin_lock(lock);
		if (pmd_same(table, pmdp_get_lockless(pmd))) {
			pte = pte_offset_kernel(&table, start);
			for (; start < end; start += PAGE_SIZE, pte++) {
				pte_t old = ptep_get(pte);
				pte_t without = without_write(old);

				if (!pte_same(old, without))
					set_pte_at(mm, start, pte, without);
			}
			spin_unlock(lock);
			break;
		}
		spin_unlock(lock);
	}
	rcu_read_unlock();
}

/*
 * Write-protects all entries of small pages in private device memory, as change_protection() does.
 * The caller must hold the mmap lock for writing.
 *
 * clear_soft_dirty() only write-protects present entries. But a page becomes soft-dirty by a write
 * fault, and without this there would be none, neither for the device nor, once the page is back,
 * for a CPU.
 */
void virtio_hmm_protect_private(struct mm_struct *mm, unsigned long start,
				unsigned long end)
{
	unsigned long address, next, stop;
	struct vm_area_struct *vma;
	pmd_t *pmd;

	for (vma = find_vma(mm, start); vma && vma->vm_start < end;
	     vma = find_vma(mm, vma->vm_end)) {
		if (vma->vm_flags & (VM_HUGETLB | VM_PFNMAP | VM_IO))
			continue;
		stop = min(end, vma->vm_end);
		for (address = max(start, vma->vm_start); address < stop; address = next) {
			pmd = virtio_hmm_find_pmd(mm, address, stop, &next);
			if (pmd)
				protect_table(mm, pmd, address, next);
		}
		cond_resched();
	}
}

/*
 * Whether userfaultfd(2) is to learn of the next write to a small page that is not present. The
 * caller must hold a lock that keeps the page tables of its VMA.
 *
 * When it protects pages for PAGEMAP_SCAN, the kernel (7.3) leaves such entries writable.
 */
bool virtio_hmm_is_tracked_entry(struct mm_struct *mm, unsigned long address)
{
	bool is_tracked = false;
	unsigned long next;
	pmd_t *pmd, table;
	pte_t pte;

	pmd = virtio_hmm_find_pmd(mm, address, address + PAGE_SIZE, &next);
	if (!pmd)
		return false;
	rcu_read_lock();
	table = pmdp_get_lockless(pmd);
	if (virtio_hmm_has_table(table)) {
		pte = ptep_get_lockless(pte_offset_kernel(&table, address));
		is_tracked = !pte_none(pte) && !pte_present(pte) && pte_swp_uffd(pte);
	}
	rcu_read_unlock();
	return is_tracked;
}

/*
 * "A virtio device without PCI may be interrupted while its queues are deleted"
 */

/* Waits until all callbacks of the device's queues that are running have returned. */
void virtio_hmm_synchronize_callbacks(struct virtio_device *vdev)
{
	virtio_synchronize_cbs(vdev);
}
