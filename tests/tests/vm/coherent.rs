//! Devices whose memory the guest's CPUs can address.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::qemu::Machine;
use hmm_vm::vm::{Builder, Vm, GIB, MIB};

use super::support::{
    self, assert_nothing_left_or_lost, bus_names, counters, hmm, json, run, told, worker, DRIVER,
};

/// The kernel's name for pages of device memory among the physical addresses.
const REGION: &str = "virtio-hmm";

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    support::builder(artifacts)
        .check()
        .memory(2 * GIB)
        .device_memory(128 * MIB)
}

/// How many devices have pages for their memory.
fn regions(vm: &Vm) -> usize {
    let iomem = vm.guest().read_file("/proc/iomem").unwrap();
    String::from_utf8_lossy(&iomem)
        .lines()
        .filter(|line| line.ends_with(REGION))
        .count()
}

#[test]
fn cpu_and_device_use_pages_in_coherent_memory_where_they_are() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).coherent_devices(2).start().unwrap();
    for (device, coherent) in [(0, false), (1, true), (2, true)] {
        let info = json(&vm, device, &["info"]);
        assert_eq!(info["coherent"], coherent, "private devices come first");
    }
    assert_eq!(regions(&vm), 3);
    for device in [1, 2] {
        // {drv-own-frames}
        let report = run(&vm, device, &["migrate", "--size", "48M"]);
        assert_eq!(report["pages_to_device"], 48 * 256, "{report:#}");
    }
    // From each kind of device to each other one.
    for device in [0, 1, 2] {
        run(&vm, device, &["peers", "--size", "8M"]);
    }
    for device in [0, 1, 2] {
        assert_nothing_left_or_lost(&vm, device);
    }
    vm.finish().unwrap();
}

// {drv-region-live}
#[test]
fn every_workload_is_right_on_coherent_memory() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .devices(0)
        .coherent_devices(1)
        .start()
        .unwrap();
    for (workload, size) in [
        ("list", "20000"),
        ("tree", "20000"),
        ("gemm", "160"),
        ("axpy", "1M"),
        ("dot", "1M"),
        ("sort", "256K"),
        ("bfs", "100K"),
        ("processes", "3"),
        ("churn", "60"),
    ] {
        run(&vm, 0, &[workload, "--size", size]);
    }
    // A quarter more than the device has memory for.
    run(&vm, 0, &["oversubscribe"]);
    assert_nothing_left_or_lost(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_process_killed_with_pages_in_coherent_memory_leaves_nothing() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .devices(0)
        .coherent_devices(1)
        .start()
        .unwrap();
    let victim = worker(&vm, 0, "victim");
    let held = counters(&vm, 0);
    assert_ne!(held["driver"]["used_frames"], 0, "{held:#}");
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
    assert_nothing_left_or_lost(&vm, 0);
    run(&vm, 0, &["migrate", "--size", "8M"]);
    vm.finish().unwrap();
}

#[test]
fn a_coherent_device_goes_and_comes_again_while_a_process_uses_it() {
    let artifacts = Artifacts::required();
    let mut vm = builder(&artifacts).coherent_devices(2).start().unwrap();
    let name = bus_names(&vm).swap_remove(1);
    for _ in 0..2 {
        let victim = worker(&vm, 1, "victim");
        vm.guest()
            .write_file(&format!("{DRIVER}/unbind"), name.clone())
            .unwrap();
        // The addresses belong to the bus again, although the process still has its file open.
        assert_eq!(regions(&vm), 2);
        assert!(!victim.wait().unwrap().success(), "its job has ended");
        run(&vm, 2, &["peers", "--size", "4M"]);
        vm.guest()
            .write_file(&format!("{DRIVER}/bind"), name.clone())
            .unwrap();
        assert_eq!(regions(&vm), 3);
        run(&vm, 1, &["migrate", "--size", "8M"]);
        assert_nothing_left_or_lost(&vm, 1);
    }
    vm.unload_driver().unwrap();
    assert_eq!(regions(&vm), 0);
    vm.load_driver("").unwrap();
    run(&vm, 2, &["migrate", "--size", "8M"]);
    vm.finish().unwrap();
}

#[test]
fn a_coherent_device_is_unplugged_while_its_pages_are_in_use() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).coherent_devices(2).start().unwrap();
    let (owner, other) = (worker(&vm, 1, "victim"), worker(&vm, 0, "victim"));
    vm.qemu().unplug(1).unwrap();
    assert!(!owner.wait().unwrap().success(), "its job has ended");
    assert_eq!(regions(&vm), 2);
    other.kill().unwrap();
    other.wait().unwrap();
    for device in [0, 2] {
        run(&vm, device, &["peers", "--size", "4M"]);
        assert_nothing_left_or_lost(&vm, device);
    }
    vm.finish().unwrap();
}

#[test]
fn where_no_region_can_be_shown_the_memory_is_private() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .machine(Machine::Microvm)
        .devices(0)
        .coherent_devices(1)
        .start()
        .unwrap();
    assert_eq!(json(&vm, 0, &["info"])["coherent"], false);
    run(&vm, 0, &["migrate", "--size", "8M"]);
    vm.finish().unwrap();
}

#[test]
fn a_coherent_device_that_is_given_up_loses_its_pages_and_nothing_else() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .coherent_devices(1)
        .rule(1, "short-reply@dma,every=4")
        .start()
        .unwrap();
    let victim = worker(&vm, 1, "victim");
    let unlucky = hmm(1, &["run", "migrate", "--size", "32M"]);
    let output = vm.run(unlucky).unwrap();
    assert!(!output.success(), "{}", output.text());
    assert!(
        !victim.wait().unwrap().success(),
        "its job and its pages are lost"
    );
    assert_ne!(told(&vm, "the device is given up"), 0);
    run(&vm, 0, &["migrate", "--size", "8M"]);
    run(&vm, 0, &["list", "--size", "1000"]);
    // The driver can be unloaded: none of the pages is left.
    vm.finish().unwrap();
}
