//! The kernel's own benchmark of migration, unchanged, and CPU faults on moved pages: on our driver,
//! on the sample that has the same abstractions and no device, and on the kernel's test driver, in
//! turns and in the same boot.
//!
//! Only one of them can own the nodes at a time, so each turn loads a driver, measures and unloads
//! it.

use std::path::Path;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use hmm_bench::{Better, Failure, Line, Measurement, Reference, Spread, Unit};
use hmm_cli::remark;
use hmm_vm::artifacts::{Artifacts, Kernel};
use hmm_vm::guest::Command;
use hmm_vm::kselftest::{Reader, Verdict};
use hmm_vm::pace::DRIVER;
use hmm_vm::vm::{Builder, Vm, GIB, MIB};

use super::lines::Lines;

/// The benchmark, on private memory.
const BENCHMARK: &str = "hmm.hmm_device_private.benchmark_thp_migration";

/// It maps up to 256 MiB of huge pages, twice.
const MEMORY: u64 = 3 * GIB;
const DEVICE_MEMORY: u64 = 512 * MIB;

/// Longer than its own limit of 120 s.
const PATIENCE: Duration = Duration::from_secs(150);

/// The node that all drivers create, and our driver's parameter for it.
const NODE: &str = "/dev/hmm_dmirror0";
const COMPATIBLE: &str = "dmirror=1";

/// The tests' program that measures CPU faults on pages that a node has moved away.
const WORKLOADS: &str = "hmm-workloads";

/// A driver that can own the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    Ours,
    Sample,
    TestHmm,
}

/// All of them.
const DRIVERS: [Driver; 3] = [Driver::Ours, Driver::Sample, Driver::TestHmm];

impl Driver {
    /// Its name among the guest's modules.
    const fn module(self) -> &'static str {
        match self {
            Self::Ours => "virtio_hmm",
            Self::Sample => "rust_test_hmm",
            Self::TestHmm => "test_hmm",
        }
    }

    /// The group of what is measured on it, if that is `group` on our driver.
    fn group(self, group: &str) -> String {
        match self {
            Self::Ours => group.to_owned(),
            Self::Sample | Self::TestHmm => format!("{group}, {}", self.module()),
        }
    }
}

/// How often the benchmark is tried on the kernel's test driver. That driver fails when a page that
/// is to move is in use for a moment; ours tries again by itself.
const TRIES: u8 = 3;

/// The group of the benchmark's measurements.
const GROUP: &str = "kernel's benchmark";

/// Measures all drivers several times.
pub(super) fn measure(
    artifacts: &Artifacts,
    kernel: &str,
    icount: bool,
    rounds: u8,
    lines: &mut Lines,
) -> Result<()> {
    let modules = artifacts
        .kernels
        .get(kernel)
        .context("there is no such kernel")?;
    let helpers = &modules.for_tests().test_helpers;
    let programs = [
        &modules.for_tests().kernel_tests.program,
        &artifacts.guest_program(WORKLOADS),
    ];
    let mut machine = programs
        .into_iter()
        .chain(helpers)
        .chain([&modules.for_tests().sample, &modules.for_tests().test_hmm])
        .fold(Vm::builder(artifacts), Builder::file)
        .name("bench-kernel")
        .kernel(kernel)
        .memory(MEMORY)
        .device_memory(DEVICE_MEMORY)
        // The program allocates one when it starts, which fails if memory is fragmented.
        .kernel_argument("hugepages=2")
        .without_driver();
    if icount {
        machine = machine.icount();
    }
    let mut vm = machine.start()?;
    // Complaints of the kernel while its own test driver is loaded are that driver's.
    let judged = vm.judge()?;
    for helper in helpers {
        load(&vm, helper)?;
    }
    let mut seen = Vec::new();
    let mut broken = None;
    for round in 0..rounds {
        match one_round(&mut vm, modules, round.into()) {
            Ok(values) => seen.push(values),
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    for line in vm.finish_after(judged)? {
        remark!("the guest's kernel said: {line}");
    }
    compare(&seen).into_iter().for_each(|line| lines.add(line));
    if let Some(error) = broken {
        lines.add(Line::Failure(Failure {
            group: GROUP.into(),
            name: format!("round {} of {rounds}", seen.len() + 1),
            reason: format!("{error:#}"),
        }));
    }
    lines.end()
}

/// The values of a round, of each of the [`DRIVERS`].
type Round = [Vec<Value>; DRIVERS.len()];

/// A single measurement.
#[derive(Clone, Debug, PartialEq)]
struct Value {
    group: String,
    name: String,
    unit: Unit,
    better: Better,
    value: f64,
}

/// One turn of each driver. The order changes, because earlier work of the guest may matter.
fn one_round(vm: &mut Vm, modules: &Kernel, number: usize) -> Result<Round> {
    let mut round = Round::default();
    for turn in 0..DRIVERS.len() {
        let index = (number + turn) % DRIVERS.len();
        let driver = DRIVERS[index];
        let values = match driver {
            Driver::Ours => {
                vm.load_driver(COMPATIBLE)?;
                let values = once(vm, 1);
                vm.unload_driver()?;
                values
            }
            Driver::Sample => apart(vm, driver, &modules.for_tests().sample, 1)?,
            Driver::TestHmm => apart(vm, driver, &modules.for_tests().test_hmm, TRIES)?,
        };
        round[index] = values.with_context(|| format!("on {}", driver.module()))?;
    }
    Ok(round)
}

/// Measures another driver than ours.
fn apart(vm: &Vm, driver: Driver, module: &Path, tries: u8) -> Result<Result<Vec<Value>>> {
    load(vm, module)?;
    let values = once(vm, tries);
    vm.guest().unload_module(driver.module(), DRIVER)?;
    Ok(values)
}

fn load(vm: &Vm, module: &Path) -> Result<()> {
    let name = module.file_name().context("a module has a name")?;
    let path = format!("/root/{}", name.to_string_lossy());
    Ok(vm.guest().load_module(&path, "", DRIVER)?)
}

/// Measures the driver that is loaded. The benchmark may fail in all but one of `tries` attempts.
fn once(vm: &Vm, tries: u8) -> Result<Vec<Value>> {
    let mut left = tries;
    let mut values = loop {
        left = left.saturating_sub(1);
        match benchmark(vm) {
            Err(error) if left > 0 => remark!("    once more, because {error:#}"),
            ended => break ended?,
        }
    };
    values.extend(touches(vm)?);
    Ok(values)
}

fn benchmark(vm: &Vm) -> Result<Vec<Value>> {
    // Both streams go into one: otherwise a message could not be assigned to its test.
    let together = "exec hmm-tests \"$@\" 2>&1";
    let command = Command::from(["sh", "-c", together, "hmm-tests", "-r", BENCHMARK]);
    let output = vm.run(command.limit(PATIENCE))?;
    let mut reader = Reader::default();
    reader.read(&output.stdout)?;
    let results = reader.finish()?;
    let [result] = results.as_slice() else {
        bail!("{BENCHMARK} ran {} times", results.len());
    };
    ensure!(
        result.verdict == Verdict::Passed,
        "{BENCHMARK} {:?}: {}",
        result.verdict,
        remarks(&result.notes)
    );
    parse(&result.notes)
}

/// The harness's lines, without those of the test itself.
fn remarks(notes: &[String]) -> String {
    let remarks = notes.iter().filter_map(|note| note.strip_prefix("# "));
    remarks.collect::<Vec<_>>().join("; ")
}

/// Parses the output of the benchmark: a table for each size.
fn parse(notes: &[String]) -> Result<Vec<Value>> {
    let mut values = Vec::new();
    let mut mebibytes = None;
    for note in notes {
        if let Some(title) = note.strip_prefix("=== ") {
            let size = title.rsplit_once('(').map_or("", |(_, size)| size);
            let size = size.strip_suffix(" MB) ===");
            mebibytes = size.and_then(|size| size.parse::<f64>().ok());
            ensure!(mebibytes.is_some(), "{note:?} names no size");
            continue;
        }
        let Some((what, columns)) = note.split_once('|') else {
            continue;
        };
        let direction = match what.trim_end() {
            "Sys->Dev Migration" => "to the device",
            "Dev->Sys Migration" => "to system memory",
            _ => continue,
        };
        let mebibytes = mebibytes.with_context(|| format!("{note:?} has no title"))?;
        let kinds = ["with THP", "without THP"];
        for (kind, column) in kinds.into_iter().zip(columns.split('|')) {
            let time = column.trim().strip_suffix(" ms");
            let time: Option<f64> = time.and_then(|time| time.parse().ok());
            let time = time.with_context(|| format!("{note:?} has no time"))?;
            ensure!(time > 0.0, "{note:?} took no time");
            let size = if mebibytes < 1.0 {
                format!("{} KiB", mebibytes * 1024.0)
            } else {
                format!("{mebibytes} MiB")
            };
            values.push(Value {
                group: GROUP.into(),
                name: format!("{size} {direction}, {kind}"),
                unit: Unit::GigabytesPerSecond,
                better: Better::Higher,
                // 10^9 bytes in a second are 10^6 in a millisecond.
                value: mebibytes * f64::from(1 << 20) / (time * 1e6),
            });
        }
    }
    ensure!(!values.is_empty(), "the benchmark printed no table");
    Ok(values)
}

fn touches(vm: &Vm) -> Result<Vec<Value>> {
    let bench = ["bench", NODE, "--repetitions", "1"];
    let command = Command::new(WORKLOADS).argument("--json").arguments(bench);
    let output = vm.run(command.limit(PATIENCE))?.succeeded()?;
    output
        .lines()
        .map(|line| match serde_json::from_str(line)? {
            Line::Measurement(it) => Ok(Value {
                group: it.group,
                name: it.name,
                unit: it.unit,
                better: it.better,
                value: it.value.median,
            }),
            Line::Failure(failure) => bail!("{failure}"),
        })
        .collect()
}

/// Combines the rounds, in the order of the first one: what is measured on our driver and on the
/// sample, each against the kernel's test driver.
fn compare(rounds: &[Round]) -> Vec<Line> {
    let Some([ours, ..]) = rounds.first() else {
        return Vec::new();
    };
    let drivers = [Driver::Ours, Driver::Sample];
    let wanted = drivers
        .iter()
        .flat_map(|driver| ours.iter().map(|it| (*driver, it)));
    wanted
        .map(|(driver, wanted)| against(rounds, driver, wanted))
        .collect()
}

/// Compares a driver with the kernel's test driver in one measurement.
fn against(rounds: &[Round], driver: Driver, wanted: &Value) -> Line {
    let found = |round: &Round, driver: Driver| {
        let same = |value: &&Value| value.group == wanted.group && value.name == wanted.name;
        let index = DRIVERS.iter().position(|other| *other == driver)?;
        round[index].iter().find(same).map(|value| value.value)
    };
    let pairs = rounds.iter().map(|round| {
        let (own, theirs) = (found(round, driver), found(round, Driver::TestHmm));
        own.zip(theirs)
    });
    let pairs: Vec<(f64, f64)> = pairs.flatten().collect();
    let value = Spread::of(pairs.iter().map(|(own, _)| *own));
    let (group, name) = (driver.group(&wanted.group), wanted.name.clone());
    match (value, Reference::of(Driver::TestHmm.module(), &pairs)) {
        (Some(value), Some(reference)) if pairs.len() == rounds.len() => {
            Line::Measurement(Measurement {
                group,
                name,
                unit: wanted.unit,
                better: wanted.better,
                repetitions: pairs.len(),
                value,
                reference: Some(reference),
            })
        }
        _ => Line::Failure(Failure {
            group,
            name,
            reason: "one of the drivers did not come to it in each round".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "\
HMM THP Migration Benchmark
---------------------------
System page size: 4096 bytes

=== Small Buffer (0.5 MB) ===
                     | With THP        | Without THP     | Improvement
---------------------------------------------------------------------
Sys->Dev Migration   | 8.630 ms        | 9.083 ms        | 5.0%
Dev->Sys Migration   | 10.878 ms        | 10.828 ms        | -0.5%
S->D Throughput      | 0.06 GB/s      | 0.05 GB/s      | 5.2%
D->S Throughput      | 0.04 GB/s      | 0.05 GB/s      | -0.5%

=== One twenty eight THP Size (256.0 MB) ===
                     | With THP        | Without THP     | Improvement
---------------------------------------------------------------------
Sys->Dev Migration   | 268.435456 ms        | 1573.124 ms        | -7.7%
Dev->Sys Migration   | 3257.051 ms        | 2801.434 ms        | -16.3%
";

    fn printed(text: &str) -> Result<Vec<Value>> {
        parse(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    fn values(numbers: &[(&str, f64)]) -> Vec<Value> {
        let value = |&(name, value): &(&str, f64)| Value {
            group: "g".into(),
            name: name.into(),
            unit: Unit::GigabytesPerSecond,
            better: Better::Higher,
            value,
        };
        numbers.iter().map(value).collect()
    }

    #[test]
    fn every_time_of_the_table_becomes_a_rate() {
        let values = printed(PRINTED).unwrap();
        assert_eq!(values.len(), 8);
        assert_eq!(values[0].name, "512 KiB to the device, with THP");
        assert_eq!(values[4].name, "256 MiB to the device, with THP");
        assert!((values[4].value - 1.0).abs() < 1e-6, "{:?}", values[4]);
        assert_eq!(values[7].name, "256 MiB to system memory, without THP");
    }

    #[test]
    fn another_table_is_an_error_and_no_rate() {
        assert!(printed("").is_err());
        assert!(printed(&PRINTED.replace(" ms ", " s ")).is_err());
        assert!(printed(&PRINTED.replace("0.5 MB", "half a MB")).is_err());
        assert!(printed(&PRINTED.replace("8.630", "0.000")).is_err());
    }

    fn round(ours: f64, sample: f64, theirs: f64) -> Round {
        [ours, sample, theirs].map(|number| values(&[("a", number)]))
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_own() {
        let rounds = [
            round(4.0, 1.0, 2.0),
            round(9.0, 3.0, 3.0),
            round(8.0, 4.0, 2.0),
        ];
        let ratios = compare(&rounds).into_iter().map(|line| match line {
            Line::Measurement(it) => {
                let reference = it.reference.unwrap();
                assert_eq!((&*reference.name, it.repetitions), ("test_hmm", 3));
                (it.group, reference.ratio.median)
            }
            Line::Failure(failure) => panic!("{failure}"),
        });
        let expected = [("g".to_owned(), 3.0), ("g, rust_test_hmm".to_owned(), 1.0)];
        assert_eq!(ratios.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_one_driver_lacks_in_a_round_is_not_compared() {
        let mut lacking = round(1.0, 1.0, 1.0);
        lacking[1].clear();
        let lines = compare(&[round(1.0, 1.0, 1.0), lacking]);
        let [Line::Measurement(_), Line::Failure(failure)] = lines.as_slice() else {
            panic!("{lines:?}");
        };
        assert_eq!(failure.group, "g, rust_test_hmm");
    }
}
