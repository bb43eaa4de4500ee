/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What Rust cannot call because it is a macro or a static inline of a C header, or because the
 * kernel has no function for it. sys.rs sees these declarations through bindgen.
 *
 * The functions are defined in shim.c unless noted otherwise. A function named after a kernel
 * function has the same requirements for its caller.
 */
#ifndef VIRTIO_HMM_SHIM_H
#define VIRTIO_HMM_SHIM_H

#include <linux/jump_label.h>
#include <linux/types.h>

struct completion;
struct dentry;
struct dev_pagemap;
struct device;
struct folio;
struct hmm_range;
struct mm_struct;
struct mmu_interval_notifier;
struct mmu_notifier_range;
struct page;
struct resource;
struct semaphore;
struct seq_file;
struct vm_area_struct;
struct vm_fault;
struct virtio_device;
struct virtqueue;
struct workqueue_struct;

/* The maximum number of pieces of both sides of a chain together. */
#define VIRTIO_HMM_MAX_PIECES 40

/* virtio/bus.rs: defined in virtio.c */
struct device *virtio_hmm_device(struct virtio_device *vdev);
struct virtio_device *virtio_hmm_from_device(struct device *dev);
void *virtio_hmm_priv(struct virtqueue *vq);
void virtio_hmm_set_priv(struct virtio_device *vdev, void *priv);
unsigned int virtio_hmm_queue_index(struct virtqueue *vq);
u32 virtio_hmm_read_config(struct virtio_device *vdev, unsigned int offset);
bool virtio_hmm_has_version_1(struct virtio_device *vdev);
void virtio_hmm_refuse_platform_access(struct virtio_device *vdev);
bool virtio_hmm_get_shm_region(struct virtio_device *vdev, u8 id, u64 *start,
			       u64 *bytes);
int virtio_hmm_find_queues(struct virtio_device *vdev, unsigned int count,
			   struct virtqueue **queues, const char *const *names,
			   void (*callback)(struct virtqueue *vq));
void virtio_hmm_delete_queues(struct virtio_device *vdev);
void virtio_hmm_device_ready(struct virtio_device *vdev);
int virtio_hmm_negotiate(struct virtio_device *vdev);
int virtio_hmm_add(struct virtqueue *vq, void *out, size_t out_len, void *in,
		   size_t in_len, void *token);

/* process.rs */
/* The user that the resources of a process are accounted to. */
struct virtio_hmm_owner {
	/* The user that they count for; see virtio_hmm_caller(). */
	u32 user;
	/* The effective user. */
	u32 effective;
	/* Whether the process has CAP_SYS_RESOURCE. */
	bool is_privileged;
};
void virtio_hmm_caller(struct virtio_hmm_owner *owner);
struct mm_struct *virtio_hmm_mm_of(pid_t number);
struct mm_struct *virtio_hmm_traced_mm(int pidfd, int memory,
				       struct virtio_hmm_owner *owner);
void *virtio_hmm_begin_charging(struct mm_struct *mm, void **group);
void virtio_hmm_end_charging(void *before, void *group);
bool virtio_hmm_is_being_killed(void);

/* wait.rs */
bool virtio_hmm_need_resched(void);
void virtio_hmm_reinit_completion(struct completion *completion);
void virtio_hmm_init_semaphore(struct semaphore *semaphore, int value);
struct workqueue_struct *virtio_hmm_alloc_workqueue(const char *name);

/* mm.rs */
bool virtio_hmm_has_process(struct mm_struct *mm);
bool virtio_hmm_process_mm(unsigned int number, struct mm_struct **mm);

/* process.rs, wait.rs */
unsigned long virtio_hmm_task_size(void);
s64 virtio_hmm_monotonic_now(void);

/* mm/mmu_notifier.rs */
void virtio_hmm_set_seq(struct mmu_interval_notifier *notifier, unsigned long seq);
bool virtio_hmm_read_retry(struct mmu_interval_notifier *notifier,
			   unsigned long seq);
bool virtio_hmm_blockable(const struct mmu_notifier_range *range);

/* mm/turn.rs */
bool virtio_hmm_add_task_work(struct callback_head *head,
			      void (*run)(struct callback_head *head));
bool virtio_hmm_is_ending(void);
void virtio_hmm_put_module(void);
void virtio_hmm_wait_for_tasks(void);

/* mm/locked.rs */
bool virtio_hmm_is_write_tracked(struct vm_area_struct *vma);
bool virtio_hmm_is_private_to_cpus(struct vm_area_struct *vma);
int virtio_hmm_mmap_read_lock_killable(struct mm_struct *mm);
int virtio_hmm_mmap_write_lock_killable(struct mm_struct *mm);
void virtio_hmm_mmap_write_unlock(struct mm_struct *mm);

/* mm/hmm.rs, mm/exclusive.rs */
int virtio_hmm_range_fault(struct hmm_range *range, unsigned long timeout,
			   unsigned long slice);
void virtio_hmm_mark_dirty(unsigned long pfn);
bool virtio_hmm_is_zero_page(unsigned long pfn);
bool virtio_hmm_is_coherent_page(unsigned long pfn);

/* mm/hmm.rs, mm/exclusive.rs, mm/migrate.rs */
bool virtio_hmm_read_page(unsigned long pfn, void *into);
bool virtio_hmm_write_page(unsigned long pfn, const void *from);

/* mm/locked.rs */
bool virtio_hmm_is_migratable(struct vm_area_struct *vma);

/* mm/migrate.rs, mm/memremap.rs, mm/exclusive.rs */
struct page *virtio_hmm_pfn_to_page(unsigned long pfn);
unsigned long virtio_hmm_page_to_pfn(struct page *page);
unsigned long virtio_hmm_folio_pfn(struct folio *folio);
unsigned int virtio_hmm_folio_order(struct folio *folio);
int virtio_hmm_folio_mapcount(struct folio *folio);
bool virtio_hmm_is_large(unsigned long pfn);
struct folio *virtio_hmm_page_folio(struct page *page);
struct dev_pagemap *virtio_hmm_folio_pagemap(struct folio *folio);
struct dev_pagemap *virtio_hmm_page_pagemap(struct page *page);
void virtio_hmm_unlock_and_put(struct page *page);
void virtio_hmm_get_page(struct page *page);
void virtio_hmm_put_page(struct page *page);
struct page *virtio_hmm_alloc_locked(unsigned int order, bool insist,
				     struct vm_area_struct *vma,
				     unsigned long address);
void virtio_hmm_init_device_folio(struct page *page, struct dev_pagemap *pagemap,
				  unsigned int order);
struct resource *virtio_hmm_request_free_region(unsigned long bytes,
						const char *name);
struct resource *virtio_hmm_request_region(u64 start, u64 bytes, const char *name);
void virtio_hmm_release_region(struct resource *region);
int virtio_hmm_memremap(struct dev_pagemap *pagemap, const struct resource *region,
			bool coherent, void *owner);
void virtio_hmm_put_pagemap(struct dev_pagemap *pagemap);
struct vm_area_struct *virtio_hmm_fault_vma(struct vm_fault *vmf);
unsigned long virtio_hmm_fault_address(struct vm_fault *vmf);
struct page *virtio_hmm_fault_page(struct vm_fault *vmf);
bool virtio_hmm_fault_by_page(struct vm_fault *vmf);

/* mm/memremap.rs: defined in tables.c */
bool virtio_hmm_find_page(struct mm_struct *mm, unsigned long *at,
			  unsigned long end, unsigned long first_pfn,
			  unsigned long frames, bool inside);
unsigned long virtio_hmm_poison_frames(struct mm_struct *mm, unsigned long first_pfn,
				       unsigned long frames,
				       const unsigned long (*list)[2],
				       unsigned long entries);

/* quirks/: defined in quirks.c */
bool virtio_hmm_has_large_entry(struct mm_struct *mm, unsigned long start,
				unsigned long end);
void virtio_hmm_take_extra_refs(struct page *page);
void virtio_hmm_settle_extra_refs(struct page *page);
void virtio_hmm_put_fault_ref(struct page *page);
bool virtio_hmm_get_fault_ref(struct page *page);
bool virtio_hmm_revive_for_fault(struct folio *folio);
bool virtio_hmm_may_move(unsigned long pfn);
void virtio_hmm_protect_private(struct mm_struct *mm, unsigned long start,
				unsigned long end);
bool virtio_hmm_is_tracked_entry(struct mm_struct *mm, unsigned long address);
void virtio_hmm_synchronize_callbacks(struct virtio_device *vdev);

/* late.rs: defined in late.c */
struct virtio_hmm_late {
	struct static_key_false key;
};
extern struct virtio_hmm_late virtio_hmm_late;
void virtio_hmm_set_late(bool on);
/*
 * Sleeps, unless the caller is being killed. In a context that must not sleep, busy-waits briefly.
 */
void virtio_hmm_late_delay(unsigned int microseconds);
struct dentry *virtio_hmm_make_late_file(void);
void virtio_hmm_remove_late_file(struct dentry *directory);
/* Sets the rules from the module parameter; an error if they are invalid. */
int virtio_hmm_late_parameter(void);
/* These two are defined in late.rs. */
void virtio_hmm_late_show(struct seq_file *file);
int virtio_hmm_late_store(const char *text, size_t bytes);

#endif
