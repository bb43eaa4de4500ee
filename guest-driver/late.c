// SPDX-License-Identifier: GPL-2.0
/*
 * Lateness on demand: what only C can define for late.rs: a static key, a text parameter, and a
 * file that keeps the module from being unloaded while it is open.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hrtimer.h>
#include <linux/jump_label.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "shim.h"

/* The maximum length of the text of all rules. */
#define LATE_BYTES 2048

/* The longest delay, in microseconds, of a task that must not sleep. */
#define LATE_SPIN 100U

struct virtio_hmm_late virtio_hmm_late = { .key = STATIC_KEY_FALSE_INIT };

static char late[LATE_BYTES];
module_param_string(late, late, sizeof(late), 0400);
MODULE_PARM_DESC(late, "Where the driver is late, for tests; see spec/uapi.md");

void virtio_hmm_set_late(bool on)
{
	if (on)
		static_branch_enable(&virtio_hmm_late.key);
	else
		static_branch_disable(&virtio_hmm_late.key);
}

void virtio_hmm_late_delay(unsigned int microseconds)
{
	ktime_t time = us_to_ktime(microseconds);

	if (!preemptible() || rcu_preempt_depth()) {
		udelay(min(microseconds, LATE_SPIN));
		return;
	}
	if (fatal_signal_pending(current))
		return;
	set_current_state(TASK_KILLABLE);
	schedule_hrtimeout(&time, HRTIMER_MODE_REL);
}

static int late_show(struct seq_file *file, void *unused)
{
	virtio_hmm_late_show(file);
	return 0;
}

static int late_open(struct inode *inode, struct file *file)
{
	return single_open(file, late_show, NULL);
}

static ssize_t late_write(struct file *file, const char __user *from, size_t bytes,
			  loff_t *position)
{
	char *text;
	int error;

	if (bytes > LATE_BYTES)
		return -EINVAL;
	text = memdup_user_nul(from, bytes);
	if (IS_ERR(text))
		return PTR_ERR(text);
	error = virtio_hmm_late_store(text, bytes);
	kfree(text);
	return error ? error : bytes;
}

static const struct file_operations late_file = {
	.owner = THIS_MODULE,
	.open = late_open,
	.read = seq_read,
	.write = late_write,
	.llseek = seq_lseek,
	.release = single_release,
};

struct dentry *virtio_hmm_make_late_file(void)
{
	struct dentry *directory = debugfs_create_dir("virtio_hmm", NULL);

	debugfs_create_file("late", 0600, directory, NULL, &late_file);
	return directory;
}

void virtio_hmm_remove_late_file(struct dentry *directory)
{
	debugfs_remove(directory);
}

int virtio_hmm_late_parameter(void)
{
	return virtio_hmm_late_store(late, strnlen(late, sizeof(late)));
}
