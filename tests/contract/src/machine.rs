//! Which devices of this machine are not like the others, and what may be done to it.
//!
//! A device does not tell that its copies fail on purpose: who has made the machine says so
//! in an environment variable. Whether its memory is coherent it does tell.

use anyhow::{Context, Result};
use hmm::spec::wire::config::capability;
use hmm::Device;

use crate::row::cannot_run;

/// Names the devices whose copies fail: `to-device=2,to-system=3,nothing-back=4`.
pub(crate) const VARIABLE: &str = "HMM_CONTRACT_DEVICES";

/// Says, by being set, that all memory of the machine may be used up: whoever else uses it may
/// be killed, or the kernel give up.
pub(crate) const EXHAUSTIBLE: &str = "HMM_CONTRACT_ALL_MEMORY";

/// A row that uses up all memory runs only where it may.
pub(crate) fn may_be_exhausted() -> Result<()> {
    match std::env::var_os(EXHAUSTIBLE) {
        Some(_) => Ok(()),
        None => Err(cannot_run(format!(
            "the machine may be used by others, who would be killed: {EXHAUSTIBLE} is not set"
        ))),
    }
}

/// What a device does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Some copies to its memory fail, but not two in a row.
    ToDevice,
    /// Some copies from its memory fail, but not two in a row.
    ToSystem,
    /// It never gives back what it has been given.
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
