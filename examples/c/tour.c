/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * A tour of the device in C: an array and a list on it, and a job that is
 * cancelled. docs/languages.md says how to build and run it.
 */
#define _DEFAULT_SOURCE
#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <hmm.h>

#define PAGE 4096
#define COUNT (1 << 20)
#define BYTES (COUNT * sizeof(uint64_t))
#define PAGES (BYTES / PAGE)
#define NODES 1000

struct node {
	struct node *next;
	uint64_t value;
};

/* Ends the program if a call failed; otherwise returns its result. */
static int64_t must(int64_t result, const char *what)
{
	char text[256];

	if (result < 0) {
		hmm_error_text((int)result, text, sizeof(text));
		fprintf(stderr, "tour: %s: %s\n", what, text);
		exit(1);
	}
	return result;
}

static uint64_t address(const void *pointer)
{
	return (uintptr_t)pointer;
}

/* Runs a job that must end well. */
static struct virtio_hmm_job_reply run(struct hmm_device *device,
				       enum virtio_hmm_operation operation,
				       const uint64_t *arguments, size_t count)
{
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	char text[256];

	must(hmm_job_init(&job, operation, arguments, count), "making a job");
	must(hmm_run(device, &job, &reply), "running a job");
	if (le32toh(reply.status) != VIRTIO_HMM_STATUS_OK) {
		hmm_job_text(&reply, text, sizeof(text));
		fprintf(stderr, "tour: %s\n", text);
		exit(1);
	}
	return reply;
}

static unsigned int pages_on_device(struct hmm_device *device,
				    const void *start)
{
	static uint8_t states[PAGES];
	unsigned int count = 0;
	size_t page;

	must(hmm_residency(device, 0, start, BYTES, states, PAGES),
	     "asking where pages are");
	for (page = 0; page < PAGES; page++)
		count += (states[page] & VIRTIO_HMM_PAGE_PLACE) ==
			 VIRTIO_HMM_PAGE_DEVICE;
	return count;
}

/* An array moves to the device, and is added up there. */
static void array(struct hmm_device *device)
{
	uint64_t *numbers = aligned_alloc(PAGE, BYTES);
	struct hmm_migration migration;
	struct virtio_hmm_job_reply reply;
	uint64_t sum = 0;
	size_t i;

	if (!numbers)
		abort();
	for (i = 0; i < COUNT; i++)
		numbers[i] = i;
	must(hmm_migrate(device, numbers, BYTES, VIRTIO_HMM_DESTINATION_DEVICE,
			 0, &migration),
	     "moving pages");
	printf("moved: %llu of %u pages\n", (unsigned long long)migration.moved,
	       (unsigned int)PAGES);

	reply = run(device, VIRTIO_HMM_OPERATION_SUM,
		    (uint64_t[]){ address(numbers), COUNT,
				  VIRTIO_HMM_ELEMENT_U64 },
		    3);
	printf("sum: %llu\n", (unsigned long long)le64toh(reply.values[0]));
	printf("on the device: %u\n", pages_on_device(device, numbers));

	/* The CPU needs them now, and they come back by themselves. */
	for (i = 0; i < COUNT; i++)
		sum += numbers[i];
	printf("sum by the CPU: %llu\n", (unsigned long long)sum);
	printf("on the device: %u\n", pages_on_device(device, numbers));
	free(numbers);
}

/* The device follows the program's own pointers. */
static void list(struct hmm_device *device)
{
	struct node *nodes = calloc(NODES, sizeof(*nodes));
	struct virtio_hmm_job_reply reply;
	size_t i;

	if (!nodes)
		abort();
	for (i = 0; i < NODES; i++) {
		nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : NULL;
		nodes[i].value = i;
	}
	reply = run(device, VIRTIO_HMM_OPERATION_LIST_WALK,
		    (uint64_t[]){ address(nodes), offsetof(struct node, next),
				  offsetof(struct node, value), 7, NODES },
		    5);
	printf("list: %llu nodes, sum %llu, 7 is in node %td\n",
	       (unsigned long long)le64toh(reply.values[0]),
	       (unsigned long long)le64toh(reply.values[1]),
	       (struct node *)(uintptr_t)le64toh(reply.values[2]) - nodes);
	free(nodes);
}

/* A job that would run for years is ended early. */
static void cancel(struct hmm_device *device)
{
	static uint64_t counter;
	const uint64_t arguments[] = { address(&counter),
				       VIRTIO_HMM_ELEMENT_U64, 1, 1ULL << 60 };
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	uint64_t fence;
	char text[256];

	must(hmm_job_init(&job, VIRTIO_HMM_OPERATION_ATOMIC_ADD, arguments, 4),
	     "making a job");
	must(hmm_submit(device, &job, 1, -1, &fence), "submitting a job");
	if (hmm_wait(device, fence, 10 * 1000 * 1000, &reply) != -ETIME) {
		fprintf(stderr, "tour: the job should still run\n");
		exit(1);
	}
	must(hmm_cancel(device, fence), "cancelling a job");
	/* Until this has returned, the job uses the counter. */
	must(hmm_wait(device, fence, -1, &reply), "waiting for a job");
	hmm_job_text(&reply, text, sizeof(text));
	printf("cancelled: %s\n", text);
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "/dev/hmm0";
	struct virtio_hmm_info info;
	struct hmm_device *device;

	must(hmm_open(path, &device), path);
	must(hmm_bind(device), "binding");
	must(hmm_info(device, &info), "asking the device");
	printf("device: %llu MiB\n",
	       (unsigned long long)info.device_memory >> 20);
	array(device);
	list(device);
	cancel(device);
	hmm_close(device);
	return 0;
}
