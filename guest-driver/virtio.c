// SPDX-License-Identifier: GPL-2.0
/* What virtio/ calls that only C has. Declared in shim.h. */
#include <linux/scatterlist.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/vmalloc.h>

#include "shim.h"

struct device *virtio_hmm_device(struct virtio_device *vdev)
{
	return &vdev->dev;
}

struct virtio_device *virtio_hmm_from_device(struct device *dev)
{
	return dev_to_virtio(dev);
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

void virtio_hmm_refuse_platform_access(struct virtio_device *vdev)
{
	__virtio_clear_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
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

/*
 * What the bus does before it restores a device, for one that its driver has reset: the features
 * stay those that were negotiated first. See virtio_device_restore_priv().
 */
int virtio_hmm_negotiate(struct virtio_device *vdev)
{
	int error;

	virtio_add_status(vdev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	virtio_add_status(vdev, VIRTIO_CONFIG_S_DRIVER);
	error = vdev->config->finalize_features(vdev);
	if (error)
		return error;
	virtio_add_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
	if (!(vdev->config->get_status(vdev) & VIRTIO_CONFIG_S_FEATURES_OK))
		return -ENODEV;
	return 0;
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
