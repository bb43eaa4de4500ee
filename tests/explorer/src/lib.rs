//! The explorer: runs programs that must be right whatever is late, and makes everything late.
//!
//! A *subject* is a program in the guest that checks itself: a row of the contract, the random
//! model, the churn workload, a test of the kernel's own. A *point* is a moment at which the device
//! or the driver can be told to be late. The explorer runs subjects with rules at points, counts
//! what it has tried, and stops at the first fault. It then looks for the fewest rules that bring
//! the failure back, and writes a file that reproduces it.
//!
//! * [`rule`]: points, and rules about them;
//! * [`schedule`]: which subject is tried with which rules, and when;
//! * [`coverage`]: what was tried, as a table that can be added to others;
//! * [`shrink`]: the fewest rules that still break something;
//! * [`finding`]: what was wrong, and the file that reproduces it;
//! * `file`: how findings and tables are read and written;
//! * [`explore`]: the search;
//! * [`machine`]: a virtual machine to try things in.
//!
//! All but the last know nothing of machines, and are tested without any.

pub mod coverage;
pub mod explore;
mod file;
pub mod finding;
pub mod machine;

pub mod rule;
pub mod schedule;
pub mod shrink;
