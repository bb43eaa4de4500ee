//! What policies of memory cost on the operations' own traces, beside the least that is possible.
//!
//! `cargo bench -p vhost-device-hmm --bench oversubscription [MEBIBYTES]` runs jobs on memory that
//! records which pages they use, and replays that on devices with too little memory. It prints for
//! each policy the bytes over the link, with their ratio to the bound; with `-- --json` one JSON
//! object per line for the results to keep (see `docs/benchmarks.md`). With `--traces DIR` it writes the traces there, for
//! `hmm replay`, and judges nothing. There is no guest, no driver and no time: the same traces cost
//! the same on every machine.

mod recorder;
mod runs;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hmm_bench::{Better, Line, Measurement, Reference, Spread, Unit};
use hmm_cli::{remark, say};
use hmm_policy::placement::Strategy;
use hmm_replay::judge::{self, Player, Question, Verdict};
use hmm_replay::trace::Trace;
use hmm_replay::uses::Uses;

use runs::{Run, RUNS};

/// The memory that a run uses, in MiB: enough for 256 granules, and little enough that all bounds
/// together take a minute.
const MEBIBYTES: usize = 16;

/// The same for a test, which shows that everything runs.
const MEBIBYTES_OF_A_TEST: usize = 1;

/// What moves as a whole, in bytes.
const GRANULE_BYTES: u64 = 64 << 10;

/// The most work for a bound, in uses of granules times granules of the device: some ten seconds, and
/// far more memory than a test has. There is no bound for more.
const MOST_WORK: usize = 100_000_000;

/// What the command line asks for.
#[derive(Default)]
struct Options {
    json: bool,
    traces: Option<PathBuf>,
    mebibytes: Option<usize>,
    only: Option<String>,
}

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> (Self, bool) {
        let mut options = Self::default();
        let mut is_bench = false;
        let mut arguments = arguments.skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => is_bench = true,
                "--json" => options.json = true,
                "--traces" => options.traces = arguments.next().map(PathBuf::from),
                "--only" => options.only = arguments.next(),
                // Those of Cargo's harness for tests mean nothing here.
                other => options.mebibytes = other.parse().ok().or(options.mebibytes),
            }
        }
        (options, is_bench)
    }
}

/// Writes a trace under the run's name.
fn write(directory: &Path, run: &Run, trace: &Trace) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(format!("{}.trace", run.name.replace(' ', "-")));
    trace.write(BufWriter::new(File::create(&path)?))?;
    say!("{}", path.display());
    Ok(())
}

/// All policies on all capacities, each with the footprint for each byte of the device, in
/// hundredths.
fn verdicts(uses: &Uses) -> Vec<(u64, Verdict)> {
    let capacities = judge::usual_capacities(uses);
    let mut found = Vec::new();
    for (ratio, capacity) in judge::USUAL_RATIOS.into_iter().zip(capacities) {
        let blocks = usize::try_from(capacity / uses.granule_bytes).unwrap_or(usize::MAX);
        let question = Question {
            players: Player::ALL.to_vec(),
            bound: uses.uses.len().saturating_mul(blocks) <= MOST_WORK,
            capacities: vec![capacity],
            link: None,
        };
        let verdicts = judge::judge(uses, &question).into_iter();
        found.extend(verdicts.map(|verdict| (ratio, verdict)));
    }
    found
}

/// Whether a verdict is a result to keep: what our own policy costs, and beside it, on half the
/// memory, what it costs to move nothing, or at every fault.
fn is_kept(ratio: u64, verdict: &Verdict) -> bool {
    let is = |strategy: Strategy| verdict.policy == strategy.name();
    is(Strategy::Adaptive) || (ratio == 200 && (is(Strategy::FirstTouch) || is(Strategy::Never)))
}

/// A verdict as a result of a benchmark, in footprints; its reference is the bound.
fn measurement(run: &Run, ratio: u64, verdict: &Verdict) -> Measurement {
    let value = verdict.of_footprint();
    let reference = verdict
        .of_bound()
        .and_then(|ratio| Reference::of("bound", &[(value, value / ratio)]));
    Measurement {
        group: "oversubscription".to_owned(),
        name: format!(
            "{} at {}.{:02}x, {}",
            run.name,
            ratio / 100,
            ratio % 100,
            verdict.policy
        ),
        unit: Unit::Count,
        better: Better::Lower,
        repetitions: 1,
        value: Spread::exact(value),
        reference,
    }
}

fn main() -> ExitCode {
    let (options, is_bench) = Options::parse(std::env::args());
    let usual = if is_bench {
        MEBIBYTES
    } else {
        MEBIBYTES_OF_A_TEST
    };
    let bytes = options.mebibytes.unwrap_or(usual).clamp(1, 1 << 12) << 20;
    for run in &RUNS {
        if options.only.as_ref().is_some_and(|only| only != run.name) {
            continue;
        }
        let trace = run.record(bytes);
        if let Some(directory) = &options.traces {
            if let Err(error) = write(directory, run, &trace) {
                remark!("error: writing the trace of {}: {error}", run.name);
                return ExitCode::FAILURE;
            }
            continue;
        }
        let uses = Uses::of(&trace, GRANULE_BYTES);
        let found = verdicts(&uses);
        if options.json {
            for (ratio, verdict) in found {
                if !is_kept(ratio, &verdict) {
                    continue;
                }
                let line = Line::Measurement(measurement(run, ratio, &verdict));
                match serde_json::to_string(&line) {
                    Ok(line) => say!("{line}"),
                    Err(error) => remark!("error: {error}"),
                }
            }
        } else {
            say!("{}: {} uses of granules", run.name, uses.uses.len());
            let found: Vec<_> = found.into_iter().map(|(_, verdict)| verdict).collect();
            say!("{}", hmm_replay::table::people(&found));
        }
    }
    ExitCode::SUCCESS
}
