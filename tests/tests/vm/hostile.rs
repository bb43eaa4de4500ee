//! A guest that breaks every rule breaks nothing but itself.
//!
//! The guest program carries out the attacks, and checks every answer and every byte of its memory.
//! This test checks the daemon from outside.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::daemon::Daemon;
use hmm_vm::guest::Command;
use hmm_vm::vm::{Builder, Vm, MIB};
use serde::Deserialize;

/// How often each attack is carried out, each time with other random numbers.
const ROUNDS: u64 = 2;

/// A round of one attack and the check after it take some 0.3 s with KVM.
const ATTACKS: Duration = Duration::from_secs(100);

const DEVICE_MEMORY: u64 = 64 * MIB;
const GUEST_MEMORY: u64 = 512 * MIB;

/// The limit of page tables, by the daemon's default.
const TABLE_MEMORY: u64 = 256 * MIB;

/// The limit of the daemon's other memory: threads, rings, spaces, jobs, lists.
const EVERYTHING_ELSE: u64 = 64 * MIB;

/// The report of the hostile guest, its last line.
#[derive(Debug, Deserialize)]
struct Report {
    survived: BTreeMap<String, u64>,
    failures: Vec<serde_json::Value>,
    answers: BTreeMap<String, u64>,
}

/// The kernel's numbers of a process, in bytes for memory.
#[derive(Debug)]
struct Footprint {
    threads: u64,
    /// Private memory, which is neither the guest's nor the device's. It may include freed memory
    /// that the allocator keeps for reuse.
    private: u64,
    /// The peak of all its memory, including the guest's and the device's.
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

/// Runs the hostile program on the only device of a machine.
fn attack(machine: Builder<'_>, artifacts: &Artifacts) {
    // The program is built together with the agent.
    let hostile = artifacts.guest_program("hmm-hostile");
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
    // These show that attacks get past the device's first checks.
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
    // Coherent device memory counts twice: it is also the guest's memory.
    assert!(
        after.peak < GUEST_MEMORY + 2 * DEVICE_MEMORY + TABLE_MEMORY + EVERYTHING_ELSE,
        "and so it was all the time: {after:?}"
    );

    // The real driver must then find a device that works.
    give_back(&vm);
    vm.load_driver("").unwrap();
    vm.run(["hmm", "run", "list"]).unwrap().succeeded().unwrap();
    vm.finish().unwrap();
}

/// Gives the device back to the kernel's own transport.
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
