//! The accelerator.

pub mod operations;
