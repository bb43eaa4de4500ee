//! The order between queues holds, and no task sleeps for ever, however late the driver and the
//! device are.
//!
//! Rows of the contract check the results; here they run while requests stay in their queues for
//! long.

use std::thread;
use std::time::{Duration, Instant};

use hmm_vm::artifacts::Artifacts;
use hmm_vm::control::Point;
use hmm_vm::guest::{Command, Output};
use hmm_vm::vm::{Vm, GIB, MIB};
use rustix::process::Signal;
use serde_json::json;

use super::support;

/// Half of the slots of the control queue.
const HALF: u32 = 64;

/// How long a device takes nothing from its queue: long enough that as many workers wait for a slot
/// as the queue has slots, and shorter than the driver waits.
const FULL: Duration = Duration::from_secs(9);

/// How long a device pauses: far less than the driver waits for it.
const PAUSE: Duration = Duration::from_secs(3);

/// How long a process takes to begin or to end.
const SOON: Duration = Duration::from_secs(20);

/// How long the device goes on in between: too short for all faults of a row.
const BETWEEN: Duration = Duration::from_millis(400);

fn machine(artifacts: &Artifacts) -> Vm {
    Vm::builder(artifacts)
        .check()
        .memory(GIB)
        .device_memory(64 * MIB)
        .file(artifacts.guest_program("hmm-contract"))
        .start()
        .unwrap()
}

/// Runs rows.
fn run(vm: &Vm, rows: &[&str]) -> Command {
    let limit = vm.pace().scale(Duration::from_secs(60));
    Command::new("hmm-contract")
        .argument("run")
        .arguments(rows.iter().copied())
        .arguments(["--limit", &limit.as_secs().to_string()])
        .limit(limit * 2)
}

/// Each of these rows must have been kept.
fn assert_kept(output: &Output, rows: &[&str]) {
    println!("{}", output.text());
    assert!(output.success(), "{}", output.text());
    let kept = output.text().matches("kept  ").count();
    assert_eq!(kept, rows.len(), "{}", output.text());
}

/// Runs rows while the driver is late by these rules. Each must be kept.
fn keep(vm: &Vm, rules: &str, rows: &[&str]) {
    println!("{rules}");
    vm.guest().write_file(support::LATE, rules).unwrap();
    assert_kept(&vm.run(run(vm, rows)).unwrap(), rows);
}

// {drv-queue-order}
#[test]
fn no_huge_page_is_mapped_late() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    keep(&vm, "\n", &["a-huge-page-that-a-cpu-touches-is-not"]);
    for rules in [
        "delay=3ms@kick-control",
        "delay=1ms..9ms@kick-control,seed=7",
    ] {
        keep(&vm, rules, &["huge-pages-that-cpus-touch-are-not"]);
    }
    let rule = "delay=3ms@control.taken,operation=map";
    let late = vm.device(0).rule(rule).unwrap();
    keep(&vm, "\n", &["huge-pages-that-cpus-touch-are-not"]);
    assert!(late.happened().unwrap() > 0);
    drop(late);
    vm.finish().unwrap();
}

// {drv-queue-order}
#[test]
fn no_space_is_destroyed_before_its_pages_are_fetched() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let rows = ["a-file-is-closed-while-huge-pages-are-touched"];
    keep(&vm, "delay=20ms@kick-dma", &rows);
    keep(&vm, "delay=1ms..5ms@kick-dma,seed=3", &rows);
    let rule = "delay=10ms@dma.taken,operation=fetch";
    let late = vm.device(0).rule(rule).unwrap();
    keep(&vm, "\n", &rows);
    assert!(late.happened().unwrap() > 0);
    drop(late);
    vm.finish().unwrap();
}

#[test]
fn no_job_that_is_cancelled_too_early_goes_on() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // The device has not taken all jobs when it is told to end them.
    let late = vm.device(0).rule("delay=30ms@submit.taken").unwrap();
    keep(&vm, "\n", &["closing-one-of-several-files"]);
    assert!(late.happened().unwrap() > 0);
    drop(late);
    vm.finish().unwrap();
}

// {drv-cancel-once}
#[test]
fn a_job_is_cancelled_once_however_often_that_is_asked_for() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // A rule without a delay: it only counts.
    let rule = "delay=0s@control.taken,operation=cancel";
    let cancels = vm.device(0).rule(rule).unwrap();
    // The driver does not know yet that a job has ended when the second request comes.
    let late = vm.device(0).rule("delay=100ms@submit.ended").unwrap();
    // Two jobs; the program cancels each of them twice.
    keep(&vm, "\n", &["a-cancelled-job-ends"]);
    assert_eq!(cancels.happened().unwrap(), 2);
    assert!(late.happened().unwrap() > 0);
    drop((cancels, late));
    vm.finish().unwrap();
}

// {drv-map-before-retry}
#[test]
fn no_job_goes_on_before_its_page_is_mapped() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let faults = || {
        let before = vm.device(0).counter("faults").unwrap();
        // A job that writes to one page.
        keep(&vm, "\n", &["one-page-is-asked-for"]);
        vm.device(0).counter("faults").unwrap() - before
    };
    assert_eq!(faults(), 1);
    // A job that went on before its page was mapped would fault again meanwhile.
    let rule = "delay=50ms@control.taken,operation=map";
    let late = vm.device(0).rule(rule).unwrap();
    assert_eq!(faults(), 1);
    assert!(late.happened().unwrap() > 0);
    drop(late);
    vm.finish().unwrap();
}

/// The numbers of the spaces that a device has.
fn spaces(vm: &Vm) -> Vec<u64> {
    let dump = vm.device(0).ask(&json!({ "command": "dump" })).unwrap();
    let spaces = dump["spaces"].as_array().unwrap().iter();
    spaces
        .map(|space| space["space"].as_u64().unwrap())
        .collect()
}

/// Waits until a device has exactly the spaces with these numbers.
fn wait_for_spaces(vm: &Vm, wanted: &[u64]) {
    let deadline = Instant::now() + vm.pace().scale(SOON);
    loop {
        let found = spaces(vm);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}, not {wanted:?}");
    }
}

// {drv-cancel-names}
#[test]
fn a_job_has_no_name_of_another_one_that_was_cancelled_in_vain() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // A job has ended when its cancellation comes, and the driver does not know that. So the device
    // remembers the job's name, and would cancel the next one that has it.
    let late = vm.device(0).rule("delay=20ms@submit.ended").unwrap();
    keep(&vm, "\n", &["cancelled-as-it-ends"]);
    assert!(late.happened().unwrap() > 0);
    drop(late);
    keep(&vm, "\n", &["there-and-back", "threads-share-a-file"]);
    vm.finish().unwrap();
}

// {drv-space-reuse}
#[test]
fn a_space_has_its_number_until_its_last_job_has_come_back() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let work = || Command::new("hmm").arguments(["run", "list", "--size", "1000"]);
    let hold = vm.device(0).hold(Point::SubmitTaken).unwrap();
    let killed = vm.spawn(work()).unwrap();
    hold.wait().unwrap();
    assert_eq!(spaces(&vm), [0]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    // The space is gone. Its job has not begun, and with a reused number would begin in the next
    // space.
    wait_for_spaces(&vm, &[]);
    let next = vm.spawn(work()).unwrap();
    wait_for_spaces(&vm, &[1]);
    hold.release().unwrap();
    next.wait().unwrap().succeeded().unwrap();
    vm.finish().unwrap();
}

#[test]
fn a_fault_takes_both_of_its_places_or_none() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // The first faults fill the queue before any of them goes on to map ahead. A driver whose
    // workers took one slot after the other hung here in about half of the runs, and gave the
    // device up: the queue's slots were each held by a different worker, and no worker had two. The
    // model in `tests/order` always shows it.
    vm.guest()
        .write_file(support::LATE, format!("delay=700ms@lock,count={HALF}"))
        .unwrap();
    let first = "operation=map,count=1";
    let hold = vm.device(0).hold_only(Point::ControlTaken, first).unwrap();
    let rows = ["many-processes-fault-at-once"];
    let running = vm.spawn(run(&vm, &rows)).unwrap();
    hold.wait().unwrap();
    thread::sleep(FULL);
    hold.release().unwrap();
    assert_kept(&running.wait().unwrap(), &rows);
    vm.finish().unwrap();
}

// {drv-notify-before-wait}
#[test]
fn a_thread_that_sleeps_for_a_place_gets_one() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    // More faults than the control queue has slots, with a device that pauses now and then.
    let rows = ["many-processes-fault-at-once"];
    let running = vm.spawn(run(&vm, &rows)).unwrap();
    for _ in 0..4 {
        thread::sleep(BETWEEN);
        vm.daemon(0).signal(Signal::STOP);
        thread::sleep(PAUSE);
        vm.daemon(0).signal(Signal::CONT);
    }
    assert_kept(&running.wait().unwrap(), &rows);
    vm.finish().unwrap();
}
