//! The headers in the checkout are those that the definitions make.

use std::fs;

use hmm_headers::{all, REFRESH};

#[test]
fn each_header_is_what_its_definitions_make_of_it() {
    let headers = all().unwrap();
    assert!(!headers.is_empty());
    for header in headers {
        let path = header.path.canonicalize().unwrap_or(header.path);
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == header.text,
            "{} is stale: run `{REFRESH}`",
            path.display()
        );
    }
}
