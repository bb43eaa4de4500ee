//! All tests in virtual machines are one program, so that a machine that waits leaves the
//! processors to another one. `hmm_vm::vm` limits how many run at a time.

#![allow(
    clippy::print_stdout,
    reason = "the harness keeps what tests print, and shows it if they fail"
)]

mod chaos;
mod coherent;
mod contract;
mod harness;
mod hostile;
mod kernel_suite;
mod languages;
mod late;
mod late_device;
mod lifecycle;
mod order;
mod peers;
mod sample;
mod smoke;
mod support;
mod teardown;
mod tracing;
mod userland;
mod workloads;
mod wrong_device;
