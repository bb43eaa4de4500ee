//! Finds the places where a built module can panic.
//!
//! A panic in the kernel leaves locks held and memory allocated for ever, so the driver has none:
//! where the compiler cannot prove that an operation succeeds, the code handles the failure
//! instead. The check reads the module itself. Each way into a panic that the compiler kept (an
//! overflow, an index out of bounds, an `unwrap`) comes with a `core::panic::Location`, which names
//! file, line and column. A way that cannot be taken is removed together with its location. This is
//! exact for the module that is loaded, including the kernel crate's generic code with the driver's
//! types.
//!
//! It does not know how the module is built.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind};

/// Files, or places in files, that may appear, each with the reason why no panic starts there. None
/// belongs to the driver.
const RULED_OUT: &[(&str, &str)] = &[
    (
        "rust/kernel/alloc/kvec.rs",
        "a vector has no more elements than capacity, and less capacity than half of all addresses",
    ),
    (
        "rust/kernel/time.rs",
        "instants lie between 0 and KTIME_MAX, by the invariant of their type",
    ),
    (
        "library/core/src/slice/iter.rs",
        "a chunk is not longer than its slice",
    ),
    (
        "library/core/src/slice/mod.rs",
        "a binary search stays within its slice; what a caller does wrong is told as the caller's",
    ),
    (
        "library/core/src/str/iter.rs",
        "an iterator stays within its text",
    ),
    (
        "library/core/src/str/pattern.rs",
        "a search stays within its text",
    ),
    (
        // The line is that of Debian's compiler. The file defines all arithmetic of integers.
        "library/core/src/num/mod.rs:1498:1",
        "a number that is read from a text in base ten is checked digit by digit",
    ),
    (
        "library/core/src/ffi/c_str.rs",
        "no string fills all of the addresses",
    ),
];

/// A place in the sources where a panic may start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Fails if the module can panic, and names the places.
pub(crate) fn check(module: &Path) -> Result<()> {
    let bytes = fs::read(module).with_context(|| format!("reading {}", module.display()))?;
    let places = places(&bytes).with_context(|| format!("reading {}", module.display()))?;
    let found: Vec<String> = places
        .iter()
        .filter(|place| !is_ruled_out(place))
        .map(|place| format!("  {place}"))
        .collect();
    if !found.is_empty() {
        bail!(
            "the driver may panic: arithmetic, an index or an unwrap that the compiler cannot \
             prove to be right:\n{}",
            found.join("\n")
        );
    }
    Ok(())
}

fn is_ruled_out(place: &Place) -> bool {
    let full = place.to_string();
    RULED_OUT
        .iter()
        .any(|(text, _)| place.file.ends_with(text) || full.ends_with(text))
}

/// All places in an unlinked module.
fn places(bytes: &[u8]) -> Result<BTreeSet<Place>> {
    let module = object::File::parse(bytes)?;
    let mut places = BTreeSet::new();
    for section in module.sections() {
        if !matches!(
            section.kind(),
            SectionKind::ReadOnlyData | SectionKind::ReadOnlyDataWithRel | SectionKind::Data
        ) {
            continue;
        }
        let data = section.data()?;
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else {
                continue;
            };
            let symbol = module.symbol_by_index(symbol)?;
            let Some(target) = symbol.section_index() else {
                continue;
            };
            let text = module.section_by_index(target)?.data()?;
            let start = symbol.address().checked_add_signed(relocation.addend());
            places.extend(start.and_then(|start| location(data, offset, text, start)));
        }
    }
    let panics = module.symbols().any(|symbol| {
        let is_panic = |name: &str| name.contains("4core9panicking");
        symbol.is_undefined() && symbol.name().is_ok_and(is_panic)
    });
    // Otherwise nothing was checked: the compiler uses another layout for its locations.
    ensure!(
        !panics || !places.is_empty(),
        "it can panic, but where cannot be told"
    );
    Ok(places)
}

/// The location at an offset of a section, whose file name begins at `start` in `text`; `None` if
/// the bytes are something else.
fn location(data: &[u8], offset: u64, text: &[u8], start: u64) -> Option<Place> {
    let at = usize::try_from(offset).ok()?;
    let start = usize::try_from(start).ok()?;
    let rest = data.get(at.checked_add(8)?..)?;
    let length = u64::from_le_bytes(*rest.first_chunk()?);
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    let file = std::str::from_utf8(text.get(start..end)?).ok()?;
    let number = |at: usize| Some(u32::from_le_bytes(*rest.get(at..)?.first_chunk()?));
    let (line, column) = (number(8)?, number(12)?);
    // Lines and columns count from one. Other records may also contain file names.
    let is_location = file.ends_with(".rs") && line > 0 && column > 0;
    is_location.then(|| Place {
        file: file.to_owned(),
        line,
        column,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of 24 bytes as the compiler lays it out: address, length, line, column.
    fn record(length: u64, line: u32, column: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        bytes.extend(length.to_le_bytes());
        bytes.extend(line.to_le_bytes());
        bytes.extend(column.to_le_bytes());
        bytes
    }

    #[test]
    fn a_location_is_read_where_it_lies_and_nothing_else_is_one() {
        let text = b"xxguest-driver/file.rsattempt to subtract with overflow";
        let place = |length| location(&record(length, 184, 27), 0, text, 2);
        let found = place(20).unwrap();
        assert_eq!(found.to_string(), "guest-driver/file.rs:184:27");
        assert!(!is_ruled_out(&found));
        assert_eq!(place(19), None, "it ends otherwise");
        let other = location(&record(20, 96, 0), 0, text, 2);
        assert_eq!(other, None, "columns count from one");
        assert_eq!(place(u64::MAX), None, "there is not so much text");
        assert_eq!(location(&record(20, 1, 1), 4, text, 2), None, "it is cut");
    }

    #[test]
    fn what_is_ruled_out_are_files_of_others_or_single_places_in_them() {
        let place = |file: &str, line| Place {
            file: file.to_owned(),
            line,
            column: 1,
        };
        assert!(is_ruled_out(&place(
            "/build/tree/rust/kernel/alloc/kvec.rs",
            7
        )));
        assert!(is_ruled_out(&place("library/core/src/num/mod.rs", 1498)));
        assert!(!is_ruled_out(&place("library/core/src/num/mod.rs", 1214)));
        assert!(!is_ruled_out(&place("library/core/src/cmp.rs", 1031)));
        for (file, _) in RULED_OUT {
            assert!(!file.contains("guest-driver"), "{file}");
        }
    }
}
