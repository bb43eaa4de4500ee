//! Finds the fewest things that still break something.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input",
//! 2002): parts of a list are left out as long as the rest still breaks. It does not know what the
//! things are.

/// Leaves things out as long as `breaks` says that the rest still breaks. The result breaks, and if
/// `breaks` is reliable it no longer does when any one thing is left out. The whole list is not
/// tried.
///
/// # Errors
///
/// An error of `breaks`, which ends the search.
pub fn fewest<T: Clone, E>(
    all: Vec<T>,
    mut breaks: impl FnMut(&[T]) -> Result<bool, E>,
) -> Result<Vec<T>, E> {
    if all.is_empty() || breaks(&[])? {
        return Ok(Vec::new());
    }
    let mut kept = all;
    let mut parts = 2;
    while kept.len() > 1 {
        let size = kept.len().div_ceil(parts);
        let mut smaller = None;
        for part in kept.chunks(size) {
            if breaks(part)? {
                smaller = Some((part.to_vec(), 2));
                break;
            }
        }
        // If there are two parts, leaving out one leaves the other.
        if smaller.is_none() && parts > 2 {
            for first in (0..kept.len()).step_by(size) {
                let mut rest = kept.clone();
                rest.drain(first..kept.len().min(first + size));
                if breaks(&rest)? {
                    smaller = Some((rest, (parts - 1).max(2)));
                    break;
                }
            }
        }
        match smaller {
            Some((list, next)) => (kept, parts) = (list, next),
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use proptest::prelude::*;

    fn shrunk(all: Vec<u32>, breaks: impl Fn(&[u32]) -> bool) -> (Vec<u32>, usize) {
        let tried = Cell::new(0);
        let result = fewest(all, |list| {
            tried.set(tried.get() + 1);
            Ok::<_, Infallible>(breaks(list))
        });
        let Ok(list) = result;
        (list, tried.get())
    }

    #[test]
    fn what_breaks_alone_is_found_alone() {
        let (list, tried) = shrunk((0..64).collect(), |list| list.contains(&37));
        assert_eq!(list, [37]);
        assert!(tried < 20, "{tried}");
    }

    #[test]
    fn what_breaks_without_anything_needs_nothing() {
        assert_eq!(shrunk((0..5).collect(), |_| true), (vec![], 1));
        assert_eq!(shrunk(vec![], |_| false), (vec![], 0));
    }

    #[test]
    fn an_error_ends_it() {
        let result = fewest(vec![1, 2, 3], |list| {
            if list.len() == 1 {
                Err("the machine is gone")
            } else {
                Ok(false)
            }
        });
        assert_eq!(result, Err("the machine is gone"));
    }

    proptest! {
        #[test]
        fn what_is_left_breaks_and_nothing_of_it_can_be_left_out(
            count in 1_u32..24, needed in proptest::collection::btree_set(0_u32..24, 1..5),
        ) {
            let needed: Vec<u32> = needed.into_iter().filter(|thing| *thing < count).collect();
            prop_assume!(!needed.is_empty());
            let breaks = |list: &[u32]| needed.iter().all(|thing| list.contains(thing));
            let (list, tried) = shrunk((0..count).collect(), breaks);
            prop_assert_eq!(&list, &needed);
            prop_assert!(tried <= 4 * (count * count) as usize + 4, "{}", tried);
        }

        #[test]
        fn of_several_reasons_one_is_kept(
            count in 4_u32..24, one in 0_u32..4, other in 0_u32..4,
        ) {
            let breaks = |list: &[u32]| {
                list.contains(&one) || (list.contains(&other) && list.contains(&3))
            };
            let (list, _) = shrunk((0..count).collect(), breaks);
            prop_assert!(breaks(&list));
            for place in 0..list.len() {
                let mut rest = list.clone();
                rest.remove(place);
                prop_assert!(!breaks(&rest));
            }
        }
    }
}
