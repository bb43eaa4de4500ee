//! What the driver's C functions are called in the kernel.
//!
//! It knows names only.

/// How the names of the driver's C functions begin, and those of the kernel's.
const OURS: &str = "virtio_hmm_";
const KERNELS: &str = "hmm_";

/// Functions that do nothing but call one of a C header, which they are called after: their names
/// here without what they begin with, and there.
const NAMESAKES: &[(&str, &str)] = &[
    ("set_seq", "mmu_interval_set_seq"),
    ("read_retry", "mmu_interval_read_retry"),
    ("blockable", "mmu_notifier_range_blockable"),
    ("is_write_tracked", "userfaultfd_wp"),
    ("mmap_read_lock_killable", "mmap_read_lock_killable"),
    ("mmap_write_lock_killable", "mmap_write_lock_killable"),
    ("mmap_write_unlock", "mmap_write_unlock"),
    ("is_zero_page", "is_zero_pfn"),
    ("pfn_to_page", "pfn_to_page"),
    ("page_to_pfn", "page_to_pfn"),
    ("folio_pfn", "folio_pfn"),
    ("folio_order", "folio_order"),
    ("folio_mapcount", "folio_mapcount"),
    ("page_folio", "page_folio"),
    ("page_pagemap", "page_pgmap"),
    ("get_page", "get_page"),
    ("put_page", "put_page"),
    ("put_pagemap", "put_dev_pagemap"),
    // Not the one in question, which it calls in slices for kernel threads.
    ("range_fault", "hmm_range_fault_sliced"),
];

/// The kernel's name of one of our functions, by its name without what it begins with.
fn of(name: &str) -> String {
    let namesake = NAMESAKES.iter().find(|(ours, _)| *ours == name);
    namesake.map_or_else(
        || format!("{KERNELS}{name}"),
        |(_, kernels)| (*kernels).to_owned(),
    )
}

/// The kernel's name of a C function of ours.
pub(super) fn of_function(name: &str) -> String {
    name.strip_prefix(OURS).map_or_else(|| name.to_owned(), of)
}

/// A Rust source with the kernel's names of our C functions.
pub(super) fn in_rust(source: &str) -> String {
    replace(source, of)
}

/// The C functions of ours that a Rust source names.
pub(super) fn used_by(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    replace(source, |name| {
        names.push(format!("{OURS}{name}"));
        String::new()
    });
    names
}

/// Replaces each name of ours by what `new` makes of its end.
pub(super) fn replace(source: &str, mut new: impl FnMut(&str) -> String) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(at) = rest.find(OURS) {
        let (before, from) = rest.split_at(at);
        let end = from
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(from.len());
        out.push_str(before);
        out.push_str(&new(&from[OURS.len()..end]));
        rest = &from[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_called_after_the_kernels_if_there_is_one() {
        let source = "bindings::virtio_hmm_get_page(x); virtio_hmm_find_page()";
        assert_eq!(in_rust(source), "bindings::get_page(x); hmm_find_page()");
        assert_eq!(
            used_by(source),
            ["virtio_hmm_get_page", "virtio_hmm_find_page"]
        );
        assert_eq!(of_function("virtio_hmm_set_seq"), "mmu_interval_set_seq");
        assert_eq!(of_function("is_in"), "is_in");
    }
}
