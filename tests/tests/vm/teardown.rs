//! Processes, driver and device end at any moment, and nothing hangs or is left.

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::{Command, Error, Running};
use hmm_tests::vm::Vm;
use serde_json::Value;

/// Where the kernel shows which devices our driver is bound to.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_hmm";

const EWOULDBLOCK: i32 = 11;

/// A process with pages on the device and a job that would never end.
fn endless_job(vm: &Vm) -> Running<'_> {
    let command = Command::new("hmm").arguments(["worker", "victim", "--seed", "1"]);
    let mut running = vm.spawn(command.unlimited()).unwrap();
    running.wait_for_output("running").unwrap();
    running
}

fn counters(vm: &Vm) -> Value {
    let text = vm.run(["hmm", "--json", "stats"]).unwrap();
    serde_json::from_str(&text.succeeded().unwrap()).unwrap()
}

fn assert_forgotten(vm: &Vm) {
    let counters = counters(vm);
    for (side, counter) in [
        ("driver", "spaces"),
        ("driver", "used_frames"),
        ("device", "spaces"),
        ("device", "jobs"),
        ("device", "mapped_pages"),
    ] {
        assert_eq!(
            counters[side][counter], 0,
            "{side}: {counter}: {counters:#}"
        );
    }
}

fn assert_serving(vm: &Vm) {
    vm.run(["hmm", "run", "list", "--size", "1000"])
        .unwrap()
        .succeeded()
        .unwrap();
}

/// The name of the device on the virtio bus.
fn bus_name(vm: &Vm) -> String {
    let list = format!("cd {DRIVER} && echo virtio*");
    let names = vm.run(["sh", "-c", &list]).unwrap().succeeded().unwrap();
    names.trim().to_owned()
}

#[test]
fn a_process_killed_in_the_middle_of_a_job_is_forgotten() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).check().start().unwrap();
    let victim = endless_job(&vm);
    let held = counters(&vm);
    assert_eq!(held["device"]["spaces"], 1, "{held:#}");
    assert_ne!(held["driver"]["used_frames"], 0, "{held:#}");
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
    assert_forgotten(&vm);
    assert_serving(&vm);
    vm.finish().unwrap();
}

#[test]
fn the_driver_stays_as_long_as_a_process_uses_it() {
    let artifacts = Artifacts::required();
    let mut vm = Vm::builder(&artifacts).check().start().unwrap();
    let busy = {
        let victim = endless_job(&vm);
        let refused = vm
            .guest()
            .unload_module(hmm_tests::vm::DRIVER_NAME, hmm_tests::pace::DRIVER);
        victim.kill().unwrap();
        victim.wait().unwrap();
        refused
    };
    assert!(
        matches!(&busy, Err(Error::Refused { errno, .. }) if *errno == Some(EWOULDBLOCK)),
        "it is in use: {busy:?}"
    );
    vm.unload_driver().unwrap();
    vm.load_driver("").unwrap();
    assert_serving(&vm);
    vm.finish().unwrap();
}

#[test]
fn a_device_taken_from_its_driver_ends_the_jobs_and_gives_the_pages_back() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).check().start().unwrap();
    let name = bus_name(&vm);
    let victim = endless_job(&vm);
    vm.guest()
        .write_file(&format!("{DRIVER}/unbind"), name.clone())
        .unwrap();
    let output = victim.wait().unwrap();
    assert!(
        !output.success(),
        "its job ended with an error: {}",
        output.text()
    );
    vm.guest()
        .write_file(&format!("{DRIVER}/bind"), name)
        .unwrap();
    assert_forgotten(&vm);
    assert_serving(&vm);
    vm.finish().unwrap();
}
