//! Every workload, on a device that checks each translation it uses.
//!
//! What is right is for the workloads to say; here it is asked that all of them are,
//! and that nothing of them is left on the device.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::Command;
use hmm_tests::vm::{Vm, GIB, MIB};
use serde_json::Value;

/// The workloads and how large they are here: large enough to fault, to cross pages and
/// to need large leaves, small enough for an emulated machine with a checking device.
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

fn counters(vm: &Vm) -> Value {
    let text = vm.run(["hmm", "--json", "stats"]).unwrap();
    serde_json::from_str(&text.succeeded().unwrap()).unwrap()
}

/// Runs a workload and returns what it reports.
fn run(vm: &Vm, arguments: &[&str]) -> Value {
    let command = Command::new("hmm").arguments(["--json", "run"]);
    let output = vm
        .run(command.arguments(arguments.iter().copied()))
        .unwrap();
    let report: Value = serde_json::from_str(output.text().lines().next().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{arguments:?} reported nothing: {}", output.text()));
    assert!(
        output.success() && report["right"] == true,
        "{arguments:?}: {report:#}"
    );
    report
}

#[test]
fn every_workload_is_right_and_leaves_nothing_on_the_device() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .check()
        .memory(GIB)
        .device_memory(128 * MIB)
        .start()
        .unwrap();
    for (workload, size) in WORKLOADS {
        let report = run(&vm, &[workload, "--size", size]);
        if *workload != "migrate" {
            assert_ne!(
                report["faults"], 0,
                "the device found its way by faults: {report:#}"
            );
        }
    }
    run(&vm, &["histogram"]);
    // A quarter more than the device has.
    run(&vm, &["oversubscribe"]);

    let counters = counters(&vm);
    for (side, counter) in [
        ("driver", "spaces"),
        ("driver", "used_frames"),
        ("driver", "pages_lost"),
        ("device", "spaces"),
        ("device", "jobs"),
        ("device", "mapped_pages"),
        ("device", "table_bytes"),
        ("device", "stale_accesses"),
        ("device", "freed_frame_uses"),
    ] {
        assert_eq!(
            counters[side][counter], 0,
            "{side}: {counter}: {counters:#}"
        );
    }
    vm.finish().unwrap();
}

#[test]
fn whatever_the_driver_must_refuse_is_refused_and_the_next_job_works() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).check().start().unwrap();
    run(&vm, &["bad-input"]);
    run(&vm, &["list", "--size", "1000"]);
    let counters = counters(&vm);
    assert_eq!(counters["device"]["spaces"], 0, "{counters:#}");
    assert_eq!(counters["device"]["stale_accesses"], 0, "{counters:#}");
    vm.finish().unwrap();
}
