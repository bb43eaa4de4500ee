//! A device that breaks the protocol can do its guest no harm but to be useless.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{Command, Output, Running};
use hmm_vm::vm::{Vm, GIB, MIB};

use super::support::{self, told};

const QUEUES: [&str; 4] = ["control", "dma", "submit", "fault"];

/// Work that uses every queue: jobs that fault, and pages that move both ways. It goes on after a
/// failure, as a user's next program would, and gives up after a time, as a user does whose job the
/// device has forgotten.
const WORK: &str = "status=0; \
    for work in 'hmm run list --size 5000' 'hmm run migrate --size 4M' \
    'hmm-workloads run churn --size 10'; do \
    timeout 100 $work --device $0 || status=1; \
    done; \
    exit $status";

/// How many devices work at a time: more would only wait for each other.
const AT_A_TIME: usize = 4;

/// Starts the work on a device.
fn work(vm: &Vm, device: usize) -> Running<'_> {
    let node = format!("/dev/hmm{device}");
    let command = Command::new("sh").arguments(["-c", WORK, &node]);
    vm.spawn(command.unlimited()).unwrap()
}

fn assert_no_panic(rule: &str, output: &Output) {
    let text = output.text();
    assert!(!text.contains("panicked"), "{rule}: {text}");
}

/// One device for each rule, and a last one that keeps the protocol.
fn bear(mishaps: &[&str], every: u32) {
    let artifacts = Artifacts::required();
    let rules: Vec<String> = mishaps
        .iter()
        .flat_map(|mishap| QUEUES.map(|queue| format!("{mishap}@{queue},every={every}")))
        .collect();
    let machine = support::builder(&artifacts)
        .memory(2 * GIB)
        .device_memory(32 * MIB)
        .devices(rules.len() + 1);
    let vm = rules
        .iter()
        .enumerate()
        .fold(machine, |machine, (device, rule)| {
            machine.rule(device, rule)
        })
        .start()
        .unwrap();

    let devices: Vec<usize> = (0..=rules.len()).collect();
    let mut outputs = Vec::new();
    for some in devices.chunks(AT_A_TIME) {
        let programs: Vec<Running<'_>> = some.iter().map(|device| work(&vm, *device)).collect();
        outputs.extend(programs.into_iter().map(|program| program.wait().unwrap()));
    }
    for (rule, output) in rules.iter().zip(&outputs) {
        assert_no_panic(rule, output);
    }
    let right = outputs.last().unwrap();
    assert!(
        right.success(),
        "the device that is right: {}",
        right.text()
    );
    assert_ne!(
        told(&vm, "the device is given up"),
        0,
        "no mishap was noticed"
    );
    vm.finish().unwrap();
}

// {drv-unknown-status}
#[test]
fn a_status_that_the_driver_does_not_know_is_an_error_of_that_request_alone() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).start().unwrap();
    let rule = "unknown-status@control.executed,operation=statistics";
    let rule = vm.device(0).rule(rule).unwrap();
    let stats = vm.run(support::hmm(0, &["stats"])).unwrap();
    assert!(!stats.success(), "{}", stats.text());
    let told_user = String::from_utf8_lossy(&stats.stderr);
    assert!(told_user.contains("reading the counters: "), "{told_user}");
    assert_eq!(rule.happened().unwrap(), 1);
    rule.clear().unwrap();
    support::assert_nothing_left(&vm, 0);
    assert_eq!(told(&vm, "the device is given up"), 0);
    vm.finish().unwrap();
}

// {drv-check-device}
#[test]
fn replies_that_are_lost_or_of_the_wrong_length_harm_no_other_process() {
    bear(&["lost-reply", "short-reply", "long-reply"], 15);
}

// {drv-check-device}
#[test]
fn replies_that_are_garbled_or_not_asked_for_harm_no_other_process() {
    bear(&["garbled-reply", "repeated-reply", "stray-reply"], 15);
}
