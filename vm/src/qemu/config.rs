//! Configuration files of QEMU: what `-readconfig` reads.
//!
//! It knows their form, and not what the sections mean.

use std::fmt;
use std::path::Path;

use anyhow::{bail, Context, Result};
use qapi_spec::{Any, Dictionary};

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config(Vec<Section>);

/// A section with a name: `[device "hmm0"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    kind: String,
    pub(super) name: String,
    settings: Vec<(String, String)>,
}

impl Config {
    /// Reads a file whose sections all have names.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has another form.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        text.map_err(Into::into)
            .and_then(|text| Self::parse(&text))
            .with_context(|| format!("reading {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut sections = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let header = line
                .strip_prefix('[')
                .and_then(|line| line.strip_suffix(']'));
            match (header, line.split_once('='), sections.last_mut()) {
                (Some(header), _, _) => {
                    let (kind, name) = header
                        .split_once(' ')
                        .with_context(|| format!("{line} has no name"))?;
                    sections.push(Section {
                        kind: kind.to_owned(),
                        name: quoted(name)?.to_owned(),
                        settings: Vec::new(),
                    });
                }
                (None, Some((key, value)), Some(section)) => {
                    let value = quoted(value.trim())?.to_owned();
                    section.settings.push((key.trim().to_owned(), value));
                }
                _ => bail!("{line:?} is neither a section nor a setting in one"),
            }
        }
        Ok(Self(sections))
    }

    /// The same with other words in names and values.
    pub(super) fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let sections = self.0.iter().map(|section| Section {
            kind: section.kind.clone(),
            name: rename(&section.name),
            settings: section
                .settings
                .iter()
                .map(|(key, value)| (key.clone(), rename(value)))
                .collect(),
        });
        Self(sections.collect())
    }

    /// The same with another value of a setting of the device `name`.
    pub(super) fn with(mut self, name: &str, key: &str, value: String) -> Self {
        let device = self.0.iter_mut().find(|section| section.is_device(name));
        let settings = device.into_iter().flat_map(|device| &mut device.settings);
        for (_, old) in settings.filter(|(other, _)| other == key) {
            old.clone_from(&value);
        }
        self
    }

    /// Removes the sections that are not wanted.
    pub(super) fn retain(&mut self, is_wanted: impl Fn(&Section) -> bool) {
        self.0.retain(is_wanted);
    }

    /// Removes the section of the device `name`, and returns it.
    pub(super) fn take_device(&mut self, name: &str) -> Option<Section> {
        let index = self.0.iter().position(|section| section.is_device(name))?;
        Some(self.0.remove(index))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Section {
            kind,
            name,
            settings,
        } in &self.0
        {
            writeln!(f, "[{kind} \"{name}\"]")?;
            for (key, value) in settings {
                writeln!(f, "  {key} = \"{value}\"")?;
            }
        }
        Ok(())
    }
}

impl Section {
    /// Whether it is about the device `name`.
    pub(super) fn is_device(&self, name: &str) -> bool {
        self.kind == "device" && self.name == name
    }

    /// The arguments of `device_add` for this device. The monitor wants numbers as such.
    pub(super) fn arguments(&self) -> Dictionary {
        let settings = self.settings.iter().map(|(key, value)| {
            let value = match value.parse::<u64>() {
                Ok(number) => Any::from(number),
                Err(_) => Any::from(value.as_str()),
            };
            (key.clone(), value)
        });
        let id = ("id".to_owned(), Any::from(self.name.as_str()));
        settings.chain([id]).collect()
    }
}

/// What is between the quotes.
fn quoted(text: &str) -> Result<&str> {
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .with_context(|| format!("{text} is not in quotes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A port.\n[device \"port0\"]\n  chassis = \"1\"\n\n[device \"hmm0\"]\n  \
                        bus = \"port0\"\n  virtio-id = \"37\"\n";

    #[test]
    fn a_file_is_written_as_it_was_read() {
        let config = Config::parse(TEXT).unwrap();
        assert_eq!(Config::parse(&config.to_string()).unwrap(), config);
    }

    #[test]
    fn what_is_neither_a_section_nor_a_setting_is_refused() {
        for text in [
            "[device]",
            "a = \"b\"",
            "[a \"b\"]\nc",
            "[a \"b\"]\nc = d",
            "[a b]",
        ] {
            Config::parse(text).unwrap_err();
        }
    }

    #[test]
    fn a_device_that_is_plugged_in_has_the_settings_of_the_file() {
        let mut config = Config::parse(TEXT).unwrap();
        let device = config.take_device("hmm0").unwrap();
        assert!(config.take_device("hmm0").is_none());
        let arguments = serde_json::to_value(device.arguments()).unwrap();
        let expected = serde_json::json!({ "id": "hmm0", "bus": "port0", "virtio-id": 37 });
        assert_eq!(arguments, expected);
    }
}
