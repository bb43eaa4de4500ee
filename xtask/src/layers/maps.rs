//! Tests that the tables of files in the READMEs name the files that there are.

use std::collections::BTreeSet;
use std::path::Path;

/// A README, and the folder to which the names in its table of files are relative. Folders below
/// that folder in which all files are named, by their own names.
const MAPS: &[(&str, &str, &[&str])] = &[
    (
        "xtask",
        "xtask/src",
        &["setup", "run", "bench", "patches", "layers"],
    ),
    ("bench", "bench/src", &[""]),
    ("book", "book/src", &[""]),
    ("cli", "cli/src", &[""]),
    ("vm", "vm/src", &[""]),
    ("spec", "spec/src", &[""]),
    ("include", "include/src", &[""]),
    ("policy", "policy/src", &[""]),
    ("guest/c", "guest/c/src", &[""]),
    ("tests", "tests/tests/vm", &[""]),
    ("tests/contract", "tests/contract/src", &[""]),
    ("tests/hostile", "tests/hostile/src", &[""]),
    ("tests/order", "tests/order/src", &[""]),
    ("tests/explorer", "tests/explorer/src", &[""]),
];

/// Sources that are inserted into the kernel's files.
const TEXTS: &str = "patches/text";

/// The `.rs` files below a folder, as paths from `root`.
fn files(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != TEXTS {
                files(root, &path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(name.to_owned());
        }
    }
}

#[test]
fn the_tables_of_the_readmes_name_the_files_that_there_are() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for &(readme, folder, parts) in MAPS {
        let root = checkout.join(folder);
        let mut there = BTreeSet::new();
        for part in parts {
            files(&root, &root.join(part), &mut there);
        }
        let text = std::fs::read_to_string(checkout.join(readme).join("README.md")).unwrap();
        let named: BTreeSet<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
            .filter(|(name, _)| name.ends_with(".rs") && !name.starts_with("agent/"))
            .map(|(name, _)| name.to_owned())
            .collect();
        assert_eq!(named, there, "{readme}/README.md and {folder}");
    }
}
