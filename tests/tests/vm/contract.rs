//! The whole contract of HMM, row by row, on devices that check each translation.
//!
//! What a row asks and how it is tried is the guest program's (`tests/contract`). Here it
//! is asked that every row was run and kept, and that those which this kernel has no
//! means for are exactly the ones that are known, so that none is lost unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hmm_tests::artifacts::Artifacts;
use hmm_tests::guest::Command;
use hmm_tests::pace::DRIVER;
use hmm_tests::vm::{Builder, Vm, GIB, KERNEL_VARIABLE, MIB};
use serde::Deserialize;

/// All rows take about 40 s with KVM.
const ROWS: Duration = Duration::from_secs(150);

/// Most rows take less than one second, none more than a few.
const ROW: Duration = Duration::from_secs(20);

/// How long the random steps go on, unless [`SECONDS`] says otherwise.
const MODEL: u64 = 60;

/// For how many seconds the random steps go on.
const SECONDS: &str = "VIRTIO_HMM_MODEL_SECONDS";

/// The seed of the random steps: that of a run that failed.
const SEED: &str = "VIRTIO_HMM_MODEL_SEED";

/// Rows that need what a kernel does not have, by kernel. Each runs on the other one.
const NOT_HERE: &[(&str, &[&str])] = &[
    (
        "stock",
        // Memory is refused on demand by kernels that were built for that.
        &[
            "no-large-page-for-the-last-file",
            "no-large-page-to-come-home-to",
            "no-memory-for-a-touched-page",
            "no-memory-for-the-move-itself",
            "no-memory-to-bind",
            "no-memory-to-come-home-to",
        ],
    ),
    (
        "debug",
        // It has no probes.
        &["all-are-asked-before-any-is-waited-for"],
    ),
];

/// What the guest program says of a row.
#[derive(Debug, Deserialize)]
struct Verdict {
    row: String,
    verdict: String,
    reason: Option<String>,
}

/// Devices whose copies fail, by number, and how: see `tests/contract/src/machine.rs`.
const MISHAPS: [(usize, &str); 3] = [
    (2, "copy-failure@to-device=5"),
    (3, "copy-failure@to-system=5"),
    (4, "copy-failure@to-system=1"),
];

/// The same for the guest program, in the variable that it reads.
const FAULTY: &str = "to-device=2,to-system=3,nothing-back=4";
const DEVICES: &str = "HMM_CONTRACT_DEVICES";

/// Says that a machine is there to run out of memory, as some rows have it do.
const EXHAUSTIBLE: &str = "HMM_CONTRACT_ALL_MEMORY";

/// What such a machine has: it is filled page by page.
const LITTLE: u64 = 512 * MIB;

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    Vm::builder(artifacts)
        .check()
        .memory(GIB)
        .device_memory(64 * MIB)
        // It is built together with the agent.
        .file(artifacts.agent.with_file_name("hmm-contract"))
}

/// A machine for the random steps, which know nothing of devices that fail.
fn machine(artifacts: &Artifacts) -> Vm {
    builder(artifacts).devices(2).start().unwrap()
}

/// A machine with everything that rows look for.
fn complete_machine(artifacts: &Artifacts) -> Vm {
    let helpers = &artifacts.kernels[&kernel()].test_helpers;
    let builder = MISHAPS
        .into_iter()
        .fold(builder(artifacts).devices(5), |builder, (device, rule)| {
            builder.mishap(device, rule)
        });
    let vm = helpers
        .iter()
        .fold(builder, |builder, helper| builder.file(helper))
        .coherent_devices(1)
        // Its nodes are what can be mapped in a mixed way.
        .module_parameter("dmirror=1")
        .start()
        .unwrap();
    for helper in helpers {
        let name = helper.file_name().unwrap().to_string_lossy();
        vm.guest()
            .load_module(&format!("/root/{name}"), "", DRIVER)
            .unwrap();
    }
    vm
}

fn kernel() -> String {
    std::env::var(KERNEL_VARIABLE).unwrap_or_else(|_| "stock".to_owned())
}

/// Runs rows; by verdict, each with its reason. `variables` say what is special of the machine.
fn verdicts(
    vm: &Vm,
    rows: &[&str],
    variables: &[(&str, &str)],
) -> BTreeMap<String, BTreeMap<String, String>> {
    let each = vm.pace().scale(ROW).as_secs().to_string();
    let command = Command::new("hmm-contract")
        .argument("run")
        .arguments(rows.iter().copied())
        .arguments(["--json", "--limit", &each])
        .limit(ROWS);
    let command = variables.iter().fold(command, |command, (name, value)| {
        command.variable(*name, *value)
    });
    let output = vm.run(command).unwrap();
    let mut verdicts: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for line in output.text().lines() {
        let verdict: Verdict = serde_json::from_str(line).unwrap();
        verdicts
            .entry(verdict.verdict)
            .or_default()
            .insert(verdict.row, verdict.reason.unwrap_or_default());
    }
    let broken = verdicts.remove("broken").unwrap_or_default();
    assert_eq!(broken, BTreeMap::new(), "no row is broken");
    assert!(output.success(), "{}", output.text());
    verdicts
}

fn names(rows: &BTreeMap<String, String>) -> Vec<&str> {
    rows.keys().map(String::as_str).collect()
}

/// Runs rows in a machine, which is finished then. Adds those that are kept to `kept`, and
/// returns those that cannot run there, with the reasons.
fn run_in(
    vm: Vm,
    rows: &[&str],
    variables: &[(&str, &str)],
    kept: &mut BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut verdicts = verdicts(&vm, rows, variables);
    vm.finish().unwrap();
    kept.extend(verdicts.remove("kept").unwrap_or_default());
    verdicts.remove("cannot-run").unwrap_or_default()
}

#[test]
fn every_row_of_the_contract_is_kept() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let list = vm.run(["hmm-contract", "list"]).unwrap();
    let list = list.succeeded().unwrap();
    let rows: BTreeSet<String> = list
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.0.to_owned()))
        .collect();
    assert!(rows.len() > 80, "there are {} rows", rows.len());

    // The plainest machine first; the others for what cannot run there.
    let mut kept = BTreeMap::new();
    let rest = run_in(vm, &["all"], &[], &mut kept);
    let vm = complete_machine(&artifacts);
    let rest = run_in(vm, &names(&rest), &[(DEVICES, FAULTY)], &mut kept);
    // Nobody else uses this one when its memory is gone.
    let vm = builder(&artifacts)
        .devices(2)
        .memory(LITTLE)
        .start()
        .unwrap();
    let elsewhere = run_in(vm, &names(&rest), &[(EXHAUSTIBLE, "1")], &mut kept);

    println!(
        "kept: {}; cannot run on this kernel: {elsewhere:#?}",
        kept.len()
    );
    let kernel = kernel();
    let (_, expected) = NOT_HERE.iter().find(|(name, _)| *name == kernel).unwrap();
    assert_eq!(
        elsewhere
            .keys()
            .map(String::as_str)
            .collect::<BTreeSet<_>>(),
        expected.iter().copied().collect::<BTreeSet<_>>(),
        "{elsewhere:#?}"
    );
    let run: BTreeSet<String> = kept.into_keys().chain(elsewhere.into_keys()).collect();
    assert_eq!(run, rows, "every row has a verdict");
}

#[test]
fn whatever_is_done_at_random_every_byte_is_what_it_may_be() {
    let artifacts = Artifacts::required();
    let vm = machine(&artifacts);
    let seconds = std::env::var(SECONDS).map_or(MODEL, |text| text.parse().unwrap());
    let mut command = Command::new("hmm-contract").arguments(["model", "--seconds"]);
    command = command.argument(seconds.to_string());
    if let Ok(seed) = std::env::var(SEED) {
        command = command.arguments(["--seed", &seed]);
    }
    let limit = Duration::from_secs(seconds + 60);
    let text = vm.run(command.limit(limit)).unwrap().succeeded().unwrap();
    // The seed, for the record.
    println!("{text}");
    vm.finish().unwrap();
}
