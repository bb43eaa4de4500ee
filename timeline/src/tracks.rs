//! Tracks: what happened one after the other, beside each other.
//!
//! Knows neither what happened nor how tracks are written.

/// A set of tracks on one clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracks {
    /// Groups, in the order in which they are shown.
    pub groups: Vec<Group>,
}

/// Tracks that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its tracks, in the order in which they are shown.
    pub tracks: Vec<Track>,
}

/// A track. On it, each slice ends before the next one begins, or contains it.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// Its name.
    pub name: String,
    /// What is on it, in the order in which it begins.
    pub content: Content,
}

/// What is on a track.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Slices and moments.
    Slices(Vec<Slice>),
    /// A number, from each time on: bytes.
    Bytes(Vec<(u64, u64)>),
}

/// Something that took time, or a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// When it began, in nanoseconds.
    pub begin: u64,
    /// How long it lasted; `None` for a moment.
    pub lasted: Option<u64>,
    /// Its name.
    pub name: String,
    /// What else there is to say of it.
    pub details: Vec<(&'static str, Detail)>,
    /// The number of what passes through here, to draw its way from track to track.
    pub flow: Option<u64>,
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A number.
    Number(u64),
    /// An address.
    Address(u64),
    /// A word.
    Word(String),
}

impl Slice {
    /// When it ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.begin.saturating_add(self.lasted.unwrap_or(0))
    }
}

/// Distributes slices, which may overlap, to as few tracks of this name as possible, such that on each
/// they only contain each other.
#[must_use]
pub fn distribute(name: &str, mut slices: Vec<Slice>) -> Vec<Track> {
    // Of two that begin together, the longer one contains the other.
    slices.sort_by_key(|slice| (slice.begin, std::cmp::Reverse(slice.end())));
    // For each track, the ends of the slices that are not over, the innermost last.
    let mut rows: Vec<(Vec<u64>, Vec<Slice>)> = Vec::new();
    for slice in slices {
        let (begin, end) = (slice.begin, slice.end());
        let row = rows.iter().position(|(open, _)| {
            let around = open.iter().rev().find(|other| **other > begin);
            around.is_none_or(|around| *around >= end)
        });
        let index = row.unwrap_or_else(|| {
            rows.push(Default::default());
            rows.len() - 1
        });
        if let Some((open, row)) = rows.get_mut(index) {
            open.retain(|other| *other > begin);
            if slice.lasted.is_some() {
                open.push(end);
            }
            row.push(slice);
        }
    }
    let names = (1..).map(|number| match number {
        1 => name.to_owned(),
        number => format!("{name} ({number})"),
    });
    let tracks = names.zip(rows).map(|(name, (_, slices))| Track {
        name,
        content: Content::Slices(slices),
    });
    tracks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(begin: u64, end: u64) -> Slice {
        Slice {
            begin,
            lasted: Some(end - begin),
            name: String::new(),
            details: Vec::new(),
            flow: None,
        }
    }

    fn slices(track: &Track) -> &[Slice] {
        match &track.content {
            Content::Slices(slices) => slices,
            Content::Bytes(_) => panic!("{track:?}"),
        }
    }

    #[test]
    fn slices_that_contain_each_other_share_a_track() {
        let tracks = distribute(
            "a",
            vec![slice(5, 6), slice(0, 10), slice(5, 9), slice(10, 12)],
        );
        assert_eq!(tracks.len(), 1);
        let begins: Vec<_> = slices(&tracks[0]).iter().map(|slice| slice.begin).collect();
        assert_eq!(begins, [0, 5, 5, 10]);
    }

    #[test]
    fn slices_that_overlap_have_tracks_of_their_own() {
        let tracks = distribute("a", vec![slice(0, 10), slice(5, 15), slice(12, 20)]);
        let names: Vec<_> = tracks.iter().map(|track| track.name.as_str()).collect();
        assert_eq!(names, ["a", "a (2)"]);
        assert_eq!(slices(&tracks[0]).len(), 2);
    }

    #[test]
    fn on_each_track_slices_are_nested_and_none_is_missing() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..500 {
            let count = random.usize(..60);
            let all: Vec<_> = (0..count)
                .map(|_| {
                    let begin = random.u64(..100);
                    slice(begin, begin + random.u64(..30))
                })
                .collect();
            let tracks = distribute("a", all);
            assert_eq!(
                tracks
                    .iter()
                    .map(|track| slices(track).len())
                    .sum::<usize>(),
                count
            );
            for track in &tracks {
                let slices = slices(track);
                for (index, one) in slices.iter().enumerate() {
                    for other in &slices[index + 1..] {
                        let apart = other.begin >= one.end();
                        let inside = other.end() <= one.end();
                        assert!(
                            one.begin <= other.begin && (apart || inside),
                            "{one:?} {other:?}"
                        );
                    }
                }
            }
        }
    }
}
