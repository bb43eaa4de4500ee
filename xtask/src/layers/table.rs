//! The table of a README with the parts of a crate, the highest first.

use std::collections::BTreeSet;

use anyhow::{ensure, Context, Result};

/// The titles of its columns, which identify it.
const TITLES: [&str; 3] = ["Part", "Does", "Knows nothing of"];

/// The rows of a table.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    /// Its line in the text, counted from 1.
    line: usize,
    /// The modules of the row. Each includes the modules below it that have no row of their own.
    names: Vec<String>,
    /// The modules that these know nothing of.
    unknown: Vec<String>,
}

/// The place of a module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The number of its row, counted from the top.
    pub(super) row: usize,
    /// The line of that row in the text.
    pub(super) line: usize,
    /// The name that covers it in the row.
    pub(super) name: &'a str,
}

impl Table {
    /// Reads the only table of a text with the right titles.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = (1..).zip(text.lines().map(cells));
        lines
            .find(|(_, cells)| *cells == TITLES)
            .with_context(|| format!("there is no table of {}", TITLES.join(", ")))?;
        let rows = lines
            .take_while(|(_, cells)| !cells.is_empty())
            .skip(1)
            .map(|(line, cells)| {
                let [names, _, unknown] = cells[..] else {
                    anyhow::bail!("a row has {} cells: {cells:?}", cells.len());
                };
                let names = modules(names);
                ensure!(!names.is_empty(), "a row names no module: {cells:?}");
                let unknown = modules(unknown);
                Ok(Row {
                    line,
                    names,
                    unknown,
                })
            });
        Ok(Self {
            rows: rows.collect::<Result<_>>()?,
        })
    }

    /// Every name of a module in the table.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        let rows = self.rows.iter();
        let names = rows.flat_map(|row| row.names.iter().chain(&row.unknown));
        names.map(String::as_str).collect()
    }

    /// The place of a module: the row with the longest name that covers it.
    pub(super) fn place(&self, module: &str) -> Option<Place<'_>> {
        let rows = self.rows.iter().enumerate();
        let places = rows.flat_map(|(row, Row { line, names, .. })| {
            names.iter().map(move |name| Place {
                row,
                line: *line,
                name,
            })
        });
        places
            .filter(|place| covers(place.name, module))
            .max_by_key(|place| place.name.len())
    }

    /// The name by which a row says that it knows nothing of a module, if it does.
    pub(super) fn unknown_to(&self, row: usize, module: &str) -> Option<&str> {
        let unknown = &self.rows.get(row)?.unknown;
        let found = unknown.iter().find(|name| covers(name, module));
        found.map(String::as_str)
    }
}

/// Whether a name is that of the module, or of one that contains it.
pub(super) fn covers(name: &str, module: &str) -> bool {
    let rest = module.strip_prefix(name);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The cells of a line; none if it is no row of a table.
fn cells(line: &str) -> Vec<&str> {
    let inner = line.trim().strip_prefix('|');
    let inner = inner.and_then(|line| line.strip_suffix('|'));
    inner.map_or_else(Vec::new, |line| line.split('|').map(str::trim).collect())
}

/// The names of modules in a cell: all text in backticks, except files of other languages.
fn modules(cell: &str) -> Vec<String> {
    let quoted = cell.split('`').skip(1).step_by(2);
    let names = quoted.map(|name| name.strip_suffix(".rs").unwrap_or(name));
    let names = names.filter(|name| !name.contains('.'));
    names.map(str::to_owned).collect()
}
