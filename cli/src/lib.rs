//! What the command lines of the programs have in common: how a size is written, how a figure is
//! shown, and how a line is printed.
//!
//! It knows no program and no option.

pub mod figure;
pub mod output;
pub mod size;
