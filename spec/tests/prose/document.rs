//! Parses what a document states about the interface: listings, tables, examples, duties.
//!
//! It knows the conventions of the text (see `README.md`), but not the crate with which it is
//! compared.

use crate::Difference;
use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// One parsed document. Lines count from one.
#[derive(Default)]
pub(crate) struct Document {
    pub(crate) file: String,
    pub(crate) structures: Vec<Structure>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) sets: Vec<Set>,
    pub(crate) examples: Vec<Example>,
    /// Every name in code style within running text.
    pub(crate) names: Vec<(usize, String)>,
    /// Targets of links to sections of this document.
    pub(crate) links: Vec<(usize, String)>,
    /// The sections' anchors.
    pub(crate) anchors: Vec<String>,
    pub(crate) duties: Vec<Duty>,
    /// Running text outside of duties, which must not contain words of duties.
    pub(crate) paragraphs: Vec<(usize, String)>,
    /// Lines that break the conventions.
    pub(crate) unreadable: Vec<Difference>,
}

/// A structure in a listing.
pub(crate) struct Structure {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
    pub(crate) size: usize,
}

/// A field in a listing.
pub(crate) struct Field {
    pub(crate) line: usize,
    pub(crate) type_name: String,
    pub(crate) name: String,
    pub(crate) count: usize,
    pub(crate) offset: usize,
}

/// An operation in a listing.
pub(crate) struct Operation {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) code: u64,
    /// Line, name and type.
    pub(crate) arguments: Vec<(usize, String, String)>,
}

/// A table that gives the values of a set.
pub(crate) struct Set {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) rows: Vec<Row>,
}

/// A row of such a table.
pub(crate) struct Row {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) value: u64,
    /// The text of the third cell.
    pub(crate) third: String,
}

/// An example in bytes.
pub(crate) struct Example {
    pub(crate) label: String,
    pub(crate) bytes: Vec<u8>,
    /// The line of each byte.
    pub(crate) lines: Vec<usize>,
    /// The first line of the block.
    pub(crate) line: usize,
}

/// The party that owes the duties of a list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Driver,
    Device,
}

/// A labelled duty.
pub(crate) struct Duty {
    pub(crate) line: usize,
    pub(crate) party: Party,
    pub(crate) text: String,
}

impl Duty {
    /// The label by which it is cited.
    pub(crate) fn label(&self) -> Option<&str> {
        self.text.rsplit_once(" {")?.1.strip_suffix('}')
    }
}

impl Document {
    /// Parses a document.
    pub(crate) fn parse(file: &str, text: &str) -> Self {
        let mut document = Self {
            file: file.to_owned(),
            ..Self::default()
        };
        let line_of = {
            let starts: Vec<usize> = std::iter::once(0)
                .chain(text.match_indices('\n').map(|(at, _)| at + 1))
                .collect();
            move |offset: usize| starts.partition_point(|&start| start <= offset)
        };

        let mut block: Option<(usize, String, String)> = None;
        let mut table: Option<Table> = None;
        let mut party: Option<Party> = None;
        let mut in_duties = false;
        let mut words: Option<(usize, String)> = None;
        let mut heading: Option<String> = None;

        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = line_of(range.start);
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some((line, info, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => {
                    if let Some((line, info, content)) = block.take() {
                        document.read_block(line, &info, &content);
                    }
                }
                Event::Start(Tag::Table(_)) => {
                    table = Some(Table {
                        line,
                        rows: Vec::new(),
                    })
                }
                Event::End(TagEnd::Table) => {
                    if let Some(table) = table.take() {
                        document.read_table(table);
                    }
                }
                Event::Start(Tag::TableHead | Tag::TableRow) => {
                    if let Some(table) = &mut table {
                        table.rows.push((line, Vec::new()));
                    }
                }
                Event::Start(Tag::TableCell) => words = Some((line, String::new())),
                Event::End(TagEnd::TableCell) => {
                    if let (Some(table), Some((line, cell))) = (&mut table, words.take()) {
                        document.paragraphs.push((line, cell.clone()));
                        if let Some((_, cells)) = table.rows.last_mut() {
                            cells.push(cell);
                        }
                    }
                }
                Event::Start(Tag::Heading { level, .. }) => {
                    party = None;
                    heading = Some(String::new());
                    debug_assert!(level <= HeadingLevel::H4);
                }
                Event::End(TagEnd::Heading(_)) => {
                    document
                        .anchors
                        .extend(heading.take().map(|title| anchor(&title)));
                }
                Event::Start(Tag::List(_)) => in_duties = party.is_some(),
                Event::End(TagEnd::List(_)) => {
                    in_duties = false;
                    party = None;
                }
                Event::Start(Tag::Item | Tag::Paragraph) if words.is_none() => {
                    words = Some((line, String::new()));
                }
                Event::End(TagEnd::Item | TagEnd::Paragraph) => {
                    if let Some((line, text)) = words.take() {
                        let text = text.trim().to_owned();
                        match (party, in_duties, text.as_str()) {
                            (_, _, "Driver requirements") => party = Some(Party::Driver),
                            (_, _, "Device requirements") => party = Some(Party::Device),
                            (Some(party), true, _) => {
                                document.duties.push(Duty { line, party, text });
                            }
                            _ => document.paragraphs.push((line, text)),
                        }
                    }
                }
                Event::Start(Tag::Link { dest_url, .. }) => {
                    if let Some(target) = dest_url.strip_prefix('#') {
                        document.links.push((line, target.to_owned()));
                    }
                }
                Event::Code(code) => {
                    document.names.push((line, code.to_string()));
                    if let Some((_, text)) = &mut words {
                        text.push_str(&format!("`{code}`"));
                    }
                    if let Some(title) = &mut heading {
                        title.push_str(&code);
                    }
                }
                Event::Text(part) => match (&mut block, &mut heading, &mut words) {
                    (Some((_, _, content)), _, _) => content.push_str(&part),
                    (_, Some(title), _) => title.push_str(&part),
                    (_, _, Some((_, text))) => text.push_str(&part),
                    _ => {}
                },
                Event::SoftBreak | Event::HardBreak => {
                    if let Some((_, text)) = &mut words {
                        text.push(' ');
                    }
                }
                _ => {}
            }
        }
        document
    }

    fn unreadable(&mut self, line: usize, what: String) {
        self.unreadable.push(Difference {
            file: self.file.clone(),
            line,
            what,
        });
    }

    fn read_block(&mut self, line: usize, info: &str, content: &str) {
        let mut info = info.split_whitespace();
        match (info.next(), info.next()) {
            (Some("c"), None) => self.read_listing(line, content),
            (Some("hex"), Some(label)) => self.read_example(line, label, content),
            _ => self.unreadable(
                line,
                "this block is neither a listing nor an example".into(),
            ),
        }
    }

    fn read_listing(&mut self, block: usize, content: &str) {
        enum Open {
            Structure(Structure),
            Operation(Operation),
        }
        let mut open = None;
        for (line, text) in (block + 1..).zip(content.lines()) {
            let (code, comment) = match text.split_once("/*") {
                Some((code, comment)) => (code.trim(), comment.trim_end_matches("*/").trim()),
                None => (text.trim(), ""),
            };
            let words: Vec<&str> = code.split_whitespace().collect();
            open = match (open, words.as_slice()) {
                (None, []) => None,
                (None, ["struct", name, "{"]) => Some(Open::Structure(Structure {
                    line,
                    name: (*name).to_owned(),
                    fields: Vec::new(),
                    size: 0,
                })),
                (None, ["operation", name, "=", code, "{"]) if number(code).is_some() => {
                    Some(Open::Operation(Operation {
                        line,
                        name: (*name).to_owned(),
                        code: number(code).unwrap_or_default(),
                        arguments: Vec::new(),
                    }))
                }
                (Some(Open::Structure(mut structure)), ["};"]) => {
                    let size = comment
                        .strip_suffix("bytes")
                        .and_then(|size| number(size.trim()));
                    match size.and_then(|size| usize::try_from(size).ok()) {
                        Some(size) => structure.size = size,
                        None => self.unreadable(line, "the size in bytes is missing".into()),
                    }
                    self.structures.push(structure);
                    None
                }
                (Some(Open::Operation(operation)), ["};"]) => {
                    self.operations.push(operation);
                    None
                }
                (Some(Open::Structure(mut structure)), [type_name @ .., name]) => {
                    match field(line, &type_name.join(" "), name, comment) {
                        Some(field) => structure.fields.push(field),
                        None => self.unreadable(line, format!("`{text}` is not a field")),
                    }
                    Some(Open::Structure(structure))
                }
                (Some(Open::Operation(mut operation)), [type_name, name]) => {
                    let name = name.trim_end_matches(';').to_owned();
                    operation
                        .arguments
                        .push((line, name, (*type_name).to_owned()));
                    Some(Open::Operation(operation))
                }
                (open, _) => {
                    self.unreadable(line, format!("`{text}` cannot be understood here"));
                    open
                }
            };
        }
        if open.is_some() {
            self.unreadable(block, "this listing ends before its structure does".into());
        }
    }

    fn read_example(&mut self, block: usize, label: &str, content: &str) {
        let mut example = Example {
            label: label.to_owned(),
            bytes: Vec::new(),
            lines: Vec::new(),
            line: block,
        };
        for (line, text) in (block + 1..).zip(content.lines()) {
            // Three spaces separate the bytes from their meaning.
            let bytes = text.split_once("   ").map_or(text, |(bytes, _)| bytes);
            for byte in bytes.split_whitespace() {
                match u8::from_str_radix(byte, 16) {
                    Ok(value) if byte.len() == 2 => {
                        example.bytes.push(value);
                        example.lines.push(line);
                    }
                    _ => self.unreadable(line, format!("`{byte}` is not a byte")),
                }
            }
        }
        self.examples.push(example);
    }

    fn read_table(&mut self, table: Table) {
        let mut rows = table.rows.into_iter();
        let Some(name) = rows
            .next()
            .and_then(|(_, head)| head.first().and_then(|cell| code(cell)))
        else {
            return; // A table that gives no values.
        };
        let mut set = Set {
            line: table.line,
            name,
            rows: Vec::new(),
        };
        for (line, cells) in rows {
            let row = cells
                .first()
                .and_then(|cell| code(cell))
                .zip(cells.get(1).and_then(|cell| number(cell)));
            match row {
                Some((name, value)) => set.rows.push(Row {
                    line,
                    name,
                    value,
                    third: cells.get(2).cloned().unwrap_or_default(),
                }),
                None => self.unreadable(line, "this row does not give a name and a number".into()),
            }
        }
        self.sets.push(set);
    }
}

struct Table {
    line: usize,
    rows: Vec<(usize, Vec<String>)>,
}

/// The name in a cell that holds nothing else.
fn code(cell: &str) -> Option<String> {
    let name = cell.strip_prefix('`')?.strip_suffix('`')?;
    (!name.contains('`')).then(|| name.to_owned())
}

/// A number in the notation of the text.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn field(line: usize, type_name: &str, name: &str, comment: &str) -> Option<Field> {
    let offset = comment
        .split_once(':')
        .map_or(comment, |(offset, _)| offset);
    let offset = usize::try_from(number(offset.trim())?).ok()?;
    let name = name.strip_suffix(';')?;
    let (name, count) = match name.strip_suffix(']') {
        Some(array) => {
            let (name, count) = array.split_once('[')?;
            (name, usize::try_from(number(count)?).ok()?)
        }
        None => (name, 1),
    };
    Some(Field {
        line,
        type_name: type_name.to_owned(),
        name: name.to_owned(),
        count,
        offset,
    })
}

/// The anchor of a heading in the rendered document.
fn anchor(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' => Some(c),
            _ => None,
        })
        .collect()
}
