// SPDX-License-Identifier: GPL-2.0

//! Workarounds for bugs of Linux 7.3, one file each. Linux 7.2 has all of them, too.
//!
//! Each file opens with the finding that it works around (docs/kernel-findings.md), and with what
//! to delete when the kernel is fixed.

pub(crate) mod follow_writes;
pub(crate) mod reset;
pub(crate) mod skip;
pub(crate) mod split_fault;
pub(crate) mod zap_moving;
