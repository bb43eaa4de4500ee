//! All tests in virtual machines, as one program, so that a machine that waits leaves the
//! processors to another one: as many run at a time as `hmm_tests::vm` lets.

mod coherent;
mod contract;
mod harness;
mod hostile;
mod kernel_suite;
mod peers;
mod smoke;
mod teardown;
mod workloads;
mod wrong_device;
