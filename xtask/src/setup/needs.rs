//! The options that a kernel needs for the device and its tests, and those that look for mistakes:
//! `cargo xtask kconfig`, and what a kernel that the user has built lacks.
//!
//! The fragments are files of the checkout, in parts; this file knows which part is how important.

use std::fmt;
use std::process::ExitCode;

use anyhow::{bail, Result};
use hmm_cli::output;
use hmm_vm::kconfig::Options;

use crate::args::KconfigArgs;

const DEVICE: &str = include_str!("../../../tests/guest/device.config");
const MISTAKES: &str = include_str!("../../../tests/guest/mistakes.config");

/// Begins the title of a part.
const PART: &str = "# --- ";

/// The parts of the fragment without which no machine starts, and no driver is built.
const REQUIRED: [&str; 2] = ["the driver", "the guest"];

/// The part without which some tests fail.
const TESTS: &str = "the tests";

/// Options that stand for others, which have no prompt: what counts is whether the latter are set.
const STANDS_FOR: [(&str, &str); 3] = [
    ("RUNTIME_TESTING_MENU", "HMM_MIRROR"),
    ("TEST_HMM", "HMM_MIRROR"),
    ("VIRTIO_MENU", "VIRTIO"),
];

/// Options whose code we build as a module if the kernel does without.
const BUILT_HERE: [&str; 1] = ["GUP_TEST"];

/// Modules that a virtual machine needs before ours and for its tests, in this order, and their
/// options: transports of the device, the port to the guest's agent, and what tests of memory
/// management need: block devices in memory, for swap; a disk, for data that must outlive the
/// memory; and a file system with writeback.
pub(crate) const MODULES: &[(&str, &str)] = &[
    ("VIRTIO_PCI", "virtio_pci"),
    ("VIRTIO_MMIO", "virtio_mmio"),
    ("VIRTIO_CONSOLE", "virtio_console"),
    ("ZRAM", "zram"),
    ("VIRTIO_BLK", "virtio_blk"),
    ("EXT4_FS", "ext4"),
];

/// The same for directories of the host in the guest; only a machine that has one loads them.
pub(crate) const SHARE_MODULES: &[(&str, &str)] =
    &[("NET_9P_VIRTIO", "9pnet_virtio"), ("9P_FS", "9p")];

/// Options of tests that a module may provide that the tests themselves do without, or that another
/// module loads.
const MAY_BE_MODULES: [&str; 2] = ["HWPOISON_INJECT", "NET_9P"];

/// What a kernel lacks.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Lacks(Vec<Missing>);

/// An option that a kernel lacks.
#[derive(Debug, PartialEq)]
struct Missing {
    line: String,
    part: String,
    /// The value that it has instead, if that is not simply none.
    instead: Option<String>,
}

impl Lacks {
    /// What these options lack for any use of the device.
    fn of_device(options: &Options) -> Self {
        Self::of(options, |part| REQUIRED.contains(&part))
    }

    /// What these options lack for the tests alone. Rows of the contract that need more than that
    /// are named where they run.
    pub(crate) fn of_tests(options: &Options) -> Self {
        Self::of(options, |part| part == TESTS)
    }

    fn of(options: &Options, counts: impl Fn(&str) -> bool) -> Self {
        let missing = lines(DEVICE).filter(|(part, _)| {
            let name = part.split(':').next().unwrap_or(part);
            counts(name)
        });
        let missing = missing.filter_map(|(part, line)| {
            let instead = missing_of(options, line)?;
            Some(Missing {
                line: line.to_owned(),
                part: part.to_owned(),
                instead,
            })
        });
        Self(missing.collect())
    }

    /// Whether nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Lacks {
    /// The lines to add, by part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for Missing {
            line,
            part,
            instead,
        } in &self.0
        {
            if last != Some(part) {
                writeln!(f, "    {PART}{part}")?;
                last = Some(part);
            }
            write!(f, "    {line}")?;
            if let Some(value) = instead {
                write!(f, "    # it is {value}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Checks that a kernel has what the device needs.
///
/// # Errors
///
/// One that names each missing option, with the line to add.
pub(crate) fn check(options: &Options) -> Result<()> {
    let lacks = Lacks::of_device(options);
    if lacks.is_empty() {
        return Ok(());
    }
    bail!(
        "the kernel lacks options; add these lines to its .config, run `make olddefconfig`, and \
         build it again (`cargo xtask kconfig` prints all that may be needed):\n{lacks}"
    )
}

/// `None` if a line is satisfied; else the value that its option has instead, if any.
fn missing_of(options: &Options, line: &str) -> Option<Option<String>> {
    let (name, wanted) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    // As a part of the kernel it would keep the nodes that our driver offers to the tests.
    if name == "TEST_HMM" && options.is_built_in(name) {
        return Some(Some("y".to_owned()));
    }
    let counts = STANDS_FOR
        .iter()
        .find(|(stand_in, _)| *stand_in == name)
        .map_or(name, |(_, counts)| counts);
    let mut modules = MODULES.iter().chain(SHARE_MODULES);
    let loads = modules.any(|(option, _)| *option == name) || MAY_BE_MODULES.contains(&name);
    let satisfied = BUILT_HERE.contains(&name)
        || counts != name && options.has(counts)
        || options.value(name) == Some(wanted)
        || loads && options.has(name);
    (!satisfied).then(|| options.value(name).map(str::to_owned))
}

/// The lines of a fragment that set an option, each with the title of its part.
fn lines(fragment: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut part = "";
    fragment.lines().filter_map(move |line| {
        if let Some(title) = line.strip_prefix(PART) {
            part = title;
        }
        line.starts_with("CONFIG_").then_some((part, line))
    })
}

/// `cargo xtask kconfig`.
pub(crate) fn print(args: &KconfigArgs) -> ExitCode {
    output::text(DEVICE);
    if args.debug {
        output::text(&format!("\n{MISTAKES}"));
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBUG_CONFIG: &str = include_str!("../../../tests/guest/debug.config");

    /// A kernel with all lines of the fragment but those of `without`.
    fn kernel(without: &[&str]) -> Options {
        let is_kept = |line: &&str| {
            let name = line.split_once('=').map_or("", |(name, _)| name);
            !without.contains(&name)
        };
        let lines: Vec<_> = DEVICE.lines().filter(is_kept).collect();
        Options::parse(&format!("{}\nCONFIG_HMM_MIRROR=y\n", lines.join("\n")))
    }

    #[test]
    fn the_debug_kernel_has_what_the_fragments_say() {
        let is_turned_off = |line: &str| {
            let name = line.split('=').next().unwrap_or_default();
            let not_set = format!("# {name} is not set");
            DEBUG_CONFIG.lines().any(|other| other == not_set)
        };
        for (_, line) in lines(DEVICE).chain(lines(MISTAKES)) {
            let has = DEBUG_CONFIG.lines().any(|other| other == line);
            assert!(has != is_turned_off(line), "{line}");
        }
        // And what the fragment of mistakes turns off.
        for line in MISTAKES
            .lines()
            .filter(|line| line.ends_with(" is not set"))
        {
            assert!(DEBUG_CONFIG.contains(line), "{line}");
        }
    }

    #[test]
    fn what_looks_for_mistakes_in_the_debug_kernel_is_in_the_fragment() {
        for title in ["what looks for mistakes", "failures on demand"] {
            let part = DEBUG_CONFIG
                .split(PART)
                .find(|part| part.starts_with(title));
            for line in part.unwrap().lines().skip(1) {
                assert!(MISTAKES.lines().any(|other| other == line), "{line}");
            }
        }
    }

    #[test]
    fn every_part_that_code_names_is_in_the_fragment() {
        for part in REQUIRED.into_iter().chain([TESTS]) {
            let title = format!("{PART}{part}:");
            assert!(DEVICE.contains(&title), "{title}");
        }
        for (option, _) in STANDS_FOR {
            assert!(DEVICE.contains(&format!("CONFIG_{option}=")), "{option}");
        }
    }

    #[test]
    fn a_kernel_that_has_all_lacks_nothing() {
        check(&kernel(&[])).unwrap();
        assert!(Lacks::of_tests(&kernel(&[])).is_empty());
    }

    #[test]
    fn each_required_option_that_is_missing_is_named_with_its_line() {
        for (part, line) in lines(DEVICE) {
            let name = line.split_once('=').unwrap().0;
            let error = check(&kernel(&[name])).err().map(|error| error.to_string());
            let option = name.strip_prefix("CONFIG_").unwrap();
            let is_required = REQUIRED.iter().any(|required| part.starts_with(required))
                // HMM_MIRROR is there by another driver; VIRTIO is what VIRTIO_MENU is for.
                && !["RUNTIME_TESTING_MENU", "TEST_HMM"].contains(&option);
            assert_eq!(error.is_some(), is_required, "{line}");
            if let Some(error) = error {
                assert!(error.contains(&format!("\n    {line}\n")), "{error}");
            }
        }
    }

    #[test]
    fn all_missing_options_are_in_one_error() {
        let error = check(&kernel(&[
            "CONFIG_RUST",
            "CONFIG_DEVICE_PRIVATE",
            "CONFIG_DEVTMPFS",
        ]));
        let error = error.unwrap_err().to_string();
        for line in ["RUST=y", "DEVICE_PRIVATE=y", "DEVTMPFS=y"] {
            assert!(error.contains(&format!("    CONFIG_{line}\n")), "{error}");
        }
        assert!(!error.contains("CONFIG_EVENTFD"), "{error}");
    }

    #[test]
    fn without_a_driver_that_mirrors_the_kernel_lacks_the_one_that_selects_it() {
        let text = DEVICE.replace("CONFIG_TEST_HMM=m\n", "");
        let error = check(&Options::parse(&text)).unwrap_err().to_string();
        assert!(error.contains("    CONFIG_TEST_HMM=m\n"), "{error}");
    }

    #[test]
    fn a_test_driver_that_is_built_in_is_in_the_way() {
        let text = DEVICE.replace(
            "CONFIG_TEST_HMM=m",
            "CONFIG_TEST_HMM=y\nCONFIG_HMM_MIRROR=y",
        );
        let error = check(&Options::parse(&text)).unwrap_err().to_string();
        assert!(error.contains("CONFIG_TEST_HMM=m    # it is y"), "{error}");
    }

    #[test]
    fn a_module_is_enough_only_if_it_is_loaded() {
        let with = |line: &str| {
            let (name, _) = line.split_once('=').unwrap();
            let mut text = DEVICE.replace(&format!("{name}=y\n"), &format!("{line}\n"));
            text.push_str("CONFIG_HMM_MIRROR=y\n");
            check(&Options::parse(&text))
        };
        with("CONFIG_VIRTIO_PCI=m").unwrap();
        let error = with("CONFIG_BINFMT_SCRIPT=m").unwrap_err().to_string();
        assert!(
            error.contains("CONFIG_BINFMT_SCRIPT=y    # it is m"),
            "{error}"
        );
    }

    #[test]
    fn options_of_tests_do_not_stop_a_machine() {
        let options = kernel(&["CONFIG_KSM", "CONFIG_MEMCG", "CONFIG_GUP_TEST"]);
        check(&options).unwrap();
        let lacks = Lacks::of_tests(&options).to_string();
        assert!(lacks.contains("CONFIG_KSM=y") && lacks.contains("CONFIG_MEMCG=y"));
        assert!(!lacks.contains("GUP_TEST"), "we build it: {lacks}");
    }
}
