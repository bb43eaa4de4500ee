// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mm/gup_test.c lacks to be a module of a kernel that was built without it.
 */
#include <linux/mmzone.h>
#include <linux/module.h>

/*
 * The kernel does not export it. gup_test asks whether a page lies in an area for
 * contiguous allocations; the guests of the tests have no such area, and the test
 * that loads this module makes sure of that.
 */
enum migratetype get_pfnblock_migratetype(const struct page *page, unsigned long pfn)
{
	return MIGRATE_MOVABLE;
}

MODULE_DESCRIPTION("mm/gup_test.c as a module");
MODULE_LICENSE("GPL");
