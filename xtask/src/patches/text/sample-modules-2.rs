mod mirror;
#[allow(dead_code)] // Made for more drivers than this one.
mod poll;
#[allow(dead_code)] // Made for more drivers than this one.
mod quirks;
pub mod uapi;
