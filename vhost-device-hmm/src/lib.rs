//! The virtual accelerator.
