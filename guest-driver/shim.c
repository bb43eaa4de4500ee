// SPDX-License-Identifier: GPL-2.0
/* See shim.h. */
#include <linux/completion.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/ioport.h>
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/scatterlist.h>
#include <linux/sched.h>
#include <linux/semaphore.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#include "shim.h"

struct device *virtio_hmm_device(struct virtio_device *vdev)
{
	return &vdev->dev;
}

void *virtio_hmm_priv(struct virtqueue *vq)
{
	return vq->vdev->priv;
}

void virtio_hmm_set_priv(struct virtio_device *vdev, void *priv)
{
	vdev->priv = priv;
}

unsigned int virtio_hmm_queue_index(struct virtqueue *vq)
{
	return vq->index;
}

u32 virtio_hmm_read_config(struct virtio_device *vdev, unsigned int offset)
{
	return virtio_cread32(vdev, offset);
}

bool virtio_hmm_has_version_1(struct virtio_device *vdev)
{
	return virtio_has_feature(vdev, VIRTIO_F_VERSION_1);
}

bool virtio_hmm_get_shm_region(struct virtio_device *vdev, u8 id, u64 *start,
			       u64 *bytes)
{
	struct virtio_shm_region region;

	if (!virtio_get_shm_region(vdev, &region, id))
		return false;
	*start = region.addr;
	*bytes = region.len;
	return true;
}

int virtio_hmm_find_queues(struct virtio_device *vdev, unsigned int count,
			   struct virtqueue **queues, const char *const *names,
			   void (*callback)(struct virtqueue *vq))
{
	struct virtqueue_info info[8] = {};
	unsigned int i;

	if (count > ARRAY_SIZE(info))
		return -EINVAL;
	for (i = 0; i < count; i++) {
		info[i].name = names[i];
		info[i].callback = callback;
	}
	return virtio_find_vqs(vdev, count, queues, info, NULL);
}

void virtio_hmm_delete_queues(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

void virtio_hmm_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

/* Describes linear or vmalloc memory; returns the pieces, 0 if there are too many. */
static unsigned int fill(struct scatterlist *sg, unsigned int max, void *buffer,
			 size_t len)
{
	unsigned int count = 0;

	if (!max)
		return 0;
	sg_init_table(sg, max);
	while (len) {
		size_t piece = len;

		if (count == max)
			return 0;
		if (is_vmalloc_addr(buffer)) {
			piece = min_t(size_t, len, PAGE_SIZE - offset_in_page(buffer));
			sg_set_page(&sg[count], vmalloc_to_page(buffer), piece,
				    offset_in_page(buffer));
		} else {
			sg_set_buf(&sg[count], buffer, piece);
		}
		buffer += piece;
		len -= piece;
		count++;
	}
	sg_mark_end(&sg[count - 1]);
	return count;
}

int virtio_hmm_add(struct virtqueue *vq, void *out, size_t out_len, void *in,
		   size_t in_len, void *token)
{
	struct scatterlist sg[VIRTIO_HMM_MAX_PIECES];
	unsigned int used = 0, outs = 0, ins = 0, count;
	struct scatterlist *sgs[2];

	if (out_len) {
		count = fill(sg, ARRAY_SIZE(sg), out, out_len);
		if (!count)
			return -E2BIG;
		sgs[outs++] = sg;
		used = count;
	}
	if (in_len) {
		count = fill(sg + used, ARRAY_SIZE(sg) - used, in, in_len);
		if (!count)
			return -E2BIG;
		sgs[outs + ins++] = sg + used;
	}
	return virtqueue_add_sgs(vq, sgs, outs, ins, token, GFP_ATOMIC);
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

/*
 * Whether the range has, as a whole, a large page that is not present: in device memory, or on
 * the move. The caller must hold what keeps the page tables of its areas.
 */
bool virtio_hmm_has_large_entry(struct mm_struct *mm, unsigned long start,
				unsigned long end)
{
	unsigned long address, next;

	for (address = round_up(start, PMD_SIZE);
	     address >= start && address < end && end - address >= PMD_SIZE; address = next) {
		pgd_t *pgd = pgd_offset(mm, address);
		p4d_t *p4d;
		pud_t *pud;
		pmd_t pmd;

		next = pgd_addr_end(address, end);
		if (pgd_none(*pgd) || pgd_bad(*pgd))
			continue;
		p4d = p4d_offset(pgd, address);
		next = p4d_addr_end(address, end);
		if (p4d_none(*p4d) || p4d_bad(*p4d))
			continue;
		pud = pud_offset(p4d, address);
		next = pud_addr_end(address, end);
		if (pud_none(*pud) || !pud_present(*pud) || pud_leaf(*pud))
			continue;
		next = address + PMD_SIZE;
		pmd = pmdp_get_lockless(pmd_offset(pud, address));
		if (!pmd_none(pmd) && !pmd_present(pmd))
			return true;
	}
	return false;
}

void virtio_hmm_mark_dirty(unsigned long pfn)
{
	struct folio *folio = page_folio(pfn_to_page(pfn));

	/*
	 * Some file systems sleep when a folio becomes dirty. Their folios are dirty
	 * already as long as a process may write to them: they are protected before
	 * they are cleaned. All others only set the flag here.
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

struct page *virtio_hmm_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

unsigned long virtio_hmm_page_to_pfn(struct page *page)
{
	return page_to_pfn(page);
}

bool virtio_hmm_may_move(unsigned long pfn)
{
	struct folio *folio = page_folio(pfn_to_page(pfn));

	/*
	 * A page that KSM has merged would move for all who share it, and ksmd would
	 * then compare others with it: by CPU, in memory that no CPU can read.
	 */
	if (folio_test_ksm(folio))
		return false;
	/*
	 * A page that has moved away already, but that somebody still holds, has given
	 * its charge to its successor. Another one would have none, and whoever puts it
	 * on an LRU list would look for its lruvec for ever (folio_lruvec_lock()).
	 */
	return mem_cgroup_disabled() || !folio_is_zone_device(folio) ||
	       folio_memcg_charged(folio);
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

/* How many entries a large folio that has none was said to have lost; corrects that. */
static int forget_taken(struct folio *folio)
{
	/* What an entry of a whole folio counts for in _nr_pages_mapped: mm/internal.h. */
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

/* More than processes can lose a page in the time that a move takes to end. */
#define SPARE_REFERENCES 1024

void virtio_hmm_brace(struct page *page)
{
	/* While it is on the move: that of the fault and that of the move. */
	const int held = 2;
	struct folio *folio = page_folio(page);

	/*
	 * Not as many as were taken: the exchange of the memory sets the count for a moment to
	 * zero, and then to what it was before.
	 */
	if (forget_taken(folio))
		folio_ref_add(folio, max(held - folio_ref_count(folio), 0));
	folio_ref_add(folio, SPARE_REFERENCES);
}

void virtio_hmm_unbrace(struct page *page)
{
	struct folio *folio = page_folio(page);

	folio_ref_add(folio, forget_taken(folio));
	folio_ref_sub(folio, SPARE_REFERENCES);
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

int virtio_hmm_poison(unsigned long pfn, bool referenced)
{
	return memory_failure(pfn, referenced ? MF_COUNT_INCREASED : 0);
}

struct page *virtio_hmm_alloc_locked(unsigned int order, bool insist,
				     struct vm_area_struct *vma,
				     unsigned long address)
{
	gfp_t gfp = GFP_HIGHUSER_MOVABLE;
	struct folio *folio;

	/* A large folio has a substitute; only who insists waits for compaction. */
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

void virtio_hmm_efface_folio(struct page *page, unsigned int order)
{
	unsigned int i;

	for (i = 0; i < 1U << order; i++)
		memset_page(page + i, 0, 0xff, PAGE_SIZE);
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
	/* Nobody but the processes uses an address of it: there is nothing to return. */
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
