//! VM fixture.

pub mod artifacts;
