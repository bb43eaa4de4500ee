//! Each duty is cited in the code that does it, and in a test that would fail without it.
//!
//! A citation is the duty's label in braces, in a comment. Code counts if it belongs to the party
//! that owes the duty: the daemon for the device, the guest's driver for the driver. A citation
//! elsewhere only says that this code relies on the duty. People judge whether the code does its
//! duty, and whether the test would notice; this test ensures that there is something to judge.
//!
//! A duty that lacks one of both is in the table of `exceptions`, with the reason.

mod exceptions;

use crate::document::{Document, Party};
use crate::{DEVICE, UAPI};
use exceptions::EXCEPTIONS;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

/// The folders whose files may cite duties, relative to the repository's root.
const SOURCES: [&str; 7] = [
    "bench",
    "guest",
    "guest-driver",
    "tests",
    "vhost-device-hmm",
    "vm",
    "xtask",
];

/// A duty that lacks a citation, and why.
pub(crate) struct Exception {
    pub(crate) label: &'static str,
    pub(crate) lacks: Lacks,
    pub(crate) reason: &'static str,
}

/// The citation that a duty lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    Code,
    Test,
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code => "code",
            Self::Test => "test",
        })
    }
}

/// The kind of a source file, or of a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device,
    Driver,
    Test,
    /// Code that owes no duty.
    Other,
}

/// A label in a comment.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    place: String,
    label: String,
    kind: Kind,
    /// It concerns a whole file.
    is_general: bool,
}

/// The kind of a file by its path from the repository's root.
fn kind_of(path: &str) -> Kind {
    let is_tests = |part: &str| part == "tests" || part == "tests.rs";
    if path.split('/').any(is_tests) {
        Kind::Test
    } else if path.starts_with("vhost-device-hmm/src/") {
        Kind::Device
    } else if path.starts_with("guest-driver/") {
        Kind::Driver
    } else {
        Kind::Other
    }
}

/// For each line whether it is compiled only for tests. In formatted code an item ends with a brace
/// below the item's first letter.
fn lines_of_tests(text: &str) -> Vec<bool> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    let (mut announced, mut end) = (false, None);
    for line in text.lines() {
        let trimmed = line.trim();
        announced |= end.is_none() && trimmed == "#[cfg(test)]";
        found.push(announced || end.is_some());
        if end.is_some_and(|end| trimmed == "}" && indent(line) == end) {
            end = None;
        } else if announced && !trimmed.starts_with("#[") && !trimmed.starts_with("//") {
            announced = false;
            end = trimmed.ends_with('{').then(|| indent(line));
        }
    }
    found
}

/// The comment of each line.
fn comments(text: &str) -> Vec<&str> {
    let mut is_inside = false;
    let mut found = Vec::new();
    for line in text.lines() {
        let begins = |mark: &str| {
            let mut places = line.match_indices(mark).map(|(at, _)| at);
            // Not in the middle of an address.
            places.find(|&at| {
                line[..at]
                    .chars()
                    .next_back()
                    .is_none_or(char::is_whitespace)
            })
        };
        let start = if is_inside {
            Some(0)
        } else {
            begins("//").or_else(|| begins("/*"))
        };
        let comment = start.map_or("", |start| &line[start..]);
        is_inside = (is_inside || comment.starts_with("/*")) && !comment.contains("*/");
        found.push(comment);
    }
    found
}

/// The labels that a text cites in its comments.
fn citations(path: &str, text: &str) -> Vec<Citation> {
    let whole = kind_of(path);
    let mut found = Vec::new();
    let lines = comments(text).into_iter().zip(lines_of_tests(text));
    for (number, (comment, is_test)) in (1..).zip(lines) {
        for opening in ["{dev-", "{drv-"] {
            for (at, _) in comment.match_indices(opening) {
                let rest = &comment[at + 1..];
                found.push(Citation {
                    place: format!("{path}:{number}"),
                    label: rest.split('}').next().unwrap_or(rest).to_owned(),
                    kind: if is_test { Kind::Test } else { whole },
                    is_general: comment.starts_with("//!"),
                });
            }
        }
    }
    found
}

/// The errors in duties and their citations, one sentence each.
fn complaints(
    duties: &BTreeMap<String, Party>,
    citations: &[Citation],
    exceptions: &[Exception],
) -> Vec<String> {
    let mut found = Vec::new();
    for citation in citations {
        let Citation { place, label, .. } = citation;
        if !duties.contains_key(label) {
            found.push(format!("{place} cites {label}, which is no duty"));
        } else if citation.is_general && citation.kind != Kind::Other {
            found.push(format!(
                "{place} cites {label} for a whole file: a citation stands at what does the duty, \
                 or tests it"
            ));
        }
    }
    let mut seen = BTreeSet::new();
    for Exception { label, reason, .. } in exceptions {
        if !duties.contains_key(*label) {
            found.push(format!("the exception {label} is no duty"));
        }
        if reason.is_empty() {
            found.push(format!("the exception {label} has no reason"));
        }
    }
    for exception in exceptions {
        let lacks = exception.lacks.to_string();
        if !seen.insert((exception.label, lacks.clone())) {
            found.push(format!(
                "{} is an exception for want of {lacks} twice",
                exception.label
            ));
        }
    }
    for (label, party) in duties {
        let code = match party {
            Party::Device => Kind::Device,
            Party::Driver => Kind::Driver,
        };
        for (lacks, kind) in [(Lacks::Code, code), (Lacks::Test, Kind::Test)] {
            let cited = citations
                .iter()
                .find(|citation| citation.label == *label && citation.kind == kind);
            let is_exception = exceptions
                .iter()
                .any(|exception| exception.label == label && exception.lacks == lacks);
            match cited {
                None if !is_exception => {
                    found.push(format!(
                        "no {lacks} cites {label}, and no exception says why"
                    ));
                }
                Some(Citation { place, .. }) if is_exception => found.push(format!(
                    "{label} is an exception for want of {lacks}, but {place} cites it"
                )),
                _ => {}
            }
        }
    }
    found
}

/// The party that owes each duty of the documents, by label.
fn duties_of_the_documents() -> BTreeMap<String, Party> {
    let documents = [DEVICE, UAPI].map(|(file, text)| Document::parse(file, text));
    let duties = documents.into_iter().flat_map(|document| document.duties);
    duties
        .filter_map(|duty| Some((duty.label()?.to_owned(), duty.party)))
        .collect()
}

/// All citations below a folder, whose path is relative to the repository's root.
fn citations_below(root: &Path, path: &str, found: &mut Vec<Citation>) {
    let folder = root.join(path);
    for entry in fs::read_dir(folder).expect("a folder of sources can be read") {
        let entry = entry.expect("a folder of sources can be read").path();
        let name = entry.file_name().and_then(|name| name.to_str());
        let path = format!("{path}/{}", name.expect("a source file has a plain name"));
        if entry.is_dir() {
            citations_below(root, &path, found);
        } else if ["rs", "c", "h"]
            .iter()
            .any(|kind| path.ends_with(&format!(".{kind}")))
        {
            let text = fs::read_to_string(&entry).expect("a source file can be read");
            found.extend(citations(&path, &text));
        }
    }
}

#[test]
fn each_duty_is_cited_where_it_is_done_and_where_it_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut citations = Vec::new();
    for folder in SOURCES {
        citations_below(&root, folder, &mut citations);
    }
    let duties = duties_of_the_documents();
    assert!(duties.len() > 100, "there are {} duties", duties.len());
    let found = complaints(&duties, &citations, EXCEPTIONS);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// The errors in planted sources, where the device owes `dev-answer` and the driver `drv-ask`.
fn said_of(sources: &[(&str, &str)], exceptions: &[Exception]) -> Vec<String> {
    let duties = [("dev-answer", Party::Device), ("drv-ask", Party::Driver)];
    let duties = duties.map(|(label, party)| (label.to_owned(), party));
    let citations: Vec<_> = sources
        .iter()
        .flat_map(|(path, text)| citations(path, text))
        .collect();
    complaints(&duties.into(), &citations, exceptions)
}

const DAEMON: (&str, &str) = (
    "vhost-device-hmm/src/queue.rs",
    "/// Answers. {dev-answer}\nfn answer() {}\n",
);
const SHIM: (&str, &str) = (
    "guest-driver/shim.c",
    "/*\n * Asks, see {drv-ask}.\n */\nvoid ask(void);\n",
);
const TESTS: (&str, &str) = (
    "tests/tests/vm/order.rs",
    "#[test]\nfn asks() {\n    ask(); // {drv-ask}, {dev-answer}\n}\n",
);

#[test]
fn duties_that_are_cited_twice_are_no_reason_to_complain() {
    assert_eq!(said_of(&[DAEMON, SHIM, TESTS], &[]), Vec::<String>::new());
}

#[test]
fn a_duty_that_lacks_something_is_named() {
    let lacks = |sources: &[_]| said_of(sources, &[]);
    let code = "no code cites dev-answer, and no exception says why";
    assert_eq!(lacks(&[SHIM, TESTS]), [code]);
    // The driver does not do it, though it may state that it relies on it.
    let driver = ("guest-driver/queue.rs", DAEMON.1);
    assert_eq!(lacks(&[SHIM, TESTS, driver]), [code]);
    let bench = ("vhost-device-hmm/benches/device/dma.rs", DAEMON.1);
    assert_eq!(lacks(&[SHIM, TESTS, bench]), [code]);
    assert_eq!(
        lacks(&[DAEMON, SHIM]),
        ["dev-answer", "drv-ask"]
            .map(|label| format!("no test cites {label}, and no exception says why"))
    );
    // A label outside of a comment is no citation.
    let text = (
        "tests/contract/src/row.rs",
        "const LABEL: &str = \"{drv-ask}\";\n",
    );
    assert_eq!(lacks(&[DAEMON, SHIM, text]).len(), 2);
}

#[test]
fn tests_are_where_they_are_compiled_for_tests_alone() {
    let module = (
        "vhost-device-hmm/src/queue.rs",
        "/// {dev-answer}\nfn answer() {}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    \
         fn answers() {\n        // {dev-answer}\n    }\n\n    // {drv-ask}\n}\n",
    );
    assert_eq!(said_of(&[module, SHIM], &[]), Vec::<String>::new());
    let behind = (
        "vhost-device-hmm/src/queue.rs",
        "#[cfg(test)]\nuse super::*;\n\n#[cfg(test)]\nmod tests {\n}\n\n/// {dev-answer}\n\
         fn answer() {}\n",
    );
    assert_eq!(said_of(&[behind, SHIM, TESTS], &[]), Vec::<String>::new());
    for path in [
        "vhost-device-hmm/tests/jobs.rs",
        "vhost-device-hmm/src/device/view/tests.rs",
        "vhost-device-hmm/src/device/operations/tests/bytes.rs",
        "tests/contract/src/rows/order.rs",
    ] {
        assert_eq!(kind_of(path), Kind::Test, "{path}");
    }
}

#[test]
fn a_citation_of_nothing_or_of_a_whole_file_is_told_with_its_line() {
    let missing = (
        "guest-driver/late.c",
        "int late; // see https://{drv-ask} or {drv-ask-twice}\n",
    );
    let general = ("guest-driver/job.rs", "//! Jobs.\n//! {drv-ask}\n");
    assert_eq!(
        said_of(&[DAEMON, SHIM, TESTS, missing, general], &[]),
        [
            "guest-driver/late.c:1 cites drv-ask-twice, which is no duty".to_owned(),
            "guest-driver/job.rs:2 cites drv-ask for a whole file: a citation stands at what \
             does the duty, or tests it"
                .to_owned(),
        ]
    );
}

#[test]
fn an_exception_needs_a_duty_a_want_and_a_reason() {
    let exception = |label, lacks, reason| Exception {
        label,
        lacks,
        reason,
    };
    let wanted = [exception("dev-answer", Lacks::Code, "nobody asks")];
    assert_eq!(said_of(&[SHIM, TESTS], &wanted), Vec::<String>::new());
    assert_eq!(
        said_of(&[DAEMON, SHIM, TESTS], &wanted),
        [
            "dev-answer is an exception for want of code, but vhost-device-hmm/src/queue.rs:1 \
             cites it"
        ]
    );
    let wrong = [
        exception("drv-ask", Lacks::Test, ""),
        exception("drv-ask", Lacks::Test, "nobody asks"),
        exception("drv-beg", Lacks::Code, "nobody begs"),
    ];
    let test = ("tests/contract/src/main.rs", "// {dev-answer}\n");
    assert_eq!(
        said_of(&[DAEMON, SHIM, test], &wrong),
        [
            "the exception drv-ask has no reason",
            "the exception drv-beg is no duty",
            "drv-ask is an exception for want of test twice",
        ]
    );
}
