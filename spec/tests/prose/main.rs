//! The documents and the crate agree, or a test fails and names the line.
//!
//! `document.rs` parses the text. `interface.rs` and `examples.rs` state what the crate defines,
//! and `census.rs` ensures that they are complete. `compare.rs` finds the differences. `duties.rs`
//! ensures that each duty is cited. The tests here also change the text in memory, to show that no
//! change goes unnoticed.

mod census;
mod compare;
mod document;
mod duties;
mod examples;
mod interface;

use census::Census;
use compare::{differences, Difference};
use document::Document;
use interface::Interface;
use std::collections::BTreeSet;

const DEVICE: (&str, &str) = ("virtio-hmm.md", include_str!("../../virtio-hmm.md"));
const UAPI: (&str, &str) = ("uapi.md", include_str!("../../uapi.md"));

/// The differences between two texts and the crate.
fn differences_of(device: &str, uapi: &str) -> Vec<Difference> {
    let documents = [
        Document::parse(DEVICE.0, device),
        Document::parse(UAPI.0, uapi),
    ];
    differences(&documents, &Interface::of_the_crate(), &examples::all())
}

fn sentences(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(ToString::to_string).collect()
}

#[test]
fn the_documents_say_what_the_code_says() {
    let differences = sentences(&differences_of(DEVICE.1, UAPI.1));
    assert!(differences.is_empty(), "\n{}\n", differences.join("\n"));
}

#[test]
fn the_comparison_leaves_out_nothing_that_the_source_defines() {
    let census = Census::of_the_source();
    let interface = Interface::of_the_crate();

    let structures: BTreeSet<_> = interface
        .structures
        .iter()
        .map(|s| s.name.to_owned())
        .collect();
    assert_eq!(structures, census.structures);

    let enumerations: BTreeSet<_> = interface
        .enumerations
        .iter()
        .map(|set| set.name.to_owned())
        .collect();
    assert_eq!(enumerations, census.enumerations);

    let constants: BTreeSet<_> = interface
        .constants
        .iter()
        .flat_map(|set| {
            set.values
                .iter()
                .map(|&(name, _)| (set.name.to_owned(), name.to_owned()))
        })
        .collect();
    assert_eq!(constants, census.constants);

    let errors: Vec<_> = interface
        .errors
        .values
        .iter()
        .map(|&(name, _)| name)
        .collect();
    assert_eq!(errors, census.errors);
}

/// Replaces the first `from` after `after`; the text must contain it.
fn changed(text: &str, after: &str, from: &str, to: &str) -> String {
    let start = text
        .find(after)
        .unwrap_or_else(|| panic!("{after} is not in the text"));
    let at = text[start..]
        .find(from)
        .unwrap_or_else(|| panic!("{from} is not in the text"));
    let (head, tail) = text.split_at(start + at);
    format!("{head}{to}{}", &tail[from.len()..])
}

#[test]
fn each_kind_of_difference_is_reported_in_a_sentence() {
    let struct_map = "struct MapEntry {";
    for (after, from, to, sentence) in [
        (
            struct_map,
            "/* 16:",
            "/* 20:",
            "MapEntry.pages is at offset 20 here, at 16 in the code",
        ),
        (
            struct_map,
            "24 bytes",
            "32 bytes",
            "MapEntry has 32 bytes here, 24 in the code",
        ),
        (
            struct_map,
            "le64 frame",
            "le64 page",
            "MapEntry.page is MapEntry.frame in the code",
        ),
        (
            struct_map,
            "le16 order",
            "le32 order",
            "MapEntry.order is 1 × le32 here, 1 × le16 in the code",
        ),
        (
            "struct JobReply {",
            "values[4]",
            "values[5]",
            "JobReply.values is 5 × le64 here, 4 × le64",
        ),
        (
            "struct JobRequest {",
            "struct JobDescriptor descriptor;",
            "le64 descriptor;",
            "JobRequest.descriptor is 1 × le64 here",
        ),
        (
            struct_map,
            "struct MapEntry",
            "struct MappingEntry",
            "the code has no structure MappingEntry",
        ),
        (
            struct_map,
            "struct MapEntry",
            "struct MappingEntry",
            "the structure MapEntry is nowhere described",
        ),
        (
            struct_map,
            "struct MapEntry",
            "struct RangeEntry",
            "the structure RangeEntry is here for the second time",
        ),
        (
            "struct AnswerEntry {",
            "        le32 action;            /* 8: an Action */\n",
            "",
            "AnswerEntry.reason is missing here",
        ),
        (
            "struct AnswerEntry {",
            "};",
            "        le64 more; /* 16 */\n};",
            "AnswerEntry has no further field more in the code",
        ),
        (
            "struct AnswerEntry {",
            "le32 action;",
            "le32 action",
            "is not a field",
        ),
        (
            "struct AnswerEntry {",
            "}; /* 16 bytes */",
            "",
            "this listing ends before its structure does",
        ),
        (
            "| `Status` |",
            "| `BadFrame` | 8 |",
            "| `BadFrame` | 9 |",
            "Status has BadFrame = 9 here, BadFrame = 8 in the code",
        ),
        (
            "| `Status` |",
            "| `BadRights` | 9 |",
            "| `BadRight` | 9 |",
            "Status has BadRight = 9 here, BadRights = 9 in the code",
        ),
        (
            "| `rights` |",
            "| `ALL` | 0x7 |",
            "| `EXECUTE` | 0x8 | |\n| `ALL` | 0x7 |",
            "rights has EXECUTE = 8 here, ALL = 7 in the code",
        ),
        (
            "| `Kind` |",
            "| `Discard` | 5 |",
            "| `Discard` | five |",
            "this row does not give a name and a number",
        ),
        (
            "| `query_flags` |",
            "| `query_flags` |",
            "| `look_flags` |",
            "the code has no set of values look_flags",
        ),
        (
            "| `query_flags` |",
            "| `query_flags` |",
            "| flags |",
            "the set of values query_flags is nowhere described",
        ),
        (
            "operation Gemm",
            "= 10",
            "= 11",
            "Gemm has code 11 here, 10 in the code",
        ),
        (
            "operation Gemm",
            "u64 m;",
            "u64 n;",
            "argument u64 n of Gemm is u64 m in the code",
        ),
        (
            "operation Gemm",
            "f32 alpha",
            "f64 alpha",
            "argument f64 alpha of Gemm is f32 alpha in the code",
        ),
        (
            "operation Gemm",
            "        f32 beta;\n",
            "",
            "Gemm has 10 arguments here, 11 in the code",
        ),
        (
            "operation Gemm",
            "operation Gemm",
            "operation Gem",
            "the code has no operation Gem",
        ),
        (
            "```hex map-request",
            "45 23 01",
            "45 23 02",
            "byte 26 of map-request is 02 here, 01 as encoded",
        ),
        (
            "```hex map-request",
            "01 00 00 00 00 00 03 00   one page",
            "one page",
            "`one` is not a byte",
        ),
        (
            "```hex ok-reply",
            "00 00 00 00 00 00 00 00",
            "00 00 00 00",
            "ok-reply has 4 bytes here, 8 as encoded",
        ),
        (
            "```hex ok-reply",
            "ok-reply",
            "good-reply",
            "no test encodes the example good-reply",
        ),
        (
            "```hex ok-reply",
            "```hex ok-reply",
            "```rust",
            "this block is neither a listing nor an example",
        ),
        (
            "## Limits",
            "`Config.max_items`",
            "`Config.max_things`",
            "the code knows nothing of Config.max_things",
        ),
        (
            "## Security",
            "(#limits)",
            "(#limit)",
            "there is no section #limit",
        ),
        (
            "{drv-magic}",
            "{drv-magic}",
            "",
            "this duty does not end with a label {drv-…}",
        ),
        (
            "{drv-magic}",
            "{drv-magic}",
            "{dev-magic}",
            "this duty does not end with a label {drv-…}",
        ),
        (
            "{drv-magic}",
            "{drv-version}",
            "{drv-magic}",
            "the label drv-magic is here for the second time",
        ),
        (
            "## Reset",
            "- The device SHOULD keep",
            "- It SHOULD keep",
            "this duty does not begin with “The device MUST”",
        ),
        (
            "## Reset",
            "pause of the guest.",
            "pause of the guest and MAY drop it.",
            "this is more than one duty",
        ),
        (
            "## Reset",
            "pause of the guest.",
            "pause of the guest. Or not.",
            "this duty is not one sentence",
        ),
        (
            "## Reset",
            "holds still until then",
            "MUST hold still until then",
            "this is a duty, but not in a list of requirements",
        ),
    ] {
        let found = sentences(&differences_of(&changed(DEVICE.1, after, from, to), UAPI.1));
        assert!(
            found.iter().any(|found| found.contains(sentence)),
            "{from} → {to} should be reported as “{sentence}”, but:\n{}",
            found.join("\n"),
        );
    }
    for (after, from, to, sentence) in [
        (
            "| `Call` |",
            "0xc008d601",
            "0xc010d601",
            "Bind has request code 0xc010d601 here, 0xc008d601 in the code",
        ),
        (
            "| `Call` |",
            "| `Wait` | 3 |",
            "| `Wait` | 4 |",
            "Call has Wait = 4 here, Wait = 3 in the code",
        ),
        (
            "| `errno` |",
            "| `ETIME` | 62 |",
            "| `ETIME` | 110 |",
            "errno has ETIME = 110 here, ETIME = 62 in the code",
        ),
        (
            "struct Wait {",
            "i64 deadline",
            "u64 deadline",
            "Wait.deadline is 1 × u64 here, 1 × i64 in the code",
        ),
    ] {
        let found = sentences(&differences_of(DEVICE.1, &changed(UAPI.1, after, from, to)));
        assert!(
            found.iter().any(|found| found.contains(sentence)),
            "{sentence}: {found:?}"
        );
    }
}

#[test]
fn a_difference_names_the_line_of_the_text() {
    let change = "le64 frame;             /* 9:";
    let text = changed(
        DEVICE.1,
        "struct MapEntry",
        "le64 frame;             /* 8:",
        change,
    );
    let line = 1 + text
        .lines()
        .position(|line| line.contains(change))
        .expect("the changed line");
    let found = differences_of(&text, UAPI.1);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].file.as_str(), found[0].line), (DEVICE.0, line));
}

/// The numbers of the lines, counted from zero, that the comparison covers: those within blocks,
/// and the rows of tables that give values.
fn compared_lines(text: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let (mut in_block, mut in_table) = (false, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block && !line.is_empty() {
            lines.push(number);
        } else if line.starts_with("| `") {
            // The first row of a table is its head, which has a test of its own.
            if in_table {
                lines.push(number);
            }
            in_table = true;
        } else if !line.starts_with("| ---") {
            in_table = false;
        }
    }
    lines
}

/// Asserts that each compared line of the text is missed when `change` has replaced it by other
/// lines, while the `other` document stays unchanged.
fn assert_each_change_is_seen(
    (file, text): (&str, &str),
    other: (&str, &str),
    change: impl Fn(&str) -> Option<Vec<String>>,
) {
    let (interface, examples) = (Interface::of_the_crate(), examples::all());
    // Section by section: only the changed section has to be parsed again.
    let sections: Vec<String> = text
        .split("\n## ")
        .map(|section| format!("## {section}"))
        .collect();
    let mut documents: Vec<Document> = sections
        .iter()
        .map(|section| Document::parse(file, section))
        .collect();
    documents.push(Document::parse(other.0, other.1));
    assert!(differences(&documents, &interface, &examples).is_empty());

    let mut changes = 0;
    for (index, section) in sections.iter().enumerate() {
        let lines: Vec<&str> = section.lines().collect();
        for number in compared_lines(section) {
            let line = lines[number];
            let Some(replacement) = change(line) else {
                continue;
            };
            let mut changed = lines.clone();
            changed.splice(number..=number, replacement.iter().map(String::as_str));
            let changed = Document::parse(file, &changed.join("\n"));
            let unchanged = std::mem::replace(&mut documents[index], changed);
            let found = differences(&documents, &interface, &examples);
            assert!(
                !found.is_empty(),
                "nobody would see that “{line}” became {replacement:?}"
            );
            documents[index] = unchanged;
            changes += 1;
        }
    }
    assert!(changes > 50, "only {changes} lines were changed");
}

#[test]
fn no_line_of_a_listing_a_table_or_an_example_can_go_missing_unseen() {
    assert_each_change_is_seen(DEVICE, UAPI, |_| Some(Vec::new()));
    assert_each_change_is_seen(UAPI, DEVICE, |_| Some(Vec::new()));
}

#[test]
fn no_line_of_a_listing_a_table_or_an_example_can_stand_there_twice_unseen() {
    let twice = |line: &str| Some(vec![line.to_owned(), line.to_owned()]);
    assert_each_change_is_seen(DEVICE, UAPI, twice);
    assert_each_change_is_seen(UAPI, DEVICE, twice);
}

#[test]
fn no_first_number_of_such_a_line_can_change_unseen() {
    let altered = |line: &str| first_number_altered(line).map(|altered| vec![altered]);
    assert_each_change_is_seen(DEVICE, UAPI, altered);
    assert_each_change_is_seen(UAPI, DEVICE, altered);
}

/// The line with a different digit in its first relevant number: not part of a name, and not in the
/// explanation of an argument.
fn first_number_altered(line: &str) -> Option<String> {
    let start = if line.trim_start().starts_with('|') {
        line.match_indices('|').nth(1)?.0
    } else {
        line.find("/*").or_else(|| line.find(" = ")).unwrap_or(0)
    };
    let is_argument = line.contains(';') && !line.contains("bytes */") && {
        let comment = line.get(start + 2..)?.trim_start();
        !comment.starts_with(|c: char| c.is_ascii_digit())
    };
    if is_argument {
        return None;
    }
    let digits = line[start..].find(|c: char| c.is_ascii_digit())? + start;
    let last = line[digits..]
        .find(|c: char| !c.is_ascii_hexdigit() && c != 'x')
        .map_or(line.len(), |length| digits + length)
        - 1;
    let altered = if line.as_bytes()[last] == b'1' {
        '2'
    } else {
        '1'
    };
    Some(format!("{}{altered}{}", &line[..last], &line[last + 1..]))
}
