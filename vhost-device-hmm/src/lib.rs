//! The virtual accelerator.

pub mod device;
