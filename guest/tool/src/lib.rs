//! Code that guest programs share which let a device work and check its answers: the `hmm` command,
//! and the programs of the tests.
//!
//! It knows no workload and no measurement.

pub mod argument;
pub mod buffer;
pub mod cli;
pub mod memory;
pub mod places;
pub mod region;
pub mod report;
pub mod runner;
pub mod walk;
