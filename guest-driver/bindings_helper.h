/* SPDX-License-Identifier: GPL-2.0 */
/* What sys.rs needs bindings of, in addition to those of the kernel crate. */
#include <linux/eventfd.h>
#include <linux/hmm.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/rmap.h>
#include <linux/semaphore.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "shim.h"
#include "trace.h"
