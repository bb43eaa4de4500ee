//! Every workload, on a device that checks each translation it uses.
//!
//! The workloads check their own results. This test asks that all of them succeed, and that they
//! leave nothing on the device.

use std::time::{Duration, Instant};

use hmm_vm::artifacts::Artifacts;
use hmm_vm::vm::{GIB, MIB};

use super::support::{self, assert_nothing_left_or_lost, counters, run, worker};

/// The workloads and their sizes: large enough to fault, to cross pages and to need large leaves,
/// small enough for an emulated machine with a checking device.
const WORKLOADS: &[(&str, &str)] = &[
    ("list", "20000"),
    ("tree", "20000"),
    ("gemm", "160"),
    ("axpy", "1M"),
    ("dot", "1M"),
    ("sort", "256K"),
    ("bfs", "100K"),
    ("migrate", "48M"),
    ("processes", "3"),
    ("churn", "60"),
];

/// How long a worker of the driver takes to have freed frames discarded.
const DISCARDED: Duration = Duration::from_secs(10);

// A request is refused if it sets a reserved field, unknown flags, or a space where it has none:
// {drv-reserved}, {drv-flags}, {drv-no-space}. One without room for its reply is dropped:
// {drv-reply-room}. A fault without a buffer, or with one that is too small, is not reported:
// {drv-fault-buffers}, {drv-fault-buffer-size}. A frame that is discarded while it is mapped is
// counted: {drv-discard-unmapped}.
#[test]
fn every_workload_is_right_and_leaves_nothing_on_the_device() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts)
        .check()
        .memory(GIB)
        .device_memory(128 * MIB)
        .start()
        .unwrap();
    for (workload, size) in WORKLOADS {
        let report = run(&vm, 0, &[workload, "--size", size]);
        if *workload != "migrate" {
            assert_ne!(
                report["faults"], 0,
                "the device found its way by faults: {report:#}"
            );
        }
    }
    run(&vm, 0, &["histogram"]);
    // A quarter more than the device has memory for.
    run(&vm, 0, &["oversubscribe"]);

    assert_nothing_left_or_lost(&vm, 0);
    let counters = counters(&vm, 0);
    assert_eq!(counters["device"]["table_bytes"], 0, "{counters:#}");
    vm.finish().unwrap();
}

// {drv-discard-checked}
#[test]
fn a_frame_that_comes_free_is_discarded_though_others_are_in_use() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts)
        .check()
        .memory(GIB)
        .device_memory(128 * MIB)
        .start()
        .unwrap();
    let victim = worker(&vm, 0, "victim");
    // Far fewer frames than a device that does not check needs to make discarding worth while.
    run(&vm, 0, &["migrate", "--size", "4M"]);
    let deadline = Instant::now() + vm.pace().scale(DISCARDED);
    loop {
        let counters = counters(&vm, 0);
        let used = &counters["driver"]["used_frames"];
        assert_ne!(used, 0, "{counters:#}");
        if counters["device"]["live_frames"] == *used {
            break;
        }
        assert!(Instant::now() < deadline, "{counters:#}");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    vm.finish().unwrap();
}

#[test]
fn whatever_the_driver_must_refuse_is_refused_and_the_next_job_works() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).check().start().unwrap();
    run(&vm, 0, &["bad-input"]);
    run(&vm, 0, &["list", "--size", "1000"]);
    let counters = counters(&vm, 0);
    assert_eq!(counters["device"]["spaces"], 0, "{counters:#}");
    assert_eq!(counters["device"]["stale_accesses"], 0, "{counters:#}");
    vm.finish().unwrap();
}
