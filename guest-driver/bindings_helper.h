/* SPDX-License-Identifier: GPL-2.0 */
/* What sys.rs wants bindings of, beside what the kernel crate has. */
#include <linux/hmm.h>
#include <linux/memremap.h>
#include <linux/migrate.h>
#include <linux/rmap.h>
#include <linux/semaphore.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "shim.h"
