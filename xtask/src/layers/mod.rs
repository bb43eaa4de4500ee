//! Checks the layers of a crate against the table in its README.
//!
//! The table has a row for each part, the highest first. A part may use the parts in its own row
//! and below, except those that its row says it knows nothing of. Modules may not use each other in
//! a circle, not even within a row. A library and a program of the same package have one table.
//! [`table`] reads the rows, [`imports`] reads the uses in the source, [`mod@circles`] finds circles;
//! this module finds what breaks a row.

mod circles;
mod imports;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use imports::{Import, Library, Source};
use table::{Place, Table};

/// The crates whose layers are checked.
const CRATES: [Crate; 7] = [
    Crate {
        folder: "vhost-device-hmm",
        root: "src/lib.rs",
        library: None,
    },
    Crate {
        folder: "guest-driver",
        root: "virtio_hmm_main.rs",
        library: None,
    },
    Crate {
        folder: "guest/lib",
        root: "src/lib.rs",
        library: None,
    },
    Crate {
        folder: "guest/tool",
        root: "src/main.rs",
        library: Some(Library {
            name: "hmm_tool",
            root: "lib.rs",
        }),
    },
    Crate {
        folder: "tests/workloads",
        root: "src/main.rs",
        library: None,
    },
    Crate {
        folder: "replay",
        root: "src/lib.rs",
        library: None,
    },
    Crate {
        folder: "timeline",
        root: "src/lib.rs",
        library: None,
    },
];

struct Crate {
    /// Its directory.
    folder: &'static str,
    /// The file of its root within it.
    root: &'static str,
    /// The library beside it, if it is a program that has one.
    library: Option<Library<'static>>,
}

/// Checks every crate of a checkout that has such a table.
///
/// # Errors
///
/// A sentence for each import that breaks a row of a table, and for each part without a row.
pub(crate) fn check(checkout: &Path) -> Result<()> {
    let mut found = Vec::new();
    for Crate {
        folder,
        root,
        library,
    } in &CRATES
    {
        let readme = Path::new(folder).join("README.md");
        let text = std::fs::read_to_string(checkout.join(&readme))
            .with_context(|| format!("reading {}", readme.display()))?;
        let table = Table::parse(&text)
            .with_context(|| format!("reading the table of {}", readme.display()))?;
        let source = Source::read(&checkout.join(folder).join(root), *library)?;
        let breaches = breaches(&table, &source);
        found.extend(breaches.iter().map(|breach| format!("{folder}: {breach}")));
    }
    ensure!(found.is_empty(), "\n{}", found.join("\n"));
    Ok(())
}

/// A difference between a table and a source.
#[derive(Debug, PartialEq, Eq)]
enum Breach {
    /// A module that no row names.
    Unplaced { module: String },
    /// A name in a row that is no module.
    Unknown { name: String },
    /// A module uses one in a row above its own.
    Upward {
        import: Import,
        user: Row,
        used: Row,
    },
    /// A module uses one that its row says it knows nothing of.
    Forbidden {
        import: Import,
        user: Row,
        used: String,
    },
    /// Modules use each other; one import for each step of the circle.
    Circle { imports: Vec<(Import, Row)> },
}

/// A name in a table, and its line there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: String,
    line: usize,
}

impl From<Place<'_>> for Row {
    fn from(place: Place<'_>) -> Self {
        Self {
            name: place.name.to_owned(),
            line: place.line,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (README.md:{})", self.name, self.line)
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unplaced { module } => write!(f, "no row of the table names `{module}`"),
            Self::Unknown { name } => write!(f, "the table names `{name}`, which is no module"),
            Self::Upward { import, user, used } => write!(
                f,
                "{import}, but the table has {used} above {user}, and a part uses only those \
                 below it"
            ),
            Self::Forbidden { import, user, used } => write!(
                f,
                "{import}, but the table says that {user} knows nothing of `{used}`"
            ),
            Self::Circle { imports } => {
                let steps = imports
                    .iter()
                    .map(|(import, row)| format!("{import}, of {row}"));
                let steps: Vec<_> = steps.collect();
                write!(
                    f,
                    "modules use each other in a circle: {}",
                    steps.join("; ")
                )
            }
        }
    }
}

/// All differences between a table and a source.
fn breaches(table: &Table, source: &Source) -> Vec<Breach> {
    let mut found = breaches_of_rows(table, source);
    found.extend(circles(table, source));
    found
}

/// The imports that break a row.
fn breaches_of_rows(table: &Table, source: &Source) -> Vec<Breach> {
    let modules = || source.modules();
    let mut found: Vec<Breach> = table
        .names()
        .into_iter()
        .filter(|name| !modules().any(|module| table::covers(name, module)))
        .map(|name| Breach::Unknown {
            name: name.to_owned(),
        })
        .collect();
    let unplaced = modules().filter(|module| !module.is_empty() && table.place(module).is_none());
    found.extend(unplaced.map(|module| Breach::Unplaced {
        module: module.to_owned(),
    }));
    let mut seen = BTreeSet::new();
    for import in source.imports() {
        // One sentence is enough for all uses of one module by another.
        if !seen.insert((&import.user, &import.used)) {
            continue;
        }
        // The root puts the parts together, and stands above all rows.
        let (Some(user), Some(used)) = (table.place(&import.user), table.place(&import.used))
        else {
            continue;
        };
        if used.row < user.row {
            found.push(Breach::Upward {
                import: import.clone(),
                user: user.into(),
                used: used.into(),
            });
        }
        if let Some(unknown) = table.unknown_to(user.row, &import.used) {
            found.push(Breach::Forbidden {
                import: import.clone(),
                user: user.into(),
                used: unknown.to_owned(),
            });
        }
    }
    found
}

/// The circles in which modules use each other, except those through the root.
fn circles(table: &Table, source: &Source) -> Vec<Breach> {
    let between = |import: &&Import| !import.user.is_empty() && !import.used.is_empty();
    let imports: Vec<&Import> = source.imports().iter().filter(between).collect();
    let edges = imports.iter();
    let edges = edges.map(|import| (import.user.as_str(), import.used.as_str()));
    let found = circles::find(edges).into_iter().map(|circle| {
        let steps = circle.into_iter().filter_map(|(user, used)| {
            let mut imports = imports.iter();
            let import = imports.find(|import| import.user == user && import.used == used)?;
            Some(((*import).clone(), table.place(used)?.into()))
        });
        Breach::Circle {
            imports: steps.collect(),
        }
    });
    found.collect()
}

#[cfg(test)]
mod locked;
#[cfg(test)]
mod maps;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const TABLE: &str = "\
# A crate

| Part | Does | Knows nothing of |
| --- | --- | --- |
| `door.rs` | takes orders | `cellar` |
| `kitchen.rs`, `kitchen/oven.rs` | cooks | guests |
| `cellar` | keeps | |
";

    fn sentences(files: &[(&str, &str)]) -> Vec<String> {
        let breaches = breaches(&Table::parse(TABLE).unwrap(), &source_of(files));
        breaches.iter().map(ToString::to_string).collect()
    }

    fn source_of(files: &[(&str, &str)]) -> Source {
        read(files, "lib.rs", None).unwrap()
    }

    fn read(files: &[(&str, &str)], root: &str, library: Option<Library<'_>>) -> Result<Source> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Source::read(&folder.path().join(root), library)
    }

    const ROOT: (&str, &str) = ("lib.rs", "mod door; mod kitchen; mod cellar;");

    /// The sentences about a crate in which only the lowest part has contents.
    fn sentences_of_cellar(text: &str) -> Vec<String> {
        sentences(&[
            ROOT,
            ("door.rs", ""),
            ("kitchen.rs", "mod oven;"),
            ("kitchen/oven.rs", ""),
            ("cellar.rs", text),
        ])
    }

    #[test]
    fn a_part_that_uses_those_below_it_breaks_nothing() {
        let found = sentences(&[
            ROOT,
            ("door.rs", "use crate::kitchen::{oven::Oven, Cook};"),
            ("kitchen.rs", "mod oven; use crate::cellar; use oven::Oven;"),
            ("kitchen/oven.rs", "use crate::cellar::Wood;"),
            ("cellar/mod.rs", "mod shelf;"),
            ("cellar/shelf.rs", "use crate::kitchenware::Pot;"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn a_part_that_uses_one_above_it_is_told_of_the_row() {
        let found = sentences_of_cellar("\nfn f() { macro!(crate::kitchen::oven::bake()) }");
        assert_eq!(
            found,
            [
                "cellar.rs:2 uses crate::kitchen::oven::bake, but the table has `kitchen/oven` \
                 (README.md:6) above `cellar` (README.md:7), and a part uses only those below it"
            ]
        );
    }

    #[test]
    fn a_part_that_uses_what_it_knows_nothing_of_is_told_of_the_row() {
        let found = sentences(&[
            ROOT,
            ("door.rs", "use crate::cellar::Wine;"),
            ("kitchen.rs", "mod oven;"),
            ("kitchen/oven.rs", ""),
            ("cellar.rs", ""),
        ]);
        assert_eq!(
            found,
            [
                "door.rs:1 uses crate::cellar::Wine, but the table says that `door` (README.md:5) \
                 knows nothing of `cellar`"
            ]
        );
    }

    #[test]
    fn a_part_without_a_row_and_a_row_without_a_part_are_told_of() {
        let found = sentences(&[
            ("lib.rs", "mod door; mod kitchen; mod roof; use roof::Tile;"),
            ("door.rs", ""),
            ("kitchen.rs", "mod oven;"),
            ("kitchen/oven.rs", ""),
            ("roof.rs", ""),
        ]);
        assert_eq!(
            found,
            [
                "the table names `cellar`, which is no module",
                "no row of the table names `roof`"
            ]
        );
    }

    #[test]
    fn modules_of_one_row_that_use_each_other_are_a_circle() {
        let found = sentences(&[
            ROOT,
            ("door.rs", "use crate::kitchen::Cook;"),
            ("kitchen.rs", "mod oven; use oven::Oven;"),
            ("kitchen/oven.rs", "\nuse super::Cook;"),
            ("cellar.rs", ""),
        ]);
        assert_eq!(
            found,
            [
                "modules use each other in a circle: kitchen.rs:1 uses crate::kitchen::oven::Oven, \
                 of `kitchen/oven` (README.md:6); kitchen/oven.rs:2 uses crate::kitchen::Cook, of \
                 `kitchen` (README.md:6)"
            ]
        );
    }

    #[test]
    fn the_crates_of_this_repository_keep_to_their_tables() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        check(checkout).unwrap();
    }

    fn copy_sources(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if from.is_dir() {
                copy_sources(&from, &to);
            } else if from.extension().is_some_and(|extension| extension == "rs") {
                std::fs::copy(from, to).unwrap();
            }
        }
    }

    const DAEMON: &Crate = &CRATES[0];
    const DRIVER: &Crate = &CRATES[1];
    const LIBRARY: &Crate = &CRATES[2];
    const TOOL: &Crate = &CRATES[3];
    const WORKLOADS: &Crate = &CRATES[4];

    /// The module of a name in a table.
    fn module(name: &str) -> &str {
        name.strip_suffix(".rs").unwrap_or(name)
    }

    impl Crate {
        fn path(&self) -> PathBuf {
            let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            checkout.join(self.folder)
        }

        fn readme(&self) -> String {
            std::fs::read_to_string(self.path().join("README.md")).unwrap()
        }

        /// The sentences about a copy of the crate with one more import in a module's file.
        fn sentences_with(&self, file: &str, import: &str) -> Vec<String> {
            let root = self.path().join(self.root);
            let folder = tempfile::tempdir().unwrap();
            copy_sources(root.parent().unwrap(), folder.path());
            let path = folder.path().join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, format!("{text}{import}")).unwrap();
            let table = Table::parse(&self.readme()).unwrap();
            let root = folder.path().join(root.file_name().unwrap());
            let source = Source::read(&root, self.library).unwrap();
            let found = breaches(&table, &source);
            found.iter().map(ToString::to_string).collect()
        }

        /// The file of a module that has a row of its own.
        fn file(&self, name: &str) -> String {
            let root = self.path().join(self.root);
            let folder = root.parent().unwrap();
            let plain = format!("{}.rs", module(name));
            if folder.join(&plain).exists() {
                plain
            } else {
                format!("{name}/mod.rs")
            }
        }

        /// Checks the sentences about an import that is planted in `user` of `used`, which is above
        /// it.
        fn check_upward(&self, user: &str, used: &str, import: &str) {
            let file = self.file(user);
            let found = self.sentences_with(&file, import);
            let text = format!(
                ", but the table has `{}` (README.md:{}) above `{}` (README.md:{}), and a part \
                 uses only those below it",
                module(used),
                self.row(&format!("`{used}`")),
                module(user),
                self.row(&format!("`{user}`")),
            );
            assert!(found[0].starts_with(&format!("{file}:")), "{found:?}");
            assert!(found[0].ends_with(&text), "{found:?}");
            // They use each other now.
            assert!(found[1].contains("in a circle"), "{found:?}");
            assert_eq!(found.len(), 2, "{found:?}");
        }

        /// Checks the sentence about an import that is planted in `user` of `used`, which it knows
        /// nothing of.
        fn check_forbidden(&self, user: &str, used: &str, import: &str) {
            let file = self.file(user);
            let found = self.sentences_with(&file, import);
            let text = format!(
                ", but the table says that `{}` (README.md:{}) knows nothing of `{used}`",
                module(user),
                self.row(&format!("`{user}`")),
            );
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(&format!("{file}:")), "{found:?}");
            assert!(found[0].ends_with(&text), "{found:?}");
        }

        /// The line of the table's row that begins with these names.
        fn row(&self, names: &str) -> usize {
            let start = format!("| {names} |");
            let table = self.readme();
            let place = table.lines().position(|line| line.starts_with(&start));
            1 + place.unwrap()
        }
    }

    #[test]
    fn an_import_that_runs_up_is_told_of_both_rows() {
        let import = "use crate::fault::map::Installer;";
        DRIVER.check_upward("space/mapped.rs", "fault/map.rs", import);
        LIBRARY.check_upward("job", "space", "use crate::space::Space;");
        TOOL.check_upward("cpu", "workload", "use crate::workload::run;");
        WORKLOADS.check_upward("sys", "churn", "use crate::churn::run;");
    }

    #[test]
    fn an_import_of_what_a_part_knows_nothing_of_is_told_of_its_row() {
        let import = "fn f() { crate::mm::address_at(0, 0); }";
        DRIVER.check_forbidden("space/inbox.rs", "mm", import);
        LIBRARY.check_forbidden("memory", "sys", "use crate::sys::address_of;");
        // A module of the library beside the program.
        TOOL.check_forbidden("args", "runner", "use hmm_tool::runner::Options;");
        WORKLOADS.check_forbidden("arena", "sys", "use crate::sys::fork;");
    }

    #[test]
    fn a_library_that_uses_its_program_and_a_name_that_both_have_are_told_of() {
        let library = Some(Library {
            name: "store",
            root: "lib.rs",
        });
        let files = |cellar| {
            [
                ("main.rs", "mod door; mod kitchen;"),
                ("door.rs", "use store::roof;"),
                ("kitchen.rs", "mod oven; use store::cellar::Wine;"),
                ("kitchen/oven.rs", "fn f() { store::cellar::wood() }"),
                ("lib.rs", "pub mod cellar;"),
                ("cellar.rs", cellar),
            ]
        };
        let sentences = |cellar| {
            let source = read(&files(cellar), "main.rs", library).unwrap();
            let breaches = breaches(&Table::parse(TABLE).unwrap(), &source);
            let sentences = breaches.iter().map(ToString::to_string);
            sentences.collect::<Vec<_>>()
        };
        assert_eq!(sentences(""), [""; 0]);
        let found = sentences("use crate::kitchen::Cook;");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("cellar.rs:1 uses crate::kitchen::Cook, but"));
        assert!(found[1].contains("in a circle"), "{found:?}");

        let mut both = files("");
        both[4] = ("lib.rs", "pub mod cellar; mod door;");
        let error = read(&both, "main.rs", library).unwrap_err().to_string();
        assert!(error.ends_with("have a module `door`"), "{error}");
    }

    #[test]
    fn an_import_that_closes_a_circle_within_a_row_of_the_daemon_is_told_of_that_row() {
        let row = DAEMON.row("`device/operations`");
        let import = "use crate::device::operations::Work;";
        let found = DAEMON.sentences_with("device/operations/list.rs", import);
        assert_eq!(found.len(), 1, "{found:?}");
        let start = "modules use each other in a circle: device/operations/mod.rs:";
        assert!(found[0].starts_with(start), "{found:?}");
        let text = format!(
            "uses crate::device::operations::Work, of `device/operations` (README.md:{row})"
        );
        assert!(found[0].ends_with(&text), "{found:?}");
    }

    #[test]
    fn tests_may_use_what_they_like() {
        let found = sentences_of_cellar(
            "#[cfg(test)] mod tests { use crate::door::Bell; } #[cfg(test)] mod more;",
        );
        assert_eq!(found, [""; 0]);
    }
}
