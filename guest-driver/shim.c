// SPDX-License-Identifier: GPL-2.0
/* See shim.h. */
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/hmm.h>
#include <linux/hugetlb.h>
#include <linux/ioport.h>
#include <linux/magic.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/nsproxy.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched.h>
#include <linux/sched/coredump.h>
#include <linux/sched/exec_state.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/rcupdate.h>
#include <linux/semaphore.h>
#include <linux/task_work.h>
#include <linux/time_namespace.h>
#include <linux/timekeeping.h>
#include <linux/timer.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>
#include <linux/userfaultfd_k.h>
#include <linux/workqueue.h>

#include "shim.h"

/* The user that the resources of a process with these credentials count for. */
static u32 user_of(const struct cred *cred)
{
	struct user_namespace *ns = cred->user_ns;
	kuid_t user = cred->uid;

	while (ns != &init_user_ns && ns->parent != &init_user_ns)
		ns = ns->parent;
	/*
	 * The owner of a user namespace, and the root in it, can become any user of the namespace. So
	 * all users of the namespace count as one: as its owner. If the host's root is the owner, they
	 * count as the root in the namespace.
	 */
	if (ns != &init_user_ns) {
		kuid_t root = make_kuid(ns, 0);

		if (!uid_eq(ns->owner, GLOBAL_ROOT_UID))
			user = ns->owner;
		else if (uid_valid(root))
			user = root;
	}
	return __kuid_val(user);
}

/* The user that the resources of the calling process are accounted to. */
void virtio_hmm_caller(struct virtio_hmm_owner *owner)
{
	owner->user = user_of(current_cred());
	owner->effective = __kuid_val(current_euid());
	owner->is_privileged = capable(CAP_SYS_RESOURCE);
}

/*
 * As __ptrace_may_access(), which is not exported to modules, for a caller with these ids and
 * capabilities. Does not ask the security modules.
 */
static bool may_access(struct task_struct *task, kuid_t uid, kgid_t gid, kernel_cap_t capabilities)
{
	const struct task_exec_state *state;
	const struct cred *theirs;

	guard(rcu)();
	theirs = __task_cred(task);
	/* Capabilities last: a security module may take note of a process that asks for one. */
	if ((!uid_eq(uid, theirs->euid) || !uid_eq(uid, theirs->suid) ||
	     !uid_eq(uid, theirs->uid) || !gid_eq(gid, theirs->egid) ||
	     !gid_eq(gid, theirs->sgid) || !gid_eq(gid, theirs->gid) ||
	     /* As cap_ptrace_access_check(). */
	     current_user_ns() != theirs->user_ns ||
	     !cap_issubset(theirs->cap_permitted, capabilities)) &&
	    !ns_capable(theirs->user_ns, CAP_SYS_PTRACE))
		return false;
	/* A process that drops privileges changes dumpable first: commit_creds(). */
	smp_rmb();
	state = rcu_dereference(task->exec_state);
	return READ_ONCE(state->dumpable) == TASK_DUMPABLE_OWNER ||
	       ns_capable(state->user_ns, CAP_SYS_PTRACE);
}

/*
 * The address space, with a reference, of a process with this first thread. The first thread may have
 * ended before the others.
 */
static struct mm_struct *mm_of_process(struct task_struct *leader)
{
	struct task_struct *thread;
	struct mm_struct *mm = NULL;

	guard(rcu)();
	for_each_thread(leader, thread) {
		mm = get_task_mm(thread);
		if (mm)
			break;
	}
	return mm;
}

/* Whether the caller may read the data of a process: PTRACE_MODE_READ_FSCREDS. */
static bool may_look_into(struct task_struct *task)
{
	const struct cred *mine = current_cred();

	return same_thread_group(task, current) ||
	       may_access(task, mine->fsuid, mine->fsgid, mine->cap_effective);
}

/*
 * The address space, with a reference, of the process with this number in the caller's PID
 * namespace, if the caller may look into it; else an error.
 */
struct mm_struct *virtio_hmm_mm_of(pid_t number)
{
	struct pid *pid = find_get_pid(number);
	struct task_struct *task = get_pid_task(pid, PIDTYPE_TGID);
	struct mm_struct *mm;
	int error;

	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	/* As mm_access(): an exec between the check and the use would change the process. */
	error = down_read_killable(&task->signal->exec_update_lock);
	if (error) {
		mm = ERR_PTR(error);
	} else {
		if (may_look_into(task))
			mm = mm_of_process(task) ?: ERR_PTR(-ESRCH);
		else
			mm = ERR_PTR(-EACCES);
		up_read(&task->signal->exec_update_lock);
	}
	put_task_struct(task);
	return mm;
}

/*
 * Whether the caller may write the data of a process: PTRACE_MODE_ATTACH_REALCREDS. For the security
 * modules see may_use_memory().
 */
static bool may_trace(struct task_struct *task)
{
	const struct cred *mine = current_cred();

	return may_access(task, mine->uid, mine->gid, mine->cap_permitted);
}

/* What a pidfd refers to, with a reference; an error if the descriptor is none. */
static struct pid *pid_of(int descriptor)
{
	CLASS(fd, file)(descriptor);

	if (fd_empty(file))
		return ERR_PTR(-EBADF);
	/* As pidfd_pid(), which is not exported to modules. */
	if (file_inode(fd_file(file))->i_sb->s_magic != PID_FS_MAGIC)
		return ERR_PTR(-EBADF);
	return get_pid(file_inode(fd_file(file))->i_private);
}

/*
 * Whether a file is /proc/PID/mem of some address space, and the caller may read and write it now.
 *
 * The kernel lets a process open this file only if the process may trace the other one, and asks the
 * security modules, which a module cannot ask. It asks them again at each access, and so does this.
 * The data of other files in /proc may be an address space, too, but none of them has this name.
 */
static int may_use_memory(struct file *file)
{
	const fmode_t both = FMODE_CAN_READ | FMODE_CAN_WRITE;
	loff_t start = 0;

	if (!file)
		return -EBADF;
	if (file_inode(file)->i_sb->s_magic != PROC_SUPER_MAGIC ||
	    strcmp(file_dentry(file)->d_name.name, "mem"))
		return -EBADF;
	if ((file->f_mode & both) != both)
		return -EACCES;
	return rw_verify_area(READ, file, &start, 0) ?: rw_verify_area(WRITE, file, &start, 0);
}

/*
 * The address space, with a reference, of the process behind a pidfd, if the caller may write to it
 * and give advice about it; else an error. `memory` is a descriptor of its /proc/PID/mem. Also
 * returns the user that its resources are accounted to.
 */
struct mm_struct *virtio_hmm_traced_mm(int pidfd, int memory,
				       struct virtio_hmm_owner *owner)
{
	CLASS(fd, opened)(memory);
	struct file *file = fd_empty(opened) ? NULL : fd_file(opened);
	struct task_struct *task;
	const struct cred *cred;
	struct mm_struct *mm;
	int error, unusable;
	struct pid *pid;

	/* With no lock held: what watches the file may make the caller wait. */
	unusable = may_use_memory(file);
	pid = pid_of(pidfd);
	if (IS_ERR(pid))
		return ERR_CAST(pid);
	task = get_pid_task(pid, PIDTYPE_TGID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);
	/* As mm_access(): an exec between the check and the use would change the process. */
	error = down_read_killable(&task->signal->exec_update_lock);
	if (error)
		goto out;
	mm = mm_of_process(task);
	if (!mm)
		error = -ESRCH;
	else if (mm == current->mm)
		/* A child of vfork() has the caller's memory, and nothing of its own. */
		error = same_thread_group(task, current) ? 0 : -EINVAL;
	/* As process_vm_writev() and process_madvise(). */
	else if (!may_trace(task) || !may_look_into(task) || !capable(CAP_SYS_NICE))
		error = -EACCES;
	else if (unusable)
		error = unusable;
	else
		/* The process may have executed another program since the file was opened. */
		error = file->private_data == mm ? 0 : -ESRCH;
	if (!error && mm == current->mm) {
		virtio_hmm_caller(owner);
	} else if (!error) {
		cred = get_task_cred(task);
		owner->user = user_of(cred);
		owner->effective = __kuid_val(cred->euid);
		owner->is_privileged = cred->user_ns == &init_user_ns &&
				       cap_raised(cred->cap_effective, CAP_SYS_RESOURCE);
		put_cred(cred);
	}
	up_read(&task->signal->exec_update_lock);
	/* Not by this thread, if it is the last reference: see observed() in mm.rs. */
	if (error && mm)
		mmput_async(mm);
out:
	put_task_struct(task);
	return error ? ERR_PTR(error) : mm;
}

/* From now on, what the calling thread allocates is charged to the process's control group. */
void *virtio_hmm_begin_charging(struct mm_struct *mm, void **group)
{
	*group = get_mem_cgroup_from_mm(mm);
	return set_active_memcg(*group);
}

void virtio_hmm_end_charging(void *before, void *group)
{
	set_active_memcg(before);
	mem_cgroup_put(group);
}

bool virtio_hmm_is_being_killed(void)
{
	return fatal_signal_pending(current);
}

bool virtio_hmm_need_resched(void)
{
	return need_resched();
}

void virtio_hmm_reinit_completion(struct completion *completion)
{
	reinit_completion(completion);
}

void virtio_hmm_init_semaphore(struct semaphore *semaphore, int value)
{
	sema_init(semaphore, value);
}

struct workqueue_struct *virtio_hmm_alloc_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_UNBOUND, 0, name);
}

unsigned long virtio_hmm_task_size(void)
{
	/* Not TASK_SIZE, which is that of the caller: the process may be another one. */
	return TASK_SIZE_MAX;
}

s64 virtio_hmm_monotonic_now(void)
{
	struct timespec64 now;

	ktime_get_ts64(&now);
	timens_add_monotonic(&now);
	return timespec64_to_ns(&now);
}

void virtio_hmm_set_seq(struct mmu_interval_notifier *notifier, unsigned long seq)
{
	mmu_interval_set_seq(notifier, seq);
}

bool virtio_hmm_read_retry(struct mmu_interval_notifier *notifier,
			   unsigned long seq)
{
	return mmu_interval_read_retry(notifier, seq);
}

bool virtio_hmm_blockable(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range);
}

static atomic_t works_added = ATOMIC_INIT(0);

/*
 * Makes the caller run a function on its way back to user mode, with a reference to the module.
 * Fails for a thread that never returns to user mode, and for one that reclaims memory.
 */
bool virtio_hmm_add_task_work(struct callback_head *head,
			      void (*run)(struct callback_head *head))
{
	if (current->flags & (PF_KTHREAD | PF_USER_WORKER | PF_EXITING | PF_MEMALLOC))
		return false;
	if (!try_module_get(THIS_MODULE))
		return false;
	init_task_work(head, run);
	atomic_set(&works_added, 1);
	if (task_work_add(current, head, TWA_RESUME)) {
		module_put(THIS_MODULE);
		return false;
	}
	return true;
}

bool virtio_hmm_is_ending(void)
{
	return current->flags & PF_EXITING;
}

void virtio_hmm_put_module(void)
{
	module_put(THIS_MODULE);
}

/* Waits until no task still runs a function from virtio_hmm_add_task_work(). */
void virtio_hmm_wait_for_tasks(void)
{
	if (atomic_read(&works_added))
		synchronize_rcu_tasks();
}

/* Whether userfaultfd(2) may be tracking writes to a VMA. */
bool virtio_hmm_is_write_tracked(struct vm_area_struct *vma)
{
	return userfaultfd_wp(vma);
}

/*
 * Whether a VMA has what no other process can access, not even one that traces the owner, and no
 * plain store of the owner: memory of memfd_secret(2), and shadow stacks. hmm_range_fault() does not
 * make the difference, get_user_pages() does.
 */
bool virtio_hmm_is_private_to_cpus(struct vm_area_struct *vma)
{
	struct file *file = vma->vm_file;

	return vma->vm_flags & VM_SHADOW_STACK ||
	       (file && file_inode(file)->i_sb->s_magic == SECRETMEM_MAGIC);
}

/* Takes the mmap lock for reading; -EINTR if the caller is being killed. */
int virtio_hmm_mmap_read_lock_killable(struct mm_struct *mm)
{
	return mmap_read_lock_killable(mm);
}

/* Takes the mmap lock for writing; -EINTR if the caller is being killed. */
int virtio_hmm_mmap_write_lock_killable(struct mm_struct *mm)
{
	return mmap_write_lock_killable(mm);
}

void virtio_hmm_mmap_write_unlock(struct mm_struct *mm)
{
	mmap_write_unlock(mm);
}

struct waker {
	struct timer_list timer;
	struct task_struct *task;
};

static void waker_rings(struct timer_list *timer)
{
	struct waker *waker = timer_container_of(waker, timer, timer);

	send_sig(SIGKILL, waker->task, 1);
}

/*
 * As hmm_range_fault_unlocked_timeout(), but a kernel thread returns with -EINTR after a while. If
 * a program has to provide the page, it may take long or never come. The kernel waits until the
 * caller is killed, and kernel threads are not killed.
 */
int virtio_hmm_range_fault(struct hmm_range *range, unsigned long timeout,
			   unsigned long slice)
{
	struct waker waker = { .task = current };
	int result;

	if (!(current->flags & PF_KTHREAD))
		return hmm_range_fault_unlocked_timeout(range, timeout);
	allow_signal(SIGKILL);
	timer_setup_on_stack(&waker.timer, waker_rings, 0);
	mod_timer(&waker.timer, jiffies + slice);
	result = hmm_range_fault_unlocked_timeout(range, timeout);
	timer_delete_sync(&waker.timer);
	timer_destroy_on_stack(&waker.timer);
	/* Also discards the signal if it is pending. */
	disallow_signal(SIGKILL);
	return result;
}

/* Whether a process with this address space is left. References held by observers do not count. */
bool virtio_hmm_has_process(struct mm_struct *mm)
{
#ifdef CONFIG_MEMCG
	return rcu_access_pointer(mm->owner);
#else
	struct task_struct *process, *thread;

	/* Without an owner, a search. Only the holder of the last reference need not search. */
	if (atomic_read(&mm->mm_users) == 1)
		return false;
	guard(rcu)();
	for_each_process_thread(process, thread)
		if (READ_ONCE(thread->mm) == mm && !(thread->flags & PF_KTHREAD))
			return true;
	return false;
#endif
}

/*
 * The address space, with a reference, of the process at this position in the list of all
 * processes, if it has one. Returns false beyond the end of the list. When a process ends, the
 * positions of others change.
 */
bool virtio_hmm_process_mm(unsigned int number, struct mm_struct **mm)
{
	struct task_struct *task;
	bool found = false;

	*mm = NULL;
	rcu_read_lock();
	for_each_process(task) {
		if (number--)
			continue;
		found = true;
		*mm = get_task_mm(task);
		break;
	}
	rcu_read_unlock();
	return found;
}

/* The conditions of migrate_vma_setup(). */
bool virtio_hmm_is_migratable(struct vm_area_struct *vma)
{
	return !is_vm_hugetlb_page(vma) && !(vma->vm_flags & VM_SPECIAL) && !vma_is_dax(vma);
}

void virtio_hmm_mark_dirty(unsigned long pfn)
{
	struct folio *folio = page_folio(pfn_to_page(pfn));

	/*
	 * Some file systems sleep when a folio becomes dirty. Their folios are already dirty as
	 * long as a process may write to them, because they are write-protected before they are
	 * cleaned. For all other folios this only sets the flag.
	 */
	if (!folio_test_dirty(folio))
		folio_mark_dirty(folio);
}

bool virtio_hmm_is_zero_page(unsigned long pfn)
{
	return is_zero_pfn(pfn);
}

bool virtio_hmm_is_coherent_page(unsigned long pfn)
{
	return is_device_coherent_page(pfn_to_page(pfn));
}

/*
 * Where the kernel can read and write a page. NULL if it is in device memory without addresses for
 * CPUs, or if the kernel has taken it out of its own map for the sake of memfd_secret(2).
 */
static void *address_of(unsigned long pfn)
{
	struct page *page = pfn_to_page(pfn);
	void *address;
	u8 byte;

	if (is_zone_device_page(page) && !is_device_coherent_page(page))
		return NULL;
	address = page_address(page);
	return copy_from_kernel_nofault(&byte, address, sizeof(byte)) ? NULL : address;
}

/* Copies the contents of a page, if the kernel can; returns whether it did. */
bool virtio_hmm_read_page(unsigned long pfn, void *into)
{
	void *address = address_of(pfn);

	if (address)
		memcpy(into, address, PAGE_SIZE);
	return address;
}

/* Copies to a page, if the kernel can; returns whether it did. */
bool virtio_hmm_write_page(unsigned long pfn, const void *from)
{
	void *address = address_of(pfn);

	if (address)
		memcpy(address, from, PAGE_SIZE);
	return address;
}

struct page *virtio_hmm_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

unsigned long virtio_hmm_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

unsigned long virtio_hmm_folio_pfn(struct folio *folio)
{
	return folio_pfn(folio);
}

unsigned int virtio_hmm_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

int virtio_hmm_folio_mapcount(struct folio *folio)
{
	return folio_mapcount(folio);
}

bool virtio_hmm_is_large(unsigned long pfn)
{
	return PageHead(pfn_to_page(pfn));
}

struct folio *virtio_hmm_page_folio(struct page *page)
{
	return page_folio(page);
}

struct dev_pagemap *virtio_hmm_folio_pagemap(struct folio *folio)
{
	return folio->pgmap;
}

struct dev_pagemap *virtio_hmm_page_pagemap(struct page *page)
{
	return page_pgmap(page);
}

void virtio_hmm_unlock_and_put(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_unlock(folio);
	folio_put(folio);
}

void virtio_hmm_get_page(struct page *page)
{
	get_page(page);
}

void virtio_hmm_put_page(struct page *page)
{
	put_page(page);
}

struct page *virtio_hmm_alloc_locked(unsigned int order, bool insist,
				     struct vm_area_struct *vma,
				     unsigned long address)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE;
	struct folio *folio;

	/* A large folio has a substitute. Wait for compaction only if the caller insists. */
	if (order && insist)
		gfp = GFP_TRANSHUGE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
	else if (order)
		gfp = GFP_TRANSHUGE_LIGHT | __GFP_NOWARN;
	if (vma)
		folio = vma_alloc_folio(gfp, order, vma, address);
	else
		folio = folio_alloc(gfp, order);
	if (!folio)
		return NULL;
	folio_lock(folio);
	return folio_page(folio, 0);
}

void virtio_hmm_init_device_folio(struct page *page, struct dev_pagemap *pagemap,
				  unsigned int order)
{
	zone_device_folio_init((struct folio *)page, pagemap, order);
}

struct resource *virtio_hmm_request_free_region(unsigned long bytes,
						const char *name)
{
	return request_free_mem_region(&iomem_resource, bytes, name);
}

struct resource *virtio_hmm_request_region(u64 start, u64 bytes, const char *name)
{
	return request_mem_region(start, bytes, name);
}

void virtio_hmm_release_region(struct resource *region)
{
	release_mem_region(region->start, resource_size(region));
}

int virtio_hmm_memremap(struct dev_pagemap *pagemap, const struct resource *region,
			bool coherent, void *owner)
{
	pagemap->type = coherent ? MEMORY_DEVICE_COHERENT : MEMORY_DEVICE_PRIVATE;
	pagemap->range.start = region->start;
	pagemap->range.end = region->end;
	pagemap->nr_range = 1;
	pagemap->owner = owner;
	/* Only processes use its addresses, so there is none to return. */
	return PTR_ERR_OR_ZERO(memremap_pages(pagemap, numa_mem_id()));
}

void virtio_hmm_put_pagemap(struct dev_pagemap *pagemap)
{
	put_dev_pagemap(pagemap);
}

struct vm_area_struct *virtio_hmm_fault_vma(struct vm_fault *vmf)
{
	return vmf->vma;
}

unsigned long virtio_hmm_fault_address(struct vm_fault *vmf)
{
	return vmf->address;
}

bool virtio_hmm_fault_by_page(struct vm_fault *vmf)
{
	return vmf->pte;
}

struct page *virtio_hmm_fault_page(struct vm_fault *vmf)
{
	return vmf->page;
}
