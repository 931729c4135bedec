//! Which row comes next: a position in an endless sequence of shuffled epochs.

use autograd::rng;

/// Stream of the shuffle's random numbers; an epoch adds to it.
const SHUFFLE: u64 = 0x5348_5546;

/// Walks over the training rows, epoch after epoch. Its whole state is how many rows it has given out.
#[derive(Debug, Clone)]
pub struct Cursor {
    rows: usize,
    shuffle: Option<u64>,
    seen: u64,
    /// The order of the epoch `seen` lies in.
    order: Vec<usize>,
}

impl Cursor {
    /// Starts after `seen` rows. `shuffle` is the key of the order; `None` keeps the file's.
    #[must_use]
    pub fn new(rows: usize, shuffle: Option<u64>, seen: u64) -> Self {
        let mut cursor = Self { rows, shuffle, seen, order: Vec::new() };
        cursor.order = cursor.order_of(seen / rows as u64);
        cursor
    }

    /// Rows given out so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Passes over the data so far, as a fraction.
    #[must_use]
    pub fn epoch(&self) -> f64 {
        self.seen as f64 / self.rows as f64
    }

    /// The next `count` row indices.
    pub fn take(&mut self, count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| {
                let (epoch, position) = (self.seen / self.rows as u64, (self.seen % self.rows as u64) as usize);
                if position == 0 {
                    self.order = self.order_of(epoch);
                }
                self.seen += 1;
                self.order[position]
            })
            .collect()
    }

    /// Fisher-Yates with numbers keyed by (seed, epoch, position).
    fn order_of(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rows).collect();
        if let Some(key) = self.shuffle {
            for last in (1..self.rows).rev() {
                let pick = (rng::uniform(key, SHUFFLE + epoch, last as u64) * (last + 1) as f64) as usize;
                order.swap(last, pick);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once_in_an_order_of_its_own() {
        let mut cursor = Cursor::new(20, Some(7), 0);
        let (first, second) = (cursor.take(20), cursor.take(20));
        assert_ne!(first, second);
        for epoch in [first, second] {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..20).collect::<Vec<_>>());
            assert_ne!(epoch, sorted);
        }
        assert_eq!(cursor.epoch(), 2.0);
    }

    #[test]
    fn a_restored_cursor_goes_on_where_it_stood() {
        let mut whole = Cursor::new(7, Some(1), 0);
        let all = whole.take(30);
        for cut in 0..30 {
            let mut first = Cursor::new(7, Some(1), 0);
            let mut got = first.take(cut);
            got.extend(Cursor::new(7, Some(1), first.seen()).take(30 - cut));
            assert_eq!(got, all, "cut at {cut}");
        }
    }

    #[test]
    fn without_a_key_the_file_order_stays() {
        assert_eq!(Cursor::new(3, None, 0).take(5), [0, 1, 2, 0, 1]);
    }
}
