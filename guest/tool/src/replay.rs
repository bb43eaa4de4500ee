//! `hmm replay`.
//!
//! It does not know how a policy decides. It is here although it needs no device, so that a run can
//! be judged in the guest in which it was recorded; on the host it is the same program.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;

use anyhow::{anyhow, ensure, Context, Result};
use hmm_cli::{output, say};
use hmm_replay::judge::{judge, usual_capacities, Player, Question};
use hmm_replay::trace::Trace;
use hmm_replay::uses::Uses;
use hmm_replay::{plot, table};
use hmm_tool::argument::WrongArgument;

use crate::args::Replay;

/// Replays a trace and shows what it would have cost.
pub(crate) fn show(options: &Replay, json: bool) -> Result<()> {
    let trace = read(&options.trace)?;
    let uses = Uses::of(&trace, options.granule);
    ensure!(uses.granules > 0, "the trace has no access");
    if let Some(small) = options
        .capacity
        .iter()
        .find(|size| **size < options.granule)
    {
        let granule = options.granule;
        let wrong = format!("a device of {small} bytes has no room for a granule of {granule}");
        return Err(WrongArgument(wrong).into());
    }
    let verdicts = judge(
        &uses,
        &Question {
            players: or_else(&options.policy, || Player::ALL.into()),
            capacities: or_else(&options.capacity, || usual_capacities(&uses)),
            bound: !options.no_bound,
            link: options.link,
        },
    );
    if let Some(path) = &options.plot {
        let picture = plot::svg(&verdicts).map_err(|error| anyhow!("drawing: {error}"))?;
        fs::write(path, picture).with_context(|| format!("writing {}", path.display()))?;
    }
    if json {
        for verdict in &verdicts {
            say!("{}", serde_json::to_string(verdict)?);
        }
    } else if options.csv {
        output::text(&table::csv(&verdicts));
    } else {
        output::text(&table::people(&verdicts));
    }
    Ok(())
}

/// What was given, or what is usual.
fn or_else<T: Clone>(given: &[T], usual: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if given.is_empty() {
        usual()
    } else {
        given.to_vec()
    }
}

fn read(path: &Path) -> Result<Trace> {
    if path == Path::new("-") {
        return Ok(Trace::read(io::stdin().lock())?);
    }
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Trace::read(BufReader::new(file)).with_context(|| path.display().to_string())
}
