/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
#define _DEFAULT_SOURCE
#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <hmm.h>

#define COUNT 1000000

int main(void)
{
	/* Ordinary memory. The device is not told about it. */
	uint64_t *numbers = malloc(COUNT * sizeof(*numbers));
	struct virtio_hmm_job_descriptor job;
	struct virtio_hmm_job_reply reply;
	struct hmm_device *device;
	char text[256];
	int error;

	if (!numbers)
		return 1;
	for (uint64_t i = 0; i < COUNT; i++)
		numbers[i] = i;

	/* A pointer is an argument like any other. */
	const uint64_t arguments[] = { (uintptr_t)numbers, COUNT,
				       VIRTIO_HMM_ELEMENT_U64 };

	error = hmm_open("/dev/hmm0", &device);
	if (!error)
		error = hmm_bind(device);
	if (!error)
		error = hmm_job_init(&job, VIRTIO_HMM_OPERATION_SUM, arguments, 3);
	if (!error)
		error = hmm_run(device, &job, &reply);
	if (error) {
		hmm_error_text(error, text, sizeof(text));
		fprintf(stderr, "first: %s\n", text);
		return 1;
	}
	hmm_job_text(&reply, text, sizeof(text));
	printf("the job: %s\n", text);
	printf("the sum: %llu\n", (unsigned long long)le64toh(reply.values[0]));
	return le32toh(reply.status) != VIRTIO_HMM_STATUS_OK;
}
