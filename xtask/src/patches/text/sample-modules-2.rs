#[allow(dead_code)] // Made for more drivers than this one.
mod poll;
#[allow(dead_code)] // Made for more drivers than this one.
mod quirks;
mod session;
pub mod uapi;
