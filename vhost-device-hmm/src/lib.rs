//! The virtual accelerator.

pub mod device;
pub mod report;
