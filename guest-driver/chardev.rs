// SPDX-License-Identifier: GPL-2.0

//! What programs see of a device: nodes in `/dev`, and the operations on their files.

pub(crate) mod dmirror;
pub(crate) mod file;
pub(crate) mod ioctl;
pub(crate) mod kernel_tests;
pub(crate) mod node;
pub(crate) mod residency;
