//! What the host's fixture and the guest's agent both need: their messages.
//!
//! The agent itself is the binary of this crate; the fixture links this library
//! alone.

#![forbid(unsafe_code)]

pub mod protocol;
