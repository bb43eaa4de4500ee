//! Tests of the harness: it gives a test what it asks for, and notices what the test itself would
//! miss. Every other test rests on this one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::time::Duration;

use hmm_vm::artifacts::{Artifacts, MANIFEST_VARIABLE};
use hmm_vm::daemon::{self, Daemon};
use hmm_vm::guest::{Command, Error, Status};
use hmm_vm::klog::Severity;
use hmm_vm::pace::Pace;
use hmm_vm::qemu::Machine;
use hmm_vm::session;
use hmm_vm::vm::Vm;
use tempfile::TempDir;

/// A file of the host with a name and contents.
fn host_file(directory: &TempDir, name: &str, contents: &str, mode: u32) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// The error number of a request that was refused.
fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> Option<i32> {
    match result {
        Err(Error::Refused { errno, .. }) => errno,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const ENOEXEC: i32 = 8;

#[test]
fn a_test_without_artifacts_fails_and_says_how_to_get_them() {
    let output = HostCommand::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "harness::a_machine_that_cannot_exist_is_refused_with_qemus_words",
        ])
        .env_remove(MANIFEST_VARIABLE)
        .output()
        .unwrap();
    assert!(!output.status.success(), "a skipped test is a failed test");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("VIRTIO_HMM_ARTIFACTS is not set: run the VM tests with `cargo xtask test`"),
        "{text}"
    );
}

#[test]
fn a_machine_that_cannot_exist_is_refused_with_qemus_words() {
    let artifacts = Artifacts::required();
    let error = Vm::builder(&artifacts)
        .devices(0)
        .cpus(100_000)
        .start()
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("QEMU did not start"), "{text}");
    assert!(text.contains("CPUs"), "what QEMU printed is shown: {text}");
    let is_noticed = text.contains("it ended") || text.contains("closed the connection");
    assert!(is_noticed, "its end is noticed, no time runs out: {text}");
}

#[test]
fn a_kernel_that_was_not_prepared_is_named() {
    let artifacts = Artifacts::required();
    let error = Vm::builder(&artifacts).kernel("plan9").start().unwrap_err();
    assert!(error.to_string().contains("plan9"), "{error:#}");
}

#[test]
fn a_guest_does_what_it_is_asked_and_ends_without_complaint() {
    let artifacts = Artifacts::required();
    let directory = TempDir::new().unwrap();
    let given = host_file(
        &directory,
        "given",
        "#!/bin/sh\necho \"in $PWD: $*\"\n",
        0o755,
    );
    let vm = Vm::builder(&artifacts)
        .devices(0)
        .file(given)
        .start()
        .unwrap();

    programs_report_their_output_and_their_end(&vm);
    programs_run_side_by_side(&vm);
    a_program_that_takes_too_long_is_an_error_and_is_killed(&vm);
    files_and_modules_can_be_reached(&vm);
    the_kernel_log_is_complete(&vm);

    let logs = vm.logs().clone();
    vm.finish().unwrap();
    for log in [logs.console(), logs.kernel(), logs.command()] {
        let length = fs::metadata(&log).unwrap().len();
        assert!(length > 0, "{} is kept", log.display());
    }
}

fn programs_report_their_output_and_their_end(vm: &Vm) {
    let output = vm
        .run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        .unwrap();
    assert_eq!(output.status, Status::Exited(3));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    let error = output.succeeded().unwrap_err().to_string();
    assert!(
        error.contains("Exited(3)") && error.contains("err"),
        "{error}"
    );

    let killed = vm.run(["sh", "-c", "kill -9 $$"]).unwrap();
    assert_eq!(killed.status, Status::Signalled(9));

    assert_eq!(errno(vm.run(["no-such-program"])), Some(ENOENT));

    let given = vm.run(["given", "a b", "c"]).unwrap();
    assert_eq!(given.succeeded().unwrap(), "in /root: a b c\n");

    let variable = Command::new("sh")
        .arguments(["-c", "echo $WORD"])
        .variable("WORD", "hello");
    assert_eq!(vm.run(variable).unwrap().text(), "hello\n");

    let much = vm.run(["head", "-c", "3000001", "/dev/zero"]).unwrap();
    assert_eq!(much.stdout.len(), 3_000_001, "nothing of it is lost");

    // The program's child keeps the pipe open: the wait ends with the program, not with the pipe.
    let left = vm
        .run(["sh", "-c", "sleep 54321 & echo last words"])
        .unwrap();
    assert_eq!(left.text(), "last words\n");
    let noisy = vm.run(["sh", "-c", "yes & exit 4"]).unwrap();
    assert_eq!(noisy.status, Status::Exited(4));
}

fn programs_run_side_by_side(vm: &Vm) {
    let mut slow = vm
        .spawn(["sh", "-c", "echo started; exec sleep 12345"])
        .unwrap();
    slow.wait_for_output("started").unwrap();
    assert!(
        vm.run(["true"]).unwrap().success(),
        "one does not block the other"
    );
    slow.kill().unwrap();
    assert_eq!(slow.wait().unwrap().status, Status::Signalled(9));

    let mut silent = vm.spawn(["true"]).unwrap();
    let error = silent.wait_for_output("never").unwrap_err().to_string();
    assert!(error.contains("never"), "{error}");
    assert_eq!(
        errno(silent.kill()),
        Some(ESRCH),
        "what has ended is not signalled"
    );
}

fn a_program_that_takes_too_long_is_an_error_and_is_killed(vm: &Vm) {
    let limit = Duration::from_millis(100);
    let sleep = Command::new("sh")
        .arguments(["-c", "echo begun; exec sleep 23456"])
        .limit(limit);
    let error = vm.run(sleep).unwrap_err();
    assert!(matches!(&error, Error::TimedOut { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("sleep 23456"), "{text}");
    assert!(text.contains("logs: "), "{text}");
    // The loop ends when neither the program nor an orphan, not even a zombie, is left.
    vm.run(["sh", "-c", "while pgrep -f 'sleep 23456'; do :; done"])
        .unwrap();
    vm.run([
        "sh",
        "-c",
        "true & while grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null; do :; done",
    ])
    .unwrap();
}

fn files_and_modules_can_be_reached(vm: &Vm) {
    let guest = vm.guest();
    let version = guest.read_file("/proc/version").unwrap();
    let version = String::from_utf8(version).unwrap();
    assert!(version.contains(guest.release()), "{version}");

    guest
        .write_file("/proc/sys/kernel/hostname", "changed")
        .unwrap();
    assert_eq!(vm.run(["hostname"]).unwrap().text(), "changed\n");

    assert_eq!(errno(guest.read_file("/nowhere")), Some(ENOENT));
    assert!(
        guest.read_file("/bin/busybox").is_err(),
        "large files do not travel"
    );

    let limit = Duration::from_secs(10);
    let not_a_module = guest.load_module("/root/given", "", limit);
    assert_eq!(errno(not_a_module), Some(ENOEXEC));
    let not_loaded = guest.unload_module("no_such_module", limit);
    assert_eq!(errno(not_loaded), Some(ENOENT));
}

fn the_kernel_log_is_complete(vm: &Vm) {
    let word = "a word from the test";
    vm.guest()
        .write_file("/dev/kmsg", format!("{word}\n"))
        .unwrap();
    let log = vm.kernel_log().unwrap();
    assert!(
        log[0].text.starts_with("Linux version"),
        "it begins with the boot: {:?}",
        log[0]
    );
    assert!(
        log.iter().any(|record| record.text == word),
        "it is up to date"
    );
    for pair in log.windows(2) {
        assert_eq!(
            pair[0].sequence + 1,
            pair[1].sequence,
            "no record is missing"
        );
    }
    assert_eq!(vm.guest().complaints().unwrap(), []);
}

#[test]
fn what_the_kernel_complains_of_fails_the_test() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).devices(0).start().unwrap();
    assert_eq!(vm.guest().complaints().unwrap(), []);

    vm.guest()
        .write_file("/dev/kmsg", "WARNING: CPU: 0 PID: 1 at made/up.c:1\n")
        .unwrap();
    let complaints = vm.guest().complaints().unwrap();
    assert_eq!(complaints.len(), 1);
    assert_eq!(complaints[0].severity, Severity::Wrong);
    assert!(
        vm.run(["true"]).unwrap().success(),
        "a warning stops nothing"
    );

    // A program that never ends is given up soon after the kernel broke.
    let stuck = vm
        .spawn(Command::new("sleep").argument("12345").unlimited())
        .unwrap();
    vm.guest()
        .write_file(
            "/dev/kmsg",
            "INFO: task made-up:1 blocked for more than 1 seconds.\n",
        )
        .unwrap();
    let error = stuck.wait().unwrap_err();
    assert!(matches!(&error, Error::Broken { .. }), "{error}");
    assert!(error.to_string().contains("made-up:1 blocked"), "{error}");

    let logs = vm.logs().clone();
    let error = vm.finish().unwrap_err().to_string();
    assert!(
        error.contains("at made/up.c:1"),
        "the line is named: {error}"
    );
    assert!(
        error.contains("made-up:1 blocked"),
        "so is the other: {error}"
    );
    assert!(
        error.contains(&*logs.directory().to_string_lossy()),
        "and the logs: {error}"
    );
    assert_eq!(error.matches("made/up.c").count(), 1, "once: {error}");
}

#[test]
fn a_guest_that_crashes_is_noticed_at_once() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts).devices(0).start().unwrap();
    let waiting = vm
        .spawn(Command::new("sleep").argument("12345").unlimited())
        .unwrap();
    let crash = vm.run(["sh", "-c", "echo c > /proc/sysrq-trigger"]);
    assert!(
        matches!(&crash, Err(Error::Gone { .. } | Error::Broken { .. })),
        "{crash:?}"
    );
    let error = waiting.wait().unwrap_err();
    assert!(
        matches!(&error, Error::Gone { .. }),
        "nobody waits on: {error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("Kernel panic"),
        "the console's last words are shown: {text}"
    );

    // A program without a limit: if the wait did not notice that the guest is dead, it would never
    // end.
    let patient = Command::new("true").unlimited();
    assert!(matches!(vm.run(patient), Err(Error::Gone { .. })));

    let error = vm.finish().unwrap_err().to_string();
    assert!(
        error.contains("Kernel panic - not syncing: sysrq triggered crash"),
        "{error}"
    );
}

#[test]
fn a_machine_without_pci_boots_from_the_same_files() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .devices(0)
        .machine(Machine::Microvm)
        .start()
        .unwrap();
    let output = vm.run(["ls", "/sys/bus/virtio/devices"]).unwrap();
    assert_eq!(output.succeeded().unwrap(), "virtio0\n");
    vm.finish().unwrap();
}

#[test]
fn a_session_ends_with_the_status_of_its_command() {
    let artifacts = Artifacts::required();
    let directory = TempDir::new().unwrap();
    let settings = session::Settings {
        devices: 0,
        files: vec![host_file(&directory, "given", "exit 7\n", 0o644)],
        ..session::Settings::default()
    };
    let command = ["sh".to_owned(), "given".to_owned()];
    let ended = session::run_command(&artifacts, &settings, &command).unwrap();
    assert_eq!(ended.status, 7);
}

#[test]
fn a_session_has_the_machine_and_the_devices_that_were_asked_for() {
    let artifacts = Artifacts::required();
    let directory = TempDir::new().unwrap();
    let look = r#"set -e
        test $(nproc) = 3
        test -z "$(ls /sys/bus/pci/devices)"
        grep -q a.word=7 /proc/cmdline
        test -e /dev/hmm_dmirror0
        for device in 0 1; do
            hmm --json --device /dev/hmm$device info > info
            grep -q '"engines":3' info
            grep -q '"checking":true' info
        done
        hmm --device /dev/hmm0 run migrate --size 4M
        if hmm --device /dev/hmm1 run migrate --size 4M; then exit 6; fi
        exit 5
        "#;
    let settings = session::Settings {
        devices: 2,
        files: vec![host_file(&directory, "look", look, 0o644)],
        module_parameters: vec!["dmirror=1".to_owned()],
        cpus: 3,
        machine: Machine::Microvm,
        engines: Some(3),
        check: true,
        rules: vec![
            (None, "delay=1ms@dma.taken".to_owned()),
            (Some(1), "short-reply@dma".to_owned()),
        ],
        daemon_log: "debug".to_owned(),
        kernel_arguments: vec!["a.word=7".to_owned()],
        show_control: true,
        ..session::Settings::default()
    };
    let command = ["sh", "look"].map(str::to_owned);
    let ended = session::run_command(&artifacts, &settings, &command).unwrap();
    assert_eq!(ended.status, 5);

    let elsewhere = session::Settings {
        rules: vec![(Some(2), "hold@dma.taken".to_owned())],
        ..settings
    };
    let error = session::run_command(&artifacts, &elsewhere, &command).unwrap_err();
    assert!(error.to_string().contains("no such device"), "{error:#}");
}

#[test]
fn a_device_appears_in_the_guest_and_the_death_of_its_daemon_is_noticed() {
    let artifacts = Artifacts::required();
    let vm = Vm::builder(&artifacts)
        .devices(2)
        .without_driver()
        .start()
        .unwrap();
    let found = vm
        .run([
            "sh",
            "-c",
            "grep -l 0x0025 /sys/bus/virtio/devices/*/device",
        ])
        .unwrap()
        .succeeded()
        .unwrap();
    assert_eq!(found.lines().count(), 2, "{found}");

    vm.daemon(1).kill();
    let error = vm.finish().unwrap_err().to_string();
    assert!(
        error.contains("device 1: the daemon had ended before"),
        "{error}"
    );
    assert!(
        !error.contains("device 0"),
        "the other one ended as it should: {error}"
    );
}

/// A script in place of a daemon.
fn impostor(directory: &TempDir, script: &str) -> anyhow::Result<Daemon> {
    let script = format!("#!/bin/sh\n{script}\n");
    let program = host_file(directory, "daemon", &script, 0o755);
    Daemon::start(
        &program,
        Path::new("unused"),
        &daemon::Settings::default(),
        &directory.path().join("log"),
        Pace::new(true, false),
    )
}

#[test]
fn a_daemon_that_ends_before_it_listens_is_quoted() {
    let directory = TempDir::new().unwrap();
    let error = impostor(&directory, "echo no such memory >&2; exit 1").unwrap_err();
    assert!(error.to_string().contains("no such memory"), "{error}");
}

#[test]
fn a_daemon_that_does_not_end_when_asked_is_noticed() {
    let directory = TempDir::new().unwrap();
    let script = "trap : TERM; echo listening >&2; while :; do sleep 1; done";
    let daemon = impostor(&directory, script).unwrap();
    let error = daemon.stop().unwrap_err().to_string();
    assert!(error.contains("did not end"), "{error}");
}

#[test]
fn a_daemon_that_fails_or_complains_is_noticed() {
    let directory = TempDir::new().unwrap();
    let script = "trap 'exit 5' TERM
        echo listening >&2; echo '[ERROR] one thing' >&2; echo all is well >&2
        echo ready >&2; while :; do sleep 0.1; done";
    let daemon = impostor(&directory, script).unwrap();
    let error = daemon.stop().unwrap_err().to_string();
    assert!(error.contains("failed") && error.contains('5'), "{error}");
    assert_eq!(daemon.complaints().unwrap(), ["[ERROR] one thing"]);
}
