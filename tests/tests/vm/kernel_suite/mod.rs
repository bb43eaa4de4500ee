//! Runs the kernel's own tests of HMM, unchanged, on our device, and in the same boot on the
//! kernel's own test driver, so that differences show.
//!
//! The program has the list of tests; `outcome` judges them, and `table` writes the report.

mod outcome;
mod table;

use std::fs;
use std::time::{Duration, Instant};

use hmm_vm::artifacts::{Artifacts, Kernel};
use hmm_vm::cases::{Cases, Kind, Outcome as Case};
use hmm_vm::guest::{Command, Status};
use hmm_vm::kselftest::{self, Reader};
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{default_kernel, Vm, DRIVER_NAME, GIB, MIB};

use self::outcome::{Exception, Half};
use self::table::Table;
use crate::support::until_unused;

/// The program in the guest.
const PROGRAM: &str = "hmm-tests";

/// The one test that measures. It runs last and by itself. Its own limit is 120 s, and with any
/// driver it can take longer under emulation: with KASAN and lock checking, or on a busy host.
const BENCHMARK: &str = "benchmark_thp_migration";

/// The same on memory that CPUs can address. There it always takes longer on an emulated kernel that
/// checks itself.
const SLOWEST: &str = "hmm.hmm_device_coherent.benchmark_thp_migration";

/// Why it does not run there.
const TOO_LONG: &str =
    "emulated, with a kernel that checks itself, it takes longer than its own limit";

/// What the program says when a test exceeds its own limit.
const TOO_SLOW: &str = "Test terminated by timeout";

/// The program's exit status when it has only listed its tests (`KSFT_SKIP`).
const LISTED: Status = Status::Exited(4);

/// All tests but one. On the stock kernel they take a minute when emulated; each has its own limit
/// of 30 s.
const SUITE: Duration = Duration::from_secs(300);

/// The benchmark, for two kinds of memory.
const MEASURING: Duration = Duration::from_secs(270);

/// The tests map up to 256 MiB of huge pages, twice.
const MEMORY: u64 = 3 * GIB;

/// Twice the benchmark's largest buffer: each half of it may be migrating.
const DEVICE_MEMORY: u64 = 512 * MIB;

/// Devices of each kind: nodes 0 and 1 have private memory, 2 and 3 have memory that CPUs can
/// address.
const DEVICES: usize = 2;

/// Our driver offers the nodes of the kernel's test driver.
const COMPATIBLE: &str = "dmirror=1";

/// The kernel's test driver among the guest's modules.
const TEST_HMM: &str = "test_hmm";

#[test]
fn every_test_of_the_kernel_passes_on_our_device() {
    let artifacts = Artifacts::required();
    let name = default_kernel();
    let kernel = &artifacts.kernels[&name];
    let mut vm = start(&artifacts, kernel);
    let all = listed(&vm);
    let wanted = Kind::HmmTests.wanted(all.iter().cloned()).unwrap();
    let is_whole = wanted.len() == all.len();
    let is_slow = !artifacts.kvm && kernel.checks_itself().unwrap();
    let runs = |test: &String| wanted.contains(test) && !(is_slow && test == SLOWEST);
    let tests: Vec<String> = all.into_iter().filter(runs).collect();

    vm.load_driver(COMPATIBLE).unwrap();
    let ours = half(&vm, &tests, is_whole, true);
    let exceptions = exceptions(artifacts.kvm);
    let mut cases = Cases::new(Kind::HmmTests, &artifacts.reports, &name);
    for (test, outcome) in ours.results(&exceptions) {
        cases.set(test, outcome);
    }
    if is_slow && wanted.iter().any(|test| test == SLOWEST) {
        cases.set(SLOWEST, Case::CannotRun(TOO_LONG.to_owned()));
    }
    let mut problems = ours.problems(&exceptions);
    let unloaded = until_unused(&vm, DRIVER_NAME).and_then(|()| vm.unload_driver());
    problems.extend(unloaded.err().map(|error| error.to_string()));

    let judged = vm.judge();
    let (theirs, said) = match judged {
        Ok(judged) => {
            // How fast the other driver is in a slow machine says nothing.
            let theirs = half_of_test_hmm(&vm, kernel, &tests, is_whole, !is_slow);
            (Some(theirs), vm.finish_after(judged).unwrap())
        }
        Err(error) => {
            problems.push(format!("{error:#}"));
            (None, Vec::new())
        }
    };

    let table = Table {
        kernel: &name,
        release: &kernel.release,
        source_sha256: &kernel.for_tests().kernel_tests.source_sha256,
        emulated: !artifacts.kvm,
        tests: &tests,
        ours: &ours,
        theirs: theirs.as_ref(),
        said: &said,
    };
    let report = artifacts.reports.join(format!("kernel-suite-{name}.md"));
    fs::write(&report, table.to_string()).unwrap();
    println!("{table}\nkept in {}", report.display());
    assert!(
        problems.is_empty(),
        "{}\nthe table: {}",
        problems.join("\n"),
        report.display()
    );
}

/// What may fail on our device, and why. Nothing may be skipped.
fn exceptions(kvm: bool) -> Vec<Exception> {
    if !kvm {
        vec![Exception {
            test: BENCHMARK,
            note: TOO_SLOW,
        }]
    } else {
        Vec::new()
    }
}

/// A machine with everything that the tests need.
fn start(artifacts: &Artifacts, kernel: &Kernel) -> Vm {
    let files = [
        &kernel.for_tests().kernel_tests.program,
        &kernel.for_tests().test_hmm,
    ];
    let vm = files
        .into_iter()
        .chain(&kernel.for_tests().test_helpers)
        .fold(Vm::builder(artifacts), |builder, file| builder.file(file))
        .devices(DEVICES)
        .coherent_devices(DEVICES)
        .check()
        .memory(MEMORY)
        .device_memory(DEVICE_MEMORY)
        // The program allocates one when it starts, which fails if memory is fragmented.
        .kernel_argument("hugepages=2")
        .without_driver()
        .start()
        .unwrap();
    if !kernel.for_tests().test_helpers.is_empty() {
        // The helper module cannot ask the kernel about CMA and assumes that there is none.
        let memory = vm.run(["grep", "CmaTotal", "/proc/meminfo"]).unwrap();
        let words = memory.text();
        assert_eq!(words.split_whitespace().nth(1), Some("0"), "{words}");
    }
    for helper in &kernel.for_tests().test_helpers {
        let name = helper.file_name().unwrap().to_string_lossy();
        vm.guest()
            .load_module(&format!("/root/{name}"), "", DRIVER)
            .unwrap();
    }
    vm
}

/// The tests, by the program's own list.
fn listed(vm: &Vm) -> Vec<String> {
    let output = vm.run([PROGRAM, "-l"]).unwrap();
    assert_eq!(output.status, LISTED, "{}", output.text());
    let list = String::from_utf8(output.stderr).unwrap();
    let tests = kselftest::listed(&list).unwrap_or_else(|error| panic!("{error}:\n{list}"));
    assert!(
        tests.iter().any(|test| test.ends_with(BENCHMARK)),
        "what runs by itself is among them: {tests:#?}"
    );
    tests
}

/// Runs the tests, which may be all there are, on the driver that is loaded. The benchmark runs if
/// the driver is measured.
fn half(vm: &Vm, tests: &[String], is_whole: bool, is_measured: bool) -> Half {
    let begun = Instant::now();
    let mut half = Half::new(tests);
    let (measuring, others): (Vec<&String>, Vec<&String>) =
        tests.iter().partition(|test| test.ends_with(BENCHMARK));
    for (chosen, is_rest, limit) in [(others, true, SUITE), (measuring, false, MEASURING)] {
        let choice = match is_whole && is_rest {
            true => vec!["-T", BENCHMARK],
            false => chosen
                .iter()
                .flat_map(|test| ["-r", test.as_str()])
                .collect(),
        };
        let runs = !chosen.is_empty() && (is_rest || is_measured);
        if runs && !run(vm, &mut half, &choice, limit) {
            break;
        }
    }
    half.took = begun.elapsed();
    half
}

/// Runs some of the tests. Returns whether the program came to its end.
fn run(vm: &Vm, half: &mut Half, choice: &[&str], limit: Duration) -> bool {
    // Both streams go into one: otherwise a message could not be assigned to its test.
    let together = format!("exec {PROGRAM} \"$@\" 2>&1");
    let command = Command::new("sh")
        .arguments(["-c", &together, PROGRAM])
        .arguments(choice.iter().copied())
        .limit(limit);
    let mut reader = Reader::default();
    let mut unreadable = None;
    let status = vm.spawn(command).and_then(|running| {
        running.stream(|_, bytes| {
            if unreadable.is_none() {
                unreadable = reader.read(bytes).err();
            }
        })
    });
    half.add(reader, unreadable, status)
}

/// The same on the kernel's own driver. Its mistakes are no failures of ours.
fn half_of_test_hmm(
    vm: &Vm,
    kernel: &Kernel,
    tests: &[String],
    is_whole: bool,
    is_measured: bool,
) -> Half {
    let guest = vm.guest();
    guest
        .write_file("/dev/kmsg", "kernel_suite: test_hmm from here on\n")
        .unwrap();
    let file = kernel
        .for_tests()
        .test_hmm
        .file_name()
        .unwrap()
        .to_string_lossy();
    guest
        .load_module(&format!("/root/{file}"), "", DRIVER)
        .unwrap();
    let mut half = half(vm, tests, is_whole, is_measured);
    // If it broke the kernel, the guest can no longer be asked.
    if half.broken.is_none() {
        let unloaded =
            until_unused(vm, TEST_HMM).and_then(|()| guest.unload_module(TEST_HMM, DRIVER));
        half.broken = unloaded.err().map(|error| error.to_string());
    }
    half
}
