//! Devices that fail and are restarted, and systems that sleep.

use std::thread;
use std::time::{Duration, Instant};

use hmm_vm::artifacts::Artifacts;
use hmm_vm::control::Point;
use hmm_vm::guest::{Recipient, Running};
use hmm_vm::vm::{Builder, Vm, GIB, MIB};
use rustix::process::Signal;
use serde_json::{json, Value};

use super::support::{
    self, assert_nothing_left, bus_names, counters, hmm, json, run, told, worker, worker_with,
    workloads, DRIVER,
};

mod stock_only;

/// The driver tries for some 15 s to recover a device that fails again and again.
const RECOVERY: Duration = Duration::from_secs(40);

/// How often the system sleeps while the process changes its memory.
const SLEEPS: usize = 10;

/// How often a console is read. What follows a line on it takes less than ten times this.
const MOMENT: Duration = Duration::from_millis(50);

/// For how many seconds the kernel stays asleep.
const SLEEP_DELAY: &str = "/sys/module/suspend/parameters/pm_test_delay";

/// The kernel stays asleep for a second, and its other steps take little more.
const SLEEP: Duration = Duration::from_secs(40);

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    support::builder(artifacts)
        .check()
        .memory(2 * GIB)
        .device_memory(128 * MIB)
}

fn assert_well(running: Running<'_>) {
    let output = running.wait().unwrap();
    assert!(output.success(), "{output:?}");
}

/// Waits until a device is in a state, and returns the device's report then.
fn wait_for(vm: &Vm, device: usize, state: &str) -> Value {
    let deadline = Instant::now() + vm.pace().scale(RECOVERY);
    loop {
        let info = json(vm, device, &["info"]);
        if info["state"] == state {
            return info;
        }
        assert!(Instant::now() < deadline, "{info:#} is not {state}");
    }
}

fn assert_serving(vm: &Vm, device: usize) {
    run(vm, device, &["list", "--size", "1000"]);
    run(vm, device, &["migrate", "--size", "4M"]);
}

/// Uses a device until one of its replies is wrong.
fn break_device(vm: &Vm, device: usize) {
    let unlucky = vm
        .run(hmm(device, &["run", "migrate", "--size", "64M"]))
        .unwrap();
    assert!(!unlucky.success(), "{}", unlucky.text());
    assert_eq!(told(vm, "the device is given up"), 1);
}

// {drv-init-after-reset}, {drv-reset-forgets}
fn survives(builder: Builder<'_>) {
    let vm = builder.start().unwrap();
    assert_eq!(json(&vm, 0, &["info"])["resets"], 0);
    let (survivor, victim) = (worker(&vm, 0, "survivor"), worker(&vm, 0, "victim"));
    let device = vm.device(0);
    let rule = device.rule("short-reply@dma,nth=3").unwrap();
    break_device(&vm, 0);
    rule.clear().unwrap();
    let info = wait_for(&vm, 0, "Running");
    assert_eq!(info["resets"], 1, "{info:#}");
    assert!(!victim.wait().unwrap().success(), "its job has ended");
    assert_well(survivor);
    assert_nothing_left(&vm, 0);
    let info = json(&vm, 0, &["info"]);
    assert_eq!(
        info["free_memory"], info["device_memory"],
        "what was lost is free again: {info:#}"
    );
    assert_serving(&vm, 0);
    assert_eq!(told(&vm, "the device is given up"), 1);
    vm.finish().unwrap();
}

#[test]
fn a_device_that_is_given_up_is_started_anew_and_serves_processes_that_bind_again() {
    let artifacts = Artifacts::required();
    survives(builder(&artifacts));
}

#[test]
fn a_coherent_device_that_is_given_up_is_started_anew_too() {
    let artifacts = Artifacts::required();
    survives(builder(&artifacts).devices(0).coherent_devices(1));
}

#[test]
fn a_device_that_fails_again_and_again_is_gone_until_it_is_bound_anew() {
    let artifacts = Artifacts::required();
    // Each time the device starts well, and fails at the first request.
    let vm = builder(&artifacts)
        .rule(0, "short-reply@control,every=2")
        .start()
        .unwrap();
    let deadline = Instant::now() + vm.pace().scale(RECOVERY);
    let info = loop {
        let used = vm.run(hmm(0, &["run", "list", "--size", "1000"])).unwrap();
        assert!(!used.success(), "{}", used.text());
        let info = json(&vm, 0, &["info"]);
        if info["state"] == "Gone" {
            break info;
        }
        assert!(Instant::now() < deadline, "{info:#}");
    };
    assert!(info["resets"].as_u64().unwrap() > 3, "{info:#}");
    let given_up = told(&vm, "the device is given up");
    assert_eq!(told(&vm, "the device is not started any more"), 1);
    // It stays given up.
    for _ in 0..3 {
        let used = vm.run(hmm(0, &["run", "list", "--size", "1000"])).unwrap();
        let text = used.text();
        assert!(!used.success() && text.contains("binding"), "{text}");
    }
    assert_eq!(told(&vm, "the device is given up"), given_up);
    // Until it is bound again by hand.
    let name = bus_names(&vm).swap_remove(0);
    for action in ["unbind", "bind"] {
        vm.guest()
            .write_file(&format!("{DRIVER}/{action}"), name.clone())
            .unwrap();
    }
    let info = json(&vm, 0, &["info"]);
    assert_eq!(
        (&info["state"], &info["resets"]),
        (&Value::from("Running"), &Value::from(0))
    );
    vm.finish().unwrap();
}

/// Small pages are on the device and, if it takes them, huge pages too.
fn assert_sizes(vm: &Vm) {
    let counters = counters(vm, 0);
    let count = |name: &str| counters["driver"][name].as_u64().unwrap();
    let large = count("huge_to_device") * 512;
    assert!(
        count("used_frames") > 0 && count("pages_to_device") > large,
        "{counters:#}"
    );
    let takes_large = json(vm, 0, &["info"])["coherent"] == false;
    assert_eq!(large > 0, takes_large, "{counters:#}");
}

/// Lets the system sleep in this way, as far as its devices are concerned, and wakes it up.
fn sleep(vm: &Vm, how: &str) {
    vm.guest()
        .write_file("/sys/power/pm_test", "devices")
        .unwrap();
    vm.guest().write_file(SLEEP_DELAY, "1").unwrap();
    vm.guest().sleep(how, SLEEP).unwrap();
}

/// Lets a system sleep while a process has this much memory, and a job, on the device. Nothing of
/// either may be lost.
fn goes_on(vm: &Vm, mib: u32, sleep: impl FnOnce(&Vm)) {
    let before = counters(vm, 0);
    let sleeper = worker_with(vm, 0, "sleeper", &["--memory", &format!("{mib}M")]);
    assert_sizes(vm);
    sleep(vm);
    assert_well(sleeper);
    assert_nothing_left(vm, 0);
    let after = counters(vm, 0);
    assert_eq!(
        after["driver"]["pages_lost"],
        before["driver"]["pages_lost"]
    );
}

fn sleeps(builder: Builder<'_>) {
    let vm = builder.start().unwrap();
    for how in ["mem", "freeze"] {
        goes_on(&vm, 4, |vm| sleep(vm, how));
    }
    let info = json(&vm, 0, &["info"]);
    assert_eq!(
        (&info["state"], &info["resets"]),
        (&Value::from("Running"), &Value::from(0))
    );
    assert_eq!(told(&vm, "the device is given up"), 0);
    assert_serving(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_system_sleeps_and_its_processes_go_on() {
    let artifacts = Artifacts::required();
    sleeps(builder(&artifacts));
}

// {drv-region-before-reset}
#[test]
fn a_system_with_a_coherent_device_sleeps_and_its_processes_go_on() {
    let artifacts = Artifacts::required();
    sleeps(builder(&artifacts).devices(0).coherent_devices(1));
}

#[test]
fn a_job_that_comes_back_late_is_cancelled_by_a_sleep() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    goes_on(&vm, 4, |vm| {
        let device = vm.device(0);
        let late = device.hold(Point::SubmitEnded).unwrap();
        let only = "operation=space-destroy,count=1";
        let destroyed = device.hold_only(Point::ControlExecuted, only).unwrap();
        thread::scope(|scope| {
            let sleeping = scope.spawn(|| sleep(vm, "mem"));
            destroyed.wait().unwrap();
            // The job comes back after the driver has its answer, which is too late: the driver
            // resets the device next, and the reset ends the hold.
            late.wait().unwrap();
            destroyed.release().unwrap();
            sleeping.join().unwrap();
        });
        late.release().unwrap();
    });
    vm.finish().unwrap();
}

#[test]
fn a_device_is_told_of_changes_however_often_the_system_has_slept_in_the_middle_of_one() {
    let artifacts = Artifacts::required();
    // With one processor and synchronous suspend: the driver's worker and the task that suspends
    // the system then share the processor, and the worker is mostly the first to go on when both
    // have been answered.
    let vm = builder(&artifacts).cpus(1).start().unwrap();
    vm.guest().write_file("/sys/power/pm_async", "0").unwrap();
    let device = vm.device(0);
    let changer = workloads(0, &["worker", "changer", "--seed", "1"]);
    let mut changer = vm.spawn(changer.unlimited()).unwrap();
    let mut lost = 0;
    for time in 1..=SLEEPS {
        changer.wait_for_output(&"running\n".repeat(time)).unwrap();
        let only = "operation=unmap,count=1";
        let first = device.hold_only(Point::ControlTaken, only).unwrap();
        first.wait().unwrap();
        thread::scope(|scope| {
            let sleeping = scope.spawn(|| sleep(&vm, "freeze"));
            wait_for_sleep(&vm, time);
            // After this change the device is asked to destroy the space. The driver asks for the
            // next change before it has noted the answer, and that change is lost with the reset.
            let late = device
                .rule("delay=3s@control.taken,operation=unmap")
                .unwrap();
            first.release().unwrap();
            sleeping.join().unwrap();
            lost += late.happened().unwrap();
        });
    }
    // A driver that lost the resources of these changes would fall silent once a space has none
    // left.
    println!(
        "in {SLEEPS} sleeps {lost} changes were asked for when the device was about to be reset"
    );
    assert!(lost > 0, "no change was under way");
    assert_well(changer);
    assert_nothing_left(&vm, 0);
    assert_eq!(told(&vm, "the device is given up"), 0);
    vm.finish().unwrap();
}

/// Waits until the system is about to suspend its devices for the `time`th time.
fn wait_for_sleep(vm: &Vm, time: usize) {
    let deadline = Instant::now() + vm.pace().scale(SLEEP);
    let begun = || {
        let console = std::fs::read_to_string(vm.logs().console()).unwrap();
        console
            .matches("remaining freezable tasks completed")
            .count()
    };
    while begun() < time {
        assert!(Instant::now() < deadline, "the system stays awake");
        thread::sleep(MOMENT);
    }
    // The console shows no later step, so the rest is waited for.
    thread::sleep(10 * MOMENT);
}

/// Unbinds a device from its driver, or binds it again.
fn bind(vm: &Vm, action: &str) {
    let list = "for device in /sys/bus/virtio/devices/*; do \
                grep -q 0x0025 $device/device && basename $device; done; true";
    let names = vm.run(["sh", "-c", list]).unwrap().succeeded().unwrap();
    let name = names.split_whitespace().next().unwrap().to_owned();
    vm.guest()
        .write_file(&format!("{DRIVER}/{action}"), name)
        .unwrap();
}

/// Bits of a poll, and errors, as `spec/uapi.md` has them.
const POLLERR: u64 = 0x8;
const POLLHUP: u64 = 0x10;
const EIO: u64 = 5;
const ENODEV: u64 = 19;

/// The results of a program that polled its file and waited for a job: the bits, the error of a
/// later call, and the error of the wait or the job's status.
fn told_to(poller: Running<'_>) -> (u64, u64, Value) {
    let text = poller.wait().unwrap().succeeded().unwrap();
    let mut told: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let number = |what: &str| told[what].as_u64().unwrap_or_else(|| panic!("{told}"));
    let (bits, call) = (number("poll"), number("call"));
    (bits, call, told["job"].take())
}

#[test]
fn a_poll_tells_of_a_device_that_is_given_up_and_of_one_that_goes() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let poller = worker(&vm, 0, "poller");
    let mishap = vm.device(0).rule("short-reply@dma,nth=3").unwrap();
    break_device(&vm, 0);
    drop(mishap);
    assert_eq!(told_to(poller), (POLLERR, EIO, EIO.into()));
    let poller = worker(&vm, 0, "poller");
    bind(&vm, "unbind");
    let (bits, call, job) = told_to(poller);
    assert_eq!((bits, call), (POLLERR | POLLHUP, ENODEV));
    assert!(job == "Cancelled" || job == ENODEV, "{job}");
    vm.finish().unwrap();
}

// {drv-answer-every-fault}
#[test]
fn a_job_that_faults_while_its_device_goes_is_cancelled_and_does_not_fail() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    // The space stays on the device until these pages are fetched.
    let rule = "delay=5s@dma.fetch,count=1";
    let late = vm.device(0).rule(rule).unwrap();
    let faulter = worker(&vm, 0, "faulter");
    let deadline = Instant::now() + vm.pace().scale(RECOVERY);
    while late.happened().unwrap() == 0 {
        assert!(Instant::now() < deadline, "no page is fetched");
    }
    bind(&vm, "unbind");
    let text = faulter.wait().unwrap().succeeded().unwrap();
    let told: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(told, json!({ "job": "Cancelled" }));
    drop(late);
    vm.finish().unwrap();
}

/// The driver checks every 10 s whether a device is alive, and gives it 30 s for that.
const SILENCE: Duration = Duration::from_secs(10 + 30);

// {drv-bounded-wait}
#[test]
fn a_device_that_is_silent_is_given_up_in_time() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let limit = vm.pace().scale(SILENCE + Duration::from_secs(20));
    let poller = workloads(0, &["worker", "poller", "--seed", "1"]).limit(limit);
    let mut poller = vm.spawn(poller).unwrap();
    poller.wait_for_output("running").unwrap();
    let rule = "lost-reply@control,operation=statistics";
    let silence = vm.device(0).rule(rule).unwrap();
    assert_eq!(told_to(poller), (POLLERR, EIO, EIO.into()));
    assert_eq!(silence.happened().unwrap(), 1, "it was asked once");
    drop(silence);
    assert_eq!(told(&vm, "the device is given up"), 1);
    assert_nothing_left(&vm, 0);
    assert_serving(&vm, 0);
    vm.finish().unwrap();
}

/// How long a worker is held up: longer than it takes to start the device anew, and a process.
const HELD_UP: &str = "delay=10s@install,count=1";

/// Waits until a counter of the driver has a value.
fn wait_for_counter(vm: &Vm, counter: &str, value: u64) {
    let deadline = Instant::now() + vm.pace().scale(RECOVERY);
    loop {
        let counters = counters(vm, 0);
        if counters["driver"][counter] == value {
            return;
        }
        assert!(Instant::now() < deadline, "{counter}: {counters:#}");
    }
}

// {drv-stale-records}
#[test]
fn a_fault_is_not_answered_in_the_next_life_of_the_device() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let work = || hmm(0, &["run", "list", "--size", "1000"]);
    vm.guest().write_file(support::LATE, HELD_UP).unwrap();
    let early = vm.spawn(work()).unwrap();
    wait_for_counter(&vm, "faults", 1);
    let stop = Signal::STOP.as_raw();
    early.signal(stop, Recipient::Process).unwrap();
    let rule = "short-reply@control,operation=statistics,count=1";
    let mishap = vm.device(0).rule(rule).unwrap();
    assert!(!vm.run(hmm(0, &["stats"])).unwrap().success());
    wait_for(&vm, 0, "Running");
    drop(mishap);
    // The worker finds no process, and refuses the fault.
    early.kill().unwrap();
    // The first fault of another process has the same number, and may already be answered.
    let hold = vm.device(0).hold(Point::FaultReported).unwrap();
    let next = vm.spawn(work()).unwrap();
    hold.wait().unwrap();
    let terminated = || counters(&vm, 0)["driver"]["faults_terminated"].clone();
    assert_eq!(terminated(), 0, "the worker is not held up any more");
    wait_for_counter(&vm, "faults_terminated", 1);
    // An answer would be before the request for these.
    counters(&vm, 0);
    hold.release().unwrap();
    next.wait().unwrap().succeeded().unwrap();
    early.wait().unwrap();
    assert_nothing_left(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_device_goes_though_a_page_that_a_job_waits_for_never_comes() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let waiter = worker(&vm, 0, "waiter");
    bind(&vm, "unbind");
    assert_well(waiter);
    bind(&vm, "bind");
    assert_nothing_left(&vm, 0);
    assert_serving(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_device_goes_though_the_argument_of_a_call_never_comes() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let caller = worker(&vm, 0, "caller");
    bind(&vm, "unbind");
    bind(&vm, "bind");
    assert_serving(&vm, 0);
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert_nothing_left(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn a_killed_process_leaves_nothing_though_a_page_that_its_job_waits_for_never_comes() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    let waiter = worker(&vm, 0, "waiter");
    assert_ne!(counters(&vm, 0)["driver"]["used_frames"], 0);
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    let deadline = Instant::now() + vm.pace().scale(RECOVERY);
    while counters(&vm, 0)["driver"]["used_frames"] != 0 {
        assert!(Instant::now() < deadline, "its memory is still there");
    }
    assert_nothing_left(&vm, 0);
    vm.finish().unwrap();
}

#[test]
fn huge_pages_of_a_process_that_has_left_come_back_without_a_huge_page_for_them() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts).start().unwrap();
    // As long as one process uses the device, the pages of processes that have left stay there.
    let (victim, leaver) = (worker(&vm, 0, "victim"), worker(&vm, 0, "leaver"));
    // If the kernel can refuse memory on demand, it refuses huge pages from here on.
    let refuse = "cd /sys/kernel/debug/fail_page_alloc 2>/dev/null || exit 0; \
                  echo N > ignore-gfp-wait; echo N > ignore-gfp-highmem; echo 9 > min-order; \
                  echo -1 > times; echo 0 > verbose; echo 100 > probability";
    vm.run(["sh", "-c", refuse]).unwrap().succeeded().unwrap();
    bind(&vm, "unbind");
    assert_well(leaver);
    assert!(!victim.wait().unwrap().success(), "its job has ended");
    bind(&vm, "bind");
    assert_nothing_left(&vm, 0);
    vm.finish().unwrap();
}
