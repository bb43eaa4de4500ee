//! What several tests do in a guest, and what they check of a device afterwards.
//!
//! It knows the command lines of the guest's programs, and no test.

use std::time::{Duration, Instant};

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{self, Command, Running};
use hmm_vm::vm::{Builder, Vm};
use serde_json::Value;

/// The kernel lists the devices bound to our driver here.
pub(crate) const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_hmm";

/// The driver's lateness rules are set here.
pub(crate) const LATE: &str = "/sys/kernel/debug/virtio_hmm/late";

/// The tests' own program with workloads and processes. A machine has it if its test adds it.
pub(crate) const WORKLOADS: &str = "hmm-workloads";

/// The workloads that this program has.
const OF_TESTS: [&str; 5] = ["peers", "processes", "churn", "outside", "bad-input"];

/// A machine that has the tests' own program.
pub(crate) fn builder(artifacts: &Artifacts) -> Builder<'_> {
    Vm::builder(artifacts).file(artifacts.guest_program(WORKLOADS))
}

/// The `hmm` command for a device.
pub(crate) fn hmm(device: usize, arguments: &[&str]) -> Command {
    on_device("hmm", device, arguments)
}

/// The tests' own program for a device.
pub(crate) fn workloads(device: usize, arguments: &[&str]) -> Command {
    on_device(WORKLOADS, device, arguments)
}

fn on_device(program: &str, device: usize, arguments: &[&str]) -> Command {
    Command::new(program)
        .arguments(["--device".to_owned(), format!("/dev/hmm{device}")])
        .arguments(arguments.iter().copied())
}

/// A process that plays a part, once it has begun.
pub(crate) fn worker<'v>(vm: &'v Vm, device: usize, part: &str) -> Running<'v> {
    worker_with(vm, device, part, &[])
}

/// The same with more arguments.
pub(crate) fn worker_with<'v>(vm: &'v Vm, device: usize, part: &str, more: &[&str]) -> Running<'v> {
    let arguments = [&["worker", part, "--seed", "1"], more].concat();
    let command = workloads(device, &arguments);
    let mut running = vm.spawn(command.unlimited()).unwrap();
    running.wait_for_output("running").unwrap();
    running
}

/// The JSON output of the `hmm` command.
pub(crate) fn json(vm: &Vm, device: usize, arguments: &[&str]) -> Value {
    json_of("hmm", vm, device, arguments)
}

fn json_of(program: &str, vm: &Vm, device: usize, arguments: &[&str]) -> Value {
    let arguments = [&["--json"], arguments].concat();
    let output = vm.run(on_device(program, device, &arguments)).unwrap();
    let text = output.text();
    let value = serde_json::from_str(text.lines().next().unwrap_or_default())
        .unwrap_or_else(|_| panic!("{program} {arguments:?} on device {device}: {text}"));
    assert!(
        output.success(),
        "{program} {arguments:?} on device {device}: {value:#}"
    );
    value
}

/// The report of a workload that succeeded, from whichever program has it.
pub(crate) fn run(vm: &Vm, device: usize, arguments: &[&str]) -> Value {
    let is_of_tests = arguments
        .first()
        .is_some_and(|workload| OF_TESTS.contains(workload));
    let program = if is_of_tests { WORKLOADS } else { "hmm" };
    let report = json_of(program, vm, device, &[&["run"], arguments].concat());
    assert_eq!(report["right"], true, "{arguments:?}: {report:#}");
    report
}

/// The counters of a device and its driver.
pub(crate) fn counters(vm: &Vm, device: usize) -> Value {
    json(vm, device, &["stats"])
}

/// How long a worker of the driver may hold on to a process that has ended, on a machine with KVM.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Checks that no process has anything left in a device and its driver, and that no freed memory
/// was used. A worker that was busy with a process lets go of it a moment after its end.
pub(crate) fn assert_nothing_left(vm: &Vm, device: usize) {
    const LEFT: [(&str, &str); 5] = [
        ("driver", "spaces"),
        ("driver", "used_frames"),
        ("device", "spaces"),
        ("device", "jobs"),
        ("device", "mapped_pages"),
    ];
    let end = Instant::now() + vm.pace().scale(LETTING_GO);
    let counters = loop {
        let counters = counters(vm, device);
        let is_left = |(side, counter): &(&str, &str)| counters[side][counter] != 0;
        match LEFT.iter().find(|each| is_left(each)) {
            None => break counters,
            Some((side, counter)) => {
                assert!(Instant::now() < end, "{side}: {counter}: {counters:#}");
            }
        }
    };
    for wrong in ["stale_accesses", "freed_frame_uses"] {
        assert_eq!(counters["device"][wrong], 0, "{wrong}: {counters:#}");
    }
}

/// The same for a device that was never given up: no page was lost either.
pub(crate) fn assert_nothing_left_or_lost(vm: &Vm, device: usize) {
    assert_nothing_left(vm, device);
    let counters = counters(vm, device);
    assert_eq!(counters["driver"]["pages_lost"], 0, "{counters:#}");
}

/// The names, on the virtio bus, of the devices bound to our driver, in the bus's order.
pub(crate) fn bus_names(vm: &Vm) -> Vec<String> {
    let list = format!("cd {DRIVER} && echo virtio*");
    let names = vm.run(["sh", "-c", &list]).unwrap().succeeded().unwrap();
    names.split_whitespace().map(str::to_owned).collect()
}

/// How often the kernel's log contains a text.
pub(crate) fn told(vm: &Vm, what: &str) -> usize {
    let records = vm.kernel_log().unwrap();
    let told = records.iter().filter(|record| record.text.contains(what));
    told.count()
}

/// Waits until a module is unused: a test that exceeded its limit was killed, and may still be
/// exiting.
pub(crate) fn until_unused(vm: &Vm, module: &str) -> guest::Result<()> {
    let wait = format!("until [ \"$(cat /sys/module/{module}/refcnt)\" = 0 ]; do sleep 0.1; done");
    let output = vm.run(["sh", "-c", &wait])?;
    assert!(output.success(), "{module} is loaded");
    Ok(())
}
