/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Calls every function of libhmm where there is no device: header and library
 * agree, and mistakes are errors.
 */
#define _DEFAULT_SOURCE
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <hmm.h>

static int failures;

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__,     \
				__LINE__, #condition);                         \
			failures++;                                            \
		}                                                              \
	} while (0)

static void opening(void)
{
	struct hmm_device *device = NULL;

	CHECK(hmm_open("/dev/there-is-no-such-node", &device) == -ENOENT);
	CHECK(hmm_open("/", &device) == -EISDIR);
	CHECK(device == NULL);
	CHECK(hmm_open(NULL, &device) == -EFAULT);
	CHECK(hmm_open("/dev/null", NULL) == -EFAULT);
	hmm_close(NULL);
}

/* A file that is no such device refuses every call in the same way. */
static void a_file_of_another_kind(void)
{
	struct hmm_device *device = NULL;
	struct virtio_hmm_info info;
	struct virtio_hmm_counters counters;
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	struct hmm_migration migration;
	const uint64_t arguments[] = { 0, 0, VIRTIO_HMM_ELEMENT_U64 };
	uint64_t fence = 7;
	uint8_t states[2] = { 0xff, 0xff };
	char page[4096];

	CHECK(hmm_open("/dev/null", &device) == 0);
	CHECK(device != NULL);
	CHECK(hmm_fd(device) > 2);
	CHECK(hmm_bind(device) == -ENOTTY);
	CHECK(hmm_info(device, &info) == -ENOTTY);
	CHECK(hmm_counters(device, &counters) == -ENOTTY);
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 3) == 0);
	CHECK(hmm_submit(device, &job, 1, -1, &fence) == -ENOTTY);
	CHECK(hmm_submit(device, &job, 1, -2, &fence) == -EBADF);
	CHECK(hmm_run(device, &job, &reply) == -ENOTTY);
	CHECK(hmm_wait(device, 1, 0, &reply) == -ENOTTY);
	CHECK(hmm_wait_any(device, &fence, 1, 0, &fence, &reply) == -ENOTTY);
	CHECK(hmm_cancel(device, 1) == -ENOTTY);
	CHECK(hmm_migrate(device, page, sizeof(page),
			  VIRTIO_HMM_DESTINATION_DEVICE, 0,
			  &migration) == -ENOTTY);
	CHECK(hmm_residency(device, 0, page, 1, states, 2) == -ENOTTY);
	CHECK(fence == 7);

	/* Mistakes are found before the driver is asked. */
	CHECK(hmm_migrate(device, page, sizeof(page), 2, 0, NULL) == -EINVAL);
	CHECK(hmm_migrate(device, page, sizeof(page), 1, 2, NULL) == -EINVAL);
	CHECK(hmm_migrate(device, page, SIZE_MAX, 1, 0, NULL) == -EINVAL);
	CHECK(hmm_migrate(device, page, 0, 1, 0, &migration) == 0);
	CHECK(migration.moved == 0 && migration.skipped == 0);
	CHECK(hmm_residency(device, 0, page, 4097, NULL, 0) >= 2);
	CHECK(hmm_residency(device, 0, page, 1, NULL, 2) == -EFAULT);
	CHECK(states[0] == 0xff);
	CHECK(hmm_info(device, NULL) == -ENOTTY);
	CHECK(hmm_wait(device, 1, 0, NULL) == -EFAULT);
	CHECK(hmm_wait_any(device, NULL, 1, 0, &fence, &reply) == -EFAULT);
	CHECK(hmm_submit(device, NULL, 1, -1, &fence) == -EFAULT);
	hmm_close(device);
}

static void no_device(void)
{
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	uint64_t fence;

	memset(&job, 0, sizeof(job));
	CHECK(hmm_fd(NULL) == -EFAULT);
	CHECK(hmm_bind(NULL) == -EFAULT);
	CHECK(hmm_info(NULL, NULL) == -EFAULT);
	CHECK(hmm_counters(NULL, NULL) == -EFAULT);
	CHECK(hmm_submit(NULL, &job, 1, -1, &fence) == -EFAULT);
	CHECK(hmm_run(NULL, &job, &reply) == -EFAULT);
	CHECK(hmm_wait(NULL, 1, 0, &reply) == -EFAULT);
	CHECK(hmm_wait_any(NULL, NULL, 0, 0, &fence, &reply) == -EFAULT);
	CHECK(hmm_cancel(NULL, 1) == -EFAULT);
	CHECK(hmm_migrate(NULL, NULL, 0, 0, 0, NULL) == -EFAULT);
	CHECK(hmm_residency(NULL, 0, NULL, 0, NULL, 0) == -EFAULT);
}

static void jobs(void)
{
	struct virtio_hmm_job_descriptor job;
	uint64_t arguments[VIRTIO_HMM_MAX_ARGUMENTS + 1] = { 0x1000, 3, 2 };

	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 3) == 0);
	CHECK(job.operation == htole32(VIRTIO_HMM_OPERATION_SUM));
	CHECK(job.arguments[0] == htole64(0x1000));
	CHECK(job.arguments[2] == htole64(VIRTIO_HMM_ELEMENT_U64));
	CHECK(job.arguments[3] == 0);
	/* One too few, one too many, and far too many. */
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 2) ==
	      -EINVAL);
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 4) ==
	      -EINVAL);
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments,
			   VIRTIO_HMM_MAX_ARGUMENTS + 1) == -EINVAL);
	arguments[2] = 77;
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 3) ==
	      -EINVAL);
	CHECK(hmm_job_init(&job, 9999, arguments, 3) == -EOPNOTSUPP);
	CHECK(hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, NULL, 3) == -EFAULT);
	CHECK(hmm_job_init(NULL, VIRTIO_HMM_OPERATION_SUM, arguments, 3) ==
	      -EFAULT);
	CHECK(job.arguments[0] == htole64(0x1000));
}

static void words(void)
{
	struct virtio_hmm_job_reply reply;
	char text[256], cut[5];
	size_t length;

	length = hmm_error_text(-EPERM, text, sizeof(text));
	CHECK(length == strlen(text));
	CHECK(strstr(text, "not bound") != NULL);
	CHECK(hmm_error_text(-EPERM, cut, sizeof(cut)) == length);
	CHECK(strlen(cut) == 4 && strncmp(cut, text, 4) == 0);
	CHECK(hmm_error_text(-EPERM, NULL, 0) == length);

	memset(&reply, 0, sizeof(reply));
	hmm_job_text(&reply, text, sizeof(text));
	CHECK(strcmp(text, "the job ended well") == 0);
	reply.status = htole32(VIRTIO_HMM_STATUS_FAULT);
	reply.reason = htole32(VIRTIO_HMM_REASON_UNMAPPED);
	reply.address = htole64(0x7000);
	hmm_job_text(&reply, text, sizeof(text));
	CHECK(strstr(text, "0x7000") != NULL);
	CHECK(strstr(text, "nothing is mapped") != NULL);
	CHECK(hmm_job_text(NULL, text, sizeof(text)) == 0);

	CHECK(strchr(hmm_version(), '.') != NULL);
}

int main(void)
{
	/* The structure that is not the driver's: as in guest/c/src/pages.rs. */
	CHECK(sizeof(struct hmm_migration) == 24);
	CHECK(offsetof(struct hmm_migration, no_memory) == 16);
	opening();
	a_file_of_another_kind();
	no_device();
	jobs();
	words();
	return failures != 0;
}
