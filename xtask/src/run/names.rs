//! Which of all tests the user has named.
//!
//! It compares texts and knows no test.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{ensure, Result};

/// Parts of names. A test whose name has one of them is run; without any, all are.
#[derive(Debug)]
pub(crate) struct Names {
    names: Vec<String>,
    /// Those that are part of some name.
    used: RefCell<BTreeSet<String>>,
}

impl Names {
    pub(crate) fn new(names: &[String]) -> Self {
        Self {
            names: names.to_vec(),
            used: RefCell::default(),
        }
    }

    /// Whether the user has named nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether something is wanted that has these names.
    pub(crate) fn want(&self, called: &[&str]) -> bool {
        self.names.is_empty() || self.name(called)
    }

    /// Whether the user has named something that has these names.
    pub(crate) fn name(&self, called: &[&str]) -> bool {
        let mut used = self.used.borrow_mut();
        let mut is_named = false;
        for name in &self.names {
            if called.iter().any(|text| text.contains(name.as_str())) {
                used.insert(name.clone());
                is_named = true;
            }
        }
        is_named
    }

    /// Whether something that has been asked for so far has each of the names.
    pub(crate) fn are_all_used(&self) -> bool {
        self.unused().next().is_none()
    }

    /// An error that says which names are part of none that has been asked for.
    pub(crate) fn check(&self) -> Result<()> {
        let unused: Vec<_> = self.unused().collect();
        ensure!(
            unused.is_empty(),
            "nothing has {} in its name; `cargo xtask test --list` prints all names",
            unused.join(" or ")
        );
        Ok(())
    }

    fn unused(&self) -> impl Iterator<Item = String> + '_ {
        let is_unused = |name: &&String| !self.used.borrow().contains(*name);
        self.names.iter().filter(is_unused).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Names {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        Names::new(&names)
    }

    #[test]
    fn without_names_all_is_wanted_and_nothing_named() {
        let names = names(&[]);
        assert!(names.is_empty() && names.want(&["format"]) && !names.name(&["format"]));
        names.check().unwrap();
    }

    #[test]
    fn a_part_of_one_of_its_names_is_enough() {
        let names = names(&["contract", "hmm-tests"]);
        assert!(names.want(&["contract::every_row"]));
        assert!(names.want(&["kernel_suite::every_test", "hmm-tests"]));
        assert!(!names.want(&["smoke::a_device"]));
    }

    #[test]
    fn a_name_that_nothing_has_is_an_error() {
        let names = names(&["contract", "contrakt"]);
        assert!(names.want(&["contract::every_row"]));
        assert!(!names.are_all_used());
        let error = names.check().unwrap_err().to_string();
        assert!(
            error.contains("contrakt") && !error.contains("contract "),
            "{error}"
        );
    }
}
