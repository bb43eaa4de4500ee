//! The book, and what it has in common with the repository's pages: one text for both.
//!
//! A chapter is a page of this repository, wherever it lies; `book/SUMMARY.md` has their order.
//! mdBook wants them all below one directory, which [`tree`] writes. [`links`] checks the links of
//! the pages as the repository shows them, and [`commands`] the commands in them. Nothing here knows
//! how pages are drawn, or what a command does.

pub mod commands;
pub mod contents;
pub mod links;
pub mod page;
pub mod tree;
