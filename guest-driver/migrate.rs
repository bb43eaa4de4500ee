// SPDX-License-Identifier: GPL-2.0

//! Moves pages: to device memory, back on request, back when the device goes away, and back when a
//! CPU accesses them.
//!
//! Each move collects the pages of a range, gives new memory to as many as it can, has the device
//! copy them (see `transfer`), and commits those that were copied. Mappings on the device are not
//! handled here: collecting invalidates them as any other change does, and faults map the pages
//! again.

pub(crate) mod allocate;
pub(crate) mod chunks;
pub(crate) mod cpu_fault;
pub(crate) mod evict;
pub(crate) mod journey;
pub(crate) mod pipeline;
pub(crate) mod to_device;
pub(crate) mod to_system;
pub(crate) mod transfer;
