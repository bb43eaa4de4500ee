//! What driver and devices do is traced, all of it, and on one clock.

use std::collections::BTreeMap;
use std::fs;

use hmm_timeline::guest::{Guest, What};
use hmm_timeline::together::Together;
use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Status;
use hmm_vm::vm::{Vm, MIB};
use serde_json::Value;

use super::support::json;

/// Where the guest keeps what was traced.
const EVENTS: &str = "/tmp/events";

/// Runs a command with the driver traced, and returns the kernel's lines and what they add up to.
fn traced(vm: &Vm, command: &str) -> (String, Value) {
    let command = format!("hmm trace --json -o {EVENTS} -- {command} 2>/tmp/sums");
    let output = vm.run(["sh", "-c", &command]).unwrap();
    let sums = vm.guest().read_file("/tmp/sums").unwrap();
    let sums = String::from_utf8(sums).unwrap();
    assert!(output.success(), "{}{sums}", output.text());
    let events = vm.guest().read_file(EVENTS).unwrap();
    let sums = serde_json::from_str(sums.lines().last().unwrap_or_default());
    (
        String::from_utf8(events).unwrap(),
        sums.expect("the sums are the last line"),
    )
}

/// The driver's counters.
fn counters(vm: &Vm) -> BTreeMap<String, u64> {
    let counters = json(vm, 0, &["stats", "--all"]);
    let driver = counters["driver"]
        .as_object()
        .expect("the driver has counters");
    let numbers = driver
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)));
    numbers.collect()
}

#[test]
fn what_is_traced_adds_up_to_the_drivers_counters() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).check().start().unwrap();
    let before = counters(&vm);
    let (events, sums) = traced(
        &vm,
        "sh -c 'hmm run migrate --size 16M && hmm run sort --size 100000 && hmm run bfs --size 20000'",
    );
    let after = counters(&vm);
    let counted =
        |names: &[&str]| -> u64 { names.iter().map(|name| after[*name] - before[*name]).sum() };
    let number = |name: &str| sums[name].as_u64().unwrap();
    let moved = |kind: &str| sums["moves"][kind]["pages"].as_u64().unwrap_or(0);
    assert_eq!(number("lost"), 0);
    for (name, counters) in [
        ("faults", "faults"),
        ("pages_mapped", "fault_pages"),
        ("retries", "fault_retries"),
        ("changes", "invalidations"),
        ("invalidations", "invalidations_sent"),
    ] {
        assert_eq!(number(name), counted(&[counters]), "{name}: {sums:#}");
    }
    assert!(
        number("faults") > 0 && number("invalidations") > 0,
        "{sums:#}"
    );
    assert_eq!(number("faults_resolved"), number("faults"), "{sums:#}");
    assert_eq!(moved("to device, REQUEST"), counted(&["pages_to_device"]));
    assert_eq!(
        moved("to system, PAGEFAULT_CPU"),
        counted(&["cpu_fault_pages"])
    );
    let others =
        ["REQUEST", "PAGEFAULT_GPU", "EXIT"].map(|cause| moved(&format!("to system, {cause}")));
    let others: u64 = others.iter().sum();
    assert_eq!(
        others,
        counted(&["pages_to_system", "pages_evicted"]),
        "{sums:#}"
    );
    assert!(moved("to device, REQUEST") >= 16 * MIB / 4096);

    // Each job is submitted once and comes back once.
    let mut jobs: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    for event in Guest::read(&events).events {
        match event.what {
            What::Submit { job, .. } => assert_eq!(jobs.insert(job, Vec::new()), None),
            What::Complete { job, status } => jobs.get_mut(&job).unwrap().push(status),
            _ => {}
        }
    }
    assert!(jobs.values().all(|ends| *ends == [0]), "{jobs:?}");
    assert_eq!(jobs.len() as u64, number("jobs"));
    vm.finish().unwrap();
}

#[test]
fn an_event_that_is_not_asked_for_is_not_traced_and_nothing_is_left_of_a_trace() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).start().unwrap();
    let command = "hmm trace --json --events submit,complete -- hmm run list --size 1000 2>&1";
    let output = vm.run(["sh", "-c", command]).unwrap();
    let text = output.text();
    let sums: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap();
    assert!(
        sums["jobs"].as_u64() > Some(0) && sums["faults"] == 0,
        "{text}"
    );

    let unknown = "hmm trace --events luck -- true 2>&1";
    let unknown = vm.run(["sh", "-c", unknown]).unwrap();
    assert!(!unknown.success());
    assert!(unknown.text().contains("migrate"), "{}", unknown.text());
    for (command, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
        let ended = vm
            .run(["hmm", "trace", "--quiet", "--", "sh", "-c", command])
            .unwrap();
        assert_eq!(
            ended.status,
            Status::Exited(status),
            "{command}: {}",
            ended.text()
        );
    }
    let missing = vm.run(["hmm", "trace", "--quiet", "--", "nosuch"]).unwrap();
    assert_eq!(missing.status, Status::Exited(127), "{}", missing.text());
    let left = vm.run(["ls", "/sys/kernel/tracing/instances"]).unwrap();
    assert_eq!(left.text().trim(), "");
    vm.finish().unwrap();
}

#[test]
fn a_guest_and_a_late_device_are_seen_on_one_clock() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .trace()
        .rule(0, "delay=50ms@control.executed,operation=map,count=1")
        .start()
        .unwrap();
    let logs = vm.logs().clone();
    let (events, _) = traced(&vm, "hmm run tree --size 20000");
    // The device's trace is complete when its daemon has ended.
    vm.finish().unwrap();
    let device = fs::read_to_string(logs.trace(0)).unwrap();
    let together = Together::read(&events, [device.as_str()]).unwrap();
    let sums = together.sums();
    let ours = &sums.devices[0];
    assert_eq!((sums.guest.lost, ours.lost), (0, 0), "{}", together.text());
    assert_eq!(
        (ours.jobs, ours.faults),
        (sums.guest.jobs, sums.guest.faults)
    );

    let late = &ours.late["control.executed"];
    assert_eq!(late.count, 1);
    assert!(late.longest >= 50_000_000, "{}", together.text());
    let map = &ours.requests["control Map"];
    assert!(
        map.longest >= late.longest,
        "the request was carried out before, and answered after"
    );

    let difference = together.differences().next().unwrap().unwrap();
    assert_eq!(difference.jobs as u64, ours.jobs);
    let tracks = together.tracks();
    let names: Vec<_> = tracks
        .groups
        .iter()
        .map(|group| group.name.as_str())
        .collect();
    assert_eq!(names, ["guest, /dev/hmm0", "device, hmm0"]);
}
