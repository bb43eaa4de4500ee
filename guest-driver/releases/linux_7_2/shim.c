// SPDX-License-Identifier: GPL-2.0
/*
 * hmm_range_fault_unlocked_timeout() for Linux 7.2, and what Rust cannot call because it is
 * a macro or a static inline of a C header.
 */
#include <linux/hmm.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/sched/signal.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>

/* Internal to this file: pages have been faulted in, and the range is to be looked at again. */
#define LOOK_AGAIN -EAGAIN

/*
 * Whether what was found of a page meets what is requested of it. Pages in private device memory are
 * only found if they are the caller's own; they are never faulted, whatever access is requested.
 */
static bool is_as_requested(unsigned long hmm_pfn, unsigned long request)
{
	if ((hmm_pfn & (HMM_PFN_VALID | HMM_PFN_ERROR)) != HMM_PFN_VALID)
		return false;
	return !(request & HMM_PFN_REQ_WRITE) || (hmm_pfn & HMM_PFN_WRITE) ||
	       is_device_private_page(hmm_pfn_to_page(hmm_pfn));
}

/*
 * Faults in one page. Clears *locked if that took dropping the mmap lock; the page may have to be
 * faulted again then. This is hmm_do_fault() of Linux 7.3.
 */
static int fault_page(struct mm_struct *mm, unsigned long address, bool write, bool *locked)
{
	unsigned int flags = FAULT_FLAG_REMOTE | FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;
	struct vm_area_struct *vma = vma_lookup(mm, address);
	vm_fault_t result;

	if (!vma)
		return -EFAULT;
	if (write) {
		if (!(vma->vm_flags & VM_WRITE))
			return -EPERM;
		flags |= FAULT_FLAG_WRITE;
	}
	result = handle_mm_fault(vma, address, flags, NULL);
	if (result & (VM_FAULT_COMPLETED | VM_FAULT_RETRY)) {
		*locked = false;
		return fatal_signal_pending(current) ? -EINTR : -EBUSY;
	}
	if (result & VM_FAULT_ERROR)
		return vm_fault_to_errno(result, 0) ?: -EINVAL;
	return 0;
}

/*
 * Requests one page of which nothing is known but that it cannot be mirrored as it is: it has no
 * VMA or one without rights, is no page, or is in the private memory of another owner, from where
 * its owner moves it. None of these needs the mmap lock to be dropped, so the kernel's own function
 * can tell them apart.
 */
static int request_page(const struct hmm_range *range, unsigned long address,
			unsigned long *hmm_pfn)
{
	struct hmm_range page = *range;
	int result;

	page.start = address;
	page.end = address + PAGE_SIZE;
	page.hmm_pfns = hmm_pfn;
	result = hmm_range_fault(&page);
	/* If the page has changed since, the answer is about another one. */
	if (mmu_interval_check_retry(range->notifier, range->notifier_seq))
		return -EBUSY;
	return result;
}

/* Makes present what was found to be missing from a range. */
static int fault_missing(struct hmm_range *range, bool *locked)
{
	const unsigned long request = range->default_flags;
	unsigned long address, *hmm_pfn = range->hmm_pfns;
	int result = 0;

	if (!(request & HMM_PFN_REQ_FAULT))
		return 0;
	for (address = range->start; address < range->end; address += PAGE_SIZE, hmm_pfn++) {
		if (is_as_requested(*hmm_pfn, request))
			continue;
		if (*hmm_pfn & HMM_PFN_ERROR)
			result = request_page(range, address, hmm_pfn);
		else
			result = fault_page(range->notifier->mm, address,
					    request & HMM_PFN_REQ_WRITE, locked);
		if (result)
			return result;
		result = LOOK_AGAIN;
		cond_resched();
	}
	return result;
}

/* Finds out where the pages of a range are. Faults in none. */
static int look(struct hmm_range *range)
{
	const unsigned long request = range->default_flags;
	int result;

	range->default_flags = 0;
	result = hmm_range_fault(range);
	range->default_flags = request;
	return result;
}

/*
 * As that of Linux 7.3: faults in a range without the mmap lock, which a page fault may then drop
 * while it waits for a disk or for a userfaultfd. hmm_range_fault() of Linux 7.2 cannot drop it, so
 * it is only used to look, and pages are faulted in here.
 *
 * Requests must be the same for the whole range: its pfn_flags_mask must be zero.
 */
int hmm_range_fault_unlocked_timeout(struct hmm_range *range, unsigned long timeout)
{
	struct mm_struct *mm = range->notifier->mm;
	unsigned long deadline = 0;
	bool locked = false;
	int result;

	if (WARN_ON_ONCE(range->pfn_flags_mask))
		return -EINVAL;
	do {
		/* The time is that of changes by others: a fault that dropped the lock made progress. */
		if (timeout && !locked)
			deadline = jiffies + timeout;
		range->notifier_seq = mmu_interval_read_begin(range->notifier);
		result = mmap_read_lock_killable(mm);
		if (result)
			return result;
		if (check_stable_address_space(mm))
			result = -EFAULT;
		else if (timeout && time_after(jiffies, deadline))
			result = -EBUSY;
		if (result) {
			mmap_read_unlock(mm);
			return result;
		}
		locked = true;
		do {
			result = look(range);
			if (!result)
				result = fault_missing(range, &locked);
			if (result == LOOK_AGAIN && fatal_signal_pending(current))
				result = -EINTR;
		} while (result == LOOK_AGAIN);
		if (locked)
			mmap_read_unlock(mm);
	} while (result == -EBUSY);
	return result;
}

unsigned long linux_7_2_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

bool linux_7_2_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	return spin_trylock_irqsave(lock, *flags);
}

void linux_7_2_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

int linux_7_2_init_srcu(struct srcu_struct *srcu, const char *name, struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_LOCK_ALLOC
	return __init_srcu_struct(srcu, name, key);
#else
	return init_srcu_struct(srcu);
#endif
}

int linux_7_2_srcu_read_lock(struct srcu_struct *srcu)
{
	return srcu_read_lock(srcu);
}

void linux_7_2_srcu_read_unlock(struct srcu_struct *srcu, int index)
{
	srcu_read_unlock(srcu, index);
}
