/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What Rust cannot call because it is a macro or a static inline of a C header.
 *
 * Nothing here decides anything: each function is its namesake, with the caller's
 * duties those of the namesake. sys.rs sees these declarations through bindgen.
 */
#ifndef VIRTIO_HMM_SHIM_H
#define VIRTIO_HMM_SHIM_H

#include <linux/types.h>

struct completion;
struct dev_pagemap;
struct device;
struct folio;
struct mmu_interval_notifier;
struct mmu_notifier_range;
struct page;
struct resource;
struct semaphore;
struct vm_area_struct;
struct vm_fault;
struct virtio_device;
struct virtqueue;
struct workqueue_struct;

/* The most pieces that both sides of a chain may consist of together. */
#define VIRTIO_HMM_MAX_PIECES 40

/* virtio.rs */
struct device *virtio_hmm_device(struct virtio_device *vdev);
void *virtio_hmm_priv(struct virtqueue *vq);
void virtio_hmm_set_priv(struct virtio_device *vdev, void *priv);
unsigned int virtio_hmm_queue_index(struct virtqueue *vq);
u32 virtio_hmm_read_config(struct virtio_device *vdev, unsigned int offset);
bool virtio_hmm_has_version_1(struct virtio_device *vdev);
bool virtio_hmm_get_shm_region(struct virtio_device *vdev, u8 id, u64 *start,
			       u64 *bytes);
int virtio_hmm_find_queues(struct virtio_device *vdev, unsigned int count,
			   struct virtqueue **queues, const char *const *names,
			   void (*callback)(struct virtqueue *vq));
void virtio_hmm_delete_queues(struct virtio_device *vdev);
void virtio_hmm_device_ready(struct virtio_device *vdev);
int virtio_hmm_add(struct virtqueue *vq, void *out, size_t out_len, void *in,
		   size_t in_len, void *token);

/* wait.rs */
bool virtio_hmm_need_resched(void);
void virtio_hmm_reinit_completion(struct completion *completion);
void virtio_hmm_init_semaphore(struct semaphore *semaphore, int value);
struct workqueue_struct *virtio_hmm_alloc_workqueue(const char *name);

/* mm/interval.rs */
void virtio_hmm_set_seq(struct mmu_interval_notifier *notifier, unsigned long seq);
bool virtio_hmm_read_retry(struct mmu_interval_notifier *notifier,
			   unsigned long seq);
bool virtio_hmm_blockable(const struct mmu_notifier_range *range);
bool virtio_hmm_has_large_entry(struct mm_struct *mm, unsigned long start,
				unsigned long end);

/* mm/hmm.rs, mm/exclusive.rs */
void virtio_hmm_mark_dirty(unsigned long pfn);
bool virtio_hmm_is_zero_page(unsigned long pfn);
bool virtio_hmm_is_coherent_page(unsigned long pfn);

/* mm/migrate.rs, mm/pagemap.rs, mm/exclusive.rs */
struct page *virtio_hmm_pfn_to_page(unsigned long pfn);
unsigned long virtio_hmm_page_to_pfn(struct page *page);
bool virtio_hmm_may_move(unsigned long pfn);
unsigned long virtio_hmm_folio_pfn(struct folio *folio);
unsigned int virtio_hmm_folio_order(struct folio *folio);
int virtio_hmm_folio_mapcount(struct folio *folio);
bool virtio_hmm_is_large(unsigned long pfn);
void virtio_hmm_brace(struct page *page);
void virtio_hmm_unbrace(struct page *page);
struct folio *virtio_hmm_page_folio(struct page *page);
struct dev_pagemap *virtio_hmm_folio_pagemap(struct folio *folio);
struct dev_pagemap *virtio_hmm_page_pagemap(struct page *page);
void virtio_hmm_unlock_and_put(struct page *page);
void virtio_hmm_get_page(struct page *page);
void virtio_hmm_put_page(struct page *page);
int virtio_hmm_poison(unsigned long pfn, bool referenced);
struct page *virtio_hmm_alloc_locked(unsigned int order, bool insist,
				     struct vm_area_struct *vma,
				     unsigned long address);
void virtio_hmm_efface_folio(struct page *page, unsigned int order);
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

#endif
