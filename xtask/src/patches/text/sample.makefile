# SPDX-License-Identifier: GPL-2.0

obj-$(CONFIG_SAMPLE_RUST_TEST_HMM) += rust_test_hmm.o

rust_test_hmm-y := rust_test_hmm_main.o
