//! A device that breaks the protocol cannot do more to its guest than be of no use.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::{Command, Output, Running};
use hmm_tests::vm::{Vm, GIB, MIB};

const QUEUES: [&str; 4] = ["control", "dma", "submit", "fault"];

/// Work that uses every queue: jobs that fault, and pages that move both ways. It goes
/// on when something fails, as a user's next program would; and a user who waits for a job
/// that the device forgot loses patience some day.
const WORK: &str = "status=0; \
    for work in 'list --size 5000' 'migrate --size 4M' 'churn --size 10'; do \
    timeout 100 hmm --device $0 run $work || status=1; \
    done; \
    exit $status";

/// How many devices work at a time: more would only keep each other waiting.
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

/// Whether the driver has said that it uses a device no more.
fn given_up(vm: &Vm) -> usize {
    let records = vm.kernel_log().unwrap();
    let mark = "the device is given up";
    records
        .iter()
        .filter(|record| record.text.contains(mark))
        .count()
}

/// One device for each rule and, as the last one, one that keeps the protocol.
fn bear(mishaps: &[&str], every: u32) {
    let artifacts = Artifacts::required();
    let rules: Vec<String> = mishaps
        .iter()
        .flat_map(|mishap| QUEUES.map(|queue| format!("{mishap}@{queue}={every}")))
        .collect();
    let machine = Vm::builder(&artifacts)
        .memory(2 * GIB)
        .device_memory(32 * MIB)
        .devices(rules.len() + 1);
    let vm = rules
        .iter()
        .enumerate()
        .fold(machine, |machine, (device, rule)| {
            machine.mishap(device, rule)
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
    assert_ne!(given_up(&vm), 0, "no mishap was noticed");
    vm.finish().unwrap();
}

#[test]
fn replies_that_are_lost_or_of_the_wrong_length_harm_nobody_else() {
    bear(&["lost-reply", "short-reply", "long-reply"], 15);
}

#[test]
fn replies_that_are_garbled_or_not_asked_for_harm_nobody_else() {
    bear(&["garbled-reply", "repeated-reply", "stray-reply"], 15);
}
