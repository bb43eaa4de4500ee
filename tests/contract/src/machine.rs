//! The devices of this machine that are special, and what a row may do to the machine.
//!
//! A device does not report that its copies fail on purpose: an environment variable says so, set
//! by the test that made the machine. The device does report whether its memory is coherent.

use anyhow::{Context, Result};
use hmm::spec::wire::config::capability;
use hmm::Device;

use crate::row::cannot_run;

/// Names the devices whose copies fail: `to-device=2,to-system=3,nothing-back=4`.
pub(crate) const VARIABLE: &str = "HMM_CONTRACT_DEVICES";

/// If set, a row may use up all memory of the machine. Other programs there may then be killed, and
/// the kernel may give up.
pub(crate) const EXHAUSTIBLE: &str = "HMM_CONTRACT_ALL_MEMORY";

/// Stops a row that uses up all memory unless the machine allows it.
pub(crate) fn may_be_exhausted() -> Result<()> {
    match std::env::var_os(EXHAUSTIBLE) {
        Some(_) => Ok(()),
        None => Err(cannot_run(format!(
            "the machine may be used by other processes, which would be killed: {EXHAUSTIBLE} is \
             not set"
        ))),
    }
}

/// A fault that a device has on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Some copies to its memory fail, but not two in a row.
    ToDevice,
    /// Some copies from its memory fail, but not two in a row.
    ToSystem,
    /// It never returns the contents of its memory.
    NothingBack,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::ToDevice => "to-device",
            Self::ToSystem => "to-system",
            Self::NothingBack => "nothing-back",
        }
    }
}

/// The number of the device that has this fault.
pub(crate) fn faulty(fault: Fault) -> Result<usize> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let found = find(&text, fault).with_context(|| format!("{VARIABLE} is {text:?}"))?;
    found.ok_or_else(|| {
        let name = fault.name();
        cannot_run(format!("no device of the machine fails so ({name})"))
    })
}

fn find(text: &str, fault: Fault) -> Result<Option<usize>> {
    let mut rules = text.split(',').filter_map(|rule| rule.split_once('='));
    let found = rules.find(|(name, _)| *name == fault.name());
    Ok(found.map(|(_, number)| number.parse()).transpose()?)
}

/// The number of the first device whose memory CPUs can address.
pub(crate) fn coherent() -> Result<usize> {
    for (number, path) in Device::list().iter().enumerate() {
        if Device::open(path)?.info()?.capabilities & capability::COHERENT != 0 {
            return Ok(number);
        }
    }
    Err(cannot_run("no device of the machine has coherent memory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_what_it_does_wrong() {
        let text = "to-device=2,nothing-back=14";
        assert_eq!(find(text, Fault::ToDevice).unwrap(), Some(2));
        assert_eq!(find(text, Fault::NothingBack).unwrap(), Some(14));
        assert_eq!(find(text, Fault::ToSystem).unwrap(), None);
        assert_eq!(find("", Fault::ToSystem).unwrap(), None);
        assert!(find("to-system=two", Fault::ToSystem).is_err());
    }
}
