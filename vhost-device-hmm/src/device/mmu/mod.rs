//! Page tables: which frame each page of a space is mapped to, and with which rights.
//!
//! A table is a radix tree of five levels over 57-bit addresses, with leaves of one page and of 512
//! pages. It is plain data: it knows nothing of spaces, TLBs, locks, or of what a frame is backed
//! by. The caller that changes it ensures that the old translations are no longer used.

mod budget;
mod change;
mod entry;
mod level;
mod range;
mod table;

pub use budget::{Budget, Budgets, NoMemory, Units};
pub use change::{Change, Run};
pub use entry::{Leaf, Place};
pub use level::Rule;
pub use range::{PageRange, ADDRESS_BITS};
pub use table::{PageTable, Translation};
