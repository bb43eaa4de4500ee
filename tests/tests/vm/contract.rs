//! All rows of the contract of HMM, on devices that check each translation.
//!
//! The guest program (`tests/contract`) has the rows and tries them. This test asks that every row
//! was run and kept, and that exactly those cannot run whose options this kernel lacks, so that no
//! row is lost unnoticed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hmm_vm::artifacts::Artifacts;
use hmm_vm::cases::{Cases, Kind, Outcome};
use hmm_vm::guest::Command;
use hmm_vm::kconfig::Options;
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{default_kernel, Builder, Vm, GIB, MIB};
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

/// Rows that run only on a kernel with all of these options. They are no options of a machine that
/// the device needs; `tests/guest/device.config` has them, or `tests/guest/mistakes.config`.
const NEEDS: &[(&[&str], &[&str])] = &[
    (
        // Memory is refused on demand only by a kernel that was built for it.
        &["FAILSLAB", "FAIL_PAGE_ALLOC", "FAULT_INJECTION_DEBUG_FS"],
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
    (&["COREDUMP", "ELF_CORE"], &["a-core-dump-of-moved-pages"]),
    (&["PID_NS"], &["a-look-is-by-the-callers-numbers"]),
    (&["SECRETMEM"], &["secret-memory-is-not-for-devices"]),
    (
        &["KPROBE_EVENTS"],
        &["all-are-asked-before-any-is-waited-for"],
    ),
    (
        &["PTE_MARKER_UFFD_WP"],
        &["page-map-scans-see-device-writes"],
    ),
    (
        &["MEM_SOFT_DIRTY"],
        &[
            "soft-dirty-sees-atomic-operations",
            "soft-dirty-sees-device-writes",
            "soft-dirty-sees-writes-of-what-came-back",
        ],
    ),
];

/// Rows that run only on a kernel without an option: it warns of a mistake of its own there.
const UNLESS: &[(&str, &[&str])] = &[("PAGE_TABLE_CHECK", &["page-map-scans-see-device-writes"])];

/// The rows that cannot run on a kernel with these options.
fn not_here(options: &Options) -> BTreeSet<&'static str> {
    NEEDS
        .iter()
        .filter(|(needs, _)| !needs.iter().all(|option| options.has(option)))
        .map(|(_, rows)| rows)
        .chain(
            UNLESS
                .iter()
                .filter(|(unless, _)| options.has(unless))
                .map(|(_, rows)| rows),
        )
        .flat_map(|rows| rows.iter().copied())
        .collect()
}

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
    let helpers = &artifacts.kernels[&default_kernel()]
        .for_tests()
        .test_helpers;
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

/// Runs rows and returns them by verdict, each with its reason. `variables` describe the machine.
fn verdicts(
    vm: &Vm,
    rows: &[&str],
    variables: &[(&str, &str)],
) -> BTreeMap<String, BTreeMap<String, String>> {
    let (verdicts, is_good) = try_rows(vm, rows, variables);
    assert_not_broken(&verdicts, is_good);
    verdicts
}

/// Like [`verdicts`], also of rows that are broken. Returns whether the program itself was content.
fn try_rows(
    vm: &Vm,
    rows: &[&str],
    variables: &[(&str, &str)],
) -> (BTreeMap<String, BTreeMap<String, String>>, bool) {
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
    (verdicts, output.success())
}

fn assert_not_broken(verdicts: &BTreeMap<String, BTreeMap<String, String>>, is_good: bool) {
    let broken = verdicts.get("broken").cloned().unwrap_or_default();
    assert_eq!(broken, BTreeMap::new(), "no row is broken");
    assert!(is_good, "{verdicts:#?}");
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
    cases: &mut Cases,
) -> BTreeMap<String, String> {
    let (mut verdicts, is_good) = try_rows(&vm, rows, variables);
    for (verdict, rows) in &verdicts {
        for (row, reason) in rows {
            let outcome = match verdict.as_str() {
                "kept" => Outcome::Passed,
                "cannot-run" => Outcome::CannotRun(reason.clone()),
                _ => Outcome::Failed(reason.clone()),
            };
            cases.set(row, outcome);
        }
    }
    assert_not_broken(&verdicts, is_good);
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
    let all: Vec<String> = list
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.0.to_owned()))
        .collect();
    assert!(all.len() > 80, "there are {} rows", all.len());
    let rows = Kind::Rows.wanted(all).unwrap();
    let wanted: Vec<&str> = rows.iter().map(String::as_str).collect();

    // The plainest machine first; the others run the rows that cannot run there.
    let name = default_kernel();
    let mut cases = Cases::new(Kind::Rows, &artifacts.reports, &name);
    let mut kept = BTreeMap::new();
    let rest = run_in(vm, &wanted, &[], &mut kept, &mut cases);
    let mut elsewhere = BTreeMap::new();
    if !rest.is_empty() {
        let vm = complete_machine(&artifacts);
        let variables = [(DEVICES, FAULTY)];
        elsewhere = run_in(vm, &names(&rest), &variables, &mut kept, &mut cases);
    }
    if !elsewhere.is_empty() {
        // A machine of its own, as its memory is used up.
        let vm = builder(&artifacts)
            .devices(2)
            .memory(LITTLE)
            .start()
            .unwrap();
        let variables = [(EXHAUSTIBLE, "1")];
        elsewhere = run_in(vm, &names(&elsewhere), &variables, &mut kept, &mut cases);
    }

    println!(
        "kept: {}; cannot run on this kernel: {elsewhere:#?}",
        kept.len()
    );
    let options = artifacts.kernels[&name].options().unwrap();
    let expected = not_here(&options).into_iter();
    assert_eq!(
        elsewhere
            .keys()
            .map(String::as_str)
            .collect::<BTreeSet<_>>(),
        expected.filter(|row| rows.contains(*row)).collect(),
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
