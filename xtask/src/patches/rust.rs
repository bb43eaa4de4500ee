//! A Rust source of the driver as one of the kernel crate, or of a sample in the kernel.
//!
//! It applies rules and checks that nothing is left of the driver's own names. It does not know what
//! the sources do.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{bail, ensure, Context, Result};

use crate::patches::imports::{self, Renames};
use crate::patches::names;

/// What becomes of a source.
#[derive(Debug)]
pub(super) struct Rules {
    /// Paths that have other names there.
    pub(super) paths: Renames,
    /// Text that is replaced; it must be there.
    pub(super) text: &'static [(&'static str, &'static str)],
    /// Items of the driver that are left out, by how they begin.
    pub(super) dropped: &'static [&'static str],
    /// Whether items become public: in the kernel crate others use them.
    pub(super) is_public: bool,
}

/// What must not be left of a source.
const DRIVERS_OWN: &[&str] = &["crate::sys", "sys::", "crate::wait", "virtio_hmm"];

/// A source in the kernel, not formatted.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) text: String,
    /// The driver's C functions that it uses, by their names in the driver.
    pub(super) functions: Vec<String>,
}

/// The source in the kernel's tree, without the declarations of modules that `has_module` denies.
///
/// # Errors
///
/// If a rule does not apply, or if something of the driver's own is left.
pub(super) fn convert(
    name: &str,
    source: &str,
    rules: &Rules,
    has_module: impl Fn(&str) -> bool,
) -> Result<Converted> {
    let mut text = String::new();
    for line in without(source, rules.dropped).lines() {
        // Only needed where not every module uses everything.
        if line.trim() == "#[allow(dead_code)] // The sample alone needs it." {
            continue;
        }
        if module(line).is_some_and(|module| !has_module(module)) {
            // Its attributes go with it.
            while let Some(rest) = without_attribute(&text) {
                text.truncate(rest);
            }
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    for (from, to) in rules.text {
        ensure!(
            text.contains(from),
            "{name} has no {from:?} that could be replaced"
        );
        text = text.replace(from, to);
    }
    text = imports::rewrite(&text, rules.paths);
    if rules.is_public {
        text = text.replace("pub(crate) ", "pub ");
    }
    let functions = names::used_by(&text);
    text = names::in_rust(&text);
    text = text.lines().map(header_link).collect::<Vec<_>>().join("\n");
    text.push('\n');
    for (number, line) in text.lines().enumerate() {
        if let Some(left) = DRIVERS_OWN.iter().find(|own| line.contains(*own)) {
            bail!(
                "{name}: line {} of the kernel's version still has {left}: {line}",
                number + 1
            );
        }
    }
    Ok(Converted { text, functions })
}

/// How long a text is without the attribute on its last line, if there is one.
fn without_attribute(text: &str) -> Option<usize> {
    let start = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
    text[start..].starts_with("#[").then_some(start)
}

/// The module that a line declares, if it is in a file of its own.
fn module(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub(crate) ").unwrap_or(line);
    rest.strip_prefix("mod ")?.strip_suffix(';')
}

/// The source without some of its items.
fn without(source: &str, items: &[&str]) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut lines = source.lines().peekable();
    while let Some(line) = lines.next() {
        if !items.iter().any(|item| line.starts_with(item)) {
            kept.push(line);
            continue;
        }
        // Its documentation and attributes stand before it, a blank line behind it.
        while kept
            .last()
            .is_some_and(|line| line.starts_with("///") || line.starts_with("#["))
        {
            kept.pop();
        }
        if !line.ends_with(';') {
            lines.by_ref().find(|line| *line == "}");
        }
        lines.next_if(|line| line.is_empty());
    }
    kept.join("\n")
}

/// How the kernel's documentation refers to a header.
fn header_link(line: &str) -> String {
    const PLAIN: &str = "//! C header: `";
    match line
        .strip_prefix(PLAIN)
        .and_then(|rest| rest.strip_suffix("`."))
    {
        Some(header) => format!("//! C header: [`{header}`](srctree/{header})"),
        None => line.to_owned(),
    }
}

/// Formats sources, each text once: most of them are the same after many patches.
#[derive(Debug, Default)]
pub(super) struct Formatter {
    formatted: BTreeMap<String, String>,
}

impl Formatter {
    /// The source as rustfmt writes it.
    pub(super) fn format(&mut self, name: &str, source: String) -> Result<String> {
        if let Some(formatted) = self.formatted.get(&source) {
            return Ok(formatted.clone());
        }
        let formatted = rustfmt(name, &source)?;
        self.formatted.insert(source, formatted.clone());
        Ok(formatted)
    }
}

fn rustfmt(name: &str, source: &str) -> Result<String> {
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2021", "--config", "max_width=100"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting rustfmt")?;
    let mut input = child.stdin.take().context("the input is a pipe")?;
    // It reads everything before it writes.
    input.write_all(source.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "rustfmt does not understand {name}"
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        paths: &[("crate::sys", "crate::bindings"), ("sys", "bindings")],
        text: &[("old()", "new()")],
        dropped: &["fn unwanted("],
        is_public: true,
    };

    const SOURCE: &str = "//! C header: `include/linux/hmm.h`.\n\npub(crate) mod here;\n\
        #[cfg(X)]\nmod later;\n\nuse crate::sys;\n\n/// Dropped.\n#[inline]\nfn unwanted() {\n    \
        x();\n}\n\n#[allow(dead_code)] // The sample alone needs it.\npub(crate) fn f() {\n    \
        sys::virtio_hmm_get_page(old());\n}\n";

    fn convert(source: &str) -> Result<Converted> {
        super::convert("a.rs", source, &RULES, |module| module == "here")
    }

    #[test]
    fn a_source_is_converted_by_its_rules() {
        let converted = convert(SOURCE).unwrap();
        let expected = "//! C header: [`include/linux/hmm.h`](srctree/include/linux/hmm.h)\n\n\
            pub mod here;\n\nuse crate::bindings;\n\npub fn f() {\n    \
            bindings::get_page(new());\n}\n";
        assert_eq!(converted.text, expected);
        assert_eq!(converted.functions, ["virtio_hmm_get_page"]);
    }

    #[test]
    fn a_rule_that_does_not_apply_is_an_error() {
        let error = convert(&SOURCE.replace("old()", "other()")).unwrap_err();
        assert!(error.to_string().contains("old()"), "{error}");
    }

    #[test]
    fn what_only_the_driver_has_must_not_be_left() {
        let source = SOURCE.replace("sys::virtio_hmm_get_page(", "crate::wait::sleep(");
        let error = convert(&source).unwrap_err();
        assert!(error.to_string().contains("crate::wait"), "{error}");
    }
}
