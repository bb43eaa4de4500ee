//! Page tables: which frame each page of a space is mapped to, and with which rights.
//!
//! A table is a radix tree of five levels over 57-bit addresses, with leaves of one
//! page and of 512 pages. It is plain data: it knows nothing of spaces, TLBs, locks,
//! or of what a frame is backed by. Whoever changes it sees to it that nobody goes on
//! using what it said before.

mod budget;
mod entry;
mod level;
mod range;
mod table;

pub use budget::{Budget, NoMemory, Units};
pub use entry::{Leaf, Place};
pub use range::{PageRange, ADDRESS_BITS};
pub use table::{Change, PageTable, Run, Translation};
