//! Ways of sleeping that only the stock kernel has: `cargo xtask test` runs this module on no other
//! kernel. The debug kernel is built without hibernation, and on a machine without PCI it finds no
//! interrupt for a serial line.

use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Command;
use hmm_vm::qemu::{Agent, Machine};
use hmm_vm::vm::{Builder, Vm, GIB, MIB};

use super::{assert_serving, builder, goes_on, sleeps, told};

/// An image of some 100 MiB is compressed, written and read.
const HIBERNATION: Duration = Duration::from_secs(120);

#[test]
fn a_system_without_pci_sleeps_and_its_processes_go_on() {
    let artifacts = Artifacts::required();
    let machine = builder(&artifacts).machine(Machine::Microvm);
    sleeps(machine.agent(Agent::Line));
}

/// The kernel's message when an image is on the disk.
const WRITTEN: &str = "PM: Image saving done";

/// Prepares the disk and lets the kernel make an image by this command. Returns the console's text.
fn make_image(vm: &Vm, command: &str) -> String {
    let disk = "mkswap /dev/vda && swapon /dev/vda && echo test_resume > /sys/power/disk || exit";
    hibernate_by(vm, &format!("{disk}; {command}"))
}

/// Lets the kernel make an image. Returns the console's text.
fn hibernate_by(vm: &Vm, commands: &str) -> String {
    let command = Command::new("sh")
        .arguments(["-c", commands])
        .limit(vm.pace().scale(HIBERNATION));
    vm.run(command).unwrap().succeeded().unwrap();
    std::fs::read_to_string(vm.logs().console()).unwrap()
}

/// The kernel's messages about its image.
fn steps_of(console: &str) -> String {
    let steps = console.lines().filter(|line| line.contains("PM: "));
    steps.collect::<Vec<_>>().join("\n")
}

/// Writes an image of the system to a disk, reads it, and goes on from there. The restored system
/// finds a device that was started and reset after the image had been made.
fn hibernate(vm: &Vm) {
    let read = "PM: Image loading done";
    let console = make_image(vm, "echo disk > /sys/power/state");
    assert!(
        console.contains(read),
        "no image was read: {}",
        steps_of(&console)
    );
    assert_eq!(told(vm, read), 0, "the image was made before it was read");
}

/// The same if the running system may have no memory left to read the image into, as it has when a
/// machine starts: then the system goes on as it was. The kernel also gives up if a slow disk frees
/// too little memory in time; the memory written by then leaves room for the next attempt.
fn write_image(vm: &Vm) {
    const ATTEMPTS: usize = 3;
    let mut console = make_image(vm, "echo disk > /sys/power/state || true");
    for _ in 1..ATTEMPTS {
        if console.contains(WRITTEN) {
            return;
        }
        assert_eq!(told(vm, "it cannot sleep"), 0, "{}", steps_of(&console));
        console = hibernate_by(vm, "echo disk > /sys/power/state || true");
    }
    assert!(
        console.contains(WRITTEN),
        "no image was made: {}",
        steps_of(&console)
    );
}

fn hibernates(builder: Builder<'_>, mib: u32, hibernate: impl Fn(&Vm)) {
    let vm = builder.agent(Agent::Line).disk(2 * GIB).start().unwrap();
    goes_on(&vm, mib, hibernate);
    assert_eq!(told(&vm, "the device is given up"), 0);
    assert_serving(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_system_hibernates_and_its_processes_go_on() {
    let artifacts = Artifacts::required();
    hibernates(builder(&artifacts), 4, hibernate);
}

#[test]
fn a_system_with_a_coherent_device_hibernates_and_its_processes_go_on() {
    let artifacts = Artifacts::required();
    let machine = builder(&artifacts).devices(0).coherent_devices(1);
    hibernates(machine, 4, hibernate);
}

#[test]
fn a_system_hibernates_though_its_memory_would_not_hold_what_is_on_the_device() {
    let artifacts = Artifacts::required();
    // An image needs as much memory again as it holds: for these 180 MiB, other pages go to the
    // disk. The kernel makes no huge pages if it finds less than 512 MiB free when it starts,
    // without its own image and the programs of the tests (`hugepage_init()`).
    let machine = builder(&artifacts).memory(656 * MIB);
    hibernates(machine.device_memory(256 * MIB), 180, write_image);
}
