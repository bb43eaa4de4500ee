mod dmirror;
mod ioctl;
mod kernel_tests;
#[macro_use]
pub mod layout;
