//! All rows of the contract of HMM, on devices that check each translation.
//!
//! The guest program (`tests/contract`) has the rows and tries them. This test asks that every row
//! was run and kept, and that exactly the known rows cannot run on this kernel, so that no row is
//! lost unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::Command;
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{Builder, Vm, GIB, KERNEL_VARIABLE, MIB};
use serde::Deserialize;

/// All rows take about 40 s with KVM. On a busy host they may take ten times that.
const ROWS: Duration = Duration::from_secs(450);

/// Most rows take less than one second, and none more than a few; a busy host may take ten times
/// that.
const ROW: Duration = Duration::from_secs(60);

/// How many seconds the random steps take, unless [`SECONDS`] says otherwise.
const MODEL: u64 = 60;

/// Sets how many seconds the random steps take.
const SECONDS: &str = "VIRTIO_HMM_MODEL_SECONDS";

/// Sets the seed of the random steps, to repeat a run that failed.
const SEED: &str = "VIRTIO_HMM_MODEL_SEED";

/// Rows that need what this kernel does not have. Each runs on the other kernel.
const NOT_HERE: &[(&str, &[&str])] = &[
    (
        "stock",
        // Memory is refused on demand only by a kernel that was built for it.
        &[
            "no-huge-page-for-the-last-file",
            "no-huge-page-to-come-back-to",
            "no-memory-for-a-touched-page",
            "no-memory-for-the-move-itself",
            "no-memory-to-bind",
            "no-memory-to-come-back-to",
            "no-memory-to-let-go",
            "no-memory-when-the-device-goes",
        ],
    ),
    (
        "debug",
        // This kernel has no probes, no soft-dirty bits, no userfaultfd markers in page tables and
        // no process namespaces, and dumps no core.
        &[
            "a-core-dump-of-moved-pages",
            "a-look-is-by-the-callers-numbers",
            "all-are-asked-before-any-is-waited-for",
            "page-map-scans-see-device-writes",
            "soft-dirty-sees-atomic-operations",
            "soft-dirty-sees-device-writes",
            "soft-dirty-sees-writes-of-what-came-back",
        ],
    ),
];

/// The guest program's report of a row.
#[derive(Debug, Deserialize)]
struct Verdict {
    row: String,
    verdict: String,
    reason: Option<String>,
}

/// Devices whose copies fail, by number, and how: see `tests/contract/src/machine.rs`.
const MISHAPS: [(usize, &str); 3] = [
    (2, "copy-failure,every=5,operation=to-device"),
    (3, "copy-failure,every=5,operation=to-system"),
    (4, "copy-failure,operation=to-system"),
];

/// The same devices for the guest program, in the variable that it reads.
const FAULTY: &str = "to-device=2,to-system=3,nothing-back=4";
const DEVICES: &str = "HMM_CONTRACT_DEVICES";

/// Says that a machine may run out of memory, as some rows make it do.
const EXHAUSTIBLE: &str = "HMM_CONTRACT_ALL_MEMORY";

/// The memory of such a machine. It is small because a row fills it page by page.
const LITTLE: u64 = 512 * MIB;

fn builder(artifacts: &Artifacts) -> Builder<'_> {
    Vm::builder(artifacts)
        .check()
        .memory(GIB)
        .device_memory(64 * MIB)
        // The program is built together with the agent.
        .file(artifacts.guest_program("hmm-contract"))
}

/// A machine for the random steps, which do not expect devices that fail.
fn machine(artifacts: &Artifacts) -> Vm {
    builder(artifacts).devices(2).start().unwrap()
}

/// A machine with everything that rows need.
fn complete_machine(artifacts: &Artifacts) -> Vm {
    let helpers = &artifacts.kernels[&kernel()].test_helpers;
    let builder = MISHAPS
        .into_iter()
        .fold(builder(artifacts).devices(5), |builder, (device, rule)| {
            builder.rule(device, rule)
        });
    let vm = helpers
        .iter()
        .fold(builder, |builder, helper| builder.file(helper))
        .coherent_devices(1)
        // Rows use the nodes of this driver for mappings of mixed kinds.
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

/// Runs rows and returns them by verdict, each with its reason. `variables` describe the machine.
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

/// Runs rows in a machine, and finishes the machine. Adds the rows that are kept to `kept`, and
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
fn jobs_go_on_when_the_tables_of_a_device_are_full() {
    let artifacts = Artifacts::required();
    // Enough for 256 regions of a space; the row maps 4096, one after the other.
    let vm = builder(&artifacts).table_memory(2 * MIB).start().unwrap();
    let row = "a-control-group-pays-for-what-the-driver-keeps";
    let kept = verdicts(&vm, &[row], &[]);
    assert!(kept["kept"].contains_key(row), "{kept:#?}");
    vm.finish().unwrap();
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

    // The plainest machine first; the others run the rows that cannot run there.
    let mut kept = BTreeMap::new();
    let rest = run_in(vm, &["all"], &[], &mut kept);
    let vm = complete_machine(&artifacts);
    let rest = run_in(vm, &names(&rest), &[(DEVICES, FAULTY)], &mut kept);
    // A machine of its own, as its memory is used up.
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
