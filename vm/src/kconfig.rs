//! The options of a kernel, as its `.config` has them.
//!
//! It knows the format of that file, and nothing of what an option does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Before the name of an option in a configuration.
const PREFIX: &str = "CONFIG_";

/// The options of a kernel that are set, without `CONFIG_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Reads a `.config`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or no line of it sets an option.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let options = Self::parse(&text);
        (!options.0.is_empty())
            .then_some(options)
            .with_context(|| format!("{} is no kernel's configuration", path.display()))
    }

    /// The options in a configuration or in a part of one. What is not set, or is no option, is
    /// left out; the last line of an option counts.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut options = BTreeMap::new();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let Some(name) = name.strip_prefix(PREFIX) else {
                continue;
            };
            let value = value.trim();
            let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            options.insert(name.to_owned(), quoted.unwrap_or(value).to_owned());
        }
        Self(options)
    }

    /// The value of an option: `y`, `m`, a number, or a string without its quotes. `None` if it is
    /// not set.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether an option is `y`: its code is part of the kernel's image.
    #[must_use]
    pub fn is_built_in(&self, name: &str) -> bool {
        self.value(name) == Some("y")
    }

    /// Whether an option is `m`: its code is a module.
    #[must_use]
    pub fn is_module(&self, name: &str) -> bool {
        self.value(name) == Some("m")
    }

    /// Whether an option is `y` or `m`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.is_built_in(name) || self.is_module(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_their_values_and_those_that_are_not_set_have_none() {
        let options = Options::parse(
            "# CONFIG_KASAN is not set\nCONFIG_RUST=y\nCONFIG_ZRAM=m\nCONFIG_NR_CPUS=16\n\
             CONFIG_CC_VERSION_TEXT=\"gcc (Debian 14.2.0-19) 14.2.0\"\nCONFIG_EMPTY=\"\"\n",
        );
        assert!(options.is_built_in("RUST") && options.has("RUST") && !options.is_module("RUST"));
        assert!(options.is_module("ZRAM") && options.has("ZRAM") && !options.is_built_in("ZRAM"));
        assert!(!options.has("KASAN") && options.value("KASAN").is_none());
        assert_eq!(options.value("NR_CPUS"), Some("16"));
        assert!(!options.has("NR_CPUS"));
        let compiler = Some("gcc (Debian 14.2.0-19) 14.2.0");
        assert_eq!(options.value("CC_VERSION_TEXT"), compiler);
        assert_eq!(options.value("EMPTY"), Some(""));
    }

    #[test]
    fn a_file_without_options_is_no_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(".config");
        assert!(Options::read(&path).is_err());
        fs::write(&path, "# nothing is set\n").unwrap();
        let error = Options::read(&path).unwrap_err();
        assert!(error.to_string().contains("no kernel's configuration"));
        fs::write(&path, "CONFIG_RUST=y\n").unwrap();
        assert!(Options::read(&path).unwrap().has("RUST"));
    }
}
