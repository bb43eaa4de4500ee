//! What the kernel's own test driver makes of duties that its own tests leave out, beside
//! ours.
//!
//! Ours must keep all of them. What `test_hmm` does is written down for people to read, as
//! `peers-KERNEL.md` among Cargo's output, and is no failure of ours: see `findings.md`. It
//! may break the kernel, so that each case has a machine that nobody else uses.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::Command;
use hmm_tests::pace::DRIVER;
use hmm_tests::vm::{default_kernel, Builder, Vm, GIB, MIB};

/// All cases on one driver; each takes a few seconds.
const CASES: Duration = Duration::from_secs(60);

/// Cases in which `test_hmm` is known to be wrong, or the kernel below any driver; those that
/// may break the kernel come last.
const APART: [&str; 4] = [
    "write-after-fork",
    "munmap-of-a-part",
    "random-steps",
    "large-discarded-on-its-way-home",
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
        .file(artifacts.agent.with_file_name("hmm-contract"))
}

fn peers(cases: &[&str]) -> Command {
    Command::new("hmm-contract")
        .argument("peers")
        .arguments(cases.iter().copied())
        .limit(CASES)
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

/// What a machine of its own says of these cases, and its kernel.
fn on_test_hmm(artifacts: &Artifacts, kernel: &str, cases: &[&str]) -> String {
    let module = &artifacts.kernels[kernel].test_hmm;
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
        // The kernel broke, or a case did not end: the answer, not a failure.
        Err(error) => format!("{cases:?}: {error}\n"),
    };
    for line in vm.finish_after(judged).unwrap() {
        let _ = writeln!(text, "the kernel: {line}");
    }
    text
}
