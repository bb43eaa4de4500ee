//! The messages between the host's fixture and the guest's agent.
//!
//! The agent itself is the binary of this crate; the fixture links this library
//! alone.

#![forbid(unsafe_code)]

pub mod protocol;
