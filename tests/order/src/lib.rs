//! An exhaustive search of the orders that the queues of the device allow.
//!
//! [`pages`] has two processes, a few frames, and the requests that move pages, map them and end
//! spaces. The device carries the queues out in any order that the specification allows. [`slots`]
//! has a ring with few slots, and callers that reserve, post, notify and sleep.
//!
//! Each of the driver's rules can be switched off. With all rules no order does harm. Without any
//! one of them the search finds an order that does, and reports its steps.
//!
//! The models do not check how the driver keeps its rules: `guest-driver` and the rows of the
//! contract do.

pub mod pages;
pub mod search;
pub mod slots;
