//! Compares the documents with the crate and reports differences.

use crate::document::{Document, Field, Operation, Party, Row, Set, Structure};
use crate::interface::{self, listed_type, Interface};
use std::collections::BTreeMap;
use std::fmt;

/// One difference between a document and the crate.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}: {}", self.file, self.line, self.what)
    }
}

/// Names in code style that the crate does not define.
const OTHER_NAMES: &[&str] = &[
    "/dev/hmm0",
    "/dev/hmm15",
    "/dev/hmmN",
    "/dev/hmm_dmirror0",
    "/dev/hmm_dmirrorN",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "CLOCK_MONOTONIC",
    "EHWPOISON",
    "EOPNOTSUPP",
    "EPOLLET",
    "MAP_PRIVATE",
    "POLLERR",
    "POLLHUP",
    "POLLIN",
    "POLLRDNORM",
    "SA_RESTART",
    "_IOWR('H', number, struct hmm_dmirror_cmd)",
    "_IOWR(IOCTL_TYPE, number, structure)",
    "clock_gettime",
    "epoll",
    "f32",
    "f64",
    "fork",
    "le16",
    "le32",
    "dmirror=1",
    "le64",
    "lib/test_hmm_uapi.h",
    "mprotect",
    "poll",
    "process_share",
    "select",
    "test_hmm",
    "tools/testing/selftests/mm/hmm-tests.c",
    "u64",
    "user_share",
    "vhmm",
    "virtio_hmm/late",
    ";",
    "us",
    "ms",
    "s",
    "seed",
    "delay=TIME[..TIME]@POINT[,every=N][,count=N][,probability=P][,seed=N]",
    "kick-control",
    "kick-dma",
    "kick-submit",
    "kick-fault",
    "install",
    "lock",
    "collected",
    "copied",
    "change-begins",
    "change-ends",
    "lost",
    "split",
];

/// The words of RFC 2119 that the documents use.
const DUTY_WORDS: &[&str] = &["MUST NOT", "MUST", "SHOULD NOT", "SHOULD", "MAY"];

/// Every difference between the documents, taken together, and the crate.
pub(crate) fn differences(
    documents: &[Document],
    interface: &Interface,
    examples: &[(&str, Vec<u8>)],
) -> Vec<Difference> {
    let mut report = Report {
        file: String::new(),
        found: Vec::new(),
    };
    for document in documents {
        report.file.clone_from(&document.file);
        report.found.extend(document.unreadable.iter().cloned());
        for listed in &document.structures {
            structure(&mut report, listed, interface);
        }
        for listed in &document.operations {
            operation(&mut report, listed, interface);
        }
        for listed in &document.sets {
            set(&mut report, listed, interface);
        }
        bytes(&mut report, document, examples);
        names(&mut report, document, interface);
        links(&mut report, document, documents);
        duties(&mut report, document);
    }
    everything_once(&mut report, documents, interface, examples);
    report.found
}

/// The differences found so far, and the document that is being read.
struct Report {
    file: String,
    found: Vec<Difference>,
}

impl Report {
    fn say(&mut self, line: usize, what: String) {
        self.found.push(Difference {
            file: self.file.clone(),
            line,
            what,
        });
    }
}

fn structure(report: &mut Report, listed: &Structure, interface: &Interface) {
    let name = &listed.name;
    let Some(defined) = interface
        .structures
        .iter()
        .find(|defined| defined.name == name)
    else {
        return report.say(listed.line, format!("the code has no structure {name}"));
    };
    if listed.size != defined.size {
        let (here, there) = (listed.size, defined.size);
        report.say(
            listed.line,
            format!("{name} has {here} bytes here, {there} in the code"),
        );
    }
    for (listed, defined) in listed.fields.iter().zip(defined.fields) {
        field(report, name, listed, defined);
    }
    for listed in listed.fields.iter().skip(defined.fields.len()) {
        report.say(
            listed.line,
            format!("{name} has no further field {} in the code", listed.name),
        );
    }
    for missing in defined.fields.iter().skip(listed.fields.len()) {
        report.say(
            listed.line,
            format!("{name}.{} is missing here", missing.name),
        );
    }
}

fn field(
    report: &mut Report,
    structure: &str,
    listed: &Field,
    defined: &virtio_hmm_spec::wire::Field,
) {
    let (line, name) = (listed.line, format!("{structure}.{}", listed.name));
    if listed.name != defined.name {
        report.say(
            line,
            format!("{name} is {structure}.{} in the code", defined.name),
        );
    }
    if listed.offset != defined.offset {
        let (here, there) = (listed.offset, defined.offset);
        report.say(
            line,
            format!("{name} is at offset {here} here, at {there} in the code"),
        );
    }
    let (type_name, count) = listed_type(defined);
    if (&listed.type_name, listed.count) != (&type_name, count) {
        let (here, many) = (&listed.type_name, listed.count);
        report.say(
            line,
            format!("{name} is {many} × {here} here, {count} × {type_name} in the code"),
        );
    }
}

fn operation(report: &mut Report, listed: &Operation, interface: &Interface) {
    let name = &listed.name;
    let Some(defined) = interface
        .operations
        .iter()
        .find(|defined| defined.name == name)
    else {
        return report.say(listed.line, format!("the code has no operation {name}"));
    };
    if listed.code != u64::from(defined.code) {
        let (here, there) = (listed.code, defined.code);
        report.say(
            listed.line,
            format!("{name} has code {here} here, {there} in the code"),
        );
    }
    for ((line, argument, type_name), defined) in listed.arguments.iter().zip(defined.arguments) {
        if (argument.as_str(), type_name.as_str()) != *defined {
            let (there, type_there) = defined;
            report.say(
                *line,
                format!(
                    "argument {type_name} {argument} of {name} is {type_there} {there} in the code"
                ),
            );
        }
    }
    let (here, there) = (listed.arguments.len(), defined.arguments.len());
    if here != there {
        report.say(
            listed.line,
            format!("{name} has {here} arguments here, {there} in the code"),
        );
    }
}

fn set(report: &mut Report, listed: &Set, interface: &Interface) {
    let name = &listed.name;
    let Some(defined) = interface.sets().find(|defined| defined.name == name) else {
        return report.say(listed.line, format!("the code has no set of values {name}"));
    };
    for (row, &(value_name, value)) in listed.rows.iter().zip(&defined.values) {
        if (row.name.as_str(), row.value) != (value_name, value) {
            let (here, number) = (&row.name, row.value);
            report.say(
                row.line,
                format!("{name} has {here} = {number} here, {value_name} = {value} in the code"),
            );
        }
    }
    for row in listed.rows.iter().skip(defined.values.len()) {
        report.say(
            row.line,
            format!("{name} has no further value {} in the code", row.name),
        );
    }
    for (missing, _) in defined.values.iter().skip(listed.rows.len()) {
        report.say(listed.line, format!("{name} lacks {missing} here"));
    }
    let mut codes = interface.request_codes.iter();
    if let Some((_, codes)) = codes.find(|(calls, _)| calls == name) {
        request_codes(report, &listed.rows, codes);
    }
}

fn request_codes(report: &mut Report, rows: &[Row], codes: &[u32]) {
    for (row, &code) in rows.iter().zip(codes) {
        if crate::document::number(&row.third) != Some(code.into()) {
            let (name, here) = (&row.name, &row.third);
            report.say(
                row.line,
                format!("{name} has request code {here} here, {code:#x} in the code"),
            );
        }
    }
}

fn bytes(report: &mut Report, document: &Document, examples: &[(&str, Vec<u8>)]) {
    for listed in &document.examples {
        let label = &listed.label;
        let Some((_, encoded)) = examples.iter().find(|(name, _)| name == label) else {
            report.say(listed.line, format!("no test encodes the example {label}"));
            continue;
        };
        if let Some(at) = listed
            .bytes
            .iter()
            .zip(encoded)
            .position(|(here, there)| here != there)
        {
            let (here, there) = (listed.bytes[at], encoded[at]);
            report.say(
                listed.lines[at],
                format!("byte {at} of {label} is {here:02x} here, {there:02x} as encoded"),
            );
        }
        if listed.bytes.len() != encoded.len() {
            let (here, there) = (listed.bytes.len(), encoded.len());
            report.say(
                listed.line,
                format!("{label} has {here} bytes here, {there} as encoded"),
            );
        }
    }
}

fn names(report: &mut Report, document: &Document, interface: &Interface) {
    for (line, name) in &document.names {
        if !interface.names.contains(name) && !OTHER_NAMES.contains(&name.as_str()) {
            report.say(*line, format!("the code knows nothing of {name}"));
        }
    }
}

/// A link leads to a section of its own file, which may consist of several documents.
fn links(report: &mut Report, document: &Document, documents: &[Document]) {
    let same_file = || documents.iter().filter(|other| other.file == document.file);
    for (line, target) in &document.links {
        if !same_file().any(|other| other.anchors.contains(target)) {
            report.say(*line, format!("there is no section #{target}"));
        }
    }
}

fn duties(report: &mut Report, document: &Document) {
    for duty in &document.duties {
        let (party, prefix) = match duty.party {
            Party::Driver => ("The driver ", "drv-"),
            Party::Device => ("The device ", "dev-"),
        };
        let (sentence, label) = duty.text.rsplit_once(" {").unwrap_or((&duty.text, ""));
        if !label.ends_with('}') || !label.starts_with(prefix) {
            report.say(
                duty.line,
                format!("this duty does not end with a label {{{prefix}…}}"),
            );
        }
        let words = sentence.strip_prefix(party).and_then(|rest| {
            DUTY_WORDS
                .iter()
                .find_map(|word| rest.strip_prefix(word)?.strip_prefix(' '))
        });
        match words {
            None => report.say(
                duty.line,
                format!("this duty does not begin with “{party}MUST”"),
            ),
            Some(rest) if has_duty_word(rest) => {
                report.say(duty.line, "this is more than one duty".to_owned());
            }
            Some(_) => {}
        }
        if !sentence.ends_with('.') || sentence.contains(". ") {
            report.say(duty.line, "this duty is not one sentence".to_owned());
        }
    }
    for (line, text) in &document.paragraphs {
        if has_duty_word(text) && !text.starts_with("The key words ") {
            report.say(
                *line,
                "this is a duty, but not in a list of requirements".to_owned(),
            );
        }
    }
}

fn has_duty_word(text: &str) -> bool {
    // Nearly every text ends here, quickly.
    if !DUTY_WORDS.iter().any(|word| text.contains(word)) {
        return false;
    }
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| DUTY_WORDS.contains(&word))
}

/// Each thing that can be described is described exactly once.
fn everything_once(
    report: &mut Report,
    documents: &[Document],
    interface: &Interface,
    examples: &[(&str, Vec<u8>)],
) {
    let mut places: BTreeMap<(&str, String), Vec<(&str, usize)>> = BTreeMap::new();
    for document in documents {
        let structures = document
            .structures
            .iter()
            .map(|s| ("structure", s.name.clone(), s.line));
        let operations = document
            .operations
            .iter()
            .map(|o| ("operation", o.name.clone(), o.line));
        let sets = document
            .sets
            .iter()
            .map(|s| ("set of values", s.name.clone(), s.line));
        let examples = document
            .examples
            .iter()
            .map(|e| ("example", e.label.clone(), e.line));
        let labels = document.duties.iter().map(|duty| {
            let label = duty.text.rsplit_once(" {").map_or("", |(_, label)| label);
            ("label", label.trim_end_matches('}').to_owned(), duty.line)
        });
        let all = structures
            .chain(operations)
            .chain(sets)
            .chain(examples)
            .chain(labels);
        for (kind, name, line) in all {
            places
                .entry((kind, name))
                .or_default()
                .push((&document.file, line));
        }
    }
    for ((kind, name), places) in &places {
        for (file, line) in places.iter().skip(1) {
            report.file = (*file).to_owned();
            report.say(
                *line,
                format!("the {kind} {name} is here for the second time"),
            );
        }
    }

    report.file = "the documents".to_owned();
    let structures = interface.structures.iter().map(|s| ("structure", s.name));
    let operations = interface.operations.iter().map(|o| ("operation", o.name));
    let sets = interface
        .sets()
        .map(|set: &interface::Set| ("set of values", set.name));
    let examples = examples.iter().map(|&(label, _)| ("example", label));
    for (kind, name) in structures.chain(operations).chain(sets).chain(examples) {
        if !places.contains_key(&(kind, name.to_owned())) {
            report.say(0, format!("the {kind} {name} is nowhere described"));
        }
    }
}
