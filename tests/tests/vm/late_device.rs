//! A device that is late on purpose, and a guest that waits for it.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::control::Point;
use hmm_vm::vm::{Vm, MIB};
use serde_json::json;

/// A program that maps a page for a job, unmaps it and checks whether the device still has it.
const PROGRAM: [&str; 3] = ["hmm-contract", "run", "unmapped-is-forgotten-at-once"];

/// Lists the numbers of the system calls that programs are in.
const CALLS: &str = "cat /proc/[0-9]*/task/*/syscall | cut -d ' ' -f 1";

/// The numbers of calls on x86-64.
const MPROTECT: &str = "10";
const MUNMAP: &str = "11";

fn machine(artifacts: &Artifacts) -> Vm {
    Vm::builder(artifacts)
        .check()
        .device_memory(64 * MIB)
        .file(artifacts.guest_program("hmm-contract"))
        .start()
        .unwrap()
}

/// Whether any program is in this call.
fn is_in(vm: &Vm, number: &str) -> bool {
    let calls = vm.run(["sh", "-c", CALLS]).unwrap().text();
    calls.lines().any(|call| call == number)
}

/// Runs a program whose first change of mappings is this call, on a device that is late to forget.
fn waits(vm: &Vm, program: [&str; 3], number: &str) {
    let hold = vm
        .device(0)
        .hold_only(Point::ControlTaken, "operation=unmap")
        .unwrap();
    let program = vm.spawn(program).unwrap();

    let held = hold.wait().unwrap();
    assert_eq!(held["operation"], "unmap");
    assert!(is_in(vm, number), "call {number} waits for the device");
    let after = vm.device(0).held(Point::ControlExecuted).unwrap();
    assert_eq!(after.len(), 0, "a hold is at its point only");
    hold.release().unwrap();
    let output = program.wait().unwrap();
    assert!(output.success(), "{}", output.text());
    assert!(!is_in(vm, number));
    assert_eq!(vm.device(0).counter("stale_accesses").unwrap(), 0);
}

// {drv-unmap-before-reuse}
#[test]
fn a_munmap_waits_for_as_long_as_the_device_is_late() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    waits(&vm, PROGRAM, MUNMAP);
    vm.finish().unwrap();
}

// {drv-protect-before-share}
#[test]
fn an_mprotect_waits_for_as_long_as_the_device_is_late() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let program = ["hmm-contract", "run", "read-only-is-read-only"];
    waits(&vm, program, MPROTECT);
    vm.finish().unwrap();
}

#[test]
fn a_forgotten_hold_hangs_neither_the_guest_nor_the_daemon() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // The hold is not released: its limit ends it for the program, and the end of the guest ends
    // the next one.
    let rule = "hold@control.taken,operation=unmap,limit=500ms";
    let limited = vm.device(0).rule(rule).unwrap();
    vm.run(PROGRAM).unwrap().succeeded().unwrap();
    assert!(limited.happened().is_err(), "it has ended by itself");
    drop(limited);
    // The driver's last requests are held here.
    let forgotten = json!({ "command": "hold", "point": "control.executed", "limit": "1s" });
    vm.device(0).ask(&forgotten).unwrap();
    vm.finish().unwrap();
}
