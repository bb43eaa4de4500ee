//! The driver in `samples/rust_test_hmm`, which stands on the abstractions of ours without a
//! device: the kernel's own tests of HMM, unchanged, and what they leave out.

use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{Command, Output};
use hmm_vm::kselftest::{self, Reader, Verdict};
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{default_kernel, Builder, Vm, GIB};

use super::support::until_unused;

/// The kernel's tests in the guest.
const PROGRAM: &str = "hmm-tests";

/// The sample among the guest's modules.
const MODULE: &str = "rust_test_hmm";

/// The one test that measures, by itself because of its own limit.
const BENCHMARK: &str = "benchmark_thp_migration";

/// What the program says when a test exceeds that.
const TOO_SLOW: &str = "Test terminated by timeout";

/// Devices with coherent memory the sample has none of.
const COHERENT: [&str; 2] = ["hmm_device_coherent", "hmm2_device_coherent"];

/// All tests but one; a minute on the stock kernel when emulated.
const SUITE: Duration = Duration::from_secs(300);

/// The benchmark.
const MEASURING: Duration = Duration::from_secs(150);

/// What the tests leave out.
const PEERS: Duration = Duration::from_secs(60);

fn start(artifacts: &Artifacts) -> Vm {
    let kernel = &artifacts.kernels[&default_kernel()];
    let contract = artifacts.guest_program("hmm-contract");
    let vm = [
        &kernel.for_tests().kernel_tests.program,
        &kernel.for_tests().sample,
        &contract,
    ]
    .into_iter()
    .chain(&kernel.for_tests().test_helpers)
    .fold(Vm::builder(artifacts), Builder::file)
    .devices(0)
    // The tests map up to 256 MiB of huge pages, twice.
    .memory(3 * GIB)
    .kernel_argument("hugepages=2")
    .start()
    .unwrap();
    for module in kernel
        .for_tests()
        .test_helpers
        .iter()
        .chain([&kernel.for_tests().sample])
    {
        let name = module.file_name().unwrap().to_string_lossy();
        vm.guest()
            .load_module(&format!("/root/{name}"), "", DRIVER)
            .unwrap();
    }
    vm
}

fn finish(vm: Vm) {
    until_unused(&vm, MODULE).unwrap();
    vm.guest().unload_module(MODULE, DRIVER).unwrap();
    vm.finish().unwrap();
}

/// Runs some of the tests, without those of coherent memory.
fn run(vm: &Vm, choice: [&str; 2], limit: Duration) -> Output {
    let coherent = COHERENT.into_iter().flat_map(|variant| ["-V", variant]);
    let command = Command::new("sh")
        // Both streams in one: otherwise a message could not be assigned to its test.
        .arguments(["-c", "exec \"$@\" 2>&1", "sh", PROGRAM])
        .arguments(coherent)
        .arguments(choice)
        .limit(limit);
    let output = vm.run(command).unwrap();
    println!("{}", output.text());
    output
}

/// The tests of private memory by the program's own list, with or without the benchmark.
fn listed(vm: &Vm, measures: bool) -> Vec<String> {
    let output = vm.run([PROGRAM, "-l"]).unwrap();
    let list = String::from_utf8(output.stderr).unwrap();
    let is_chosen = |name: &String| {
        name.ends_with(BENCHMARK) == measures
            && !COHERENT.iter().any(|variant| name.contains(variant))
    };
    let tests = kselftest::listed(&list).unwrap();
    tests.into_iter().filter(is_chosen).collect()
}

#[test]
fn every_test_of_private_memory_passes_on_the_sample() {
    let artifacts = Artifacts::required();
    let vm = start(&artifacts);
    // What it measures in an emulated machine whose kernel checks itself says nothing.
    let kernel = &artifacts.kernels[&default_kernel()];
    let is_slow = !artifacts.kvm && kernel.checks_itself().unwrap();
    let runs = [("-T", false, SUITE), ("-t", true, MEASURING)];
    for (flag, measures, limit) in runs {
        if measures && is_slow {
            continue;
        }
        let tests = listed(&vm, measures);
        assert!(!tests.is_empty());
        let output = run(&vm, [flag, BENCHMARK], limit);
        let mut reader = Reader::default();
        reader.read(&output.stdout).unwrap();
        let mut passed = Vec::new();
        for result in reader.finish().unwrap() {
            let is_slow = measures && result.notes.iter().any(|note| note.contains(TOO_SLOW));
            let is_excused = is_slow && !artifacts.kvm;
            if result.verdict == Verdict::Passed || is_excused {
                passed.push(result.name);
            }
        }
        // With `-t` the program also lists what was not chosen as a variant of its own.
        passed.retain(|name| !COHERENT.iter().any(|variant| name.contains(variant)));
        assert_eq!(passed, tests);
    }
    finish(vm);
}

#[test]
fn what_the_kernels_tests_leave_out_is_right_on_the_sample() {
    let artifacts = Artifacts::required();
    let vm = start(&artifacts);
    let command = Command::new("hmm-contract").argument("peers").limit(PEERS);
    let output = vm.run(command).unwrap();
    println!("{}", output.text());
    assert!(output.success(), "{}", output.text());
    finish(vm);
}
