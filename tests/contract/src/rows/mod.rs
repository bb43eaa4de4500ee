//! The rows, by chapter.
//!
//! A row begins with a process that has nothing on any device, and may leave behind
//! whatever its process's end takes away.

mod access;
mod areas;
mod coherent;
mod concurrency;
mod copies;
mod dirty;
mod ends;
mod exclusive;
mod failures;
mod fork;
mod limits;
mod mappings;
mod migration;
mod mirroring;
mod pins;
mod poison;
mod reaper;
mod two_devices;

use crate::row::Chapter;

/// All chapters.
pub(crate) const CHAPTERS: &[Chapter] = &[
    mirroring::CHAPTER,
    migration::CHAPTER,
    fork::CHAPTER,
    dirty::CHAPTER,
    exclusive::CHAPTER,
    areas::CHAPTER,
    mappings::CHAPTER,
    access::CHAPTER,
    pins::CHAPTER,
    limits::CHAPTER,
    reaper::CHAPTER,
    ends::CHAPTER,
    poison::CHAPTER,
    failures::CHAPTER,
    copies::CHAPTER,
    coherent::CHAPTER,
    two_devices::CHAPTER,
    concurrency::CHAPTER,
];
