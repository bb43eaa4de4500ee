//! A guest that breaks every rule breaks nothing but itself.
//!
//! The attacks are the guest program's, and so are the checks of every answer and of
//! every byte of its memory. What is checked here is the daemon, from outside.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use hmm_tests::artifacts::Artifacts;
use hmm_tests::daemon::Daemon;
use hmm_tests::guest::Command;
use hmm_tests::vm::{Builder, Vm, MIB};
use serde::Deserialize;

/// How often each attack is carried out, each time with other random numbers.
const ROUNDS: u64 = 2;

/// A round of one attack and the check after it take some 0.3 s with KVM.
const ATTACKS: Duration = Duration::from_secs(100);

const DEVICE_MEMORY: u64 = 64 * MIB;
const GUEST_MEMORY: u64 = 512 * MIB;

/// What page tables may take, by the daemon's default.
const TABLE_MEMORY: u64 = 256 * MIB;

/// What the daemon may take for everything else: threads, rings, spaces, jobs, lists.
const EVERYTHING_ELSE: u64 = 64 * MIB;

/// What the hostile guest reports as its last line.
#[derive(Debug, Deserialize)]
struct Report {
    survived: BTreeMap<String, u64>,
    failures: Vec<serde_json::Value>,
    answers: BTreeMap<String, u64>,
}

/// What the kernel says about a process, in bytes where it is memory.
#[derive(Debug)]
struct Footprint {
    threads: u64,
    /// Memory of its own, which is neither the guest's nor the device's. What was
    /// freed may still be there, kept by the allocator for the next time.
    private: u64,
    /// The most that was there at any time, the guest's and the device's included.
    peak: u64,
}

impl Footprint {
    fn of(daemon: &Daemon) -> Self {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap();
        let number = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            value.and_then(|value| value.parse().ok()).unwrap()
        };
        Self {
            threads: number("Threads"),
            private: number("RssAnon") * 1024,
            peak: number("VmHWM") * 1024,
        }
    }
}

#[test]
fn a_hostile_guest_gets_answers_and_breaks_nothing() {
    let artifacts = Artifacts::required();
    attack(Vm::builder(&artifacts), &artifacts);
}

#[test]
fn a_hostile_guest_that_can_address_device_memory_breaks_nothing_either() {
    let artifacts = Artifacts::required();
    attack(
        Vm::builder(&artifacts).devices(0).coherent_devices(1),
        &artifacts,
    );
}

/// Lets the hostile program loose on the only device of a machine.
fn attack(machine: Builder<'_>, artifacts: &Artifacts) {
    // It is built together with the agent.
    let hostile = artifacts.agent.with_file_name("hmm-hostile");
    let mut vm = machine
        .check()
        .memory(GUEST_MEMORY)
        .device_memory(DEVICE_MEMORY)
        .file(hostile)
        .without_driver()
        .start()
        .unwrap();
    let before = Footprint::of(vm.daemon(0));

    let attacks = Command::new("hmm-hostile")
        .arguments(["--rounds", &ROUNDS.to_string()])
        .limit(ATTACKS);
    let output = vm.run(attacks).unwrap();
    let after = Footprint::of(vm.daemon(0));
    let text = output.text();
    let report: Report = serde_json::from_str(text.lines().last().unwrap_or("")).unwrap();
    assert!(
        output.success() && report.failures.is_empty(),
        "{report:#?}"
    );
    assert!(
        report.survived.len() > 20,
        "every attack was made: {report:#?}"
    );
    assert!(
        report.survived.values().all(|rounds| *rounds == ROUNDS),
        "{report:#?}"
    );
    // The attacks reach the device's insides and do not just bounce off its door.
    for status in [
        "Control Ok",
        "Control NoMemory",
        "Dma Ok",
        "Submit Ok",
        "Submit Storm",
    ] {
        assert!(
            report.answers.contains_key(status),
            "{status} was never answered: {report:#?}"
        );
    }

    let daemon = vm.daemon(0);
    assert_eq!(daemon.ended(), None, "it is the same process as before");
    assert_eq!(daemon.complaints().unwrap(), Vec::<String>::new());
    assert_eq!(
        after.threads, before.threads,
        "no thread has ended, none was added"
    );
    assert!(
        after.private < before.private + TABLE_MEMORY + EVERYTHING_ELSE,
        "what the guest made it allocate is bounded: {before:?}, then {after:?}"
    );
    // Coherent device memory counts twice: it is the guest's memory as well.
    assert!(
        after.peak < GUEST_MEMORY + 2 * DEVICE_MEMORY + TABLE_MEMORY + EVERYTHING_ELSE,
        "and so it was all the time: {after:?}"
    );

    // The real driver finds a device on which all its work can be done.
    give_back(&vm);
    vm.load_driver("").unwrap();
    vm.run(["hmm", "run", "list"]).unwrap().succeeded().unwrap();
    vm.finish().unwrap();
}

/// Lets the kernel's own transport have the device again.
fn give_back(vm: &Vm) {
    vm.guest()
        .write_file("/sys/bus/pci/drivers_probe", device_address(vm))
        .unwrap();
}

/// The device's address on the guest's bus.
fn device_address(vm: &Vm) -> String {
    let find = "cd /sys/bus/pci/devices && grep -l 0x1065 */device";
    let found = vm.run(["sh", "-c", find]).unwrap().succeeded().unwrap();
    let (address, _) = found.trim().split_once('/').unwrap();
    address.to_owned()
}
