//! Replays a recorded run of jobs under policies of memory, and judges them.
//!
//! A [`Trace`](trace::Trace) says which pages were used, in order. [`uses`] makes of it the uses of
//! granules, the pieces that move. [`play`] lets the driver's own policies decide on these, [`belady`]
//! evicts with knowledge of the future, and [`bound`] is the least that any policy could have cost.
//! [`judge`] puts them beside each other, and [`table`] and [`plot`] show the
//! result.
//!
//! Nothing here runs a job, and nothing moves memory.

pub mod belady;
pub mod bound;
pub mod cost;
pub mod flow;
pub mod judge;
pub mod link;
pub mod play;
pub mod plot;
pub mod table;
pub mod trace;
pub mod uses;
