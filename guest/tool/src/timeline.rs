//! `hmm timeline`: a guest's events and its devices' records on one clock.
//!
//! It needs no device, and is the same program on the host.

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use hmm_cli::{output, say};
use hmm_timeline::perfetto;
use hmm_timeline::together::Together;

use crate::args::Timeline;

/// Writes the file, and prints what it adds up to.
pub(crate) fn make(options: &Timeline, json: bool) -> Result<()> {
    let events = read(&options.events)?;
    let devices = options.devices.iter().map(|path| read(path));
    let devices = devices.collect::<Result<Vec<_>>>()?;
    let together = Together::read(&events, devices.iter().map(String::as_str))?;
    ensure!(
        together.has_events(),
        "{} has no event of the driver",
        options.events.display()
    );
    let path = &options.output;
    fs::write(path, perfetto::encode(&together.tracks()))
        .with_context(|| format!("writing {}", path.display()))?;
    if json {
        say!("{}", serde_json::to_string(&together.sums())?);
    } else {
        output::text(&together.text());
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    // The name of a task may be any bytes.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
