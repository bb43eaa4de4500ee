//! Processes, driver and device end at any moment: nothing hangs, and nothing is left.

use hmm_vm::artifacts::Artifacts;
use hmm_vm::control::Point;
use hmm_vm::guest::{Error, Recipient};
use hmm_vm::vm::Vm;
use rustix::process::Signal;
use serde_json::{json, Value};

use super::support::{self, assert_nothing_left, bus_names, counters, run, worker, DRIVER};

const EWOULDBLOCK: i32 = 11;

fn assert_serving(vm: &Vm) {
    run(vm, 0, &["list", "--size", "1000"]);
}

#[test]
fn a_process_killed_in_the_middle_of_a_job_is_forgotten() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).check().start().unwrap();
    let victim = worker(&vm, 0, "victim");
    let held = counters(&vm, 0);
    assert_eq!(held["device"]["spaces"], 1, "{held:#}");
    assert_ne!(held["driver"]["used_frames"], 0, "{held:#}");
    victim.kill().unwrap();
    assert!(!victim.wait().unwrap().success());
    assert_nothing_left(&vm, 0);
    assert_serving(&vm);
    vm.finish().unwrap();
}

#[test]
fn the_memory_of_a_killed_process_is_not_reaped_while_its_huge_pages_move() {
    let artifacts = Artifacts::required();
    let vm = support::builder(&artifacts).check().start().unwrap();
    let copies = vm.device(0);
    let hold = copies
        .hold_only(Point::DmaItem, "operation=to-system")
        .unwrap();
    let mut reaper = worker(&vm, 0, "reaper");
    hold.wait().unwrap();
    reaper
        .signal(Signal::USR1.as_raw(), Recipient::Process)
        .unwrap();
    reaper.wait_for_output("first").unwrap();
    hold.release().unwrap();
    let text = reaper.wait().unwrap().succeeded().unwrap();
    let told: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let expected = json!({ "first": EWOULDBLOCK, "last": 0, "huge_pages_lost": 0 });
    assert_eq!(told, expected);
    assert_nothing_left(&vm, 0);
    assert_serving(&vm);
    vm.finish().unwrap();
}

#[test]
fn the_driver_stays_as_long_as_a_process_uses_it() {
    let artifacts = Artifacts::required();
    let mut vm = support::builder(&artifacts).check().start().unwrap();
    let busy = {
        let victim = worker(&vm, 0, "victim");
        let refused = vm
            .guest()
            .unload_module(hmm_vm::vm::DRIVER_NAME, hmm_vm::pace::DRIVER);
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
    let vm = support::builder(&artifacts).check().start().unwrap();
    let name = bus_names(&vm).swap_remove(0);
    let victim = worker(&vm, 0, "victim");
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
    assert_nothing_left(&vm, 0);
    assert_serving(&vm);
    vm.finish().unwrap();
}
