//! A device, its driver and its user meet, and part again.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::Error;
use hmm_tests::qemu::Machine;
use hmm_tests::vm::Vm;

const EEXIST: i32 = 17;

#[test]
fn the_driver_loads_serves_and_unloads_as_often_as_one_likes() {
    let artifacts = Artifacts::required();
    let mut vm = Vm::builder(&artifacts)
        .devices(2)
        .check()
        .leak_check()
        .start()
        .unwrap();
    let again = vm.load_driver("");
    assert!(
        matches!(&again, Err(Error::Refused { errno, .. }) if *errno == Some(EEXIST)),
        "it is not loaded twice: {again:?}"
    );
    for _ in 0..2 {
        for device in ["/dev/hmm0", "/dev/hmm1"] {
            let there = vm.run(["test", "-c", device]).unwrap();
            assert!(there.success(), "{device} is a device node");
        }
        vm.unload_driver().unwrap();
        let left = vm.run(["sh", "-c", "ls /dev/hmm*"]).unwrap();
        assert!(!left.success(), "no node is left: {}", left.text());
        vm.load_driver("").unwrap();
    }
    vm.finish().unwrap();
}

#[test]
fn a_device_is_unplugged_and_the_other_one_stays() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).devices(2).check().start().unwrap();
    vm.qemu().unplug(0).unwrap();
    let nodes = vm.run(["sh", "-c", "ls /dev/hmm*"]).unwrap();
    assert_eq!(nodes.succeeded().unwrap().lines().count(), 1);
    vm.finish().unwrap();
}

#[test]
fn a_machine_without_pci_has_the_device_too() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .machine(Machine::Microvm)
        .check()
        .start()
        .unwrap();
    let there = vm.run(["test", "-c", "/dev/hmm0"]).unwrap();
    assert!(there.success(), "its node is there");
    vm.finish().unwrap();
}
