//! What a Rust definition is called in C.

use std::collections::BTreeMap;

use anyhow::{bail, Result};

/// Before every name of the interface of ioctls.
pub(crate) const PREFIX: &str = "virtio_hmm";

/// The name in words that are joined by underscores, as C writes it: `WaitAny` is `wait_any`.
#[must_use]
pub fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    let mut before = None;
    for letter in name.chars() {
        let begins_word =
            letter.is_ascii_uppercase() && before.is_some_and(|c: char| c.is_ascii_lowercase());
        if begins_word {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
        before = Some(letter);
    }
    snake
}

/// The same in capitals, below the prefix of all: `VIRTIO_HMM_WAIT_ANY`.
pub(crate) fn constant(words: &[&str]) -> String {
    let mut name = PREFIX.to_owned();
    for word in words {
        name.push('_');
        name.push_str(&snake(word));
    }
    name.to_uppercase()
}

/// The tag of a structure or an enumeration.
pub(crate) fn tag(name: &str) -> String {
    format!("{PREFIX}_{}", snake(name))
}

/// How documentation in C refers to what documentation in Rust names.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// Notes the reference for a Rust name, which is a path of one or two parts.
    pub(crate) fn insert(&mut self, rust: &str, reference: String) {
        self.0.insert(rust.to_owned(), reference);
    }

    /// The reference for a Rust name, if there is one.
    pub(crate) fn get(&self, rust: &str) -> Option<&str> {
        self.0.get(rust).map(String::as_str)
    }

    /// The reference for the target of a link.
    ///
    /// # Errors
    ///
    /// When the header has nothing of this name: its reader could not follow the link.
    pub(crate) fn link(&self, path: &str) -> Result<&str> {
        let parts: Vec<_> = path.split("::").collect();
        let last_two = parts.len().saturating_sub(2);
        for from in last_two..parts.len() {
            if let Some(reference) = self.get(&parts[from..].join("::")) {
                return Ok(reference);
            }
        }
        bail!("the documentation refers to {path}, which is not in the header")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart_by_their_capitals() {
        assert_eq!(snake("WaitAny"), "wait_any");
        assert_eq!(snake("AtomicCompareExchange"), "atomic_compare_exchange");
        assert_eq!(snake("U32"), "u32");
        assert_eq!(snake("MAX_WAIT"), "max_wait");
        assert_eq!(
            constant(&["DeviceState", "Gone"]),
            "VIRTIO_HMM_DEVICE_STATE_GONE"
        );
        assert_eq!(tag("JobReply"), "virtio_hmm_job_reply");
    }

    #[test]
    fn a_link_is_found_by_the_end_of_its_path_and_never_silently_lost() {
        let mut names = Names::default();
        names.insert("Status::Fault", "%FAULT".to_owned());
        names.insert("Status", "&enum status".to_owned());
        assert_eq!(
            names.link("super::command::Status::Fault").unwrap(),
            "%FAULT"
        );
        assert_eq!(names.link("Status").unwrap(), "&enum status");
        assert!(names.link("Status::Malformed").is_err());
        assert!(names.link("super::fault::Reason").is_err());
    }
}
