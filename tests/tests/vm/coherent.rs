//! Devices whose memory the guest's CPUs can address.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::{Command, Running};
use hmm_tests::qemu::Machine;
use hmm_tests::vm::{Builder, Vm, GIB, MIB};
use serde_json::Value;

/// Where the kernel shows which devices our driver is bound to.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_hmm";

/// What the kernel calls pages of device memory among the physical addresses.
const REGION: &str = "virtio-hmm";

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    Vm::builder(artifacts)
        .check()
        .memory(2 * GIB)
        .device_memory(128 * MIB)
}

fn json(vm: &Vm, device: usize, arguments: &[&str]) -> Value {
    let device = format!("/dev/hmm{device}");
    let command = Command::new("hmm").arguments(["--json", "--device", device.as_str()]);
    let output = vm
        .run(command.arguments(arguments.iter().copied()))
        .unwrap();
    let text = output.text();
    let value = serde_json::from_str(text.lines().next().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{arguments:?} on {device}: {text}"));
    assert!(output.success(), "{arguments:?} on {device}: {value:#}");
    value
}

fn run(vm: &Vm, device: usize, arguments: &[&str]) -> Value {
    let report = json(vm, device, &[&["run"], arguments].concat());
    assert_eq!(report["right"], true, "{report:#}");
    report
}

fn assert_forgotten(vm: &Vm, device: usize) {
    let counters = json(vm, device, &["stats"]);
    for (side, counter) in [
        ("driver", "spaces"),
        ("driver", "used_frames"),
        ("driver", "pages_lost"),
        ("device", "spaces"),
        ("device", "jobs"),
        ("device", "mapped_pages"),
        ("device", "stale_accesses"),
        ("device", "freed_frame_uses"),
    ] {
        assert_eq!(
            counters[side][counter], 0,
            "{side}: {counter}: {counters:#}"
        );
    }
}

/// How many devices have pages for their memory.
fn regions(vm: &Vm) -> usize {
    let iomem = vm.guest().read_file("/proc/iomem").unwrap();
    String::from_utf8_lossy(&iomem)
        .lines()
        .filter(|line| line.ends_with(REGION))
        .count()
}

/// A process with pages on a device and a job that would never end.
fn endless_job(vm: &Vm, device: usize) -> Running<'_> {
    let command = Command::new("hmm")
        .arguments(["--device".to_owned(), format!("/dev/hmm{device}")])
        .arguments(["worker", "victim", "--seed", "1"]);
    let mut running = vm.spawn(command.unlimited()).unwrap();
    running.wait_for_output("running").unwrap();
    running
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
        let report = run(&vm, device, &["migrate", "--size", "48M"]);
        assert_eq!(report["pages_to_device"], 48 * 256, "{report:#}");
    }
    // From each kind to each other one.
    for device in [0, 1, 2] {
        run(&vm, device, &["peers", "--size", "8M"]);
    }
    for device in [0, 1, 2] {
        assert_forgotten(&vm, device);
    }
    vm.finish().unwrap();
}

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
    // A quarter more than the device has.
    run(&vm, 0, &["oversubscribe"]);
    assert_forgotten(&vm, 0);
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
    let victim = endless_job(&vm, 0);
    let held = json(&vm, 0, &["stats"]);
    assert_ne!(held["driver"]["used_frames"], 0, "{held:#}");
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
    assert_forgotten(&vm, 0);
    run(&vm, 0, &["migrate", "--size", "8M"]);
    vm.finish().unwrap();
}

#[test]
fn a_coherent_device_goes_and_comes_again_while_a_process_uses_it() {
    let artifacts = Artifacts::required();
    let mut vm = builder(&artifacts).coherent_devices(2).start().unwrap();
    let names = vm
        .run(["sh", "-c", &format!("cd {DRIVER} && echo virtio*")])
        .unwrap()
        .succeeded()
        .unwrap();
    let name = names.split_whitespace().nth(1).unwrap().to_owned();
    for _ in 0..2 {
        let victim = endless_job(&vm, 1);
        vm.guest()
            .write_file(&format!("{DRIVER}/unbind"), name.clone())
            .unwrap();
        // Its addresses are the bus's again, although the process has its file open still.
        assert_eq!(regions(&vm), 2);
        assert!(!victim.wait().unwrap().success(), "its job has ended");
        run(&vm, 2, &["peers", "--size", "4M"]);
        vm.guest()
            .write_file(&format!("{DRIVER}/bind"), name.clone())
            .unwrap();
        assert_eq!(regions(&vm), 3);
        run(&vm, 1, &["migrate", "--size", "8M"]);
        assert_forgotten(&vm, 1);
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
    let (owner, other) = (endless_job(&vm, 1), endless_job(&vm, 0));
    vm.qemu().unplug(1).unwrap();
    assert!(!owner.wait().unwrap().success(), "its job has ended");
    assert_eq!(regions(&vm), 2);
    other.kill().unwrap();
    other.wait().unwrap();
    for device in [0, 2] {
        run(&vm, device, &["peers", "--size", "4M"]);
        assert_forgotten(&vm, device);
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
        .mishap(1, "short-reply@dma=4")
        .start()
        .unwrap();
    let victim = endless_job(&vm, 1);
    let unlucky = Command::new("hmm").arguments(["--device", "/dev/hmm1", "run", "migrate"]);
    let output = vm.run(unlucky.arguments(["--size", "32M"])).unwrap();
    assert!(!output.success(), "{}", output.text());
    assert!(
        !victim.wait().unwrap().success(),
        "its job and its pages are lost"
    );
    let records = vm.kernel_log().unwrap();
    let told = |what: &str| records.iter().any(|record| record.text.contains(what));
    assert!(told("the device is given up"));
    run(&vm, 0, &["migrate", "--size", "8M"]);
    run(&vm, 0, &["list", "--size", "1000"]);
    // The driver can be unloaded: none of the pages is left.
    vm.finish().unwrap();
}
