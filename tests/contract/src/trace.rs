//! Records the order in which functions of the kernel are called, with probes of its own
//! (`kprobe_events`).
//!
//! It does not know what the functions do.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process;

use anyhow::{ensure, Context, Result};

use crate::kernel;
use crate::row::cannot_run;

const TRACING: &str = "/sys/kernel/tracing";

/// A call of a function that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The name of its probe.
    pub(crate) name: String,
    /// Its first argument.
    pub(crate) argument: u64,
}

/// Functions that are watched as long as this exists.
#[derive(Debug)]
pub(crate) struct Trace {
    group: String,
    instance: PathBuf,
    names: Vec<&'static str>,
}

impl Trace {
    /// Watches functions, each under a name, when the calling thread calls them.
    pub(crate) fn new(functions: &[(&'static str, &str)]) -> Result<Self> {
        let group = format!("contract{}", process::id());
        let instance = PathBuf::from(format!("{TRACING}/instances/{group}"));
        let mut trace = Self {
            group,
            instance,
            names: Vec::new(),
        };
        for (name, function) in functions {
            trace.define(&format!(
                "p:{}/{name} {function} argument=%di:x64",
                trace.group
            ))?;
            trace.names.push(name);
        }
        fs::create_dir(&trace.instance).context("a buffer of one's own")?;
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        kernel::write(trace.instance.join("set_event_pid"), &thread)?;
        let group = trace.instance.join("events").join(&trace.group);
        kernel::write(group.join("enable"), "1")?;
        Ok(trace)
    }

    /// Adds or removes a probe, and leaves other programs' probes alone.
    fn define(&self, line: &str) -> Result<()> {
        let path = format!("{TRACING}/kprobe_events");
        let mut file = File::options()
            .append(true)
            .open(&path)
            .map_err(|error| cannot_run(format!("{path} cannot be opened: {error}")))?;
        file.write_all(line.as_bytes())
            .with_context(|| format!("{path} does not take {line}"))
    }

    /// The calls during `what`, in order.
    pub(crate) fn during(&self, what: impl FnOnce() -> Result<()>) -> Result<Vec<Call>> {
        let buffer = self.instance.join("trace");
        // Writing to it empties it.
        kernel::write(&buffer, "")?;
        what()?;
        let text = kernel::read(&buffer)?;
        ensure!(!text.contains("LOST"), "calls were lost: {text}");
        text.lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|line| call(line).with_context(|| format!("not understood: {line}")))
            .collect()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // A probe can be removed when it is not in use.
        let _ = fs::remove_dir(&self.instance);
        for name in &self.names {
            let _ = self.define(&format!("-:{}/{name}", self.group));
        }
    }
}

/// Parses a line of the buffer, `hmm-contract-12 [000] ..... 1.25: name: (f+0x0/0x9) argument=0x1`.
fn call(line: &str) -> Option<Call> {
    let name = line.split(": ").nth(1)?.to_owned();
    let (_, argument) = line.rsplit_once("argument=0x")?;
    Some(Call {
        name,
        argument: u64::from_str_radix(argument.trim(), 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_from_a_line() {
        let line =
            "  hmm-contract-105  [001] ...2.    3.141592: asked: (virtqueue_kick_prepare+0x4/0x50) \
                    argument=0xff11000100a0b0c0";
        let expected = Call {
            name: "asked".to_owned(),
            argument: 0xff11_0001_00a0_b0c0,
        };
        assert_eq!(call(line), Some(expected));
        assert_eq!(call("nothing of the kind"), None);
    }
}
