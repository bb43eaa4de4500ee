//! Measures things several times, in turns with what they are compared with.
//!
//! The benchmarks of the daemon and of the guest make [`Measurement`]s with a [`Bench`] and print
//! them line by line; the program that started them collects the lines. The numbers of one run are
//! comparable with each other, because the subject and its reference took turns on the same
//! machine. Numbers of two runs are comparable as far as their [`Spread`]s say. This crate knows
//! nothing of what is measured.

mod measurement;
mod process;
mod rounds;
mod spread;

pub use measurement::{Better, Digits, Failure, Line, Measurement, Reference, Unit};
pub use process::{own_mebibytes, processor_share, resident_mebibytes};
pub use rounds::{Bench, Format, Per, Turn};
pub use spread::Spread;
