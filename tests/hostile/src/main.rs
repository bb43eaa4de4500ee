//! A guest that breaks every rule.
//!
//! It takes the accelerator away from its driver and drives it itself, from user space, as root, so
//! that it can put anything into registers, rings and memory. Each round is an attack, after which
//! a driver that keeps the rules checks that the device still does everything right.

#![forbid(unsafe_code)]

mod attack;
mod device;
mod health;
mod machine;
mod memory;
mod model;
mod pci;
mod request;
mod ring;
mod session;
mod transport;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use clap::Parser;
use hmm_cli::{remark, say};
use serde::Serialize;

use crate::attack::{Attack, ATTACKS};
use crate::session::{Session, Tally};

/// Attack the accelerator of this machine, and check after each attack that it still
/// does everything right.
///
/// It must run as root in a guest; no driver can use the device meanwhile. The exit
/// status is 0 only if nothing went wrong.
#[derive(Debug, Parser)]
#[command(name = "hmm-hostile", version)]
struct Arguments {
    /// Seed of the random numbers; the same seed repeats a run.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How often each attack is carried out.
    #[arg(long, default_value_t = 1)]
    rounds: u64,

    /// The attack, or `all`.
    #[arg(long, default_value = "all")]
    attack: String,

    /// Print the names of all attacks and do nothing.
    #[arg(long)]
    list: bool,
}

/// The report that is printed at the end, as one line.
#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    /// Rounds that succeeded, by attack.
    survived: BTreeMap<&'static str, u64>,
    /// What went wrong: attack, seed of the round, and why.
    failures: Vec<Failure>,
    #[serde(flatten)]
    tally: Tally,
}

#[derive(Debug, Serialize)]
struct Failure {
    attack: &'static str,
    seed: u64,
    reason: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for attack in ATTACKS {
            say!("{}", attack.name);
        }
        return ExitCode::SUCCESS;
    }
    match carry_out(&arguments) {
        Ok(report) => {
            say!("{}", serde_json::json!(report));
            if report.failures.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            remark!("hmm-hostile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(arguments: &Arguments) -> Result<Report> {
    let attacks = chosen(&arguments.attack)?;
    let mut session = Session::open().context("taking the device")?;
    health::check(&mut session, &mut fastrand::Rng::with_seed(arguments.seed))
        .context("the device is not right before anything was attacked")?;
    let mut report = Report {
        seed: arguments.seed,
        survived: BTreeMap::new(),
        failures: Vec::new(),
        tally: Tally::default(),
    };
    for round in 0..arguments.rounds {
        // A single round can be repeated: its seed is the first seed plus its number.
        let seed = arguments.seed.wrapping_add(round);
        for attack in &attacks {
            let start = Instant::now();
            let failures = one_round(&mut session, attack, seed);
            remark!(
                "{} --seed {seed}: {} in {} ms",
                attack.name,
                if failures.is_empty() {
                    "survived"
                } else {
                    "FAILED"
                },
                start.elapsed().as_millis()
            );
            if failures.is_empty() {
                *report.survived.entry(attack.name).or_default() += 1;
            }
            for reason in failures {
                remark!("    {reason}");
                report.failures.push(Failure {
                    attack: attack.name,
                    seed,
                    reason,
                });
            }
        }
    }
    report.tally = session.tally;
    Ok(report)
}

/// Attacks once, then checks the device's health. Returns all that went wrong.
fn one_round(session: &mut Session, attack: &Attack, seed: u64) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let attacked = (attack.run)(session, &mut random);
    let healthy = health::check(session, &mut random);
    // One failure must not cause the next one.
    let ready = if healthy.is_err() {
        session.restart()
    } else {
        Ok(())
    };
    let phases = [
        ("in the attack", attacked),
        ("afterwards", healthy),
        ("at the next start", ready),
    ];
    phases
        .into_iter()
        .filter_map(|(when, result)| result.err().map(|error| format!("{when}: {error:#}")))
        .collect()
}

fn chosen(name: &str) -> Result<Vec<&'static Attack>> {
    let attacks: Vec<_> = ATTACKS
        .iter()
        .filter(|attack| name == "all" || attack.name == name)
        .collect();
    if attacks.is_empty() {
        bail!("there is no attack {name}; --list names them");
    }
    Ok(attacks)
}
