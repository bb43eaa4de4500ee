//! A device, its driver and its user meet, and part again.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Error;
use hmm_vm::qemu::Machine;
use hmm_vm::vm::Vm;

use super::support::{assert_nothing_left_or_lost, told, DRIVER};

const EEXIST: i32 = 17;

// {drv-init-first}
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

#[test]
fn the_driver_takes_features_and_leaves_the_configuration_alone() {
    let artifacts = Artifacts::required();
    // The daemon logs the writes that it ignores.
    let vm = Vm::builder(&artifacts)
        .check()
        .daemon_log("debug")
        .start()
        .unwrap();
    vm.run(["hmm", "run", "list", "--size", "1000"])
        .unwrap()
        .succeeded()
        .unwrap();
    let features = format!("cat {DRIVER}/virtio*/features");
    let features = vm.run(["sh", "-c", &features]).unwrap().text();
    let accepted = |bit: usize| features.as_bytes()[bit] == b'1';
    assert!(accepted(32), "VIRTIO_F_VERSION_1: {features}"); // {drv-version-1}
    assert!(accepted(29), "VIRTIO_F_EVENT_IDX: {features}"); // {drv-event-idx}
    let log = vm.daemon(0).log().unwrap();
    assert!(log.contains("Control queue starts"), "it tells all: {log}");
    assert!(!log.contains("to the configuration"), "{log}"); // {drv-config-read-only}
    vm.finish().unwrap();
}

#[test]
fn a_device_whose_queues_are_too_short_is_refused() {
    let artifacts = Artifacts::required();
    // A list of copies may take 40 descriptors.
    for (size, is_there) in [("32", false), ("64", true)] {
        let queues = format!("device.hmm0.vq_size={size}");
        let vm = Vm::builder(&artifacts)
            .qemu_arguments(&["-set", &queues])
            .check()
            .start()
            .unwrap();
        let node = vm.run(["test", "-c", "/dev/hmm0"]).unwrap();
        assert_eq!(node.success(), is_there, "with queues of {size}");
        let log = vm.kernel_log().unwrap();
        let refused = log
            .iter()
            .filter(|line| line.text.contains("the dma queue is too short"));
        assert_eq!(refused.count(), usize::from(!is_there), "{size}");
        if is_there {
            let moves = vm.run(["hmm", "run", "migrate"]).unwrap();
            moves.succeeded().unwrap();
        }
        vm.finish().unwrap();
    }
}

// {drv-magic}, {drv-version}
#[test]
fn a_device_of_another_kind_or_version_is_refused() {
    let artifacts = Artifacts::required();
    for (field, why) in [
        (
            "magic=0x7f",
            "a device of this id that is not an HMM device",
        ),
        (
            "version=2",
            "the device speaks version 2, this driver version 1",
        ),
    ] {
        let vm = Vm::builder(&artifacts).misreport(field).start().unwrap();
        let node = vm.run(["test", "-c", "/dev/hmm0"]).unwrap();
        assert!(!node.success(), "{field}");
        assert_eq!(told(&vm, why), 1, "{field}");
        vm.finish().unwrap();
    }
}

// {drv-capability-unknown}
#[test]
fn a_device_that_can_more_than_the_driver_knows_is_used() {
    let artifacts = Artifacts::required();
    let unknown = "capabilities=0xfffffffffffffffc";
    let vm = Vm::builder(&artifacts)
        .check()
        .misreport(unknown)
        .start()
        .unwrap();
    vm.run(["hmm", "run", "migrate"])
        .unwrap()
        .succeeded()
        .unwrap();
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_device_is_not_put_behind_an_iommu() {
    let artifacts = Artifacts::required();
    // The driver tells the device frame numbers. The device offers nothing else, so QEMU refuses to
    // start, with or without an IOMMU.
    for iommu in [&[][..], &["-device", "intel-iommu"][..]] {
        let error = Vm::builder(&artifacts)
            .qemu_arguments(iommu)
            .qemu_arguments(&["-set", "device.hmm0.iommu_platform=on"])
            .start()
            .err()
            .unwrap();
        let text = format!("{error:#}");
        let reason = "iommu_platform=true is not supported by the device";
        assert!(text.contains(reason), "{iommu:?}: {text}");
    }
}
