//! Checks duties that the kernel's own tests of HMM leave out, on our driver and on the kernel's
//! test driver.
//!
//! Our driver must keep all of them. What `test_hmm` does is written down for people, as
//! `peers-KERNEL.md` among Cargo's output, and is no failure of ours: see
//! `docs/kernel-findings.md`. It may break the kernel, so each case has a machine of its own.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Command;
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{default_kernel, Builder, Vm, GIB, MIB};
use rustix::process::Signal;

/// All cases on one driver; each takes a few seconds.
const CASES: Duration = Duration::from_secs(60);

/// Cases in which `test_hmm`, or the kernel below any driver, is known to be wrong. Those that may
/// break the kernel come last.
const APART: [&str; 4] = [
    "write-after-fork",
    "munmap-of-a-part",
    "random-steps",
    "huge-discarded-on-its-way-back",
];

/// The rest.
const TOGETHER: [&str; 3] = [
    "write-after-a-child-ended",
    "written-pages-are-dirty",
    "two-threads-on-a-file",
];

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    Vm::builder(artifacts)
        .memory(GIB)
        .device_memory(64 * MIB)
        .file(artifacts.guest_program("hmm-contract"))
}

fn peers(cases: &[&str]) -> Command {
    Command::new("hmm-contract")
        .argument("peers")
        .arguments(cases.iter().copied())
        .limit(CASES)
}

#[test]
fn opening_a_node_does_not_wait_for_the_device() {
    /// Much less than the driver waits for a device that does not answer.
    const OPEN: Duration = Duration::from_secs(10);
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .module_parameter("dmirror=1")
        .start()
        .unwrap();
    let daemon = vm.daemon(0);
    daemon.signal(Signal::STOP);
    // One after the other, as the kernel opens nodes of this kind: the second open would wait for
    // the first.
    let script = "exec 3</dev/hmm_dmirror0 4</dev/hmm0 && echo opened && exec 3<&- 4<&-";
    let command = Command::new("sh").arguments(["-c", script]).limit(OPEN);
    let output = vm.run(command);
    daemon.signal(Signal::CONT);
    let output = output.unwrap();
    assert_eq!(output.text().trim(), "opened");
    let output = vm.run(peers(&["two-threads-on-a-file"])).unwrap();
    assert!(output.success(), "{}", output.text());
    vm.finish().unwrap();
}

#[test]
fn what_the_kernels_tests_leave_out_is_right_on_our_device() {
    let artifacts = Artifacts::required();
    let vm = builder(&artifacts)
        .check()
        .module_parameter("dmirror=1")
        .start()
        .unwrap();
    let output = vm.run(peers(&[])).unwrap();
    println!("{}", output.text());
    assert!(output.success(), "{}", output.text());
    vm.finish().unwrap();
}

/// What needs a machine of its own for each case takes long, and is the same on each kernel: only
/// the stock kernel runs it.
mod stock_only {
    use super::*;

    #[test]
    fn what_the_kernels_own_driver_makes_of_it_is_written_down() {
        let artifacts = Artifacts::required();
        let kernel = default_kernel();
        let mut report =
            format!("# `test_hmm` on the {kernel} kernel, where `hmm-tests.c` does not look\n");
        let lonely = APART.chunks(1);
        for cases in std::iter::once(&TOGETHER[..]).chain(lonely) {
            let text = on_test_hmm(&artifacts, &kernel, cases);
            // Writing to a string cannot fail.
            let _ = write!(report, "\n```text\n{text}```\n");
        }
        let path = artifacts.reports.join(format!("peers-{kernel}.md"));
        fs::write(&path, &report).unwrap();
        println!("{report}\nkept in {}", path.display());
    }

    /// The output of these cases in a machine of its own with this kernel.
    fn on_test_hmm(artifacts: &Artifacts, kernel: &str, cases: &[&str]) -> String {
        let module = &artifacts.kernels[kernel].for_tests().test_hmm;
        let vm = builder(artifacts)
            .file(module)
            .without_driver()
            .start()
            .unwrap();
        let judged = vm.judge().unwrap();
        let name = module.file_name().unwrap().to_string_lossy();
        vm.guest()
            .load_module(&format!("/root/{name}"), "", DRIVER)
            .unwrap();
        let mut text = match vm.run(peers(cases)) {
            Ok(output) => output.text(),
            // The kernel broke, or a case did not end. This is a result, not a failure.
            Err(error) => format!("{cases:?}: {error}\n"),
        };
        for line in vm.finish_after(judged).unwrap() {
            let _ = writeln!(text, "the kernel: {line}");
        }
        text
    }
}
