//! Slices in portions, by number and by bytes.

/// Portions of at most so many items and bytes; an item that is longer by itself is a portion of its own.
pub(crate) fn portions<T>(
    mut rest: &[T],
    (most, most_bytes): (usize, usize),
    bytes: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let mut all = 0;
        let fits = |one: &&T| {
            all += bytes(one);
            all <= most_bytes
        };
        let many = rest.iter().take(most).take_while(fits).count().max(1);
        (!rest.is_empty()).then(|| rest.split_off(..many.min(rest.len())).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_bounded_by_number_and_bytes_and_have_at_least_one_item() {
        let lengths = |items: &[usize], most| {
            portions(items, most, |item| *item).map(<[usize]>::len).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&[], (2, 10)), [0; 0]);
        assert_eq!(lengths(&[1, 1, 1, 1, 1], (2, 10)), [2, 2, 1]);
        assert_eq!(lengths(&[4, 6, 1, 11, 10, 1], (9, 10)), [2, 1, 1, 1, 1]);
    }
}
